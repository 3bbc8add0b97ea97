"""What every stage and teacher makes of fixed inputs, by version, and the defaults of all settings; and what they read.

    python -m tests.versions            says what differs from tests/golden/versions.json
    python -m tests.versions --write    writes it down, where a version was raised for it, or something is new

Rows that NumPy makes are digested, float64 after rounding to 9 decimals (the last bits depend on the CPU). Networks
compute other bits on every CPU, so of what they make, a few numbers are kept and compared within a tolerance.

What this cannot see: a change on one of the stages before counts as a reason for other rows, so two changes at once,
of which one raised its version, are taken for one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from manifests import labels, learnt
from manifests.fingerprint import DIGITS, canonical
from manifests.recipe import SECTION_CLASSES, Recipe
from manifests.sections.network import NetworkConfig
from manifests.sections.teachers.registry import TEACHER_SECTIONS
from manifests.sections.training import Task
from manifests.stages import SPECS, with_needs
from manifests.tables.base import Record
from pipeline.frame import Frame
from tests.fixed_rows import VARIANTS, Rows, recipe_over, rows_of, teacher_recipes, write_log
from tests.reads import Read, watched_recipe

GOLDEN = Path(__file__).parent / "golden" / "versions.json"
COMMAND = "python -m tests.versions --write"
# -- what is kept of rows

OF_THE_FILES = ("lidar_sha256", "image_sha256", "label_sha256", "lidar_bytes", "image_bytes")
"""Columns of `index` that hold what NumPy and Pillow made of the fixed inputs."""


def digest_of(rows: Sequence[Record]) -> str:
    """Return a digest of rows, alike on all machines; names of frames come from the data set, not from its place."""
    total = hashlib.sha256()
    for row in rows:
        said = {"status": "ok", "reason": None, **vars(row)}
        for name in row.schema.names:
            if name in OF_THE_FILES:
                continue
            value = said[name]
            for key, item in value.items() if isinstance(value, Mapping) else [("", value)]:
                if isinstance(item, np.ndarray):
                    plain = np.round(item, 9) + 0.0 if item.dtype == np.float64 else item
                    total.update(f"{name}{key}:{item.dtype.str}{item.shape}".encode())
                    total.update(np.ascontiguousarray(plain).tobytes())
                else:
                    total.update(f"{name}{key}:{canonical(item)}".encode())
    return total.hexdigest()[:DIGITS]


def numbers_of(arrays: Sequence[npt.NDArray[Any]]) -> list[float]:
    """Return how many values there are, their mean, root mean square, and mean after a ramp from -1 to 1."""
    flat = np.concatenate([np.asarray(one, np.float64).ravel() for one in arrays] or [np.empty(0)])
    if not flat.size:
        return [0.0, 0.0, 0.0, 0.0]
    ramp = np.linspace(-1, 1, flat.size)
    found = flat.size, flat.mean(), np.sqrt((flat**2).mean()), (flat * ramp).mean()
    return [float(f"{one:.6g}") for one in found]


def numbers_of_teacher(rows: Rows) -> dict[str, list[float]]:
    """Return a few numbers of all that a teacher made: vectors, parts of encodings, which pixels have which name."""
    found = {"text": numbers_of([row.vector for row in rows["text"]])}
    for row in rows.get("encode", ()):
        parts: dict[str, list[npt.NDArray[Any]]] = {}
        for name, array in row.encoding.items():
            parts.setdefault(name.partition("/")[2], []).append(array)
        found |= {f"encode {name}": numbers_of(some) for name, some in sorted(parts.items())}
    for row in rows["segment"]:
        # one map of prompts over all views, 0 for none: its mean tells shares, its ramp where they are
        segment = np.repeat(row.run_value, row.run_length).astype(np.int64)
        view = np.repeat(np.arange(len(row.height_px)), row.height_px * row.width_px)
        first = np.cumsum([0, *row.segments_in_view])[view]
        prompt = np.append(row.prompt_id + 1, 0)[np.where(segment > 0, first + segment - 1, -1)]
        for number in range(int(row.prompt_id.max(initial=0)) + 1):
            found[f"segment prompt {number}"] = numbers_of([prompt == number + 1])
        area = row.area_px.astype(np.float64)[:, None]  # small segments come and go with the last bits
        found["segment vector"] = numbers_of([(row.vector * area).sum(axis=0) / max(area.sum(), 1)])
        found["segment score"] = numbers_of([(row.score * area[:, 0]).sum(keepdims=True) / max(area.sum(), 1)])
    return found


TOLERANCE = 1e-3  # of the root mean square
ROUGH = 2e-2
BY_A_HAIR = ("clip_dense", "composite", "composite: proposer")
"""Examples with the default mode "sc", which fills patches that are out of place: with random weights, the last bits
decide which. "clip_dense: without outliers" leaves that out and is compared as all others are."""
SHARE = 5e-3  # of the pixels


def near(example: str, name: str, one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether numbers of a teacher are those of the same code on another CPU."""
    if one[0] != other[0]:
        return False
    of_size = (ROUGH if example in BY_A_HAIR else TOLERANCE) * max(abs(one[2]), abs(other[2]))
    most = SHARE if name.startswith("segment prompt") else of_size
    return all(abs(a - b) <= most for a, b in zip(one[1:], other[1:], strict=True))


