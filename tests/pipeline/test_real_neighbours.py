"""Vote, flat interaction and the quality of labels on real frames of two other rigs than nuScenes'.

SemanticKITTI has one camera, true labels and no vehicle frame; TRI's car has six cameras, its sweep looks along x, and
nobody labelled it. The teachers are simulated or random: what is tested is time and space, not what things are called.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from manifests.recipe import Recipe, load_recipe
from manifests.storage.store import Store
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.runner import Runner
from pipeline.look.browse import Browser, FrameRows
from pipeline.look.quality import LabelQuality, label_quality, measure
from pipeline.look.report import write_report
from tests.pipeline.scenes import clip_over


def built(recipe: Recipe, *targets: str) -> Browser:
    """Build the targets, which no frame may fail, and return their tables."""
    assert Runner(recipe).run(targets, InlinePool(recipe)) == []
    return Browser.open(Store.open(recipe.run.store), recipe)


def pairs(browser: Browser, scene: str) -> list[tuple[FrameRows, FrameRows | None]]:
    """The frames of a scene, each with the next."""
    places = [place for place in browser.places() if place.shard.startswith(scene)]
    return [(browser.read(one), browser.read(after) if (after := browser.after(one)) else None) for one in places]


# -- SemanticKITTI


@pytest.fixture(scope="module")
def kitti(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Browser, Recipe]:
    """Two neighbours of 00, two of 08 and a single scan of 01, with labels after the vote and flat interaction."""
    folder = tmp_path_factory.mktemp("kitti")
    (folder / "some.txt").write_text("00\n01\n08\n")
    words = [f"data.root={shared}/data/semantickitti-real", f"data.split={folder}/some.txt"]
    words += [f"run.store={folder}/store", "run.pool=inline", "target.labels=vote+correct"]
    recipe = load_recipe("kitti_simulated", words)
    return built(recipe, "target", "label"), recipe


def quality_of(kitti: tuple[Browser, Recipe], scene: str) -> dict[str, LabelQuality]:
    browser, recipe = kitti
    found = {item.table: item for item in label_quality(pairs(browser, scene), recipe.ontology)}
    assert list(found) == ["group", "vote", "correct", "target"]
    return found


def agreement_of(item: LabelQuality) -> float:
    return float(item.same.sum() / item.met.sum())


@pytest.mark.parametrize("scene", ["00", "08"])
def test_neighbours_agree_more_after_the_vote_more_is_named_and_no_less_is_right(
    kitti: tuple[Browser, Recipe], scene: str
) -> None:
    found = quality_of(kitti, scene)
    group, vote = found["group"], found["vote"]
    assert group.n_frames == 2 and group.met.sum() > 1000, "poses bring the two scans to one place"
    assert agreement_of(vote) > agreement_of(group)
    assert vote.labelled_seen > group.labelled_seen
    assert group.labelled_unseen == 0 < vote.labelled_unseen, "the scan before saw what is behind the image now"
    before, after = group.scores(), vote.scores()
    assert after["seen"].mean_iou > before["seen"].mean_iou - 0.01
    assert after["all"].micro_iou > before["all"].micro_iou
    precision, recall = vote.precision_and_recall()
    road = kitti[1].ontology.class_names.index("road") - 1
    assert precision[road] > 0.7 and recall[road] > 0


def test_flat_interaction_names_what_the_one_camera_never_saw(kitti: tuple[Browser, Recipe]) -> None:
    found = quality_of(kitti, "08")
    vote, target = found["vote"], found["target"]
    assert target.labelled_unseen > vote.labelled_unseen and target.labelled_seen >= vote.labelled_seen
    np.testing.assert_array_equal(target.confusion["all"].matrix, found["correct"].confusion["all"].matrix)


def test_a_scene_of_one_frame_of_one_camera_has_nothing_to_agree_with(kitti: tuple[Browser, Recipe]) -> None:
    found = quality_of(kitti, "01")
    for item in found.values():
        assert (item.n_frames, item.met.sum(), item.same.sum()) == (1, 0, 0)
    assert found["vote"].labelled_seen >= found["group"].labelled_seen > 0
    [(alone, follower)] = pairs(kitti[0], "01")
    assert follower is None
    counted = measure([alone], kitti[1].ontology)
    assert counted.n_seen > 0 == counted.n_shared, "one camera disagrees with no other"


# -- TRI's car


def test_frames_of_another_car_without_truth_are_voted_on_and_judged_in_the_report(
    shared: Path,
    tmp_path: Path,
    folder_layout: Callable[[Path, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.look.figures.IMAGE_PX", 160)
    monkeypatch.setattr("pipeline.look.figures.PANEL_PX", 100)
    root = folder_layout(shared / "data" / "tri-dgp-nuscenes", "v1.0-trainval")
    path = tmp_path / "tri.toml"
    path.write_text(
        clip_over(root)
        + f"""
        [target]
        labels = "vote+correct"
        [run]
        store = "{tmp_path}/store"
        runs = "{tmp_path}/runs"
        """
    )
    recipe = load_recipe(path)
    browser = built(recipe, "target")
    group, vote, *_ = label_quality(pairs(browser, ""), recipe.ontology)
    assert (group.table, vote.table, group.n_frames) == ("group", "vote", 3)
    # these random weights name nearly all alike, so frames agree whatever the vote does; what counts is that they meet
    assert 1 >= agreement_of(vote) >= agreement_of(group) > 0 and vote.met.sum() > group.met.sum() > 1000
    assert vote.labelled_seen >= group.labelled_seen and vote.labelled_unseen > group.labelled_unseen == 0
    assert group.scores() == {} == vote.scores()

    source = write_report(recipe, tmp_path / "report", 1).read_text()
    section = source[source.index("Every table of labels") : source.index("What is learnt, class by class")]
    rows = re.findall(r"<tr>.*?</tr>", section, re.DOTALL)[1:]
    cells = [[re.sub("<.*?>", "", cell) for cell in re.findall(r"<td.*?</td>", row)] for row in rows]
    assert [name.split(":")[0] for name, *_ in cells] == ["group", "vote", "correct", "target"]
    for _, *numbers in cells:
        assert len(numbers) == 3, "coverage of seen and of unseen points, agreement, and no truth"
        assert all(re.fullmatch(r"\d+\.\d %", number) for number in numbers)
    assert "There are no true labels here" in source
    [labelled] = re.findall(r"with a pseudo-label</td>.*?<td>([\d.]+) % of all</td>", source)
    assert 0 < float(labelled) <= 100
    [shared_points] = re.findall(r"several cameras \(shared\)</td>.*?<td>([\d.]+) %", source)
    assert 0 < float(shared_points) <= 100
