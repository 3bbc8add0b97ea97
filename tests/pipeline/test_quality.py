"""Counting how much is named and how far cameras agree: on a handful of points."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from manifests.ontology import Ontology, load_ontology
from manifests.tables.answers import Predict, Refine
from manifests.tables.base import Rows
from manifests.tables.labels import Label, Target, Vote
from manifests.tables.sensors import PointOfPair, Points, Project
from manifests.tables.superpoints import Group, NamedPoints
from pipeline.frame import Frame
from pipeline.look.browse import FrameRows, Place
from pipeline.look.quality import Doubt, as_ballot, label_quality, measure
from pipeline.look.worst import ranked, to_draw
from pipeline.stages.group import agreement
from tests.filled import record


@pytest.fixture
def ontology() -> Ontology:
    return load_ontology("nuscenes")


def prompt(ontology: Ontology, name: str, which: int = 0) -> int:
    """A prompt of a class; `which` counts through them."""
    return int(np.flatnonzero(ontology.class_of_prompt == ontology.class_names.index(name))[which])


def rows_of(ontology: Ontology) -> Rows:
    """Five points: 0 car twice by two prompts, 1 car and truck, 2 car once, 3 car twice and truck, 4 not seen."""
    car, coach, truck = prompt(ontology, "car"), prompt(ontology, "car", 1), prompt(ontology, "truck")
    number = ontology.class_names.index
    return Rows(
        record(Project, point=np.array([0, 1, 2, 3, 0, 1, 3, 3], np.int32)),
        record(
            Group,
            superpoint_prompt=np.array([car, coach, truck], np.int32),
            pair=np.arange(8, dtype=np.int32),
            pair_superpoint=np.array([0, 0, 0, 0, 1, 2, 1, 2], np.int32),
            label=np.zeros(5, np.uint8),
        ),
        record(
            Target,
            label=np.array([number("car"), number("truck"), number("car"), number("car"), 0], np.uint8),
            seen=np.array([True, True, True, True, False]),
        ),
    )


def test_two_prompts_of_one_class_agree_and_two_classes_do_not(ontology: Ontology) -> None:
    rows = rows_of(ontology)
    shared, agreed = agreement(rows[PointOfPair], rows[NamedPoints], ontology)
    assert shared.tolist() == [True, True, False, True, False]
    assert agreed.tolist() == [True, False, False, False, False]


def test_pairs_that_grouping_left_out_do_not_count(ontology: Ontology) -> None:
    rows = rows_of(ontology)
    pair, superpoint = np.array([0, 1, 2, 3], np.int32), np.zeros(4, np.int32)
    group = replace(rows[NamedPoints], pair=pair, pair_superpoint=superpoint)
    shared, agreed = agreement(rows[PointOfPair], group, ontology)
    assert not shared.any() and not agreed.any()


def test_counts_add_up_over_frames(ontology: Ontology) -> None:
    frame = FrameRows(None, rows_of(ontology))  # type: ignore[arg-type]
    quality = measure([frame, frame], ontology)
    car, truck = ontology.class_names.index("car"), ontology.class_names.index("truck")
    assert (quality.n_frames, quality.n_points, quality.n_seen, quality.n_labelled) == (2, 10, 8, 8)
    assert (quality.n_shared, quality.n_agreed) == (6, 2)
    assert quality.shared_of_class[[car, truck]].tolist() == [4, 2]
    assert quality.agreed_of_class[[car, truck]].tolist() == [2, 0]
    assert quality.points_of_class["target"][[0, car, truck]].tolist() == [2, 6, 2]
    assert list(quality.points_of_class) == ["target"]  # neither truth nor predictions


def test_no_frames_count_nothing(ontology: Ontology) -> None:
    assert measure([], ontology).n_points == 0


def labelled(ontology: Ontology, target: list[str], truth: list[str] | None, **tables: list[str]) -> FrameRows:
    """A frame of four points a metre apart; the last is not seen. "" is no label."""

    def numbers(names: list[str]) -> npt.NDArray[Any]:
        return np.array([ontology.class_names.index(name) if name else 0 for name in names], np.uint8)

    rows = Rows(
        record(Points, xyz_m=np.array([[5, y, 0] for y in range(4)], np.float32)),
        record(Target, label=numbers(target), seen=np.array([True, True, True, False])),
        record(Group, label=numbers(tables.pop("group", target))),
        *(record(Vote, label=numbers(names)) for names in tables.values()),
        *([record(Label, label=numbers(truth))] if truth is not None else []),
    )
    return FrameRows(Frame("f", "s", 0, "t", "p", None, np.eye(4), np.eye(4), ()), rows)


def test_tables_of_labels_are_judged_with_truth_and_over_time(ontology: Ontology) -> None:
    truth = ["car", "car", "truck", "truck"]
    first = labelled(ontology, ["car", "truck", "truck", ""], truth, vote=["car", "car", "truck", "truck"])
    second = labelled(ontology, ["car", "car", "truck", ""], truth, vote=["car", "car", "truck", "truck"])
    vote, target = label_quality([(first, second), (second, None)], ontology)
    assert (vote.table, target.table) == ("vote", "target"), "group holds what target holds"
    assert (target.n_frames, target.n_seen, target.n_unseen) == (2, 6, 2)
    assert (target.labelled_seen, target.labelled_unseen) == (6, 0)
    assert (vote.labelled_seen, vote.labelled_unseen) == (6, 2)
    assert (target.met.sum(), target.same.sum()) == (3, 2), "the second point changed its name"
    assert (vote.met.sum(), vote.same.sum()) == (4, 4)
    # target on seen points: car 4 true, 3 of them found; truck 2 true, 3 named so, 2 hits
    assert target.scores()["seen"].mean_iou == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert vote.scores()["all"].mean_iou == 1
    car, truck = (ontology.class_names.index(name) - 1 for name in ("car", "truck"))
    precision, recall = target.precision_and_recall()
    assert (precision[car], precision[truck]) == (1, pytest.approx(2 / 3))
    assert (recall[car], recall[truck]) == (pytest.approx(3 / 4), pytest.approx(2 / 4))
    assert np.isnan(precision[ontology.class_names.index("bus") - 1])
    worth = vote.worth()
    assert worth is not None and worth.curve == ((1.0, 0.0),), "all of one confidence, and all right"
    assert (worth.calibration_error, worth.augrc) == (1.0, 0.0), "which is 0 here, so it is as wrong as can be"


def test_coverage_and_agreement_need_no_truth(ontology: Ontology) -> None:
    frame = labelled(ontology, ["car", "car", "", ""], None, group=["car", "bus", "", ""])
    group, target = label_quality([(frame, frame)], ontology)
    assert group.table == "group" and (target.met.sum(), target.same.sum()) == (2, 2)
    assert target.scores() == {} and target.worth() is None


def test_no_frames_have_no_tables(ontology: Ontology) -> None:
    assert label_quality([], ontology) == []


def test_a_frame_is_compared_with_the_next_where_both_stand_in_the_world() -> None:
    here, there = np.eye(4), np.eye(4)
    here[0, 3], there[0, 3] = 10, 13
    frames = [Frame("f", "s", 0, "l", "l.bin", None, np.eye(4), pose, ()) for pose in (here, there)]
    rows = Rows(record(Points, xyz_m=np.array([[5, 0, 0]], np.float32)))
    first, second = (FrameRows(frame, rows) for frame in frames)
    label = np.array([1], np.uint8)
    # the vehicle went on by 3 m, so 5 m ahead of it is 8 m ahead of where it was
    np.testing.assert_allclose(as_ballot(second, first, label).here_from_lidar @ [5, 0, 0, 1], [8, 0, 0, 1])


def test_how_doubtful_a_frame_is_needs_no_truth(ontology: Ontology) -> None:
    rows = rows_of(ontology)
    number = ontology.class_names.index
    said = np.array([number("car"), number("car"), number("truck"), number("car"), number("car")], np.uint8)
    sure = np.array([255, 255, 51, 255, 204], np.uint8)
    target = replace(rows[Target], confidence=np.array([255, 0, 255, 0, 0], np.uint8))
    named = [rows[PointOfPair], rows[NamedPoints]]
    taught, student = FrameRows(None, Rows(*named, target)), record(Predict, label=said, confidence=sure)  # type: ignore[arg-type]
    predicted = FrameRows(None, Rows(*named, target, student))  # type: ignore[arg-type]
    origin = np.array([4, 2, 3, 4, 0], np.uint8)
    best = record(Refine, label=said, confidence=np.full(5, 255, np.uint8), origin=origin)
    better = FrameRows(None, Rows(*named, target, student, best))  # type: ignore[arg-type]
    quality = measure([taught, predicted, better], ontology)
    alone, learnt, refined = quality.doubts
    assert alone.cameras == 2 / 3 and alone.student is None and alone.changed is None and alone.unsure == 0.6
    assert alone.total == pytest.approx((2 / 3 + 0.6) / 2)
    assert learnt.student == 0.5, "of four points that both name, two"
    assert learnt.unsure == pytest.approx(1 - (3 + 0.2 + 0.8) / 5)
    assert refined.changed == 0.4 and refined.unsure == 0
    car = number("car")
    assert (quality.taught_of_class[car], quality.as_taught_of_class[car]) == (6, 4)


def test_the_worst_frames_come_first_not_two_of_one_place_and_usual_ones_follow() -> None:
    places = [Place(f"scene-{shard}", row) for shard in "ab" for row in range(8)]
    doubts = [Doubt(unsure=0.1) for _ in places]
    doubts[2], doubts[3], doubts[12] = Doubt(unsure=0.9), Doubt(unsure=0.8), Doubt(cameras=0.6, unsure=0.8)
    found = ranked(places, doubts)
    assert [one.place.row for one in found[:3]] == [2, 3, 4] and [one.rank for one in found] == list(range(1, 17))
    drawn = to_draw(found, [places[0], places[15]], 4)
    assert [(one.place, one.rank) for one in drawn[:2]] == [(places[2], 1), (places[12], 3)]
    assert {one.place for one in drawn[2:]} == {places[0], places[15]}
    assert [one.place for one in to_draw(found, [places[2]], 1)] == [places[2]]
    assert len(to_draw(found[:1], [found[0].place], 4)) == 1
    assert drawn[1].about == "cameras disagree on 60.0 % of what several name, 80.0 % unsure on average"
    assert drawn[1].scene == "scene-b"
