"""Where rays meet the city: Open3D's ray caster over the scene that stands and the things that move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.city.materials import Float32
from bench.city.shapes import Array, Mesh, join

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Hits:
    """What n rays met, aligned with them.

    `distance` (n,) in lengths of the ray, infinite for the sky; `position_m` (n, 3) in the scene's frame; `normal`
    (n, 3) unit, towards the sensor. `material`, `tint`, `fine` are the triangle's, zeros for the sky. `actor` (n,) is
    the actor that was hit, -1 for none; `actor_alone` what it would be if nothing stood in between but actors.
    """

    distance: Float32
    position_m: Float32
    normal: Float32
    material: npt.NDArray[np.uint8]
    tint: Float32
    fine: npt.NDArray[np.uint8]
    actor: Int32
    actor_alone: Int32


class Stage:
    """The static part of a scene, built once; `at` adds the actors where they are at one moment."""

    def __init__(self, static: Mesh) -> None:
        self._static = static
        self._caster = _caster(static)

    def at(self, actors: Sequence[Mesh]) -> Moment:
        """Return the scene with actors in their places."""
        owners = np.repeat(np.arange(len(actors), dtype=np.int32), [len(actor.triangles) for actor in actors])
        return Moment(self._static, self._caster, join(actors), owners)


class Moment:
    """A scene at one moment, to cast rays into."""

    def __init__(self, static: Mesh, static_caster: Any, moving: Mesh, owners: Int32) -> None:
        self._casters = (static_caster, _caster(moving) if len(moving.triangles) else None)
        self._n_static = len(static.triangles)
        # the last entry is the sky's, so that triangle -1 finds it
        sky = np.zeros((1, 3), np.float32)
        self._material = np.concatenate([static.material, moving.material, sky[:, 0]], dtype=np.uint8, casting="unsafe")
        self._tint = np.concatenate([static.tint, moving.tint, sky])
        self._fine = np.concatenate([static.fine, moving.fine, sky[:, 0]], dtype=np.uint8, casting="unsafe")
        self._owner = np.concatenate([np.full(self._n_static, -1, np.int32), owners, np.full(1, -1, np.int32)])

    def cast(self, origin_m: Array, rays: Float32) -> Hits:
        """Return the first surface on each ray (n, 3) from one origin (3,), in the scene's frame."""
        beams = np.concatenate([np.broadcast_to(origin_m.astype(np.float32), rays.shape), rays], axis=1)
        distance, triangle, normal = _first(self._casters[0], beams)
        alone = np.full(len(rays), -1, np.int32)
        if self._casters[1] is not None:
            near, which, facing = _first(self._casters[1], beams)
            found = np.flatnonzero(which >= 0)
            alone[found] = self._owner[self._n_static + which[found]]
            nearer = np.flatnonzero(near < distance)
            distance[nearer], normal[nearer] = near[nearer], facing[nearer]
            triangle[nearer] = self._n_static + which[nearer]
        away = np.flatnonzero(np.einsum("ij,ij->i", normal, rays) > 0)
        normal[away] *= -1
        reach = np.where(triangle >= 0, distance, 0)
        return Hits(
            distance=distance,
            position_m=beams[:, :3] + reach[:, None] * rays,
            normal=normal,
            material=self._material[triangle],
            tint=self._tint[triangle],
            fine=self._fine[triangle],
            actor=self._owner[triangle],
            actor_alone=alone,
        )

    def blocked(self, origins_m: Float32, towards: Array) -> npt.NDArray[np.bool_]:
        """Return whether something lies between points (n, 3) and a light infinitely far away, (n,)."""
        beams = np.concatenate(
            [origins_m, np.broadcast_to(towards.astype(np.float32), origins_m.shape)], axis=1, dtype=np.float32
        )
        found = np.zeros(len(beams), bool)
        for caster in self._casters:
            if caster is not None:
                found |= _tensor_call(caster.test_occlusions, beams)
        return found


def _caster(mesh: Mesh) -> Any:
    import open3d as o3d

    caster = o3d.t.geometry.RaycastingScene(nthreads=1)
    vertices = o3d.core.Tensor.from_numpy(np.ascontiguousarray(mesh.vertices_m, np.float32))
    caster.add_triangles(vertices, o3d.core.Tensor.from_numpy(np.ascontiguousarray(mesh.triangles, np.uint32)))
    return caster


def _tensor_call(method: Any, beams: Float32) -> npt.NDArray[np.bool_]:
    import open3d as o3d

    return np.asarray(method(o3d.core.Tensor.from_numpy(beams), nthreads=1).numpy())


def _first(caster: Any, beams: Float32) -> tuple[Float32, Int32, Float32]:
    import open3d as o3d

    # one thread: drives are what runs side by side
    found = caster.cast_rays(o3d.core.Tensor.from_numpy(beams), nthreads=1)
    # what met nothing has the largest unsigned number for its triangle, which is -1
    triangle = found["primitive_ids"].numpy().view(np.int32)
    return found["t_hit"].numpy().copy(), triangle.copy(), found["primitive_normals"].numpy().copy()
