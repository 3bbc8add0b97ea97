from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from bench.afi import street
from manifests.config import changed_values, parse_section
from superpixels.flat_config import FlatInteractionConfig
from superpixels.flat_gate import ego_ring, replaceable
from superpixels.flat_interaction import Refined, in_piles, order_of_content, refine
from superpixels.flat_levels import Level, decode, encode, pool
from superpixels.ground import plane_inliers, ring_candidates

PARITY = FlatInteractionConfig.parity()
DEFAULT = FlatInteractionConfig()
ANYWHERE = FlatInteractionConfig(fill_reach_m=0.0, fill_certainty=0.0, fill_agreement=0.0)
NUSCENES: dict[str, Any] = {"n_classes": 16, "ground_classes": (11, 12, 13, 14), "sensor_height_m": 1.84}
GOLDEN = ("afi_0", "afi_1", "afi_2", "afi_n1000", "real_nuscenes/afi_real0", "real_nuscenes/afi_real1")


@pytest.fixture(scope="module", params=GOLDEN)
def golden(shared: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(np.load(shared / "golden" / f"{request.param}.npz"))


def evidence_of(labels: Any, n_classes: int = 16) -> Any:
    evidence = (labels[:, None] == np.arange(n_classes + 1)).astype(np.float32)
    evidence[:, 0] = 0
    return evidence


def sheet(n: int = 50, spacing_m: float = 0.3, seed: int = 0) -> Any:
    """A level sheet of n x n points on a grid that is not quite regular."""
    grid = np.stack(np.meshgrid(np.arange(n), np.arange(n), [0.0]), axis=-1).reshape(-1, 3) * spacing_m
    grid[:, :2] += np.random.default_rng(seed).uniform(-0.05, 0.05, (n * n, 2))
    return grid.astype(np.float32)


# the reference


def test_parity_mode_gives_the_labels_of_the_reference(golden: dict[str, Any]) -> None:
    found = refine(golden["xyz"], golden["labels_in"], PARITY, **NUSCENES)
    assert (found.labels == golden["labels_out"]).mean() >= 0.9998
    np.testing.assert_array_equal(found.labels, golden["labels_out_exact_knn"])
    assert found.notes == ()


def test_parity_mode_without_the_ego_ring_gives_the_labels_of_the_reference(shared: Path) -> None:
    frame = np.load(shared / "golden" / "afi_0.npz")
    found = refine(frame["xyz"], frame["labels_in"], PARITY, n_classes=16)
    expected = np.load(shared / "golden" / "afi_0_noground.npz")["labels_out"]
    assert (found.labels == expected).mean() >= 0.9998
    assert found.notes == ("ego ring skipped: the height of the sensor was not given",)


def test_the_ring_and_its_plane_are_those_of_the_reference(golden: dict[str, Any]) -> None:
    ring = ring_candidates(golden["xyz"], 1.84, PARITY.ring_inner_m, PARITY.ring_outer_m, PARITY.ring_clearance_m)
    np.testing.assert_array_equal(ring, golden["ransac_ring_idx"])
    inlier = plane_inliers(golden["xyz"][ring], 10, 0.1, 20, 42)
    assert inlier is not None
    np.testing.assert_array_equal(ring[inlier], golden["ransac_ground_idx"])


def test_samples_features_and_evidence_are_those_of_the_reference(golden: dict[str, Any]) -> None:
    """Given the reference's own neighbours, which float32 distances let differ from the true ones in one row or two."""
    xyz_m, source = golden["xyz"], golden["labels_in"].copy()
    source[golden["ransac_ground_idx"]] = 0
    source[np.sqrt(xyz_m[:, 0] ** 2 + xyz_m[:, 1] ** 2) <= 2] = 0
    exact = encode(xyz_m, evidence_of(source), PARITY)
    levels: list[Level] = [exact[0]]
    for i, level in enumerate(exact[1:]):
        np.testing.assert_array_equal(level.index, golden[f"fps_idx_{i}"])
        same = (np.sort(level.neighbour, axis=1) == np.sort(golden[f"knn_idx_{i}"], axis=1)).all(axis=1)
        assert same.mean() > 0.97  # n1000 repeats one sample 500 times, and any of its copies will do
        levels.append(pool(levels[-1], level.index, golden[f"knn_idx_{i}"].astype(np.int64), PARITY))
        close(levels[-1].feature, golden[f"enc_feat_{i + 1}"])
        close(levels[-1].influence, golden[f"enc_influence_{i + 1}"])
        if f"enc_direction_{i + 1}" in golden:
            close(levels[-1].offset_m, golden[f"enc_direction_{i + 1}"])
            close(levels[-1].share, golden[f"enc_percentage_{i + 1}"])
    *coarse, finest = decode(levels, PARITY)
    for i, evidence in enumerate(coarse):
        close(evidence, golden[f"dec_feat_{i}"])
    if "dec_feat_3" in golden:  # the last step has neighbours that were not stored
        assert (np.abs(finest - golden["dec_feat_3"]).max(axis=1) > 1e-4).sum() <= 8


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_the_constants_of_the_reference_can_be_written_in_a_recipe() -> None:
    written = {key: list(v) if isinstance(v, tuple) else v for key, v in changed_values(PARITY).items()}
    assert parse_section("correct", written, FlatInteractionConfig) == PARITY


# parts


clouds = st.lists(st.tuples(*[st.integers(-8, 8)] * 3), min_size=1, max_size=60).map(
    lambda points: np.array(points, np.float32) / 2
)


# any input


labelled = clouds.flatmap(
    lambda xyz_m: st.tuples(
        st.just(xyz_m), st.lists(st.integers(0, 3), min_size=len(xyz_m), max_size=len(xyz_m)).map(np.array)
    )
)


@given(labelled, st.randoms(use_true_random=False))
def test_the_order_of_the_points_changes_nothing(cloud: tuple[Any, Any], random: Any) -> None:
    xyz_m, labels = cloud
    order = np.array(random.sample(range(len(labels)), len(labels)))
    first, second = refine(xyz_m, labels), refine(xyz_m[order], labels[order])
    same(second, first, order)


@settings(max_examples=30)
@given(labelled, st.sampled_from([PARITY, DEFAULT]))
def test_small_and_repeated_points_get_defined_labels(cloud: tuple[Any, Any], config: FlatInteractionConfig) -> None:
    xyz_m, labels = cloud
    found = refine(xyz_m, labels, config, n_classes=3, ground_classes=(1,), sensor_height_m=2.0)
    assert found.labels.dtype == np.uint8 and found.score.dtype == np.float32 and found.changed.dtype == np.bool_
    assert set(found.labels.tolist()) <= {0, *labels.tolist()} | {1}
    np.testing.assert_array_equal(found.changed, found.labels != labels)
    assert np.isfinite(found.score).all() and (found.score >= 0).all() and (found.score <= 1.0001).all()
    again = refine(xyz_m, labels, config, n_classes=3, ground_classes=(1,), sensor_height_m=2.0)
    same(again, found, np.arange(len(labels)))


def same(found: Refined, expected: Refined, order: Any) -> None:
    np.testing.assert_array_equal(found.labels, expected.labels[order])
    np.testing.assert_array_equal(found.score, expected.score[order])
    np.testing.assert_array_equal(found.changed, expected.changed[order])


@pytest.mark.parametrize("config", [PARITY, DEFAULT])
def test_no_points_give_no_labels(config: FlatInteractionConfig) -> None:
    found = refine(np.empty((0, 3), np.float32), np.empty(0, np.uint8), config, **NUSCENES)
    assert len(found.labels) == len(found.score) == len(found.changed) == 0


@pytest.mark.parametrize("config", [PARITY, DEFAULT])
def test_a_point_alone_keeps_its_label(config: FlatInteractionConfig) -> None:
    found = refine(np.ones((1, 3), np.float32), np.array([2]), config)
    assert found.labels.tolist() == [2] and not found.changed.any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_points_that_are_not_finite_are_refused_with_a_sentence(value: float) -> None:
    xyz_m = np.ones((3, 3), np.float32)
    xyz_m[1, 2] = value
    with pytest.raises(
        ValueError, match="1 of 3 points have a coordinate that is NaN or infinite, the first is point 1"
    ):
        refine(xyz_m, np.ones(3, np.uint8))


@pytest.mark.parametrize(
    ("xyz_m", "labels", "sentence"),
    [
        (np.ones((3, 2)), np.ones(3, int), r"expected \(n, 3\) and \(n,\)"),
        (np.ones((3, 3)), np.ones(2, int), r"expected \(n, 3\) and \(n,\)"),
        (np.ones((2, 3)), np.array([1, -1]), "labels run from -1 to 1"),
        (np.ones((2, 3)), np.array([1, 17]), "a label is 17, but there are 16 classes"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(xyz_m: Any, labels: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        refine(xyz_m, labels, n_classes=16)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"samples": (10, 20, 5, 1)}, "finest first"),
        ({"samples": (10, 5)}, "residual has 4 values for 2 levels"),
        ({"ring": "some"}, 'choose "off", "contradicted" or "all"'),
        ({"seed_point": "last"}, 'choose "first" or "content"'),
        ({"collinear_cos": 1.0}, "0 < collinear_cos < 1"),
        ({"neighbours": 0}, "at least 1"),
        ({"agreement": 1.5}, "are shares"),
        ({"island_points": -1}, "must be 0 or more"),
        ({"max_isolation": -1.0}, "max_isolation >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FlatInteractionConfig(**values)


# what it does to labels


@pytest.mark.parametrize("config", [PARITY, ANYWHERE])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.01])
def test_one_label_in_gives_that_label_out_wherever_there_is_evidence(
    config: FlatInteractionConfig, share: float
) -> None:
    xyz_m, _ = street(0)
    xyz_m = xyz_m[::8]
    labels = np.where(np.random.default_rng(0).random(len(xyz_m)) < share, 3, 0)
    *_, evidence = decode(encode(xyz_m, evidence_of(labels), config), config)
    total = evidence.sum(axis=1)
    assert np.isfinite(evidence).all() and (evidence >= 0).all() and total.max() <= 1 + 1e-6
    if share == 1:
        np.testing.assert_allclose(total, 1, atol=1e-6)
    found = refine(xyz_m, labels, config)
    assert set(found.labels[total > 0].tolist()) == {3} and not found.labels[(total == 0) & (labels == 0)].any()


def test_no_evidence_gives_no_labels() -> None:
    xyz_m = sheet(20)
    *_, evidence = decode(encode(xyz_m, evidence_of(np.zeros(400)), DEFAULT), DEFAULT)
    assert not evidence.any()
    found = refine(xyz_m, np.zeros(400, np.uint8), n_classes=16)
    assert not found.labels.any() and not found.score.any() and not found.changed.any()


def test_moving_scaling_and_renaming_change_nothing() -> None:
    xyz_m, truth = street(1)
    xyz_m = np.round(xyz_m[::6] * 256) / 256  # so that sums and products below are exact in float32
    labels = spoilt(truth[::6], 0.2)
    first = refine(xyz_m, labels)
    np.testing.assert_array_equal(refine(xyz_m + np.array([64, -32, 16], np.float32), labels).labels, first.labels)
    np.testing.assert_array_equal(refine(xyz_m * 4, labels).labels, first.labels)
    names = np.concatenate([[0], np.random.default_rng(0).permutation(16) + 1])
    np.testing.assert_array_equal(refine(xyz_m, names[labels]).labels, names[first.labels])


def test_the_order_of_a_whole_sweep_changes_nothing() -> None:
    xyz_m, truth = street(2)
    labels = spoilt(truth, 0.1)
    order = np.random.default_rng(0).permutation(len(labels))
    same(refine(xyz_m[order], labels[order], **NUSCENES), refine(xyz_m, labels, **NUSCENES), order)


@pytest.mark.parametrize("config", [PARITY, DEFAULT])
def test_stray_labels_on_a_sheet_are_repaired_and_nothing_else_changes(config: FlatInteractionConfig) -> None:
    labels = np.full(2500, 1)
    stray = np.random.default_rng(0).choice(2500, 25, replace=False)
    labels[stray] = 2
    found = refine(sheet(), labels, config)
    np.testing.assert_array_equal(np.flatnonzero(found.changed), np.sort(stray))
    assert set(found.labels.tolist()) == {1}


@pytest.mark.parametrize("config", [PARITY, DEFAULT])
def test_two_sheets_one_above_the_other_keep_their_labels(config: FlatInteractionConfig) -> None:
    xyz_m = np.concatenate([sheet(), sheet(seed=1) + np.array([0, 0, 3], np.float32)])
    assert not refine(xyz_m, np.repeat([1, 2], 2500), config).changed.any()


def corner() -> tuple[Any, Any]:
    """A floor (1) that ends at a wall (2), both 15 m by 15 m."""
    floor, wall = sheet(), sheet(seed=1)[:, [2, 1, 0]] + np.array([-0.3, 0, 0.3], np.float32)
    return np.concatenate([floor, wall]), np.repeat([1, 2], 2500)


@pytest.mark.parametrize("config", [PARITY, DEFAULT])
def test_a_floor_and_a_wall_keep_their_labels(config: FlatInteractionConfig) -> None:
    xyz_m, labels = corner()
    found = refine(xyz_m, labels, config)
    assert (found.labels == labels)[:2500].mean() >= 0.99 and (found.labels == labels)[2500:].mean() >= 0.99


@pytest.mark.parametrize("config", [PARITY, ANYWHERE])
def test_a_floor_is_continued_to_the_wall_better_than_by_the_nearest_label(config: FlatInteractionConfig) -> None:
    xyz_m, labels = corner()
    strip = (labels == 1) & (xyz_m[:, 0] < 2.0)
    labels = np.where(strip, 0, labels)
    found = refine(xyz_m, labels, config)
    known = labels > 0
    away = ((xyz_m[strip][:, None] - xyz_m[known]) ** 2).sum(axis=2)
    nearest = labels[known][away.argmin(axis=1)]
    assert (found.labels[strip] == 1).mean() > (nearest == 1).mean()


def spoilt(truth: Any, share: float) -> Any:
    rng = np.random.default_rng(7)
    wrong = rng.random(len(truth)) < share
    labels = truth.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, 16, wrong.sum()) - 1) % 16 + 1
    return labels


