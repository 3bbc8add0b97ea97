"""Stage `motion`: what moves on real sweeps, and who depends on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.recipe import Recipe, load_recipe
from manifests.sections.tables import TargetConfig
from manifests.stages import fingerprint, with_needs
from manifests.tables.base import Rows
from manifests.tables.labels import Label
from manifests.tables.motion import Motion
from manifests.tables.sensors import Coordinates
from pipeline.engine import planner
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.runner import Runner
from pipeline.frame import Frame, FrameError
from pipeline.stages import motion
from pipeline.stages.base import FrameInput
from superpixels.voting import VotingConfig

MOVING = range(252, 260)
"""SemanticKITTI's true classes of things that move, as it stores them."""


@pytest.fixture
def recipe(shared: Path, tmp_path: Path) -> Path:
    """Two runs of five real sweeps at 10 Hz, cars and a motorcyclist on their way."""
    (tmp_path / "two.txt").write_text("01\n04\n")
    path = tmp_path / "two.toml"
    path.write_text(
        f'[data]\ndataset = "semantic_kitti"\nroot = "{shared / "data" / "semantickitti-runs"}"\nversion = "1.0"\n'
        f'ontology = "semantic_kitti"\nsplit = "{tmp_path / "two.txt"}"\n'
        f'[teacher]\nname = "artifacts"\nfolder = "unused"\n[run]\nstore = "{tmp_path / "store"}"\n'
    )
    return path


def built(recipe: Recipe) -> dict[str, tuple[Motion, Label]]:
    """Build what moves and the truth, and return both by frame."""
    one = Runner(recipe)
    assert one.run(["motion", "label"], InlinePool(recipe)) == []
    ref = one.read_ref()
    assert ref is not None
    found: list[dict[str, Any]] = []
    for kind in (Motion, Label):
        table = ref.table(kind.table)
        rows = (row for shard in table.shards for row in one.store.records(kind, table.fingerprint, shard))
        found.append({row.frame_id: row for row in rows})
    return {name: (found[0][name], found[1][name]) for name in found[0]}


def test_what_moves_in_real_sweeps_is_found(recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = built(load_recipe(recipe))
    assert len(rows) == 10
    true, found = (
        np.concatenate(each)
        for each in zip(*((np.isin(label.raw, MOVING), row.thing > 0) for row, label in rows.values()), strict=True)
    )
    # half a second is short: of a car that goes along in the next lane little is ever looked through
    assert (found & true).sum() > 0.5 * true.sum() > 1500
    assert (found & true).sum() > 0.9 * found.sum()
    near = built(load_recipe(recipe, ["motion.reach=2"]))
    monkeypatch.setattr(planner, "FRAMES_PER_SHARD", 2)  # a window goes as far as the next shard
    for name, (row, _) in built(load_recipe(recipe, ["motion.reach=2", f"run.store={tmp_path}/cut"])).items():
        np.testing.assert_array_equal(row.thing, near[name][0].thing)
        np.testing.assert_array_equal(row.standing, near[name][0].standing)


def test_only_who_follows_what_moves_depends_on_it(recipe_over: Callable[..., Recipe]) -> None:
    usual = recipe_over("/r", target=TargetConfig(labels="vote"))
    follows = replace(usual, vote=VotingConfig(follow=True))
    assert "motion" not in with_needs(usual, ["target"])
    names = with_needs(follows, ["target"])
    assert names.index("points") < names.index("motion") < names.index("vote")
    other = replace(follows, motion=replace(follows.motion, free=2.0))
    assert fingerprint(usual, "vote") != fingerprint(follows, "vote") != fingerprint(other, "vote")
    assert fingerprint(replace(usual, motion=other.motion), "vote") == fingerprint(usual, "vote")


def one_frame(number: int, pose: Any, xyz_m: Any) -> FrameInput:
    frame = Frame(f"f{number}", "s", number * 500_000, "l", "l.bin", None, np.eye(4), pose, ())
    return FrameInput(frame, Rows(Coordinates(frame_id=f"f{number}", xyz_m=np.array(xyz_m, np.float32))))


def test_pulses_that_came_back_from_nothing_say_nothing_and_hear_nothing(recipe_over: Callable[..., Recipe]) -> None:
    function = motion.prepare(recipe_over("/r"))
    lost = one_frame(1, np.eye(4), [[0, 0, 0]] * 5)
    row = function(replace(one_frame(0, np.eye(4), [[9, 0, 0], [0, 0, 0]]), around=(lost,)))
    assert row.thing.tolist() == [0, 0] and row.standing.tolist() == [128, 128]
    assert function(one_frame(0, np.eye(4), [[9, 0, 0]])).standing.tolist() == [128], "alone in its scene"
    assert function(lost).standing.tolist() == [128] * 5


def test_without_poses_nobody_can_tell(recipe_over: Callable[..., Recipe]) -> None:
    function = motion.prepare(recipe_over("/r"))
    unknown = one_frame(1, np.full((4, 4), np.nan), [[9, 0, 0]])
    with pytest.raises(FrameError, match=r"no pose of the vehicle.*leave vote.follow off"):
        function(replace(one_frame(0, np.eye(4), [[9, 0, 0]]), around=(unknown,)))
    with pytest.raises(FrameError, match="no pose"):
        function(unknown)
