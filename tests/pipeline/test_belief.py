"""What a point may be, from the vote on: kept, learnt from by its margin, and evidence for flat interaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from manifests.config import ConfigError
from manifests.ontology import load_ontology
from manifests.recipe import Recipe
from manifests.sections.tables import GroupConfig, TargetConfig
from manifests.stages import fingerprint, with_needs
from manifests.tables.base import Rows
from manifests.tables.labels import Belief, Correct, Vote
from manifests.tables.sensors import Points, Project
from pipeline.stages import correct, target
from pipeline.stages.base import FrameInput
from pipeline.stages.correct import likelihoods
from superpixels.flat_config import FlatInteractionConfig
from superpixels.flat_interaction import refine
from superpixels.voting import VotingConfig
from tests.filled import record

KEEPS = VotingConfig(belief=True)


def belief_of(label: Any, share: Any) -> Belief:
    return Belief(frame_id="f", label=np.array(label, np.uint8), share=np.array(share, np.uint8))


def test_all_classes_are_made_where_they_are_kept_and_the_vote_is_held_once(
    recipe_over: Callable[..., Recipe],
) -> None:
    hard = recipe_over("/r", target=TargetConfig(labels="vote"))
    soft = replace(hard, vote=KEEPS)
    assert "belief" not in with_needs(hard, ["target"])
    names = with_needs(soft, ["target"])
    assert names.index("group") < names.index("belief") < names.index("vote")
    assert fingerprint(hard, "vote") != fingerprint(soft, "vote")
    assert fingerprint(hard, "group") == fingerprint(soft, "group")
    with pytest.raises(ConfigError, match=r"vote.belief is false"):
        with_needs(hard, ["belief"])
    for voteless in (TargetConfig(confidence="margin"), TargetConfig(labels="correct", confidence="margin")):
        with pytest.raises(ConfigError, match=r"set vote.belief = true and target.labels"):
            with_needs(replace(soft, target=voteless), ["target"])
    divided = FlatInteractionConfig(evidence="divided")
    with pytest.raises(ConfigError, match=r'correct.evidence = "divided" looks at'):
        with_needs(replace(hard, correct=divided, target=TargetConfig(labels="vote+correct")), ["target"])
    for wrong in ({"evidence": "odds"}, {"reach_s": -1.0}, {"vehicle_m": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            VotingConfig(**wrong)
    with pytest.raises(ValueError, match="evidence"):
        FlatInteractionConfig(evidence="odds")  # type: ignore[arg-type]


def test_a_target_is_as_sure_as_its_class_is_ahead(recipe_over: Callable[..., Recipe]) -> None:
    recipe = recipe_over("/r", vote=KEEPS, target=TargetConfig(labels="vote+correct", confidence="margin"))
    belief = belief_of([[1, 2, 0], [2, 1, 3], [4, 0, 0], [0, 0, 0]], [[200, 50, 0], [90, 90, 1], [70, 0, 0], [0, 0, 0]])
    label = np.ascontiguousarray(belief.label[:, 0])
    changed = np.array([False, False, True, True])
    rows = Rows(
        belief,
        record(Vote, frame_id="f", label=label, confidence=belief.share[:, 0].copy(), changed=changed),
        record(
            Correct,
            frame_id="f",
            label=np.array([1, 2, 5, 3], np.uint8),
            score=np.full(4, 30, np.uint8),
            changed=changed,
        ),
        record(Project, frame_id="f", point=np.array([0], np.int32)),
    )
    found = target.prepare(recipe)(FrameInput(frame_of_nothing(), rows))
    # ahead by 150; by nothing, so least; what correction names has its own score
    assert found.confidence.tolist() == [150, 1, 30, 30] and found.label.tolist() == [1, 2, 5, 3]
    plain = target.prepare(replace(recipe, target=TargetConfig(labels="vote+correct")))
    assert plain(FrameInput(frame_of_nothing(), rows)).confidence.tolist() == [200, 90, 30, 30]


def frame_of_nothing() -> Any:
    from pipeline.frame import Frame

    return Frame("f", "s", 0, "l", "l.bin", None, np.eye(4), np.eye(4), ())


def patch(seed: int = 0) -> Any:
    """A piece of ground, of which one half is called 1 and the other 2."""
    rng = np.random.default_rng(seed)
    xyz_m = np.column_stack([rng.uniform(5, 25, 3000), rng.uniform(-8, 8, 3000), rng.normal(-1.8, 0.01, 3000)])
    label = np.where(xyz_m[:, 0] > 15, 2, 1).astype(np.uint8)
    return xyz_m.astype(np.float32), label


def test_evidence_may_be_divided_among_the_classes_that_a_point_may_be() -> None:
    xyz_m, label = patch()
    label[::3] = 0
    nothing = np.zeros(len(label))
    sure = belief_of(np.column_stack([label, nothing, nothing]), np.column_stack([255 * (label > 0), nothing, nothing]))
    once = refine(xyz_m, label, n_classes=3)
    same = refine(xyz_m, label, n_classes=3, likelihood=likelihoods(sure, 4))
    np.testing.assert_array_equal(once.labels, same.labels)
    np.testing.assert_array_equal(once.score, same.score)
    # whoever is called 2 might as well be 1: then 1 has more evidence around
    unsure = belief_of(
        np.column_stack([label, np.where(label == 2, 1, 0), nothing]),
        np.column_stack([np.where(label == 2, 90, 255 * (label > 0)), np.where(label == 2, 85, 0), nothing]),
    )
    leaning = refine(xyz_m, label, n_classes=3, likelihood=likelihoods(unsure, 4))
    gaps = label == 0
    assert (leaning.labels[gaps] == 2).sum() < (once.labels[gaps] == 2).sum()
    with pytest.raises(ValueError, match="likelihoods are"):
        refine(xyz_m, label, n_classes=3, likelihood=likelihoods(unsure, 3))


def test_the_stage_takes_what_is_kept_as_evidence(recipe_over: Callable[..., Recipe]) -> None:
    xyz_m, label = patch(1)
    label[::3] = 0
    recipe = recipe_over(
        "/r",
        vote=KEEPS,
        group=GroupConfig(),
        target=TargetConfig(labels="vote+correct"),
        correct=FlatInteractionConfig(evidence="divided"),
        ontology=load_ontology("nuscenes"),
    )
    share = np.column_stack([np.where(label > 0, 255, 0), np.zeros((len(label), 2))])
    belief = belief_of(np.column_stack([label, np.zeros((len(label), 2))]), share)
    vote = record(Vote, frame_id="f", label=label, confidence=belief.share[:, 0].copy(), changed=label > 9)
    points = record(Points, frame_id="f", n_points=len(label), xyz_m=xyz_m, intensity=xyz_m[:, 0].copy())
    soft = correct.prepare(recipe)(FrameInput(frame_of_nothing(), Rows(points, vote, belief)))
    hard = correct.prepare(replace(recipe, correct=FlatInteractionConfig()))
    alone = hard(FrameInput(frame_of_nothing(), Rows(points, vote)))
    for name in ("label", "score", "changed"):
        np.testing.assert_array_equal(getattr(soft, name), getattr(alone, name))
