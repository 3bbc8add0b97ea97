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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manifests.config import TRAINER_TASKS
from manifests.fingerprint import DIGITS, canonical
from manifests.recipe import SECTION_CLASSES, Recipe, load_recipe
from manifests.rows import Row, from_table, to_table
from manifests.sections.teachers import TEACHER_SECTIONS
from manifests.stages import SPECS, with_needs
from pipeline.datasets import open_dataset
from pipeline.frame import Frame, frame_of
from pipeline.stages import STAGES
from pipeline.stages.base import FrameInput
from tests.reads import Read, watched_recipe
from trainer.inference import predict, search
from trainer.records import asked

GOLDEN = Path(__file__).parent / "golden" / "versions.json"
COMMAND = "python -m tests.versions --write"
SCENE = "day"
ALL = ("label", "pairs", "target", "correct", "vote")

SECOND_CAMERA = """
[[camera]]
name = "left"
images = "front/{frame}.png"
intrinsics = [[20, 0, 16], [0, 20, 12], [0, 0, 1]]
cam_from_lidar = [[0.28, -0.96, 0, 0.1], [0, 0, -1, 0], [0.96, 0.28, 0, 0], [0, 0, 0, 1]]
"""
"""Turned by 16 degrees to the left, so that many points are seen twice and differently."""

MOUNTED = "ego_from_lidar = { rotation = [1, 0, 0, 0], translation = [0.5, 0, 1.8] }"
"""How high the LiDAR is, which stage `correct` needs for the ground around the vehicle."""

NOISE = (
    *("boundary_shift_px=2", "boundary_length_px=10", "jitter_px=1", "jitter_deg=2", "patch_px=8", "confusion=0.8"),
    *("synonyms=0.5", "drop=0.3", "merge=0.3", "vector_noise=0.5", "score_noise=0.5"),
)
RING = (
    *("correct.ring=all", "correct.ring_outer_m=20", "correct.ring_clearance_m=3", "correct.ring_residual_m=1"),
    *("correct.ring_min_samples=3", "correct.standing_radius_m=0"),
)
"""So that 40 points are ground enough."""
VARIANTS: dict[str, tuple[str, ...]] = {
    "default": (),
    "noisy": (*(f"teacher.{one}" for one in NOISE), "target.labels=vote"),
    "last camera": ("group.policy=last_camera", "group.occluded=true", "target.labels=correct", *RING),
    "nearest axis": (
        "group.policy=nearest_axis",
        "group.min_points=4",
        "segment.split=components",
        "project.cell_px=2",
    ),
    "all in one": ("target.labels=vote+correct", "vote.disputed=0.0", "segment.min_area_px=9", "project.margin_m=0.0"),
}
"""Settings beside the defaults, so that every branch of a stage gives rows."""

# -- fixed inputs


def write_log(folder: Path) -> None:
    """Write the tiny data set of tests/pipeline/test_content.py, with a second camera that looks elsewhere."""
    from tests.pipeline.test_content import Log

    Log(folder).write()
    for path in folder.glob("*/scene.toml"):
        text = path.read_text().replace("[[frame]]", f"{SECOND_CAMERA}\n[[frame]]", 1)
        path.write_text(f"{MOUNTED}\n{text}")


def recipe_over(folder: Path, *overrides: str) -> Recipe:
    """Return a recipe over the tiny data set, all defaults but those that 40 points a sweep are too few for."""
    path = folder.parent / "tiny.toml"
    path.write_text(
        f'[data]\ndataset = "folder"\nroot = "{folder}"\n[run]\nstore = "{folder.parent / "store"}"\ndevice = "cpu"\n'
        '[teacher]\nname = "oracle"\nsource = "points"\ndims = 8\nslic_px = 8.0\n'
        "[vote]\nreach = 1\nvoxel_m = 4.0\nvoxel_height_m = 4.0\nthrough_m = 50.0\n"
    )
    return load_recipe(path, overrides)


Rows = dict[str, list[Row]]


def listed(recipe: Recipe) -> list[Frame]:
    """Return the frames of the first scene, as `index` gets them."""
    return [frame for frame in open_dataset(recipe.data).frames() if frame.scene == SCENE]


