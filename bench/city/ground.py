"""The street as a frame of its own, and the ground as a mosaic of rectangles in it: every place has one surface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.city.materials import Stuff
from bench.city.shapes import Array, Mesh, join, sheet
from bench.city.things import FINE, MANMADE

CELL_M = 2.5  # the ground follows hills and bends in steps of this size


@dataclass(frozen=True, eq=False)
class Street:
    """A street along an arc, over gentle hills.

    A place is given by `s_m` along the middle of the street and `d_m` to its left; a scene's frame has x along the
    street at s = 0, y to the left and z up. `bend_per_m` is the curvature; `waves` (k, 4) are the hills: amplitude
    in metres, wave numbers along x and y in 1/m, phase.
    """

    bend_per_m: float
    waves: Array

    def place(self, s_m: npt.ArrayLike, d_m: npt.ArrayLike, above_m: npt.ArrayLike = 0.0) -> Array:
        """Return points (..., 3) in the scene's frame, `above_m` over the hills."""
        s, d = np.asarray(s_m, np.float64), np.asarray(d_m, np.float64)
        angle = s * self.bend_per_m
        half = angle / 2  # written with sinc, which holds for a straight street too
        x = s * np.sinc(angle / np.pi) - d * np.sin(angle)
        y = s * np.sinc(half / np.pi) * np.sin(half) + d * np.cos(angle)
        return np.stack(np.broadcast_arrays(x, y, self.hills(x, y) + np.asarray(above_m)), axis=-1)

    def hills(self, x_m: Array, y_m: Array) -> Array:
        """Return the height of the hills."""
        amplitude, along_x, along_y, phase = self.waves.T
        return np.asarray(
            (amplitude * np.sin(along_x * x_m[..., None] + along_y * y_m[..., None] + phase)).sum(axis=-1)
        )

    def pose(self, s_m: float, d_m: float, turn_rad: float, above_m: float = 0.0) -> Array:
        """Return the upright pose (4, 4) of a thing at a place, turned to the left of the street's direction."""
        [pose] = self.poses(*(np.array([value]) for value in (s_m, d_m, turn_rad, above_m)))
        return np.asarray(pose)

    def poses(self, s_m: Array, d_m: Array, turn_rad: Array, above_m: Array) -> Array:
        """Return the same for k things, (k, 4, 4)."""
        pose = np.zeros((len(s_m), 4, 4))
        yaw = s_m * self.bend_per_m + turn_rad
        pose[:, 0, 0] = pose[:, 1, 1] = np.cos(yaw)
        pose[:, 1, 0] = np.sin(yaw)
        pose[:, 0, 1] = -pose[:, 1, 0]
        pose[:, 2, 2] = pose[:, 3, 3] = 1
        pose[:, :3, 3] = self.place(s_m, d_m, above_m)
        return pose

    def tilted_pose(self, s_m: float, d_m: float, turn_rad: float) -> Array:
        """Return the pose (4, 4) of a vehicle that stands on the slope of the road."""
        pose = self.pose(s_m, d_m, turn_rad)
        step = 1.5
        ahead, left = pose[:3, 0] * step, pose[:3, 1] * step
        at = pose[:3, 3]
        for vector in (ahead, left):
            here, there = at - vector, at + vector
            vector[2] = (self.hills(*there[:2, None]) - self.hills(*here[:2, None])).item() / 2
        forward = ahead / np.linalg.norm(ahead)
        up = np.cross(forward, left)
        up /= np.linalg.norm(up)
        pose[:3, :3] = np.stack([forward, np.cross(up, forward), up], axis=1)
        return pose


@dataclass(frozen=True)
class Surface:
    """A kind of ground: its class, its material and how far it lies above the road."""

    fine: int
    material: Stuff
    above_m: float
    rough_m: float = 0.0


SURFACES: dict[str, Surface] = {
    "grass": Surface(FINE["flat.terrain"], Stuff.GRASS, 0.10, 0.07),
    "soil": Surface(FINE["flat.terrain"], Stuff.SOIL, 0.06, 0.10),
    "road": Surface(FINE["flat.driveable_surface"], Stuff.ASPHALT, 0.0),
    "drive": Surface(FINE["flat.driveable_surface"], Stuff.CONCRETE, 0.08),
    "walk": Surface(FINE["flat.sidewalk"], Stuff.PAVING, 0.15),
    "island": Surface(FINE["flat.sidewalk"], Stuff.CONCRETE, 0.15),
    "stone": Surface(FINE["flat.other"], Stuff.STONE, 0.17),
    "rail": Surface(FINE["flat.other"], Stuff.BALLAST, 0.12),
    "water": Surface(FINE["flat.other"], Stuff.WATER, -0.8),
}
_KINDS = tuple(SURFACES)
_ABOVE_M = np.array([surface.above_m for surface in SURFACES.values()])
_ROUGH_M = np.array([surface.rough_m for surface in SURFACES.values()])
_FINE = np.array([surface.fine for surface in SURFACES.values()], np.uint8)
_MATERIAL = np.array([surface.material for surface in SURFACES.values()], np.uint8)


