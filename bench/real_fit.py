"""The simulated teacher fitted to a real one: what it takes for what, how far away, for how long, and how sure it is.

    python -m bench.real_fit REAL SIMULATED

reads the tables of a recipe with a real teacher (index, points, project, group, label; `group.scores = "pixel"`), fits
the settings of the simulated one to them, and prints these as TOML with what both come to on the same frames: how long
mistakes last, how often each score is right, what a vote mends and spoils. No table is built: the simulated teacher is
asked frame by frame.

The slope of the range is the likeliest one of a probit model with a constant for each class. Shares of confusion follow
from it, corrected by what superpixels and boundaries spoil beside them. How steady mistakes are, and for how long, is
searched for: of wrongly named places as many shall be wrong again, and alike, as with the real teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.special import ndtr

from bench.real_errors import Lasting, Named, lasting
from bench.real_labels import Frames
from manifests.recipe import Recipe, load_recipe
from manifests.sections.teachers.oracle import OracleConfig
from manifests.tables.base import Rows, UInt8
from manifests.tables.labels import Label
from manifests.tables.sensors import Index, PixelOfPair, Points, Project
from manifests.tables.superpoints import Group
from pipeline.frame import Frame
from pipeline.stages.group import group_frame
from pipeline.stages.score import at_pairs
from pipeline.teachers.lasting import REFERENCE_RANGE_M
from pipeline.teachers.oracle import Oracle
from superpixels.voting import Ballot, vote

TABLES = ("index", "points", "project", "group", "label")
STEPS = (1, 3, 5)
QUANTILES = 21
LEAST_SHARE = 0.01  # of a class: what is rarer is no habit
SLOPES = np.linspace(-0.3, 0.6, 19)
STEADINESS = (0.99, 0.995, 0.998)
HALF_LIVES_S = (4.0, 2.0, 8.0)
PLACES_M = (2.0, 4.0)


@dataclass(frozen=True, eq=False)
class Sweep:
    """A frame with its rows, and what its points are called: labels and how sure that is in 1/255, (n,)."""

    frame: Frame
    rows: Rows
    label: UInt8
    confidence: UInt8

    @property
    def truth(self) -> UInt8:
        """The true class of every point, 0 ignored."""
        return self.rows[Label].label

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Which points are named and have a true class."""
        return (self.label > 0) & (self.truth > 0)

    @property
    def range_m(self) -> NDArray[np.float64]:
        """How far each point is from the sensor, on the ground."""
        return np.asarray(np.linalg.norm(self.rows[Points].xyz_m[:, :2].astype(np.float64), axis=1))

    @property
    def named(self) -> Named:
        """The named points with a true class, in the world."""
        pose, some = self.frame.world_from_lidar, self.counted
        xyz_m = self.rows[Points].xyz_m[some] @ pose[:3, :3].T + pose[:3, 3]
        return Named(self.frame.scene, self.frame.timestamp_us / 1e6, xyz_m, self.label[some], self.truth[some])


def sweeps_of(recipe: Recipe) -> Iterator[Sweep]:
    """Yield the sweeps of a recipe as its teacher names them; raises StoreError where a table is missing."""
    for rows in Frames.of(recipe, TABLES):
        group = rows[Group]
        yield Sweep(Frame.of(rows[Index]), rows, group.label, group.confidence)


# -- what a teacher does ----------------------------------------------------------------------------------------------


def confusion(sweeps: Sequence[Sweep], n_classes: int) -> NDArray[np.float64]:
    """Return what part of each true class is called what, by named points, (classes, classes); rows sum to 1 or 0."""
    counts = np.zeros((n_classes, n_classes))
    for one in sweeps:
        np.add.at(counts, (one.truth[one.counted], one.label[one.counted]), 1)
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)


