"""How fast a teacher is, part by part, on images made of noise and with random weights.

`python -m bench.teacher_speed NAME` prints it.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from manifests.config import ConfigError, parse_override, parse_section
from manifests.ontology import load_ontology
from manifests.recipe import Recipe
from manifests.sections.data import DataConfig, RunConfig
from manifests.sections.tables import GroupConfig, ProjectConfig, SegmentConfig, TextConfig
from manifests.sections.teachers.registry import TEACHER_SECTIONS
from manifests.tables.teacher import Encode
from pipeline.commands.console import SetOption, console, sentences
from pipeline.engine.worker import device_name
from pipeline.frame import Camera, Frame
from pipeline.stages import encode
from pipeline.stages.base import FrameInput, StreamFunction
from pipeline.teachers.loading.towers import pick_device
from pipeline.teachers.registry import TEACHERS

if TYPE_CHECKING:
    from pipeline.teachers.batches import Batches

PICTURES = 12  # files on disk; more images are these again
VIEWS = 6

_B16 = {"model": "ViT-B-16-quickgelu", "weights": "random:0", "precision": "bf16"}
_L14 = {"model": "ViT-L-14-quickgelu", "weights": "random:0", "precision": "bf16"}
_WINDOWS = {"short_side_px": 560, "window_px": 336, "stride_px": 224}
SMALL: dict[str, tuple[Mapping[str, Any], ...]] = {
    "catseg": ({"model": "tiny", "weights": "random:0"},),
    "clip_dense": ({"model": "tiny", "weights": "random:0", "short_side_px": 112},),
    "composite": ({"masks": "slic", "clip_dense": {"model": "tiny", "weights": "random:0", "short_side_px": 112}},),
    "fcclip": ({"model": "tiny-convnext", "weights": "random:0", "short_side_px": 128},),
    "ensemble": ({},),
    "onnx": ({},),
    "san": ({"model": "tiny", "weights": "random:0", "short_side_px": 128},),
}
"""Per teacher, the `[teacher]` sections that are measured on a CPU: towers of a few layers; one's own as it is."""
LARGE: dict[str, tuple[Mapping[str, Any], ...]] = {
    "catseg": (
        {"weights": "random:0", "precision": "bf16"},
        {"weights": "random:0", "precision": "bf16", "windows": True},
    ),
    "clip_dense": (
        {**_B16, "mode": "naclip"},
        {**_B16, "mode": "sc"},
        {**_B16, **_WINDOWS, "mode": "sc"},
        {**_L14, "mode": "sc"},
        {**_L14, **_WINDOWS, "mode": "sc"},
    ),
    "composite": ({"masks": "slic", "clip_dense": {**_B16, "mode": "sc"}},),
    "fcclip": ({"weights": "random:0", "precision": "bf16"},),
    "ensemble": ({},),
    "onnx": ({},),
    "san": ({"weights": "random:0", "precision": "bf16"},),
}
"""The same on a GPU: real sizes, bfloat16."""
LARGE_BATCHES = (16, 64)


@dataclass(frozen=True)
class Speed:
    """What was measured. Seconds are summed over threads; None where a teacher's parts cannot be told apart."""

    what: str
    device: str
    batch: int | None
    images: int
    wall_s: float
    decode_s: float | None
    model_s: float | None
    pack_s: float | None
    post_s: float

    @property
    def busy(self) -> float | None:
        """Share of the time that the network is running."""
        return None if self.model_s is None else self.model_s / self.wall_s

    def rate(self, seconds: float | None) -> float | None:
        """Images a second of a part."""
        return self.images / seconds if seconds else None


