"""Whether every prompt has a vector of its own: of those that a tokenizer reads alike only the first can ever win."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from manifests.config import ConfigError
from manifests.ontology import Duplicate
from manifests.recipe import Recipe
from manifests.templates import templates_of
from pipeline.checks.findings import Finding
from pipeline.teachers.loading.towers import clip_tokenizer

MOST_TOLD = 10


def check_prompts(recipe: Recipe) -> Iterator[Finding]:
    """Yield the prompts that are read alike, by the teacher's own tokenizer where that is here without a fetch."""
    tokenizer = tokenizer_of(recipe.teacher)
    twins = recipe.ontology.duplicates() if tokenizer is None else read_alike(recipe, tokenizer)
    by = "as CLIP's tokenizer reads them, for want of the teacher's own" if tokenizer is None else "to the tokenizer"
    for twin in twins[:MOST_TOLD]:
        yield Finding("note", "prompts", f"{twin}: the others mean the same {by}; reword them, or take them out")
    if len(twins) > MOST_TOLD:
        yield Finding("note", "prompts", f"and {len(twins) - MOST_TOLD} more prompts that occur more than once")
    if not twins:
        yield Finding("ok", "prompts", f"no two of {len(recipe.ontology.prompts)} prompts are the same {by}")


def tokenizer_of(teacher: Any) -> Any | None:
    """Return the tokenizer of the text tower that a teacher's section names; None where none is at hand."""
    parts = [teacher, getattr(teacher, "feature_config", None)]
    models = [part.model for part in parts if isinstance(getattr(part, "model", None), str)]
    try:
        return clip_tokenizer(models[0]) if models else None
    except ConfigError:  # check_teacher says so
        return None


def read_alike(recipe: Recipe, tokenizer: Any) -> tuple[Duplicate, ...]:
    """Return the prompts of one vector: equal tokens in the sentence that leaves most room for the prompt."""
    try:
        sentence = min(templates_of(recipe.template_list), key=lambda template: template.index("{"))
    except ConfigError:
        sentence = "{}"
    return recipe.ontology.duplicates(lambda prompt: tuple(tokenizer([sentence.format(prompt)])[0].tolist()))