@pytest.mark.parametrize("config", [PARITY, DEFAULT])
@pytest.mark.parametrize(("share", "points"), [(0.1, 2), (0.2, 8), (0.3, 12)])
def test_random_errors_become_fewer(config: FlatInteractionConfig, share: float, points: float) -> None:
    xyz_m, truth = street(0)
    labels = spoilt(truth, share)
    found = refine(xyz_m, labels, config, **NUSCENES)
    assert 100 * ((found.labels == truth).mean() - (labels == truth).mean()) >= points


@pytest.mark.parametrize(("config", "points"), [(PARITY, 5), (DEFAULT, 0.5)])
def test_correct_labels_lose_little(config: FlatInteractionConfig, points: float) -> None:
    xyz_m, truth = street(0)
    assert 100 * refine(xyz_m, truth, config, **NUSCENES).changed.mean() <= points


def test_every_point_without_a_label_gets_one_where_evidence_may_come_from_anywhere() -> None:
    xyz_m, truth = street(0)
    hidden = np.abs(np.arctan2(xyz_m[:, 1], xyz_m[:, 0])) < 0.3
    found = refine(xyz_m, np.where(hidden, 0, truth), ANYWHERE, **NUSCENES)
    assert found.labels.all() and found.changed[hidden].all()
    assert (found.labels == truth)[hidden].mean() > 0.7


