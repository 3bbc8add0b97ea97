"""What flat interaction does to labels, measured: known labels are spoilt in eight ways, refined, and compared.

`PYTHONPATH=. OMP_NUM_THREADS=1 python bench/afi_study.py --golden DIR --city DIR --kitti DIR` writes the tables and the
plot of docs/afi.md; each source may be left out, and `--recipe NAME` adds any data set that has labels. Frames are
split into a half to choose settings on and a half to report on; nothing is chosen on the second. `--cache FILE` keeps
every count, so that a run that was stopped goes on, and a changed setting costs only its own row.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from manifests.ontology import Ontology, load_ontology
from superpixels import flat_config, flat_gate, flat_interaction, flat_levels, ground
from superpixels.flat_config import FlatInteractionConfig
from superpixels.flat_interaction import refine
from superpixels.ground import height_of_sensor_m

if TYPE_CHECKING:
    from manifests.sections.data import DataConfig

Labels = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float32]
Spoil = Callable[["StudyFrame", np.random.Generator], Labels]

KITTI_HEIGHT_M = 1.73  # the published mounting height of the HDL-64E on the KITTI car
NUSCENES_HEIGHT_M = 1.84
CHOOSE, REPORT = "choose", "report"


@dataclass(frozen=True)
class StudyFrame:
    """One sweep with known labels: `xyz_m` (n, 3), `truth` (n,) 0 where unknown."""

    name: str
    source: str
    half: str
    xyz_m: Points
    truth: Labels
    ontology: Ontology
    sensor_height_m: float | None

    @property
    def n_classes(self) -> int:
        return len(self.ontology.classes) - 1


def kitti_frames(root: Path) -> Iterator[StudyFrame]:
    """Yield the labelled SemanticKITTI sweeps below a data root; drives with even numbers are for choosing."""
    ontology = load_ontology("semantic_kitti")
    for path in sorted(root.glob("sequences/*/velodyne/*.bin")):
        drive = path.parent.parent
        xyz_m = np.fromfile(path, np.float32).reshape(-1, 4)[:, :3].copy()
        raw = np.fromfile(drive / "labels" / f"{path.stem}.label", np.uint32)
        half = CHOOSE if int(drive.name) % 2 == 0 and drive.name != "08" else REPORT
        truth = ontology.class_of_raw_labels(raw)
        yield StudyFrame(f"{drive.name}/{path.stem}", "kitti", half, xyz_m, truth, ontology, KITTI_HEIGHT_M)


def simulated_frames(golden: Path) -> Iterator[StudyFrame]:
    """Yield the simulated 32-beam sweeps of the golden files; the first is for choosing."""
    ontology = load_ontology("nuscenes")
    for i in range(3):
        file = np.load(golden / f"afi_{i}.npz")
        half = CHOOSE if i == 0 else REPORT
        truth = file["labels_gt"].astype(np.uint8)
        yield StudyFrame(f"afi_{i}", "simulated", half, file["xyz"], truth, ontology, NUSCENES_HEIGHT_M)


def city_frames(folder: Path) -> Iterator[StudyFrame]:
    """Yield the sweeps of a synthetic city; where the folder holds none, one of size demo is written, small images."""
    from bench.city.config import city_config
    from bench.city.generate import write_city
    from manifests.sections.data import DataConfig

    config = city_config("demo", image_size="160x90")
    if not (folder / config.version).exists():
        write_city(folder, config)
    yield from labelled_frames("city", DataConfig(root=str(folder), version=config.version), load_ontology("nuscenes"))


def recipe_frames(recipe_name: str) -> Iterator[StudyFrame]:
    """Yield the labelled sweeps of a recipe's data set."""
    from manifests.recipe import load_recipe

    recipe = load_recipe(recipe_name)
    yield from labelled_frames(recipe.name, recipe.data, recipe.ontology)


