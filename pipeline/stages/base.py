"""What a stage is: a pure function from one frame, and the rows that earlier stages made for it, to one row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from manifests.fingerprint import Settings
from manifests.recipe import Recipe
from manifests.stages import Need, TableSpec
from manifests.storage.errors import StoreError
from manifests.tables.base import F, FrameRecord, Rows
from manifests.tables.teacher import Text
from pipeline.datasets.sweeps import KeptSweeps
from pipeline.frame import Frame
from pipeline.sources import FrameFiles


@dataclass(frozen=True)
class FrameInput:
    """What a frame function gets: the frame, its rows of the needed tables, and the prompts where it needs them.

    `around`: where the stage needs a window, the frames before and after in order of time, with their rows of the
    tables it is about; frames that failed are left out. `sweeps`: those that the same worker has decoded already.
    """

    frame: Frame
    rows: Rows = field(default_factory=Rows)
    text: Sequence[Text] = ()
    sweeps: KeptSweeps = field(default_factory=KeptSweeps)
    around: tuple[FrameInput, ...] = ()


Made = TypeVar("Made", bound=FrameRecord, covariant=True)

FrameFunction = Callable[[FrameInput], F]
"""Returns a frame's row of the stage's table; raises FrameError if it can't."""


class StreamFunction(Protocol[Made]):
    """Makes the rows of many frames, reading some ahead, so that several of them can be under way at once."""

    def __call__(self, inputs: Iterator[FrameInput]) -> Iterator[Made | Exception]:
        """Yield, in order, every frame's row, or why there is none.

        Raises ConfigError where all frames would fail alike, StoreError, and whatever `inputs` raises.
        """

    @property
    def batch(self) -> int | None:
        """How many images go through a network at once; None where there is no network."""


@dataclass(frozen=True)
class OneByOne(Generic[F]):
    """The stream function of a stage that makes one row after the other."""

    function: FrameFunction[F]
    batch: int | None = None

    def __call__(self, inputs: Iterator[FrameInput]) -> Iterator[F | Exception]:
        """Yield the row of every frame or why there is none; raises StoreError."""
        for one in inputs:
            try:
                yield self.function(one)
            except StoreError:
                raise
            except Exception as error:  # a fault on one frame must not hide the others
                yield error


@dataclass(frozen=True)
class Stage(Generic[F]):
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
    prepare: Callable[[Recipe], FrameFunction[F]] | None = None
    stream: Callable[[Recipe], StreamFunction[F] | None] = lambda recipe: None
    build: Callable[[Recipe], list[Text]] | None = None
    content: Callable[[Recipe], Settings] = lambda recipe: {}
    index_columns: tuple[str, ...] = ()
    more_index_columns: Callable[[Recipe], tuple[str, ...]] = lambda recipe: ()
    apart: tuple[str, ...] = ()
    files: Callable[[Recipe], FrameFiles | None] = lambda recipe: None
    gpus: Callable[[Recipe], float | None] = lambda recipe: None
    refuse: Callable[[Recipe, Iterable[Frame]], str | None] = lambda recipe, frames: None
    count: Callable[[F], Mapping[str, int]] = lambda row: {}
    kilobytes_per_frame: Callable[[Recipe], float] = lambda recipe: 0.0

    @property
    def name(self) -> str:
        """The name of stage, table and make target."""
        return self.table.name

    def needs(self, recipe: Recipe) -> tuple[Need, ...]:
        """Return the tables that a row is made from."""
        return self.table.needs(recipe)

    def settings(self, recipe: Recipe) -> Settings:
        """Return the recipe's values that can change a row; they enter the identity."""
        return self.table.settings(recipe)

    def seen_of_index(self, recipe: Recipe) -> tuple[str, ...]:
        """Return the columns of `index` that a row depends on."""
        return (*self.index_columns, *self.more_index_columns(recipe))

    def depends(self, recipe: Recipe) -> Settings:
        """Return what the rows of a table for all frames depend on, files included."""
        return {**self.settings(recipe), **self.content(recipe)}

    def open(self, recipe: Recipe) -> StreamFunction[F]:
        """Return what makes the rows of frames; loads what is heavy."""
        assert self.prepare is not None, f"stage {self.name} builds one table for all frames"
        return self.stream(recipe) or OneByOne(self.prepare(recipe))
