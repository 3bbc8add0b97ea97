"""A teacher that says something else the second time, as a network on a GPU may."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from manifests.recipe import Recipe
from manifests.tables.teacher import Segment
from pipeline.stages.base import FrameFunction, FrameInput
from pipeline.stages.registry import STAGES


def halve_segments(monkeypatch: pytest.MonkeyPatch, column: str) -> None:
    """From now on stage `segment` writes half of what it would write into a column of numbers."""
    stage = STAGES["segment"]
    assert stage.prepare is not None
    prepare = stage.prepare

    def unsteady(recipe: Recipe) -> FrameFunction[Segment]:
        function = prepare(recipe)

        def segment(inputs: FrameInput) -> Segment:
            row = function(inputs)
            halved: Any = {column: getattr(row, column) * np.float16(0.5)}
            made: Segment = replace(row, **halved)
            return made

        return segment

    monkeypatch.setitem(STAGES, "segment", replace(stage, prepare=unsteady))
