"""What stands beside a street: trees, lamps and signs, fences, buildings."""

from __future__ import annotations

import numpy as np

from bench.city.materials import Stuff
from bench.city.shapes import WHITE, Mesh, ball, box, join, leaves, prism, rod, sheet
from bench.city.things import (
    CAR_PAINTS,
    CLOTHES,
    GREENS,
    LIVERIES,
    MANMADE,
    NIGHT,
    RED,
    VEGETATION,
    YELLOW,
    Random,
    pick,
)


def tree(rng: Random, detail: float = 1.0, street: bool = False) -> Mesh:
    """Return a broad tree, a slim one or a conifer, 4.5 to 11 m high; less detail has fewer and larger leaves.

    Street trees are no conifers, and their crowns begin high enough to drive below.
    """
    kind, high, green = rng.integers(2 if street else 3), rng.uniform(4.5, 11.0), pick(rng, GREENS)
    lean, trunk = rng.uniform(-0.3, 0.3, 2), rng.uniform(0.10, 0.24)
    stem, leaf = rng.uniform(1.8, 2.8) + 1.2 * street, 0.2 / np.sqrt(detail)
    high = max(high, stem + 3.0)
    parts = [rod((0, 0, -0.2), (lean[0], lean[1], high * 0.75), trunk * 1.15, trunk * 0.4, Stuff.BARK)]
    if kind == 2:
        for i, z in enumerate(np.linspace(1.6, high, 7)):
            wide = max(0.24 * high * (1 - i / 7.5), 0.4)
            count = int(detail * (90 + 75 * wide * wide))
            parts.append(
                leaves(rng, (0, 0, z), (wide, wide, high / 9), count, leaf, Stuff.LEAF, np.multiply(green, 0.6))
            )
        return join(parts).of_class(VEGETATION)
    wide = high * (rng.uniform(0.26, 0.38) if kind == 0 else rng.uniform(0.15, 0.22))
    middle = (stem + high) / 2
    for _ in range(int(rng.integers(4, 7))):
        at = rng.uniform(-0.55, 0.55, 3) * (wide, wide, (high - stem) / 2) + (lean[0], lean[1], middle)
        radii = rng.uniform(0.5, 0.8, 3) * (wide, wide, (high - stem) / 2)
        parts.append(leaves(rng, at, radii, int(detail * (160 + 55 * wide * wide)), leaf, Stuff.LEAF, green))
        parts.append(rod((lean[0] / 2, lean[1] / 2, stem), tuple(at), trunk * 0.5, trunk * 0.15, Stuff.BARK, sides=5))
    return join(parts).of_class(VEGETATION)


def bush(rng: Random) -> Mesh:
    """Return a bush, up to 1.6 m high."""
    wide, high = rng.uniform(0.5, 1.2), rng.uniform(0.5, 0.85)
    cover = leaves(rng, (0, 0, high), (wide, wide, high), int(220 * wide + 80), 0.13, Stuff.LEAF, pick(rng, GREENS))
    return cover.of_class(VEGETATION)


def hedge(rng: Random, length_m: float) -> Mesh:
    """Return a clipped hedge along x."""
    high, deep = rng.uniform(0.9, 1.6), rng.uniform(0.5, 0.8)
    count = int(length_m * 120)
    size = (length_m / 2, deep / 2, high / 2)
    cover = leaves(rng, (0, 0, high / 2), size, count, 0.14, Stuff.LEAF, pick(rng, GREENS), boxy=True)
    return cover.of_class(VEGETATION)


def street_lamp(rng: Random) -> Mesh:
    """Return a lamp post whose arm reaches along +x."""
    high = rng.uniform(6.5, 9.0)
    parts = [
        rod((0, 0, 0), (0, 0, high), 0.11, 0.06, Stuff.METAL),
        rod((0, 0, high), (1.8, 0, high + 0.3), 0.05, 0.05, Stuff.METAL, sides=6),
        box((0.7, 0.25, 0.12), (2.0, 0, high + 0.25), Stuff.LAMP),
    ]
    return join(parts).of_class(MANMADE)


def traffic_light(rng: Random, reach_m: float) -> Mesh:
    """Return a signal post with an arm along +x, lamps facing +y."""
    parts = [
        rod((0, 0, 0), (0, 0, 5.6), 0.12, 0.09, Stuff.METAL),
        rod((0, 0, 5.5), (reach_m, 0, 5.8), 0.07, 0.05, Stuff.METAL, sides=6),
    ]
    for x, z in ((0.25, 2.4), (reach_m, 5.3)):
        parts.append(box((0.34, 0.3, 1.0), (x, 0, z), Stuff.PLASTIC, NIGHT))
        lit = int(rng.integers(3))
        for i, colour in enumerate(((0.1, 0.9, 0.3), (0.9, 0.6, 0.05), (0.9, 0.05, 0.03))):
            shown = colour if i == lit else tuple(0.12 * part for part in colour)
            parts.append(box((0.2, 0.04, 0.2), (x, 0.16, z + 0.1 + 0.3 * i), Stuff.LAMP, shown))
    return join(parts).of_class(MANMADE)


