"""How long a teacher's mistakes last: of wrongly named places, how many are wrong again a little later, and alike.

    python -m bench.real_errors RECIPE [--set SECTION.KEY=VALUE]

A simulation errs like a real teacher only if its mistakes last as long: those that come and go are put right by a vote,
those that last are not. Reads tables `index`, `points`, `group` and `label`; a place is a point in sight of one sweep
that has one of another within 10 cm in the world, of the same true class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from manifests.asked import tables_of
from manifests.recipe import Recipe, load_recipe
from manifests.storage.store import Store
from manifests.tables.base import Failed, UInt8
from manifests.tables.labels import Label
from manifests.tables.sensors import Index, Points
from manifests.tables.superpoints import Group
from trainer.data.tables import FrameRow, Tables

TABLES = ("index", "points", "group", "label")
NEAR_M = 0.1


@dataclass(frozen=True, eq=False)
class Named:
    """The named points with a true class of one sweep: in the world (n, 3), and what they are called and are, (n,)."""

    scene: str
    time_s: float
    xyz_m: NDArray[np.float64]
    label: UInt8
    truth: UInt8


@dataclass(frozen=True)
class Lasting:
    """Of places that were wrongly named: how many were met again so much later, wrong again, and in the same way."""

    gap_s: float
    met: int
    wrong: int
    alike: int


def named_points(recipe: Recipe) -> Iterator[Named]:
    """Yield the sweeps of a recipe, scene after scene, by time; raises StoreError where a table is missing."""
    store = Store.open(recipe.run.store)
    tables = Tables(store, tables_of(store, recipe, TABLES), TABLES)
    for shard in tables.shards:
        for row, states in enumerate(tables.states(shard)):
            if any(isinstance(state, Failed) for state in states):
                continue
            frame = FrameRow(shard, row, states[0].frame_id)
            rows = tables.rows(frame)
            label, truth, index = rows[Group].label, rows[Label].label, rows[Index]
            known = (label > 0) & (truth > 0)
            pose = np.asarray(index.world_from_lidar).reshape(4, 4)
            xyz_m = rows[Points].xyz_m[known] @ pose[:3, :3].T + pose[:3, 3]
            yield Named(frame.scene, index.timestamp_us / 1e6, xyz_m, label[known], truth[known])


def lasting(sweeps: Sequence[Named], steps: Sequence[int]) -> list[Lasting]:
    """Return how mistakes last over some numbers of sweeps, all pairs of a scene together; none without a pair."""
    totals = {step: np.zeros(3, np.int64) for step in steps}
    gaps_s: Mapping[int, list[float]] = {step: [] for step in steps}
    for _, group in groupby(sweeps, key=lambda one: one.scene):
        scene = list(group)
        trees = [cKDTree(one.xyz_m) for one in scene]
        for step in steps:
            for first, second, tree in zip(scene, scene[step:], trees[step:], strict=False):
                wrong = np.flatnonzero(first.label != first.truth)
                if not len(wrong) or not len(second.label):
                    continue
                away_m, met = tree.query(first.xyz_m[wrong])
                same_thing = (away_m <= NEAR_M) & (second.truth[met] == first.truth[wrong])
                wrong, met = wrong[same_thing], met[same_thing]
                again = second.label[met] != second.truth[met]
                alike = second.label[met] == first.label[wrong]
                totals[step] += [len(wrong), int(again.sum()), int(alike.sum())]
                gaps_s[step].append(second.time_s - first.time_s)
    return [
        Lasting(float(np.mean(gaps_s[step])), *(int(one) for one in totals[step]))
        for step in steps
        if totals[step][0] and gaps_s[step]
    ]


def main(
    recipe: Annotated[str, typer.Argument(help="A recipe whose tables are built.")],
    steps: Annotated[str, typer.Option(help="Sweeps between the two that are compared.")] = "1,3,5",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE")] = None,
) -> None:
    """Print how long mistakes last."""
    found = lasting(list(named_points(load_recipe(recipe, set_ or []))), [int(one) for one in steps.split(",")])
    for one in found:
        print(
            f"{one.gap_s:.1f} s: of {one.met:,} wrongly named places {100 * one.wrong / one.met:.0f} % are wrong "
            f"again, {100 * one.alike / one.met:.0f} % in the same way"
        )


if __name__ == "__main__":
    typer.run(main)
