"""Stage `vote` against a vote that is counted plainly: one loop over points inside one over sweeps, no arrays."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.ontology import load_ontology
from manifests.recipe import Recipe
from manifests.sections.data import DataConfig, RunConfig
from manifests.sections.tables import GroupConfig
from manifests.sections.teachers.artifacts import ArtifactsConfig
from manifests.tables.base import Rows
from manifests.tables.motion import MovingThings
from manifests.tables.sensors import Coordinates, PointOfPair
from manifests.tables.superpoints import NamedPoints
from manifests.tables.teacher import Score
from pipeline.frame import Frame
from pipeline.stages import belief
from pipeline.stages import vote as stage
from pipeline.stages.base import FrameInput
from superpixels.evidence import UNNAMED
from superpixels.tracks import Things, follow
from superpixels.voting import VotingConfig

MOST_POINTS = 300  # of a window


@dataclass
class Said:
    """What is said of one point: where it is in its sweep's frame, its names as (class, likelihood, trust)."""

    place: tuple[float, float, float]
    label: int
    names: list[tuple[int, float, float]]
    thing: int = 0


@dataclass
class Told:
    """What the vote says of one point: class, confidence in 1/255, and whether that is another class than before."""

    label: int
    confidence: int
    others: list[int]
    """The shares of the next two classes in 1/255."""
    close: bool
    """Two classes have as good as equal votes: which of them wins is up to rounding."""


def said_by(one: FrameInput, recipe: Recipe) -> list[Said]:
    """Return what a frame says of its points."""
    group, point_of = one.rows[NamedPoints], one.rows[PointOfPair].point
    class_of = recipe.ontology.class_of_prompt
    names_of: dict[int, list[int]] = defaultdict(list)
    surest: dict[int, tuple[int, int]] = {}  # of the pairs that name a point as it is called: score, position
    for at, (pair, superpoint) in enumerate(zip(group.pair.tolist(), group.pair_superpoint.tolist(), strict=True)):
        point, name = int(point_of[pair]), int(class_of[group.superpoint_prompt[superpoint]])
        names_of[point].append(name)
        if name > 0 and name == group.label[point] and recipe.vote.names > 1:
            surest[point] = max(surest.get(point, (-1, -1)), (int(one.rows[Score].score[pair]), at))
    found = []
    for point, (x, y, z) in enumerate(one.rows[Coordinates].xyz_m.tolist()):
        trust = recipe.vote.disputed if len(set(names_of[point])) > 1 else 1.0
        names = [(int(group.label[point]), group.confidence[point] / 255, trust)]
        if point in surest:
            pair = group.pair[surest[point][1]]
            for rank in range(recipe.vote.names - 1):
                other = one.rows[Score]
                names.append((int(other.runner_up[pair, rank]), other.runner_up_score[pair, rank] / 255, trust))
        thing = int(one.rows[MovingThings].thing[point]) if recipe.vote.follow else 0
        found.append(Said((x, y, z), int(group.label[point]), [name for name in names if name[0] > 0], thing))
    return found


def moved(pose: Any, place: Sequence[float]) -> tuple[float, float, float]:
    x, y, z = (sum(pose[row, column] * place[column] for column in range(3)) + pose[row, 3] for row in range(3))
    return float(x), float(y), float(z)


def cell_of(place: Sequence[float], config: VotingConfig) -> tuple[int, int]:
    """Return the direction of a place, in cells of azimuth and elevation."""
    x, y, z = place
    azimuth = math.degrees(math.atan2(y, x)) + 180
    elevation = math.degrees(math.atan2(z, math.hypot(x, y))) + 90
    rows, columns = math.ceil(180 / config.elevation_deg), math.ceil(360 / config.azimuth_deg)
    return min(int(elevation / config.elevation_deg), rows - 1), int(azimuth / config.azimuth_deg) % columns


