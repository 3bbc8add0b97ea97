"""Stage `text`: one vector per prompt of the class dictionary, a single table for all frames."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from manifests.config import ConfigError
from manifests.recipe import Recipe
from manifests.stages import SPECS
from manifests.tables.base import FrameRecord
from manifests.tables.teacher import Text
from pipeline.stages.base import Stage
from pipeline.teachers.registry import TEACHERS


def text_vectors(recipe: Recipe, prompts: tuple[str, ...]) -> npt.NDArray[np.float32]:
    """Return one unit vector per prompt, float32 (p, d), from the teacher; raises ConfigError if it gives others."""
    vectors = TEACHERS[recipe.teacher.name].load(recipe, "text").text(prompts)
    length = np.linalg.norm(vectors, axis=1)
    if vectors.shape[:1] != (len(prompts),) or not np.allclose(length, 1, atol=1e-4):
        raise ConfigError(
            f"teacher {recipe.teacher.name} gave text vectors of shape {vectors.shape} and lengths {length.min()} to "
            f"{length.max()}; expected {len(prompts)} of length 1 (nan: not finite): check its weights"
        )
    return vectors.astype(np.float32)


def build(recipe: Recipe) -> list[Text]:
    """Return one row per prompt; raises ConfigError if the teacher's vectors are not unit vectors, one per prompt."""
    prompts = recipe.ontology.prompts
    vectors = text_vectors(recipe, prompts)
    return [
        Text(prompt_id=prompt_id, prompt=prompt, vector=vector)
        for prompt_id, (prompt, vector) in enumerate(zip(prompts, vectors, strict=True))
    ]


def gpus(recipe: Recipe) -> float | None:
    """Return what a worker takes of a GPU; None where the vectors are read or drawn and no network runs."""
    teacher = recipe.teacher
    return None if teacher.ready_made or teacher.simulated else recipe.run.gpu_share


STAGE = Stage[FrameRecord](
    table=SPECS["text"],
    build=build,
    content=lambda recipe: TEACHERS[recipe.teacher.name].text_content(recipe),
    gpus=gpus,
)