# -- versions and defaults


def versions_of(recipe: Recipe, names: Sequence[str]) -> dict[str, int]:
    """Return the versions that stand for the rows of stages and of all that they are made from."""
    stages = {one: SPECS[one].version for one in with_needs(recipe, names)}
    makes = {"text", "encode", "segment"} & stages.keys()
    return {**stages, **({f"teacher {recipe.teacher.name}": recipe.teacher.version} if makes else {})}


TRAINING = ("training",)
NETWORK = ("training", "predict", "search")
ENTERS: dict[str, tuple[str, ...]] = {
    "project": ("project",),
    "text": ("text",),
    "segment": ("segment",),
    "group": ("group",),
    "motion": ("motion",),
    "vote": ("vote", "refine"),
    "correct": ("correct", "refine"),
    "target": ("target",),
    "voxels": NETWORK,
    "network": NETWORK,
    "augment": TRAINING,
    **{task: TRAINING for task in get_args(Task)},
}
"""What the changed settings of a section tell apart: tables of stages, runs of the trainer, tables of predictions.

Identities hold settings that are not the default. Those of [data], [refine] and [calibrate] are not here: they enter as
they are, so another default is another identity; nor are [predict] and [evaluate], from which no table takes a default.
"""


def versions_behind(section: str) -> dict[str, int]:
    """Return the versions that have to be raised when a default of a section changes."""
    kind, _, name = section.partition(" ")
    if kind == "teacher":
        return {section: TEACHER_SECTIONS[name].version}
    of_trainer = {"training": learnt.VERSION, "search": labels.SIMILARITY_VERSION}
    of_trainer |= {"predict": labels.PREDICT_VERSION, "refine": labels.REFINE_VERSION}
    return {one: of_trainer[one] if one in of_trainer else SPECS[one].version for one in ENTERS[section]}


HOW = {(NetworkConfig, "engine")}
"""Settings that say how things are computed: of the engine's default, "auto", nothing enters an identity."""


