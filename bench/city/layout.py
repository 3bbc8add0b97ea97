"""One drive's piece of city: which street, what stands beside it, who moves on it, and where the car drives."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bench.city import things
from bench.city.config import CityConfig
from bench.city.ground import CELL_M, SURFACES, Ground, Patch, Street, make_ground
from bench.city.materials import Stuff
from bench.city.shapes import Array, Mesh, box, join, sheet
from bench.city.things import FINE

HALF_M = 115.0  # the piece of city reaches this far along the street and across it
MAP_HALF_M = 170.0  # half the side of a map; a piece of city fits in, however it is turned
LANE_M = 3.5
PARKING_M = 2.3
KEYFRAME_S = 0.5
LEAD_S = 0.1  # the first sweep comes this long after the drive's clock starts, so all images have times above 0

DISTRICTS: dict[str, dict[str, float]] = {
    "town": {"block": 0.64, "plaza": 0.12, "park": 0.10, "lot": 0.06, "site": 0.08},
    "suburb": {"house": 0.66, "park": 0.17, "block": 0.08, "lot": 0.05, "site": 0.04},
    "works": {"shed": 0.38, "lot": 0.20, "site": 0.14, "block": 0.14, "park": 0.14},
    "waterside": {"block": 0.52, "park": 0.22, "plaza": 0.18, "house": 0.08},
}
TRAFFIC: dict[str, float] = {
    "vehicle.car": 0.745,
    "vehicle.truck": 0.08,
    "vehicle.bus.rigid": 0.035,
    "vehicle.bus.bendy": 0.015,
    "vehicle.motorcycle": 0.065,
    "vehicle.bicycle": 0.06,
}
PARKED: dict[str, float] = {
    "vehicle.car": 0.84,
    "vehicle.truck": 0.06,
    "vehicle.trailer": 0.05,
    "vehicle.motorcycle": 0.05,
}
# Seldom seen kinds take turns from drive to drive, so that any two drives in a row show them all: those that drive in
# the lane of the car and in the oncoming one, and the one that is parked where the car passes.
RARE_DRIVEN = (("vehicle.motorcycle", "vehicle.bicycle"), ("vehicle.truck", "vehicle.bus.rigid"))
RARE_PARKED = ("vehicle.trailer", "vehicle.construction")


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


def lay_out(config: CityConfig, name: str) -> Scene:
    """Return the scene of a drive, a function of the seed, the name and the length of drives only."""
    return _Builder(config, name).build()


class _Builder:
    """Collects patches of ground and things on them; things are set on the ground once it is whole."""

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

    # -- the order of building -------------------------------------------------------------------------------------

    def build(self) -> Scene:
        rng = self.rng
        self.lay_street()
        self.choose_ego()
        for side in (-1, 1):
            self.line_with_plots(side)
        self.close_views()
        works_side = self.set_up_works()
        self.park_rare_one()
        for side in (-1, 1):
            self.furnish(side)
            if self.parking[side]:
                self.park_cars(side)
            self.drive(side, blocked=side == works_side)
            self.walk(side)
        self.cross_traffic()
        ground = make_ground([*self.patches, *self.strips])
        static = [ground.mesh(self.street, rng), self.markings()]
        meshes = [mesh for mesh, *_ in self.things]
        s, d, turn = np.array([place for _, *place in self.things]).T
        poses = self.street.poses(s, d, turn, ground.above_m(s, d))
        static += [mesh.moved(pose) for mesh, pose in zip(meshes, poses, strict=True)]
        world_from_scene = self.street.pose(0.0, 0.0, float(rng.uniform(-np.pi, np.pi)))
        world_from_scene[:3, 3] = (MAP_HALF_M, MAP_HALF_M, 0.0)
        return Scene(
            name=self.name,
            description=", ".join(dict.fromkeys(self.notes)),
            street=self.street,
            ground=ground,
            static=join([*static, horizon()]),
            actors=tuple(self.actors),
            light=self.weather(),
            world_from_scene=world_from_scene,
            ego_s_m=self.ego_s,
            ego_d_m=self.ego_d,
            ego_speed_mps=self.ego_speed,
            ego_sway_m=float(rng.uniform(0.0, 0.12)),
        )

    def weather(self) -> Light:
        rng = self.rng
        clouds = float(rng.choice((rng.uniform(0.05, 0.5), rng.uniform(0.75, 1.0))))
        course, height = rng.uniform(-np.pi, np.pi), np.radians(rng.uniform(24, 62))
        towards = np.array([np.cos(course) * np.cos(height), np.sin(course) * np.cos(height), np.sin(height)])
        warm = np.array([1.0, 0.93 + 0.05 * np.sin(height), 0.78 + 0.18 * np.sin(height)])
        blue = np.array([0.42, 0.58, 0.86]) * (1 - clouds) + np.array([0.70, 0.73, 0.77]) * clouds
        sun = warm * 2.3 * (1 - clouds) ** 0.7
        self.notes.append("overcast" if clouds > 0.6 else "sun")
        exposure = 1.05 / (0.55 + 0.30 * float(sun.mean()))
        return Light(towards, sun, blue, float(rng.uniform(0.0004, 0.0016)), exposure * rng.uniform(0.9, 1.1), clouds)

    # -- the street ------------------------------------------------------------------------------------------------

    def lay_street(self) -> None:
        rng = self.rng
        self.lanes = int(rng.choice((1, 2), p=(0.4, 0.6)))
        self.median = float(rng.uniform(0.7, 1.6)) if self.lanes == 2 and rng.random() < 0.4 else 0.0
        self.parking_side = int(rng.choice((-1, 1)))
        self.parking = {side: side == self.parking_side or bool(rng.random() < 0.4) for side in (-1, 1)}
        self.kerb, self.walk_in, self.front = {}, {}, {}
        whole = (-HALF_M, HALF_M)
        for side in (-1, 1):
            self.kerb[side] = self.median + self.lanes * LANE_M + (PARKING_M if self.parking[side] else 0.3)
            verge = float(rng.uniform(1.2, 3.0)) if rng.random() < 0.5 else 0.0
            self.walk_in[side] = self.kerb[side] + verge
            self.front[side] = self.walk_in[side] + float(rng.uniform(1.9, 3.6))
            self.strips.append(Patch("grass", whole, self.span(side, self.kerb[side], self.walk_in[side])))
            self.strips.append(Patch("walk", whole, self.span(side, self.walk_in[side], self.front[side])))
        self.cross_s = float(rng.uniform(8, 50)) if rng.random() < 0.75 else 400.0
        self.cross_half = LANE_M + float(rng.choice((0.2, 2.5)))
        self.cross_out = self.cross_half + float(rng.uniform(2.0, 3.2))
        cross, half, out = self.cross_s, self.cross_half, self.cross_out
        self.strips.append(Patch("walk", (cross - out, cross + out), whole))
        self.strips.append(Patch("road", whole, (-self.kerb[-1], self.kerb[1])))
        self.strips.append(Patch("road", (cross - half, cross + half), whole))
        if self.median:
            kind = str(rng.choice(("grass", "island")))
            gap = out + 2.5
            for reach in ((-HALF_M, min(cross - gap, HALF_M)), (cross + gap, HALF_M)):
                if reach[0] < reach[1]:
                    self.strips.append(Patch(kind, reach, (-self.median + 0.25, self.median - 0.25)))
                    if kind == "grass" and rng.random() < 0.6:
                        for s in np.arange(reach[0] + 4, reach[1] - 4, 11.0):
                            self.put(things.bush(rng), s + rng.uniform(-2, 2), 0.0)
        self.paint_lines()
        if cross < HALF_M:
            self.notes.append("junction")

    @staticmethod
    def span(side: int, inner: float, outer: float) -> tuple[float, float]:
        """Return the range of d between two distances from the middle on a side (-1 right, 1 left)."""
        return (inner, outer) if side > 0 else (-outer, -inner)

    def paint_lines(self) -> None:
        cross, keep = self.cross_s, self.cross_out + 2.2
        dashes = np.arange(-HALF_M, HALF_M, 9.0)
        dashes = dashes[np.abs(dashes + 1.5 - cross) > keep + 1.5]
        solid = np.arange(-HALF_M, HALF_M, CELL_M)
        solid = solid[np.abs(solid + CELL_M / 2 - cross) > keep + CELL_M / 2]
        for side in (-1, 1):
            for lane in range(1, self.lanes):
                d = side * (self.median + lane * LANE_M)
                self.marks += [(s, s + 3.0, d - 0.07, d + 0.07) for s in dashes]
            d = side * (self.median + self.lanes * LANE_M + 0.05)
            self.marks += [(s, s + CELL_M, d - 0.06, d + 0.06) for s in solid]
            if self.parking[side]:
                bays = np.arange(-HALF_M, HALF_M, 6.0)
                inner, outer = self.span(side, abs(d), self.kerb[side] - 0.1)
                self.marks += [(s, s + 0.1, inner, outer) for s in bays[np.abs(bays - cross) > keep + 2]]
        if not self.median:
            if self.lanes == 1:
                self.marks += [(s, s + 3.0, -0.07, 0.07) for s in dashes]
            else:
                self.marks += [(s, s + CELL_M, d - 0.06, d + 0.06) for s in solid for d in (-0.15, 0.15)]
        if cross < HALF_M:
            for end in (-1, 1):
                start = cross + end * (self.cross_half + 0.4)
                low, high = sorted((start, start + end * 2.4))
                for d in np.arange(-self.kerb[-1] + 0.5, self.kerb[1] - 0.4, 1.0):
                    self.marks.append((low, high, d, d + 0.5))
                stop = cross + end * (self.cross_half + 4.0)
                lanes = self.span(end, self.median + 0.2, self.median + self.lanes * LANE_M)
                self.marks.append((stop, stop + 0.35, *lanes))
                for s in np.arange(cross - self.cross_half + 0.3, cross + self.cross_half - 0.3, 1.0):
                    zebra = self.span(end, self.kerb[end] + 0.4, self.kerb[end] + 2.6)
                    self.marks.append((s, s + 0.5, *zebra))

    def markings(self) -> Mesh:
        """Painted marks as thin sheets just above the road, so cameras and LiDAR both see them."""
        low_s, high_s, low_d, high_d = np.array(self.marks).T
        corners = [(low_s, low_d), (high_s, low_d), (high_s, high_d), (low_s, high_d)]
        quads = np.stack([self.street.place(s, d, 0.008) for s, d in corners], axis=1)
        worn = self.rng.uniform(0.75, 1.1, (len(quads), 1))
        return sheet(quads, Stuff.MARKING, np.repeat(worn, 3, axis=1)).of_class(FINE["flat.driveable_surface"])

    # -- placing -----------------------------------------------------------------------------------------------------

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

    def vehicle(self, category: str, ridden: bool) -> Mesh:
        if category == "vehicle.bicycle":
            return things.bicycle(self.rng, ridden)
        if category == "vehicle.motorcycle":
            return things.motorcycle(self.rng, ridden)
        return things.MAKERS[category](self.rng)

    def draw(self, shares: dict[str, float]) -> str:
        weights = np.array(list(shares.values()))
        return str(self.rng.choice(list(shares), p=weights / weights.sum()))

    # -- the car with the sensors ------------------------------------------------------------------------------------

    def choose_ego(self) -> None:
        rng = self.rng
        fastest = min(11.0, 70.0 / self.duration_s)
        self.ego_speed = 0.0 if rng.random() < 0.08 else float(rng.uniform(0.3, 1.0) * fastest)
        self.ego_s = float(rng.uniform(-45, -25)) if self.ego_speed else float(rng.uniform(-15, 5))
        if not self.ego_speed and abs(self.ego_s - self.cross_s) < 14:
            self.ego_s = self.cross_s - 14.0  # waiting at the junction
        self.ego_lane = int(rng.integers(self.lanes))
        self.ego_d = -(self.median + (self.ego_lane + 0.5) * LANE_M)
        self.claim((self.ego_s - 4, self.ego_s + 10), (self.ego_d - 1.2, self.ego_d + 1.2))
        self.notes.append(f"driving {self.ego_speed:.0f} m/s" if self.ego_speed else "standing")

    # -- beside the street -------------------------------------------------------------------------------------------

    def line_with_plots(self, side: int) -> None:
        rng = self.rng
        if self.district == "waterside" and side == 1:
            self.waterfront(side)
            return
        front = self.front[side]
        if rng.random() < 0.22:
            front = self.rail_track(side, front)
        stretches = [(-HALF_M, HALF_M)]
        if self.cross_s < HALF_M:
            stretches = [(-HALF_M, self.cross_s - self.cross_out), (self.cross_s + self.cross_out, HALF_M)]
        for low, high in stretches:
            while high - low > 1:  # what remains after the last plot is rounding
                wide = float(rng.uniform(13, 27))
                wide = high - low if high - low - wide < 13 else wide  # no plot is left too narrow to build on
                kind = self.draw(DISTRICTS[self.district])
                getattr(self, f"plot_{kind}")(side, low, low + wide, front)
                low += wide

    def facing(self, side: int) -> float:
        """Return the turn of a thing whose front looks at the street."""
        return -side * np.pi / 2

    def backdrop(self, side: int, low: float, high: float, offset: float) -> None:
        """Something to stop the view behind a plot that is open."""
        high_m = self.rng.uniform(6, 16)
        if self.rng.random() < 0.55:
            for s in np.arange(low + 2, high, 4.5):
                self.put(things.tree(self.rng, detail=0.4), s, side * (offset + self.rng.uniform(0, 4)))
            return
        mesh = things.block(self.rng, high - low, 12.0, high_m)
        self.put(mesh, (low + high) / 2, side * (offset + 8), self.facing(side))

    def plot_block(self, side: int, low: float, high: float, front: float) -> None:
        rng = self.rng
        setback = float(rng.choice((0.0, rng.uniform(1.0, 4.0), rng.uniform(3.0, 8.0))))
        deep, gap = rng.uniform(12, 18), float(rng.choice((0.0, 0.0, rng.uniform(1, 4))))
        tall = rng.uniform(7, 28) if self.district == "town" else rng.uniform(6, 16)
        yard = "walk" if rng.random() < 0.6 else "grass"
        self.patches.append(Patch(yard, (low, high), self.span(side, front, front + setback + deep)))
        mesh = things.block(rng, high - low - gap, deep, tall)
        self.put(mesh, (low + high) / 2, side * (front + setback + deep / 2), self.facing(side))
        if setback > 2 and yard == "grass":
            for _ in range(int(rng.integers(2, 7))):
                maker = things.bush if setback < 4 or rng.random() < 0.6 else things.tree
                self.put(maker(rng), rng.uniform(low + 1, high - 1), side * (front + rng.uniform(0.8, setback - 0.8)))

    def plot_house(self, side: int, low: float, high: float, front: float) -> None:
        rng = self.rng
        wide, deep, setback = min(rng.uniform(8, 13), high - low - 3), rng.uniform(8, 11), rng.uniform(4, 9)
        middle = low + wide / 2 + rng.uniform(0.5, max(high - low - wide - 3, 0.6))
        self.put(things.house(rng, wide, deep), middle, side * (front + setback + deep / 2), self.facing(side))
        drive = (high - 3.2, high - 0.4)
        self.patches.append(Patch("drive", drive, self.span(side, front, front + setback + 5)))
        if rng.random() < 0.6:
            self.add("vehicle.car", things.car(rng), (drive[0] + drive[1]) / 2, side * (front + rng.uniform(3, 5)),
                     side * np.pi / 2 * rng.choice((-1, 1)), "vehicle.parked")  # fmt: skip
        self.patches.append(Patch("walk", (middle - 0.6, middle + 0.6), self.span(side, front, front + setback)))
        edge = side * (front + 0.35)
        for start, end in ((low, middle - 0.8), (middle + 0.8, drive[0] - 0.2)):
            if end - start > 1.5 and rng.random() < 0.8:
                maker = things.fence if rng.random() < 0.6 else things.hedge
                self.put(maker(rng, end - start), (start + end) / 2, edge)
        self.put(things.fence(rng, setback + deep), low + 0.1, side * (front + (setback + deep) / 2), np.pi / 2)
        for _ in range(int(rng.integers(1, 5))):
            s, d = rng.uniform(low + 1, drive[0] - 1), side * (front + rng.uniform(1.4, setback - 1))
            self.put(things.bush(rng) if rng.random() < 0.6 else things.tree(rng), s, d)
        for _ in range(int(rng.integers(1, 4))):
            place = rng.uniform(low, high), side * (front + setback + deep + rng.uniform(3, 12))
            self.put(things.tree(rng, detail=0.4), *place)
        if rng.random() < 0.6:
            self.backdrop(side, low, high, front + 30)

    def plot_park(self, side: int, low: float, high: float, front: float) -> None:
        rng = self.rng
        for _ in range(int(rng.integers(6, 12))):
            self.put(things.tree(rng, detail=0.7), rng.uniform(low + 1, high - 1), side * (front + rng.uniform(2, 24)))
        for _ in range(int(rng.integers(3, 8))):
            self.put(things.bush(rng), rng.uniform(low + 1, high - 1), side * (front + rng.uniform(1.5, 20)))
        path = rng.uniform(low + 1, high - 3)
        self.patches.append(Patch("walk", (path, path + 1.6), self.span(side, front, front + 26)))
        self.put(things.bench(rng), path + 2.4, side * (front + rng.uniform(3, 8)), np.pi)
        if rng.random() < 0.4:
            self.put(things.fence(rng, path - low), (path + low) / 2, side * (front + 0.3))
        elif rng.random() < 0.5:
            self.put(things.hedge(rng, path - low), (path + low) / 2, side * (front + 0.8))
        self.backdrop(side, low, high, front + 28)

    def plot_plaza(self, side: int, low: float, high: float, front: float) -> None:
        rng = self.rng
        self.patches.append(Patch("stone", (low, high), self.span(side, front, front + 16)))
        for s in np.arange(low + 3, high - 2, 7.0):
            self.put(things.tree(rng), s, side * (front + rng.uniform(3, 5)))
            if rng.random() < 0.6:
                self.put(things.bench(rng), s + 2.5, side * (front + 4), self.facing(side))
        if rng.random() < 0.4:
            self.put(things.billboard(rng), low + 3, side * (front + 9), self.facing(side))
        for _ in range(int(rng.integers(1, 5))):
            self.add_walker(rng.uniform(low + 1, high - 1), side * (front + rng.uniform(6, 13)), rng.uniform(-3, 3))
        self.put(things.block(rng, high - low, 14.0, rng.uniform(10, 25)), (low + high) / 2, side * (front + 23),
                 self.facing(side))  # fmt: skip

    def plot_lot(self, side: int, low: float, high: float, front: float) -> None:
        rng = self.rng
        self.patches.append(Patch("road", (low + 0.5, high - 0.5), self.span(side, front + 1.0, front + 18)))
        self.put(things.fence(rng, high - low - 6), (low + high) / 2 + 2.5, side * (front + 0.5))
        for s in np.arange(low + 2.2, high - 1.6, 2.8):
            if rng.random() < 0.6:
                turn = np.pi / 2 * rng.choice((-1, 1))
                self.add("vehicle.car", things.car(rng), s, side * (front + 4.2), turn, "vehicle.parked", margin=0.05)
        far = self.draw({"vehicle.trailer": 0.5, "vehicle.truck": 0.4, "vehicle.bus.rigid": 0.1})
        turn = float(rng.choice((0.0, np.pi)))
        if high - low > 15:
            self.add(far, self.vehicle(far, False), (low + high) / 2, side * (front + 14), turn, "vehicle.parked")
        self.put(things.shed(rng, high - low, 12), (low + high) / 2, side * (front + 25), self.facing(side))

    def plot_shed(self, side: int, low: float, high: float, front: float) -> None:
        rng = self.rng
        setback = rng.uniform(5, 12)
        self.patches.append(Patch("drive", (low, high), self.span(side, front + 1.5, front + setback)))
        self.put(
            things.shed(rng, high - low - 1, 16), (low + high) / 2, side * (front + setback + 8), self.facing(side)
        )
        if setback > 7 and rng.random() < 0.6:
            kind = self.draw({"vehicle.trailer": 0.55, "vehicle.truck": 0.35, "vehicle.car": 0.1})
            turn = float(rng.choice((0.0, np.pi)))
            self.add(kind, self.vehicle(kind, False), (low + high) / 2, side * (front + 5), turn, "vehicle.parked")
        if rng.random() < 0.5:
            self.put(things.fence(rng, (high - low) * 0.6), low + (high - low) * 0.3, side * (front + 0.8))

    def plot_site(self, side: int, low: float, high: float, front: float) -> None:
        rng = self.rng
        self.patches.append(Patch("soil", (low, high), self.span(side, front, front + 26)))
        for s in np.arange(low + 1.2, high - 3.5, 2.1):
            barrier = things.plank_barrier(rng) if rng.random() < 0.5 else things.jersey_barrier(rng)
            self.add("movable_object.barrier", barrier, s, side * (front + 0.7), 0.0, margin=0.0)
        for _ in range(2):
            mesh = things.MAKERS["vehicle.construction"](rng)
            place = rng.uniform(low + 4, high - 4), side * (front + rng.uniform(5, 14))
            self.add("vehicle.construction", mesh, *place, rng.uniform(-3, 3), "vehicle.parked")
        for _ in range(int(rng.integers(1, 4))):
            place = rng.uniform(low + 1, high - 1), side * (front + rng.uniform(2, 12))
            self.add("human.pedestrian.construction_worker", things.worker(rng), *place, rng.uniform(-3, 3),
                     "pedestrian.standing")  # fmt: skip
        self.backdrop(side, low, high, front + 26)
        self.notes.append("building site")

    def rail_track(self, side: int, front: float) -> float:
        """Lay a railway line along the street; returns where plots begin behind it."""
        self.patches.append(Patch("rail", (-HALF_M, HALF_M), self.span(side, front + 0.8, front + 5.2)))
        for offset in (2.3, 3.735):
            for s in np.arange(-HALF_M, HALF_M, 5.0):
                rail = box((5.05, 0.08, 0.14), (0, 0, 0.0), Stuff.STEEL).of_class(FINE["flat.other"])
                if not self.cross_s - self.cross_out - 3 < s < self.cross_s + self.cross_out + 3:
                    self.put(rail, s, side * (front + offset))
        self.put(things.fence(self.rng, 24.0), -20.0, side * (front + 0.5))
        self.notes.append("railway")
        return front + 6.0

    def waterfront(self, side: int) -> None:
        """Return a promenade and a river along a whole side, houses on the far bank."""
        rng, front = self.rng, self.front[side]
        self.patches.append(Patch("stone", (-HALF_M, HALF_M), self.span(side, front, front + 4)))
        self.patches.append(Patch("water", (-HALF_M, HALF_M), self.span(side, front + 4, front + 38)))
        for s in np.arange(-HALF_M + 6, HALF_M, 12.0):
            if abs(s - self.cross_s) > self.cross_out + 5:
                self.put(things.guard_rail(rng, 11.0), s, side * (front + 3.6))
                self.put(
                    things.tree(rng) if rng.random() < 0.5 else things.bench(rng),
                    s,
                    side * (front + 1.5),
                    self.facing(side),
                )
        for s in np.arange(-HALF_M + 8, HALF_M, 18.0):
            self.backdrop(side, s - 8, s + 8, front + 42)
        self.notes.append("river")

    def close_views(self) -> None:
        """Put buildings and trees behind everything, so that no street ends in the open."""
        rng = self.rng

        def stand(s: float, d: float, turn: float) -> None:
            if rng.random() < 0.5:
                for step in np.arange(-8, 9, 4.0):
                    place = s + step * np.sin(turn), d + step * np.cos(turn)
                    self.put(things.tree(rng, detail=0.3), *place)
            else:
                self.put(things.block(rng, 18.0, 12.0, rng.uniform(6, 20)), s, d, turn)

        for end in (-1, 1):
            for d in np.arange(-90, 91, 18.0):
                stand(end * (HALF_M - 2), d + rng.uniform(-2, 2), 0.0 if end < 0 else np.pi)
            for s in np.arange(-105, 106, 20.0):
                stand(s, end * (max(self.front[end] + 60, 72.0) + rng.uniform(-3, 3)), self.facing(end))

    def furnish(self, side: int) -> None:
        """Put lamps, trees, signs, bins, benches and shelters along the kerb, and what stands by the walls."""
        rng = self.rng
        verge = self.walk_in[side] - self.kerb[side]
        line = side * (self.kerb[side] + (verge / 2 if verge else 0.45))
        step, clear = rng.uniform(7, 13), self.cross_out + 2
        trees = verge > 0 or rng.random() < 0.5
        lamps = np.arange(-HALF_M + rng.uniform(3, 9), HALF_M, 27.0)
        for s in lamps[np.abs(lamps - self.cross_s) > clear]:
            self.put(things.street_lamp(rng), s, side * (self.kerb[side] + 0.4), self.facing(side))
            self.claim((s - 0.4, s + 0.4), (line - 0.3, line + 0.3))
        for s in np.arange(-HALF_M + 2, HALF_M - 2, step) + rng.uniform(-1, 1):
            if trees and abs(s - self.cross_s) > clear + 2 and self.claim((s - 0.8, s + 0.8), (line - 0.4, line + 0.4)):
                self.put(things.tree(rng, street=True), s, line)
        for _ in range(int(rng.integers(4, 9))):
            s = rng.uniform(-60, 70)
            if abs(s - self.cross_s) > self.cross_half + 0.5 and self.claim(
                (s - 0.5, s + 0.5), (line - 0.3, line + 0.3)
            ):
                # signs face those who drive on their side
                self.put(things.street_sign(rng), s, line, np.pi if side < 0 else 0.0)
        back = side * (self.front[side] - 0.35)
        for _ in range(int(rng.integers(3, 7))):
            s = rng.uniform(-60, 70)
            if abs(s - self.cross_s) > clear and self.claim((s - 0.6, s + 0.6), (back - 0.3, back + 0.3)):
                self.put(things.litter_bin(rng), s, back, self.facing(side))
        if rng.random() < 0.5:
            s = rng.uniform(-30, 40)
            shelter = side * (self.front[side] + 0.2)
            if abs(s - self.cross_s) > clear + 3 and self.claim((s - 2.2, s + 2.2), (shelter - 0.8, shelter + 0.8)):
                self.put(things.bus_shelter(rng), s, shelter, self.facing(side))
        self.park_cycles(side, clear)
        self.put_lights(side)

    def park_cycles(self, side: int, clear: float) -> None:
        """Park bicycles and motorcycles in groups along the walls, `clear` of the crossing."""
        rng = self.rng
        for group in range(int(rng.integers(1, 4))):
            kind = ("vehicle.bicycle", "vehicle.motorcycle")[int(rng.integers(2))]
            start = rng.uniform(-40, 60)
            for k in range(int(rng.integers(1, 5))):
                s, d = start + 0.9 * k, side * (self.walk_in[side] + 0.95)
                if abs(s - self.cross_s) > clear:
                    turn = self.facing(side) + 0.2 * rng.normal() + (np.pi if group else 0)
                    self.add(kind, self.vehicle(kind, False), s, d, turn, "cycle.without_rider", margin=0.0)

    def put_lights(self, side: int) -> None:
        """Put traffic lights before the crossing, both of them from one side of the street."""
        rng = self.rng
        corner = self.cross_s - (self.cross_half + 0.9)
        if corner < HALF_M and side < 0:
            mast = things.traffic_light(rng, min(self.kerb[side] - 1.5, 4.0)).turned("z", np.pi)
            self.put(mast, corner, side * (self.kerb[side] + 0.5), -np.pi / 2)
            opposite = things.traffic_light(rng, min(self.kerb[1] - 1.5, 4.0)).turned("z", np.pi)
            self.put(opposite, self.cross_s + self.cross_half + 0.9, self.kerb[1] + 0.5, np.pi / 2)

    # -- those who move ----------------------------------------------------------------------------------------------

    def set_up_works(self) -> int | None:
        """Close part of the road with cones and barriers; returns the side whose outer lane is closed."""
        rng = self.rng
        if self.number % 4 == 0:  # three drives of four pass works, by turns as other things that are seldom seen
            return None
        side = self.parking_side
        start = self.ego_s + rng.uniform(8, 30)
        if abs(start + 10 - self.cross_s) < self.cross_out + 14:
            start = self.cross_s + self.cross_out + 4 if self.cross_s < 40 else self.cross_s - self.cross_out - 30
        end = start + rng.uniform(14, 24)
        closes_lane = self.lanes == 2 and side > 0
        inner = self.kerb[side] - PARKING_M - (LANE_M if closes_lane else 0.0) + 0.25
        outer = self.kerb[side] - 0.2
        for s in np.arange(start, end, 2.6):
            self.add("movable_object.trafficcone", things.cone(rng), s, side * (inner + 0.05), 0.0, margin=0.0)
        for s in np.arange(start + 3, end - 1, 2.15)[: int(rng.integers(5, 11))]:
            barrier = things.MAKERS["movable_object.barrier"](rng)
            self.add("movable_object.barrier", barrier, s, side * (inner + 0.72), 0.0, margin=0.0)
        for across in np.arange(inner + 0.5, outer, 0.9):
            self.add("movable_object.trafficcone", things.cone(rng), start - 0.8, side * across, 0.0, margin=0.0)
        if outer - inner > 3:
            machine = things.MAKERS["vehicle.construction"](rng)
            turn = float(rng.choice((0.0, np.pi)))
            place = end - 4.5, side * (inner + outer + 0.9) / 2
            self.add("vehicle.construction", machine, *place, turn, "vehicle.stopped", margin=-0.4)
        for _ in range(int(rng.integers(1, 4))):
            place = rng.uniform(start + 1, end - 1), side * rng.uniform(inner + 1.1, max(outer - 0.3, inner + 1.2))
            self.add("human.pedestrian.construction_worker", things.worker(rng), *place, rng.uniform(-3, 3),
                     "pedestrian.standing", margin=0.05)  # fmt: skip
        self.claim((start - 2, end + 2), self.span(side, inner + 0.2, outer))
        self.notes.append("road works")
        return side if closes_lane else None

    def park_rare_one(self) -> None:
        """Park one of a kind that is seldom seen where the car will pass."""
        rng, side, kind = self.rng, self.parking_side, RARE_PARKED[self.number % 2]
        d = side * (self.kerb[side] - PARKING_M / 2 - 0.1)
        for s in self.ego_s + rng.uniform(-5, 50, 12):
            away = abs(s - self.cross_s) > self.cross_out + 10
            turn = 0.0 if side < 0 else np.pi
            if away and self.add(kind, self.vehicle(kind, False), s, d, turn, "vehicle.parked", margin=0.1):
                break

    def park_cars(self, side: int) -> None:
        rng = self.rng
        d = side * (self.kerb[side] - PARKING_M / 2 + 0.05)
        full = rng.uniform(0.3, 0.85)
        s = -85.0 + rng.uniform(0, 5)
        while s < 95:
            kind = self.draw(PARKED)
            mesh = self.vehicle(kind, False)
            length = float(np.ptp(mesh.vertices_m[:, 0]))
            s += length / 2
            away = abs(s - self.cross_s) > self.cross_out + 4 + length / 2
            if away and rng.random() < full:
                attribute = "cycle.without_rider" if kind == "vehicle.motorcycle" else "vehicle.parked"
                self.add(kind, mesh, s, d, 0.0 if side < 0 else np.pi, attribute)
            s += length / 2 + rng.uniform(0.8, 2.0)

    def drive(self, side: int, blocked: bool) -> None:
        """Fill the lanes of a side; all in a lane drive at one speed, so they keep their distance."""
        rng = self.rng
        turn = 0.0 if side < 0 else np.pi
        for lane in range(self.lanes):
            if blocked and lane == self.lanes - 1:
                continue
            own = side < 0 and lane == self.ego_lane
            speed = self.ego_speed if own else float(rng.uniform(4, 12)) * (rng.random() > 0.12)
            d = side * (self.median + (lane + 0.5) * LANE_M)

            def enter(kind: str, s: float, d: float = d, speed: float = speed) -> tuple[float, bool]:
                """Let a vehicle in at a place, if there is room; returns its length, and whether there was."""
                mesh = self.vehicle(kind, True)
                length = float(np.ptp(mesh.vertices_m[:, 0]))
                if not speed and abs(s - self.cross_s) < self.cross_out + length + 2:
                    return length, False  # nobody stands still on a junction
                cycle = "cycle.with_rider" if kind in ("vehicle.bicycle", "vehicle.motorcycle") else None
                attribute = cycle or ("vehicle.moving" if speed else "vehicle.stopped")
                shift = rng.uniform(-0.25, 0.25) if cycle is None else side * rng.uniform(0.2, 0.8)
                velocity = speed * np.cos(turn), 0.0
                return length, self.add(kind, mesh, s, d + shift, turn, attribute, velocity, margin=0.4)

            # oncoming vehicles meet the car in the first second or two
            kind = RARE_DRIVEN[self.number % 2][side > 0]
            for ahead in rng.uniform(12, 32, 4) + (speed if side > 0 else 0.0):
                if lane == 0 and enter(kind, self.ego_s + ahead)[1]:
                    break
            s = rng.uniform(-95, -85)
            while s < 100:
                s += enter(self.draw(TRAFFIC), s)[0] + rng.uniform(8, 45) + speed * 0.5

    def cross_traffic(self) -> None:
        """Those who wait at the junction, and those who have just left it."""
        rng = self.rng
        if self.cross_s > HALF_M:
            return
        for side in (-1, 1):
            s, d = self.cross_s - side * LANE_M / 2, self.kerb[side] + 4.0
            turn = -side * np.pi / 2
            for _ in range(int(rng.integers(0, 4))):
                kind = self.draw(TRAFFIC)
                mesh = self.vehicle(kind, True)
                d += float(np.ptp(mesh.vertices_m[:, 0])) / 2
                cycle = "cycle.with_rider" if kind in ("vehicle.bicycle", "vehicle.motorcycle") else "vehicle.stopped"
                self.add(kind, mesh, s, side * d, turn, cycle)
                d += float(np.ptp(mesh.vertices_m[:, 0])) / 2 + rng.uniform(1.2, 3)
            speed, s, d = rng.uniform(4, 9), self.cross_s + side * LANE_M / 2, self.kerb[side] + rng.uniform(12, 30)
            kind = self.draw(TRAFFIC)
            cycle = "cycle.with_rider" if kind in ("vehicle.bicycle", "vehicle.motorcycle") else "vehicle.moving"
            self.add(kind, self.vehicle(kind, True), s, side * d, side * np.pi / 2, cycle, (0.0, side * speed))

    def add_walker(self, s: float, d: float, turn: float) -> None:
        rng = self.rng
        kind = "human.pedestrian.adult" if rng.random() < 0.88 else "human.pedestrian.child"
        speed = 0.0 if rng.random() < 0.2 else rng.uniform(0.7, 1.6)
        attribute = "pedestrian.moving" if speed else "pedestrian.standing"
        velocity = speed * np.cos(turn), speed * np.sin(turn)
        self.add(kind, things.MAKERS[kind](rng), s, d, turn, attribute, velocity, margin=0.05)

    def walk(self, side: int) -> None:
        """People on the pavement, some of them crossing the side street, and some who ride there."""
        rng = self.rng
        busy = {"town": 16, "suburb": 7, "works": 6, "waterside": 13}[self.district]
        for _ in range(int(rng.integers(busy // 2, busy + 1))):
            d = side * rng.uniform(self.walk_in[side] + 0.4, self.front[side] - 0.4)
            s = float(np.clip(rng.normal(self.ego_s + 20, 28), -95, 95))
            self.add_walker(s, d, float(rng.choice((0.0, np.pi)) + 0.08 * rng.normal()))
        for _ in range(int(rng.integers(0, 3))):
            d, turn = side * (self.walk_in[side] + 0.7), float(rng.choice((0.0, np.pi)))
            speed = rng.uniform(2.5, 4.5)
            self.add("vehicle.bicycle", things.bicycle(rng, True), rng.uniform(-50, 60), d, turn, "cycle.with_rider",
                     (speed * np.cos(turn), 0.0))  # fmt: skip


def horizon() -> Mesh:
    """Land beyond the piece of city, a little lower than its ground."""
    far = 600.0
    land = sheet([(-far, -far, -1.5), (far, -far, -1.5), (far, far, -1.5), (-far, far, -1.5)], Stuff.GRASS)
    return land.of_class(SURFACES["grass"].fine)
