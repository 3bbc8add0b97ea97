"""Meshes of the things that stand and move in the city, each in its own frame: x forward, origin on the ground."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bench.city.materials import Stuff
from bench.city.shapes import WHITE, Colour, Mesh, ball, box, join, prism, rod

Random = np.random.Generator

# Fine classes by their place in the class dictionary `nuscenes`, which is the raw label of nuScenes-lidarseg.
FINE = {
    "noise": 0,
    "human.pedestrian.adult": 2,
    "human.pedestrian.child": 3,
    "human.pedestrian.construction_worker": 4,
    "movable_object.barrier": 9,
    "movable_object.trafficcone": 12,
    "vehicle.bicycle": 14,
    "vehicle.bus.bendy": 15,
    "vehicle.bus.rigid": 16,
    "vehicle.car": 17,
    "vehicle.construction": 18,
    "vehicle.motorcycle": 21,
    "vehicle.trailer": 22,
    "vehicle.truck": 23,
    "flat.driveable_surface": 24,
    "flat.other": 25,
    "flat.sidewalk": 26,
    "flat.terrain": 27,
    "static.manmade": 28,
    "static.other": 29,
    "static.vegetation": 30,
    "vehicle.ego": 31,
}
MANMADE, VEGETATION = FINE["static.manmade"], FINE["static.vegetation"]

CAR_PAINTS = (
    (0.80, 0.80, 0.80),
    (0.45, 0.46, 0.48),
    (0.03, 0.03, 0.035),
    (0.12, 0.13, 0.14),
    (0.50, 0.03, 0.03),
    (0.04, 0.10, 0.35),
    (0.55, 0.50, 0.40),
    (0.05, 0.18, 0.12),
    (0.75, 0.55, 0.08),
)
LIVERIES = ((0.75, 0.75, 0.73), (0.60, 0.05, 0.04), (0.05, 0.20, 0.50), (0.75, 0.45, 0.05), (0.10, 0.35, 0.15))
CLOTHES = (
    (0.05, 0.06, 0.12),
    (0.45, 0.44, 0.42),
    (0.03, 0.03, 0.03),
    (0.50, 0.07, 0.06),
    (0.10, 0.25, 0.45),
    (0.55, 0.45, 0.25),
    (0.20, 0.35, 0.20),
    (0.65, 0.60, 0.60),
)
ORANGE, YELLOW, RED, NIGHT = (0.85, 0.22, 0.02), (0.80, 0.50, 0.03), (0.70, 0.03, 0.02), (0.05, 0.05, 0.05)
GREENS = ((1.0, 1.0, 1.0), (0.8, 1.1, 0.7), (1.3, 1.2, 0.6), (0.7, 0.85, 0.8), (1.7, 1.1, 0.6))


def pick(rng: Random, choices: Sequence[Colour]) -> tuple[float, float, float]:
    """Return one of several colours, slightly changed."""
    red, green, blue = np.asarray(choices[rng.integers(len(choices))]) * rng.uniform(0.85, 1.1)
    return float(red), float(green), float(blue)


def wheels(at_x_m: Sequence[float], half_track_m: float, radius_m: float, width_m: float = 0.22) -> Mesh:
    """Return pairs of wheels, which stand a little out of the body, so that no two faces lie in one plane."""
    half_track_m += 0.025
    return join(
        rod((x, side * half_track_m, radius_m), (x, side * (half_track_m - width_m), radius_m), radius_m, radius_m,
            Stuff.RUBBER, sides=10)
        for x in at_x_m
        for side in (-1, 1)
    )  # fmt: skip


def car(rng: Random) -> Mesh:
    """Return a saloon, a hatchback, an estate or a van, 3.9 to 5 m long."""
    kind = rng.integers(4)
    length = (4.6, 4.0, 4.7, 4.9)[kind] * rng.uniform(0.96, 1.05)
    height = (1.45, 1.5, 1.62, 1.95)[kind] * rng.uniform(0.97, 1.04)
    width = (1.8, 1.74, 1.85, 1.95)[kind]
    paint, half, waist = pick(rng, CAR_PAINTS), length / 2, (0.92, 0.93, 1.0, 1.1)[kind]
    nose, tail = ((0.80, 0.86), (0.82, 0.92), (0.90, 0.99), (0.95, 1.08))[kind]
    body = prism(
        [(-half, 0.35), (-half + 0.12, 0.2), (half - 0.1, 0.2), (half, 0.4), (half - 0.06, nose * 0.88),
         (half * 0.45, waist), (-half * 0.62, waist), (-half + 0.05, tail)],
        [width / 2 - 0.06, width / 2 - 0.1, width / 2 - 0.1, width / 2 - 0.06, width / 2 - 0.04, width / 2,
         width / 2, width / 2 - 0.04],
        [Stuff.PAINT] * 9, paint,
    )  # fmt: skip
    windscreen, rear = ((0.42, -0.60), (0.45, -0.86), (0.42, -0.90), (0.62, -0.93))[kind]
    slope = (0.7, 0.65, 0.7, 0.5)[kind]
    cabin = prism(
        [(rear * half, waist), (windscreen * half, waist), (windscreen * half - slope, height),
         (rear * half + (0.55 if kind == 0 else 0.18), height)],
        [width / 2 - 0.03, width / 2 - 0.03, width / 2 - 0.24, width / 2 - 0.24],
        [Stuff.PAINT, Stuff.GLASS, Stuff.PAINT, Stuff.GLASS, Stuff.GLASS], [paint, WHITE, paint, WHITE, WHITE],
    )  # fmt: skip
    lights = [box((0.06, 0.34, 0.14), (half - 0.05, side * (width / 2 - 0.26), 0.62), Stuff.LAMP) for side in (-1, 1)]
    lights += [
        box((0.06, 0.28, 0.16), (-half + 0.03, side * (width / 2 - 0.22), 0.68), Stuff.LAMP, (0.7, 0.03, 0.02))
        for side in (-1, 1)
    ]
    plates = [box((0.03, 0.5, 0.11), (side * (half - 0.005), 0, 0.45), Stuff.REFLEX) for side in (-1, 1)]
    axles = (half * 0.62, -half * 0.58)
    return join([body, cabin, wheels(axles, width / 2, 0.32), *lights, *plates]).of_class(FINE["vehicle.car"])


def truck(rng: Random) -> Mesh:
    """Return a lorry with a box or a flatbed, or a pickup, 5.4 to 10 m long."""
    kind = rng.integers(3)
    paint, livery = pick(rng, CAR_PAINTS), pick(rng, LIVERIES)
    if kind == 2:
        length, width, half = 5.5, 1.95, 2.75
        parts = [
            box((length, width, 0.55), (0, 0, 0.5), Stuff.PAINT, paint),
            prism([(-0.5, 1.05), (1.5, 1.05), (0.9, 1.85), (-0.4, 1.85)], [0.95, 0.95, 0.8, 0.8],
                  [Stuff.PAINT, Stuff.GLASS, Stuff.PAINT, Stuff.GLASS, Stuff.GLASS],
                  [paint, WHITE, paint, WHITE, WHITE]),
            *(box((2.1, 0.08, 0.3), (-1.65, side * 0.92, 1.05), Stuff.PAINT, paint) for side in (-1, 1)),
            box((0.08, width, 0.3), (-2.7, 0, 1.05), Stuff.PAINT, paint),
            wheels((half * 0.62, -half * 0.6), width / 2, 0.4),
        ]  # fmt: skip
        return join(parts).of_class(FINE["vehicle.truck"])
    length, width = rng.uniform(7.0, 10.0), 2.45
    high = rng.uniform(3.1, 3.7)
    half = length / 2
    cab = [
        prism([(half - 2.0, 0.5), (half, 0.5), (half, 1.5), (half - 0.25, 2.6), (half - 2.0, 2.7)], [width / 2] * 5,
              [Stuff.PAINT, Stuff.PAINT, Stuff.GLASS, Stuff.PAINT, Stuff.PAINT, Stuff.PAINT],
              [paint, paint, WHITE, paint, paint, paint]),
        *(box((0.9, 0.03, 0.7), (half - 0.9, side * (width / 2), 1.65), Stuff.GLASS) for side in (-1, 1)),
        *(box((0.05, 0.4, 0.2), (half, side * 0.85, 0.75), Stuff.LAMP) for side in (-1, 1)),
        box((0.1, width, 0.3), (half, 0, 0.4), Stuff.RUBBER),
    ]  # fmt: skip
    bed = length - 2.3
    load = [box((bed, 1.1, 0.3), (-half + bed / 2, 0, 0.75), Stuff.STEEL, NIGHT)]
    if kind == 0:
        load.append(box((bed, width, high - 1.05), (-half + bed / 2, 0, 1.05), Stuff.SHEETING, livery))
    else:
        load.append(box((bed, width, 0.12), (-half + bed / 2, 0, 1.05), Stuff.WOOD))
        load += [box((bed, 0.06, 0.5), (-half + bed / 2, s * (width / 2 - 0.03), 1.17), Stuff.STEEL) for s in (-1, 1)]
        load.append(box((bed * 0.6, 1.9, rng.uniform(0.4, 1.2)), (-half + bed * 0.45, 0, 1.17), Stuff.WOOD))
    back = [box((0.05, 0.3, 0.15), (-half, side * 0.95, 0.8), Stuff.LAMP, (0.7, 0.03, 0.02)) for side in (-1, 1)]
    axles = (half - 1.1, -half + 1.2, -half + 2.3)
    return join([*cab, *load, *back, wheels(axles, width / 2, 0.5, 0.3)]).of_class(FINE["vehicle.truck"])


def _coach(rng: Random, length: float, livery: Colour) -> list[Mesh]:
    half, width, high = length / 2, 2.55, 3.05
    parts = [
        prism([(-half, 0.3), (half, 0.3), (half, 1.15), (half - 0.15, high), (-half + 0.05, high)], [width / 2] * 5,
              [Stuff.PAINT, Stuff.PAINT, Stuff.GLASS, Stuff.PAINT, Stuff.PAINT, Stuff.PAINT], livery),
        *(box((length * 0.9, 0.03, 1.0), (0, side * width / 2, 1.35), Stuff.GLASS) for side in (-1, 1)),
        *(
            box((0.12, 0.05, 1.0), (x, side * (width / 2 + 0.005), 1.35), Stuff.PAINT, livery)
            for x in np.arange(-half + 1.2, half - 0.6, 1.5)
            for side in (-1, 1)
        ),
        box((0.04, width * 0.7, 0.8), (-half, 0, 1.6), Stuff.GLASS),
        box((length * 0.3, 1.6, 0.25), (-half * 0.3, 0, high), Stuff.PLASTIC, livery),
        wheels((half - 2.4, -half + 2.6), width / 2, 0.5, 0.3),
    ]  # fmt: skip
    return parts


def rigid_bus(rng: Random) -> Mesh:
    """Return a city bus, 10.5 to 12 m long."""
    length = rng.uniform(10.5, 12.0)
    sign = box((0.05, 1.6, 0.3), (length / 2 - 0.08, 0, 2.62), Stuff.LAMP, (0.9, 0.5, 0.1))
    return join([*_coach(rng, length, pick(rng, LIVERIES)), sign]).of_class(FINE["vehicle.bus.rigid"])


def bendy_bus(rng: Random) -> Mesh:
    """Return an articulated bus, 17.5 m long."""
    livery = pick(rng, LIVERIES)
    front, back = join(_coach(rng, 9.5, livery)), join(_coach(rng, 7.0, livery))
    bellows = box((1.2, 2.3, 2.6), (-0.85, 0, 0.4), Stuff.RUBBER)
    return join([front.shifted(4.0), bellows, back.shifted(-4.9)]).of_class(FINE["vehicle.bus.bendy"])


def trailer(rng: Random) -> Mesh:
    """Return a parked trailer without its tractor: a box or a flatbed with a drawbar, 5 to 11 m long."""
    length, width = rng.uniform(5.0, 11.0), 2.4
    half, livery = length / 2, pick(rng, LIVERIES)
    parts = [
        box((length, width, 0.2), (0, 0, 0.95), Stuff.STEEL),
        rod((half, 0, 1.0), (half + 1.1, 0, 0.6), 0.08, 0.08, Stuff.STEEL),
        rod((half - 0.4, 0.5, 0.0), (half - 0.4, 0.5, 1.0), 0.06, 0.06, Stuff.STEEL),
        rod((half - 0.4, -0.5, 0.0), (half - 0.4, -0.5, 1.0), 0.06, 0.06, Stuff.STEEL),
        wheels((-half + 1.0, -half + 2.1), width / 2, 0.48, 0.3),
        *(box((0.05, 0.3, 0.15), (-half, side * 0.95, 0.75), Stuff.LAMP, (0.7, 0.03, 0.02)) for side in (-1, 1)),
    ]
    if rng.random() < 0.65:
        parts.append(box((length, width, rng.uniform(2.2, 2.7)), (0, 0, 1.15), Stuff.SHEETING, livery))
    else:
        parts += [box((length, 0.06, 0.6), (0, s * (width / 2 - 0.03), 1.15), Stuff.SHEETING, livery) for s in (-1, 1)]
    return join(parts).of_class(FINE["vehicle.trailer"])


def digger(rng: Random) -> Mesh:
    """Return an excavator on tracks with its arm out."""
    boom, arm = rng.uniform(0.5, 0.9), rng.uniform(-1.6, -1.1)
    paint = pick(rng, (YELLOW, ORANGE))
    elbow = np.array([0.9 + 3.4 * np.cos(boom), 0.0, 1.5 + 3.4 * np.sin(boom)])
    wrist = elbow + 2.4 * np.array([np.cos(boom + arm), 0.0, np.sin(boom + arm)])
    outline = [(-1.9, 0.25), (-1.6, 0.0), (1.6, 0.0), (1.9, 0.25), (1.7, 0.75), (-1.7, 0.75)]
    tracks = [prism(outline, [0.28] * 6, [Stuff.RUBBER] * 7).shifted(y_m=side * 1.05) for side in (-1, 1)]
    turret = join([
        box((2.9, 2.2, 0.95), (-0.6, 0, 0.95), Stuff.PAINT, paint),
        box((0.8, 2.3, 0.7), (-1.9, 0, 1.1), Stuff.PAINT, NIGHT),
        box((1.3, 0.95, 1.0), (0.25, 0.6, 1.9), Stuff.GLASS),
        box((1.35, 1.0, 0.1), (0.25, 0.6, 2.9), Stuff.PAINT, paint),
        rod((0.9, -0.1, 1.5), tuple(elbow), 0.24, 0.18, Stuff.PAINT, paint, sides=4),
        rod(tuple(elbow), tuple(wrist), 0.18, 0.13, Stuff.PAINT, paint, sides=4),
        box((0.7, 0.9, 0.6), (wrist[0], 0, max(wrist[2] - 0.5, 0.05)), Stuff.STEEL),
    ])  # fmt: skip
    return join([*tracks, turret.turned("z", rng.uniform(-0.6, 0.6))]).of_class(FINE["vehicle.construction"])


def loader(rng: Random) -> Mesh:
    """Return a wheel loader or a small dumper."""
    paint = pick(rng, (YELLOW, ORANGE))
    parts = [
        box((2.6, 1.7, 1.0), (-1.3, 0, 0.9), Stuff.PAINT, paint),
        box((1.3, 1.4, 1.3), (0.1, 0, 1.5), Stuff.GLASS),
        box((1.5, 1.6, 0.12), (0.1, 0, 2.8), Stuff.PAINT, paint),
        box((1.6, 1.2, 0.7), (1.3, 0, 0.7), Stuff.PAINT, paint),
        rod((0.9, 0.6, 1.5), (2.9, 0.6, 0.6), 0.14, 0.12, Stuff.PAINT, paint, sides=4),
        rod((0.9, -0.6, 1.5), (2.9, -0.6, 0.6), 0.14, 0.12, Stuff.PAINT, paint, sides=4),
        prism([(2.8, 0.15), (3.9, 0.1), (3.0, 1.2), (2.8, 1.2)], [1.3] * 4, [Stuff.STEEL] * 5),
        wheels((1.5, -1.7), 1.2, 0.72, 0.5),
    ]
    return join(parts).of_class(FINE["vehicle.construction"])


def person(rng: Random, top: Colour, stand_m: float, legs: bool = True) -> list[Mesh]:
    """Return the parts of a person of a height; arms swing and legs stride by a random phase."""
    scale, phase = stand_m / 1.75, rng.uniform(-1, 1)
    trousers, hip, shoulder = pick(rng, CLOTHES), 0.88 * scale, 1.42 * scale
    parts = [
        rod((0, 0, hip * 0.95), (0.02, 0, shoulder), 0.16 * scale, 0.21 * scale, Stuff.CLOTH, top),
        ball((0.03, 0, 1.62 * scale), (0.10 * scale, 0.085 * scale, 0.13 * scale), Stuff.SKIN),
        ball((0.015, 0, 1.67 * scale), (0.105 * scale, 0.092 * scale, 0.11 * scale), Stuff.CLOTH,
             pick(rng, ((0.02, 0.015, 0.01), (0.15, 0.08, 0.03), (0.35, 0.25, 0.12)))),
    ]  # fmt: skip
    for side in (-1, 1):
        swing = 0.28 * phase * side
        if legs:
            foot = (swing * 1.1 * scale, side * 0.1 * scale, 0.03)
            parts.append(rod(foot, (0, side * 0.09 * scale, hip), 0.07 * scale, 0.1 * scale, Stuff.CLOTH, trousers))
            parts.append(box((0.26, 0.1, 0.08), (foot[0] + 0.05, foot[1], 0), Stuff.RUBBER))
        hand = (-swing * scale + 0.06, side * 0.26 * scale, 0.82 * scale)
        parts.append(
            rod((0, side * 0.23 * scale, shoulder * 0.98), hand, 0.06 * scale, 0.045 * scale, Stuff.CLOTH, top)
        )
    return parts


def adult(rng: Random) -> Mesh:
    """Return a walking adult, now and then with a bag."""
    parts = person(rng, pick(rng, CLOTHES), rng.uniform(1.58, 1.9))
    if rng.random() < 0.3:
        parts.append(box((0.22, 0.32, 0.45), (-0.27, 0, 1.0), Stuff.CLOTH, pick(rng, CLOTHES)))
    return join(parts).of_class(FINE["human.pedestrian.adult"])


def child(rng: Random) -> Mesh:
    """Return a walking child."""
    return join(person(rng, pick(rng, CLOTHES), rng.uniform(1.0, 1.35))).of_class(FINE["human.pedestrian.child"])


def worker(rng: Random) -> Mesh:
    """Return a construction worker in an orange vest with a helmet."""
    parts = person(rng, ORANGE, rng.uniform(1.68, 1.88))
    parts.append(ball((0.02, 0, 1.76), (0.16, 0.13, 0.10), Stuff.PLASTIC, YELLOW))
    parts.append(rod((0, 0, 1.1), (0, 0, 1.17), 0.222, 0.222, Stuff.REFLEX))
    return join(parts).of_class(FINE["human.pedestrian.construction_worker"])


def _rider(rng: Random, seat_x: float, seat_z: float, bars: tuple[float, float], helmet: Colour) -> list[Mesh]:
    top, trousers = pick(rng, CLOTHES), pick(rng, CLOTHES)
    neck = (seat_x + 0.28, 0.0, seat_z + 0.55)
    parts = [
        rod((seat_x, 0, seat_z), neck, 0.15, 0.19, Stuff.CLOTH, top),
        ball((neck[0] + 0.06, 0, neck[2] + 0.18), (0.13, 0.11, 0.14), Stuff.PLASTIC, helmet),
    ]
    for side in (-1, 1):
        knee = (seat_x + 0.42, side * 0.14, seat_z - 0.12 - 0.12 * side)
        parts.append(rod((seat_x, side * 0.1, seat_z), knee, 0.09, 0.07, Stuff.CLOTH, trousers))
        parts.append(rod(knee, (seat_x + 0.3, side * 0.13, 0.3), 0.07, 0.05, Stuff.CLOTH, trousers))
        parts.append(
            rod((neck[0], side * 0.2, neck[2]), (bars[0], side * 0.25, bars[1]), 0.055, 0.045, Stuff.CLOTH, top)
        )
    return parts


def bicycle(rng: Random, ridden: bool) -> Mesh:
    """Return a bicycle; a rider belongs to it, as in nuScenes."""
    paint = pick(rng, CAR_PAINTS)
    tube = 0.022
    parts = [rod((x, -0.02, 0.34), (x, 0.02, 0.34), 0.34, 0.34, Stuff.RUBBER, sides=12) for x in (-0.52, 0.52)]
    for start, end in (
        ((-0.52, 0, 0.34), (-0.1, 0, 0.28)),
        ((-0.1, 0, 0.28), (-0.22, 0, 0.88)),
        ((-0.1, 0, 0.28), (0.4, 0, 0.8)),
        ((-0.2, 0, 0.78), (0.4, 0, 0.8)),
        ((0.52, 0, 0.34), (0.38, 0, 1.0)),
        ((-0.52, 0, 0.34), (-0.2, 0, 0.78)),
        ((0.36, -0.28, 1.02), (0.36, 0.28, 1.02)),
    ):
        parts.append(rod(start, end, tube, tube, Stuff.PAINT, paint, sides=5))
    parts.append(box((0.25, 0.14, 0.06), (-0.22, 0, 0.9), Stuff.RUBBER))
    parts.append(box((0.05, 0.08, 0.08), (-0.42, 0, 0.7), Stuff.REFLEX, RED))
    if ridden:
        parts += _rider(rng, -0.2, 0.95, (0.36, 1.05), pick(rng, CLOTHES))
    return join(parts).of_class(FINE["vehicle.bicycle"])


def motorcycle(rng: Random, ridden: bool) -> Mesh:
    """Return a motorcycle or a scooter; a rider belongs to it, as in nuScenes."""
    paint, scooter = pick(rng, CAR_PAINTS), rng.random() < 0.5
    radius = 0.25 if scooter else 0.32
    parts = [rod((x, -0.07, radius), (x, 0.07, radius), radius, radius, Stuff.RUBBER, sides=12) for x in (-0.68, 0.68)]
    parts += [
        prism([(-0.7, 0.5), (0.2, 0.35), (0.35, 0.75), (-0.2, 0.82), (-0.85, 0.85)], [0.16] * 5, [Stuff.PAINT] * 6,
              paint),
        box((0.7, 0.26, 0.1), (-0.4, 0, 0.8), Stuff.RUBBER),
        rod((0.68, 0, radius), (0.45, 0, 1.02), 0.06, 0.05, Stuff.STEEL, sides=6),
        rod((0.42, -0.36, 1.05), (0.42, 0.36, 1.05), 0.03, 0.03, Stuff.RUBBER, sides=6),
        box((0.1, 0.18, 0.18), (0.56, 0, 0.82), Stuff.LAMP),
        box((0.05, 0.2, 0.1), (-0.9, 0, 0.72), Stuff.LAMP, (0.7, 0.03, 0.02)),
        rod((-0.5, 0.18, 0.3), (-0.85, 0.18, 0.4), 0.06, 0.07, Stuff.STEEL, sides=6),
    ]  # fmt: skip
    if scooter:
        parts.append(prism([(0.4, 0.25), (0.55, 0.25), (0.5, 1.0), (0.38, 1.0)], [0.2] * 4, [Stuff.PAINT] * 5, paint))
    else:
        parts.append(prism([(-0.15, 0.8), (0.35, 0.75), (0.3, 0.98), (0.0, 1.0)], [0.15] * 4, [Stuff.PAINT] * 5, paint))
        parts.append(box((0.6, 0.34, 0.4), (0.0, 0, 0.25), Stuff.STEEL))
    if ridden:
        parts += _rider(rng, -0.35, 0.92, (0.42, 1.08), pick(rng, CAR_PAINTS))
    return join(parts).of_class(FINE["vehicle.motorcycle"])


def cone(rng: Random) -> Mesh:
    """Return a traffic cone with a white stripe."""
    high = rng.uniform(0.65, 0.85)
    at = (0.0, 0.42, 0.68, 1.0)
    radius = np.interp(at, (0, 1), (0.17, 0.03))
    parts = [box((0.4, 0.4, 0.05), (0, 0, 0), Stuff.RUBBER)]
    for i, (material, tint) in enumerate(((Stuff.PLASTIC, ORANGE), (Stuff.REFLEX, WHITE), (Stuff.PLASTIC, ORANGE))):
        ends = (0.0, 0.0, 0.05 + high * at[i]), (0.0, 0.0, 0.05 + high * at[i + 1])
        parts.append(rod(*ends, radius[i], radius[i + 1], material, tint, sides=10))
    return join(parts).of_class(FINE["movable_object.trafficcone"])


def jersey_barrier(rng: Random) -> Mesh:
    """Return two metres of concrete or red-and-white plastic barrier; x is along it."""
    outline = [(-0.3, 0.0), (0.3, 0.0), (0.25, 0.2), (0.1, 0.45), (0.08, 0.9), (-0.08, 0.9), (-0.1, 0.45), (-0.25, 0.2)]
    material = Stuff.CONCRETE if rng.random() < 0.5 else Stuff.PLASTIC
    tint = WHITE if material == Stuff.CONCRETE or rng.random() < 0.5 else RED
    # the waist makes the outline hollow, so it is built of two convex halves
    low = prism([outline[i] for i in (0, 1, 2, 3, 6, 7)], [1.0] * 6, [material] * 7, tint)
    high = prism([outline[i] for i in (6, 3, 4, 5)], [1.0] * 4, [material] * 5, tint)
    return join([low, high]).turned("z", np.pi / 2).of_class(FINE["movable_object.barrier"])


def plank_barrier(rng: Random) -> Mesh:
    """Return a barrier of striped planks on two feet, two metres along x."""
    parts = []
    for z in (0.45, 0.85):
        for i in range(6):
            colour = RED if i % 2 else WHITE
            parts.append(box((1.9 / 6, 0.05, 0.25), (-0.95 + 1.9 / 12 + i * 1.9 / 6, 0, z), Stuff.REFLEX, colour))
    for x in (-0.8, 0.8):
        parts.append(box((0.06, 0.06, 1.1), (x, 0, 0), Stuff.METAL))
        parts.append(box((0.2, 0.8, 0.08), (x, 0, 0), Stuff.RUBBER))
    return join(parts).of_class(FINE["movable_object.barrier"])


def ego(_: Random | None = None) -> Mesh:
    """Return the car that carries the sensors, which its LiDAR sees; origin below the middle of the rear axle."""
    body = prism(
        [(-0.62, 0.35), (-0.5, 0.2), (3.2, 0.2), (3.42, 0.4), (3.35, 0.85), (2.45, 1.02), (-0.6, 1.02)],
        [0.82, 0.82, 0.82, 0.82, 0.84, 0.87, 0.87],
        [Stuff.PAINT] * 8,
    )
    cabin = prism(
        [(-0.55, 1.02), (2.4, 1.02), (1.62, 1.5), (0.0, 1.5)],
        [0.85, 0.85, 0.66, 0.66],
        [Stuff.PAINT, Stuff.GLASS, Stuff.PAINT, Stuff.GLASS, Stuff.GLASS],
    )
    # rails carry the sensors; the beams that look down steeply meet them and the roof
    rails = [box((1.5, 0.06, 0.08), (0.85, side * 0.55, 1.5), Stuff.METAL) for side in (-1, 1)]
    rails += [box((0.06, 1.1, 0.06), (x, 0, 1.55), Stuff.METAL) for x in (0.3, 1.5)]
    return join([body, cabin, *rails, wheels((0.0, 2.6), 0.87, 0.31)]).of_class(FINE["vehicle.ego"])


MAKERS: dict[str, Callable[[Random], Mesh]] = {
    "vehicle.car": car,
    "vehicle.truck": truck,
    "vehicle.bus.rigid": rigid_bus,
    "vehicle.bus.bendy": bendy_bus,
    "vehicle.trailer": trailer,
    "vehicle.construction": lambda rng: digger(rng) if rng.random() < 0.6 else loader(rng),
    "human.pedestrian.adult": adult,
    "human.pedestrian.child": child,
    "human.pedestrian.construction_worker": worker,
    "movable_object.trafficcone": cone,
    "movable_object.barrier": lambda rng: jersey_barrier(rng) if rng.random() < 0.6 else plank_barrier(rng),
}
"""Makers of annotated things by category; bicycles and motorcycles have theirs above, with or without a rider."""
