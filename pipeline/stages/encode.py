"""Stage `encode`: the teacher's expensive half, which knows no prompts, so a new class dictionary costs no GPU hour."""

from __future__ import annotations

from manifests.config import ConfigError
from manifests.rows import Row
from manifests.schema import TABLES
from pipeline.recipe import Recipe
from pipeline.stages.base import FrameFunction, FrameInput, Stage
from pipeline.teachers import TEACHERS


def prepare(recipe: Recipe) -> FrameFunction:
    """Return the function that encodes the images of a frame; raises ConfigError if the teacher has no encode half."""
    kind = TEACHERS[recipe.teacher.name]
    if not kind.has_encode:
        raise ConfigError(f"teacher {recipe.teacher.name} has nothing to encode; run `segment`, which does not need it")
    teacher = kind.load(recipe, "encode")

    def encode(inputs: FrameInput) -> Row:
        return {"encoding": teacher.encode(inputs.frame)}

    return encode


STAGE = Stage(
    name="encode",
    version=1,
    schema=TABLES["encode"],
    needs=lambda recipe: (),
    settings=lambda recipe: {"teacher": dict(recipe.teacher.settings("encode"))},
    prepare=prepare,
    index_columns=("camera", "image_path", "image_sha256", "width_px", "height_px"),
    gpus=1.0,
    kilobytes_per_frame=lambda recipe: TEACHERS[recipe.teacher.name].kilobytes_per_frame(recipe),
)
