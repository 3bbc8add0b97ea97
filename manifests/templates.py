"""Sentence templates: a prompt is put into each, and its vector is the mean of what the text tower makes of them."""

from __future__ import annotations

from manifests.config import ConfigError

_SCENE = (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)

TEMPLATES: dict[str, tuple[str, ...]] = {
    # CLIP's plain sentence (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision").
    "single": ("a photo of a {}.",),
    # The one sentence that CAT-Seg's second generation was trained with (Cho et al., "CAT-Seg: Cost Aggregation for
    # Open-Vocabulary Semantic Segmentation"). The capital and the missing full stop are part of the fact.
    "catseg": ("A photo of a {} in the scene",),
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
    # The 80 sentences that CLIP's authors wrote for ImageNet (open_clip.OPENAI_IMAGENET_TEMPLATES; a test compares).
    "imagenet80": (
        "a bad photo of a {}.",
        "a photo of many {}.",
        "a sculpture of a {}.",
        "a photo of the hard to see {}.",
        "a low resolution photo of the {}.",
        "a rendering of a {}.",
        "graffiti of a {}.",
        "a bad photo of the {}.",
        "a cropped photo of the {}.",
        "a tattoo of a {}.",
        "the embroidered {}.",
        "a photo of a hard to see {}.",
        "a bright photo of a {}.",
        "a photo of a clean {}.",
        "a photo of a dirty {}.",
        "a dark photo of the {}.",
        "a drawing of a {}.",
        "a photo of my {}.",
        "the plastic {}.",
        "a photo of the cool {}.",
        "a close-up photo of a {}.",
        "a black and white photo of the {}.",
        "a painting of the {}.",
        "a painting of a {}.",
        "a pixelated photo of the {}.",
        "a sculpture of the {}.",
        "a bright photo of the {}.",
        "a cropped photo of a {}.",
        "a plastic {}.",
        "a photo of the dirty {}.",
        "a jpeg corrupted photo of a {}.",
        "a blurry photo of the {}.",
        "a photo of the {}.",
        "a good photo of the {}.",
        "a rendering of the {}.",
        "a {} in a video game.",
        "a photo of one {}.",
        "a doodle of a {}.",
        "a close-up photo of the {}.",
        "a photo of a {}.",
        "the origami {}.",
        "the {} in a video game.",
        "a sketch of a {}.",
        "a doodle of the {}.",
        "a origami {}.",
        "a low resolution photo of a {}.",
        "the toy {}.",
        "a rendition of the {}.",
        "a photo of the clean {}.",
        "a photo of a large {}.",
        "a rendition of a {}.",
        "a photo of a nice {}.",
        "a photo of a weird {}.",
        "a blurry photo of a {}.",
        "a cartoon {}.",
        "art of a {}.",
        "a sketch of the {}.",
        "a embroidered {}.",
        "a pixelated photo of a {}.",
        "itap of the {}.",
        "a jpeg corrupted photo of the {}.",
        "a good photo of a {}.",
        "a plushie {}.",
        "a photo of the nice {}.",
        "a photo of the small {}.",
        "a photo of the weird {}.",
        "the cartoon {}.",
        "art of the {}.",
        "a drawing of the {}.",
        "a photo of the large {}.",
        "a black and white photo of a {}.",
        "the plushie {}.",
        "a dark photo of a {}.",
        "itap of a {}.",
        "graffiti of the {}.",
        "a toy {}.",
        "itap of my {}.",
        "a photo of a cool {}.",
        "a photo of a small {}.",
        "a tattoo of the {}.",
    ),
    # Nine sentences in use since TCL (Cha et al., "Learning to Generate Text-grounded Mask for Open-world Semantic
    # Segmentation from Only Image-Text Pairs"), as TIPSv2 uses them: a choice of the 80, and a plural.
    "tcl9": (
        "itap of a {}.",
        "a bad photo of a {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
        "a photo of many {}.",
        "a photo of {}s.",
    ),
}


# MaskCLIP (Zhou et al., "Extract Free Dense Labels from CLIP") adds five sentences about a scene to the 80.
TEMPLATES["maskclip85"] = (*TEMPLATES["imagenet80"], *_SCENE)


def templates_of(name: str) -> tuple[str, ...]:
    """Return the sentences of a template set, `{}` standing for the prompt; raises ConfigError for an unknown set."""
    if name not in TEMPLATES:
        raise ConfigError(f'text.templates is "{name}"; there are {", ".join(sorted(TEMPLATES))}')
    return TEMPLATES[name]