def rows_of(
    recipe: Recipe, frames: Sequence[Frame] = (), watch: Callable[[str, Recipe], Recipe] = lambda name, recipe: recipe
) -> Rows:
    """Return the rows of all tables of a recipe: of its data set's first scene, or of the teacher on given frames.

    Rows go through Arrow, and a stage gets the columns that it named. `watch` may put another recipe in the place of
    the one that a stage gets.
    """
    rows: Rows = {}
    names: Sequence[str] = ("text", "encode", "segment") if recipe.teacher.has_encode else ("text", "segment")
    if not frames:
        names = with_needs(recipe, ALL)
        frames = listed(recipe)
    for name in names:
        rows[name] = rows_of_stage(recipe, name, frames, rows, watch(name, recipe))
        if name == "index":
            frames = [frame_of(row) for row in rows["index"]]
    return rows


def rows_of_stage(recipe: Recipe, name: str, frames: Sequence[Frame], rows: Rows, given: Recipe) -> list[Row]:
    """Return the rows that a stage makes of a recipe, from the rows of others; raises what goes wrong with a frame."""
    stage = STAGES[name]
    files = stage.files(given)  # read settings too, and tell which files enter the keys of shards
    for frame in frames if files else ():
        assert files and files.names(frame)
    if stage.build:
        made: list[Any] = stage.build(given)
        assert canonical(dict(stage.content(given)))
    else:
        done = list(stage.open(given)(iter(inputs_of(recipe, name, frames, rows))))
        for one in done:
            if isinstance(one, Exception):
                raise one
        heads = [{"frame_id": frame.frame_id, "status": "ok", "reason": None} for frame in frames]
        made = [{**head, **one} for head, one in zip(heads, done, strict=True)]
    return list(from_table(to_table(made, stage.schema)))


def inputs_of(recipe: Recipe, name: str, frames: Sequence[Frame], rows: Rows) -> list[FrameInput]:
    """Return what a stage gets for each frame, as a worker gives it."""
    needs = SPECS[name].needs(recipe)
    alone = [
        FrameInput(
            frame,
            {
                need.table: {key: rows[need.table][at][key] for key in need.read or rows[need.table][at]}
                for need in needs
                if need.how in ("row", "window")
            },
            {need.table: rows[need.table] for need in needs if need.how == "broadcast"},
        )
        for at, frame in enumerate(frames)
    ]
    reach = max((need.reach for need in needs if need.how == "window"), default=0)
    return [
        dataclasses.replace(one, around=(*alone[max(at - reach, 0) : at], *alone[at + 1 : at + 1 + reach]))
        for at, one in enumerate(alone)
    ]


CLIP = {"model": "tiny", "weights": "random:0", "short_side_px": 32}
FURTHER: dict[str, dict[str, Any]] = {
    "clip_dense: without outliers": {**CLIP, "calibrate_outliers": False},
    "clip_dense: windows": {**CLIP, "mode": "naclip", "window_px": 16, "stride_px": 8, "kept": "int8"},
    "fcclip: parity": {"model": "tiny-convnext", "weights": "random:0", "overlap": 0.0, "parity": True},
    "san: parity": {"model": "tiny", "weights": "random:0", "short_side_px": 64, "parity": True},
}
"""Sections of teachers that take other ways than the examples of tests/pipeline/test_teachers.py."""


def teacher_recipes(folder: Path) -> dict[str, Recipe]:
    """Return a recipe for every example of a teacher, with all that it reads below a folder."""
    from tests.pipeline.test_teachers import EXAMPLES, recipe_of

    recipes = {}
    for number, example in enumerate(sorted({**EXAMPLES, **FURTHER})):
        (place := folder / str(number)).mkdir(parents=True)
        name = example.partition(":")[0]
        recipe = recipe_of(example if example in EXAMPLES else name, place)
        if example in FURTHER:
            recipe = dataclasses.replace(recipe, teacher=TEACHER_SECTIONS[name](**FURTHER[example]))
        recipes[example] = recipe
    return recipes


# -- what is kept of rows

OF_THE_FILES = ("lidar_sha256", "image_sha256", "label_sha256", "lidar_bytes", "image_bytes")
"""Columns of `index` that hold what NumPy and Pillow made of the fixed inputs."""


def digest_of(rows: Sequence[Row]) -> str:
    """Return a digest of rows, alike on all machines; names of frames come from the data set, not from its place."""
    total = hashlib.sha256()
    for row in rows:
        for name, value in row.items():
            if name in OF_THE_FILES:
                continue
            for key, item in value.items() if isinstance(value, Mapping) else [("", value)]:
                if isinstance(item, np.ndarray):
                    plain = np.round(item, 9) + 0.0 if item.dtype == np.float64 else item
                    total.update(f"{name}{key}:{item.dtype.str}{item.shape}".encode())
                    total.update(np.ascontiguousarray(plain).tobytes())
                else:
                    total.update(f"{name}{key}:{canonical(item)}".encode())
    return total.hexdigest()[:DIGITS]


