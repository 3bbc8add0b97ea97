"""What the paper ran and what it got: settings to hold a run against, and numbers to hold its scores against.

Settings are those of arXiv 2405.15286 as its implementation (sbysbysbys/AFOV) configures them. Numbers are mIoU in %
from the README of that implementation; rows "random" and "SLidR" of transfer are from the README of valeoai/SLidR.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from manifests.fingerprint import Json, Settings, differences, plain
from manifests.recipe import Recipe
from manifests.records.run import Ancestor
from manifests.sections.network import AugmentConfig, NetworkConfig, VoxelConfig, without_labels, without_pairs
from manifests.sections.training import (
    DistillConfig,
    FinetuneConfig,
    LabelledConfig,
    PretrainConfig,
    ProbeConfig,
    SgdConfig,
    Task,
)

NOT_COMPARED = ("init", "seed", "keep_every", "engine")
"""Settings that are another experiment of the paper, that it does not give, or that change no result."""

FRAMES: Mapping[tuple[str, Task], int] = {
    ("nuscenes", "distill"): 28_130,
    ("nuscenes", "probe"): 28_130,
    ("semantic_kitti", "finetune"): 192,
}
"""Frames that the paper's runs learn from, where their number is known."""

GROUPING: Mapping[str, Settings] = {"group": {"policy": "last_camera", "occluded": True}, "target": {}}
"""How the paper's pseudo-labels and superpoints are made: settings of tables that are not our defaults."""

VALIDATION_FRAMES = {"nuscenes": 6_019, "semantic_kitti": 4_071}

VERSIONS = {"nuscenes": "v1.0-trainval"}
"""Other versions hold other frames."""

TEACHERS = {"san": "SAN", "catseg": "CAT-Seg", "fcclip": "FC-CLIP"}

ANNOTATION_FREE = {
    "CAT-Seg": {"SLidR": 38.45, "AFOV-TMP": 42.50, "AFI": 42.83},
    "FC-CLIP": {"SLidR": 39.00, "AFOV-TMP": 42.44, "AFI": 43.28},
    "SAN": {"SLidR": 44.16, "AFOV-TMP": 47.42, "AFI": 47.73},
}
"""On nuScenes val, by teacher and by the weights that distillation starts from; "AFI": after flat interaction too."""

TRANSFER: Mapping[tuple[str, str], Mapping[tuple[str, str], float]] = {
    (start, teacher): {
        ("nuscenes", "probe"): probe,
        ("nuscenes", "finetune"): few,
        ("semantic_kitti", "finetune"): kitti,
    }
    for start, teacher, probe, few, kitti in (
        ("random", "", 8.1, 30.3, 39.5),
        ("SLidR", "", 38.8, 38.3, 44.6),
        ("AFOV-TMP", "CAT-Seg", 43.95, 46.61, 48.14),
        ("AFOV-TMP", "FC-CLIP", 44.24, 45.73, 47.02),
        ("AFOV-TMP", "SAN", 46.29, 47.60, 47.72),
        ("AFOV", "CAT-Seg", 51.02, 49.14, 47.59),
        ("AFOV", "FC-CLIP", 52.92, 50.58, 45.86),
        ("AFOV", "SAN", 56.35, 51.75, 46.60),
    )
}
"""By initial weights and teacher: linear probe and 1 % of nuScenes, 1 % of SemanticKITTI."""

OFFICIAL_OUTPUTS = {64: "SLidR", 768: "AFOV-TMP", 17: "AFOV"}
"""What an official file is, by the width of its head."""


@dataclass(frozen=True)
class Expected:
    """What the paper got: mIoU in %, and the row and table that say so."""

    mean_iou_percent: float
    row: str
    source: str


def departures(
    recipe: Recipe,
    task: Task,
    n_frames: int,
    initial: Ancestor | None,
    made: Mapping[str, Settings] | None = None,
) -> list[str] | None:
    """Return in what a run differs from the paper's, `section.setting: paper's -> its own`; None without such a run.

    `recipe` is as the task sees it, `initial` describes the weights it starts from (see `start_of`), and `made` are the
    settings, other than defaults, that tables were made with, by name; those that are not there are not compared.
    """
    dataset = recipe.data.dataset
    paper = paper_settings(task, dataset, start_of(initial))
    if paper is None:
        return None
    own = settings_of(recipe.voxels, recipe.network, recipe.augment, task, recipe.settings(task))
    if dataset in VERSIONS:
        paper["data"], own["data"] = {"version": VERSIONS[dataset]}, {"version": recipe.data.version}
    for name, settings in GROUPING.items():
        if made and name in made:
            keys = (settings.keys() | made[name].keys()) - {"ontology"}
            paper[name], own[name] = (
                {key: some.get(key, "default") for key in keys} for some in (settings, made[name])
            )
    if (dataset, task) in FRAMES:
        paper["frames"], own["frames"] = FRAMES[dataset, task], n_frames
    return differences(paper, own)


