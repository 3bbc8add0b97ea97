"""What stands on the plots beside the street: houses, blocks, parks, works, water."""

from __future__ import annotations

import numpy as np

from bench.city import standing, things
from bench.city.canvas import DISTRICTS, Canvas
from bench.city.ground import Patch
from bench.city.materials import Stuff
from bench.city.scene import HALF_M
from bench.city.shapes import box
from bench.city.things import FINE


class Plots(Canvas):
    """Lines a street with plots, and closes the view behind them."""

    def plot_block(self, side: int, low: float, high: float, front: float) -> None:
        rng = self.rng
        setback = float(rng.choice((0.0, rng.uniform(1.0, 4.0), rng.uniform(3.0, 8.0))))
        deep, gap = rng.uniform(12, 18), float(rng.choice((0.0, 0.0, rng.uniform(1, 4))))
        tall = rng.uniform(7, 28) if self.district == "town" else rng.uniform(6, 16)
        yard = "walk" if rng.random() < 0.6 else "grass"
        self.patches.append(Patch(yard, (low, high), self.span(side, front, front + setback + deep)))
        mesh = standing.block(rng, high - low - gap, deep, tall)
        self.put(mesh, (low + high) / 2, side * (front + setback + deep / 2), self.facing(side))
        if setback > 2 and yard == "grass":
            for _ in range(int(rng.integers(2, 7))):
                maker = standing.bush if setback < 4 or rng.random() < 0.6 else standing.tree
                self.put(maker(rng), rng.uniform(low + 1, high - 1), side * (front + rng.uniform(0.8, setback - 0.8)))

    def plot_house(self, side: int, low: float, high: float, front: float) -> None:
        rng = self.rng
        wide, deep, setback = min(rng.uniform(8, 13), high - low - 3), rng.uniform(8, 11), rng.uniform(4, 9)
        middle = low + wide / 2 + rng.uniform(0.5, max(high - low - wide - 3, 0.6))
        self.put(standing.house(rng, wide, deep), middle, side * (front + setback + deep / 2), self.facing(side))
        drive = (high - 3.2, high - 0.4)
        self.patches.append(Patch("drive", drive, self.span(side, front, front + setback + 5)))
        if rng.random() < 0.6:
            self.add("vehicle.car", things.car(rng), (drive[0] + drive[1]) / 2, side * (front + rng.uniform(3, 5)),
                     side * np.pi / 2 * rng.choice((-1, 1)), "vehicle.parked")  # fmt: skip
        self.patches.append(Patch("walk", (middle - 0.6, middle + 0.6), self.span(side, front, front + setback)))
        edge = side * (front + 0.35)
        for start, end in ((low, middle - 0.8), (middle + 0.8, drive[0] - 0.2)):
            if end - start > 1.5 and rng.random() < 0.8:
                maker = standing.fence if rng.random() < 0.6 else standing.hedge
                self.put(maker(rng, end - start), (start + end) / 2, edge)
        self.put(standing.fence(rng, setback + deep), low + 0.1, side * (front + (setback + deep) / 2), np.pi / 2)
        for _ in range(int(rng.integers(1, 5))):
            s, d = rng.uniform(low + 1, drive[0] - 1), side * (front + rng.uniform(1.4, setback - 1))
            self.put(standing.bush(rng) if rng.random() < 0.6 else standing.tree(rng), s, d)
        for _ in range(int(rng.integers(1, 4))):
            place = rng.uniform(low, high), side * (front + setback + deep + rng.uniform(3, 12))
            self.put(standing.tree(rng, detail=0.4), *place)
        if rng.random() < 0.6:
            self.backdrop(side, low, high, front + 30)

    def plot_park(self, side: int, low: float, high: float, front: float) -> None:
        rng = self.rng
        for _ in range(int(rng.integers(6, 12))):
            self.put(
                standing.tree(rng, detail=0.7), rng.uniform(low + 1, high - 1), side * (front + rng.uniform(2, 24))
            )
        for _ in range(int(rng.integers(3, 8))):
            self.put(standing.bush(rng), rng.uniform(low + 1, high - 1), side * (front + rng.uniform(1.5, 20)))
        path = rng.uniform(low + 1, high - 3)
        self.patches.append(Patch("walk", (path, path + 1.6), self.span(side, front, front + 26)))
        self.put(standing.bench(rng), path + 2.4, side * (front + rng.uniform(3, 8)), np.pi)
        if rng.random() < 0.4:
            self.put(standing.fence(rng, path - low), (path + low) / 2, side * (front + 0.3))
        elif rng.random() < 0.5:
            self.put(standing.hedge(rng, path - low), (path + low) / 2, side * (front + 0.8))
        self.backdrop(side, low, high, front + 28)

    def plot_plaza(self, side: int, low: float, high: float, front: float) -> None:
        rng = self.rng
        self.patches.append(Patch("stone", (low, high), self.span(side, front, front + 16)))
        for s in np.arange(low + 3, high - 2, 7.0):
            self.put(standing.tree(rng), s, side * (front + rng.uniform(3, 5)))
            if rng.random() < 0.6:
                self.put(standing.bench(rng), s + 2.5, side * (front + 4), self.facing(side))
        if rng.random() < 0.4:
            self.put(standing.billboard(rng), low + 3, side * (front + 9), self.facing(side))
        for _ in range(int(rng.integers(1, 5))):
            self.add_walker(rng.uniform(low + 1, high - 1), side * (front + rng.uniform(6, 13)), rng.uniform(-3, 3))
        self.put(standing.block(rng, high - low, 14.0, rng.uniform(10, 25)), (low + high) / 2, side * (front + 23),
                 self.facing(side))  # fmt: skip

    def plot_lot(self, side: int, low: float, high: float, front: float) -> None:
        rng = self.rng
        self.patches.append(Patch("road", (low + 0.5, high - 0.5), self.span(side, front + 1.0, front + 18)))
        self.put(standing.fence(rng, high - low - 6), (low + high) / 2 + 2.5, side * (front + 0.5))
        for s in np.arange(low + 2.2, high - 1.6, 2.8):
            if rng.random() < 0.6:
                turn = np.pi / 2 * rng.choice((-1, 1))
                self.add("vehicle.car", things.car(rng), s, side * (front + 4.2), turn, "vehicle.parked", margin=0.05)
        far = self.draw({"vehicle.trailer": 0.5, "vehicle.truck": 0.4, "vehicle.bus.rigid": 0.1})
        turn = float(rng.choice((0.0, np.pi)))
        if high - low > 15:
            self.add(far, self.vehicle(far, False), (low + high) / 2, side * (front + 14), turn, "vehicle.parked")
        self.put(standing.shed(rng, high - low, 12), (low + high) / 2, side * (front + 25), self.facing(side))

    def plot_shed(self, side: int, low: float, high: float, front: float) -> None:
        rng = self.rng
        setback = rng.uniform(5, 12)
        self.patches.append(Patch("drive", (low, high), self.span(side, front + 1.5, front + setback)))
        self.put(
            standing.shed(rng, high - low - 1, 16), (low + high) / 2, side * (front + setback + 8), self.facing(side)
        )
        if setback > 7 and rng.random() < 0.6:
            kind = self.draw({"vehicle.trailer": 0.55, "vehicle.truck": 0.35, "vehicle.car": 0.1})
            turn = float(rng.choice((0.0, np.pi)))
            self.add(kind, self.vehicle(kind, False), (low + high) / 2, side * (front + 5), turn, "vehicle.parked")
        if rng.random() < 0.5:
            self.put(standing.fence(rng, (high - low) * 0.6), low + (high - low) * 0.3, side * (front + 0.8))

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

    def backdrop(self, side: int, low: float, high: float, offset: float) -> None:
        """Something to stop the view behind a plot that is open."""
        high_m = self.rng.uniform(6, 16)
        if self.rng.random() < 0.55:
            for s in np.arange(low + 2, high, 4.5):
                self.put(standing.tree(self.rng, detail=0.4), s, side * (offset + self.rng.uniform(0, 4)))
            return
        mesh = standing.block(self.rng, high - low, 12.0, high_m)
        self.put(mesh, (low + high) / 2, side * (offset + 8), self.facing(side))

    def rail_track(self, side: int, front: float) -> float:
        """Lay a railway line along the street; returns where plots begin behind it."""
        self.patches.append(Patch("rail", (-HALF_M, HALF_M), self.span(side, front + 0.8, front + 5.2)))
        for offset in (2.3, 3.735):
            for s in np.arange(-HALF_M, HALF_M, 5.0):
                rail = box((5.05, 0.08, 0.14), (0, 0, 0.0), Stuff.STEEL).of_class(FINE["flat.other"])
                if not self.cross_s - self.cross_out - 3 < s < self.cross_s + self.cross_out + 3:
                    self.put(rail, s, side * (front + offset))
        self.put(standing.fence(self.rng, 24.0), -20.0, side * (front + 0.5))
        self.notes.append("railway")
        return front + 6.0

    def waterfront(self, side: int) -> None:
        """Return a promenade and a river along a whole side, houses on the far bank."""
        rng, front = self.rng, self.front[side]
        self.patches.append(Patch("stone", (-HALF_M, HALF_M), self.span(side, front, front + 4)))
        self.patches.append(Patch("water", (-HALF_M, HALF_M), self.span(side, front + 4, front + 38)))
        for s in np.arange(-HALF_M + 6, HALF_M, 12.0):
            if abs(s - self.cross_s) > self.cross_out + 5:
                self.put(standing.guard_rail(rng, 11.0), s, side * (front + 3.6))
                self.put(
                    standing.tree(rng) if rng.random() < 0.5 else standing.bench(rng),
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
                    self.put(standing.tree(rng, detail=0.3), *place)
            else:
                self.put(standing.block(rng, 18.0, 12.0, rng.uniform(6, 20)), s, d, turn)

        for end in (-1, 1):
            for d in np.arange(-90, 91, 18.0):
                stand(end * (HALF_M - 2), d + rng.uniform(-2, 2), 0.0 if end < 0 else np.pi)
            for s in np.arange(-105, 106, 20.0):
                stand(s, end * (max(self.front[end] + 60, 72.0) + rng.uniform(-3, 3)), self.facing(end))