def defaults_of(kind: type[Any]) -> dict[str, Any]:
    """Return the defaults of a section by setting; those of a table within it are settings of a dotted name."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        value = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        if value is dataclasses.MISSING or (kind, item.name) in HOW:
            continue
        if dataclasses.is_dataclass(value):
            found |= {f"{item.name}.{key}": inner for key, inner in defaults_of(type(value)).items()}
        else:
            found[item.name] = json.loads(canonical(value))
    return found


def all_defaults() -> dict[str, dict[str, Any]]:
    """Return versions and defaults of every section of which an identity holds what is no default."""
    sections = {name: SECTION_CLASSES[name] for name in ENTERS}
    sections |= {f"teacher {name}": kind for name, kind in TEACHER_SECTIONS.items()}
    return {name: {"versions": versions_behind(name), "defaults": defaults_of(kind)} for name, kind in sections.items()}


# -- what is written down, and what differs from it


def entries(stages: Mapping[str, tuple[Recipe, Rows]], teachers: Mapping[str, tuple[Recipe, Rows]]) -> dict[str, Any]:
    """Return what is to be written down, from the rows of every variant and of every example of a teacher."""
    found: dict[str, Any] = {"stages": {}, "teachers": {}, "defaults": all_defaults()}
    for variant, (recipe, rows) in stages.items():
        for name, some in rows.items():
            entry = found["stages"].setdefault(name, {})
            entry[variant] = {"versions": versions_of(recipe, [name]), "rows": digest_of(some)}
    for example, (recipe, rows) in teachers.items():
        versions = versions_of(recipe, list(rows))
        found["teachers"][example] = {"versions": versions, "numbers": numbers_of_teacher(rows)}
    return dict(json.loads(json.dumps(found)))  # as it is read again


def raised(before: Mapping[str, int], now: Mapping[str, int]) -> bool:
    """Return whether a version was raised, and none taken back."""
    return before != now and all(now.get(name, 0) >= version for name, version in before.items() if name in now)


def where_to_raise(name: str) -> str:
    """Return the place of a version, as a message names it."""
    kind, _, teacher = name.partition(" ")
    if kind == "teacher":
        return f"`version` in manifests/sections/teachers/{teacher}.py"
    places = {
        "training": "VERSION in manifests/learnt.py",
        "search": "SIMILARITY_VERSION in manifests/labels.py",
        "predict": "PREDICT_VERSION in manifests/labels.py",
        "refine": "REFINE_VERSION in manifests/labels.py",
    }
    return places.get(name, f"SPECS['{name}'].version in manifests/stages.py")


@dataclasses.dataclass(frozen=True)
class Difference:
    """Something that is not as it was written down; `allowed`: a version was raised for it, so it may be written."""

    text: str
    allowed: bool

    def __str__(self) -> str:
        return f"{self.text}; run: {COMMAND}" if self.allowed else f"{self.text}, then run: {COMMAND}"


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Return all that differs from what was written down; empty if nothing does."""
    return [
        *stage_differences(before["stages"], now["stages"]),
        *teacher_differences(before["teachers"], now["teachers"]),
        *default_differences(before["defaults"], now["defaults"]),
    ]


def judged(
    what: str, before: Mapping[str, Any], now: Mapping[str, Any], same: bool, place: str
) -> Iterator[Difference]:
    """Yield what is to be said of an entry whose rows or versions may differ."""
    old, new = before["versions"], now["versions"]
    if old == new and not same:
        version = new[place]
        yield Difference(
            f"{what} gives other rows, but is version {version} as before: raise {where_to_raise(place)}", False
        )
    elif raised(old, new):
        changed = ", ".join(
            f"{name} {old.get(name, 'new')} -> {new[name]}" for name in new if old.get(name) != new[name]
        )
        yield Difference(f"{what} was written down before a version was raised ({changed})", True)
    elif old != new:
        yield Difference(
            f"{what} has a version lower than what was written down: {old} -> {new}; raise it again", False
        )


def stage_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    """Yield what differs in rows of stages; of rows that differ because those before do, only the first are named."""
    gone = sorted({f"{stage} ({one})" for stage in before for one in before[stage].keys() - now.get(stage, {}).keys()})
    for name in gone:
        yield Difference(f"stage {name} is written down and is made no more", True)
    guilty: dict[str, set[str]] = {}
    for stage in (name for name in SPECS if name in now):
        for variant, entry in now[stage].items():
            old = before.get(stage, {}).get(variant)
            if old is None:
                yield Difference(f"stage {stage} ({variant}) is new", True)
                continue
            upstream = entry["versions"].keys() - {stage}
            if old["rows"] != entry["rows"] and old["versions"] == entry["versions"]:
                if upstream & guilty.setdefault(variant, set()):
                    continue
                guilty[variant].add(stage)
            yield from judged(f"stage {stage} ({variant})", old, entry, old["rows"] == entry["rows"], stage)


