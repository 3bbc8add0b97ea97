"""Stage `vote`: a window of frames, through the ends of shards, and only within a scene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import runner
from pipeline.pools import InlinePool
from pipeline.recipe import Recipe, TargetConfig, load_recipe
from pipeline.runner import Runner
from pipeline.stages import STAGES, with_upstream
from superpixels.voting import VotingConfig


@pytest.fixture
def recipe(shared: Path, tmp_path: Path) -> Path:
    """Two simulated scenes, of two key frames and of one."""
    golden = shared / "golden"
    path = tmp_path / "tiny.toml"
    path.write_text(
        f'[data]\nroot = "{golden / "nuscenes_tiny"}"\n'
        f'[teacher]\nname = "artifacts"\nfolder = "{golden / "superpixels_tiny"}"\n'
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
    rows = [row for shard in table.shards for row in one.store.rows("vote", table.fingerprint, shard)]
    return {"shards": [shard.shard for shard in table.shards], **{row["frame_id"]: row for row in rows}}


def test_the_window_reaches_into_the_next_shard(recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = voted(load_recipe(recipe))
    alone = voted(load_recipe(recipe, ["vote.reach=0"]))
    monkeypatch.setattr(runner, "FRAMES_PER_SHARD", 1)
    cut = voted(load_recipe(recipe, [f"run.store={tmp_path}/cut"]))
    assert len(whole.pop("shards")) == 2 and len(cut.pop("shards")) == 3
    alone.pop("shards")
    assert whole.keys() == cut.keys() and len(whole) == 3
    differs = []
    for frame_id, row in whole.items():
        for name in ("label", "confidence", "changed"):
            np.testing.assert_array_equal(row[name], cut[frame_id][name])
        differs.append(bool((row["label"] != alone[frame_id]["label"]).any()))
    assert sorted(differs) == [False, True, True], "the scene of one frame has nobody to ask"


def test_what_the_neighbours_say_is_part_of_a_shards_key(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "FRAMES_PER_SHARD", 1)
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
        for row in one.store.rows("target", table.fingerprint, shard):
            np.testing.assert_array_equal(row["label"], rows[row["frame_id"]]["label"])
            np.testing.assert_array_equal(row["confidence"], rows[row["frame_id"]]["confidence"])


def test_settings_that_change_no_label_rebuild_nothing(recipe_over: Any) -> None:
    stage = STAGES["vote"]
    base = recipe_over("/r")
    assert stage.settings(base) == stage.settings(recipe_over("/r", target=TargetConfig(labels="vote")))
    assert stage.settings(base) != stage.settings(recipe_over("/r", vote=VotingConfig(reach=5)))
