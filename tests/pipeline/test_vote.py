"""Stage `vote`: a window of frames, through the ends of shards, and only within a scene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.recipe import Recipe, load_recipe
from manifests.sections.tables import TargetConfig
from manifests.tables.base import Rows
from manifests.tables.labels import Target, Vote
from manifests.tables.sensors import Coordinates, PointOfPair
from manifests.tables.superpoints import NamedPoints
from pipeline.engine import planner
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.runner import Runner
from pipeline.frame import Frame
from pipeline.stages.base import FrameInput
from pipeline.stages.registry import STAGES, with_upstream
from pipeline.stages.vote import ballot
from superpixels.voting import VotingConfig


@pytest.fixture
def recipe(shared: Path, tmp_path: Path) -> Path:
    """Two simulated scenes, of two key frames and of one."""
    golden = shared / "golden"
    path = tmp_path / "tiny.toml"
    path.write_text(
        f'[data]\nroot = "{golden / "nuscenes_tiny"}"\n'
        f'[teacher]\nname = "artifacts"\nvoid = true\nfolder = "{golden / "superpixels_tiny"}"\n'
        f'[run]\nstore = "{tmp_path / "store"}"\n'
    )
    return path


def voted(recipe: Recipe, targets: Sequence[str] = ("vote",)) -> dict[str, Any]:
    """Build table `vote` and return its rows by frame, and the names of its shards under "shards"."""
    one = Runner(recipe)
    assert one.run(targets, InlinePool(recipe)) == []
    ref = one.read_ref()
    assert ref is not None
    table = ref.table("vote")
    rows = [row for shard in table.shards for row in one.store.records(Vote, table.fingerprint, shard)]
    return {"shards": [shard.shard for shard in table.shards], **{row.frame_id: row for row in rows}}


def test_the_window_reaches_into_the_next_shard(recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = voted(load_recipe(recipe))
    alone = voted(load_recipe(recipe, ["vote.reach=0"]))
    monkeypatch.setattr(planner, "FRAMES_PER_SHARD", 1)
    cut = voted(load_recipe(recipe, [f"run.store={tmp_path}/cut"]))
    assert len(whole.pop("shards")) == 2 and len(cut.pop("shards")) == 3
    alone.pop("shards")
    assert whole.keys() == cut.keys() and len(whole) == 3
    differs = []
    for frame_id, row in whole.items():
        for name in ("label", "confidence", "changed"):
            np.testing.assert_array_equal(getattr(row, name), getattr(cut[frame_id], name))
        differs.append(bool((row.label != alone[frame_id].label).any()))
    assert sorted(differs) == [False, True, True], "the scene of one frame has nobody to ask"


def test_what_the_neighbours_say_is_part_of_a_shards_key(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "FRAMES_PER_SHARD", 1)
    loaded = load_recipe(recipe)
    voted(loaded)
    plans = {plan.stage.name: plan for plan in Runner(loaded).plan(["vote"])}
    assert plans["vote"].complete
    group = plans["group"].done
    first, second = (name for name in group if name.startswith("scene-0001"))
    one = Runner(loaded)
    one.store.forget("group", plans["group"].fingerprint, group[second])
    again = {plan.stage.name: plan for plan in Runner(loaded).plan(["vote"])}["vote"]
    waiting = {shard.shard for shard in again.shards if not shard.done}
    assert waiting == {first, second}, "the neighbour waits until the window is whole again"


def test_labels_of_the_vote_are_learnt_and_corrected_where_the_recipe_says_so(recipe: Path) -> None:
    stages = {
        labels: [stage.name for stage in with_upstream(("target",), load_recipe(recipe, [f"target.labels={labels}"]))]
        for labels in ("group", "vote", "vote+correct")
    }
    assert "vote" not in stages["group"] and "correct" not in stages["vote"]
    assert stages["vote"].index("group") < stages["vote"].index("vote") < stages["vote"].index("target")
    assert [name for name in stages["vote+correct"] if name in ("group", "vote", "correct", "target")] == [
        "group", "vote", "correct", "target",
    ]  # fmt: skip
    corrected = load_recipe(recipe, ["target.labels=vote+correct"])
    assert [need.table for need in STAGES["correct"].needs(corrected)] == ["points", "vote"]


def test_target_takes_labels_and_confidence_of_the_vote(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["target.labels=vote"])
    rows = voted(loaded, ["target"])
    one = Runner(loaded)
    ref = one.read_ref()
    assert ref is not None
    table = ref.table("target")
    for shard in table.shards:
        for row in one.store.records(Target, table.fingerprint, shard):
            assert isinstance(row, Target)
            np.testing.assert_array_equal(row.label, rows[row.frame_id].label)
            np.testing.assert_array_equal(row.confidence, rows[row.frame_id].confidence)


def test_settings_that_change_no_label_rebuild_nothing(recipe_over: Any) -> None:
    stage = STAGES["vote"]
    base = recipe_over("/r")
    assert stage.settings(base) == stage.settings(recipe_over("/r", target=TargetConfig(labels="vote")))
    assert stage.settings(base) != stage.settings(recipe_over("/r", vote=VotingConfig(reach=5)))


def posed(x_m: float, turned_deg: float, timestamp_us: int, label: Sequence[int] = (0,)) -> FrameInput:
    """A frame somewhere in the world, turned to the left, of points straight ahead, the first of them disputed."""
    angle = np.radians(turned_deg)
    world_from_lidar = np.eye(4)
    world_from_lidar[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    world_from_lidar[0, 3] = x_m
    frame = Frame("f", "s", timestamp_us, "l", "l.bin", None, np.eye(4), world_from_lidar, ())
    project = PointOfPair(frame_id="f", point=np.array([0, 0, 1, 1], np.int32))
    # two cameras call point 0 by prompts of two classes, and point 1 by one
    group = NamedPoints(
        frame_id="f",
        label=np.array(label, np.uint8),
        confidence=np.full(len(label), 51, np.uint8),
        pair=np.arange(4, dtype=np.int32),
        pair_superpoint=np.array([0, 1, 0, 0], np.int32),
        superpoint_prompt=np.array([0, -1], np.int32),
    )
    points = Coordinates(frame_id="f", xyz_m=np.tile(np.array([[2, 0, 0]], np.float32), (len(label), 1)))
    return FrameInput(frame, Rows(group, project, points))


def test_points_of_a_neighbour_are_brought_into_this_frame_and_its_age_is_in_seconds(recipe: Path) -> None:
    here, before = posed(10, 90, 5_000_000, (1, 1)), posed(4, 0, 3_500_000, (1, 1))
    one = ballot(before, here, load_recipe(recipe, ["vote.disputed=0.25"]))
    # its points are at x = 6 m in the world, 4 m behind a vehicle that looks along y: 4 m to its left
    np.testing.assert_allclose(one.here_from_lidar @ [2, 0, 0, 1], [0, 4, 0, 1], atol=1e-12)
    assert one.ago_s == 1.5
    np.testing.assert_allclose(one.weight, [0.2, 0.2])
    assert one.trust is not None
    np.testing.assert_allclose(one.trust, [0.25, 1.0])  # cameras name the first one differently


def test_a_pose_or_a_time_set_right_is_part_of_the_key() -> None:
    assert {"world_from_lidar", "timestamp_us"} <= set(STAGES["vote"].index_columns)
