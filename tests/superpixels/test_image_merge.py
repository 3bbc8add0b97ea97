"""Things that images show, merged into labels of points."""

from __future__ import annotations

import numpy as np
import pytest

from superpixels.image_merge import merge_image_labels, trust_in_image


def test_trust_in_an_image_label_falls_with_distance() -> None:
    found = trust_in_image(np.array([0.0, 10, 20, 40, 60]))
    np.testing.assert_allclose(found, [0.8, 2 / 3, 0.5, 0.2, 1 / 17], rtol=1e-12)


def test_only_things_are_taken_from_images_about_as_often_as_trusted_and_the_same_each_time() -> None:
    n = 4000
    xyz_m = np.column_stack([np.where(np.arange(n) < n // 2, 10.0, 40.0), np.zeros((n, 2))])
    labels, image = np.full(n, 11, np.uint8), np.tile(np.array([4, 0, 15, 7], np.uint8), n // 4)
    merged = merge_image_labels(xyz_m, labels, image, tuple(range(11)), seed=3)
    taken = merged != 11
    np.testing.assert_array_equal(merged[taken], image[taken])
    assert set(image[taken].tolist()) == {4, 7}
    near, far = taken[: n // 2].mean() * 2, taken[n // 2 :].mean() * 2  # half of the points show a thing
    assert near == pytest.approx(2 / 3, abs=0.05) and far == pytest.approx(0.2, abs=0.05)
    np.testing.assert_array_equal(merged, merge_image_labels(xyz_m, labels, image, tuple(range(11)), seed=3))
    assert (merged != merge_image_labels(xyz_m, labels, image, tuple(range(11)), seed=4)).any()
