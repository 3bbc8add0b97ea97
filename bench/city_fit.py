"""The presets of the city fitted to real mistakes: labels as good as said, mistakes that last as long as real ones.

    python -m bench.city_fit [PRESET ...] [--check]

reads the tables `index`, `points`, `project` and `label` of presets of the city, asks their teachers frame by frame,
and prints the settings that come nearest as TOML: `confusion`, so that labels of points in sight have the mIoU that the
preset is meant to have, and `half_life_s`, so that a wrong place is wrong again, and alike, as often as with the real
networks of bench.real_fit. What else a preset does is its character and stays. `--check` fits nothing, tells what the
recipe comes to, and ends with 1 where that is off.

In the city a teacher that knew the truth of every pixel would name some 5 % of the points in sight wrongly: clocks are
late, and a camera does not stand where the LiDAR does. Such mistakes come and go whatever a teacher does, and are more
than a third of all here; real networks are wrong about a quarter of the points. So how long mistakes last is asked
of the teacher's own, of points that perfect maps name rightly, and told of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from bench.real_errors import Lasting, Named, lasting
from bench.real_fit import Sweep, score_curve, voted
from bench.real_labels import Frames, scores_of
from manifests.recipe import Recipe, load_recipe
from manifests.sections.teachers.oracle import OracleConfig
from manifests.tables.base import UInt8
from manifests.tables.labels import Label
from manifests.tables.sensors import Index, PixelOfPair, Project
from pipeline.frame import Frame
from pipeline.stages.group import group_frame
from pipeline.stages.score import at_pairs
from pipeline.teachers.oracle import Oracle, Surroundings
from superpixels.metrics import Confusion

TABLES = ("index", "points", "project", "label")
WORTH: Mapping[str, float] = {"san_like": 0.55, "fcclip_like": 0.48, "catseg_like": 0.48}
"""mIoU of projected labels on points in sight that a preset is meant to have: about what the paper's teachers give."""

STEPS = (1, 2)  # sweeps, half a second apart
REAL = ((0.87, 0.71), (0.83, 0.69))
"""Of wrongly named places of two real networks: wrong again and alike after 0.5 and 0.9 s, on 90 frames."""

OFF_WORTH, OFF_LASTING = 0.015, 0.05
USUAL_SLOPE, LEAST_SLOPE = -0.58, -0.1  # of mIoU over confusion
NEAR_WORTH, MOST_TRIES = 0.005, 4


@dataclass(frozen=True, eq=False)
class Answer:
    """The sweeps as a teacher names them, and what each point would be called by perfect maps."""

    recipe: Recipe
    sweeps: Sequence[Sweep]
    perfect: Sequence[UInt8]

    @cached_property
    def voted(self) -> list[UInt8]:
        """The labels of each sweep after the vote, one name a point."""
        return list(voted(self.sweeps, self.recipe))

    def worth(self, labels: Sequence[UInt8]) -> float:
        """Return mIoU of labels on points in sight."""
        n_classes = len(self.recipe.ontology.classes) - 1
        counts = Confusion(n_classes)
        for one, label in zip(self.sweeps, labels, strict=True):
            some = (one.truth > 0) & in_sight(one)
            counts.add(one.truth[some], label[some])
        scores = scores_of(counts, self.recipe.ontology.class_names, np.ones(n_classes + 1, np.bool_))
        return float(scores["mean_iou"])

    @property
    def labels_worth(self) -> float:
        """MIoU of the projected labels on points in sight."""
        return self.worth([one.label for one in self.sweeps])

    def lasting(self, *, own: bool) -> list[Lasting]:
        """Return how long mistakes last: all of them, or the teacher's own."""
        named = (one.named if not own else own_points(one, label) for one, label in self.both())
        return lasting(list(named), STEPS)

    def both(self) -> Iterator[tuple[Sweep, UInt8]]:
        """Yield each sweep with what perfect maps would call its points."""
        yield from zip(self.sweeps, self.perfect, strict=True)

    def balance(self, *, own: bool) -> tuple[int, int]:
        """Return how many named points the vote mends and spoils, of all or of those that perfect maps name rightly."""
        mended = spoilt = 0
        for (one, perfect), after in zip(self.both(), self.voted, strict=True):
            some = one.counted & ((perfect == one.truth) | (not own))
            mended += int((some & (one.label != one.truth) & (after == one.truth)).sum())
            spoilt += int((some & (one.label == one.truth) & (after != one.truth)).sum())
        return mended, spoilt


def in_sight(one: Sweep) -> NDArray[np.bool_]:
    """Return which points of a sweep some camera sees."""
    seen = np.zeros(one.frame.n_points, np.bool_)
    seen[one.rows[Project].point] = True
    return seen


