"""The pipeline's view of a recipe: its sections as frozen dataclasses, and the class dictionary it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from manifests.config import ConfigError, DataConfig, RunConfig, read_recipe
from manifests.ontology import Ontology, load_ontology
from pipeline.teachers import TEACHERS, TeacherConfig
from superpixels.flat_interaction import FlatInteractionConfig
from superpixels.voting import VotingConfig


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
    """Section `[text]`: the sentence templates that each prompt is put into."""

    templates: str = "vild14"


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
    Superpoints of fewer than `min_points` points are dropped.
    """

    policy: str = "confidence"
    occluded: bool = False
    min_points: int = 1

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
    interaction. All but the first also name points that no camera sees.
    """

    labels: Literal["group", "vote", "correct", "vote+correct"] = "group"


@dataclass(frozen=True)
class Recipe:
    """Everything the pipeline computes, typed; picklable, so workers get it whole."""

    name: str
    data: DataConfig
    run: RunConfig
    teacher: TeacherConfig
    project: ProjectConfig
    text: TextConfig
    segment: SegmentConfig
    group: GroupConfig
    ontology: Ontology
    correct: FlatInteractionConfig = FlatInteractionConfig()
    vote: VotingConfig = VotingConfig()
    target: TargetConfig = TargetConfig()


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe by path or built-in name; raises ConfigError with a sentence for anything that is not right."""
    file = read_recipe(recipe, overrides)
    data = file.section("data", DataConfig)
    teacher: dict[str, Any] = dict(file.sections.get("teacher", {}))
    name = teacher.get("name", "clip_dense")
    if name not in TEACHERS:
        raise ConfigError(f'teacher.name is "{name}"; there are {", ".join(sorted(TEACHERS))}')
    try:
        ontology = load_ontology(data.ontology)
    except (ValueError, OSError) as error:
        raise ConfigError(f"data.ontology: {error}") from None
    return Recipe(
        name=file.name,
        data=data,
        run=file.section("run", RunConfig),
        teacher=file.section("teacher", TEACHERS[name].config),
        project=file.section("project", ProjectConfig),
        text=file.section("text", TextConfig),
        segment=file.section("segment", SegmentConfig),
        group=file.section("group", GroupConfig),
        ontology=ontology,
        correct=file.section("correct", FlatInteractionConfig),
        vote=file.section("vote", VotingConfig),
        target=file.section("target", TargetConfig),
    )
