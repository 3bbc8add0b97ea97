"""What each kind of noise does to a small map, and that at strength 0 it does nothing."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from pipeline.teachers.noise import (
    NOTHING,
    chances,
    confuse,
    find_borders,
    find_regions,
    generator,
    jitter,
    noisy_scores,
    noisy_vectors,
    scatter,
    share_table,
    shift_boundaries,
    smooth_field,
    swallow,
)

CLASS_MAPS = nps.arrays(np.int16, nps.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(-1, 3))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def two_halves(height: int = 200, width: int = 400) -> npt.NDArray[Any]:
    """Class 0 on the left and class 1 on the right."""
    return np.repeat((np.arange(width) >= width // 2).astype(np.int16)[None], height, axis=0)


def boundary_px(class_map: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Where each row of two halves changes class, as a distance to the middle, px."""
    return np.asarray((class_map == 0).sum(axis=1) - class_map.shape[1] / 2)


# -- where things are


def test_a_generator_depends_on_seed_token_and_kind_only() -> None:
    drawn = {generator(*key).random() for key in ((0, "a", "x"), (1, "a", "x"), (0, "b", "x"), (0, "a", "y"))}
    assert len(drawn) == 4
    assert generator(0, "a", "x").random() in drawn


def test_a_smooth_field_is_standard_normal_in_every_pixel_and_smooth() -> None:
    fields = np.stack([smooth_field(rng(seed), 30, 40, 10.0) for seed in range(2000)])
    assert fields.dtype == np.float32
    np.testing.assert_allclose(fields.mean(axis=0), 0, atol=0.12)
    np.testing.assert_allclose(fields.std(axis=0), 1, atol=0.1)
    for distance in (1, 10, 20):
        correlation = (fields[:, 15, 5] * fields[:, 15, 5 + distance]).mean()
        assert correlation == pytest.approx(np.exp(-((distance / 20) ** 2)), abs=0.08)


def test_boundaries_move_by_as_much_as_asked_and_in_waves() -> None:
    moved = [
        boundary_px(shift_boundaries(two_halves(), rng(seed), boundary_shift_px=4.0, boundary_length_px=30.0))
        for seed in range(40)
    ]
    assert np.std(moved) == pytest.approx(4.0, rel=0.15)
    assert abs(np.mean(moved)) < 1.0
    assert np.abs(np.diff(moved, axis=1)).mean() < 0.3  # neighbouring rows move together


def test_a_shift_invents_no_class_and_moves_boundaries_only() -> None:
    before = two_halves()
    after = shift_boundaries(before, rng(), boundary_shift_px=4.0, boundary_length_px=30.0)
    assert set(np.unique(after)) == {0, 1}
    np.testing.assert_array_equal(after[:, :175], 0)
    np.testing.assert_array_equal(after[:, 225:], 1)


def test_where_places_decide_a_boundary_is_as_far_away_as_they_say() -> None:
    before = two_halves()
    asked: dict[str, Any] = {"boundary_shift_px": 4.0, "boundary_length_px": 30.0}
    usual = boundary_px(shift_boundaries(before, rng(), **asked))
    of_place = np.stack([np.zeros(before.shape), np.full(before.shape, 2.5)]).astype(np.float32)
    moved = boundary_px(shift_boundaries(before, rng(), of_place=of_place, place_share=1.0, **asked))
    assert set(moved - boundary_px(before)) == {-10}, "every pixel shows what is 2.5 x 4 px to its right"
    of_place[:, 100:] = np.nan  # no place is known there
    moved = boundary_px(shift_boundaries(before, rng(), of_place=of_place, place_share=1.0, **asked))
    np.testing.assert_array_equal(moved[:90] - boundary_px(before)[:90], -10)
    np.testing.assert_array_equal(moved[110:], usual[110:])
    half = boundary_px(shift_boundaries(before, rng(), of_place=of_place, place_share=0.5, **asked))
    wanted = -10 * np.sqrt(0.5) + np.sqrt(0.5) * (usual - boundary_px(before))
    np.testing.assert_allclose((half - boundary_px(before))[:90], wanted[:90], atol=1.6)
    np.testing.assert_array_equal(half[110:], usual[110:])


