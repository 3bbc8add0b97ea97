"""What tests of teachers look at: a dictionary of one group, coloured blocks, unit vectors, files that hold nothing."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from manifests.ontology import Ontology, parse_ontology
from manifests.recipe import Recipe
from manifests.sections.data import DataConfig, RunConfig
from manifests.sections.tables import GroupConfig, ProjectConfig, SegmentConfig, TextConfig
from manifests.sections.teachers.registry import TeacherConfig
from pipeline.frame import Frame
from superpixels.segments import Segments
from tests.pipeline.frames import camera_of, frame_of

CARS = parse_ontology(
    {
        "name": "street",
        "version": 1,
        "class": [{"name": "ignore", "colour": "#000000"}, {"name": "car", "colour": "#ff0000"}],
        "group": [{"name": "cars", "fine": "car", "thing": True, "prompts": ["car", "van", "bus"]}],
    }
)
SHA = "0123456789abcdef" * 4


def recipe_with(
    root: Path,
    teacher: TeacherConfig,
    segment: SegmentConfig | None = None,
    templates: str = "single",
    ontology: Ontology = CARS,
) -> Recipe:
    """Return a recipe over images in a folder, on the CPU."""
    return Recipe(
        name="test",
        data=DataConfig(root=str(root)),
        run=RunConfig(device="cpu"),
        teacher=teacher,
        project=ProjectConfig(),
        text=TextConfig(templates=templates),
        segment=segment or SegmentConfig(),
        group=GroupConfig(),
        ontology=ontology,
    )


def street_in(folder: Path, **sizes: tuple[int, int]) -> Frame:
    """Write an image of coloured blocks for each camera, of (width, height) px, and return the frame of them."""
    rng = np.random.default_rng(1)
    cameras = [camera_of(name, *size) for name, size in sizes.items()]
    for one in cameras:
        blocks = rng.integers(0, 256, (one.height_px // 8, one.width_px // 8, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(folder / one.image_path)
    return frame_of(*cameras)


def unit_rows(seed: int, n: int, dims: int = 32) -> npt.NDArray[Any]:
    """Return n random vectors of length 1, float32."""
    vectors = np.random.default_rng(seed).normal(size=(n, dims)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def assert_equal_segments(one: list[Segments], other: list[Segments]) -> None:
    """Segments of all views are the same to the last bit."""
    for left, right in zip(one, other, strict=True):
        for field in fields(Segments):
            np.testing.assert_array_equal(getattr(left, field.name), getattr(right, field.name))


class Foreign:
    """A class that no checkpoint may bring along."""


def cut_off(path: Path) -> None:
    """Write a checkpoint whose end is missing."""
    torch.save({"model": {"a": torch.ones(99)}}, path)
    path.write_bytes(path.read_bytes()[:-200])
