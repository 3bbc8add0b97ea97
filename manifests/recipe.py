"""A recipe read and checked whole: what the pipeline computes, what the trainer learns, and where it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from manifests.advice import command, words_of
from manifests.config import ConfigError, Layer, listing, nearest, read_layers, read_recipe
from manifests.fingerprint import Settings
from manifests.ontology import Ontology, load_ontology
from manifests.sections.data import DataConfig, RunConfig
from manifests.sections.labels import CalibrateConfig, LabelsConfig
from manifests.sections.network import AugmentConfig, NetworkConfig, VoxelConfig
from manifests.sections.tables import GroupConfig, ProjectConfig, SegmentConfig, TargetConfig, TextConfig
from manifests.sections.teachers.registry import TEACHER_SECTIONS, TeacherConfig
from manifests.sections.training import (
    DistillConfig,
    EvaluateConfig,
    FinetuneConfig,
    LabelledConfig,
    PredictConfig,
    PretrainConfig,
    ProbeConfig,
    RefineConfig,
    SgdConfig,
    SupervisedConfig,
    Task,
)
from superpixels.flat_config import FlatInteractionConfig
from superpixels.motion import MotionConfig
from superpixels.voting import VotingConfig


@dataclass(frozen=True)
class Recipe:
    """Every section typed, and the class dictionary that `[data]` names; picklable, so workers get it whole."""

    name: str
    data: DataConfig
    run: RunConfig
    ontology: Ontology
    teacher: TeacherConfig
    project: ProjectConfig = ProjectConfig()
    text: TextConfig = TextConfig()
    segment: SegmentConfig = SegmentConfig()
    group: GroupConfig = GroupConfig()
    motion: MotionConfig = MotionConfig()
    vote: VotingConfig = VotingConfig()
    correct: FlatInteractionConfig = FlatInteractionConfig()
    target: TargetConfig = TargetConfig()
    voxels: VoxelConfig = VoxelConfig()
    network: NetworkConfig = NetworkConfig()
    augment: AugmentConfig = AugmentConfig()
    pretrain: PretrainConfig = PretrainConfig()
    distill: DistillConfig = DistillConfig()
    probe: ProbeConfig = ProbeConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    supervised: SupervisedConfig = SupervisedConfig()
    predict: PredictConfig = PredictConfig()
    refine: RefineConfig = RefineConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    calibrate: CalibrateConfig = CalibrateConfig()
    labels: LabelsConfig = LabelsConfig()
    written: Mapping[str, Settings] = field(default_factory=dict)
    """All sections as they were written, with overrides."""
    typed: str = ""
    """The recipe as its user named it: a path, or a built-in name."""
    overrides: tuple[str, ...] = ()
    """What was typed behind `--set`."""

    def make(self, *targets: str, phrase: str | None = None, more: Sequence[str] = ()) -> str:
        """Return the command that makes targets of this recipe, with the overrides it was called with."""
        return command(targets, words_of(self.typed or self.name, self.overrides, more), phrase)

    @property
    def words(self) -> str:
        """What `make` or `afov` is told of this recipe, as it was called."""
        return words_of(self.typed or self.name, self.overrides)

    def folder(self) -> Path:
        """Return where the runs of this recipe are kept."""
        return Path(self.run.runs).expanduser() / self.run_name

    @property
    def run_name(self) -> str:
        """What the folders of its runs, report and label files are called: `run.name`, else the recipe's name."""
        return self.run.name or self.name

    @property
    def template_list(self) -> str:
        """The list of sentences that prompts are put into: the one that `[text]` names, else the teacher's authors'."""
        return self.text.templates or self.teacher.templates

    def settings(self, task: Task) -> SgdConfig:
        """Return the section of a task."""
        settings: SgdConfig = getattr(self, task)
        return settings

    def seen_by(self, task: Task) -> Recipe:
        """Return the recipe with what the section of a task says of other sections put there."""
        settings = self.settings(task)
        if not isinstance(settings, LabelledConfig):
            return self
        return replace(self, network=replace(self.network, batch_norm_momentum=settings.batch_norm_momentum))


SECTION_CLASSES: dict[str, type[Any]] = {
    name: kind
    for name, kind in get_type_hints(Recipe).items()
    if isinstance(kind, type) and is_dataclass(kind) and kind is not Ontology
}
"""The class of every section but `[teacher]`, whose class its `name` picks."""


def check_sections(layers: Sequence[Layer]) -> None:
    """Raise ConfigError unless all that was written stands in sections that a recipe has."""
    known = [*SECTION_CLASSES, "teacher"]
    for layer in layers:
        for name in layer.sections:
            if name not in known:
                hint = nearest(name, known)
                raise ConfigError(f"{layer.origin}: there is no section [{name}]{hint}; known are {listing(known)}")


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe by path or built-in name, every section checked whoever will read it.

    Raises ConfigError with a sentence for anything that is not right.
    """
    check_sections(read_layers(recipe, overrides))
    file = read_recipe(recipe, overrides)
    name = file.sections.get("teacher", {}).get("name", "clip_dense")
    if name not in TEACHER_SECTIONS:
        raise ConfigError(f'teacher.name is "{name}"; there are {", ".join(sorted(TEACHER_SECTIONS))}')
    sections = {key: file.section(key, kind) for key, kind in SECTION_CLASSES.items()}
    try:
        ontology = load_ontology(sections["data"].ontology)
    except (ValueError, OSError) as error:
        raise ConfigError(f"data.ontology: {error}") from None
    teacher = file.section("teacher", TEACHER_SECTIONS[name])
    return Recipe(
        name=file.name,
        ontology=ontology,
        teacher=teacher,
        written=file.sections,
        typed=str(recipe),
        overrides=tuple(overrides),
        **sections,
    )