def bench_recipe(name: str, root: Path, teacher: Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe over noise images for a `[teacher]` section; overrides are of `teacher`, `run` and `segment`."""
    sections: dict[str, dict[str, Any]] = {"teacher": {**teacher, "name": name}, "run": {}, "segment": {}}
    for override in overrides:
        section, key, value = parse_override(override)
        if section not in sections:
            raise ConfigError(f"--set {override}: only teacher, run and segment matter here")
        sections[section][key] = value
    return Recipe(
        name="bench",
        data=DataConfig(root=str(root)),
        run=parse_section("run", sections["run"], RunConfig),
        teacher=parse_section("teacher", sections["teacher"], TEACHER_SECTIONS[name]),
        project=ProjectConfig(),
        text=TextConfig(),
        segment=parse_section("segment", sections["segment"], SegmentConfig),
        group=GroupConfig(),
        ontology=load_ontology("nuscenes"),
    )


def write_frames(root: Path, images: int, width_px: int, height_px: int) -> list[Frame]:
    """Write JPEG files of smooth noise and return frames of six images each, `images` in all or a few more."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        coarse = rng.integers(0, 256, (max(1, height_px // 20), max(1, width_px // 20), 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width_px, height_px), Image.Resampling.BICUBIC)
        grain = rng.integers(-12, 13, (height_px, width_px, 1))
        Image.fromarray((np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)).save(root / f"{number}.jpg")
    intrinsics = np.array([[0.8 * width_px, 0, width_px / 2], [0, 0.8 * width_px, height_px / 2], [0, 0, 1]])
    names = itertools.cycle(f"{number}.jpg" for number in range(PICTURES))
    return [
        Frame(
            *(f"{number}", "noise", 0, "", "", None, np.eye(4), np.eye(4)),
            tuple(
                Camera(f"view{view}", "", next(names), 0, intrinsics, np.eye(4), 0, width_px, height_px)
                for view in range(VIEWS)
            ),
        )
        for number in range(-(-images // VIEWS))
    ]


def measure(recipe: Recipe, frames: Sequence[Frame], batch: int | None) -> Speed:
    """Return the speed of a recipe's teacher on frames; `batch` None takes the recipe's, else the teacher's own.

    What runs once is left out: loading, and a batch before the clock starts. "post" is the segment half of one frame,
    with random vectors for the prompts of the class dictionary.
    """
    recipe = replace(recipe, run=replace(recipe.run, batch=batch or recipe.run.batch))
    stream = encode.stream(recipe)
    first = list(encodings(stream, frames[: -(-(batch or 2 * VIEWS) // VIEWS)]))  # memory, kernels, compilation
    networks: tuple[Batches, ...] = ()
    if isinstance(stream, encode.InBatches | encode.SideBySide):
        networks = stream.batches if isinstance(stream, encode.SideBySide) else (stream.batches,)
    for network in networks:
        network.clock = type(network.clock)()
    start = time.perf_counter()
    for _ in encodings(stream, frames):
        pass
    wall_s = time.perf_counter() - start
    clocks = [network.clock for network in networks]
    kind = TEACHERS[recipe.teacher.name]
    dims = kind.load(recipe, "text").text(("car",)).shape[1]
    text = np.random.default_rng(0).normal(size=(len(recipe.ontology.prompts), dims)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    half = kind.load(recipe, "segment")
    half.segment(frames[0], first[0], text)
    start = time.perf_counter()
    half.segment(frames[0], first[0], text)
    post_s = time.perf_counter() - start
    images = sum(len(frame.cameras) for frame in frames)
    return Speed(
        what=", ".join(f"{key} {value}" for key, value in recipe.teacher.settings("encode").items() if key != "name"),
        device=device_name(recipe),
        batch=stream.batch,
        images=images,
        wall_s=wall_s,
        decode_s=sum(clock.decode_s for clock in clocks) if clocks else None,
        model_s=sum(clock.model_s for clock in clocks) if clocks else None,
        pack_s=sum(clock.pack_s for clock in clocks) if clocks else None,
        post_s=post_s * images / len(frames[0].cameras),
    )


def encodings(stream: StreamFunction[Encode], frames: Sequence[Frame]) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Yield the encoding of every frame; raises what went wrong with one."""
    for row in stream(FrameInput(frame) for frame in frames):
        if isinstance(row, Exception):
            raise row
        yield row.encoding


def bench_teacher(
    name: Annotated[str, typer.Argument(help="A teacher, as recipes name it.")],
    set_: SetOption = None,
    images: Annotated[int, typer.Option(min=1, help="How many images go through, six to a frame.")] = 96,
    image_size: Annotated[str, typer.Option(metavar="WIDTHxHEIGHT", help="Their size on disk.")] = "1600x900",
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Images at once; may be repeated.")] = None,
) -> None:
    """Measure images a second of each part of a teacher, on noise with random weights; on a CPU a small tower runs."""
    with sentences():
        measure_teacher(name, set_ or (), images, image_size, batch or [])


def measure_teacher(name: str, overrides: Sequence[str], images: int, image_size: str, batches: list[int]) -> None:
    """Print a line per tower and batch; raises ConfigError for a teacher that has nothing to measure."""
    if name not in SMALL:
        raise ConfigError(f'"{name}" is no teacher with a network; there are {", ".join(sorted(SMALL))}')
    width, cross, height = image_size.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ConfigError(f'--image-size is "{image_size}"; expected WIDTHxHEIGHT, for example 1600x900')
    with tempfile.TemporaryDirectory(prefix="afov-bench-") as folder:
        root = Path(folder)
        on_gpu = pick_device(bench_recipe(name, root, SMALL[name][0], overrides).run.device).type == "cuda"
        cases = (LARGE if on_gpu else SMALL)[name]
        if not on_gpu and cases != ({},):
            console.print(
                "There is no GPU here: a small tower runs on the CPU, and says nothing about a GPU.", soft_wrap=True
            )
        frames = write_frames(root, images, int(width), int(height))
        table = Table(title=f"{name}, {images} images of {image_size}; images a second")
        for heading in ("tower", "batch", "whole", "decode", "model", "pack", "post", "network runs"):
            table.add_column(heading, justify="right")
        sizes: Sequence[int | None] = batches or (LARGE_BATCHES if on_gpu else [None])
        for number, case in enumerate(cases, 1):
            for size in sizes:
                speed = measure(bench_recipe(name, root, case, overrides), frames, size)
                if size == sizes[0]:
                    console.print(f"{number}: {speed.what} on {speed.device}", markup=False, soft_wrap=True)
                parts = (speed.wall_s, speed.decode_s, speed.model_s, speed.pack_s, speed.post_s)
                rates = (speed.rate(seconds) for seconds in parts)
                table.add_row(
                    *(str(number), str(speed.batch or "-")),
                    *("-" if rate is None else f"{rate:.1f}" for rate in rates),
                    "-" if speed.busy is None else f"{speed.busy:.0%}",
                )
        console.print(table)
        console.print(
            "whole: stage encode without writing; decode and pack: one thread (run.decode_threads of them work side by "
            "side); post: stage segment, one thread; network runs: share of the whole time.",
            soft_wrap=True,
        )


if __name__ == "__main__":
    typer.run(bench_teacher)