def nearest(sweep: Sequence[Said], config: VotingConfig) -> dict[tuple[int, int], float]:
    """Return how near the nearest return of a sweep is in every direction in which it has one."""
    near_m: dict[tuple[int, int], float] = {}
    for one in sweep:
        cell = cell_of(one.place, config)
        near_m[cell] = min(near_m.get(cell, math.inf), math.dist(one.place, (0, 0, 0)))
    return near_m


def through(near_m: dict[tuple[int, int], float], place: Sequence[float], config: VotingConfig) -> bool:
    """Return whether a sweep has returns in the direction of a place, and all of them lie beyond it."""
    cell = cell_of(place, config)
    return cell in near_m and near_m[cell] > math.dist(place, (0, 0, 0)) * 1.05 + config.through_m


def voxel_of(place: Sequence[float], config: VotingConfig) -> tuple[int, int, int]:
    x, y, z = (math.floor(length / edge) for length, edge in zip(place, config.edges_m, strict=True))
    return x, y, z


def asked(window: Sequence[FrameInput], config: VotingConfig) -> list[FrameInput]:
    """Return the first frame of a window and those that have a vote on it, as few of each side as there may be."""
    if not config.reach_s:
        return list(window)
    found = [window[0]]
    ago_s = {one.frame.frame_id: (window[0].frame.timestamp_us - one.frame.timestamp_us) / 1e6 for one in window[1:]}
    for before in (True, False):
        side = [one for one in window[1:] if (ago_s[one.frame.frame_id] >= 0) == before]
        side = [one for one in side if abs(ago_s[one.frame.frame_id]) <= config.reach_s]
        side.sort(key=lambda one: abs(ago_s[one.frame.frame_id]))
        if len(side) > config.reach:
            last_s = abs(ago_s[side[-1].frame.frame_id])
            wanted = [last_s * (number + 1) / config.reach for number in range(config.reach)]
            nearest = [min(side, key=lambda one: abs(abs(ago_s[one.frame.frame_id]) - time_s)) for time_s in wanted]
            side = [one for one in side if one in nearest]
        found += side
    return found


Paths = dict[tuple[str, int], tuple[int, Any]]
"""Of things by frame and number: which one of the present sweep each is, and the way from where it was."""


def paths_of(window: Sequence[FrameInput], sweeps: Sequence[Sequence[Said]]) -> Paths:
    """Return what became of the moving things of a window, the first frame's own included where others met them."""
    here = np.linalg.inv(window[0].frame.world_from_lidar)
    every = []
    for frame, sweep in zip(window, sweeps, strict=True):
        boxes = []
        for number in range(1, max((one.thing for one in sweep), default=0) + 1):
            places = [
                one.place if frame is window[0] else moved(here @ frame.frame.world_from_lidar, one.place)
                for one in sweep
                if one.thing == number
            ] or [(math.nan,) * 3]
            boxes.append([(min(axis), max(axis)) for axis in zip(*places, strict=True)])
        middle = np.array([[(low + high) / 2 for low, high in box] for box in boxes]).reshape(-1, 3)
        size = np.array([[high - low for low, high in box] for box in boxes]).reshape(-1, 3)
        ago_s = (window[0].frame.timestamp_us - frame.frame.timestamp_us) / 1e6
        every.append(Things(middle, size, ago_s))
    found: Paths = {}
    for frame, one in zip(window[1:], follow(every[0], every[1:]), strict=True):
        for number, which in enumerate(one.of.tolist(), 1):
            if which:
                found[frame.frame.frame_id, number] = which, one.shift_m[number - 1]
                found[window[0].frame.frame_id, which] = which, np.zeros(3)
    return found


