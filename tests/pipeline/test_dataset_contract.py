"""What every data set promises, checked for each entry of DATASETS."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from manifests.config import ConfigError
from manifests.sections.data import DataConfig
from pipeline.datasets.base import Dataset
from pipeline.datasets.registry import DATASETS, open_dataset
from pipeline.frame import Frame

# One small root with labels for each data set, relative to the shared folder. A new data set adds its line here.
# That of `folder` is made from one in nuScenes layout.
EXAMPLES = {
    "folder": ("golden/nuscenes_tiny", "v1.0-trainval"),
    "nuscenes": ("golden/nuscenes_tiny", "v1.0-trainval"),
    "semantic_kitti": ("data/semantickitti-real", "1.0"),
}


@pytest.fixture(params=sorted(DATASETS))
def example(
    request: pytest.FixtureRequest, shared: Path, folder_layout: Callable[[Path, str], Path]
) -> Callable[[], Dataset]:
    folder, version = EXAMPLES[request.param]
    root = folder_layout(shared / folder, version) if request.param == "folder" else shared / folder
    return lambda: open_dataset(DataConfig(dataset=request.param, root=str(root), version=version))


def test_every_data_set_has_an_example() -> None:
    assert EXAMPLES.keys() == DATASETS.keys()


def test_making_a_data_set_opens_nothing() -> None:
    for name in DATASETS:
        open_dataset(DataConfig(dataset=name, root="/nowhere", version="none"))


def test_listing_what_is_not_there_is_a_config_error() -> None:
    for name in DATASETS:
        with pytest.raises(ConfigError, match="/nowhere"):
            list(open_dataset(DataConfig(dataset=name, root="/nowhere", version="none")).frames())


def test_an_unknown_data_set_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r'data.dataset is "lyft"; there are .*nuscenes'):
        open_dataset(DataConfig(dataset="lyft", root="/nowhere"))


def test_frames_have_names_of_their_own_and_scenes_come_in_one_piece_in_time_order(
    example: Callable[[], Dataset],
) -> None:
    frames = list(example().frames())
    assert len({frame.frame_id for frame in frames}) == len(frames) > 1
    scenes = [(scene, [frame.timestamp_us for frame in group]) for scene, group in groupby(frames, lambda f: f.scene)]
    assert len({scene for scene, _ in scenes}) == len(scenes) > 1
    assert all(times == sorted(times) for _, times in scenes)


def test_listing_twice_gives_the_same_rows(example: Callable[[], Dataset]) -> None:
    for one, other in zip(example().frames(), example().frames(), strict=True):
        np.testing.assert_equal(vars(one.index()), vars(other.index()))


def test_a_listed_frame_opens_no_file_keeps_paths_relative_and_calibration_in_float64(
    example: Callable[[], Dataset],
) -> None:
    for frame in example().frames():
        assert (frame.n_points, frame.lidar_bytes) == (0, 0)
        assert frame.ego_from_lidar.shape == frame.world_from_lidar.shape == (4, 4)
        assert len({camera.name for camera in frame.cameras}) == len(frame.cameras) > 0
        paths = [frame.lidar_path, *(camera.image_path for camera in frame.cameras)]
        paths += [frame.label_path] if frame.label_path else []
        for path in map(PurePosixPath, paths):
            assert not path.is_absolute() and ".." not in path.parts
        for camera in frame.cameras:
            assert camera.cam_from_lidar.dtype == camera.intrinsics.dtype == np.float64
            assert (camera.width_px, camera.height_px, camera.image_bytes) == (0, 0, 0)
            assert abs(camera.timestamp_us - frame.timestamp_us) < 1_000_000


def test_a_worker_reads_points_and_labels_from_what_the_index_stores(example: Callable[[], Dataset]) -> None:
    for listed in example().frames():
        frame, worker = Frame.of(listed.index()), example()
        cloud = worker.read_cloud(frame)
        xyz_m, intensity = cloud.xyz_m, cloud.intensity
        assert xyz_m.dtype == intensity.dtype == np.float32
        assert xyz_m.shape == (len(intensity), 3) and len(intensity) > 1000
        assert xyz_m.flags.c_contiguous and intensity.flags.c_contiguous
        labels = worker.read_labels(frame)
        assert labels.dtype == np.uint16 and labels.shape == intensity.shape
