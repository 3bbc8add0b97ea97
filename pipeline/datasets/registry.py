"""Every data set by its name in `[data] dataset`. Adding one is one file here and one line below."""

from __future__ import annotations

from manifests.config import ConfigError
from manifests.sections.data import DataConfig
from pipeline.datasets.base import Dataset
from pipeline.datasets.folder import FolderDataset
from pipeline.datasets.nuscenes import NuScenesDataset
from pipeline.datasets.semantic_kitti import SemanticKittiDataset

DATASETS: dict[str, type[Dataset]] = {
    "folder": FolderDataset,
    "nuscenes": NuScenesDataset,
    "semantic_kitti": SemanticKittiDataset,
}


def open_dataset(config: DataConfig) -> Dataset:
    """Return the data set that `[data]` names; raises ConfigError if there is no reader of that name."""
    if config.dataset not in DATASETS:
        raise ConfigError(f'data.dataset is "{config.dataset}"; there are {", ".join(sorted(DATASETS))}')
    return DATASETS[config.dataset](config)
