"""Superpixels follow colour, take the label of most of their labelled pixels, and pass it on only so far."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from skimage.measure import label as label_components

from superpixels.slic import grow_labels, majority_labels, slic_superpixels


def halves() -> npt.NDArray[Any]:
    """A black and a white half, 40 x 60 pixels each, with a little noise."""
    image = np.zeros((40, 120, 3), np.int16)
    image[:, 60:] = 220
    return (image + np.random.default_rng(0).integers(0, 20, image.shape)).astype(np.uint8)


def test_no_superpixel_crosses_a_strong_edge() -> None:
    superpixel = slic_superpixels(halves(), 10)
    assert superpixel.shape == (40, 120) and superpixel.dtype == np.int32
    assert not set(superpixel[:, :60].ravel()) & set(superpixel[:, 60:].ravel())


def test_superpixels_are_numbered_from_0_connected_and_about_as_large_as_asked() -> None:
    superpixel = slic_superpixels(halves(), 10)
    area = np.bincount(superpixel.ravel())
    assert (area > 0).all()
    assert 50 < area.mean() < 200
    assert label_components(superpixel + 1, connectivity=1).max() == len(area)


def test_an_image_smaller_than_a_superpixel_is_one() -> None:
    assert not slic_superpixels(np.zeros((3, 4, 3), np.uint8), 30).any()


@pytest.mark.parametrize(
    ("image", "side_px", "compactness"),
    [
        (np.zeros((4, 4), np.uint8), 2, 10),
        (np.zeros((4, 4, 3)), 2, 10),
        (np.zeros((0, 4, 3), np.uint8), 2, 10),
        (np.zeros((4, 4, 3), np.uint8), 0.5, 10),
        (np.zeros((4, 4, 3), np.uint8), 2, 0),
    ],
)
def test_anything_but_a_colour_image_and_a_sensible_size_is_refused(
    image: npt.NDArray[Any], side_px: float, compactness: float
) -> None:
    with pytest.raises(ValueError, match="expected"):
        slic_superpixels(image, side_px, compactness=compactness)


BLOCKS = np.repeat([[0, 1, 2, 3]], 2, axis=0).repeat(2, axis=1)  # four superpixels of 2 x 2 pixels side by side


def test_the_majority_of_labelled_pixels_names_a_superpixel() -> None:
    row, col = np.array([0, 0, 1, 1, 0]), np.array([0, 1, 1, 3, 2])
    found = majority_labels(BLOCKS, row, col, np.array([7, 4, 7, 5, 2]))
    assert found.tolist() == [7, 2, -1, -1]  # 2 and 5 are equally frequent in superpixel 1


def test_labels_must_not_be_negative_or_of_another_length() -> None:
    with pytest.raises(ValueError, match="not be negative"):
        majority_labels(BLOCKS, np.array([0]), np.array([0]), np.array([-1]))
    with pytest.raises(ValueError, match="one length"):
        majority_labels(BLOCKS, np.array([0]), np.array([0]), np.array([1, 2]))


@pytest.mark.parametrize(
    ("reach_px", "expected"),
    [(0, [7, -1, -1, -1]), (1.9, [7, -1, -1, -1]), (2, [7, 7, -1, -1]), (4, [7, 7, 7, -1]), (9, [7, 7, 7, 7])],
)
def test_a_label_grows_as_far_as_it_may(reach_px: float, expected: list[int]) -> None:
    assert grow_labels(BLOCKS, np.array([7, -1, -1, -1]), reach_px).tolist() == expected


def test_the_nearest_label_wins_and_none_stays_none() -> None:
    assert grow_labels(BLOCKS, np.array([7, -1, -1, 3]), 9).tolist() == [7, 7, 3, 3]
    assert grow_labels(BLOCKS, np.full(4, -1), 9).tolist() == [-1] * 4
    assert majority_labels(BLOCKS, *np.zeros((3, 0), np.int64)).tolist() == [-1] * 4
