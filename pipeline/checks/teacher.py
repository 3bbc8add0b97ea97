"""Sends a drawn picture through a teacher's weights: numbers to compare with others', and whether it looks untrained.

A file of the right names and shapes loads without an error and yet may give nothing: with the wrong activation, with
tensors under names of a wrapper that belong elsewhere, or never trained. Such features look like those of random
weights: prompts and regions have about the same vector, and no name is likelier than another.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.config import ConfigError
from manifests.fingerprint import Json, Settings, digest
from manifests.ontology import Ontology
from manifests.provenance import made_by, package_versions
from manifests.recipe import Recipe
from manifests.sections.tables import TextConfig
from manifests.stages import segment_settings, teacher_settings, text_settings
from pipeline.checks.picture import PARTS, Picture, street
from pipeline.checks.weights import weights_of
from pipeline.frame import Camera, Frame
from pipeline.stages.text import text_vectors
from pipeline.teachers.registry import TEACHERS
from superpixels.segments import Segments

VERSION = 1
"""Of the picture, the words and the numbers; those of another version are not compared."""

# A word, another for the same, and one for something else; chosen by hand, and tuned on nothing.
WORDS = (
    ("car", "automobile", "tree"),
    ("road", "street", "cloud"),
    ("bicycle", "bike", "window"),
    ("truck", "lorry", "grass"),
    ("motorcycle", "motorbike", "curtain"),
    ("sidewalk", "pavement", "cat"),
    ("person", "human", "bridge"),
    ("building", "house", "dog"),
    ("forest", "woods", "bus"),
    ("child", "kid", "wall"),
    ("rock", "stone", "policeman"),
    ("ship", "boat", "fence"),
)
CLIP_SCALE = 100.0  # what CLIP multiplies cosines by, which its training capped (Radford et al., section 2.5)

# Where features stop to look like those of trained weights. The first two are far from what CLIP gives (cosines of
# unrelated sentences of 0.5 to 0.9, and cosines of an image with all sentences that spread by some 0.02, half of the
# largest entropy); random towers may keep them. The other two are what chance gives, and some: of 12 coin tosses 9 are
# right once in 14 times, and names that know nothing of the picture are right as often in a part as elsewhere.
MOST_ALIKE = 0.97
LARGEST_ENTROPY = 0.97
LEAST_SYNONYMS = 0.75
LEAST_LIFT = 0.05
MOST_ONE_NAME = 0.995

CAMERA = "PICTURE"


@dataclass(frozen=True)
class Look:
    """What a teacher made of the picture.

    `settings` are those that differ from their defaults, by stage. `numbers` say the same on every machine but for the
    last digits; `digests` of arrays are equal where machine, versions and device are. `named` is per part of the
    picture what most of its pixels were called, and how many of them. `warnings` are sentences about what looks
    untrained.
    """

    version: int
    teacher: str
    settings: Settings
    weights: Mapping[str, str]
    picture_sha256: str
    numbers: Mapping[str, float]
    named: Mapping[str, str]
    digests: Mapping[str, str]
    warnings: tuple[str, ...]
    commit: str | None
    versions: Mapping[str, str]

    @property
    def document(self) -> dict[str, Json]:
        """All of it as one JSON document."""
        return asdict(self)


def look(recipe: Recipe) -> Look:
    """Return what a recipe's teacher makes of the picture; raises ConfigError where no network runs.

    Prompts are put into one plain sentence, whatever `[text]` says, or into the one that the teacher insists on: words
    are not what is tested.
    """
    kind = TEACHERS[recipe.teacher.name]
    if recipe.teacher.ready_made or recipe.teacher.simulated:
        raise ConfigError(
            f"teacher {recipe.teacher.name} runs no network: its segments are "
            f"{'simulated' if recipe.teacher.simulated else 'read from files'}, and there are no weights to check"
        )
    picture = street()
    with tempfile.TemporaryDirectory() as folder:
        plain = replace(recipe, data=replace(recipe.data, root=folder), text=_plain_words(recipe))
        frame = _frame(picture, Path(folder))
        prompts = plain.ontology.prompts
        words = tuple(word for triple in WORDS for word in triple)
        vectors = text_vectors(plain, (*prompts, *words))
        text, of_words = vectors[: len(prompts)], vectors[len(prompts) :]
        encoding = kind.load(plain, "encode").encode(frame) if recipe.teacher.has_encode else {}
        [segments] = kind.load(plain, "segment").segment(frame, encoding, text)
    of_text = _of_text(text, of_words) if recipe.teacher.text_means else {}
    numbers = {**of_text, **_of_segments(segments, text), **_of_encoding(encoding)}
    numbers |= _of_names(segments, picture, plain.ontology)
    return Look(
        version=VERSION,
        teacher=recipe.teacher.name,
        settings=_settings(plain),
        weights={weights.source: weights.sha256 or "not pinned" for weights in weights_of(recipe.teacher)},
        picture_sha256=_digest(picture.rgb),
        numbers={name: round(value, 4) for name, value in numbers.items()},
        named=_named(segments, picture, prompts),
        digests={name: _digest(array) for name, array in {"text": text, **encoding}.items()},
        warnings=tuple(_warnings(numbers)),
        commit=made_by().commit,
        versions=package_versions(),
    )


def _plain_words(recipe: Recipe) -> TextConfig:
    """Return section `[text]` with one plain sentence, or with nothing where the teacher has a sentence of its own."""
    try:
        recipe.teacher.check_templates("single")
    except ValueError:
        return TextConfig()
    return TextConfig(templates="single")


def _settings(recipe: Recipe) -> dict[str, Json]:
    """Return all that counts of a recipe, stage by stage, as it enters identities; words and sentences by digest."""
    text = dict(text_settings(recipe))
    text["prompts"], text["templates"] = digest(text["prompts"]), digest(text["templates"])
    encode = {"encode": teacher_settings(recipe, "encode")} if recipe.teacher.has_encode else {}
    return {"text": text, **encode, "segment": dict(segment_settings(recipe))}


def _frame(picture: Picture, folder: Path) -> Frame:
    """Return a frame whose one image is the picture, written to a folder."""
    from PIL import Image

    Image.fromarray(picture.rgb).save(folder / "picture.png")
    height, width, _ = picture.rgb.shape
    intrinsics = np.array([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1]])  # as of nuScenes
    one = Camera(CAMERA, CAMERA, "picture.png", 0, intrinsics, np.eye(4), 0, width, height)
    return Frame("picture", "picture", 0, "", "", None, np.eye(4), np.eye(4), (one,))


def _of_text(text: npt.NDArray[np.float32], of_words: npt.NDArray[np.float32]) -> dict[str, float]:
    """Return how alike prompts are, and of how many words a synonym is nearer than a stranger."""
    distinct = np.unique(text, axis=0)
    word, synonym, stranger = of_words.reshape(len(WORDS), 3, -1).transpose(1, 0, 2)
    nearer = (word * synonym).sum(axis=1) > (word * stranger).sum(axis=1)
    return {"prompts_alike": _alike(distinct), "synonyms_nearer": float(nearer.mean())}


def _of_segments(segments: Segments, text: npt.NDArray[np.float32]) -> dict[str, float]:
    """Return how sure and how different names and vectors of segments are, each segment by its area."""
    if not len(segments):
        return {"segments": 0.0, "names": 0.0}
    area = segments.area_px / segments.area_px.sum()
    vectors = segments.vector.astype(np.float32)
    cosine = vectors @ np.unique(text, axis=0).T
    logits = CLIP_SCALE * (cosine - cosine.max(axis=1, keepdims=True))
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    entropy = -(probability * np.log(np.maximum(probability, 1e-30))).sum(axis=1) / math.log(max(2, cosine.shape[1]))
    share = np.bincount(segments.prompt_id, weights=area)
    return {
        "segments": float(len(segments)),
        "names": float((share > 0).sum()),
        "share_of_first_name": float(share.max()),
        "entropy_of_names": float((area * entropy).sum()),
        "score": float((area * segments.score).sum()),
        "best_cosine": float((area * cosine.max(axis=1)).sum()),
        "spread_of_cosines": float((area * cosine.std(axis=1)).sum()),
        "vectors_alike": _alike(vectors),
    }


def _of_encoding(encoding: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
    """Return mean and spread of the parts of an encoding that hold numbers of a network."""
    found: dict[str, float] = {}
    for name, array in encoding.items():
        part = name.partition("/")[2]
        if not part.endswith("_px") and array.size:
            values = array.astype(np.float64)
            found |= {f"{part}.mean": float(values.mean()), f"{part}.std": float(values.std())}
    return found


def _alike(vectors: npt.NDArray[np.float32]) -> float:
    """Return the mean cosine of two different ones of unit vectors (n, d); 0 if there are no two."""
    n = len(vectors)
    if n < 2:
        return 0.0
    return float((np.square(vectors.sum(axis=0)).sum() - np.square(vectors).sum()) / (n * (n - 1)))


def _of_names(segments: Segments, picture: Picture, ontology: Ontology) -> dict[str, float]:
    """Return how much more of each part is named as what it is than the same names take of the whole picture.

    The mean over parts that the class dictionary knows: 0 where names know nothing of the picture, up to 1. A name is
    right if its group has a prompt with the part's word.
    """
    group = np.append(ontology.group_of_prompt, -1)[_prompt_map(segments, len(ontology.prompts))]
    part = _part_map(picture, group.shape)
    gains = []
    for number, name in enumerate(PARTS):
        rows = [row for row, prompt in enumerate(ontology.prompts) if name in prompt.lower().split()]
        right = np.isin(group, ontology.group_of_prompt[rows])
        if rows and (part == number).any():
            gains.append(float(right[part == number].mean() - right.mean()))
    return {"right_names_gain": float(np.mean(gains))} if gains else {}


def _prompt_map(segments: Segments, n_prompts: int) -> npt.NDArray[np.integer[Any]]:
    """Return the prompt of every pixel, `n_prompts` where there is no segment."""
    found: npt.NDArray[np.integer[Any]] = np.concatenate([[n_prompts], segments.prompt_id])[segments.label_map()]
    return found


def _part_map(picture: Picture, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Return what each pixel of a map of another size shows."""
    rows, columns = (np.arange(to) * of // to for to, of in zip(shape, picture.part.shape, strict=True))
    found: npt.NDArray[np.uint8] = picture.part[rows[:, None], columns]
    return found


def _named(segments: Segments, picture: Picture, prompts: Sequence[str]) -> dict[str, str]:
    """Return what most pixels of each part of the picture were called."""
    names = (*prompts, "(nothing)")
    prompt = _prompt_map(segments, len(prompts))
    part = _part_map(picture, prompt.shape)
    told = {}
    for number, name in enumerate(PARTS):
        count = np.bincount(prompt[part == number], minlength=len(names))
        told[name] = f"{names[int(count.argmax())]} ({100 * count.max() / max(1, count.sum()):.0f} %)"
    return told


def _warnings(numbers: Mapping[str, float]) -> list[str]:
    """Return sentences about what looks like random weights."""
    found = []
    if not all(map(math.isfinite, numbers.values())):
        found.append("some numbers are not finite")
    if numbers.get("prompts_alike", 0.0) > MOST_ALIKE:
        found.append(
            f"all prompts have about the same vector (mean cosine {numbers['prompts_alike']:.3f}): the text tower "
            "looks untrained, or has tensors of another network"
        )
    if numbers.get("synonyms_nearer", 1.0) < LEAST_SYNONYMS:
        found.append(
            f"words are nearer to their synonyms than to strangers in {100 * numbers['synonyms_nearer']:.0f} % of "
            f"{len(WORDS)} cases only, which is about what chance gives: the text tower looks untrained, or computes "
            "another activation than it was trained with (quick_gelu)"
        )
    if not numbers["segments"]:
        found.append("nothing was found in the picture")
        return found
    if numbers["entropy_of_names"] > LARGEST_ENTROPY:
        found.append(
            f"names are as good as guessed (entropy {numbers['entropy_of_names']:.3f} of the largest): image features "
            "look like those of random weights"
        )
    if numbers.get("right_names_gain", 1.0) < LEAST_LIFT:
        found.append(
            "the parts of the picture are named no better than by chance: image features look like those of random "
            "weights, or belong to another text tower (a drawing is no photograph: see what was named below)"
        )
    if numbers["share_of_first_name"] > MOST_ONE_NAME:
        found.append("one name covers the whole picture: image features tell no region from another")
    return found


def _digest(array: npt.NDArray[Any]) -> str:
    """Return the sha256 of an array's type, shape and bytes."""
    head = f"{array.dtype.str} {array.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()