def plainly(window: Sequence[FrameInput], recipe: Recipe) -> list[Told]:
    """Return what the vote says of the points of the first frame of a window."""
    config, n_classes = recipe.vote, len(recipe.ontology.classes) - 1
    window = asked(window, config)
    sweeps = [[one for one in said_by(frame, recipe) if any(one.place)] for frame in window]
    near_m = [nearest(sweep, config) for sweep in sweeps]
    paths = paths_of(window, sweeps) if config.follow else {}
    told = []
    for point in said_by(window[0], recipe):
        if not any(point.place):
            told.append(Told(point.label, 0, [0, 0], False))
            continue
        score: dict[int, float] = defaultdict(float)
        opinions: dict[int, float] = defaultdict(float)
        mass = 0.0  # how much is trusted what sweeps say
        for frame, sweep, near in zip(window, sweeps, near_m, strict=True):
            said, trusts = heard(point, window[0], frame, sweep, near, near_m[0], recipe, paths)
            for name, gain in said:
                score[name] += gain
                opinions[name] += gain / max(len(trusts), 1)
            mass += sum(trusts) / max(len(trusts), 1)
        fades = config.own * 0.5 ** (math.dist(point.place, (0, 0, 0)) / config.range_half_m)
        for name, gain, trust in gained(point, config, n_classes):
            score[name] += fades * gain * trust
            opinions[name] += fades * gain * trust
        mass += fades * point.names[0][2] if point.names else 0.0
        if config.evidence == "log":
            told.append(likeliest(score, opinions, mass, point.label, n_classes, config))
        else:
            told.append(outcome(score, point.label, config))
    return told


def heard(
    point: Said,
    here: FrameInput,
    frame: FrameInput,
    sweep: Sequence[Said],
    near_m: dict[tuple[int, int], float],
    near_here_m: dict[tuple[int, int], float],
    recipe: Recipe,
    paths: Paths,
) -> tuple[list[tuple[int, float]], list[float]]:
    """Return what a sweep gives the classes of a point, and how much each of its points is trusted that says so."""
    config, own = recipe.vote, frame is here
    said: list[tuple[int, float]] = []
    trusts: list[float] = []
    here_from_there = np.linalg.inv(here.frame.world_from_lidar) @ frame.frame.world_from_lidar
    mine, _ = paths.get((here.frame.frame_id, point.thing), (0, None))
    if not own and not mine and through(near_m, moved(np.linalg.inv(here_from_there), point.place), config):
        return said, trusts
    ago_s = abs(here.frame.timestamp_us - frame.frame.timestamp_us) / 1e6
    for one in sweep:
        place = one.place if own else moved(here_from_there, one.place)
        met, way = paths.get((frame.frame.frame_id, one.thing), (0, None))
        if met != mine or (one.thing and not met and not own):
            continue  # of another thing, of the street, or of something that moves and is not here
        if met and not own:
            place = tuple(np.add(place, way))
        if voxel_of(place, config) != voxel_of(point.place, config):
            continue
        if not own and (
            math.hypot(*one.place[:2]) <= config.vehicle_m or (not met and through(near_here_m, place, config))
        ):
            continue
        fades = 0.5 ** (math.dist(one.place, (0, 0, 0)) / config.range_half_m + ago_s / config.time_half_s)
        for name, gain, trust in gained(one, config, len(recipe.ontology.classes) - 1):
            said.append((name, fades * gain * trust))
        if one.names and one.names[0][2] > 0:
            trusts.append(fades * one.names[0][2])
    return said, trusts


def gained(one: Said, config: VotingConfig, n_classes: int) -> list[tuple[int, float, float]]:
    """Return what a point gives the classes that it names, and how much it is trusted."""
    if config.evidence == "share":
        return one.names
    left = max(1 - sum(likelihood for _, likelihood, _ in one.names), UNNAMED)
    rest = left / max(n_classes - len(one.names), 1)
    return [(name, math.log(max(likelihood / rest, 1)), trust) for name, likelihood, trust in one.names]