def own_points(one: Sweep, perfect: UInt8) -> Named:
    """Return the named points of a sweep that perfect maps would name rightly, in the world."""
    some = (perfect == one.truth)[one.counted]
    named = one.named
    return replace(named, xyz_m=named.xyz_m[some], label=named.label[some], truth=named.truth[some])


class City:
    """The sweeps of a preset; true maps, and what lies around in every view, are read once."""

    def __init__(self, recipe: Recipe) -> None:
        assert isinstance(recipe.teacher, OracleConfig)
        # scores of pixels, whatever the preset does with them: they are what is compared with the truth
        self.recipe, self.config = replace(recipe, group=replace(recipe.group, scores="pixel")), recipe.teacher
        self.teacher = Oracle.load(recipe, "segment")
        self.answers: dict[OracleConfig, Answer] = {}
        self.text = self.teacher.text(recipe.ontology.prompts)
        self.sweeps = list(unnamed(recipe))
        self.truth = [[self.teacher.true_map(*view, one.rows) for view in views_of(one)] for one in self.sweeps]
        self.around = [
            [
                self.teacher.surroundings(*view, one.rows, *truth.shape)
                for view, truth in zip(views_of(one), maps, strict=True)
            ]
            for one, maps in zip(self.sweeps, self.truth, strict=True)
        ]
        self.perfect = [one.label for one in self.named(without_noise(self.config))]

    def named(self, config: OracleConfig) -> list[Sweep]:
        """Return the sweeps as the teacher names them with some settings."""
        recipe = replace(self.recipe, teacher=config)
        teacher = Oracle.load(recipe, "segment")
        return [
            self.named_sweep(teacher, recipe, *one) for one in zip(self.sweeps, self.truth, self.around, strict=True)
        ]

    def named_sweep(
        self,
        teacher: Oracle,
        recipe: Recipe,
        one: Sweep,
        truths: Sequence[NDArray[np.int16]],
        around: Sequence[Surroundings],
    ) -> Sweep:
        """Return a sweep as a teacher names it, by true maps (H, W) of its views."""
        frame, views = one.frame, zip(one.frame.cameras, truths, around, strict=True)
        spoilt = [teacher.spoil(truth, camera, self.text, frame, near) for camera, truth, near in views]
        segments = [each.segments for each in spoilt]
        scores = at_pairs(one.rows[PixelOfPair], frame.cameras, segments, [each.score_map for each in spoilt])
        pairs = one.rows[Project]
        group = group_frame(pairs, frame.cameras, segments, frame.n_points, recipe.group, recipe.ontology, scores)
        return replace(one, label=group.label, confidence=group.confidence)

    def answer(self, config: OracleConfig) -> Answer:
        """Return what the teacher does with some settings; it is asked once for each."""
        if config not in self.answers:
            self.answers[config] = Answer(replace(self.recipe, teacher=config), self.named(config), self.perfect)
        return self.answers[config]

    def of(self, recipe: Recipe) -> City:
        """Return the same city with the teacher of another preset."""
        assert isinstance(recipe.teacher, OracleConfig)
        other = copy(self)
        other.recipe, other.config, other.answers = replace(self.recipe, teacher=recipe.teacher), recipe.teacher, {}
        return other


def without_noise(config: OracleConfig) -> OracleConfig:
    """Return the settings of a teacher that names every pixel rightly."""
    return replace(config, boundary_shift_px=0, jitter_px=0, jitter_deg=0, confusion=0, synonyms=0, drop=0, merge=0)


def views_of(one: Sweep) -> list[tuple[Frame, int]]:
    """Return the views of a sweep."""
    return [(one.frame, view) for view in range(len(one.frame.cameras))]


def unnamed(recipe: Recipe) -> Iterator[Sweep]:
    """Yield the sweeps of a recipe, none of whose points has a name; raises StoreError where a table is missing."""
    for rows in Frames.of(recipe, TABLES):
        nothing = np.zeros(len(rows[Label].label), np.uint8)
        yield Sweep(Frame.of(rows[Index]), rows, nothing, nothing)


# -- the fit ----------------------------------------------------------------------------------------------------------


def away(found: Sequence[Lasting]) -> list[float]:
    """Return by how much mistakes last longer than real ones do: wrong again and alike at every step, as shares."""
    shares = [share for one in found for share in (one.wrong / one.met, one.alike / one.met)]
    return [share - real for share, real in zip(shares, np.ravel(REAL), strict=True)]


