"""One drive's piece of city, as it is laid out: its street, what stands and moves there, the light, the car's way."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bench.city.ground import Ground, Street
from bench.city.shapes import Array, Mesh

HALF_M = 115.0  # the piece of city reaches this far along the street and across it


@dataclass(frozen=True, eq=False)
class Actor:
    """A thing that is annotated with a box: it moves evenly in street coordinates, or stands.

    `mesh` is in its own frame; `turn_rad` is its heading against the street's; speeds are along s and d.
    """

    name: str
    category: str
    attribute: str | None
    mesh: Mesh
    s_m: float
    d_m: float
    turn_rad: float
    s_speed_mps: float = 0.0
    d_speed_mps: float = 0.0

    @cached_property
    def bounds_m(self) -> Array:
        """Lowest and highest corner (2, 3) of the box around the actor, in its own frame."""
        return np.stack([self.mesh.vertices_m.min(axis=0), self.mesh.vertices_m.max(axis=0)])

    def footprint(self) -> Array:
        """Return the corners (4, 2) of that box on the ground."""
        (x0, y0, _), (x1, y1, _) = self.bounds_m
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


@dataclass(frozen=True, eq=False)
class Light:
    """The weather: `towards_sun` unit (3,); `sun` and `sky` linear RGB (3,); `haze_per_m` fades far things."""

    towards_sun: Array
    sun: Array
    sky: Array
    haze_per_m: float
    exposure: float
    clouds: float


@dataclass(frozen=True, eq=False)
class Scene:
    """All of one drive. `static` and `actors` are in the scene's frame; `world_from_scene` places it on the map."""

    name: str
    description: str
    street: Street
    ground: Ground
    static: Mesh
    actors: tuple[Actor, ...]
    light: Light
    world_from_scene: Array
    ego_s_m: float
    ego_d_m: float
    ego_speed_mps: float
    ego_sway_m: float

    def actor_poses(self, time_s: float) -> Array:
        """Return the poses (actors, 4, 4) of all actors in the scene's frame at a time, in the order of the actors."""
        rows = [(a.s_m, a.d_m, a.turn_rad, a.s_speed_mps, a.d_speed_mps) for a in self.actors]
        s, d, turn, s_speed, d_speed = np.array(rows).reshape(-1, 5).T
        s, d = s + s_speed * time_s, d + d_speed * time_s
        return self.street.poses(s, d, turn, self.ground.above_m(s, d))

    def ego_pose(self, time_s: float) -> Array:
        """Return `scene_from_ego` (4, 4) at a time: along the lane, swaying a little, tilted with the road."""
        sway = self.ego_sway_m * np.sin(0.9 * time_s)
        lean = self.ego_sway_m * 0.9 * np.cos(0.9 * time_s) / max(self.ego_speed_mps, 2.0)
        moving = self.ego_speed_mps > 0
        return self.street.tilted_pose(
            self.ego_s_m + self.ego_speed_mps * time_s, self.ego_d_m + sway * moving, lean * moving
        )


def generator(*names: object) -> np.random.Generator:
    """Return a random generator that belongs to names alone: the same names, the same numbers, everywhere."""
    text = "/".join(str(name) for name in names)
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))