@dataclass(frozen=True)
class Patch:
    """A rectangle of one surface in street coordinates."""

    surface: str
    s_m: tuple[float, float]
    d_m: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Ground:
    """The mosaic: cell (i, j), of surface `kind[i, j]`, lies between lines i and i + 1 of s and j and j + 1 of d."""

    s_lines_m: Array
    d_lines_m: Array
    kind: npt.NDArray[np.uint8]

    def kind_at(self, s_m: npt.ArrayLike, d_m: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Return the kind of surface at places, of the nearest cell where they lie outside."""
        i = np.clip(np.searchsorted(self.s_lines_m, s_m, "right") - 1, 0, self.kind.shape[0] - 1)
        j = np.clip(np.searchsorted(self.d_lines_m, d_m, "right") - 1, 0, self.kind.shape[1] - 1)
        return np.asarray(self.kind[i, j])

    def above_m(self, s_m: Array, d_m: Array) -> Array:
        """Return how far the surface lies over the hills at places."""
        return np.asarray(_ABOVE_M[self.kind_at(s_m, d_m)])

    def surface_at(self, s_m: float, d_m: float) -> str:
        """Return the name of the surface at a place."""
        return _KINDS[int(self.kind_at(s_m, d_m))]

    def driveable(self, street: Street) -> Array:
        """Return the corners (n, 4, 3) of the cells that one may drive on."""
        corners = self._corners(street, np.zeros((len(self.s_lines_m), len(self.d_lines_m))))
        return np.asarray(corners[_FINE[self.kind] == FINE["flat.driveable_surface"]])

    def mesh(self, street: Street, rng: np.random.Generator) -> Mesh:
        """Return the ground with its kerbs: vertical faces where neighbouring cells differ in height."""
        rough = _ROUGH_M[self.kind]
        around = np.pad(rough, 1, mode="edge")
        # a corner moves only if all four cells around it are rough, so borders and kerbs stay straight
        calm = np.minimum.reduce([around[:-1, :-1], around[1:, :-1], around[:-1, 1:], around[1:, 1:]])
        corners = self._corners(street, calm * rng.normal(size=calm.shape))
        top = corners.reshape(-1, 4, 3).copy()
        top[:, :, 2] += _ABOVE_M[self.kind].reshape(-1, 1)
        kinds = self.kind.ravel()
        tint = np.repeat(rng.uniform(0.96, 1.04, (len(kinds), 1)), 3, axis=1)
        cells = sheet(top, _MATERIAL[kinds], tint)
        cells = Mesh(cells.vertices_m, cells.triangles, cells.material, cells.tint, np.repeat(_FINE[kinds], 2))
        across_s = self._kerbs(corners[:-1, :, [1, 2]], self.kind[:-1], self.kind[1:])
        across_d = self._kerbs(corners[:, :-1, [3, 2]], self.kind[:, :-1], self.kind[:, 1:])
        return join([cells, across_s, across_d])

    def _corners(self, street: Street, rise_m: Array) -> Array:
        """Corners (i, j, 4, 3) of all cells, in turn, on the hills and a rise per grid point."""
        s, d = np.meshgrid(self.s_lines_m, self.d_lines_m, indexing="ij")
        points = street.place(s, d, rise_m)
        return np.stack([points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]], axis=2)

    def _kerbs(self, edge: Array, one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> Mesh:
        """Vertical faces over the edges (..., 2, 3) between cells `one` and `other`."""
        step = np.abs(_ABOVE_M[one] - _ABOVE_M[other]) > 1e-6
        edge, one, other = edge[step], one[step], other[step]
        upper = np.where(_ABOVE_M[one] > _ABOVE_M[other], one, other)
        lower = np.where(_ABOVE_M[one] > _ABOVE_M[other], other, one)
        low, high = edge.copy(), edge.copy()
        low[:, :, 2] += _ABOVE_M[lower][:, None]
        high[:, :, 2] += _ABOVE_M[upper][:, None]
        quay = _MATERIAL[lower] == Stuff.WATER
        stone = np.isin(_FINE[upper], (FINE["flat.sidewalk"], FINE["flat.other"])) | quay
        faces = sheet(
            np.stack([low[:, 0], low[:, 1], high[:, 1], high[:, 0]], axis=1),
            np.where(stone, Stuff.CONCRETE, _MATERIAL[upper]),
        )
        fine = np.repeat(np.where(quay, MANMADE, _FINE[upper]).astype(np.uint8), 2)
        return Mesh(faces.vertices_m, faces.triangles, faces.material, faces.tint, fine)


def make_ground(patches: Sequence[Patch]) -> Ground:
    """Return the mosaic of patches, later ones over earlier ones; the first must cover all others."""
    whole = patches[0]

    def lines(low: float, high: float, edges: list[float]) -> Array:
        regular = np.arange(low, high + CELL_M / 2, CELL_M)
        found = np.unique(np.round(np.clip([low, high, *regular, *edges], low, high), 3))
        return np.asarray(found, np.float64)

    s_lines = lines(*whole.s_m, [edge for patch in patches for edge in patch.s_m])
    d_lines = lines(*whole.d_m, [edge for patch in patches for edge in patch.d_m])
    kind = np.zeros((len(s_lines) - 1, len(d_lines) - 1), np.uint8)
    s_middle, d_middle = (s_lines[:-1] + s_lines[1:]) / 2, (d_lines[:-1] + d_lines[1:]) / 2
    for patch in patches:
        rows = (s_middle > patch.s_m[0]) & (s_middle < patch.s_m[1])
        columns = (d_middle > patch.d_m[0]) & (d_middle < patch.d_m[1])
        kind[np.ix_(rows, columns)] = _KINDS.index(patch.surface)
    return Ground(s_lines, d_lines, kind)