def labelled_frames(source: str, data: DataConfig, ontology: Ontology) -> Iterator[StudyFrame]:
    """Yield the labelled sweeps of a data set; every other scene is for choosing."""
    from pipeline.datasets.registry import open_dataset

    dataset = open_dataset(data)
    scenes: dict[str, str] = {}
    for frame in dataset.frames():
        if frame.label_path is None:
            continue
        half = scenes.setdefault(frame.scene, (CHOOSE, REPORT)[len(scenes) % 2])
        xyz_m = dataset.read_cloud(frame).xyz_m
        truth = ontology.class_of_raw_labels(dataset.read_labels(frame))
        height_m = height_of_sensor_m(frame.ego_from_lidar)
        yield StudyFrame(frame.frame_id, source, half, xyz_m, truth, ontology, height_m)


def evenly(frames: Iterable[StudyFrame], limits: Sequence[int]) -> list[StudyFrame]:
    """Return at most so many frames of the half to choose on, and of the half to report on, evenly chosen."""
    every, chosen = list(frames), []
    for half, limit in zip((CHOOSE, REPORT), limits, strict=True):
        some = [frame for frame in every if frame.half == half]
        chosen += [some[i] for i in np.unique(np.linspace(0, len(some) - 1, min(limit, len(some))).round().astype(int))]
    return chosen


def clean(frame: StudyFrame, rng: np.random.Generator) -> Labels:
    """Return the true labels."""
    return frame.truth.copy()


def flips(share: float) -> Spoil:
    """Return what gives a share of the labelled points another class, drawn evenly."""

    def spoil(frame: StudyFrame, rng: np.random.Generator) -> Labels:
        return flip(frame.truth.copy(), frame.n_classes, share, rng)

    return spoil


def flip(labels: Labels, n_classes: int, share: float, rng: np.random.Generator) -> Labels:
    hit = (rng.random(len(labels)) < share) & (labels > 0)
    other = rng.integers(1, n_classes, hit.sum())
    labels[hit] = other + (other >= labels[hit])
    return labels


def patches(share: float, low_m: float, high_m: float) -> Spoil:
    """Return what relabels balls around random points, each with one class, until a share of the points is wrong."""

    def spoil(frame: StudyFrame, rng: np.random.Generator) -> Labels:
        return patch(frame, frame.truth.copy(), share, low_m, high_m, rng)

    return spoil


def patch(
    frame: StudyFrame, labels: Labels, share: float, low_m: float, high_m: float, rng: np.random.Generator
) -> Labels:
    known = np.flatnonzero(frame.truth)
    tree = cKDTree(frame.xyz_m[known])
    wrong = np.zeros(len(known), np.bool_)
    while wrong.mean() < share:
        inside = tree.query_ball_point(frame.xyz_m[rng.choice(known)], rng.uniform(low_m, high_m))
        new = rng.integers(1, frame.n_classes + 1)
        labels[known[inside]] = new
        wrong[inside] = frame.truth[known[inside]] != new
    return labels


def bleed(degrees: float) -> Spoil:
    """Return what reads each label at a direction a little aside, as a camera that is not quite calibrated does."""

    def spoil(frame: StudyFrame, rng: np.random.Generator) -> Labels:
        return shift(frame, frame.truth, degrees, rng)

    return spoil


def shift(frame: StudyFrame, labels: Labels, degrees: float, rng: np.random.Generator) -> Labels:
    unit = frame.xyz_m / np.maximum(np.linalg.norm(frame.xyz_m, axis=1, keepdims=True), 1e-3)
    turn = np.radians(degrees) * rng.choice((-1, 1))
    moved = np.stack([unit[:, 0] - turn * unit[:, 1], unit[:, 1] + turn * unit[:, 0], unit[:, 2]], axis=1)
    moved /= np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-3)
    known = np.flatnonzero(labels)
    read = labels[known][cKDTree(unit[known]).query(moved)[1]]
    return np.where(labels > 0, read, 0).astype(np.uint8)


def wedges(degrees: float) -> Spoil:
    """Return what takes the labels of two opposite wedges away, as two missing cameras do."""

    def spoil(frame: StudyFrame, rng: np.random.Generator) -> Labels:
        turn = np.arctan2(frame.xyz_m[:, 1], frame.xyz_m[:, 0]) - rng.uniform(0, np.pi)
        aside = np.abs((turn + np.pi / 2) % np.pi - np.pi / 2)
        return np.where(aside < np.radians(degrees / 2), 0, frame.truth).astype(np.uint8)

    return spoil