def test_the_gate_keeps_a_label_that_its_neighbours_share_and_drops_one_that_none_does() -> None:
    xyz_m = sheet()
    labels = np.full(2500, 1)
    patch = np.linalg.norm(xyz_m[:, :2] - 7, axis=1) < 1.2
    labels[patch] = 2
    stray = int(np.flatnonzero(~patch)[0])
    labels[stray] = 3
    found = refine(xyz_m, labels, FlatInteractionConfig(island_points=0))
    assert np.flatnonzero(found.changed).tolist() == [stray]
    open_gate = refine(xyz_m, labels, FlatInteractionConfig(max_support=1.0, agreement=0.0, island_points=0))
    assert (open_gate.changed & patch).any()


def test_a_patch_amid_a_plane_is_an_island_and_one_at_its_edge_or_raised_or_large_is_not() -> None:
    xyz_m = sheet()

    def changed(middle_m: float, raised_m: float = 0.0, **settings: Any) -> tuple[int, int]:
        points, labels = xyz_m.copy(), np.full(2500, 1)
        patch = np.linalg.norm(points[:, :2] - middle_m, axis=1) < 1.2
        labels[patch] = 2
        points[patch, 2] += raised_m
        found = refine(points, labels, FlatInteractionConfig(**settings))
        return int(patch.sum()), int((found.changed & patch & (found.labels == 1)).sum())

    n_points, n_changed = changed(7.0)
    assert n_points == n_changed > 40
    assert changed(7.0, island_points=n_points - 1)[1] == 0, "too large"
    assert changed(7.0, raised_m=0.5)[1] == 0, "a box"
    assert changed(0.0)[1] == 0, "no border on two sides"


