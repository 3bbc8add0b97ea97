"""Objectives as functions of network output and batch: contrastive pre-training (TMP), and segmentation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from manifests.sections.training import Lovasz, TmpConfig, check_target


class Counts(NamedTuple):
    """Rows that teach (labelled voxels, or superpoints with points), and frames and parts of the batch with any.

    ``weight`` is that of the rows together, a whole number so that parts add up exactly; 0 where they weigh the same.
    """

    n_rows: int
    n_frames: int
    n_parts: int
    weight: int = 0


def counts(frame_of_row: Tensor, weight_of_row: Tensor | None = None) -> Counts:
    """Return the counts of one part of a batch; ``frame_of_row`` (k,) int64 is the frame of every row that teaches, and
    ``weight_of_row`` (k,) its weight, a whole number.
    """
    n_frames = int(torch.bincount(frame_of_row).count_nonzero())
    weight = 0 if weight_of_row is None else int(weight_of_row.sum())
    return Counts(len(frame_of_row), n_frames, int(len(frame_of_row) > 0), weight)


@dataclass(frozen=True)
class GlobalBatch:
    """The batch that the rows at hand are a part of; a loss is their share of its loss, so that the shares add up.

    Parts are cut along frames: by device, and where memory is short, on a device one after the other. ``counts`` are
    of all parts together. ``gather`` joins the rows (n, ...) of all ``world_size`` devices, gradients included, and
    says where one's own begin; every device has to call it as often.
    """

    counts: Counts
    world_size: int = 1
    gather: Callable[[Tensor], tuple[Tensor, int]] = lambda rows: (rows, 0)


class TmpTerms(NamedTuple):
    """Scalars: ``total`` = image_weight * ``image`` + text_weight * ``text``."""

    total: Tensor
    image: Tensor
    text: Tensor


class SegmentationTerms(NamedTuple):
    """Scalars: ``total`` = ``cross_entropy`` + ``lovasz``."""

    total: Tensor
    cross_entropy: Tensor
    lovasz: Tensor


def pool_superpoints(
    voxel_features: Tensor, pair_voxel: Tensor, pair_superpoint: Tensor, n_superpoints: int
) -> tuple[Tensor, Tensor]:
    """Return the mean feature of every superpoint over its pairs, (s, d) float32, and the number of pairs, (s,) int64.

    A pair says that a point, which lies in row ``pair_voxel`` of ``voxel_features`` (v, d), belongs to the superpoint
    in row ``pair_superpoint``; both are (m,) int64, in any order. A superpoint without pairs is a zero row. The 1e-6
    under the mean is the reference implementation's.
    """
    n_pairs = torch.bincount(pair_superpoint, minlength=n_superpoints)
    order = torch.argsort(pair_superpoint, stable=True)
    # A bag sums rows where they lie: three times as fast as gathering m x d numbers first, with equal bits.
    sums = F.embedding_bag(pair_voxel[order], voxel_features.float(), n_pairs.cumsum(0) - n_pairs, mode="sum")
    return sums / (n_pairs[:, None] + 1e-6), n_pairs


def tmp_loss(
    voxel_features: Tensor,
    pair_voxel: Tensor,
    pair_superpoint: Tensor,
    superpoint_vector: Tensor,
    superpoint_prompt: Tensor,
    superpoint_frame: Tensor,
    text: Tensor,
    target: Tensor,
    config: TmpConfig,
    global_batch: GlobalBatch | None = None,
) -> TmpTerms:
    """How well superpoints find their masks and their prompts; 0 if no superpoint has a point.

    The paper (arXiv 2405.15286), TMP: an InfoNCE term from superpoints to the batch's masks, and a soft cross-entropy
    from superpoints to all prompts.

    Parameters
    ----------
    voxel_features : (v, d) unit vectors, the network's output for all frames of the batch
    pair_voxel, pair_superpoint : (m,) int64, rows of the whole batch; one superpoint per (frame, view, segment)
    superpoint_vector : (s, d) the teacher's vector of each mask, any length and float type
    superpoint_prompt, superpoint_frame : (s,) int64 row of ``text``, and frame within the batch
    text : (p, d) prompt vectors, any length
    target : (p, p) from :func:`soft_text_target`
    global_batch : the batch that these rows are a part of; by default they are all of it
    """
    pooled, n_pairs = pool_superpoints(voxel_features, pair_voxel, pair_superpoint, len(superpoint_prompt))
    valid = n_pairs > 0
    points = F.normalize(pooled[valid], dim=1) if config.renormalise else pooled[valid]
    prompt, frame = superpoint_prompt[valid], superpoint_frame[valid]
    global_batch = global_batch or GlobalBatch(counts(frame))
    total, prompt_of_mask, first = global_batch.counts, prompt, 0
    vectors = superpoint_vector[valid].to(points).reshape(-1, points.shape[1])  # of none, the width is not known
    if config.negatives == "global":
        (vectors, first), (prompt_of_mask, _) = global_batch.gather(vectors), global_batch.gather(prompt)
    if len(points) == 0:
        zero = voxel_features.sum() * 0
        return TmpTerms(zero, zero, zero)

    row = torch.arange(len(points), device=points.device)
    excluded = torch.zeros(len(points), len(vectors), dtype=torch.bool, device=points.device)
    if config.negatives == "frame":
        excluded |= frame[:, None] != frame
        rows_in_frame = torch.bincount(frame)
        row_weight = 1 / (rows_in_frame[frame] * total.n_frames)
    else:
        n_rows = total.n_rows if config.negatives == "global" else len(points) * total.n_parts
        row_weight = torch.full((len(points),), 1 / n_rows, device=points.device)
    if config.mask_same_prompt:
        excluded |= prompt[:, None] == prompt_of_mask
        excluded[row, first + row] = False
    masks = F.normalize(vectors, dim=1)
    affinity = (points @ masks.T / config.temperature).masked_fill(excluded, -torch.inf)
    image = (row_weight * (affinity.logsumexp(1) - affinity[row, first + row])).sum()

    prompts = F.normalize(text.to(points), dim=1)
    log_probability = (points @ prompts.T / config.temperature).log_softmax(1)
    text_loss = -(row_weight * (target.to(points)[prompt] * log_probability).sum(1)).sum()
    return TmpTerms(config.image_weight * image + config.text_weight * text_loss, image, text_loss)


def soft_text_target(
    text: Tensor, group_of_prompt: Tensor, weight: float = 0.2, power: float = 1.0, clamp: bool = True
) -> Tensor:
    """Return the distribution over prompts that each prompt's superpoints should show, (p, p); rows sum to 1.

    Row-normalised ``weight * I + (1 - weight) * cosine ** power`` between prompts of the same group (category), 0
    elsewhere: synonyms are no mistakes. ``text`` (p, d) need not be of unit length; ``group_of_prompt`` (p,) int64.
    ``clamp`` lifts negative cosines to 0; off, as in the reference implementation, they make negative targets.
    """
    check_target(weight, power, clamp)
    unit = F.normalize(text.float(), dim=1)
    cosine = unit @ unit.T
    if clamp:
        cosine = cosine.clamp(min=0)
    siblings = group_of_prompt[:, None] == group_of_prompt
    raw = (1 - weight) * torch.where(siblings, cosine**power, 0) + weight * torch.eye(len(text), device=text.device)
    return raw / raw.sum(1, keepdim=True)


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    frame: Tensor | None = None,
    lovasz: Lovasz = "batch",
    ignore: int = 0,
    global_batch: GlobalBatch | None = None,
    weight: Tensor | None = None,
    shares: Tensor | None = None,
) -> SegmentationTerms:
    """Cross-entropy plus Lovász-softmax over the rows whose label is not ``ignore``; 0 if there is no such row.

    ``logits`` (v, c), ``labels`` and ``frame`` (v,) int64; without ``frame`` the rows are of one. The softmax runs over
    all c columns, that of the ignored label included. The Lovász term bounds the IoU of the whole batch, or with
    ``lovasz`` "scan" that of each frame, of which it is the mean. ``global_batch`` is the batch that these rows are a
    part of; by default they are all of it.

    ``weight`` (v,), whole numbers, 0 or more and on any scale, says how much a row counts: the cross-entropy is the
    weighted mean, and the IoU that the Lovász term bounds is of sums of weights in place of numbers of rows. A row
    without weight teaches nothing.

    ``shares`` (v, c), which add up to 1 in rows that teach, are what the cross-entropy compares with in place of the
    label: the mean of -sum(shares * log(probabilities)). The Lovász term takes the label either way.
    """
    labelled = labels != ignore
    if weight is not None:
        labelled &= weight > 0
        weight = weight[labelled].long()
    frame = torch.zeros_like(labels)[labelled] if frame is None else frame[labelled]
    global_batch = global_batch or GlobalBatch(counts(frame, weight))
    rows, labels = logits[labelled].float(), labels[labelled].long()
    total = global_batch.counts.n_rows if weight is None else global_batch.counts.weight
    if total == 0:
        zero = logits.sum() * 0
        return SegmentationTerms(zero, zero, zero)
    if shares is not None:
        compared = F.cross_entropy(rows, shares[labelled].to(rows), reduction="none")
        cross_entropy = (compared if weight is None else compared * weight).sum() / total
    elif weight is None:
        cross_entropy = F.cross_entropy(rows, labels, reduction="sum") / total
    else:
        cross_entropy = (F.cross_entropy(rows, labels, reduction="none") * weight).sum() / total
    probabilities = rows.softmax(1)
    if lovasz == "batch":
        everything = global_batch.gather(probabilities)[0], global_batch.gather(labels)[0]
        weights = None if weight is None else global_batch.gather(weight)[0]
        term = lovasz_softmax(*everything, weights) / global_batch.world_size
    else:
        scans = [
            lovasz_softmax(probabilities[own], labels[own], None if weight is None else weight[own])
            for own in (frame == one for one in torch.unique(frame))
        ]
        term = torch.stack([probabilities.sum() * 0, *scans]).sum() / global_batch.counts.n_frames
    return SegmentationTerms(cross_entropy + term, cross_entropy, term)


def lovasz_softmax(probabilities: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the Lovász extension of 1 - IoU, mean over the classes present in ``labels``.

    ``probabilities`` (n, c), ``labels`` (n,) int64, n at least 1; ``weight`` (n,) int64, above 0, is how many rows each
    counts for, which keeps the set function submodular. Berman, Triki, Blaschko, "The Lovász-Softmax loss",
    CVPR 2018, algorithm 1: errors, sorted from large to small, are weighted by how much each lowers the IoU.
    """
    terms = []
    for label in torch.unique(labels):  # a loop over classes: one sort of (classes, n) is slower from 100,000 rows on
        is_class = labels == label
        errors, order = (is_class.to(probabilities.dtype) - probabilities[:, label]).abs().sort(descending=True)
        hits, others = is_class[order], ~is_class[order]
        if weight is not None:
            hits, others = hits * weight[order], others * weight[order]
        n_class = hits.sum()
        loss = 1 - (n_class - hits.cumsum(0)) / (n_class + others.cumsum(0)).to(probabilities.dtype)
        terms.append(errors @ loss.diff(prepend=loss.new_zeros(1)))
    return torch.stack(terms).mean()