def test_jitter_moves_the_map_as_a_whole() -> None:
    shifts = []
    for seed in range(300):
        moved = boundary_px(jitter(two_halves(), rng(seed), jitter_px=5.0, jitter_deg=0.0))
        assert len(set(moved)) == 1
        shifts.append(moved[0])
    assert np.std(shifts) == pytest.approx(5.0, rel=0.15)


def test_jitter_turns_about_the_centre() -> None:
    slopes = []
    for seed in range(300):
        moved = boundary_px(jitter(two_halves(), rng(seed), jitter_px=0.0, jitter_deg=3.0))
        assert abs(moved[100]) <= 1
        slopes.append(np.rad2deg(np.arctan((moved[-1] - moved[0]) / 199)))
    assert np.std(slopes) == pytest.approx(3.0, rel=0.15)


@given(CLASS_MAPS)
def test_strength_0_moves_nothing(class_map: npt.NDArray[Any]) -> None:
    np.testing.assert_array_equal(jitter(class_map, rng(), jitter_px=0, jitter_deg=0), class_map)
    same = shift_boundaries(class_map, rng(), boundary_shift_px=0, boundary_length_px=30)
    np.testing.assert_array_equal(same, class_map)


# -- what is judged as one

THING = np.array([False, False, True, True])


@given(CLASS_MAPS, st.sampled_from([0.0, 8.0]))
def test_regions_share_out_everything_that_has_a_class(class_map: npt.NDArray[Any], patch_px: float) -> None:
    regions = find_regions(class_map, THING, rng(), patch_px=patch_px)
    np.testing.assert_array_equal(regions.region_map > 0, class_map != NOTHING)
    np.testing.assert_array_equal(np.append(NOTHING, regions.class_id)[regions.region_map], class_map)
    np.testing.assert_array_equal(np.bincount(regions.region_map.ravel())[1:], regions.area_px)


def test_a_region_is_a_connected_piece_of_one_class() -> None:
    class_map = np.array([[2, 0, 2], [2, 0, -1], [0, 0, 3]], np.int16)
    regions = find_regions(class_map, THING, rng(), patch_px=0)
    assert regions.region_map.tolist() == [[1, 2, 3], [1, 2, 0], [2, 2, 4]]
    assert regions.class_id.tolist() == [2, 0, 2, 3]
    assert regions.area_px.tolist() == [2, 4, 1, 1]


def test_what_cannot_be_counted_falls_into_patches_and_things_stay_whole() -> None:
    class_map = np.zeros((100, 200), np.int16)
    class_map[:, 100:] = 2
    regions = find_regions(class_map, THING, rng(), patch_px=20.0)
    assert (regions.class_id == 2).sum() == 1
    patches = regions.area_px[regions.class_id == 0]
    assert 20 <= (patches > 50).sum() <= 45  # 25 squares of 20 x 20 pixels, cut at the sides, with wavy borders
    assert patches.max() < 1600


def test_borders_count_touching_pixels_from_both_sides() -> None:
    class_map = np.array([[0, 0, 1], [0, 0, 1], [2, -1, 1]], np.int16)
    borders = find_borders(find_regions(class_map, THING, rng(), patch_px=0))
    found = list(zip(borders.region, borders.neighbour, borders.length_px, strict=True))
    assert found == [(1, 2, 2), (1, 3, 1), (2, 1, 2), (3, 1, 1)]


ISLANDS = np.zeros((60, 60), np.int16)
ISLANDS[::10, ::10] = 2  # 36 things of one pixel
ISLANDS[3:9, 3:9] = 3  # and one of 36 pixels


