"""What the similarity of patches says: who belongs together, who is out of place. Tensors (b, n, ...), float32.

The parts of SC-CLIP (Bai et al., "Self-Calibrated CLIP for Training-Free Open-Vocabulary Segmentation") and of
attention by another network's features (Lan et al., "ProxyCLIP").
"""

from __future__ import annotations

import torch
from torch.nn.functional import avg_pool2d, normalize

MOST_PATCHES = 6000  # similarities need memory for the square of it: 144 MB an image


def similarity(tokens: torch.Tensor) -> torch.Tensor:
    """Return the cosine of every pair of patches, (b, n, n)."""
    unit = normalize(tokens.float(), dim=-1)
    return unit @ unit.transpose(1, 2)


def neighbours(cosine: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return weights (b, n, n) by which a patch is replaced by those as similar as `threshold`; rows sum to 1."""
    weights = cosine * (cosine >= threshold)
    return weights / weights.sum(dim=-1, keepdim=True)


def attention(cosine: torch.Tensor, gamma: float, beta: float) -> torch.Tensor:
    """Return attention weights (b, n, n): softmax over {s > 0} of s = gamma (cosine - beta mean cosine).

    A patch that has no s > 0, as where all are alike, attends to all by the same softmax.
    """
    shifted = gamma * (cosine - beta * cosine.mean(dim=(1, 2), keepdim=True))
    left_out = (shifted <= 0) & (shifted > 0).any(dim=-1, keepdim=True)
    return shifted.masked_fill(left_out, float("-inf")).softmax(dim=-1)


def anomalies(tokens: torch.Tensor, nearest: int = 30, share: float = 0.05) -> torch.Tensor:
    """Return which patches are out of place, bool (b, n): about a `share` of each image, by local outlier factor.

    The factor compares how densely a patch's neighbours lie with how densely it lies itself, by squared distances.
    As in SC-CLIP's code the density of a patch is taken from its own distance to the k-th neighbour, 1 / d_k.
    """
    tokens = tokens.float()
    count = tokens.shape[1]
    nearest = min(nearest, count - 1)
    if nearest < 1:
        return torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    squares = tokens.square().sum(dim=-1)
    distance = squares[:, :, None] + squares[:, None, :] - 2 * (tokens @ tokens.transpose(1, 2))
    itself = torch.eye(count, dtype=torch.bool, device=tokens.device)
    found = distance.clamp_min(0).masked_fill(itself, float("inf")).topk(nearest, dim=-1, largest=False)
    density = 1 / found.values[..., -1].clamp_min(1e-12)
    around = density.unsqueeze(1).expand(-1, count, -1).gather(2, found.indices).mean(dim=-1)
    factor = around / density
    return factor > torch.quantile(factor, 1 - share, dim=1, keepdim=True)


def filled(tokens: torch.Tensor, bad: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return the tokens with every bad one replaced by the mean of the good ones among its eight neighbours, if any."""
    grid = tokens.transpose(1, 2).reshape(len(tokens), -1, *size)
    good = (~bad).to(tokens.dtype).reshape(len(tokens), 1, *size)
    total, count = (avg_pool2d(one, 3, stride=1, padding=1) for one in (grid * good, good))  # both over 9: it cancels
    mean = (total / count.clamp_min(1e-6)).flatten(2).transpose(1, 2)
    replace = bad & (count.flatten(1) > 0.01)
    return torch.where(replace.unsqueeze(-1), mean, tokens)
