"""Flat interaction beside a direct dense-matrix implementation of the same formulas: seconds, memory, equal labels.

`make bench` prints the numbers. The dense way is how the reference implementation goes about it, in our own words and
on the same libraries: whole distance matrices in float32, a full sort of all samples to find six of them, every pair of
point and sample compared with every direction.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

GROUND = (11, 12, 13, 14)
N_CLASSES = 16
SENSOR_HEIGHT_M = 1.84
EQUAL_SHARE = 0.9998
SAMPLES = (1365, 455, 151, 50)
TWICE = (2730, 910, 303, 101)
DENSE_TWICE = "dense, twice the samples"
WAYS = ("dense", DENSE_TWICE, "parity", "default")


def street(seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Return a sweep of a synthetic street and its true labels: 32 beams, about 32,000 points, 2 cm noise per axis.

    Ground at z = -1.84 m with a road (11), two sidewalks (13) and terrain (14), walls (15), cars (4), pedestrians (7)
    and trees (16) as boxes; the nearest hit wins, up to 70 m.
    """
    rng = np.random.default_rng(seed)
    elevation, azimuth = np.meshgrid(
        np.radians(np.linspace(-30.67, 10.67, 32)), np.linspace(-np.pi, np.pi, 1085, endpoint=False), indexing="ij"
    )
    flat = np.cos(elevation)
    ray = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], axis=-1).reshape(-1, 3)
    with np.errstate(divide="ignore"):
        reach = np.where(ray[:, 2] < 0, -SENSOR_HEIGHT_M / ray[:, 2], np.inf)
    aside = np.abs(ray[:, 1] * np.where(np.isfinite(reach), reach, 0))
    label = np.where(aside < 6, 11, np.where(aside < 9, 13, 14))

    boxes: list[Any] = [((-60, 12, -2), (60, 14, 6.16), 15), ((-60, -16, -2), (10, -14, 4.16), 15)]
    sizes = (
        (rng.uniform(-40, 40, 8), rng.choice([-3.5, 3.5], 8), (4.4, 1.8, 1.54), 4),
        (rng.uniform(-30, 30, 5), rng.choice([-7.5, 7.5], 5), (0.5, 0.5, 1.74), 7),
        (rng.uniform(-50, 50, 8), rng.choice([-11.0, 11.0], 8), (2, 2, 4), 16),
    )
    for along, across, (length, width, height), kind in sizes:
        for x, y in zip(along, across, strict=True):
            if abs(x) > 4:  # not on top of the sensor
                low = (x - length / 2, y - width / 2, -SENSOR_HEIGHT_M)
                boxes.append((low, (x + length / 2, y + width / 2, height - SENSOR_HEIGHT_M), kind))
    for low, high, kind in boxes:
        with np.errstate(divide="ignore", invalid="ignore"):
            first, second = np.asarray(low) / ray, np.asarray(high) / ray
        near, far = np.minimum(first, second).max(axis=1), np.maximum(first, second).min(axis=1)
        hit = (near > 0) & (near < far) & (near < reach)
        reach[hit], label[hit] = near[hit], kind
    seen = reach < 70
    xyz_m = ray[seen] * reach[seen, None] + rng.normal(0, 0.02, (seen.sum(), 3))
    return xyz_m.astype(np.float32), label[seen].astype(np.uint8)


