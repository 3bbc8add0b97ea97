"""Segments from mask queries: every query has a soft mask on a coarse grid; no mask is ever upsampled as a whole.

SAN and FC-CLIP cut an image up by queries q with mask logits m_q. What a pixel p belongs to depends on sigmoid(m_q(p)),
with the logits upsampled first, as the references do. The sigmoid is not linear, so all queries are needed at every
pixel; they are made for a strip of pixel rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from superpixels.pooling import bilinear_matrix

_STRIP_ROWS = 8


@dataclass(frozen=True, eq=False)
class MaskQueries:
    """Mask logits of one image: on a grid, and how the grid is sampled at the pixels of a label map.

    `logit` float (q, h, w). `rows` (H, h) and `columns` (W, w) are sparse and mix grid cells to pixels.
    """

    logit: npt.NDArray[np.floating[Any]]
    rows: scipy.sparse.csr_array
    columns: scipy.sparse.csr_array

    def __post_init__(self) -> None:
        if self.logit.ndim != 3 or (self.rows.shape[1], self.columns.shape[1]) != self.logit.shape[1:]:
            raise ValueError(
                f"mask logits have shape {self.logit.shape}, but pixels are sampled from a grid of "
                f"{self.rows.shape[1]} x {self.columns.shape[1]} cells"
            )

    @property
    def n_queries(self) -> int:
        """How many queries there are."""
        return len(self.logit)

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width of the label map."""
        return int(self.rows.shape[0]), int(self.columns.shape[0])

    def strips(self) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Yield the soft masks of a few pixel rows at a time: the rows, and sigmoid(m) as float32 (rows * W, q)."""
        height, _width = self.size_px
        rows, columns = self.rows.astype(np.float32), self.columns.astype(np.float32)
        for top in range(0, height, _STRIP_ROWS):
            strip = slice(top, min(top + _STRIP_ROWS, height))
            part = rows[strip]
            first, last = int(part.indices.min()), int(part.indices.max()) + 1
            cells = self.logit[:, first:last].astype(np.float32).transpose(1, 2, 0)
            wide = np.stack([columns @ row for row in np.ascontiguousarray(cells)])
            soft = part[:, first:last] @ wide.reshape(last - first, -1)
            with np.errstate(over="ignore"):  # infinite, of which the sigmoid is 0
                np.exp(np.negative(soft, out=soft), out=soft)
            soft += 1
            yield strip, np.reciprocal(soft, out=soft).reshape(-1, self.n_queries)

    def prompt_argmax(self, probability: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint16]:
        """Return the prompt of each pixel, (H, W): the largest of R(p) = sum_q probability[q] * sigmoid(m_q(p)).

        `probability` (q, t) says how likely a query shows each prompt; raises ValueError for another shape. Of equal
        sums the first prompt wins. This is "semantic inference" of MaskFormer (Cheng et al., "Per-Pixel Classification
        is Not All You Need").
        """
        if len(probability) != self.n_queries or not 1 <= probability.shape[1] <= 65535:
            raise ValueError(
                f"probabilities have shape {probability.shape}; expected ({self.n_queries}, 1 to 65535 prompts)"
            )
        return self._best(np.ascontiguousarray(probability, np.float32))

    def _best(self, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
        """Return what `prompt_argmax` does, of weights (q, t)."""
        best = np.empty(self.size_px, np.uint16)
        for strip, soft in self.strips():
            best[strip] = (soft @ weights).argmax(axis=1).reshape(-1, self.size_px[1])
        return best


def sampling(size_px: int, cells: int, padded_px: int = 0, kept_px: int = 0) -> scipy.sparse.csr_array:
    """Sparse (size_px, cells) matrix of one axis of bilinear upsampling.

    With `padded_px` and `kept_px` it does what reference implementations do to images that were padded at their end:
    cells to padded pixels, of which the first `kept_px` are kept and resampled to the final size.
    """
    if not padded_px:
        return scipy.sparse.csr_array(bilinear_matrix(size_px, cells))
    return scipy.sparse.csr_array(bilinear_matrix(size_px, kept_px)) @ scipy.sparse.csr_array(
        bilinear_matrix(padded_px, cells)[:kept_px]
    )


def name_scores(
    masks: MaskQueries, probability: npt.NDArray[np.floating[Any]], prompt_map: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.float32]:
    """Return how likely each pixel is what it is called, (H, W): queries' probabilities, each by its mask's share.

    `probability` (q, t) says how likely a query shows each prompt, `prompt_map` (H, W) holds 0..t-1: with sigmoid(m_q)
    as weights, the mean of probability[q, prompt] over the queries.
    """
    if prompt_map.shape != masks.size_px or not 0 <= prompt_map.min() <= prompt_map.max() < probability.shape[1]:
        raise ValueError(
            f"the prompt map {prompt_map.shape} must be {masks.size_px} and hold 0..{probability.shape[1] - 1}"
        )
    weights = np.ascontiguousarray(probability, np.float32)
    found = np.empty(masks.size_px, np.float32)
    for strip, soft in masks.strips():
        named = (soft @ weights)[np.arange(len(soft)), prompt_map[strip].ravel()]
        found[strip] = (named / np.maximum(soft.sum(axis=1), 1e-20)).reshape(-1, masks.size_px[1])
    return found


def owner_scores(masks: MaskQueries, score: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Return the largest score[q] * sigmoid(m_q) of each pixel, (H, W): how sure it is of the query that owns it."""
    found = np.zeros(masks.size_px, np.float32)
    for strip, soft in masks.strips() if masks.n_queries else ():
        found[strip] = (soft * score.astype(np.float32)).max(axis=1).reshape(-1, masks.size_px[1])
    return found


def query_shares(masks: MaskQueries, label_map: npt.NDArray[np.integer[Any]], n: int) -> npt.NDArray[np.float64]:
    """How much of every soft mask lies in every segment, (n, q): M[k, q] sums sigmoid(m_q) over pixels of segment k.

    The label map (H, W) holds 0..n, 0 being no segment. With query embeddings e (q, d) the pooled dense feature map
    sum_p sum_q sigmoid(m_q(p)) e_q of all segments is M e, and the map itself is never needed.
    """
    if label_map.shape != masks.size_px or not 0 <= label_map.min() <= label_map.max() <= n:
        raise ValueError(f"the label map {label_map.shape} must be {masks.size_px} and hold ids 0..{n}")
    shares = np.zeros((n + 1, masks.n_queries))
    for strip, soft in masks.strips():
        label = label_map[strip].ravel().astype(np.int64)
        count = len(label)
        inside = scipy.sparse.csr_array((np.ones(count, np.float32), (label, np.arange(count))), shape=(n + 1, count))
        shares += inside @ soft
    return shares[1:]


@dataclass(frozen=True, eq=False)
class Panoptic:
    """Which query owns which pixels. `label_map` uint16 (H, W) holds segments 1..n, 0 where there is none.

    `segment` int32 (q,) is the segment of each query, 0 for those that got none; `area_px` int64 (q,) the pixels that a
    query adds to its segment. Segments are numbered in the order of the first query that each was made from.
    """

    label_map: npt.NDArray[np.uint16]
    segment: npt.NDArray[np.int32]
    area_px: npt.NDArray[np.int64]


def panoptic_merge(
    masks: MaskQueries,
    score: npt.NDArray[np.floating[Any]],
    prompt: npt.NDArray[np.integer[Any]],
    thing: npt.NDArray[np.bool_],
    overlap: float,
) -> Panoptic:
    """Give pixels to queries and merge those that name the same stuff, as Mask2Former's panoptic inference does.

    A pixel is owned by the query of largest score * sigmoid(m); what a query owns becomes a segment where
    sigmoid(m) >= 1/2. A query is dropped if nothing of it is left, or if it owns less than the share `overlap` of all
    pixels with sigmoid(m) >= 1/2; its pixels then belong to no segment. Queries of a `prompt` (q,) that is no `thing`
    (q,) share one segment. Queries that show no object must not be among them.
    """
    n = masks.n_queries
    owner = np.zeros(masks.size_px, np.int32)
    inside = np.zeros(masks.size_px, np.bool_)
    covered_px = np.zeros(n, np.int64)
    if not n:
        return Panoptic(owner.astype(np.uint16), np.zeros(n, np.int32), np.zeros(n, np.int64))
    weight = score.astype(np.float32)
    for strip, soft in masks.strips():
        winner = (soft * weight).argmax(axis=1)
        shape = (-1, masks.size_px[1])
        owner[strip] = winner.reshape(shape)
        inside[strip] = (soft[np.arange(len(soft)), winner] >= 0.5).reshape(shape)
        covered_px += (soft >= 0.5).sum(axis=0)
    # A query also owns pixels that it does not cover, where all are weak; they count for it, as in the reference.
    owned_px = np.bincount(owner.ravel(), minlength=n)
    area_px = np.bincount(owner[inside], minlength=n)
    stays = (area_px > 0) & (owned_px >= overlap * covered_px)
    # A thing stands for itself; stuff stands for the first query that stays and has the same prompt.
    first = np.arange(n)
    stuff = np.flatnonzero(stays & ~thing)
    _, start, group = np.unique(prompt[stuff], return_index=True, return_inverse=True)
    first[stuff] = stuff[start][group]
    opens = stays & (first == np.arange(n))
    segment = np.where(stays, np.cumsum(opens)[first], 0).astype(np.int32)
    label_map = np.where(inside, segment[owner], 0).astype(np.uint16)
    return Panoptic(label_map, segment, np.where(stays, area_px, 0))
