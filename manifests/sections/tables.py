"""Sections of stages: how tables are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ProjectConfig:
    """Section `[project]`: which points an image shows, and which of them lie behind something nearer.

    A point is kept if its depth exceeds `min_depth_m` and its pixel lies strictly inside the image. It is flagged as
    occluded if another point in the same image cell of `cell_px` is nearer by a factor `depth_ratio` plus `margin_m`.
    """

    min_depth_m: float = 1.0
    cell_px: int = 8
    depth_ratio: float = 1.05
    margin_m: float = 1.0

    def __post_init__(self) -> None:
        if self.min_depth_m <= 0 or self.cell_px < 1 or self.depth_ratio < 1 or self.margin_m < 0:
            raise ValueError("min_depth_m > 0, cell_px >= 1, depth_ratio >= 1 and margin_m >= 0 are required")


@dataclass(frozen=True)
class TextConfig:
    """Section `[text]`: the sentence templates that each prompt is put into.

    `templates` names a list of manifests.templates; empty, it is the one that the authors of the
    teacher use.
    """

    templates: str = ""


@dataclass(frozen=True)
class SegmentConfig:
    """Section `[segment]`: how dense teachers' label maps become segments.

    `split`: one segment per prompt and image ("class", the reference's way) or per 4-connected component
    ("components"). Segments of fewer than `min_area_px` pixels are dropped. `scale` is the resolution, relative to the
    image, at which the label map is computed.
    """

    split: str = "class"
    min_area_px: int = 0
    scale: float = 0.5

    def __post_init__(self) -> None:
        if self.split not in ("class", "components"):
            raise ValueError(f'split is "{self.split}"; choose "class" or "components"')
        if self.min_area_px < 0 or not 0 < self.scale <= 1:
            raise ValueError("min_area_px >= 0 and 0 < scale <= 1 are required")


@dataclass(frozen=True)
class GroupConfig:
    """Section `[group]`: from segments to superpoints and one pseudo-label per point.

    `policy` settles what a point seen by several cameras is called: "last_camera" (the reference: the later camera
    wins), "confidence" (the surer segment) or "nearest_axis" (the camera that sees it closest to its optical axis).
    `occluded` keeps pairs that lie behind something nearer (the reference does); leaving them out fixes the background
    points that get the foreground's label because the LiDAR on the roof looks over what blocks the camera.
    Superpoints of fewer than `min_points` points are dropped. `scores` says how sure a pseudo-label is: as its
    "segment", whose score all of its points share, or as the "pixel" in which the point is seen, by table `score`,
    which clip_dense, san, fcclip, catseg, composite, onnx, ensemble, and artifacts with images of scores can give.
    """

    policy: str = "confidence"
    occluded: bool = False
    min_points: int = 1
    scores: Literal["segment", "pixel"] = "segment"

    def __post_init__(self) -> None:
        if self.policy not in ("last_camera", "confidence", "nearest_axis"):
            raise ValueError(f'policy is "{self.policy}"; choose "last_camera", "confidence" or "nearest_axis"')
        if self.min_points < 1:
            raise ValueError(f"min_points is {self.min_points}; it must be at least 1")


@dataclass(frozen=True)
class TargetConfig:
    """Section `[target]`: which labels distillation learns.

    `labels`: "group", the pseudo-labels as cameras give them (the reference's way); "vote", the same after a vote of
    the sweeps before and after; "correct", after flat interaction; "vote+correct", after the vote and then flat
    interaction. All but the first also name points that no camera sees. `confidence` is how sure a label of the vote
    is: by its "share" of the votes, or by the "margin" between that and the share of the next class (vote.belief).
    """

    labels: Literal["group", "vote", "correct", "vote+correct"] = "group"
    confidence: Literal["share", "margin"] = "share"
