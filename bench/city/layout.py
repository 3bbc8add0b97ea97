"""One drive's piece of city: which street, what stands beside it, who moves on it, and where the car drives."""

from __future__ import annotations

import numpy as np

from bench.city import standing, things
from bench.city.canvas import LANE_M
from bench.city.config import CityConfig
from bench.city.ground import CELL_M, SURFACES, Patch, make_ground
from bench.city.materials import Stuff
from bench.city.plots import Plots
from bench.city.scene import HALF_M, Light, Scene
from bench.city.shapes import Mesh, join, sheet
from bench.city.things import FINE

MAP_HALF_M = 170.0  # half the side of a map; a piece of city fits in, however it is turned
PARKING_M = 2.3
LEAD_S = 0.1  # the first sweep comes this long after the drive's clock starts, so all images have times above 0

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


def lay_out(config: CityConfig, name: str) -> Scene:
    """Return the scene of a drive, a function of the seed, the name and the length of drives only."""
    return _Builder(config, name).build()


class _Builder(Plots):
    """Lays out a drive step by step; all steps draw from one generator, so that their order is part of the city."""

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
                            self.put(standing.bush(rng), s + rng.uniform(-2, 2), 0.0)
        self.paint_lines()
        if cross < HALF_M:
            self.notes.append("junction")

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

    def furnish(self, side: int) -> None:
        """Put lamps, trees, signs, bins, benches and shelters along the kerb, and what stands by the walls."""
        rng = self.rng
        verge = self.walk_in[side] - self.kerb[side]
        line = side * (self.kerb[side] + (verge / 2 if verge else 0.45))
        step, clear = rng.uniform(7, 13), self.cross_out + 2
        trees = verge > 0 or rng.random() < 0.5
        lamps = np.arange(-HALF_M + rng.uniform(3, 9), HALF_M, 27.0)
        for s in lamps[np.abs(lamps - self.cross_s) > clear]:
            self.put(standing.street_lamp(rng), s, side * (self.kerb[side] + 0.4), self.facing(side))
            self.claim((s - 0.4, s + 0.4), (line - 0.3, line + 0.3))
        for s in np.arange(-HALF_M + 2, HALF_M - 2, step) + rng.uniform(-1, 1):
            if trees and abs(s - self.cross_s) > clear + 2 and self.claim((s - 0.8, s + 0.8), (line - 0.4, line + 0.4)):
                self.put(standing.tree(rng, street=True), s, line)
        for _ in range(int(rng.integers(4, 9))):
            s = rng.uniform(-60, 70)
            if abs(s - self.cross_s) > self.cross_half + 0.5 and self.claim(
                (s - 0.5, s + 0.5), (line - 0.3, line + 0.3)
            ):
                # signs face those who drive on their side
                self.put(standing.street_sign(rng), s, line, np.pi if side < 0 else 0.0)
        back = side * (self.front[side] - 0.35)
        for _ in range(int(rng.integers(3, 7))):
            s = rng.uniform(-60, 70)
            if abs(s - self.cross_s) > clear and self.claim((s - 0.6, s + 0.6), (back - 0.3, back + 0.3)):
                self.put(standing.litter_bin(rng), s, back, self.facing(side))
        if rng.random() < 0.5:
            s = rng.uniform(-30, 40)
            shelter = side * (self.front[side] + 0.2)
            if abs(s - self.cross_s) > clear + 3 and self.claim((s - 2.2, s + 2.2), (shelter - 0.8, shelter + 0.8)):
                self.put(standing.bus_shelter(rng), s, shelter, self.facing(side))
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
            mast = standing.traffic_light(rng, min(self.kerb[side] - 1.5, 4.0)).turned("z", np.pi)
            self.put(mast, corner, side * (self.kerb[side] + 0.5), -np.pi / 2)
            opposite = standing.traffic_light(rng, min(self.kerb[1] - 1.5, 4.0)).turned("z", np.pi)
            self.put(opposite, self.cross_s + self.cross_half + 0.9, self.kerb[1] + 0.5, np.pi / 2)

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