@pytest.mark.parametrize(
    ("labels", "place_m", "free"),
    [
        ([1, 1, 1, 2, 1, 1, 1], 3.0, True),
        ([1, 1, 1, 2, 1, 1, 2], 3.0, False),  # one of six shares its label: more than a tenth
        ([0, 1, 3, 2, 3, 1, 1], 3.0, False),  # no more than half of the four nearest bear the winner
        ([1, 1, 1, 2, 0, 0, 1], 3.0, True),  # points without a label do not count
        ([1, 1, 1, 2, 1, 1, 1], 9.0, False),  # it stands apart
    ],
)
def test_a_label_is_given_up_where_few_share_it_most_near_ones_do_not_and_the_point_is_among_them(
    labels: list[int], place_m: float, free: bool
) -> None:
    """Points in a row, 1 m from each other; the one in the middle may lie aside."""
    xyz_m = np.array([[x, 0, 0] for x in range(7)], np.float32)
    xyz_m[3] = place_m, 0, 0
    winner, point = np.ones(7, np.int64), np.array([3])
    config = FlatInteractionConfig(support_neighbours=6, agreement_neighbours=4)
    assert replaceable(xyz_m, np.array(labels, np.uint8), winner, point, cKDTree(xyz_m), config).tolist() == [free]