def mixture(frame: StudyFrame, rng: np.random.Generator) -> Labels:
    """Return labels with small and large patches, bleed and 1.5 % flips at once."""
    labels = shift(frame, frame.truth, 0.3, rng)
    labels = patch(frame, labels, 0.06, 0.3, 0.5, rng)
    labels = patch(frame, labels, 0.06, 1.5, 3.0, rng)
    return flip(labels, frame.n_classes, 0.015, rng)


ERRORS: dict[str, Spoil] = {
    "clean": clean,
    "5 % flips": flips(0.05),
    "15 % flips": flips(0.15),
    "12 % in small patches": patches(0.12, 0.3, 0.5),
    "12 % in large patches": patches(0.12, 1.5, 3.0),
    "bleed 0.5 deg": bleed(0.5),
    "mixture": mixture,
    "two 45 deg wedges unseen": wedges(45.0),
}

UNSEEN = "two 45 deg wedges unseen"
REFERENCE = FlatInteractionConfig.parity()
DEFAULT = FlatInteractionConfig(fill_reach_m=0.0, fill_certainty=0.0, fill_agreement=0.0)
"""The default but for one thing: gaps are filled however far evidence is, as their filling is judged."""
BASE = replace(DEFAULT, margin=0.1, island_points=0)
UNGATED = replace(BASE, gated=False)
HALF_SAMPLES = (1365, 455, 151, 50)
DOUBLE_SAMPLES = (5460, 1820, 606, 202)
VARIANTS: dict[str, FlatInteractionConfig] = {
    "reference": REFERENCE,
    "default": DEFAULT,
    "base: margin 0.1, no islands": BASE,
    "no gate": UNGATED,
    "gate of support 0.05 alone": replace(
        BASE, max_support=0.05, agreement=0.0, max_isolation=0.0, standing_radius_m=0.0
    ),
    "1365 samples": replace(BASE, samples=HALF_SAMPLES),
    "5460 samples": replace(BASE, samples=DOUBLE_SAMPLES),
    "residual 0.01 at the finest level": replace(BASE, residual=(0.01, 0.3, 0.01, 0.01)),
    "42 directions": replace(BASE, directions=42),
    "gaps filled by the winner alone": replace(BASE, fill_share=0.0),
    "ring off": replace(BASE, ring="off"),
    "ring where things stand too": replace(BASE, standing_radius_m=0.0),
    "ring all": replace(BASE, ring="all"),
    "support 0": replace(BASE, max_support=0.0),
    "support 0.05": replace(BASE, max_support=0.05),
    "support 0.2": replace(BASE, max_support=0.2),
    "agreement 0": replace(BASE, agreement=0.0),
    "agreement 0.8": replace(BASE, agreement=0.8),
    "isolation 1.25": replace(BASE, max_isolation=1.25),
    "isolation not tested": replace(BASE, max_isolation=0.0),
}
"""What is compared; rows below the base change one setting of it."""

GATES = ("support 0", "support 0.05", "base: margin 0.1, no islands", "support 0.2", "agreement 0")
PLOTTED = (
    "reference",
    "no gate",
    "ring off",
    "ring all",
    "gate of support 0.05 alone",
    *GATES,
    "default",
)
REPORTED = (
    "reference",
    "default",
    "base: margin 0.1, no islands",
    "no gate",
    "gate of support 0.05 alone",
    "support 0",
    "support 0.2",
)


@dataclass(frozen=True)
class Case:
    """A frame with spoilt labels."""

    frame: StudyFrame
    error: str
    labels: Labels


def cases(frames: Sequence[StudyFrame]) -> list[Case]:
    """Return every frame with every kind of error; the draws depend on the kind and the size of the sweep alone."""
    return [
        Case(frame, error, spoil(frame, np.random.default_rng([number, len(frame.truth)])))
        for frame in frames
        for number, (error, spoil) in enumerate(ERRORS.items())
    ]


