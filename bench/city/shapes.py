"""Triangle meshes with a material, a tint and a class on every triangle, and the few solids all things are built of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

Array = npt.NDArray[np.float64]
Colour = Sequence[float]

WHITE = (1.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles in metres, z up; a thing's own frame has x forward and its origin on the ground below its middle.

    `vertices_m` float64 (v, 3); `triangles` int32 (t, 3); aligned with the triangles: `material` uint8 (t,), position
    in `materials.MATERIALS`; `tint` float32 (t, 3), linear colour that multiplies the material's; `fine` uint8 (t,),
    the fine class of the class dictionary, which equals the raw label of nuScenes-lidarseg.
    """

    vertices_m: Array
    triangles: npt.NDArray[np.int32]
    material: npt.NDArray[np.uint8]
    tint: npt.NDArray[np.float32]
    fine: npt.NDArray[np.uint8]

    def moved(self, b_from_a: Array) -> Mesh:
        """Return the mesh after a rigid motion (4, 4)."""
        return replace(self, vertices_m=self.vertices_m @ b_from_a[:3, :3].T + b_from_a[:3, 3])

    def shifted(self, x_m: float = 0.0, y_m: float = 0.0, z_m: float = 0.0) -> Mesh:
        """Return the mesh after a translation."""
        return replace(self, vertices_m=self.vertices_m + np.array([x_m, y_m, z_m]))

    def turned(self, axis: str, angle_rad: float) -> Mesh:
        """Return the mesh turned about an axis ("x", "y" or "z") through the origin."""
        return replace(self, vertices_m=Rotation.from_euler(axis, angle_rad).apply(self.vertices_m))

    def of_class(self, fine: int) -> Mesh:
        """Return the mesh with one class on all triangles."""
        return replace(self, fine=np.full(len(self.triangles), fine, np.uint8))


def mesh(vertices_m: npt.ArrayLike, triangles: npt.ArrayLike, material: npt.ArrayLike, tint: npt.ArrayLike) -> Mesh:
    """Return a mesh of class 0 from anything array-like; material and tint may be single values for all triangles."""
    corners = np.asarray(triangles, np.int32).reshape(-1, 3)
    materials, tints = np.empty(len(corners), np.uint8), np.empty((len(corners), 3), np.float32)
    materials[:], tints[:] = material, tint
    points = np.asarray(vertices_m, np.float64).reshape(-1, 3)
    return Mesh(points, corners, materials, tints, np.zeros(len(corners), np.uint8))


EMPTY = mesh([], [], [], np.zeros((0, 3)))


def join(parts: Iterable[Mesh]) -> Mesh:
    """Return several meshes as one, triangles in the order of the parts."""
    meshes = [EMPTY, *parts]
    starts = np.cumsum([0, *(len(part.vertices_m) for part in meshes)])
    return Mesh(
        vertices_m=np.concatenate([part.vertices_m for part in meshes]),
        triangles=np.concatenate(
            [part.triangles + np.int32(start) for part, start in zip(meshes, starts, strict=False)]
        ),
        material=np.concatenate([part.material for part in meshes]),
        tint=np.concatenate([part.tint for part in meshes]),
        fine=np.concatenate([part.fine for part in meshes]),
    )


def box(size_m: Sequence[float], at_m: Sequence[float], material: int, tint: Colour = WHITE) -> Mesh:
    """Return a box of size (x, y, z) whose bottom has its middle `at_m`."""
    dx, dy, dz = size_m
    outline = [(-dx / 2, 0.0), (dx / 2, 0.0), (dx / 2, dz), (-dx / 2, dz)]
    return prism(outline, [dy / 2] * 4, [material] * 5, tint).shifted(*at_m)


def prism(
    outline_xz_m: Sequence[Sequence[float]],
    half_width_m: Sequence[float],
    materials: Sequence[int],
    tint: Colour | Sequence[Colour] = WHITE,
) -> Mesh:
    """Return a convex outline in the x-z plane, counter-clockwise, pulled apart along y to a half width per corner.

    `materials` (k + 1): one per edge, edge i from corner i to the next, and the last for both ends. `tint` is one
    colour, or one for each of these.
    """
    k = len(outline_xz_m)
    outline, half = np.asarray(outline_xz_m, np.float64), np.asarray(half_width_m, np.float64)
    points = np.empty((2 * k, 3))
    points[:, 0], points[:, 2] = np.tile(outline[:, 0], 2), np.tile(outline[:, 1], 2)
    points[:k, 1], points[k:, 1] = -half, half
    faces, part = _prism_faces(k)
    tints = np.empty((k + 1, 3), np.float32)
    tints[:] = tint
    return mesh(points, faces, np.asarray(materials, np.uint8)[part], tints[part])


