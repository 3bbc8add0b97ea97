"""Teacher `artifacts`: masks, names and vectors that the official AFOV scripts wrote for SAN, CAT-Seg or FC-CLIP.

One folder holds, per camera image, `<token>.png` (grey, segment ids, 0 for none), `<token>.json` (a list; entry k - 1
names segment k by a prompt, `category_id`) and `<token>.pt` (row k is the vector of segment k, row 0 is zeros; FC-CLIP
has a list of two such matrices), and once `text_embedding.pt` (a row per prompt; FC-CLIP adds one for "void").

Nothing in these files is trusted or repaired: names stay inside the folder, `.pt` files may hold tensors only, and
whatever does not fit together is named with the image's token. What cannot be seen in the files: CAT-Seg's official
masks were stretched without their padding, so they lie up to 3 % of the image height (27 of 900 pixels) too high near
the bottom.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from manifests.config import ConfigError
from manifests.ontology import Ontology
from manifests.sections.teachers.artifacts import TEXT, ArtifactsConfig
from pipeline.frame import MAX_IMAGE_PIXELS, Frame, FrameError
from superpixels.segments import Segments

if TYPE_CHECKING:
    from manifests.recipe import Recipe


_TOKEN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # no separator and no leading dot: the file stays in the folder


@dataclass(frozen=True, eq=False)
class Triple:
    """What the three files of one image say; aligned with segments 1..n.

    `label_map` uint8 or uint16 (H, W); `prompt_id` int32 (n,); `vector` float32 (n, d), any length above 0.
    `n_matrices` is 1, or 2 for FC-CLIP.
    """

    label_map: npt.NDArray[np.integer[Any]]
    prompt_id: npt.NDArray[np.int32]
    vector: npt.NDArray[np.float32]
    n_matrices: int


@dataclass(frozen=True, eq=False)
class Artifacts:
    """The loaded teacher: it holds nothing but where to look."""

    config: ArtifactsConfig

    @classmethod
    def load(cls, recipe: Recipe, stage: str) -> Artifacts:
        """Return the teacher; raises ConfigError if there is no such folder."""
        config = recipe.teacher
        assert isinstance(config, ArtifactsConfig)
        if not Path(config.folder).is_dir():
            raise ConfigError(f"teacher.folder: there is no folder {config.folder}")
        return cls(config)

    def text(self, prompts: tuple[str, ...]) -> npt.NDArray[np.float32]:
        """Return the stored vector of each prompt, scaled to length 1, float32 (p, d); raises ConfigError."""
        return read_text(self.config, len(prompts))

    def encode(self, frame: Frame) -> dict[str, npt.NDArray[Any]]:
        """Raise ValueError: these files are finished segments, and there is nothing to encode."""
        raise ValueError("teacher artifacts has no encode half; its segments are read from files")

    def segment(self, frame: Frame, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]) -> list[Segments]:
        """Return the segments of every view as stored, with vectors scaled to length 1 and score 1.

        Raises FrameError that lists everything that is wrong with the files of this frame, by token.
        """
        problems: list[str] = []
        n_prompts, n_dims = text.shape
        triples = [
            read_triple(self.config, one.token, n_prompts, n_dims, problems, (one.width_px, one.height_px))
            for one in frame.cameras
        ]
        if len({triple.n_matrices for triple in triples if triple}) > 1:
            problems.append(
                "some .pt files hold one matrix and some two: they come from different teachers; give each a folder"
            )
        if problems:
            raise FrameError("; ".join(problems))
        return [
            Segments.from_label_map(one.label_map, one.prompt_id, np.ones(len(one.prompt_id)), one.vector)
            for one in triples
            if one
        ]


def check_folder(config: ArtifactsConfig, tokens: Iterable[str], ontology: Ontology) -> list[str]:
    """Return a sentence for everything that is wrong with the text vectors and with the files of the images named.

    For a look at a whole data set before a run. It reads every file; image sizes are not known here, stage `segment`
    checks them.
    """
    n_prompts, n_dims = len(ontology.prompts), 0
    problems: list[str] = []
    try:
        n_dims = read_text(config, n_prompts).shape[1]
    except ConfigError as error:
        problems.append(str(error))
    example: dict[int, str] = {}  # a token for each number of matrices
    for token in tokens:
        triple = read_triple(config, token, n_prompts, n_dims, problems)
        if triple:
            example.setdefault(triple.n_matrices, token)
    if len(example) > 1:
        problems.append(f"{example[1]}.pt holds one matrix and {example[2]}.pt two: they come from different teachers")
    return problems


def read_text(config: ArtifactsConfig, n_prompts: int) -> npt.NDArray[np.float32]:
    """Return the text vectors, scaled to length 1, float32 (n_prompts, d), without FC-CLIP's last row for "void".

    Raises ConfigError if the file is missing, damaged, or made for another class dictionary.
    """
    path = Path(config.folder) / TEXT
    try:
        matrices = read_matrices(path)
        if len(matrices) != 1:
            raise ValueError(f"holds {len(matrices)} matrices; expected one")
    except (ValueError, OSError) as error:
        raise ConfigError(f"teacher.folder: {path}: {reason(error)}") from None
    [vectors] = matrices
    if len(vectors) not in (n_prompts, n_prompts + 1):
        raise ConfigError(
            f"teacher.folder: {path} has {len(vectors)} rows, but the class dictionary has {n_prompts} prompts (one "
            "row more, for void, is allowed); name in data.ontology the dictionary that the files were made with"
        )
    vectors = vectors[:n_prompts]
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not length.all():
        raise ConfigError(
            f"teacher.folder: {path}: row {int(np.argmin(length))} is all zero; every prompt needs a vector"
        )
    unit: npt.NDArray[np.float32] = vectors / length
    return unit


def read_triple(
    config: ArtifactsConfig,
    token: str,
    n_prompts: int,
    n_dims: int,
    problems: list[str],
    size_px: tuple[int, int] | None = None,
) -> Triple | None:
    """Return what is stored for an image, or None after adding to `problems` everything that is wrong with it.

    `n_dims` is the length of the text vectors, 0 if unknown; `size_px` the width and height of the image, None if
    unknown.
    """
    start = len(problems)
    if not names_a_file(token):
        problems.append(f"image token {token!r} is no file name; expected letters, digits, '-', '_' and '.'")
        return None
    folder = Path(config.folder)
    label_map = prompt_id = vectors = None
    n_matrices = 1
    try:
        label_map = read_label_map(folder / f"{token}.png", size_px)
    except (ValueError, OSError) as error:
        problems.append(f"{token}.png: {reason(error)}")
    n_pixels = np.bincount(label_map.ravel()) if label_map is not None else None
    try:
        prompt_id = read_names(folder / f"{token}.json", n_prompts, n_pixels)
    except (ValueError, OSError) as error:
        problems.append(f"{token}.json: {reason(error)}")
    try:
        matrices = read_matrices(folder / f"{token}.pt")
        n_matrices = len(matrices)
        expected = {"auto": (1, 2), "fcclip": (2,)}.get(config.layout, (1,))
        if n_matrices not in expected:
            raise ValueError(
                f'holds {n_matrices} matrices; layout "{config.layout}" has {" or ".join(map(str, expected))}'
            )
        vectors = matrices[0 if n_matrices == 1 or config.fcclip_feature == "in" else 1]
        check_vectors(vectors, None if prompt_id is None else len(prompt_id), n_dims)
    except (ValueError, OSError) as error:
        problems.append(f"{token}.pt: {reason(error)}")
    if len(problems) > start or label_map is None or prompt_id is None or vectors is None:
        return None
    return Triple(label_map, prompt_id, vectors[1:], n_matrices)


def names_a_file(token: str) -> bool:
    """Return whether the files of a token stay in their folder."""
    return bool(_TOKEN.fullmatch(token))


def reason(error: Exception) -> str:
    """Return why a file could not be used, without its path."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def read_label_map(path: Path, size_px: tuple[int, int] | None) -> npt.NDArray[np.integer[Any]]:
    """Return the ids in a grey PNG of 8 or 16 bits, (H, W); raises ValueError or OSError.

    `size_px` is the width and height that it must have, None for any.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise ValueError(f"has {image.width} x {image.height} pixels, more than any camera image")
            if size_px and image.size != size_px:
                raise ValueError(
                    f"has {image.width} x {image.height} pixels, the image has {size_px[0]} x {size_px[1]}"
                )
            if image.mode not in ("L", "I;16"):
                raise ValueError(f"has pixels of kind {image.mode}; expected grey ones of 8 or 16 bits")
            return np.asarray(image)
    except UnidentifiedImageError:
        raise ValueError("is not a PNG image") from None
    except (ValueError, OSError):
        raise
    except Exception as error:  # a broken chunk is a SyntaxError, and others fail in other ways
        raise ValueError(f"is damaged ({error})") from None


def read_names(path: Path, n_prompts: int, n_pixels: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int32]:
    """Return the prompt id of segments 1..n, (n,); raises ValueError that lists what is wrong, or OSError.

    `n_pixels` is how many pixels of the label map have each id, None if the map could not be read.
    """
    try:
        entries = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # numbers of too many digits are a plain ValueError
        raise ValueError(f"is not valid JSON ({error})") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("is not a list of records")
    wrong: list[str] = []
    for position, entry in enumerate(entries, start=1):
        if entry.get("id") != position:
            wrong.append(f"record {position} has id {entry.get('id')!r}")
        prompt = entry.get("category_id")
        if type(prompt) is not int or not 0 <= prompt < n_prompts:
            wrong.append(f"segment {position} has category_id {prompt!r}, expected 0 to {n_prompts - 1}")
        if n_pixels is not None and "area" in entry:
            counted = int(n_pixels[position]) if position < len(n_pixels) else 0
            if entry["area"] != counted:
                wrong.append(f"segment {position} has area {entry['area']!r}, but {counted} pixels in the PNG")
    if n_pixels is not None and len(n_pixels) > len(entries) + 1:
        wrong.append(f"names {len(entries)} segments, but the PNG has ids up to {len(n_pixels) - 1}")
    if wrong:
        more = f", and {len(wrong) - 5} more like these" if len(wrong) > 5 else ""
        raise ValueError(", ".join(wrong[:5]) + more)
    return np.array([entry["category_id"] for entry in entries], np.int32)


def read_matrices(path: Path) -> list[npt.NDArray[np.float32]]:
    """Return the matrix, or the list of matrices, of a `.pt` file, float32; raises ValueError or OSError.

    Only tensors are unpickled, and they come to the CPU wherever they were saved from.
    """
    import torch

    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError:
        raise ValueError("holds other objects than tensors, or is no torch file, and is not opened") from None
    except Exception as error:  # zip and tensor errors of a damaged file share no base class
        raise ValueError(f"cannot be read as a torch file ({type(error).__name__}); it is damaged") from None
    tensors = stored if isinstance(stored, list | tuple) else [stored]
    matrices = []
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 2 or not tensor.is_floating_point():
            raise ValueError("holds something else than matrices of floating point numbers")
        matrices.append(tensor.detach().float().numpy())
    if not all(np.isfinite(matrix).all() for matrix in matrices):
        raise ValueError("holds values that are not finite")
    return matrices


def check_vectors(vectors: npt.NDArray[np.float32], n_segments: int | None, n_dims: int) -> None:
    """Raise ValueError unless row 0 is zero, every segment has a row that is not, and rows have `n_dims` values."""
    if n_segments is not None and len(vectors) != n_segments + 1:
        raise ValueError(f"has {len(vectors)} rows, but {n_segments} segments are named: expected {n_segments + 1}")
    if n_dims and vectors.shape[1] != n_dims:
        raise ValueError(f"has vectors of {vectors.shape[1]} values, but those of the prompts have {n_dims}")
    filled = vectors.any(axis=1)
    if filled[:1].any():
        raise ValueError("row 0 is not zero; it stands for no segment")
    if not filled[1:].all():
        raise ValueError(f"row {int(np.argmin(filled[1:])) + 1} is all zero; every segment needs a vector")