def doublings(range_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by how many doublings points lie beyond the range at which shares hold."""
    return np.asarray(np.log2(np.maximum(range_m, 1.0) / REFERENCE_RANGE_M))


def constant(share: float, far: NDArray[np.float64], slope: float) -> float:
    """Return the normal number below which mistakes lie at the reference range, for a share of all points (n,)."""
    low, high = -8.0, 8.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if ndtr(middle + slope * far).mean() < share else (low, middle)
    return (low + high) / 2


def fitted_slope(sweeps: Sequence[Sweep], n_classes: int) -> float:
    """Return how fast mistakes grow with the range within a class, as a normal number per doubling.

    Classes that are always or never mistaken say nothing of it, and do not count.
    """
    far = np.concatenate([doublings(one.range_m[one.counted]) for one in sweeps])
    truth = np.concatenate([one.truth[one.counted] for one in sweeps])
    wrong = np.concatenate([(one.label != one.truth)[one.counted] for one in sweeps])
    likelihood = np.zeros(len(SLOPES))
    for number in range(1, n_classes):
        some = truth == number
        if some.sum() < 1000 or not 0.02 < wrong[some].mean() < 0.98:
            continue
        for position, slope in enumerate(SLOPES):
            expected = ndtr(constant(float(wrong[some].mean()), far[some], slope) + slope * far[some])
            expected = np.clip(expected, 1e-6, 1 - 1e-6)
            likelihood[position] += np.log(np.where(wrong[some], expected, 1 - expected)).mean()  # classes alike
    return float(SLOPES[likelihood.argmax()])


def at_reference(wanted: NDArray[np.float64], sweeps: Sequence[Sweep], slope: float) -> NDArray[np.float64]:
    """Return shares of confusion (classes, classes) at the reference range that come to the wanted ones over all."""
    far = np.concatenate([doublings(one.range_m[one.counted]) for one in sweeps])
    truth = np.concatenate([one.truth[one.counted] for one in sweeps])
    found = np.zeros_like(wanted)
    for number in range(1, len(wanted)):
        row = np.where(np.arange(len(wanted)) == number, 0, np.maximum(wanted[number], 0))
        row[row < LEAST_SHARE] = 0
        share = min(float(row.sum()), 1.0)
        if share:
            at = 1.0 if share > 0.99 else float(ndtr(constant(share, far[truth == number], slope)))
            found[number] = row / row.sum() * at
    return found


def quantiles(sweeps: Sequence[Sweep]) -> tuple[tuple[float, float], ...]:
    """Return quantiles of the scores of points that are named rightly and wrongly, evenly spaced but for the ends.

    These are those of a hundredth: the one point with the least score would stretch the first step over them all.
    """
    score = np.concatenate([one.confidence[one.counted] for one in sweeps]) / 255
    right = np.concatenate([(one.label == one.truth)[one.counted] for one in sweeps])
    at = np.clip(np.linspace(0, 1, QUANTILES), 0.01, 0.99)
    sides = (np.quantile(score[some], at) for some in (right, ~right))
    return tuple((round(max(float(a), 0.01), 3), round(max(float(b), 0.01), 3)) for a, b in zip(*sides, strict=True))


def score_curve(sweeps: Sequence[Sweep]) -> list[tuple[int, float]]:
    """Return for each tenth of the scores how many points have one, and which part of them is named rightly."""
    score = np.concatenate([one.confidence[one.counted] for one in sweeps]) / 255
    right = np.concatenate([(one.label == one.truth)[one.counted] for one in sweeps])
    tenth = np.minimum((score * 10).astype(np.int64), 9)
    n, good = np.bincount(tenth, minlength=10), np.bincount(tenth, right, 10)
    return [(int(a), float(b / a) if a else float("nan")) for a, b in zip(n, good, strict=True)]


def voted(sweeps: Sequence[Sweep], recipe: Recipe) -> Iterator[UInt8]:
    """Yield the labels of each sweep after the vote of those around it in its scene, one name a point."""
    for _, group in groupby(sweeps, key=lambda one: one.frame.scene):
        scene = list(group)
        for position, here in enumerate(scene):
            reach = recipe.vote.reach
            around = [*scene[max(0, position - reach) : position], *scene[position + 1 : position + 1 + reach]]
            own, *others = (
                Ballot.cast(one.rows[Points].xyz_m, one.label, one.confidence / 255, one.frame, here.frame)
                for one in (here, *around)
            )
            yield vote(own, others, len(recipe.ontology.classes) - 1, replace(recipe.vote, names=1)).label


def balance(sweeps: Sequence[Sweep], recipe: Recipe) -> tuple[int, int]:
    """Return how many points a vote of the sweeps of each scene mends and spoils, one name a point."""
    mended = spoilt = 0
    for here, after in zip(sweeps, voted(sweeps, recipe), strict=True):
        before, truth, some = here.label, here.truth, here.counted
        mended += int((some & (before != truth) & (after == truth)).sum())
        spoilt += int((some & (before == truth) & (after != truth)).sum())
    return mended, spoilt


# -- the simulated one ------------------------------------------------------------------------------------------------


class Simulated:
    """The simulated teacher on the sweeps of a real one; true maps of images are made once."""

    def __init__(self, recipe: Recipe, sweeps: Sequence[Sweep]) -> None:
        self.recipe, self.sweeps = recipe, sweeps
        teacher = Oracle.load(recipe, "segment")
        self.text = Oracle.load(recipe, "text").text(recipe.ontology.prompts)
        self.truth: list[list[NDArray[np.int16]]] = [
            [
                teacher.map_of_points(camera, view, one.rows[Label], one.rows[Project], *size_px(camera, recipe))
                for view, camera in enumerate(one.frame.cameras)
            ]
            for one in sweeps
        ]

    def named(self, config: OracleConfig) -> list[Sweep]:
        """Return the sweeps as the teacher names them with some settings."""
        recipe = replace(self.recipe, teacher=config)
        teacher = Oracle.load(recipe, "segment")
        found = []
        for one, truths in zip(self.sweeps, self.truth, strict=True):
            frame, pairs = one.frame, one.rows[Project]
            spoilt = [
                teacher.spoil(
                    truth,
                    frame.cameras[view],
                    self.text,
                    frame,
                    teacher.surroundings(frame, view, one.rows, *truth.shape),
                )
                for view, truth in enumerate(truths)
            ]
            segments = [each.segments for each in spoilt]
            scores = at_pairs(one.rows[PixelOfPair], frame.cameras, segments, [each.score_map for each in spoilt])
            group = group_frame(pairs, frame.cameras, segments, frame.n_points, recipe.group, recipe.ontology, scores)
            found.append(replace(one, label=group.label, confidence=group.confidence))
        return found


def size_px(camera: Any, recipe: Recipe) -> tuple[int, int]:
    """Return height and width of a camera's label map."""
    scale = recipe.segment.scale
    return max(1, round(camera.height_px * scale)), max(1, round(camera.width_px * scale))


def with_shares(config: OracleConfig, share: NDArray[np.float64], names: Sequence[str]) -> OracleConfig:
    """Return settings with these shares of confusion, rounded so that no row is above 1."""
    rows = tuple(
        (names[true], names[other], float(np.floor(share[true, other] * 1000) / 1000))
        for true, other in zip(*np.nonzero(share >= 0.001), strict=True)
    )
    return replace(config, confusion=1.0, confused=rows)


def distance(found: Sequence[Lasting], wanted: Sequence[Lasting]) -> float:
    """Return how far two teachers are apart in how long their mistakes last: the root of the mean square difference."""
    away = [
        getattr(one, what) / one.met - getattr(other, what) / other.met
        for (one, other), what in product(zip(found, wanted, strict=True), ("wrong", "alike"))
    ]
    return float(np.sqrt(np.mean(np.square(away))))


def fitted(real: Sequence[Sweep], recipe: Recipe, tell: Callable[[str], None]) -> tuple[OracleConfig, list[Sweep]]:
    """Return the settings of the simulated teacher that come nearest, and the sweeps as it names them."""
    names, n_classes = recipe.ontology.class_names, len(recipe.ontology.classes)
    simulated, before = Simulated(recipe, real), recipe.teacher
    assert isinstance(before, OracleConfig)
    slope, wanted = round(fitted_slope(real, n_classes), 3), confusion(real, n_classes)
    last = lasting([one.named for one in real], STEPS)
    config: OracleConfig = replace(
        before,
        persistence=0.0,
        range_slope=slope,
        score_noise=0.0,
        scored=quantiles(real),
        steadiness=STEADINESS[1],
        half_life_s=HALF_LIVES_S[0],
        place_m=PLACES_M[0],
    )
    config = with_shares(config, at_reference(wanted, real, slope), names)
    found = confusion(simulated.named(config), n_classes)
    asked = wanted + (wanted - found) * (found.sum(axis=1, keepdims=True) > 0)
    config = with_shares(config, at_reference(asked, real, slope), names)

    def tried(steadiness: float, half_life_s: float, place_m: float) -> tuple[float, OracleConfig, list[Sweep]]:
        one = replace(config, steadiness=steadiness, half_life_s=half_life_s, place_m=place_m)
        sweeps = simulated.named(one)
        away = distance(lasting([each.named for each in sweeps], STEPS), last)
        tell(f"steadiness {steadiness}, half-life {half_life_s} s, {place_m} m: {100 * away:.1f} points away")
        return away, one, sweeps

    best = min((tried(each, HALF_LIVES_S[0], PLACES_M[0]) for each in STEADINESS), key=lambda one: one[0])
    steadiness = best[1].steadiness
    others = (tried(steadiness, each, PLACES_M[0]) for each in HALF_LIVES_S[1:])
    best = min((best, *others), key=lambda one: one[0])
    wide = tried(steadiness, best[1].half_life_s, PLACES_M[1])
    mended, spoilt = balance(real, recipe)

    def off_balance(one: tuple[float, OracleConfig, list[Sweep]]) -> float:
        good, bad = balance(one[2], recipe)
        tell(f"places of {one[1].place_m} m: {good / bad:.2f} mended to one spoilt, real {mended / spoilt:.2f}")
        return abs(float(np.log(good / bad / (mended / spoilt))))

    _, config, sweeps = min((best, wide), key=off_balance)
    return config, sweeps


# -- and what is told -------------------------------------------------------------------------------------------------


def told(sweeps: Sequence[Sweep], recipe: Recipe) -> Iterator[str]:
    """Yield what a teacher comes to, line by line."""
    counted = np.concatenate([one.counted for one in sweeps])
    right = np.concatenate([one.label == one.truth for one in sweeps])
    yield f"right: {100 * right[counted].mean():.1f} % of named points"
    for one in lasting([one.named for one in sweeps], STEPS):
        again, alike = (100 * each / one.met for each in (one.wrong, one.alike))
        yield f"{one.gap_s:.1f} s: {again:.0f} % wrong again, {alike:.0f} % alike"
    curve = (f"{100 * good:.0f} ({n:,})" if n else "–" for n, good in score_curve(sweeps))
    yield f"right % by tenth of the score (points): {', '.join(curve)}"
    mended, spoilt = balance(sweeps, recipe)
    yield f"the vote mends {mended:,} and spoils {spoilt:,}: {mended / max(spoilt, 1):.2f} to 1"


def settings_text(config: OracleConfig) -> str:
    """Return the fitted settings as TOML."""
    plain: Mapping[str, float] = {
        name: getattr(config, name) for name in ("confusion", "range_slope", "steadiness", "half_life_s", "place_m")
    }
    lines = [*(f"{name} = {value}" for name, value in plain.items()), "confused = ["]
    lines += [f'  ["{true}", "{other}", {share}],' for true, other, share in config.confused]
    lines += ["]", "scored = [", *(f"  [{right}, {wrong}]," for right, wrong in config.scored), "]"]
    return "\n".join(lines)


def main(
    real: Annotated[str, typer.Argument(help="A recipe with a real teacher, whose tables are built.")],
    simulated: Annotated[str, typer.Argument(help="The recipe of the simulated one.")] = "kitti_simulated",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Fit nothing; tell what the settings there are come to.")
    ] = False,
) -> None:
    """Fit the simulated teacher, and say how near it comes."""
    recipe = load_recipe(real, [])
    sweeps = list(sweeps_of(recipe))
    copy = load_recipe(simulated, [f"data.root={recipe.data.root}", f"run.store={recipe.run.store}", *(set_ or [])])
    if check:
        assert isinstance(copy.teacher, OracleConfig)
        found = Simulated(copy, sweeps).named(copy.teacher)
    else:
        config, found = fitted(sweeps, copy, print)
        print(settings_text(config))
    for name, some, of in (("real", sweeps, recipe), ("simulated", found, copy)):
        for line in told(some, of):
            print(f"{name}: {line}")


if __name__ == "__main__":
    typer.run(main)