def street_sign(rng: Random) -> Mesh:
    """Return a road sign on a thin post, facing +x."""
    high, colour = (
        rng.uniform(2.1, 2.8),
        pick(rng, ((0.9, 0.9, 0.9), RED, (0.05, 0.15, 0.6), YELLOW, (0.05, 0.35, 0.15))),
    )
    plate: Mesh
    if rng.random() < 0.5:
        plate = rod((0.05, 0, high - 0.35), (0.08, 0, high - 0.35), 0.34, 0.34, Stuff.SIGN, colour, sides=14)
    else:
        plate = box((0.03, rng.uniform(0.5, 0.9), 0.6), (0.06, 0, high - 0.65), Stuff.SIGN, colour)
    return join([rod((0, 0, 0), (0, 0, high), 0.04, 0.04, Stuff.METAL, sides=6), plate]).of_class(MANMADE)


def litter_bin(rng: Random) -> Mesh:
    """Return a litter bin, a hydrant, or a switch box."""
    kind = rng.integers(3)
    if kind == 0:
        return rod((0, 0, 0), (0, 0, 0.95), 0.26, 0.28, Stuff.METAL, pick(rng, CAR_PAINTS), 10).of_class(MANMADE)
    if kind == 1:
        parts = [
            rod((0, 0, 0), (0, 0, 0.65), 0.13, 0.12, Stuff.PAINT, RED),
            ball((0, 0, 0.68), (0.13, 0.13, 0.1), Stuff.PAINT, RED),
        ]
        return join(parts).of_class(MANMADE)
    return box((0.45, 1.0, 1.25), (0, 0, 0), Stuff.METAL, (0.7, 0.75, 0.7)).of_class(MANMADE)


def bench(rng: Random) -> Mesh:
    """Return a bench, along y."""
    parts = [
        box((0.45, 1.7, 0.06), (0, 0, 0.42), Stuff.WOOD),
        box((0.06, 1.7, 0.4), (-0.22, 0, 0.5), Stuff.WOOD),
        *(box((0.45, 0.07, 0.42), (0, y, 0), Stuff.METAL) for y in (-0.7, 0.7)),
    ]
    return join(parts).of_class(MANMADE)


def bus_shelter(rng: Random) -> Mesh:
    """Return a bus shelter, open towards +x, long along y."""
    parts = [
        box((1.5, 4.0, 0.1), (0, 0, 2.4), Stuff.METAL),
        box((0.04, 3.8, 1.9), (-0.65, 0, 0.35), Stuff.GLASS),
        box((1.2, 0.06, 2.2), (0, 2.0, 0.2), Stuff.SIGN, pick(rng, CLOTHES)),
        box((0.4, 3.0, 0.08), (-0.4, 0, 0.45), Stuff.WOOD),
        *(box((0.08, 0.08, 2.4), (x, y, 0), Stuff.METAL) for x in (-0.65, 0.65) for y in (-1.95, 1.95)),
    ]
    return join(parts).of_class(MANMADE)


def billboard(rng: Random) -> Mesh:
    """Return an advertising board on two posts, facing +x."""
    parts = [
        box((0.15, 3.6, 2.4), (0, 0, 1.6), Stuff.PLASTIC, pick(rng, LIVERIES)),
        *(rod((0, y, 0), (0, y, 1.7), 0.09, 0.09, Stuff.METAL) for y in (-1.3, 1.3)),
    ]
    return join(parts).of_class(MANMADE)


def fence(rng: Random, length_m: float) -> Mesh:
    """Return a fence or a low wall along x: pickets, rails, boards with gaps, or masonry."""
    kind, high = rng.integers(4), rng.uniform(0.9, 1.7)
    half, paint = length_m / 2, pick(rng, ((0.9, 0.9, 0.9), (0.45, 0.4, 0.35), (0.2, 0.3, 0.25)))
    if kind == 0:
        return box((length_m, 0.25, high * 0.75), (0, 0, 0), Stuff.BRICKS).of_class(MANMADE)
    gap, wide = ((0.0, 0.0), (0.16, 0.08), (0.24, 0.03), (0.5, 0.42))[kind]
    x = np.arange(-half + gap / 2, half, gap)
    material = Stuff.METAL if kind == 2 else Stuff.WOOD
    left, right = np.stack([x - wide / 2, x + wide / 2])
    corners = np.zeros((len(x), 4, 3))
    corners[:, [0, 3], 0], corners[:, [1, 2], 0] = left[:, None], right[:, None]
    corners[:, [0, 1], 2], corners[:, [2, 3], 2] = 0.08, high
    posts = [
        box((0.09, 0.09, high + 0.1), (at, 0.06, 0), material, paint)
        for at in np.linspace(-half, half, max(int(length_m / 2.5), 1) + 1)
    ]
    rails = [box((length_m, 0.04, 0.06), (0, 0.03, z), material, paint) for z in (0.25, high - 0.2)]
    return join([sheet(corners, material, paint), *posts, *rails]).of_class(MANMADE)