def likeliest(
    score: dict[int, float],
    opinions: dict[int, float],
    mass: float,
    before: int,
    n_classes: int,
    config: VotingConfig,
) -> Told:
    """Return what comes of evidence in logarithms: who wins by points, and how sure that is by opinions of sweeps."""
    found = outcome(score, before, replace(config, prior=0.0))
    if not found.label or sum(score.values()) <= 0:
        return replace(found, confidence=0, others=[0, 0])
    evidence = [opinions.get(name, 0.0) / (mass + config.prior) for name in range(1, n_classes + 1)]
    odds = [math.exp(one - max(evidence)) for one in evidence]
    likely = [one / sum(odds) * mass / (mass + config.prior) for one in odds]
    sure = max(round(likely.pop(found.label - 1) * 255), 1)
    return replace(found, confidence=sure, others=[round(one * 255) for one in sorted(likely, reverse=True)[:2]])


def outcome(score: dict[int, float], before: int, config: VotingConfig) -> Told:
    """Return what comes of the votes for classes; at equal votes a point keeps its label."""
    total = sum(score.values())
    if total <= 0:
        return Told(before, 0, [0, 0], False)
    most = max(score.values())
    label = before if before and score.get(before, 0.0) >= most else min(c for c in score if score[c] == most)
    share = score[label] / (total + config.prior) if label else 0.0
    ahead = sorted(score.values())[-2:]
    close = len(ahead) == 2 and ahead[1] - ahead[0] < 1e-9
    next_to = sorted((one / (total + config.prior) for name, one in score.items() if name != label), reverse=True)
    others = [min(round(one * 255), 255) for one in (*next_to, 0.0, 0.0)][:2]
    return Told(label, max(round(share * 255), 1) if label else 0, others if label else [0, 0], close)


def sorted_by_time(window: Sequence[FrameInput]) -> list[FrameInput]:
    """Return the first frame of a window, and the others as a worker gives them: in order of time."""
    return [window[0], *sorted(window[1:], key=lambda one: one.frame.timestamp_us)]