def teacher_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    """Yield what differs in the numbers of teachers."""
    for example in sorted(before.keys() | now.keys()):
        if example not in before or example not in now:
            yield Difference(f"teacher {example} is {'new' if example in now else 'written down and gone'}", True)
            continue
        old, new = before[example]["numbers"], now[example]["numbers"]
        other = sorted(
            n for n in old.keys() | new.keys() if not (n in old and n in new and near(example, n, old[n], new[n]))
        )
        what = f"teacher {example}" + (f" ({', '.join(other[:4])})" if other else "")
        yield from judged(what, before[example], now[example], not other, f"teacher {example.partition(':')[0]}")


def default_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    """Yield what differs in defaults: a table made with the old one has the identity of one made with the new one."""
    for section in sorted(before.keys() | now.keys()):
        if section not in before or section not in now:
            yield Difference(f"section [{section}] is {'new' if section in now else 'gone'}", True)
            continue
        old, new = before[section]["defaults"], now[section]["defaults"]
        versions = before[section]["versions"], now[section]["versions"]
        behind = [name for name in versions[1] if versions[1][name] <= versions[0].get(name, 0)]
        for key in sorted(old.keys() | new.keys()):
            if key not in old:
                yield Difference(f"[{section}] has a new setting `{key}`", True)
            elif key not in new:
                yield Difference(f"[{section}] has no setting `{key}` any more", True)
            elif old[key] != new[key]:
                text = f"[{section}] {key} has another default, {old[key]!r} -> {new[key]!r}"
                places = " and ".join(map(where_to_raise, behind))
                unsaid = ", but versions are as before, so what was made with the old one is taken for new: raise "
                yield Difference(text + (unsaid + places if behind else ""), not behind)
        if versions[0] != versions[1] and old == new:
            yield Difference(f"[{section}] was written down before a version was raised", True)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Recipes and rows of every variant and of every example of a teacher, and what each stage read, by both names."""

    stages: dict[str, tuple[Recipe, Rows]]
    teachers: dict[str, tuple[Recipe, Rows]]
    reads: dict[str, dict[str, set[Read]]]

    @property
    def entries(self) -> dict[str, Any]:
        """What is to be written down."""
        return entries(self.stages, self.teachers)


def measure(folder: Path) -> Measured:
    """Return what the code, as it is, makes of the fixed inputs."""
    from tests.pipeline.test_teachers import frame_of as teacher_frame

    found = Measured({}, {}, {})

    def rows(key: str, recipe: Recipe, frames: Sequence[Frame] = ()) -> tuple[Recipe, Rows]:
        reads = found.reads[key] = {}

        def watch(name: str, recipe: Recipe) -> Recipe:
            given, reads[name] = watched_recipe(recipe)
            return given

        return recipe, rows_of(recipe, frames, watch)

    write_log(folder / "log")
    for variant, overrides in VARIANTS.items():
        found.stages[variant] = rows(variant, recipe_over(folder / "log", *overrides))
    for example, recipe in teacher_recipes(folder / "teachers").items():
        found.teachers[example] = rows(example, recipe, [teacher_frame("FRONT", "SIDE")])
    return found


def only(entries: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return one of several entries."""
    return {name: entries[name]}


def write(found: Mapping[str, Any], path: Path = GOLDEN) -> list[Difference]:
    """Write down what is found, unless something differs that no version was raised for; return what keeps from it.

    Numbers that another CPU rounds otherwise stay as they are, so that they do not drift from one writing to the next.
    """
    found = dict(found)
    if path.is_file():
        before = json.loads(path.read_text())
        refused = [one for one in compare(before, found) if not one.allowed]
        if refused:
            return refused
        old, new = before["teachers"], found["teachers"]
        alike = [name for name in new if name in old and not any(teacher_differences(only(old, name), only(new, name)))]
        found["teachers"] = {**new, **{name: old[name] for name in alike}}
    text = json.dumps(found, indent=1)
    path.write_text(re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda one: " ".join(one[0].split()), text) + "\n")
    return []


def main(arguments: Sequence[str]) -> int:
    """See the module."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")) as folder:
        found = measure(Path(folder)).entries
    if list(arguments) == ["--write"]:
        refused = write(found)
        print("\n".join(map(str, refused)) or f"{GOLDEN} is up to date")
        return 1 if refused else 0
    differences = compare(json.loads(GOLDEN.read_text()), found)
    print("\n".join(map(str, differences)) or "as written down")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