def numbers_of(arrays: Sequence[np.ndarray]) -> list[float]:
    """Return how many values there are, their mean, root mean square, and mean after a ramp from -1 to 1."""
    flat = np.concatenate([np.asarray(one, np.float64).ravel() for one in arrays] or [np.empty(0)])
    if not flat.size:
        return [0.0, 0.0, 0.0, 0.0]
    ramp = np.linspace(-1, 1, flat.size)
    found = flat.size, flat.mean(), np.sqrt((flat**2).mean()), (flat * ramp).mean()
    return [float(f"{one:.6g}") for one in found]


def numbers_of_teacher(rows: Rows) -> dict[str, list[float]]:
    """Return a few numbers of all that a teacher made: vectors, parts of encodings, which pixels have which name."""
    found = {"text": numbers_of([row["vector"] for row in rows["text"]])}
    for row in rows.get("encode", ()):
        parts: dict[str, list[np.ndarray]] = {}
        for name, array in row["encoding"].items():
            parts.setdefault(name.partition("/")[2], []).append(array)
        found |= {f"encode {name}": numbers_of(some) for name, some in sorted(parts.items())}
    for row in rows["segment"]:
        # one map of prompts over all views, 0 for none: its mean tells shares, its ramp where they are
        segment = np.repeat(row["run_value"], row["run_length"]).astype(np.int64)
        view = np.repeat(np.arange(len(row["height_px"])), row["height_px"] * row["width_px"])
        first = np.cumsum([0, *row["segments_in_view"]])[view]
        prompt = np.append(row["prompt_id"] + 1, 0)[np.where(segment > 0, first + segment - 1, -1)]
        for number in range(int(row["prompt_id"].max(initial=0)) + 1):
            found[f"segment prompt {number}"] = numbers_of([prompt == number + 1])
        area = row["area_px"].astype(np.float64)[:, None]  # small segments come and go with the last bits
        found["segment vector"] = numbers_of([(row["vector"] * area).sum(axis=0) / max(area.sum(), 1)])
        found["segment score"] = numbers_of([(row["score"] * area[:, 0]).sum(keepdims=True) / max(area.sum(), 1)])
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
    "vote": ("vote",),
    "correct": ("correct",),
    "target": ("target",),
    "voxels": NETWORK,
    "network": NETWORK,
    "augment": TRAINING,
    **{task: TRAINING for task in TRAINER_TASKS},
}
"""What the changed settings of a section tell apart: tables of stages, runs of the trainer, tables of predictions.

Identities hold settings that are not the default. Those of [data] are not here: they enter as they are, so another
default is another identity; nor are [predict] and [evaluate], from which no table takes a default.
"""


def versions_behind(section: str) -> dict[str, int]:
    """Return the versions that have to be raised when a default of a section changes."""
    kind, _, name = section.partition(" ")
    if kind == "teacher":
        return {section: TEACHER_SECTIONS[name].version}
    of_trainer = {"training": asked.VERSION, "predict": predict.VERSION, "search": search.VERSION}
    return {one: of_trainer[one] if one in of_trainer else SPECS[one].version for one in ENTERS[section]}


def defaults_of(kind: type[Any]) -> dict[str, Any]:
    """Return the defaults of a section by setting; those of a table within it are settings of a dotted name."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        value = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        if value is dataclasses.MISSING:
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
    return json.loads(json.dumps(found))  # as it is read again


def raised(before: Mapping[str, int], now: Mapping[str, int]) -> bool:
    """Return whether a version was raised, and none taken back."""
    return before != now and all(now.get(name, 0) >= version for name, version in before.items() if name in now)


def where_to_raise(name: str) -> str:
    """Return the place of a version, as a message names it."""
    kind, _, teacher = name.partition(" ")
    if kind == "teacher":
        return f"`version` in manifests/sections/teachers/{teacher}.py"
    files = {"training": "records/asked.py", "predict": "inference/predict.py", "search": "inference/search.py"}
    return f"VERSION in trainer/{files[name]}" if name in files else f"SPECS['{name}'].version in manifests/stages.py"


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
    with tempfile.TemporaryDirectory() as folder:
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
