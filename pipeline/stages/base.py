"""What a stage is: a pure function from one frame, and the rows that earlier stages made for it, to one row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from manifests.rows import Row
from pipeline.frame import Frame
from pipeline.recipe import Recipe


@dataclass(frozen=True)
class Need:
    """An upstream table: its row of the same frame (`row`), or all its rows (`broadcast`); all columns unless named."""

    table: str
    how: Literal["row", "broadcast"] = "row"
    columns: tuple[str, ...] | None = None

    @property
    def read(self) -> tuple[str, ...] | None:
        """The columns to read of a row: those named, and those that every row has; None for all."""
        return None if self.columns is None else ("frame_id", "status", "reason", *self.columns)


@dataclass(frozen=True)
class FrameInput:
    """What a frame function gets: the frame, and per needed table the row of that frame, or all rows of a broadcast."""

    frame: Frame
    rows: Mapping[str, Row] = field(default_factory=dict)
    broadcast: Mapping[str, list[Row]] = field(default_factory=dict)


FrameFunction = Callable[[FrameInput], Row]
"""Returns the stage's own columns of a frame's row (not frame_id, status, reason); raises FrameError if it can't."""


@dataclass(frozen=True)
class Stage:
    """A table and how one row of it is made.

    `version` is raised when the code changes what the output means. `settings` are the recipe's values that can change
    a row; they enter the identity. `index_columns` are the columns of `index` that a row depends on: a shard is rebuilt
    when they change for one of its frames, and only then. `prepare` runs once per worker and loads what is heavy.
    `build` instead of `prepare` makes one table for all frames (the text vectors): it returns its rows. `refuse` gives
    a sentence where the data set cannot have this table at all. `count` tells what to sum up over the rows.
    """

    name: str
    version: int
    schema: pa.Schema
    needs: Callable[[Recipe], tuple[Need, ...]]
    settings: Callable[[Recipe], Mapping[str, Any]]
    prepare: Callable[[Recipe], FrameFunction] | None = None
    build: Callable[[Recipe], list[dict[str, Any]]] | None = None
    index_columns: tuple[str, ...] = ()
    gpus: float = 0.0
    refuse: Callable[[Recipe, Sequence[Frame]], str | None] = lambda recipe, frames: None
    count: Callable[[Row], Mapping[str, int]] = lambda row: {}
    kilobytes_per_frame: Callable[[Recipe], float] = lambda recipe: 0.0