def paper_settings(task: Task, dataset: str, start: str | None) -> dict[str, Json] | None:
    """Return the sections that the paper's run of a task has, or None where it has none."""
    sections: dict[tuple[str, Task], SgdConfig] = {
        ("nuscenes", "pretrain"): PretrainConfig(clamp_cosines=False),
        ("nuscenes", "distill"): DistillConfig(epochs=10 if start == "SLidR" else 5),
        ("nuscenes", "probe"): ProbeConfig(),
        ("nuscenes", "finetune"): FinetuneConfig(),
        ("semantic_kitti", "finetune"): FinetuneConfig(every_scene=1, every_scan=100, batch_size=10, lr_trunk=0.05),
    }
    settings = sections.get((dataset, task))
    if settings is None:
        return None
    voxels = VoxelConfig(label="first", intensity_offset=1.0 if dataset == "semantic_kitti" else 0.0)
    network = NetworkConfig()
    if isinstance(settings, LabelledConfig):
        network = NetworkConfig(batch_norm_momentum=settings.batch_norm_momentum)
    return settings_of(voxels, network, AugmentConfig(), task, settings)


def settings_of(
    voxels: VoxelConfig, network: NetworkConfig, augment: AugmentConfig, task: Task, settings: SgdConfig
) -> dict[str, Json]:
    """Return the sections that a task reads, as far as they are compared; what computes convolutions is no setting."""
    network = replace(network, engine=NetworkConfig.engine)
    if task == "pretrain":
        voxels = without_labels(voxels)
    else:
        augment = without_pairs(augment)
    sections = {"voxels": asdict(voxels), "network": asdict(network), "augment": asdict(augment)}
    return {
        section: {name: value for name, value in values.items() if name not in NOT_COMPARED}
        for section, values in plain(sections | {task: asdict(settings)}).items()
    }


def start_of(initial: Ancestor | None) -> str | None:
    """Return what the paper calls the weights that a run starts from; None if it has no name for them."""
    if initial is None:
        return "random"
    if initial.task == "official":
        return OFFICIAL_OUTPUTS.get(initial.n_outputs or 0)
    if initial.task == "pretrain":
        return "AFOV-TMP"
    if initial.task == "distill" and start_of(initial.initial) == "AFOV-TMP":
        return "AFOV"
    return None


def teacher_name(settings: Settings | None) -> str | None:
    """Return what the paper calls a teacher, from its section in the identity of table `segment`."""
    if not settings:
        return None
    name = settings.get("layout") if settings.get("name") == "artifacts" else settings.get("name")
    return TEACHERS.get(str(name))


def expected(
    task: str, dataset: str, version: str, start: str | None, teacher: str | None, refined: bool
) -> Expected | None:
    """Return what the paper got with this teacher from these weights on the validation split, or None."""
    if start is None or version != VERSIONS.get(dataset, version):
        return None
    if (dataset, task) == ("nuscenes", "distill"):
        scores = ANNOTATION_FREE.get(teacher or "", {})
        column = start if not refined else "AFI" if start == "AFOV-TMP" else ""
        if column not in scores:
            return None
        row = f"{teacher}, annotation-free, from {start}{', with AFI' if refined else ''}"
        return Expected(scores[column], row, "README of sbysbysbys/AFOV")
    named = (start, "" if start in ("random", "SLidR") else teacher or "")
    score = TRANSFER.get(named, {}).get((dataset, task))
    if score is None or refined:
        return None
    what = {"probe": "linear probe", "finetune": "fine-tuning on 1 %"}[task]
    source = "README of valeoai/SLidR" if not named[1] else "README of sbysbysbys/AFOV"
    return Expected(score, " ".join(filter(None, (*named, what))), source)
