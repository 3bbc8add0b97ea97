"""Sentence templates: a prompt is put into each, and its vector is the mean of what the text tower makes of them."""

from __future__ import annotations

from manifests.config import ConfigError

TEMPLATES: dict[str, tuple[str, ...]] = {
    # CLIP's plain sentence (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision").
    "single": ("a photo of a {}.",),
    # The 14 sentences that go back to ViLD (Gu et al., "Open-vocabulary Object Detection via Vision and Language
    # Knowledge Distillation"), as SAN and FC-CLIP use them. That some lack the full stop is part of the fact.
    "vild14": (
        "a photo of a {}.",
        "This is a photo of a {}",
        "There is a {} in the scene",
        "There is the {} in the scene",
        "a photo of a {} in the scene",
        "a photo of a small {}.",
        "a photo of a medium {}.",
        "a photo of a large {}.",
        "This is a photo of a small {}.",
        "This is a photo of a medium {}.",
        "This is a photo of a large {}.",
        "There is a small {} in the scene.",
        "There is a medium {} in the scene.",
        "There is a large {} in the scene.",
    ),
}


def templates_of(name: str) -> tuple[str, ...]:
    """Return the sentences of a template set, `{}` standing for the prompt; raises ConfigError for an unknown set."""
    if name not in TEMPLATES:
        raise ConfigError(f'text.templates is "{name}"; there are {", ".join(sorted(TEMPLATES))}')
    return TEMPLATES[name]
