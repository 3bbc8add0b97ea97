"""Labels of a recipe as files, for every data set: what the whole method is for.

    <out>/labels.json     classes, colours, where the labels come from, how many there are
    <out>/frames.csv      a line a frame: name, scene, time, sweep, points, how many have a label, how sure these are on
                          average, and its file in each layout
    <out>/<layout>/...    see pipeline.exchange.label_files
    <out>/files.sha256    digests of all of these

The folder appears whole or not at all. One that holds the very same is left as it is; any other one of ours is moved
aside, since somebody may have worked on it, and one that is not ours is refused.
"""

from __future__ import annotations

import csv
import json
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manifests.asked import tables_of
from manifests.calibration import Calibration, calibration_of
from manifests.config import ConfigError
from manifests.fingerprint import digest, sha256_file
from manifests.labels import ORIGINS, refine_split, refined_of, students_predictions, weights_of
from manifests.ontology import Ontology
from manifests.recipe import Recipe
from manifests.records.codec import as_document
from manifests.records.evaluation import Compared
from manifests.records.labels import (
    DoubtfulFrame,
    LabelCounts,
    LabelsIdentity,
    LabelsRecord,
    Layout,
    NamedClass,
    RefinedBy,
)
from manifests.sources import compare_files
from manifests.splits import ALL, load_split
from manifests.stages import corrected_table
from manifests.storage.errors import StoreError
from manifests.storage.names import scene_of
from manifests.storage.refs import TableRef
from manifests.storage.store import Store
from manifests.tables.answers import Refine
from manifests.tables.base import Failed, FrameRecord, Rows
from manifests.tables.registry import FRAME_TABLES
from manifests.tables.said import labels_said
from manifests.tables.sensors import Index, Points
from pipeline.exchange.label_files import (
    Kitti,
    LabelClass,
    LabelledSweep,
    Lidarseg,
    Npy,
    Parquet,
    Pcd,
    Ply,
    Writer,
)
from pipeline.exchange.label_folder import (
    FRAMES,
    RECORD,
    changed_files,
    earlier,
    moved_aside,
    sole_writer,
    whole,
    write_sums,
)
from pipeline.look.browse import Track
from superpixels.instances import instances

FORMAT = 2
UNSURE = "unsure"
HEADER = ("frame_id", "scene", "timestamp_us", "lidar_path", "n_points", "n_labelled", "mean_confidence")
MOST_DOUBTFUL = 10  # frames to look at first

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Written:
    """What `write_labels` did: the folder, its record, whether it was there before, and where an older one lies now.

    `changed` are files of one that was there before which are not as they were written: corrected since, or damaged.
    `note` says what was not compared with the files behind the tables, if that is so.
    """

    folder: Path
    record: LabelsRecord
    kept: bool = False
    aside: Path | None = None
    changed: tuple[str, ...] = ()
    note: str = ""


@dataclass
class Tally:
    """Sums over frames: points, labelled ones, those that were not sure enough, points by class, and by the origin of
    their label where the table knows it. `doubtful` are the frames whose labels are least sure, these first.
    """

    n_classes: int
    frames: int = 0
    points: int = 0
    unsure: int = 0
    by_class: NDArray[np.int64] = field(init=False)
    by_origin: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(ORIGINS), np.int64))
    doubtful: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.by_class = np.zeros(self.n_classes, np.int64)

    def add(self, sweep: LabelledSweep) -> None:
        """Count a frame."""
        self.frames += 1
        self.points += len(sweep.label)
        self.unsure += sweep.n_below
        self.by_class += np.bincount(sweep.label, minlength=self.n_classes)
        if "origin" in sweep.more:
            self.by_origin += np.bincount(sweep.more["origin"], minlength=len(ORIGINS))
        self.doubtful = sorted([*self.doubtful, (mean_confidence(sweep), sweep.frame_id)])[:MOST_DOUBTFUL]


@dataclass(frozen=True)
class LeftOut:
    """A frame without labels, and why it has none."""

    frame_id: str
    reason: str


def write_labels(
    recipe: Recipe, out: Path, track: Track = lambda items, what: items, only: frozenset[str] | None = None
) -> Written:
    """Write the labels that section `[labels]` asks for below `out`, of all frames or of some `only`.

    Raises StoreError for a table that is missing, old or damaged, or made of a file that was replaced since, and
    ConfigError for a folder that is there and not ours, a split that there is not, or one that cannot be written.
    """
    store = Store.open(recipe.run.store)
    source = Source.of_recipe(store, recipe)
    identity = identity_of(recipe, source, only)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with sole_writer(out):
            before = earlier(out)
            if before is not None and before.identity == as_document(identity) and whole(out, before):
                changed = tuple(changed_files(out))
                return Written(out, before, kept=True, changed=changed, note=source.compared.note)
            scratch = out.with_name(f".{out.name}.{secrets.token_hex(6)}")
            try:
                record = fill(recipe, source, scratch, identity, track, only)
                aside = moved_aside(out) if before is not None else None
                scratch.rename(out)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror or error}") from None
    return Written(out, record, aside=aside, note=source.compared.note)


