"""The parts of the pictures that can be checked by eye on a few pixels and points."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from manifests.ontology import Ontology, load_ontology
from pipeline.frame import Frame
from pipeline.look.depth import FAR_M, NEAR_M, depth_rgb
from pipeline.look.frames import picture_name
from pipeline.look.pictures import CHANGES, VERDICTS, changes, dot, errors, panels, rgb_of, save_curves, tint


@pytest.fixture
def ontology() -> Ontology:
    return load_ontology("nuscenes")


def test_a_segment_takes_the_colour_of_its_class_and_nothing_stays_as_it_was(ontology: Ontology) -> None:
    image = np.full((4, 4, 3), 100, np.uint8)
    label_map = np.array([[0, 1], [0, 0]], np.uint16)  # half the resolution: the upper right quarter
    car = int(np.flatnonzero(ontology.class_of_prompt == ontology.class_names.index("car"))[0])
    tinted = tint(image, label_map, ontology, np.array([car], np.int32))
    expected = (0.55 * 100 + 0.45 * np.array(ontology.classes[4].rgb)).astype(np.uint8)
    assert ontology.classes[4].name == "car"
    assert (tinted[:2, 2:] == expected).all()
    assert (tinted[2:] == 100).all() and (tinted[:2, :2] == 100).all()


def test_dots_at_the_border_are_cut_off() -> None:
    picture = np.zeros((3, 3, 3), np.uint8)
    dot(picture, np.array([0, 2, -1]), np.array([0, 2, 1]), np.array([[1, 1, 1], [2, 2, 2], [3, 3, 3]], np.uint8))
    assert picture[..., 0].tolist() == [[1, 3, 3], [1, 1, 0], [0, 0, 2]]


def test_near_is_red_far_is_blue_and_equal_factors_are_equal_steps() -> None:
    near, middle, far, beyond = depth_rgb(np.array([NEAR_M, np.sqrt(NEAR_M * FAR_M), FAR_M, 500.0]))
    assert near.argmax() == 0 and middle.argmax() == 1 and far.argmax() == 2 and (far == beyond).all()


def test_no_two_frames_have_a_picture_of_one_name() -> None:
    frames = [("a", "a/b_c"), ("a_b", "a_b/c"), ("a", "a/b/c"), ("a", "b.c"), ("a", "b c")]

    def frame(scene: str, name: str) -> Frame:
        return Frame(name, scene, 0, "", "", None, np.eye(4), np.eye(4), ())

    names = {picture_name(frame(*one), kind) for one in frames for kind in ("labels", "depth")}
    assert len(names) == 2 * len(frames) and all(name.count("/") == 1 for name in names)


def test_an_error_map_tells_right_wrong_and_no_answer_apart_where_there_is_truth() -> None:
    panel = errors(np.array([1, 2, 0, 3], np.uint8), np.array([1, 1, 1, 0], np.uint8), "Errors")
    assert panel.shown.tolist() == [True, True, True, False]
    assert [tuple(rgb) for rgb in panel.rgb[:3]] == [rgb_of(colour) for colour in VERDICTS.values()]
    assert panel.about == "33% right, 33% wrong, 33% no answer"


def test_a_map_of_changes_says_what_became_of_labels_or_which_they_are(ontology: Ontology) -> None:
    before, after = (np.array(some, np.uint8) for some in ([0, 1, 2, 3, 4, 0], [1, 2, 1, 3, 5, 5]))
    truth = np.array([1, 1, 1, 1, 6, 0], np.uint8)
    panel = changes(before, after, truth, "Changed", ontology)
    right, wrong, still = (rgb_of(colour) for colour in CHANGES.values())
    assert panel.shown.tolist() == [True, True, True, False, True, False]
    assert [tuple(rgb) for rgb in panel.rgb[[0, 1, 2, 4]]] == [right, wrong, right, still]
    assert panel.about == (
        "2 points that had no label got one, 3 labels were replaced, 2 made right, 1 made wrong, 1 still wrong"
    )
    blind = changes(before, after, None, "Changed", ontology)
    assert blind.shown.tolist() == [True, True, True, False, True, True]
    assert (blind.rgb == ontology.rgb_of_class[after] / 255).all()
    assert blind.about == "2 points that had no label got one, 3 labels were replaced"


def test_without_any_truth_an_error_map_says_so() -> None:
    assert errors(np.ones(3, np.uint8), np.zeros(3, np.uint8), "Errors").about == "nothing to compare with"


@pytest.mark.parametrize(
    ("tables", "titles"),
    [
        (("target",), ["Pseudo-labels"]),
        (("target", "predict"), ["Pseudo-labels", "Predictions", "Predictions against pseudo-labels"]),
        (("target", "label"), ["Pseudo-labels", "Truth", "Errors of the pseudo-labels"]),
        (("label", "predict", "target"), ["Pseudo-labels", "Predictions", "Truth", "Errors of the predictions"]),
    ],
)
def test_what_is_shown_from_above_depends_on_what_there_is(
    ontology: Ontology, tables: tuple[str, ...], titles: list[str]
) -> None:
    rows = {name: np.array([1, 2, 0], np.uint8) for name in tables}
    assert [panel.title for panel in panels(rows, ontology)] == titles


def test_curves_are_a_picture_of_their_own_and_the_same_every_time(tmp_path: Path) -> None:
    curves = {"total": [(1.0, 3.0), (2.0, 2.0)], r"a<b & $\wrong$": [(1.0, 1.0), (2.0, 0.5)]}
    for name in ("a.svg", "b.svg"):
        save_curves(tmp_path / name, curves, "loss", [(0.5, 4.0), (1.5, 2.2)])
    content = (tmp_path / "a.svg").read_bytes()
    assert content == (tmp_path / "b.svg").read_bytes()
    assert ElementTree.fromstring(content).tag.endswith("svg")
    assert b"http" not in content.replace(b"http://www.w3.org", b"")  # names of XML, fetched by nobody