def swallowed(seed: int = 0, **strengths: float) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Class and area of the regions of the map above that something swallowed."""
    regions = find_regions(ISLANDS, THING, rng(), patch_px=0)
    taker = swallow(
        regions, rng(seed).random((2, len(regions))), **{"drop": 0.0, "drop_area_px": 10.0, "merge": 0.0, **strengths}
    )
    gone = taker != np.arange(len(regions))
    np.testing.assert_array_equal(regions.class_id[taker[gone]], 0)  # all that surrounds them
    return regions.class_id[gone], regions.area_px[gone]


def test_small_things_are_dropped_more_often_than_large_ones() -> None:
    lost = [swallowed(seed, drop=0.5)[1] for seed in range(200)]
    small, large = (sum((area == size).sum() for area in lost) for size in (1, 36))
    assert small / (200 * 36) == pytest.approx(0.5 * np.exp(-1 / 10), abs=0.02)
    assert large / 200 == pytest.approx(0.5 * np.exp(-36 / 10), abs=0.02)


def test_merging_takes_small_into_large_whatever_the_size() -> None:
    areas = np.concatenate([swallowed(seed, merge=0.3)[1] for seed in range(200)])
    for size, n, tolerance in ((1, 36, 0.02), (36, 1, 0.1)):
        assert (areas == size).sum() / (200 * n) == pytest.approx(0.3, abs=tolerance)
    assert set(areas) == {1, 36}  # what is largest has no larger neighbour


def all_dropped(class_map: list[list[int]]) -> list[int]:
    regions = find_regions(np.array(class_map, np.int16), THING, rng(), patch_px=0)
    return [*map(int, swallow(regions, rng().random((2, len(regions))), drop=1.0, drop_area_px=1e9, merge=0.0))]


def test_the_longest_border_takes_what_is_dropped() -> None:
    assert all_dropped([[1, 1, 1, 0, 0], [1, 2, 1, 0, 0], [0, 0, 0, 0, 0]]) == [1, 1, 1]


def test_one_that_is_swallowed_passes_on_what_it_swallowed() -> None:
    assert all_dropped([[2, 0, 0, 1, 1, 1]]) == [2, 2, 2]


def test_only_larger_neighbours_swallow() -> None:
    assert all_dropped([[0, 0, 2, 2]]) == [0, 1]
    assert all_dropped([[0, -1, 2, 2]]) == [0, 1]


def test_patches_of_one_class_do_not_merge() -> None:
    regions = find_regions(np.zeros((60, 60), np.int16), THING, rng(), patch_px=20)
    assert len(regions) > 4
    assert swallow(regions, rng().random((2, len(regions))), drop=0, drop_area_px=1, merge=1.0).tolist() == list(
        range(len(regions))
    )


def test_a_stronger_setting_keeps_the_faults_of_a_weaker_one() -> None:
    for names in ("drop", "merge"):
        weak, strong = (swallowed(drop_area_px=1e9, **dict[str, Any]({names: p}))[0] for p in (0.2, 0.6))
        assert 0 < len(weak) < len(strong)
    assert len(swallowed()[0]) == 0


def test_the_share_that_lasts_is_decided_alike_in_every_image() -> None:
    place = np.arange(1, 5001)
    first, second = (chances(place, rng(image), rng(99), rows=2, persistence=0.6) for image in (1, 2))
    lasts = (first == second).all(axis=0)
    assert lasts.mean() == pytest.approx(0.6, abs=0.03)
    assert (first == second).any(axis=0).sum() == lasts.sum()  # all decisions about a place last, or none does
    for chance in (first, second):
        assert chance.mean() == pytest.approx(0.5, abs=0.02)
    np.testing.assert_array_equal(chances(place, rng(1), rng(99), rows=2, persistence=0.0), rng(1).random((2, 5000)))
    unknown = [chances(np.zeros(9, int), rng(image), rng(99), persistence=1.0) for image in (1, 2)]
    assert not (unknown[0] == unknown[1]).any()


def test_a_region_is_of_one_class_and_one_place() -> None:
    class_map = np.array([[2, 2, 0], [2, -1, 0]], np.int16)
    regions = find_regions(class_map, THING, rng(), patch_px=0, place_map=np.array([[5, 6, 6], [5, 6, 6]]))
    assert regions.region_map.tolist() == [[1, 2, 3], [1, 0, 3]]
    assert (regions.class_id.tolist(), regions.place.tolist()) == ([2, 2, 0], [5, 6, 6])
    assert find_regions(class_map, THING, rng(), patch_px=0).place.tolist() == [0, 0]


# -- what things are called


def test_a_class_is_taken_for_another_as_often_as_the_table_says() -> None:
    share = np.array([[0, 0.0, 0.0], [0, 0, 0.5], [0.2, 0.2, 0]])
    true = np.repeat([0, 1, 2], 20_000)
    found = confuse(true, rng().random(60_000), share, 0.5)
    matrix = np.stack([np.bincount(found[true == one], minlength=3) for one in range(3)]) / 20_000
    np.testing.assert_allclose(matrix, np.array([[1, 0, 0], [0, 0.75, 0.25], [0.1, 0.1, 0.8]]), atol=0.02)
    np.testing.assert_array_equal(confuse(true, rng().random(60_000), share, 0.0), true)


def test_a_table_of_confusions_is_checked() -> None:
    names = ("ignore", "car", "bus")
    assert share_table([("car", "bus", 0.3)], names).tolist() == [[0, 0, 0], [0, 0, 0.3], [0, 0, 0]]
    with pytest.raises(ValueError, match='confused names class "lorry"; the class dictionary has car, bus'):
        share_table([("car", "lorry", 0.3)], names)
    with pytest.raises(ValueError, match='names class "ignore"'):
        share_table([("ignore", "car", 0.3)], names)
    with pytest.raises(ValueError, match="expected two classes and 0 < share <= 1"):
        share_table([("car", "car", 0.3)], names)
    with pytest.raises(ValueError, match=r'the shares of class "car" in confused sum to 1.2 > 1'):
        share_table([("car", "bus", 0.6), ("car", "bus", 0.6)], names)


def test_choices_scatter_over_the_others_of_their_pool() -> None:
    pool_of = np.array([0, 1, 0, 0, 2])
    choice = np.repeat([2, 1, 4], 30_000)
    found = scatter(choice, pool_of, rng(), 0.6)
    np.testing.assert_array_equal(found[30_000:], choice[30_000:])  # alone in their pools
    np.testing.assert_allclose(np.bincount(found[:30_000]) / 30_000, [0.3, 0, 0.4, 0.3], atol=0.02)
    np.testing.assert_array_equal(scatter(choice, pool_of, rng(), 0.0), choice)


def test_noise_of_vectors_has_the_length_asked_for() -> None:
    vectors = np.zeros((4000, 32), np.float32)
    vectors[:, 3] = 1
    for strength in (0.5, 1.0):
        noisy = noisy_vectors(vectors, rng(), strength)
        assert noisy.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(noisy, axis=1), 1, atol=1e-6)
        assert noisy[:, 3].mean() == pytest.approx(1 / np.sqrt(1 + strength**2), abs=0.03)
    np.testing.assert_allclose(noisy_vectors(vectors, rng(), 0.0), vectors, atol=1e-7)


def test_a_score_is_the_share_that_is_right_and_chance() -> None:
    label_map = np.array([[1, 1, 1, 1, 2, 2, 3, 0]])
    right = np.array([[1, 1, 1, 0, 0, 0, 0, 0]], np.bool_)
    known = np.array([[1, 1, 1, 1, 1, 0, 0, 1]], np.bool_)
    assert noisy_scores(label_map, 3, right, known, rng(), 0.0).tolist() == [0.75, 0, 1]  # nothing is known of 3
    pure = noisy_scores(label_map, 3, right, known, rng(), 1.0)
    mixed = noisy_scores(label_map, 3, right, known, rng(), 0.4)
    np.testing.assert_allclose(mixed, 0.6 * np.array([0.75, 0, 1]) + 0.4 * pure)
    assert ((pure >= 0) & (pure < 1)).all()
