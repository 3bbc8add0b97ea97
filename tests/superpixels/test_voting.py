"""Labels put to the vote over time: who is heard, who is not, and what comes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superpixels.evidence import gains
from superpixels.places import RangeImage
from superpixels.reach import asked_among
from superpixels.voting import Ballot, VotingConfig, seen_twice, vote

CAR, WALL = 1, 2
HERE = np.eye(4)
PLAIN = VotingConfig(range_half_m=1e9, time_half_s=1e9, prior=0.0)


def ballot(xyz_m: Any, label: Any, weight: float = 1.0, here_from_lidar: Any = HERE, ago_s: float = 0.0) -> Ballot:
    points = np.asarray(xyz_m, np.float32).reshape(-1, 3)
    labels = np.full(len(points), label, np.uint8) if np.isscalar(label) else np.asarray(label, np.uint8)
    return Ballot(points, labels, np.full(len(points), weight), here_from_lidar, ago_s)


def wall(x_m: float, n: int = 21) -> Any:
    """A wall across the view at a distance, points half a metre apart."""
    y, z = np.meshgrid(np.linspace(-5, 5, n), np.linspace(-1, 1, 5))
    return np.stack([np.full(y.size, x_m), y.ravel(), z.ravel()], axis=1)


def test_a_wrong_name_is_outvoted_by_other_sweeps() -> None:
    own = ballot(wall(8), np.where(np.arange(105) == 50, CAR, WALL))
    voted = vote(own, [ballot(wall(8), WALL)] * 3, 2, PLAIN)
    assert voted.label.tolist() == [WALL] * 105
    assert np.flatnonzero(voted.changed).tolist() == [50]
    # three others against the own label, which counts once in its voxel and once more for itself
    assert voted.confidence[50] == pytest.approx(3 / 5)
    assert voted.confidence[0] == pytest.approx(1)


def test_two_to_two_keeps_the_label() -> None:
    voted = vote(ballot([[8, 0, 0]], CAR), [ballot([[8, 0, 0]], WALL)] * 2, 2, PLAIN)
    assert voted.label.tolist() == [CAR] and not voted.changed.any()


def test_a_vote_may_be_divided_among_several_names() -> None:
    # three sweeps lean to the wall, one is sure of the car: as single names the wall wins, as shares the car
    place = np.array([[8.0, 0, 0]], np.float32)
    names = np.array([[WALL, CAR]], np.uint8)
    leans = [Ballot(place, names, np.array([[0.5, 0.4]]), HERE)] * 3
    sure = Ballot(
        place, np.array([[CAR, 0]], np.uint8), np.array([[0.9, 0.7]]), HERE
    )  # 0 has no say, whatever it weighs
    single = [Ballot(place, names[:, 0], np.array([0.5]), HERE)] * 3
    assert vote(ballot(place, 0), [*single, ballot(place, CAR, 0.9)], 2, PLAIN).label.tolist() == [WALL]
    voted = vote(ballot(place, 0), [*leans, sure], 2, PLAIN)
    assert voted.label.tolist() == [CAR] and voted.confidence[0] == pytest.approx(2.1 / 3.6)
    # what a point says itself counts by its shares too: 0.4 in its voxel and as much again
    own = vote(leans[0], [sure], 2, PLAIN)
    assert own.label.tolist() == [CAR] and own.changed.tolist() == [True]
    assert own.confidence[0] == pytest.approx((0.4 + 0.9 + 0.4) / (0.9 + 0.9 + 0.9))
    once, twice = (seen_twice(one, sure, 2) for one in (Ballot(place, names[:, 0], np.ones(1), HERE), leans[0]))
    assert [part.tolist() for part in once] == [part.tolist() for part in twice] == [[0, 0, 1], [0, 0, 0]]


def test_what_no_camera_saw_gets_what_others_saw_there() -> None:
    voted = vote(ballot(wall(8), 0), [ballot(wall(8), WALL)], 2, PLAIN)
    assert (voted.label == WALL).all() and voted.changed.all()
    alone = vote(ballot(wall(8), 0), [], 2, PLAIN)
    assert not alone.label.any() and not alone.confidence.any() and not alone.changed.any()


def test_the_second_choice_is_next_in_the_vote() -> None:
    place = [[8, 0, 0.1], [8, 0, 0.1], [20, 0, 0.1], [30, 0, 0.1]]
    own = ballot(place, [CAR, CAR, CAR, 0], weight=0.5)
    found = vote(own, [ballot(place[:1], WALL, 0.25)], 2, PLAIN)
    # in the first voxel the car has two votes of 0.5 and what the point itself says, the wall 0.25
    assert found.label.tolist() == [CAR, CAR, CAR, 0]
    assert found.runner_up.tolist() == [WALL, WALL, 0, 0]
    of_all = 0.5 * (2 + PLAIN.own) + 0.25 + PLAIN.prior
    np.testing.assert_allclose(found.runner_up_confidence, [0.25 / of_all, 0.25 / of_all, 0, 0], rtol=1e-6)


def test_voxels_are_flat() -> None:
    # a road ends at the height where a voxel does; a wall stands on it
    road, wall_s_foot, beside = [8.1, 0.1, -1.81], [8.1, 0.1, -1.79], [8.3, 0.1, -1.85]
    other = ballot([road], CAR)
    assert vote(ballot([wall_s_foot, beside], 0), [other], 2, PLAIN).label.tolist() == [0, CAR]
    higher = replace(PLAIN, voxel_height_m=0.7)
    assert vote(ballot([wall_s_foot, beside], 0), [other], 2, higher).label.tolist() == [CAR, CAR]


def test_sweeps_are_brought_into_one_frame() -> None:
    there_from_here = np.eye(4)
    there_from_here[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]  # a quarter turn
    there_from_here[:3, 3] = [3, -2, 0.5]
    seen_there = wall(8) @ there_from_here[:3, :3].T + there_from_here[:3, 3]
    other = ballot(seen_there, WALL, here_from_lidar=np.linalg.inv(there_from_here))
    assert (vote(ballot(wall(8), 0), [other], 2, PLAIN).label == WALL).all()


def test_a_place_is_looked_through_where_all_returns_lie_beyond() -> None:
    image = RangeImage(np.array([[20.0, 0, 0], [20, 0.1, 0]]), VotingConfig(azimuth_deg=1, elevation_deg=1.5))
    place = np.array([[10.0, 0.02, 0], [19.8, 0.02, 0], [30, 0.02, 0], [0, 10, 0]])
    assert image.looks_through(place).tolist() == [True, False, False, False], "nothing returned from the last one"


def test_what_has_driven_away_does_not_smear_over_what_stands_there_now() -> None:
    # a car stood where this sweep sees a wall through; its side was in one voxel with a lamp post that still stands
    post, car = [10, 1.19, 0.1], [[10, y, 0.1] for y in (0.3, 0.6, 1.01)]
    own = ballot([*wall(20, 201), post], [*[0] * 1005, 0])
    gone = ballot(car, CAR)
    assert vote(own, [gone], 2, VotingConfig(through_m=1e9)).label[-1] == CAR, "without the test it smears"
    assert vote(own, [gone], 2, VotingConfig()).label[-1] == 0


def test_what_has_come_is_not_named_by_sweeps_that_looked_through_its_place() -> None:
    # a car has come; before, this place showed a wall behind it and one point of a hedge in the same voxel
    own = ballot([[10.0, 0.0, 0.1]], 0)
    before = ballot([*wall(20, 201), [10.05, 0.19, 0.1]], [*[0] * 1005, WALL])
    assert vote(own, [before], 2, VotingConfig(through_m=1e9)).label.tolist() == [WALL]
    assert vote(own, [before], 2, VotingConfig()).label.tolist() == [0]


def test_near_sure_and_recent_votes_count_more() -> None:
    config = VotingConfig(time_half_s=2)
    place = [[8, 0, 0]]
    assert vote(ballot(place, 0), [ballot(place, CAR, 0.9), ballot(place, WALL, 0.5)], 2, config).label[0] == CAR
    late = [ballot(place, CAR, ago_s=3.0), ballot(place, WALL, ago_s=-0.5)]
    assert vote(ballot(place, 0), late, 2, config).label[0] == WALL
    far_from_lidar = np.eye(4)
    far_from_lidar[0, 3] = -92.0  # its sensor was 92 m farther ahead
    afar = ballot([[100, 0, 0]], CAR, here_from_lidar=far_from_lidar)
    assert vote(ballot(place, 0), [afar, ballot(place, WALL)], 2, config).label[0] == WALL


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_the_order_of_points_and_of_sweeps_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sweeps = [
        Ballot(rng.uniform(-4, 4, (60, 3)).astype(np.float32), rng.integers(0, 3, 60, np.uint8), rng.random(60), HERE)
        for _ in range(3)
    ]
    once = vote(sweeps[0], sweeps[1:], 2)
    order = rng.permutation(60)
    shuffled = [Ballot(b.xyz_m[order], b.label[order], b.weight[order], HERE) for b in sweeps]
    again = vote(shuffled[0], shuffled[:0:-1], 2)
    np.testing.assert_array_equal(once.label[order], again.label)
    np.testing.assert_allclose(once.confidence[order], again.confidence, atol=1e-6)
    assert ((once.confidence > 0) == (once.label > 0)).all() and (once.confidence <= 1).all()


def test_voxels_seen_twice_are_compared_where_nothing_moved() -> None:
    here = ballot([[8, 0, 0.1], [8, 1, 0.1], [8, 2, 0.1], [8, 3, 0.1]], [CAR, CAR, WALL, 0])
    there = ballot([[8, 0, 0.1], [8, 1, 0.1], [8, 2, 0.1], [8, 3, 0.1]], [CAR, WALL, WALL, WALL])
    met, same = seen_twice(here, there, 2)
    assert met.tolist() == [0, 2, 1] and same.tolist() == [0, 1, 1]
    gone = ballot([[30, 0, 0.4], [8, 1, 0.1]], [WALL, CAR])  # looks through the place of the first point
    assert [part.tolist() for part in seen_twice(here, gone, 2)] == [[0, 1, 0], [0, 1, 0]]
    assert [part.sum() for part in seen_twice(here, ballot([], 0), 2)] == [0, 0]


def test_an_empty_sweep_is_no_trouble() -> None:
    nothing = ballot([], 0)
    assert len(vote(nothing, [], 2).label) == 0
    assert len(vote(nothing, [ballot(wall(8), WALL)], 2).label) == 0
    assert vote(ballot([[8, 0, 0]], CAR), [nothing], 2).label.tolist() == [CAR]


def test_bad_ballots_and_settings_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="not finite"):
        vote(ballot([[np.nan, 0, 0]], CAR), [], 2)
    with pytest.raises(ValueError, match=r"label 3; expected 0..2"):
        vote(ballot([[1, 0, 0]], 3), [], 2)
    with pytest.raises(ValueError, match="a ballot has shapes"):
        vote(Ballot(np.zeros((2, 3)), np.zeros(1, np.uint8), np.zeros(2), HERE), [], 2)
    with pytest.raises(ValueError, match="a ballot has shapes"):
        vote(Ballot(np.zeros((2, 3)), np.zeros((2, 0), np.uint8), np.zeros((2, 0)), HERE), [], 2)
    for wrong in ({"reach": -1}, {"voxel_m": 0}, {"disputed": 1.5}, {"prior": -0.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            VotingConfig(**wrong)


def test_a_label_that_nobody_vouches_for_has_no_confidence() -> None:
    found = vote(ballot([[5, 0, 0]], CAR, weight=0.0), [], 2, PLAIN)
    assert (found.label.tolist(), found.confidence.tolist()) == ([CAR], [0.0])


def test_a_reach_in_seconds_is_as_many_sweeps_spread_over_that_time() -> None:
    ago_s = [step / 20 for step in range(64, -65, -1) if step]  # 20 Hz, in order of time
    heard = [ago_s[number] for number in asked_among(ago_s, VotingConfig(reach=4, reach_s=2.0))]
    assert heard == [2.0, 1.5, 1.0, 0.5, -0.5, -1.0, -1.5, -2.0]
    assert asked_among([0.5, -0.5, -1.0], VotingConfig(reach=4, reach_s=2.0)) == [0, 1, 2], "fewer are all heard"
    assert asked_among([9.0, 0.5, -7.0], VotingConfig(reach=4, reach_s=2.0)) == [1]
    last = ago_s[54:64]  # half a second
    short = [last[number] for number in asked_among(last, VotingConfig(reach=2, reach_s=2.0))]
    assert short == [0.5, 0.25], "where a scene begins, over what there is of it"


def test_evidence_is_how_many_times_likelier_a_class_is_than_one_that_is_not_named() -> None:
    found = gains(np.array([[0.6, 0.2], [0.0, 0.0], [0.9, 0.3], [0.1, 0.0]]), 4)
    # 0.2 is left for two others; nothing is said; 1 % at least is left; a name that is less likely than the others
    expected = [[np.log(6), np.log(2)], [0, 0], [np.log(0.9 / 0.005), np.log(0.3 / 0.005)], [0, 0]]
    np.testing.assert_allclose(found, expected)