def refined(case: Case, config: FlatInteractionConfig) -> Labels:
    """Return the labels of a case after flat interaction."""
    frame = case.frame
    return refine(
        frame.xyz_m,
        case.labels,
        config,
        n_classes=frame.n_classes,
        ground_classes=frame.ontology.ground_class_ids,
        sensor_height_m=frame.sensor_height_m,
    ).labels


def confusion(truth: Labels, found: Labels, n_classes: int) -> npt.NDArray[np.int64]:
    """Return how often each true class (row) is called what (column); unknown truth is left out."""
    known, side = truth > 0, n_classes + 1
    counts = np.bincount(truth[known].astype(np.int64) * side + found[known], minlength=side * side)
    return counts.reshape(side, side)


def mean_iou(counts: npt.NDArray[np.int64]) -> float:
    """Return the mean IoU, %, over the classes that occur in the truth."""
    hit = np.diag(counts)[1:]
    present = counts.sum(axis=1)[1:] > 0
    union = counts.sum(axis=0)[1:] + counts.sum(axis=1)[1:] - hit
    return float(100 * (hit[present] / union[present]).mean())


Counts = npt.NDArray[np.int64]


@dataclass
class Memory:
    """What was counted before, in a file of one JSON document a line; without a file, nothing is kept.

    A count is known by the points, the labels, the setting and the text of the modules that make it.
    """

    path: Path | None = None
    known: dict[str, list[list[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path and self.path.exists():
            for line in self.path.read_text().splitlines():
                self.known.update(json.loads(line))

    def refined(self, case: Case, config: FlatInteractionConfig) -> tuple[Counts, Counts]:
        """Return how often each class is called what, after flat interaction, of all and of the unlabelled points."""
        digest = hashlib.sha256(repr((config, case.frame.sensor_height_m, code())).encode())
        for values in (case.frame.xyz_m, case.labels, case.frame.truth):
            digest.update(np.ascontiguousarray(values).tobytes())
        key = digest.hexdigest()[:24]
        if key not in self.known:
            every, hidden = counted(case, refined(case, config))
            self.known[key] = [every.ravel().tolist(), hidden.ravel().tolist()]
            if self.path:
                with self.path.open("a") as file:
                    file.write(json.dumps({key: self.known[key]}) + "\n")
        side = case.frame.n_classes + 1
        every, hidden = (np.array(values).reshape(side, side) for values in self.known[key])
        return every, hidden


@cache
def code() -> str:
    """Return the text of the modules whose results are kept."""
    modules = (flat_config, flat_levels, flat_gate, flat_interaction, ground)
    return "".join(Path(str(module.__file__)).read_text() for module in modules)


def counted(case: Case, found: Labels) -> tuple[Counts, Counts]:
    """Return how often each true class is called what: of all points, and of those whose label was missing."""
    truth, hidden, n_classes = case.frame.truth, case.labels == 0, case.frame.n_classes
    return confusion(truth, found, n_classes), confusion(truth[hidden], found[hidden], n_classes)


def scores(chosen: Sequence[Case], how: Callable[[Case], tuple[Counts, Counts]]) -> dict[tuple[str, str], float]:
    """Return the mean IoU, %, by source and kind of error; as "unseen", the share of unseen points named right."""
    totals: dict[tuple[str, str], Counts] = {}
    for case in chosen:
        source = case.frame.source
        every, hidden = how(case)
        totals[source, case.error] = totals.get((source, case.error), 0) + every
        if case.error == UNSEEN:
            totals[source, "unseen"] = totals.get((source, "unseen"), 0) + hidden
    return {
        key: float(100 * np.trace(total) / total.sum()) if key[1] == "unseen" else mean_iou(total)
        for key, total in totals.items()
    }


def nearest_label(case: Case) -> Labels:
    """Return the labels with each gap filled by the nearest labelled point: what a gap filler must beat."""
    known = case.labels > 0
    labels = case.labels.copy()
    nearest = cKDTree(case.frame.xyz_m[known]).query(case.frame.xyz_m[~known])[1]
    labels[~known] = labels[known][nearest]
    return labels


def table(rows: Mapping[str, Mapping[tuple[str, str], float]], source: str) -> str:
    """Return results as a Markdown table: one row a method, one column a kind of error."""
    columns = [*ERRORS, "unseen"]
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name, values in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{values[source, column]:.1f}" for column in columns) + " |")
    return "\n".join(lines)


def plot(rows: Mapping[str, Mapping[tuple[str, str], float]], sources: Sequence[str], path: Path) -> None:
    """Draw what each setting costs clean labels against what it gains on the mixture."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(sources), figsize=(5 * len(sources), 4), squeeze=False, layout="constrained")
    for axis, source in zip(axes[0], sources, strict=True):
        at = {
            name: (
                max(100 - rows[name][source, "clean"], 0.05),
                rows[name][source, "mixture"] - rows["input"][source, "mixture"],
            )
            for name in PLOTTED
        }
        axis.plot(*zip(*(at[name] for name in GATES), strict=True), color="grey", linewidth=1)
        for name, place in at.items():
            axis.plot(*place, {"reference": "s", "default": "*"}.get(name, "."), markersize=9)
            axis.annotate(name.partition(":")[0], place, fontsize=7, xytext=(5, -8), textcoords="offset points")
        axis.set(title=source, xscale="log", xlabel="mIoU lost on clean labels", ylabel="mIoU gained on the mixture")
        axis.axhline(0, color="grey", linewidth=0.5)
        axis.axvline(0.5, color="grey", linewidth=0.5, linestyle=":")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def study(frames: Sequence[StudyFrame], folder: Path, memory: Memory) -> str:
    """Return the tables as Markdown and write the plot; see the module for what is compared."""
    sources = list(dict.fromkeys(frame.source for frame in frames))
    parts = []
    for half, names in ((CHOOSE, tuple(VARIANTS)), (REPORT, REPORTED)):
        chosen = cases([frame for frame in frames if frame.half == half])
        rows: dict[str, Mapping[tuple[str, str], float]] = {
            "input": scores(chosen, lambda case: counted(case, case.labels))
        }
        for name in names:
            rows[name] = scores(chosen, partial(memory.refined, config=VARIANTS[name]))
        rows["nearest label"] = scores(chosen, lambda case: counted(case, nearest_label(case)))
        for source in sources:
            count = sum(frame.source == source and frame.half == half for frame in frames)
            heading = f"### To {half} on: {source}, {count} sweep{'s' * (count > 1)}"
            if count:
                parts += [heading, "", table(rows, source), ""]
        if half == CHOOSE:
            plot(rows, sources, folder / "afi.png")
    return "\n".join(parts)


BEGIN, END = "<!-- the study begins -->", "<!-- the study ends -->"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study and put its tables between the marks in docs/afi.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kitti", type=Path, help="a SemanticKITTI root: sequences/*/velodyne and labels")
    parser.add_argument("--golden", type=Path, help="the folder of the golden files afi_{0,1,2}.npz")
    parser.add_argument("--city", type=Path, help="a synthetic city; it is written where the folder holds none")
    parser.add_argument("--recipe", help="a recipe whose data set has labels")
    parser.add_argument(
        "--sweeps",
        type=int,
        nargs=2,
        default=(2, 6),
        metavar=("CHOOSE", "REPORT"),
        help="at most so many of each half of a source (default: 2 6)",
    )
    parser.add_argument("--cache", type=Path, help="a file that keeps every count")
    parser.add_argument("--page", type=Path, default=Path("docs/afi.md"))
    options = parser.parse_args(arguments)
    frames: list[StudyFrame] = []
    if options.golden:
        frames += evenly(simulated_frames(options.golden), options.sweeps)
    if options.city:
        frames += evenly(city_frames(options.city), options.sweeps)
    if options.kitti:
        frames += evenly(kitti_frames(options.kitti), options.sweeps)
    if options.recipe:
        frames += evenly(recipe_frames(options.recipe), options.sweeps)
    if {frame.half for frame in frames} != {CHOOSE, REPORT}:
        parser.error("no labelled sweeps for both halves; name at least one of --golden, --city, --kitti and --recipe")
    before, _, rest = options.page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    tables = study(frames, options.page.parent, Memory(options.cache))
    options.page.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}")


if __name__ == "__main__":
    main()