def noisy_street() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Return the sweep that is measured, with one label in ten wrong."""
    xyz_m, label = street(0)
    rng = np.random.default_rng(1)
    wrong = rng.random(len(label)) < 0.1
    label[wrong] = rng.integers(1, N_CLASSES + 1, wrong.sum())
    return xyz_m, label


def dense(  # long: the reference's loops, told step by step as it has them
    xyz_m: npt.NDArray[np.float32],
    labels: npt.NDArray[np.integer[Any]],
    sensor_height_m: float = SENSOR_HEIGHT_M,
    samples: tuple[int, ...] = SAMPLES,
) -> npt.NDArray[np.uint8]:
    """Return the labels after flat interaction with the reference's constants, computed with dense matrices.

    nuScenes' 16 classes; equations: reference implementation of the paper (arXiv 2405.15286).
    """
    import torch
    from sklearn.linear_model import RANSACRegressor
    from torch import Tensor
    from torch.nn.functional import one_hot

    gamma, k, n_directions, eps = 0.995, 20, 20, 1e-8

    def squared_distances(a: Tensor, b: Tensor) -> Tensor:
        return (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T

    def normalised(rows: Tensor) -> Tensor:
        return rows / (rows.sum(-1, keepdim=True) + 1e-9)

    def unit(rows: Tensor) -> Tensor:
        scaled: Tensor = rows / (rows.norm(dim=-1, keepdim=True) + eps)
        return scaled

    def sample(points: Tensor, count: int) -> Tensor:
        nearest = torch.full((len(points),), 1e10)
        nearest[(points**2).sum(1) <= 1e-3] = -1
        chosen = torch.zeros(count, dtype=torch.long)
        for i in range(1, count):
            nearest = torch.minimum(nearest, ((points - points[chosen[i - 1]]) ** 2).sum(1))
            best = nearest.max()
            chosen[i] = torch.nonzero(nearest == best)[0, 0]
        return chosen

    i = torch.arange(n_directions, dtype=torch.float64)
    height = 1 - 2 * i / (n_directions - 1)
    radius, turn = (1 - height**2).clamp(min=0).sqrt(), i * torch.pi * (3 - 5**0.5)
    sphere = torch.stack([radius * turn.cos(), height, radius * turn.sin()], 1).float()

    points, given = torch.from_numpy(xyz_m), torch.from_numpy(labels.astype(np.int64))
    distance = (points[:, 0] ** 2 + points[:, 1] ** 2).sqrt()
    ring = torch.nonzero((distance > 2) & (distance < 5) & (points[:, 2] < 0.44 - sensor_height_m))[:, 0]
    plane = RANSACRegressor(min_samples=10, residual_threshold=0.1, max_trials=20, random_state=42)
    plane.fit(points[ring, :2].numpy(), points[ring, 2].numpy())
    ground = ring[torch.from_numpy(plane.inlier_mask_)]
    trusted = (distance > 2).float()
    trusted[ground] = 0
    evidence = one_hot(given, N_CLASSES + 1).float() * trusted[:, None]

    clouds, features = [points], [evidence]
    offsets: list[Tensor] = []
    shares: list[Tensor] = []
    for level, size in enumerate(samples):
        cloud, feature = clouds[-1], features[-1]
        index = sample(cloud, size)
        centre = cloud[index]
        near = squared_distances(centre, cloud).topk(k, largest=False)[1]
        offset = cloud[near] - centre[:, None]
        towards = unit(offset)
        member = one_hot((towards @ sphere.T).argmax(-1), n_directions).float()  # (s, k, d)
        count = member.sum(1)
        count[:, 0] -= 1
        mean = torch.einsum("skd,skx->sdx", member, offset) / (count + eps)[:, :, None]
        gathered = normalised(torch.einsum("skd,skc->sdc", member, feature[near]))
        if level == 0:
            share, influence = count / (count.sum(1, keepdim=True) + eps), torch.ones(size)
        else:
            reach = offsets[-1].norm(dim=-1)
            known = unit(offsets[-1])
            at_centre = torch.einsum("skx,sdx->skd", towards, known[index])
            at_other = torch.einsum("skx,skdx->skd", towards, known[near])
            centre_reach, other_reach = reach[index][:, None], reach[near]
            a, a_back = ((centre_reach * (c > gamma)).amax(-1) for c in (at_centre, -at_centre))
            b, b_back = ((other_reach * (c > gamma)).amax(-1) for c in (at_other, -at_other))
            covered = (a + a_back + b + b_back) / (offset.norm(dim=-1) + a_back + b + eps)
            covered = covered * ((a + a_back > 0) & (b + b_back > 0))
            weight = (shares[-1][index][:, None] * (at_centre.abs() > gamma)).sum(-1)
            weight = weight * (shares[-1][near] * (at_other.abs() > gamma)).sum(-1) * covered
            total = weight.sum(1)
            share = torch.einsum("skd,sk->sd", member, weight) / (total + 1e-7)[:, None]
            influence = total / (total.mean() + eps)
        pooled = (normalised(share / (mean.norm(dim=-1) + eps))[:, :, None] * gathered).sum(1)
        pooled = influence[:, None] * pooled + 0.1 * feature[index] + eps * feature[near].amax(1)
        clouds.append(centre)
        features.append(normalised(pooled))
        offsets.append(mean)
        shares.append(share)

    handed = features[-1]
    for level, kappa in zip((3, 2, 1, 0), (0.01, 0.01, 0.3, 0.01), strict=True):
        fine, coarse = clouds[level], clouds[level + 1]
        near = squared_distances(fine, coarse).sort(dim=1)[1][:, :6]
        towards = unit(coarse[near] - fine[:, None])
        cosine = torch.einsum("nkx,nkdx->nkd", towards, unit(offsets[level])[near])
        weight = (shares[level][near] * (cosine.abs() > gamma)).sum(-1)
        total = weight.sum(1, keepdim=True) + eps
        part = weight / total + 1e-6
        part = part / (part.sum(1, keepdim=True) + eps)
        mixed = total * (part[:, :, None] * handed[near]).sum(1)
        handed = normalised(mixed + (eps + kappa * total.mean()) * features[level])
    allowed = torch.zeros(N_CLASSES + 1)
    allowed[list(GROUND)] = 1
    handed[ground] *= allowed
    found: npt.NDArray[np.uint8] = handed.argmax(1).numpy().astype(np.uint8)
    return found


def way(name: str) -> Callable[..., npt.NDArray[np.uint8]]:
    """Return what is measured under a name, with all that it imports loaded."""
    import sklearn.linear_model  # noqa: F401  both sides use it, and its import is not what is compared

    from superpixels.flat_config import FlatInteractionConfig
    from superpixels.flat_interaction import refine

    if name in ("dense", DENSE_TWICE):
        import torch

        torch.set_num_threads(1)
        return partial(dense, samples=TWICE if name == DENSE_TWICE else SAMPLES)
    config = FlatInteractionConfig.parity() if name == "parity" else FlatInteractionConfig()
    place = {"n_classes": N_CLASSES, "ground_classes": GROUND, "sensor_height_m": SENSOR_HEIGHT_M}
    return lambda xyz_m, labels: refine(xyz_m, labels, config, **place).labels  # type: ignore[arg-type]


@dataclass(frozen=True)
class Cost:
    """What one way takes for a sweep: CPU seconds, least and median over the repeats, and the peak of its memory above
    what its imports take, MB.
    """

    way: str
    cpu_min_s: float
    cpu_median_s: float
    peak_mb: float


@dataclass(frozen=True)
class AfiReport:
    """What the ways cost on one sweep, and how far they agree: `agreement` is the share of the points that the dense
    way and parity mode call the same, `golden` that which the dense way and the reference do, None without golden
    files.
    """

    source: str
    n_points: int
    costs: tuple[Cost, ...]
    agreement: float
    golden: float | None

    def cost(self, way: str) -> Cost:
        """Return what one of the ways costs."""
        return next(cost for cost in self.costs if cost.way == way)

    def times_faster(self, way: str, dense_way: str = "dense") -> float:
        """Return how much more CPU time a dense way takes."""
        return self.cost(dense_way).cpu_min_s / self.cost(way).cpu_min_s


def measured_sweep(golden: Path | None) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Return points and labels to measure on: those of a golden file, or a street of our own."""
    if golden is None:
        return noisy_street()
    with np.load(golden) as file:
        return file["xyz"], file["labels_in"].astype(np.uint8)