# -- what is written ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Source:
    """The tables that labels are read from, `index` and `points` among them, and the shards of the split.

    `compared` says how far the files behind them were looked at.
    """

    of: str
    store: Store
    tables: Mapping[str, TableRef]
    shards: tuple[str, ...]
    excluded: frozenset[str]
    weights: str | None
    compared: Compared
    calibration: Calibration | None

    @classmethod
    def of_recipe(cls, store: Store, recipe: Recipe) -> Source:
        """Return the tables of `labels.of`; raises StoreError and ConfigError like `write_labels`."""
        of = recipe.labels.of
        names = {"correct": [corrected_table(recipe).table, "correct"]}.get(of, [of])
        made_here = [name for name in names if name not in ("refine", "predict")]
        ref = tables_of(store, recipe, ["index", "points", *made_here])
        tables = {name: ref.table(name) for name in ("index", "points", *made_here)}
        weights, split = None, ALL
        if of == "predict":
            tables["predict"], manifest = students_predictions(store, recipe, ref.table("points"))
            weights, split = weights_of(manifest), recipe.predict.split
        elif of == "refine":
            tables["refine"], _ = refined_of(store, recipe, ref)
            split = refine_split(recipe)
            if recipe.refine.of == "prediction":
                weights = weights_of(students_predictions(store, recipe, ref.table("points"))[1])
        shards = shards_of_split(tables["index"], split, recipe)
        for name, table in tables.items():
            lacking = set(shards) - {shard.shard for shard in table.shards}
            if lacking:
                raise StoreError(
                    f"table `{name}` of recipe {recipe.name} lacks shard {min(lacking)} of split {split!r}; run: "
                    f"{recipe.make(name)}"
                )
        compared = compare_files(store, recipe, ref, set(shards), ["points", *made_here])
        calibration = calibration_of(store, recipe, of, tables[names[-1]])
        silent = frozenset({*ref.excluded, *recipe.data.exclude})
        return cls(of, store, tables, shards, silent, weights, compared, calibration)

    def contents(self) -> dict[str, str]:
        """Return a digest of the shards that are read of each table."""
        return {
            name: digest([[one.shard, one.sha256] for one in table.shards if one.shard in self.shards])
            for name, table in self.tables.items()
        }

    def rows(self, shard: str) -> Iterator[dict[str, FrameRecord | Failed]]:
        """Yield the rows of a shard by table, frame by frame; raises StoreError for tables out of step."""
        readers = {}
        for name, table in self.tables.items():
            file = next(one for one in table.shards if one.shard == shard)
            readers[name] = self.store.open_shard(name, table.fingerprint, file)
        n_rows = {reader.n_rows for reader in readers.values()}
        for number in range(max(n_rows)):
            rows = {name: reader.record(number, FRAME_TABLES[name]) for name, reader in readers.items()}
            if len(n_rows) != 1 or len({row.frame_id for row in rows.values()}) != 1:
                raise StoreError(f"the tables {', '.join(readers)} are out of step in shard {shard}; build them again")
            yield rows


def shards_of_split(index: TableRef, split: str, recipe: Recipe) -> tuple[str, ...]:
    """Return the shards of a split, in the order of the data set; raises ConfigError if there is no such split."""
    scenes = tuple(dict.fromkeys(scene_of(shard.shard) for shard in index.shards))
    try:
        wanted = load_split(split, recipe.data.dataset, scenes)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from None
    return tuple(shard.shard for shard in index.shards if scene_of(shard.shard) in wanted)


def labels_in(rows: Rows, calibration: Calibration | None = None) -> tuple[Labels, Labels, dict[str, Labels]]:
    """Return class and confidence in 1/255 of every point (n,), and further columns, from a frame's rows.

    Confidences are calibrated where there is a `calibration`.
    """
    label, confidence = labels_said(rows)
    more: dict[str, Labels] = {}
    if row := rows.get(Refine):
        more = {"runner_up": row.runner_up, "runner_up_confidence": row.runner_up_confidence, "origin": row.origin}
    if calibration:
        confidence = calibration.level[confidence]
        more = {name: calibration.level[one] if "confidence" in name else one for name, one in more.items()}
    return label, confidence, more


