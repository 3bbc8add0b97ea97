"""Stage `text`: one vector per prompt of the class dictionary, a single table for all frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from manifests.config import ConfigError, changed_values
from manifests.recipe import Recipe
from manifests.schema import TABLES
from pipeline.stages.base import Stage
from pipeline.teachers import TEACHERS
from pipeline.teachers.loading.templates import templates_of


def settings(recipe: Recipe) -> Mapping[str, Any]:
    """Return what the vectors depend on: prompts, templates (their sentences, not their name), and the text tower."""
    kind = TEACHERS[recipe.teacher.name]
    content: dict[str, Any] = {
        "teacher": dict(recipe.teacher.settings("text")),
        "prompts": recipe.ontology.prompt_content(),
        **kind.content(recipe, "text"),
    }
    if not kind.ready_made and not kind.simulated:
        content["templates"] = list(templates_of(recipe.template_list))
    elif changed_values(recipe.text):
        raise ConfigError(
            f"[text] does not apply to teacher {recipe.teacher.name}, whose text vectors are "
            + ("drawn from random numbers" if kind.simulated else "read from a file")
        )
    return content


def build(recipe: Recipe) -> list[dict[str, Any]]:
    """Return one row per prompt; raises ConfigError if the teacher's vectors are not unit vectors, one per prompt."""
    prompts = recipe.ontology.prompts
    vectors = TEACHERS[recipe.teacher.name].load(recipe, "text").text(prompts)
    length = np.linalg.norm(vectors, axis=1)
    if vectors.shape[:1] != (len(prompts),) or not np.allclose(length, 1, atol=1e-4):
        raise ConfigError(
            f"teacher {recipe.teacher.name} gave text vectors of shape {vectors.shape} and lengths {length.min()} to "
            f"{length.max()}; expected {len(prompts)} of length 1: check its weights"
        )
    return [
        {"prompt_id": prompt_id, "prompt": prompt, "vector": vector.astype(np.float32)}
        for prompt_id, (prompt, vector) in enumerate(zip(prompts, vectors, strict=True))
    ]


def gpus(recipe: Recipe) -> float | None:
    """Return what a worker takes of a GPU; None where the vectors are read or drawn and no network runs."""
    kind = TEACHERS[recipe.teacher.name]
    return None if kind.ready_made or kind.simulated else recipe.run.gpus_per_worker


STAGE = Stage(
    name="text",
    version=1,
    schema=TABLES["text"],
    needs=lambda recipe: (),
    settings=settings,
    build=build,
    gpus=gpus,
)
