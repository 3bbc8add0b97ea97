import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from superpixels.mask_queries import MaskQueries, panoptic_merge, query_shares, sampling
from superpixels.segments import Segments, compact


def masks_of(logit: npt.NDArray[Any], height: int, width: int) -> MaskQueries:
    _, grid_h, grid_w = logit.shape
    return MaskQueries(logit, sampling(height, grid_h), sampling(width, grid_w))


def dense(logit: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    """Soft masks (q, H, W), upsampled as a whole by torch, in float64."""
    maps = torch.tensor(logit, dtype=torch.float64)[None]
    return interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)[0].sigmoid().numpy()


def soft_of(masks: MaskQueries) -> npt.NDArray[Any]:
    """What the strips give, put together: (q, H, W)."""
    return np.concatenate([soft for _, soft in masks.strips()]).T.reshape(-1, *masks.size_px)


def random_masks(seed: int, queries: int = 6, grid_h: int = 4, grid_w: int = 7) -> npt.NDArray[Any]:
    return np.random.default_rng(seed).normal(0, 4, (queries, grid_h, grid_w)).astype(np.float32)


@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 40))
def test_strips_equal_the_masks_upsampled_as_a_whole(seed: int, height: int, width: int) -> None:
    logit = random_masks(seed)
    np.testing.assert_allclose(soft_of(masks_of(logit, height, width)), dense(logit, height, width), atol=1e-6)


@given(st.integers(0, 1000))
def test_the_argmax_by_strips_equals_that_of_the_whole(seed: int) -> None:
    logit = random_masks(seed)
    probability = np.random.default_rng(seed).dirichlet(np.ones(5), 6)
    whole = np.einsum("qt,qhw->thw", probability, dense(logit, 30, 50))
    best = masks_of(logit, 30, 50).prompt_argmax(probability)
    margin = np.diff(np.sort(whole, axis=0)[-2:], axis=0)[0]  # float32 may settle a near tie otherwise
    assert ((best == whole.argmax(axis=0)) | (margin < 1e-5)).all() and (margin < 1e-5).mean() < 0.01


@given(st.integers(0, 1000))
def test_linear_pooling_equals_pooling_a_dense_feature_map(seed: int) -> None:
    logit = random_masks(seed)
    rng = np.random.default_rng(seed)
    embedding = rng.normal(size=(6, 16))
    label_map = rng.integers(0, 4, (30, 50))
    features = np.einsum("qd,qhw->dhw", embedding, dense(logit, 30, 50))
    pooled = query_shares(masks_of(logit, 30, 50), label_map, 3) @ embedding
    for k in range(3):
        expected = features[:, label_map == k + 1].sum(axis=1)
        cosine = pooled[k] @ expected / np.linalg.norm(pooled[k]) / np.linalg.norm(expected)
        assert cosine == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(pooled[k], expected, rtol=1e-5, atol=1e-5 * float(np.linalg.norm(expected)))


def test_padding_is_cut_off_as_the_reference_does_it() -> None:
    logit = random_masks(0, grid_h=2, grid_w=4)  # cells of 16 px: 32 x 64 px, of which 30 x 50 are image
    padded = interpolate(torch.tensor(logit)[None], size=(32, 64), mode="bilinear", align_corners=False)
    cut = interpolate(padded[:, :, :30, :50], size=(45, 75), mode="bilinear", align_corners=False)
    masks = MaskQueries(logit, sampling(45, 2, 32, 30), sampling(75, 4, 64, 50))
    np.testing.assert_allclose(soft_of(masks), cut[0].sigmoid().numpy(), atol=1e-6)


@pytest.mark.parametrize("change", [{"rows": sampling(9, 5)}, {"columns": sampling(9, 6)}])
def test_masks_that_do_not_fit_their_pixels_are_refused(change: dict[str, Any]) -> None:
    values = {"logit": random_masks(0), "rows": sampling(9, 4), "columns": sampling(9, 7)}
    with pytest.raises(ValueError, match="pixels are sampled from a grid of"):
        MaskQueries(**(values | change))


def test_what_does_not_fit_the_masks_is_refused() -> None:
    masks = masks_of(random_masks(0), 8, 8)
    with pytest.raises(ValueError, match=r"shape \(5, 3\); expected \(6, 1 to 65535 prompts\)"):
        masks.prompt_argmax(np.ones((5, 3)))
    with pytest.raises(ValueError, match=r"hold ids 0..1"):
        query_shares(masks, np.full((8, 8), 2), 1)


def test_an_image_as_san_sees_it_is_segmented_in_300_megabytes() -> None:
    """1600 x 900 pixels at full size, 100 queries, 768 values, 175 prompts; NumPy reports its memory to tracemalloc."""
    rng = np.random.default_rng(0)
    blocks = rng.normal(0, 5, (100, 5, 9)).repeat(8, axis=1).repeat(8, axis=2).astype(np.float32)
    embedding = rng.normal(size=(100, 768)).astype(np.float32)
    probability = rng.dirichlet(np.full(175, 0.05), 100)
    tracemalloc.start()
    masks = masks_of(blocks, 900, 1600)
    label_map, prompt = compact(masks.prompt_argmax(probability))
    shares = query_shares(masks, label_map, len(prompt))
    Segments.from_label_map(label_map, prompt, np.ones(len(prompt)), shares @ embedding)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6


def panoptic_loop(
    soft: npt.NDArray[Any], score: npt.NDArray[Any], prompt: npt.NDArray[Any], thing: npt.NDArray[Any]
) -> Any:
    """Panoptic merging as a loop over queries, mask by mask; soft masks are (q, H, W)."""
    label_map = np.zeros(soft.shape[1:], int)
    segment, area = np.zeros(len(soft), int), np.zeros(len(soft), int)
    owner = (score[:, None, None] * soft).argmax(axis=0)
    stuff: dict[int, int] = {}
    for q in range(len(soft)):
        owned, covers = owner == q, soft[q] >= 0.5
        if not (owned & covers).any() or owned.sum() / covers.sum() < 0.8:
            continue
        new = segment.max() + 1
        segment[q] = new if thing[q] else stuff.setdefault(int(prompt[q]), new)
        area[q] = (owned & covers).sum()
        label_map[owned & covers] = segment[q]
    return label_map, segment, area


@given(st.integers(0, 1000))
def test_panoptic_merging_equals_a_loop_over_the_queries(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = masks_of(random_masks(seed, queries=12), 20, 30)
    score, prompt = rng.random(12).astype(np.float32), rng.integers(0, 4, 12)
    thing = prompt < 2
    found = panoptic_merge(masks, score, prompt, thing, overlap=0.8)
    label_map, segment, area = panoptic_loop(soft_of(masks), score, prompt, thing)
    np.testing.assert_array_equal(found.label_map, label_map)
    np.testing.assert_array_equal(found.segment, segment)
    np.testing.assert_array_equal(found.area_px, area)


def test_without_queries_there_are_no_segments() -> None:
    none = np.zeros(0, np.int64)
    found = panoptic_merge(masks_of(np.zeros((0, 2, 3), np.float32), 4, 6), none.astype(float), none, none > 0, 0.8)
    assert found.label_map.shape == (4, 6) and not found.label_map.any() and len(found.segment) == 0


def test_a_logit_far_below_zero_is_a_mask_of_nothing() -> None:
    assert (soft_of(masks_of(np.full((1, 2, 2), -1000, np.float16), 4, 4)) == 0).all()