@cache
def _prism_faces(k: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Triangles of a prism of k corners, and of each the edge that it belongs to, k for the ends."""
    here, there = np.arange(k), (np.arange(k) + 1) % k
    edges = np.stack([here, there, there + k, here, there + k, here + k], axis=1).reshape(-1, 3)
    fan = np.stack([np.zeros(k - 2, np.int64), np.arange(1, k - 1), np.arange(2, k)], axis=1)
    faces = np.concatenate([edges, fan[:, ::-1], fan + k]).astype(np.int32)
    return faces, np.array([*np.repeat(np.arange(k), 2), *[k] * (2 * (k - 2))], np.int32)


def rod(
    from_m: Sequence[float],
    to_m: Sequence[float],
    from_radius_m: float,
    to_radius_m: float,
    material: int,
    tint: Colour = WHITE,
    sides: int = 8,
) -> Mesh:
    """Return a closed cylinder or cone between two points: posts, trunks, wheels, limbs."""
    start, end = np.asarray(from_m, np.float64), np.asarray(to_m, np.float64)
    x, y, z = ((end - start) / np.linalg.norm(end - start)).tolist()
    # two directions across the axis, spelled out: numpy's cross product takes longer than all the rest
    flat = np.hypot(x, y)
    one = (-y / flat, x / flat, 0.0) if flat > 1e-9 else (1.0, 0.0, 0.0)
    two = (y * one[2] - z * one[1], z * one[0] - x * one[2], x * one[1] - y * one[0])
    unit, faces = _rod_faces(sides)
    ring = unit @ np.array([one, two])
    points = np.concatenate([start + ring * from_radius_m, end + ring * to_radius_m, [start, end]])
    return mesh(points, faces, material, tint)


@cache
def _rod_faces(sides: int) -> tuple[Array, npt.NDArray[np.int32]]:
    """Corners (sides, 2) of a circle of radius 1, and the triangles of a rod with so many sides."""
    angle = np.arange(sides) * 2 * np.pi / sides
    here, there = np.arange(sides), (np.arange(sides) + 1) % sides
    walls = np.stack([here, there, there + sides, here, there + sides, here + sides], axis=1).reshape(-1, 3)
    caps = [
        np.stack([np.full(sides, 2 * sides), there, here], axis=1),
        np.stack([np.full(sides, 2 * sides + 1), here + sides, there + sides], axis=1),
    ]
    return np.stack([np.cos(angle), np.sin(angle)], axis=1), np.concatenate([walls, *caps]).astype(np.int32)


def ball(at_m: Sequence[float], radii_m: Sequence[float], material: int, tint: Colour = WHITE, sides: int = 8) -> Mesh:
    """Return an ellipsoid of a few triangles around `at_m`."""
    rings = max(sides // 2, 3)
    polar = np.linspace(0, np.pi, rings + 1)
    turn = np.arange(sides) * 2 * np.pi / sides
    height = np.broadcast_to(np.cos(polar)[:, None], (rings + 1, sides))
    unit = np.stack([np.sin(polar)[:, None] * np.cos(turn), np.sin(polar)[:, None] * np.sin(turn), height], axis=2)
    first = (np.arange(rings)[:, None] * sides + np.arange(sides)).ravel()
    second = (np.arange(rings)[:, None] * sides + (np.arange(sides) + 1) % sides).ravel()
    faces = np.stack([first, first + sides, second, second, first + sides, second + sides], axis=1).reshape(-1, 3)
    return mesh(unit.reshape(-1, 3) * np.asarray(radii_m) + np.asarray(at_m), faces, material, tint)


def leaves(
    rng: np.random.Generator,
    at_m: npt.ArrayLike,
    radii_m: npt.ArrayLike,
    count: int,
    leaf_m: float,
    material: int,
    tint: npt.ArrayLike,
    boxy: bool = False,
) -> Mesh:
    """Return many loose facets scattered through an ellipsoid (or a box), most of them near its surface.

    A facet is a tuft of leaves; beams and sight lines pass between them, as they do through a crown or a hedge.
    """
    if boxy:
        place = rng.uniform(-1, 1, (count, 3))
    else:
        place = rng.normal(size=(count, 3))
        place *= rng.uniform(0.1, 1.0, (count, 1)) ** (1 / 3) / np.linalg.norm(place, axis=1, keepdims=True)
    centre = np.asarray(at_m) + place * np.asarray(radii_m)
    corners = rng.normal(size=(count, 3, 3))
    corners *= leaf_m * rng.uniform(0.6, 1.3, (count, 1, 1)) / np.linalg.norm(corners, axis=2, keepdims=True)
    # the outside of a crown is lit, its inside lies in its own shade
    outward = np.abs(place).max(axis=1) if boxy else np.linalg.norm(place, axis=1)
    light = rng.uniform(0.7, 1.15, count) * (0.45 + 0.55 * outward**2) * (1.0 + 0.15 * place[:, 2])
    hue = rng.uniform(0.85, 1.15, (count, 3)) * np.asarray(tint)
    return mesh((centre[:, None] + corners).reshape(-1, 3), np.arange(3 * count), material, hue * light[:, None])


def sheet(corners_m: npt.ArrayLike, material: npt.ArrayLike, tint: npt.ArrayLike = WHITE) -> Mesh:
    """Return quadrilaterals from their corners (n, 4, 3) in turn; material and tint are one for all or one for each."""
    quads = np.asarray(corners_m, np.float64).reshape(-1, 4, 3)
    first = np.arange(len(quads))[:, None] * 4
    faces = (first + np.array([[0, 1, 2, 0, 2, 3]])).reshape(-1, 3)
    materials = np.repeat(np.broadcast_to(np.asarray(material, np.uint8), (len(quads),)), 2)
    tints = np.repeat(np.broadcast_to(np.asarray(tint, np.float32), (len(quads), 3)), 2, axis=0)
    return mesh(quads.reshape(-1, 3), faces, materials, tints)
