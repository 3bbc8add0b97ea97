"""Single objects: what is close together along the ground, of one class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from superpixels.instances import instances

CAR, PERSON, ROAD = 1, 2, 3


def row(x_m: float, n: int, y_m: float = 0.0, z_m: float = 0.0) -> NDArray[np.float32]:
    """So many points, 0.2 m apart, from a place along y."""
    return np.column_stack([np.full(n, x_m), y_m + 0.2 * np.arange(n), np.full(n, z_m)]).astype(np.float32)


def test_what_is_close_together_is_one_object_and_classes_are_kept_apart() -> None:
    xyz_m = np.concatenate([row(0, 8), row(0.4, 6, z_m=1.5), row(5, 6), row(5.3, 6), row(20, 4), row(30, 9)])
    label = np.repeat(np.array([CAR, CAR, CAR, PERSON, CAR, ROAD], np.uint8), [8, 6, 6, 6, 4, 9])
    found = instances(xyz_m, label, (PERSON, CAR), 0.5)
    assert found.dtype == np.uint16
    expected = np.repeat([1, 1, 2, 3, 0, 0], [8, 6, 6, 6, 4, 9])
    assert found.tolist() == expected.tolist(), "heights do not count, four points are no object"
    assert instances(xyz_m, label, (CAR,), 5.0).max() == 1, "all cars within 5 m are one, but the one of four points"


def test_the_order_of_points_decides_numbers_alone() -> None:
    rng = np.random.default_rng(0)
    xyz_m = np.concatenate([row(4.0 * car, 10) for car in range(7)])
    order = rng.permutation(len(xyz_m))
    label = np.full(len(xyz_m), CAR, np.uint8)
    found = instances(xyz_m[order], label, (CAR,), 0.6)
    assert len({(int(number), int(car)) for number, car in zip(found, order // 10, strict=True)}) == 7
    assert found[0] == 1 and instances(xyz_m[:0], label[:0], (CAR,), 0.6).tolist() == []
