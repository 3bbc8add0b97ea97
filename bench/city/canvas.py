"""The piece of city while it is laid out: patches of ground, things and actors on them, and what room is taken."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.city import things
from bench.city.config import CityConfig
from bench.city.ground import Patch, Street
from bench.city.scene import HALF_M, Actor, generator
from bench.city.shapes import Mesh

LANE_M = 3.5
KEYFRAME_S = 0.5
DISTRICTS: dict[str, dict[str, float]] = {
    "town": {"block": 0.64, "plaza": 0.12, "park": 0.10, "lot": 0.06, "site": 0.08},
    "suburb": {"house": 0.66, "park": 0.17, "block": 0.08, "lot": 0.05, "site": 0.04},
    "works": {"shed": 0.38, "lot": 0.20, "site": 0.14, "block": 0.14, "park": 0.14},
    "waterside": {"block": 0.52, "park": 0.22, "plaza": 0.18, "house": 0.08},
}


class Canvas:
    """Collects patches of ground and things on them; things are set on the ground once it is whole."""

    # how the street is laid, which comes first of all
    lanes: int
    median: float
    parking_side: int
    parking: dict[int, bool]
    kerb: dict[int, float]
    walk_in: dict[int, float]
    front: dict[int, float]
    cross_s: float
    cross_half: float
    cross_out: float
    # the car with the sensors
    ego_speed: float
    ego_s: float
    ego_lane: int
    ego_d: float

    def __init__(self, config: CityConfig, name: str) -> None:
        self.name, self.duration_s = name, config.keyframes * KEYFRAME_S
        self.number = int(name[-4:])
        self.rng = rng = generator(config.seed, name, "layout")
        self.district = str(rng.choice(list(DISTRICTS), p=(0.34, 0.30, 0.20, 0.16)))
        bend = float(rng.choice((0.0, 1.0)) * rng.uniform(-1, 1) / 250)
        lengths, courses = rng.uniform(45, 110, 3), rng.uniform(0, 2 * np.pi, 3)
        waves = np.stack([
            rng.uniform(0.03, 0.12, 3), np.cos(courses) * 2 * np.pi / lengths, np.sin(courses) * 2 * np.pi / lengths,
            rng.uniform(0, 2 * np.pi, 3),
        ], axis=1)  # fmt: skip
        self.street = Street(bend, waves)
        self.patches = [Patch("soil" if self.district == "works" else "grass", (-HALF_M, HALF_M), (-HALF_M, HALF_M))]
        self.strips: list[Patch] = []  # the street itself, laid over the plots beside it
        self.things: list[tuple[Mesh, float, float, float]] = []
        self.actors: list[Actor] = []
        self.claims: list[tuple[float, float, float, float]] = []
        self.marks: list[tuple[float, float, float, float]] = []
        self.notes: list[str] = [self.district]

    @staticmethod
    def span(side: int, inner: float, outer: float) -> tuple[float, float]:
        """Return the range of d between two distances from the middle on a side (-1 right, 1 left)."""
        return (inner, outer) if side > 0 else (-outer, -inner)

    def put(self, mesh: Mesh, s: float, d: float, turn: float = 0.0) -> None:
        """Stand a thing without a box at a place."""
        self.things.append((mesh, float(s), float(d), float(turn)))

    def claim(self, s: Sequence[float], d: Sequence[float]) -> bool:
        """Take a rectangle if nobody has any of it; False if somebody has."""
        (s0, s1), (d0, d1) = sorted(s), sorted(d)
        if any(s0 < b and s1 > a and d0 < f and d1 > e for a, b, e, f in self.claims):
            return False
        self.claims.append((s0, s1, d0, d1))
        return True

    def add(
        self,
        category: str,
        mesh: Mesh,
        s: float,
        d: float,
        turn: float,
        attribute: str | None = None,
        speed: tuple[float, float] = (0.0, 0.0),
        margin: float = 0.3,
    ) -> bool:
        """Add an actor if the room that it needs during the drive is free; says whether it was."""
        low, high = mesh.vertices_m.min(axis=0), mesh.vertices_m.max(axis=0)
        reach = np.abs(np.stack([low, high])[:, :2]).max(axis=0)
        cos, sin = abs(np.cos(turn)), abs(np.sin(turn))
        ds = reach[0] * cos + reach[1] * sin + margin
        dd = reach[0] * sin + reach[1] * cos + margin
        # a thing in a lane moves with all others of its lane, so only its place among them must be free
        walks = category.startswith("human")
        trip = np.array(speed) * (self.duration_s if walks or not speed[0] else 0.0)
        rows = (s - ds + min(trip[0], 0.0), s + ds + max(trip[0], 0.0))
        columns = (d - dd + min(trip[1], 0.0), d + dd + max(trip[1], 0.0))
        if not self.claim(rows, columns):
            return False
        name = f"{category}/{len(self.actors)}"
        self.actors.append(Actor(name, category, attribute, mesh, float(s), float(d), float(turn), *map(float, speed)))
        return True

    def add_walker(self, s: float, d: float, turn: float) -> None:
        rng = self.rng
        kind = "human.pedestrian.adult" if rng.random() < 0.88 else "human.pedestrian.child"
        speed = 0.0 if rng.random() < 0.2 else rng.uniform(0.7, 1.6)
        attribute = "pedestrian.moving" if speed else "pedestrian.standing"
        velocity = speed * np.cos(turn), speed * np.sin(turn)
        self.add(kind, things.MAKERS[kind](rng), s, d, turn, attribute, velocity, margin=0.05)

    def vehicle(self, category: str, ridden: bool) -> Mesh:
        if category == "vehicle.bicycle":
            return things.bicycle(self.rng, ridden)
        if category == "vehicle.motorcycle":
            return things.motorcycle(self.rng, ridden)
        return things.MAKERS[category](self.rng)

    def draw(self, shares: dict[str, float]) -> str:
        weights = np.array(list(shares.values()))
        return str(self.rng.choice(list(shares), p=weights / weights.sum()))

    def facing(self, side: int) -> float:
        """Return the turn of a thing whose front looks at the street."""
        return -side * np.pi / 2
