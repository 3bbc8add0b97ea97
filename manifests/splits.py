"""Named scene lists: which scenes of a data set a run looks at. A split only selects; it changes no row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from manifests.config import ConfigError, nearest

FOLDER = Path(__file__).with_name("splits")

ALL = "all"
"""The split of every scene there is, in every data set."""

_SPLITS: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "nuscenes": {
        "train": (("nuscenes_train",), ()),
        "val": (("nuscenes_val",), ()),
        "test": (("nuscenes_test",), ()),
        "trainval": (("nuscenes_train", "nuscenes_val"), ()),
        "mini_train": (("nuscenes_mini_train",), ()),
        "mini_val": (("nuscenes_mini_val",), ()),
        "mini": (("nuscenes_mini_train", "nuscenes_mini_val"), ()),
        "parametrize": (("nuscenes_train",), ("nuscenes_verify",)),
        "verify": (("nuscenes_verify",), ()),
    },
    "semantic_kitti": {
        "train": (("semantic_kitti_train",), ()),
        "val": (("semantic_kitti_val",), ()),
        "test": (("semantic_kitti_test",), ()),
        "trainval": (("semantic_kitti_train", "semantic_kitti_val"), ()),
    },
}
"""Of each data set, the splits by name: the scene lists that make them up, and those taken out again."""

_SCENES_SHOWN = 8


def split_names(dataset: str) -> tuple[str, ...]:
    """Return the splits of a data set by name; a data set without official lists has "all" only."""
    return (ALL, *_SPLITS.get(dataset, {}))


def check_split(split: str, dataset: str) -> None:
    """Raise ValueError for a name of no split of a data set, FileNotFoundError for a file that is not there.

    Which scenes are there is not asked, so that a mistyped split is told before anything is built.
    """
    if split.endswith(".txt"):
        if not (path := Path(split).expanduser()).is_file():
            raise FileNotFoundError(f"{path}: there is no such split file")
    elif split != ALL and split not in _SPLITS.get(dataset, {}):
        raise ValueError(
            f"unknown split {split!r} of {dataset}; expected one of {', '.join(split_names(dataset))}, "
            "or the path of a .txt file with one scene per line"
        )


def check_named(setting: str, split: str, dataset: str) -> None:
    """Raise ConfigError, which tells the setting, where `check_split` finds something wrong."""
    try:
        check_split(split, dataset)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{setting}: {error}") from None


def load_split(split: str, dataset: str, available: Sequence[str]) -> tuple[str, ...]:
    """Return the scenes of a split that are there, in the order of ``available`` (which is the order of the data set).

    ``split`` is a name of ``split_names(dataset)``, or the path of a ``.txt`` file with one scene per line, in which
    empty lines and what follows a "#" do not count. Of an official list, scenes that are not there are left out, since
    a data set may be there in part; a file is the user's own, and every scene that it names has to be there. Raises
    ValueError if the name is unknown, a file names a scene that is not there, or no scene is left; FileNotFoundError
    if the file is not there.
    """
    check_split(split, dataset)
    if split == ALL:
        wanted = set(available)
    elif split.endswith(".txt"):
        path = Path(split).expanduser()
        wanted = _read(path)
        absent = sorted(wanted - set(available))
        if absent:
            more = f", and {len(absent) - 1} more that are not there" if len(absent) > 1 else ""
            raise ValueError(
                f"{path} names scene {absent[0]!r}, which is not among the {len(available)} there are"
                f"{nearest(absent[0], available)}{more}; mend the name, or take it out of the file"
            )
    else:
        with_lists, without_lists = _SPLITS[dataset][split]
        wanted = _union(with_lists) - _union(without_lists)
    scenes = tuple(scene for scene in available if scene in wanted)
    if not scenes:
        shown = ", ".join(available[:_SCENES_SHOWN]) + (", ..." if len(available) > _SCENES_SHOWN else "")
        raise ValueError(
            f"split {split!r} of {dataset} is empty here: none of its {len(wanted)} scenes is among the "
            f"{len(available)} there are ({shown or 'none'}); name another split, 'all', or another version of the data"
        )
    return scenes


def split_content(path: str) -> list[str]:
    """Return the scenes that a ``.txt`` file names, sorted; none if it is not there, as whoever reads it says."""
    file = Path(path).expanduser()
    return sorted(_read(file)) if file.is_file() else []


def _union(lists: tuple[str, ...]) -> set[str]:
    return set().union(*(_read(FOLDER / f"{name}.txt") for name in lists))


def _read(path: Path) -> set[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # a byte-order mark is no part of a name
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no UTF-8 text; save it as UTF-8, one scene per line") from None
    return {line.split("#")[0].strip() for line in lines} - {""}
