"""The stages in the order data flows; a stage, its table and its make target bear one name."""

from __future__ import annotations

from typing import Any

from manifests.recipe import Recipe
from manifests.stages import with_needs
from pipeline.stages import (
    belief,
    correct,
    encode,
    group,
    index,
    label,
    mend,
    motion,
    pairs,
    points,
    project,
    score,
    segment,
    target,
    text,
    vote,
)
from pipeline.stages.base import Stage

STAGES: dict[str, Stage[Any]] = {
    stage.name: stage
    for stage in (
        index.STAGE,
        points.STAGE,
        project.STAGE,
        label.STAGE,
        text.STAGE,
        encode.STAGE,
        segment.STAGE,
        score.STAGE,
        group.STAGE,
        motion.STAGE,
        belief.STAGE,
        vote.STAGE,
        correct.STAGE,
        pairs.STAGE,
        mend.STAGE,
        target.STAGE,
    )
}

PACKED = ("points", "pairs", "target")
"""What the trainer reads; `make pack` builds these and all that they need."""


def with_upstream(names: tuple[str, ...], recipe: Recipe) -> list[Stage[Any]]:
    """Return the named stages and everything that they need, `index` first, in the order data flows."""
    return [STAGES[name] for name in with_needs(recipe, names)]