def test_a_point_to_which_no_surface_leads_takes_the_nearest_label() -> None:
    xyz_m = np.concatenate([sheet(), np.array([[3, 7, 4]], np.float32)])
    labels = np.where(np.arange(2501) == 2500, 0, np.where(xyz_m[:, 0] < 4, 1, 2))
    assert refine(xyz_m, labels, ANYWHERE).labels[2500] == 1
    nearest_away = np.where(labels == 1, 3, labels)
    assert refine(xyz_m, nearest_away, ANYWHERE).labels[2500] == 3


def test_the_foot_of_a_thing_in_the_ring_keeps_its_label_and_bare_ground_does_not() -> None:
    ground = sheet(60, 0.2) - np.array([6, 6, 1.84], np.float32)
    fence = np.stack(np.meshgrid([3.0], np.arange(-2, 2, 0.1), np.arange(-1.84, -0.6, 0.1)), axis=-1).reshape(-1, 3)
    xyz_m = np.concatenate([ground, fence]).astype(np.float32)
    labels = np.repeat([1, 3], [len(ground), len(fence)])
    stray = int(np.linalg.norm(ground[:, :2] - [-3, 0], axis=1).argmin())
    labels[stray] = 3
    place: dict[str, Any] = {"n_classes": 3, "ground_classes": (1,), "sensor_height_m": 1.84}
    assert np.flatnonzero(refine(xyz_m, labels, **place).changed).tolist() == [stray]
    blunt = refine(xyz_m, labels, FlatInteractionConfig(standing_radius_m=0.0), **place)
    assert (blunt.changed & (np.arange(len(labels)) >= len(ground))).any()


