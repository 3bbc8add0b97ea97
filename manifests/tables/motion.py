"""What moves in a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from manifests.tables.base import About, FrameRecord, UInt8, UInt16


@dataclass(frozen=True, eq=False, kw_only=True)
class Motion(FrameRecord, table="motion"):
    """Which points are of things that move, told by what other sweeps see of their places."""

    standing: Annotated[UInt8, About("how likely the point is of something that stands", "1/255", shape=("n_points",))]
    thing: Annotated[UInt16, About("number of the moving thing, anew in every sweep, 0 none", shape=("n_points",))]


@dataclass(frozen=True, eq=False, kw_only=True)
class MovingThings(FrameRecord, of=Motion):
    """Which things move."""

    thing: UInt16