def guard_rail(rng: Random, length_m: float) -> Mesh:
    """Return a steel guard rail along x."""
    parts = [box((length_m, 0.08, 0.3), (0, 0, 0.45), Stuff.STEEL)]
    parts += [box((0.1, 0.12, 0.7), (x, 0.08, 0), Stuff.STEEL) for x in np.arange(-length_m / 2, length_m / 2, 2.0)]
    return join(parts).of_class(MANMADE)


def house(rng: Random, wide_m: float, deep_m: float) -> Mesh:
    """Return a house with a pitched roof, its front towards +x; `wide_m` is along y."""
    walls, ridge = rng.uniform(3.4, 6.4), rng.uniform(1.8, 3.2)
    tint = pick(rng, ((1.0, 0.97, 0.9), (0.85, 0.75, 0.6), (0.75, 0.82, 0.85), (0.95, 0.85, 0.7)))
    material = Stuff.HOUSE if rng.random() < 0.65 else Stuff.FLATS
    roof_tint = pick(rng, (WHITE, (0.5, 0.6, 0.7), (0.4, 0.4, 0.4)))
    roof = prism(
        [(-deep_m / 2 - 0.4, 0.0), (deep_m / 2 + 0.4, 0.0), (0.0, ridge)], [wide_m / 2 + 0.3] * 3,
        [Stuff.WOOD, Stuff.ROOF, Stuff.ROOF, Stuff.PLASTER], [WHITE, roof_tint, roof_tint, tint],
    )  # fmt: skip
    door = rng.uniform(-wide_m / 4, wide_m / 4)
    parts = [
        box((deep_m, wide_m, walls), (0, 0, 0), material, tint),
        roof.shifted(z_m=walls),
        box((0.12, 1.0, 2.1), (deep_m / 2 + 0.02, door, 0.1), Stuff.WOOD, pick(rng, CLOTHES)),
        box((1.4, 1.8, 0.12), (deep_m / 2 + 0.7, door, 2.35), Stuff.WOOD),
        box((0.6, 0.6, 1.6), (-deep_m / 5, wide_m / 4, walls + ridge * 0.4), Stuff.BRICKS),
    ]
    return join(parts).of_class(MANMADE)


def block(rng: Random, wide_m: float, deep_m: float, high_m: float) -> Mesh:
    """Return a town building, its front towards +x: a base, windows above, bays or balconies, a roof edge."""
    material = (Stuff.FLATS, Stuff.HOUSE, Stuff.OFFICE, Stuff.FLATS)[rng.integers(4)]
    tint = pick(rng, (WHITE, (1.2, 1.25, 1.25), (0.8, 0.75, 0.7), (1.1, 1.0, 0.8), (0.9, 1.0, 1.1)))
    front = deep_m / 2
    parts = [
        box((deep_m, wide_m, high_m), (0, 0, 0), material, tint),
        box((deep_m + 0.5, wide_m + 0.1, 0.6), (0, 0, high_m), Stuff.PLASTER, tint),
        box((0.2, wide_m, 0.45), (front + 0.05, 0, 3.3), Stuff.PLASTER, pick(rng, LIVERIES)),
    ]
    places = np.arange(-wide_m / 2 + 1.8, wide_m / 2 - 1.2, 3.2)
    if rng.random() < 0.45:
        for z in np.arange(3.7, high_m - 2.0, 3.1):
            for y in places[:: int(rng.integers(1, 3))]:
                parts.append(box((1.1, 2.2, 0.15), (front + 0.55, y, z), Stuff.CONCRETE))
                parts.append(box((0.05, 2.2, 0.95), (front + 1.05, y, z + 0.15), Stuff.METAL, tint))
    elif rng.random() < 0.5:
        parts.append(
            box((0.9, wide_m * 0.3, high_m * 0.92), (front + 0.3, rng.uniform(-0.25, 0.25) * wide_m, 0), material, tint)
        )
    if rng.random() < 0.5:
        parts.append(box((1.3, min(wide_m * 0.6, 7.0), 0.12), (front + 0.65, 0, 2.9), Stuff.CLOTH, pick(rng, LIVERIES)))
    for y in places[1::3]:
        parts.append(box((0.1, 1.1, 2.2), (front + 0.03, y + 0.6, 0.05), Stuff.WOOD, pick(rng, CLOTHES)))
    return join(parts).of_class(MANMADE)


def shed(rng: Random, wide_m: float, deep_m: float) -> Mesh:
    """Return a warehouse with a gate, its front towards +x."""
    high, tint = (
        rng.uniform(5.5, 9.0),
        pick(rng, ((0.85, 0.85, 0.85), (0.5, 0.6, 0.75), (0.7, 0.6, 0.45), (0.5, 0.6, 0.5))),
    )
    parts = [
        box((deep_m, wide_m, high), (0, 0, 0), Stuff.SHEETING, tint),
        box((0.2, 4.0, 4.2), (deep_m / 2, wide_m * 0.2, 0), Stuff.SHEETING, pick(rng, LIVERIES)),
        box((0.15, 1.0, 2.1), (deep_m / 2, -wide_m * 0.25, 0), Stuff.WOOD),
        box((deep_m + 0.3, wide_m + 0.3, 0.4), (0, 0, high), Stuff.METAL),
    ]
    return join(parts).of_class(MANMADE)