def random_window(seed: int, recipe: Recipe) -> list[FrameInput]:
    """Return frames of one place, the one that is voted on first: points of few voxels and few directions."""
    rng = np.random.default_rng(seed)
    n_frames = int(rng.integers(1, 8))
    return [
        random_frame(rng, number, int(rng.integers(0, MOST_POINTS // n_frames)), recipe) for number in range(n_frames)
    ]


def random_frame(rng: np.random.Generator, number: int, n_points: int, recipe: Recipe) -> FrameInput:
    angle = rng.uniform(-0.3, 0.3)
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    pose[:3, 3] = rng.uniform(-1, 1, 3) * (2, 2, 0.1)
    frame = Frame(f"f{number}", "s", int(rng.integers(0, 8_000_000)), "l", "l.bin", None, np.eye(4), pose, ())
    far = rng.choice([1.0, 3.0, 9.0], n_points)[:, None]
    xyz_m = (rng.uniform(-2, 2, (n_points, 3)) * (1, 1, 0.2) + (4, 0, 0)) * far
    xyz_m[rng.random(n_points) < 0.05] = 0  # pulses that came back from nothing
    # three segments in each of two cameras, whose prompts may be of one class or of none
    prompts = rng.integers(0, len(recipe.ontology.class_of_prompt), 6).astype(np.int32)
    point = np.concatenate([np.sort(rng.choice(n_points, n_points * 2 // 3, replace=False)) for _ in range(2)])
    view = np.repeat([0, 1], n_points * 2 // 3)
    pair = np.flatnonzero(rng.random(len(point)) < 0.9)
    superpoint = view[pair] * 3 + rng.integers(0, 3, len(pair))
    label = np.zeros(n_points, np.uint8)
    order = rng.permutation(len(pair))  # which camera wins does not matter here
    label[point[pair[order]]] = recipe.ontology.class_of_prompt[prompts[superpoint[order]]]
    n_classes = len(recipe.ontology.classes)
    rows = Rows(
        Coordinates(frame_id=frame.frame_id, xyz_m=xyz_m.astype(np.float32)),
        PointOfPair(frame_id=frame.frame_id, point=point.astype(np.int32)),
        NamedPoints(
            frame_id=frame.frame_id,
            superpoint_prompt=prompts,
            pair=pair.astype(np.int32),
            pair_superpoint=superpoint.astype(np.int32),
            label=label,
            confidence=np.where(label > 0, rng.integers(1, 256, n_points), 0).astype(np.uint8),
        ),
        Score(
            frame_id=frame.frame_id,
            score=rng.integers(0, 256, len(point)).astype(np.uint8),
            runner_up=rng.integers(0, n_classes, (len(point), 2)).astype(np.uint8),
            runner_up_score=rng.integers(1, 128, (len(point), 2)).astype(np.uint8),
        ),
        MovingThings(frame_id=frame.frame_id, thing=(rng.integers(0, 4, n_points) * (far[:, 0] < 9)).astype(np.uint16)),
    )
    return FrameInput(frame, rows)


def recipe_of(config: VotingConfig) -> Recipe:
    data, teacher = DataConfig(root="/nowhere"), ArtifactsConfig(folder="unused")
    ontology, scores = load_ontology("nuscenes"), GroupConfig(scores="pixel")
    return Recipe("plain", data, RunConfig(), ontology, teacher, vote=config, group=scores)


KINDS = {
    "as it is": VotingConfig(),
    "narrow": VotingConfig(voxel_m=0.3, azimuth_deg=5.0, elevation_deg=7.0, through_m=0.1, own=0.0, disputed=0.0),
    "two seconds": VotingConfig(reach=1, reach_s=2.0, vehicle_m=4.0, voxel_m=1.0, voxel_height_m=0.5, time_half_s=2.0),
    "logarithms": VotingConfig(evidence="log", voxel_m=1.0, voxel_height_m=0.5, azimuth_deg=3.0),
    "logarithms of three": VotingConfig(evidence="log", names=3, voxel_m=1.5, voxel_height_m=1.0, azimuth_deg=3.0),
    "followed": VotingConfig(follow=True, voxel_m=1.0, voxel_height_m=0.5, azimuth_deg=3.0),
    "three names": VotingConfig(names=3, voxel_m=1.5, voxel_height_m=1.0, azimuth_deg=3.0, prior=0.0),
}


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_the_stages_are_a_vote_counted_plainly(kind: str, seed: int) -> None:
    recipe = recipe_of(replace(KINDS[kind], belief=True))
    own, *others = sorted_by_time(random_window(seed, recipe))
    window = replace(own, around=tuple(others))
    kept = belief.prepare(recipe)(window)
    hard = stage.prepare(recipe_of(KINDS[kind]))(window)
    found = stage.prepare(recipe)(FrameInput(own.frame, own.rows.also(kept)))
    expected = plainly([own, *others], recipe)
    before = own.rows[NamedPoints].label
    for point, one in enumerate(expected):
        if not one.close:
            assert found.label[point] == one.label
            assert abs(int(found.confidence[point]) - one.confidence) <= 1  # whole numbers, rounded
            shares = kept.share[point, 1:].astype(int)
            assert (np.abs(shares - np.minimum(one.others, found.confidence[point])) <= 1).all()
        assert found.changed[point] == (found.label[point] != before[point])
    assert len(expected) == len(found.label)
    for name in ("label", "confidence", "changed"):
        np.testing.assert_array_equal(getattr(found, name), getattr(hard, name))


def test_windows_have_what_is_to_be_tried() -> None:
    recipe = recipe_of(KINDS["three names"])
    changed = silent = named = moved_on = 0
    for seed in range(30):
        own, *others = random_window(seed, recipe)
        told = stage.prepare(recipe)(replace(own, around=tuple(others)))
        loose = stage.prepare(recipe_of(replace(recipe.vote, through_m=1e9)))
        changed += int(told.changed.sum())
        named += int((told.label > 0).sum())
        silent += int((loose(replace(own, around=tuple(others))).confidence != told.confidence).sum())
        followed = stage.prepare(recipe_of(replace(recipe.vote, follow=True)))(replace(own, around=tuple(others)))
        moved_on += int((followed.confidence != told.confidence).sum())
    assert changed > 100 and silent > 30 and named > 500 and moved_on > 100, (changed, silent, named, moved_on)