def measure_here(name: str, repeats: int, golden: Path | None) -> dict[str, Any]:
    """Return CPU seconds of each repeat, MB of peak memory above the imports, and the labels."""
    run = way(name)
    xyz_m, labels = measured_sweep(golden)
    before = psutil.Process().memory_info().rss
    seconds, found = [], labels
    for _ in range(repeats):
        start = time.process_time()
        found = run(xyz_m, labels)
        seconds.append(time.process_time() - start)
    return {"cpu_s": seconds, "peak_mb": (peak_bytes() - before) / 2**20, "labels": found.tolist()}


def peak_bytes() -> int:
    """Return the most memory that this program ever held; getrusage would count that of the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def measure(repeats: int, golden: Path | None) -> AfiReport:
    """Return what every way costs, each in a process of its own, and how far they agree.

    Raises DifferentResults unless the dense way gives the labels of the reference, and parity mode those of the dense
    way, but for two points in ten thousand: float32 distances pick another neighbour now and then.
    """
    labels, costs = {}, []
    for name in WAYS:
        words = [sys.executable, __file__, name, str(repeats), *([str(golden)] if golden else [])]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        one = json.loads(done.stdout)
        labels[name] = np.array(one["labels"])
        cpu_s = one["cpu_s"]
        costs.append(Cost(name, min(cpu_s), float(np.median(cpu_s)), one["peak_mb"]))
    expected = None
    if golden:
        with np.load(golden) as file:
            expected = equal_share("the reference and the dense way", file["labels_out"], labels["dense"])
    agreement = equal_share("the dense way and parity mode", labels["dense"], labels["parity"])
    source = f"golden sweep {golden.stem}" if golden else "synthetic street"
    return AfiReport(source, len(labels["dense"]), tuple(costs), agreement, expected)


def equal_share(which: str, one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Return the share of equal labels; raises DifferentResults if it is less than it has to be."""
    from bench.checks import DifferentResults  # brings torch along, which is not to count as memory of each way

    share = float(np.mean(one == other))
    if share < EQUAL_SHARE:
        raise DifferentResults(
            f"flat interaction: {which} agree on {share:.2%} of the points; {EQUAL_SHARE:.2%} needed"
        )
    return share


if __name__ == "__main__":
    found = measure_here(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
    print(json.dumps(found))