def identity_of(recipe: Recipe, source: Source, only: frozenset[str] | None = None) -> LabelsIdentity:
    """Return what the content of a folder depends on."""
    return LabelsIdentity(
        format=FORMAT,
        of=source.of,
        tables={name: table.fingerprint for name, table in source.tables.items()},
        contents=source.contents(),
        excluded=tuple(sorted(source.excluded)),
        dictionary=recipe.ontology.name,
        classes=tuple((one.name, hex_colour(one.rgb), one.thing) for one in classes_of(recipe)),
        raw=recipe.ontology.raw_content(),
        formats=recipe.labels.formats,
        min_confidence=recipe.labels.min_confidence,
        below=recipe.labels.below,
        only=None if only is None else tuple(sorted(only)),
        instance_gap_m=recipe.labels.instance_gap_m or None,
        calibration=source.calibration.content if source.calibration else None,
    )


def classes_of(recipe: Recipe) -> list[LabelClass]:
    """Return the classes of the dictionary, and `unsure` behind them where the recipe wants one."""
    thing = recipe.ontology.thing_of_class
    found = [LabelClass(n, one.name, one.rgb, bool(thing[n])) for n, one in enumerate(recipe.ontology.classes)]
    if recipe.labels.below == UNSURE:
        if any(one.name == UNSURE for one in found) or len(found) > 255:
            raise ConfigError(
                f'labels.below is "{UNSURE}", but dictionary {recipe.ontology.name} has a class of that name, or 256 '
                'classes; set labels.below = "none"'
            )
        found.append(LabelClass(len(found), UNSURE, (255, 255, 255)))
    return found


def raw_numbers(ontology: Ontology, n_classes: int) -> NDArray[np.uint32]:
    """Return the numbers that stand for classes in KITTI files, (n_classes,): the data set's own where each has one.

    `unsure` gets the first number behind all that the dictionary knows.
    """
    try:
        raw = ontology.raw_of_class()
    except ValueError:
        raw = np.arange(len(ontology.classes), dtype=np.uint32)
    known = [int(raw.max()), *(number for fine in ontology.fine for number in fine.raw)]
    return np.append(raw, np.arange(n_classes - len(raw), dtype=np.uint32) + max(known) + 1).astype(np.uint32)


def writer_of(name: str, folder: Path, recipe: Recipe, classes: Sequence[LabelClass]) -> Writer:
    """Return what writes a layout."""
    if name == "kitti":
        gap_m = recipe.labels.instance_gap_m
        objects = (
            f"points of a class that lie within {gap_m:g} m of each other, numbered in each frame" if gap_m else "none"
        )
        return Kitti(folder, classes, raw_numbers(recipe.ontology, len(classes)), objects)
    if name == "lidarseg":
        return Lidarseg(folder, classes, recipe.data.version)
    plain_writers: Mapping[str, Callable[[Path, Sequence[LabelClass]], Writer]] = {
        "npy": Npy,
        "pcd": Pcd,
        "ply": Ply,
        "parquet": Parquet,
    }
    return plain_writers[name](folder, classes)


def fill(
    recipe: Recipe,
    source: Source,
    folder: Path,
    identity: LabelsIdentity,
    track: Track,
    only: frozenset[str] | None,
) -> LabelsRecord:
    """Write all files into a new folder, and return what its record says; raises like `write_labels`."""
    classes, settings = classes_of(recipe), recipe.labels
    tally = Tally(len(classes))
    failed: dict[str, str] = {}
    folder.mkdir(parents=True)
    writers: dict[str, Writer] = {name: writer_of(name, folder / name, recipe, classes) for name in settings.formats}
    with (folder / FRAMES).open("w", newline="", encoding="utf-8") as table:
        lines = csv.writer(table)
        digested = ["kitti"] if "kitti" in writers else []  # so that it can be told what somebody corrected since
        lines.writerow([*HEADER, *writers, *(f"{name}_sha256" for name in digested)])
        for one in sweeps(recipe, source, classes, track, only):
            if isinstance(one, LeftOut):
                failed[one.frame_id] = one.reason
                continue
            tally.add(one)
            files = {}
            for name, writer in writers.items():
                files[name] = f"{name}/{writer.put(one)}"
            about = (one.frame_id, one.scene, one.timestamp_us, one.lidar_path, len(one.label))
            numbers = int(np.count_nonzero(one.label)), f"{mean_confidence(one):.4f}"
            lines.writerow(
                [*about, *numbers, *files.values(), *(sha256_file(folder / files[name]) for name in digested)]
            )
    for writer in writers.values():
        writer.finish()
    if not tally.frames:
        raise StoreError(
            f"no frame of recipe {recipe.name} has labels in table `{source.of}`: {len(failed)} failed or are excluded"
        )
    layouts = {name: writer.about() for name, writer in writers.items()}
    record = record_of(recipe, source, identity, classes, tally, failed, layouts)
    (folder / RECORD).write_text(json.dumps(as_document(record), indent=1, ensure_ascii=False), encoding="utf-8")
    write_sums(folder)
    return record


