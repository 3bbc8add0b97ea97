"""Sections of the student: its voxels, its network, its views."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from manifests.config import changed_values
from manifests.fingerprint import Json

Architecture = Literal["minkunet34c", "minkunet_small"]
EngineName = Literal["auto", "minkowski", "torch"]
Coordinates = Literal["cylindrical", "cartesian"]

LabelRule = Literal["majority", "first"]


@dataclass(frozen=True)
class VoxelConfig:
    """The grid that cuts a sweep into voxels; recipe section ``[voxels]``.

    ``coordinates``
        ``"cylindrical"``: cells of ``size_m`` in radius, ``angle_deg`` in azimuth and ``size_m`` in height. The azimuth
        does not wrap around: cells at +180 and -180 degrees are no neighbours (official checkpoints were trained so).
        ``"cartesian"``: cubes of ``size_m``.
    ``label``
        ``"majority"``: see :func:`voxel_labels`; ``"first"`` repeats the reference implementation.
    ``intensity_scale``, ``intensity_offset``
        The network sees ``intensity * scale + offset``. The official checkpoints saw nuScenes as stored, 0..255 (scale
        1, offset 0), and SemanticKITTI's remission with offset 1, two scales a factor of 100 apart; so they are
        recorded here.
    """

    coordinates: Coordinates = "cylindrical"
    size_m: float = 0.1
    angle_deg: float = 1.0
    label: LabelRule = "majority"
    intensity_scale: float = 1.0
    intensity_offset: float = 0.0

    def __post_init__(self) -> None:
        if self.coordinates not in get_args(Coordinates):
            raise ValueError(f"voxels.coordinates is {self.coordinates!r}; expected one of {get_args(Coordinates)}")
        if self.label not in get_args(LabelRule):
            raise ValueError(f"voxels.label is {self.label!r}; expected one of {get_args(LabelRule)}")
        if not (math.isfinite(self.size_m) and self.size_m > 0):
            raise ValueError(f"voxels.size_m is {self.size_m}; expected an edge length above 0 m")
        if not 0 < self.angle_deg <= 360:
            raise ValueError(f"voxels.angle_deg is {self.angle_deg}; expected a sector in (0, 360] degrees")
        if not (math.isfinite(self.intensity_scale) and self.intensity_scale != 0):
            raise ValueError(f"voxels.intensity_scale is {self.intensity_scale}; expected a finite factor other than 0")
        if not math.isfinite(self.intensity_offset):
            raise ValueError(f"voxels.intensity_offset is {self.intensity_offset}; expected a finite number")


def without_labels(config: VoxelConfig) -> VoxelConfig:
    """Return the settings as they matter to what gives voxels no label: pre-training, and prediction."""
    return replace(config, label=VoxelConfig.label)


@dataclass(frozen=True)
class NetworkConfig:
    """The student network; recipe section ``[network]``.

    ``name``
        "minkunet34c" (the paper's) or "minkunet_small" (for CPUs).
    ``batch_norm_momentum``, ``block_batch_norm_momentum``
        Of the stem, strided, transposed and shortcut layers, and inside residual blocks: the reference implementation
        configures the first (0.05; 0.02 for fine-tuning) and leaves the second at torch's 0.1.
    ``stem_kernel_size``
        Odd edge length of the first convolution, in voxels.
    ``engine``
        What computes sparse convolutions: "minkowski" (MinkowskiEngine), "torch" (plain PyTorch, needs nothing else),
        or "auto": MinkowskiEngine where it is installed and, on a machine with a GPU, can compute there; else PyTorch.
        Weights fit both; their results differ in the last bits.
    """

    name: Architecture = "minkunet34c"
    batch_norm_momentum: float = 0.05
    block_batch_norm_momentum: float = 0.1
    stem_kernel_size: int = 3
    engine: EngineName = "auto"

    def content(self) -> dict[str, Json]:
        """Return what enters identities: what is not the default, and of engines the one in PyTorch where it is named.

        Which engine "auto" takes depends on the machine, as the device does; results differ in the last bits.
        """
        found = changed_values(self)
        return {name: value for name, value in found.items() if name != "engine" or value == "torch"}

    def __post_init__(self) -> None:
        if self.name not in get_args(Architecture):
            raise ValueError(f"network.name is {self.name!r}; expected one of {get_args(Architecture)}")
        if self.engine not in get_args(EngineName):
            raise ValueError(f"network.engine is {self.engine!r}; expected one of {get_args(EngineName)}")
        for name in ("batch_norm_momentum", "block_batch_norm_momentum"):
            momentum: float = getattr(self, name)
            if not 0 < momentum <= 1:
                raise ValueError(f"network.{name} is {momentum}; expected the weight of a new batch, in (0, 1]")
        if self.stem_kernel_size < 3 or self.stem_kernel_size % 2 == 0:
            raise ValueError(f"network.stem_kernel_size is {self.stem_kernel_size}; expected an odd number from 3")


@dataclass(frozen=True)
class AugmentConfig:
    """Which random transforms a training frame goes through; recipe section ``[augment]``.

    ``rotate``
        Turn about z by an angle in [0, 2 pi).
    ``flip``
        Mirror x, and mirror y, each every other time.
    ``cuboids``
        Drop the points in a box around a random point, of up to ``cuboid_max_share`` of the cloud's extent; undone
        where a camera with pairs would keep fewer than ``cuboid_min_pairs``.
    ``crop``
        Per camera, drop the pairs outside a random box of ``crop_area`` (share of the image, from, to) and
        ``crop_aspect`` (width / height, from, to) that keeps more than ``crop_min_pairs`` or 75 % of the camera's
        pairs.

    The last two need pairs: distillation and probing, which have none, only turn and mirror. Defaults are the paper's.
    """

    rotate: bool = True
    flip: bool = True
    cuboids: bool = True
    cuboid_max_share: float = 0.2
    cuboid_min_pairs: int = 1024
    crop: bool = True
    crop_area: tuple[float, float] = (0.3, 1.0)
    crop_aspect: tuple[float, float] = (14 / 9, 17 / 9)
    crop_min_pairs: int = 1024

    def __post_init__(self) -> None:
        if not 0 < self.cuboid_max_share <= 1:
            raise ValueError(f"augment.cuboid_max_share is {self.cuboid_max_share}; expected a share in (0, 1]")
        for name in ("cuboid_min_pairs", "crop_min_pairs"):
            if getattr(self, name) < 0:
                raise ValueError(f"augment.{name} is {getattr(self, name)}; expected 0 or more")
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ValueError(f"augment.crop_area is {self.crop_area}; expected shares 0 < from <= to <= 1")
        if not 0 < self.crop_aspect[0] <= self.crop_aspect[1]:
            raise ValueError(f"augment.crop_aspect is {self.crop_aspect}; expected ratios 0 < from <= to")


def without_pairs(config: AugmentConfig) -> AugmentConfig:
    """Return the settings as they matter to frames without pairs."""
    return AugmentConfig(rotate=config.rotate, flip=config.flip)
