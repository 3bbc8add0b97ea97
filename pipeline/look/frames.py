"""Frames as files: which pictures `pictures` draws, and where each of them lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from manifests.config import ConfigError
from manifests.recipe import Recipe
from manifests.storage.errors import StoreError
from manifests.storage.names import shard_name
from manifests.storage.places import root_of
from manifests.storage.store import Store
from pipeline.frame import Frame
from pipeline.look.browse import NEEDED, SENSED, Browser
from pipeline.look.depth import depth_figure
from pipeline.look.pictures import frame_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = {"labels": 80, "depth": 100}


def draw_frames(recipe: Recipe, folder: Path, limit: int, by_depth: bool, tell: Callable[[str], None]) -> list[Path]:
    """Write one PNG for each of at most `limit` frames of the recipe into `folder` and return the paths.

    Points are in the colours of their labels, or by depth: where that is asked for, and where nothing is named yet.
    Raises StoreError where there are no projections either, ConfigError for a picture that would replace another one.
    """
    store = Store.open(recipe.run.store)
    browser, kind = opened(store, recipe, by_depth, tell)
    root, paths = root_of(recipe.data), []
    for line in browser.not_shown() if kind == "labels" else ():
        tell(line)
    for place in browser.choose(limit):
        item = browser.read(place)
        path = folder / picture_name(item.frame, kind)
        about = f"recipe {recipe.run_name}, {recipe.folder().absolute()}, frame {item.frame.frame_id}, by {kind}"
        check_free(path, about)
        figure = depth_figure(item, root) if kind == "depth" else frame_figure(item, root, recipe.ontology)
        save_figure(path, figure, DOTS_PER_INCH[kind], about)
        paths.append(path)
    return paths


def opened(store: Store, recipe: Recipe, by_depth: bool, tell: Callable[[str], None]) -> tuple[Browser, str]:
    """Return the tables of a recipe, and whether "labels" or "depth" is what can be shown of them."""
    if by_depth:
        return Browser.open(store, recipe, SENSED), "depth"
    try:
        return Browser.open(store, recipe, NEEDED), "labels"
    except StoreError as error:
        try:
            found = Browser.open(store, recipe, SENSED)
        except StoreError:
            raise error from None  # there is not even that
        tell(f"points are coloured by depth, since nothing is named yet: {error}")
        return found, "depth"


def picture_name(frame: Frame, kind: str) -> str:
    """Return the name of a frame's picture, `<scene>/<frame>.png`: no other frame has it."""
    name = shard_name(frame.frame_id.removeprefix(f"{frame.scene}/"))
    return f"{shard_name(frame.scene)}/{name}{'-depth' if kind == 'depth' else ''}.png"


def check_free(path: Path, about: str) -> None:
    """Raise ConfigError where a file lies that is no picture, or one of another recipe or frame."""
    from PIL import Image, UnidentifiedImageError

    if not path.exists():
        return
    try:
        with Image.open(path) as picture:
            there = str(picture.info.get("Description", ""))
    except (UnidentifiedImageError, OSError):
        there = ""
    if there != about:
        known = f"of {there}" if there else "no picture of ours"
        raise ConfigError(f"{path} is {known}, and would be overwritten by one of {about}; --out names another folder")


def save_figure(path: Path, figure: Figure, dots_per_inch: int, about: str) -> None:
    """Write a figure as PNG, with what it shows as its description; raises ConfigError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=dots_per_inch, metadata={"Description": about})
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}; --out names another folder") from None