def sweeps(
    recipe: Recipe, source: Source, classes: Sequence[LabelClass], track: Track, only: frozenset[str] | None
) -> Iterator[LabelledSweep | LeftOut]:
    """Yield every frame that is asked for with its labels, or why there are none.

    Raises StoreError for tables that do not fit each other.
    """
    scenes = list(dict.fromkeys(map(scene_of, source.shards)))
    numbers = {scene: int(scene) if all(map(is_sequence, scenes)) else n for n, scene in enumerate(scenes)}
    counters = {scene: count() for scene in scenes}
    least = int(np.ceil(recipe.labels.min_confidence * 255))
    things, gap_m = [one.number for one in classes if one.thing], recipe.labels.instance_gap_m
    replaced_by = classes[-1].number if recipe.labels.below == UNSURE else 0
    for shard in track(source.shards, "labels"):
        scene = scene_of(shard)
        for of_tables in source.rows(shard):
            name, reason = of_tables["index"].frame_id, why_not(of_tables, source.excluded)
            if only is not None and name not in only:
                continue
            if reason is not None:
                yield LeftOut(name, reason)
                continue
            rows = Rows(*(row for row in of_tables.values() if isinstance(row, FrameRecord)))
            index, points = rows[Index], rows[Points]
            label, confidence, more = labels_in(rows, source.calibration)
            if len(label) != len(points.xyz_m):
                raise StoreError(f"frame {name} has {len(label)} labels for {len(points.xyz_m)} points")
            below = (label > 0) & (confidence < least)
            label = np.where(below, replaced_by, label).astype(np.uint8)
            kitti_stem = Path(index.lidar_path).stem
            number = next(counters[scene])
            yield LabelledSweep(
                frame_id=name,
                scene=scene,
                name=name.removeprefix(f"{scene}/"),
                number=int(kitti_stem) if recipe.data.dataset == "semantic_kitti" else number,
                scene_number=numbers[scene],
                timestamp_us=index.timestamp_us,
                lidar_token=index.lidar_token,
                lidar_path=index.lidar_path,
                world_from_lidar=index.world_from_lidar,
                xyz_m=points.xyz_m,
                intensity=points.intensity,
                label=label,
                confidence=confidence,
                n_below=int(below.sum()),
                instance=instances(points.xyz_m, label, things, gap_m) if gap_m else None,
                more=more,
            )


def is_sequence(scene: str) -> bool:
    """Return whether a scene is named as KITTI names them: two digits."""
    return len(scene) == 2 and scene.isascii() and scene.isdigit()


def why_not(rows: Mapping[str, FrameRecord | Failed], excluded: Collection[str]) -> str | None:
    """Return why a frame has no labels; None if it has."""
    if next(iter(rows.values())).frame_id in excluded:
        return "excluded by data.exclude"
    return next((f"{name}: {row.reason}" for name, row in rows.items() if isinstance(row, Failed)), None)


def record_of(
    recipe: Recipe,
    source: Source,
    identity: LabelsIdentity,
    classes: Sequence[LabelClass],
    tally: Tally,
    failed: Mapping[str, str],
    layouts: Mapping[str, Layout],
) -> LabelsRecord:
    """Return the content of `labels.json`."""
    return LabelsRecord(
        recipe=recipe.name,
        dataset=recipe.data.dataset,
        version=recipe.data.version,
        dictionary=recipe.ontology.name,
        of=source.of,
        refined=RefinedBy(recipe.refine.of, recipe.refine.by) if source.of == "refine" else None,
        weights=source.weights,
        min_confidence=recipe.labels.min_confidence,
        below=recipe.labels.below,
        classes=tuple(NamedClass(one.number, one.name, hex_colour(one.rgb), one.thing) for one in classes),
        layouts=layouts,
        counts=LabelCounts(
            frames=tally.frames,
            points=tally.points,
            labelled=int(tally.points - tally.by_class[0]),
            not_sure_enough=tally.unsure,
            by_class={one.name: int(tally.by_class[one.number]) for one in classes},
            by_origin={name: int(n) for name, n in zip(ORIGINS, tally.by_origin, strict=True) if source.of == "refine"},
        ),
        calibrated=source.calibration.about if source.calibration else None,
        look_first=tuple(DoubtfulFrame(name, round(sure, 4)) for sure, name in tally.doubtful),
        without_labels=dict(failed),
        identity=as_document(identity),
    )


def mean_confidence(sweep: LabelledSweep) -> float:
    """Return how sure the labels of a frame are, 0..1; points without one are not sure at all."""
    return float(sweep.confidence.mean()) / 255 if len(sweep.confidence) else 0.0


def hex_colour(rgb: Sequence[int]) -> str:
    """Return a colour as dictionaries write it."""
    return "#" + bytes(rgb).hex()