@pytest.mark.parametrize("config", [PARITY, DEFAULT, FlatInteractionConfig(ring="all")])
def test_points_of_the_ring_end_in_a_ground_class_or_none(config: FlatInteractionConfig) -> None:
    xyz_m, truth = street(0)
    labels = spoilt(truth, 0.3)
    order = np.arange(len(labels)) if config is PARITY else order_of_content(xyz_m, labels)
    ring, notes = ego_ring(xyz_m[order], config, (11, 12, 13, 14), 1.84)
    assert len(ring) > 1000 and not notes
    ended = refine(xyz_m, labels, config, **NUSCENES).labels[order][ring]
    assert set(ended.tolist()) <= {0, 11, 12, 13, 14}


def test_a_ground_label_in_the_ring_stays_unless_the_whole_ring_is_to_be_filled() -> None:
    xyz_m = sheet() - np.array([7.5, 7.5, 1.84], np.float32)
    labels = np.where(np.linalg.norm(xyz_m[:, :2], axis=1) < 6, 1, 2)
    place: dict[str, Any] = {"n_classes": 3, "ground_classes": (1, 2), "sensor_height_m": 1.84}
    assert not refine(xyz_m, labels, **place).changed.any()
    assert refine(xyz_m, labels, FlatInteractionConfig(ring="all"), **place).changed.any()
    wrong = np.where(labels == 1, 3, labels)
    ended = refine(xyz_m, wrong, **place)
    ring, _ = ego_ring(xyz_m, DEFAULT, (1, 2), 1.84)
    assert not np.isin(ended.labels[ring], 3).any()
    assert not refine(xyz_m, wrong, FlatInteractionConfig(ring="off"), **place).changed.any()


@pytest.mark.parametrize(
    ("place", "note"),
    [
        ({}, "ego ring skipped: the height of the sensor was not given"),
        ({"sensor_height_m": 1.84}, "ego ring skipped: which classes are ground was not given"),
        ({"sensor_height_m": 9.0, "ground_classes": (1,)}, "ego ring skipped: 0 points lie in it, 10 are needed"),
    ],
)
def test_a_ring_that_cannot_be_used_is_skipped_with_a_note(place: dict[str, Any], note: str) -> None:
    assert refine(sheet(), np.ones(2500, np.uint8), **place).notes == (note,)


def test_a_sweep_takes_less_than_three_hundred_megabytes() -> None:
    xyz_m, truth = street(0)
    refine(xyz_m[:2000], truth[:2000], **NUSCENES)  # imports what it needs
    tracemalloc.start()
    refine(xyz_m, truth, **NUSCENES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6


def test_missing_returns_at_one_place_cost_little_and_change_nothing_elsewhere() -> None:
    """20,000 of them took the square of that: each is a nearest neighbour of all others."""
    rng = np.random.default_rng(5)
    xyz = np.column_stack([rng.uniform(-20, 20, (2000, 2)), rng.normal(0, 0.02, 2000)]).astype(np.float32)
    label = np.where(xyz[:, 0] > 0, 1, 2).astype(np.uint8)
    label[rng.random(2000) < 0.3] = 0
    alone = refine(xyz, label, n_classes=2)
    missing = np.zeros((20_000, 3), np.float32)
    missing[::2] *= -1  # there are two zeros
    where = rng.permutation(22_000)
    both, labels = np.concatenate([xyz, missing])[where], np.concatenate([label, np.full(20_000, 2, np.uint8)])[where]
    started = time.process_time()
    found = refine(both, labels, n_classes=2)
    assert time.process_time() - started < 10
    back = np.argsort(where)
    for name in ("labels", "score", "changed"):
        np.testing.assert_array_equal(getattr(found, name)[back][:2000], getattr(alone, name))
    assert (found.labels[back][2000:] == 2).all() and not found.changed[back][2000:].any()
    assert (alone.changed).any()


def test_a_hundred_returns_at_one_place_take_part_as_ever() -> None:
    xyz = np.zeros((101, 3), np.float32)
    assert not in_piles(xyz[:100]).any() and in_piles(xyz).all()
    xyz[0] = 1
    assert not in_piles(xyz).any()
