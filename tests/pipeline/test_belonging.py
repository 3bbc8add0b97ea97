"""Images that stand beside the sweeps of other frames, on real drives at 5 to 15 m/s."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from manifests.sections.data import DataConfig
from pipeline.checks.belonging import LEAST_S, Scenes, check_belonging
from pipeline.checks.doctor import evenly
from pipeline.checks.looks import Look, look_at, motions
from pipeline.datasets.registry import open_dataset
from pipeline.frame import Frame
from pipeline.stages.index import check_frame


def sequence(shared: Path, tmp_path: Path, name: str, later: int) -> DataConfig:
    """A real sequence of seven scans, 0.1 s apart, whose images are numbered so many too high."""
    source = shared / "data" / "semantickitti-runs" / "sequences" / name
    target = tmp_path / f"{later}" / "sequences" / name
    (target / "image_2").mkdir(parents=True)
    for path in source.iterdir():
        if path.name != "image_2":
            (target / path.name).symlink_to(path)
    for path in (source / "image_2").iterdir():
        (target / "image_2" / f"{int(path.stem) + later:06d}{path.suffix}").symlink_to(path)
    for path in (source / "velodyne").iterdir():
        if not (target / "image_2" / f"{path.stem}.png").exists():
            (target / "image_2" / f"{path.stem}.png").symlink_to(source / "image_2" / f"{path.stem}.png")
    return DataConfig(dataset="semantic_kitti", root=str(tmp_path / f"{later}"), ontology="semantic_kitti")


def opened(data: DataConfig, n: int = 4) -> tuple[list[Look], list[Frame]]:
    dataset, root = open_dataset(data), Path(data.root)
    frames = list(dataset.frames())
    moving = motions(frames)
    return [
        look_at(dataset, root, check_frame(dataset, root, frame), moving.get(frame.frame_id))
        for frame in evenly(frames, n)
    ], frames


def told(looks: Sequence[Look], frames: Sequence[Frame], data: DataConfig) -> list[str]:
    return [finding.text for finding in check_belonging(looks, Scenes(frames, Path(data.root)))]


@pytest.mark.parametrize("name", ["00", "02"])
def test_images_two_frames_off_are_told_with_the_frame_they_belong_to(shared: Path, tmp_path: Path, name: str) -> None:
    right, wrong = sequence(shared, tmp_path, name, 0), sequence(shared, tmp_path, name, 2)
    assert told(*opened(right), right) == []
    [text] = told(*opened(wrong), wrong)
    assert text.startswith("image_2: sweeps fit the images of the frames 2 later, 0.21 s, better than their own (")
    assert f"that of {name}_" in text and f"fits sequences/{name}/image_2/" in text


def test_a_vehicle_that_stands_tells_nothing_and_reads_no_image(shared: Path, tmp_path: Path) -> None:
    data = sequence(shared, tmp_path, "02", 2)
    looks, _ = opened(data, 2)
    still = [replace(look, motion=replace(look.motion, velocity_m_s=np.zeros(3))) for look in looks if look.motion]
    assert len(still) == len(looks) and told(still, [], data) == []


def test_frames_without_times_are_compared_with_their_neighbours(shared: Path, tmp_path: Path) -> None:
    data = sequence(shared, tmp_path, "02", 2)
    looks, frames = opened(data)
    timeless = [replace(frame, timestamp_us=0) for frame in frames]
    [text] = told([replace(look, motion=None) for look in looks], timeless, data)
    assert "of the frames 2 later better than their own" in text
    assert pytest.approx(0.2) == LEAST_S