def fitted(city: City, worth: float, half_lives_s: Sequence[float]) -> Answer:
    """Return what comes nearest: confusion for the worth of the labels, half-life for how long mistakes last."""
    config = config_of(calibrated(city, city.config, worth))
    found: list[tuple[float, OracleConfig]] = []
    for half_life_s in half_lives_s:
        config = replace(config, half_life_s=half_life_s)
        off = float(np.sqrt(np.mean(np.square(away(city.answer(config).lasting(own=True))))))
        print(f"half-life {half_life_s} s: {100 * off:.1f} points away", flush=True)
        found.append((off, config))
    return calibrated(city, min(found, key=lambda one: one[0])[1], worth)


def calibrated(city: City, config: OracleConfig, worth: float) -> Answer:
    """Return the answer whose labels have a worth: the more confusion the less, nearly along a line, by secants."""
    tried: list[tuple[float, float]] = []
    slope = USUAL_SLOPE
    while True:
        answer = city.answer(config)
        tried.append((config.confusion, answer.labels_worth))
        print(f"confusion {config.confusion}: {100 * answer.labels_worth:.2f} mIoU", flush=True)
        if abs(answer.labels_worth - worth) < NEAR_WORTH or len(tried) == MOST_TRIES:
            return answer
        if len(tried) > 1 and tried[-1][0] != tried[-2][0]:
            slope = min((tried[-1][1] - tried[-2][1]) / (tried[-1][0] - tried[-2][0]), LEAST_SLOPE)
        step = (worth - answer.labels_worth) / slope
        config = replace(config, confusion=round(float(np.clip(config.confusion + step, 0.0, 1.0)), 3))


def config_of(answer: Answer) -> OracleConfig:
    """Return the settings that an answer was given with."""
    assert isinstance(answer.recipe.teacher, OracleConfig)
    return answer.recipe.teacher


def told(answer: Answer) -> Iterator[str]:
    """Yield what a teacher comes to, line by line."""
    yield (
        f"{len(answer.sweeps)} frames; mIoU of labels on points in sight {100 * answer.labels_worth:.2f}, "
        f"after the vote {100 * answer.worth(answer.voted):.2f}"
    )
    for own in (True, False):
        of = "the teacher's own" if own else "all mistakes"
        for one in answer.lasting(own=own):
            again, alike = (100 * each / one.met for each in (one.wrong, one.alike))
            yield f"{of}, {one.gap_s:.1f} s: {again:.0f} % wrong again, {alike:.0f} % alike"
        mended, spoilt = answer.balance(own=own)
        yield f"{of}: the vote mends {mended:,} and spoils {spoilt:,}: {mended / max(spoilt, 1):.2f} to 1"
    curve = (f"{100 * good:.0f} ({n:,})" if n else "–" for n, good in score_curve(answer.sweeps))
    yield f"right % by tenth of the score (points): {', '.join(curve)}"


def faults(answer: Answer, worth: float) -> Iterator[str]:
    """Yield a sentence for what is not as it is meant to be."""
    if abs(answer.labels_worth - worth) > OFF_WORTH:
        yield f"labels come to {100 * answer.labels_worth:.1f} mIoU and are meant to have {100 * worth:.0f}"
    found = answer.lasting(own=True)
    names = [f"after {one.gap_s:.1f} s {what}" for one in found for what in ("wrong again", "alike")]
    for name, off in zip(names, away(found), strict=True):
        if abs(off) > OFF_LASTING:
            yield f"{name}: {100 * off:+.1f} points beside real mistakes"


def main(
    presets: Annotated[list[str] | None, typer.Argument(help="Presets of the city, whose tables are built.")] = None,
    split: Annotated[str, typer.Option(help="The drives that are judged, as data.split names them.")] = "",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE")] = None,
    half_lives: Annotated[str, typer.Option(help="Half-lives to try, in seconds.")] = "4,8,16",
    check: Annotated[bool, typer.Option("--check", help="Fit nothing; tell what the recipes come to.")] = False,
) -> None:
    """Fit presets of the city, all of them if none is named, and say how near they come."""
    changes = [*(set_ or []), *([f"data.split={split}"] if split else [])]
    recipes = {name: load_recipe(name, changes) for name in presets or WORTH}
    first, wrong = City(next(iter(recipes.values()))), 0
    for name, recipe in recipes.items():
        print(f"{name}:", flush=True)
        city = first.of(recipe)
        if check:
            answer = city.answer(city.config)
        else:
            answer = fitted(city, WORTH[name], [float(one) for one in half_lives.split(",")])
            config = config_of(answer)
            print(f"confusion = {config.confusion}\nhalf_life_s = {config.half_life_s}")
        for line in told(answer):
            print(line, flush=True)
        for line in faults(answer, WORTH[name]):
            print(f"off: {line}", flush=True)
            wrong += check
    raise typer.Exit(int(wrong > 0))


if __name__ == "__main__":
    typer.run(main)
