"""What a stage is: a pure function from one frame, and the rows that earlier stages made for it, to one row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from manifests.recipe import Recipe
from manifests.rows import Row
from manifests.stages import Need, TableSpec
from manifests.storage.errors import StoreError
from pipeline.frame import Frame
from pipeline.sources import FrameFiles


@dataclass(frozen=True)
class FrameInput:
    """What a frame function gets: the frame, and per needed table the row of that frame, or all rows of a broadcast.

    `around`: where the stage needs a window, the frames before and after in order of time, with their rows of the
    tables it is about; frames that failed are left out.
    """

    frame: Frame
    rows: Mapping[str, Row] = field(default_factory=dict)
    broadcast: Mapping[str, list[Row]] = field(default_factory=dict)
    around: tuple[FrameInput, ...] = ()


FrameFunction = Callable[[FrameInput], Row]
"""Returns the stage's own columns of a frame's row (not frame_id, status, reason); raises FrameError if it can't."""


class StreamFunction(Protocol):
    """Makes the rows of many frames, reading some ahead, so that several of them can be under way at once."""

    def __call__(self, inputs: Iterator[FrameInput]) -> Iterator[Row | Exception]:
        """Yield, in order, the own columns of every frame's row, or why there are none.

        Raises ConfigError where all frames would fail alike, StoreError, and whatever `inputs` raises.
        """

    @property
    def batch(self) -> int | None:
        """How many images go through a network at once; None where there is no network."""


@dataclass(frozen=True)
class OneByOne:
    """The stream function of a stage that makes one row after the other."""

    function: FrameFunction
    batch: int | None = None

    def __call__(self, inputs: Iterator[FrameInput]) -> Iterator[Row | Exception]:
        """Yield the row of every frame or why there is none; raises StoreError."""
        for one in inputs:
            try:
                yield self.function(one)
            except StoreError:
                raise
            except Exception as error:  # a fault on one frame must not hide the others
                yield error


@dataclass(frozen=True)
class Stage:
    """A table and how one row of it is made.

    `table` is what both sides know of it: name, version, what it needs, which settings count. `index_columns` are the
    columns of `index` that a row depends on: a shard is rebuilt when they change for one of its frames, and only then;
    `more_index_columns` are those that it depends on with some settings only.
    `apart` are columns that others need without the rest: those are built again when these change, and only then.
    `prepare` runs once per worker and loads what is heavy; `stream` comes before it where it returns a way to make many
    rows at once, with the same bytes. `files` are what it reads of disk beside the files that `index` names: they are
    digested into the key of a shard, and a frame comes with their digests, which `prepare`'s function compares with
    what it reads. `build` instead of `prepare` makes one table for all frames (the text vectors): it returns its rows,
    and `content` what they depend on beside the settings. `refuse` gives a sentence where the data set cannot have this
    table at all. `count` tells what to sum up over the rows. `gpus` is what a worker takes of a GPU; None where no
    network runs.
    """

    table: TableSpec
    prepare: Callable[[Recipe], FrameFunction] | None = None
    stream: Callable[[Recipe], StreamFunction | None] = lambda recipe: None
    build: Callable[[Recipe], list[dict[str, Any]]] | None = None
    content: Callable[[Recipe], Mapping[str, Any]] = lambda recipe: {}
    index_columns: tuple[str, ...] = ()
    more_index_columns: Callable[[Recipe], tuple[str, ...]] = lambda recipe: ()
    apart: tuple[str, ...] = ()
    files: Callable[[Recipe], FrameFiles | None] = lambda recipe: None
    gpus: Callable[[Recipe], float | None] = lambda recipe: None
    refuse: Callable[[Recipe, Iterable[Frame]], str | None] = lambda recipe, frames: None
    count: Callable[[Row], Mapping[str, int]] = lambda row: {}
    kilobytes_per_frame: Callable[[Recipe], float] = lambda recipe: 0.0

    @property
    def name(self) -> str:
        """The name of stage, table and make target."""
        return self.table.name

    @property
    def schema(self) -> pa.Schema:
        """The columns of the table."""
        return self.table.schema

    def needs(self, recipe: Recipe) -> tuple[Need, ...]:
        """Return the tables that a row is made from."""
        return self.table.needs(recipe)

    def settings(self, recipe: Recipe) -> Mapping[str, Any]:
        """Return the recipe's values that can change a row; they enter the identity."""
        return self.table.settings(recipe)

    def seen_of_index(self, recipe: Recipe) -> tuple[str, ...]:
        """Return the columns of `index` that a row depends on."""
        return (*self.index_columns, *self.more_index_columns(recipe))

    def depends(self, recipe: Recipe) -> Mapping[str, Any]:
        """Return what the rows of a table for all frames depend on, files included."""
        return {**self.settings(recipe), **self.content(recipe)}

    def open(self, recipe: Recipe) -> StreamFunction:
        """Return what makes the rows of frames; loads what is heavy."""
        assert self.prepare is not None, f"stage {self.name} builds one table for all frames"
        return self.stream(recipe) or OneByOne(self.prepare(recipe))
