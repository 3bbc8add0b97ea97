"""Teacher `artifacts`: masks, names and vectors that the official AFOV scripts wrote for SAN, CAT-Seg or FC-CLIP.

One folder holds, per camera image, `<token>.png` (grey, segment ids, 0 for none), `<token>.json` (a list; entry k - 1
names segment k by a prompt, `category_id`) and `<token>.pt` (row k is the vector of segment k, row 0 is zeros; FC-CLIP
has a list of two such matrices), and once `text_embedding.pt` (a row per prompt; FC-CLIP adds one for "void"). Beside
them `prompts.txt` may say which prompts these are. What the official scripts do not write: a `score` in the records,
or `<token>_score.png`, both read where the recipe asks for them.

Nothing in these files is trusted or repaired: names stay inside the folder, `.pt` files may hold tensors only, and
whatever does not fit together is named with the image's token. What cannot be seen in the files: CAT-Seg's official
masks were stretched without their padding, so they lie up to 3 % of the image height (27 of 900 pixels) too high near
the bottom.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from manifests.config import ConfigError
from manifests.fingerprint import Settings, sha256_file
from manifests.foreign import instead_of_weights
from manifests.ontology import Ontology
from manifests.sections.teachers.artifacts import OFFICIAL_PROMPTS, TEXT, ArtifactsConfig, prompts_digest
from pipeline.frame import MAX_IMAGE_PIXELS, Frame, FrameError
from pipeline.sources import Digests, FrameFiles
from superpixels.pooling import mean_score
from superpixels.segments import Segments

if TYPE_CHECKING:
    from manifests.recipe import Recipe


PROMPTS = "prompts.txt"
ENDINGS = ("png", "json", "pt")
SCORE_IMAGE = "_score.png"
LEAST_SCORE = 0.5 / 255  # of a segment all of whose pixels have the score 0, which would mean that nothing named it
MOST_BYTES = 256 << 20  # of a file, packed or unpacked; vectors of 250 segments take 1 MB, those of 2,000 prompts 12
MOST_VALUES = MOST_BYTES // 4  # of all matrices in a file, which may be views of less than their size

_TOKEN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # no separator and no leading dot: the file stays in the folder


@dataclass(frozen=True, eq=False)
class Triple:
    """What the three files of one image say; aligned with segments 1..n.

    `label_map` uint8 or uint16 (H, W); `prompt_id` int32 (n,); `vector` float32 (n, d), any length above 0; `score`
    float32 (n,), above 0 and up to 1. `n_matrices` is 1, or 2 for FC-CLIP.
    """

    label_map: npt.NDArray[np.integer[Any]]
    prompt_id: npt.NDArray[np.int32]
    vector: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32]
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

    @staticmethod
    def text_content(recipe: Recipe) -> Settings:
        """Return the digest of the text vectors' file.

        Raises ConfigError without it, and where the files were made with other prompts, or may have been.
        """
        assert isinstance(recipe.teacher, ArtifactsConfig)
        check_prompts(recipe.teacher, recipe.ontology.prompts)
        path = Path(recipe.teacher.folder) / TEXT
        try:
            return {"text_sha256": sha256_file(path)}
        except OSError as error:
            raise ConfigError(f"teacher.folder: {path}: {reason(error)}") from None

    @staticmethod
    def files(recipe: Recipe) -> FrameFiles:
        """Return what is read of every frame."""
        assert isinstance(recipe.teacher, ArtifactsConfig)

        endings = tuple(f".{ending}" for ending in ENDINGS)
        endings += (SCORE_IMAGE,) if recipe.teacher.scores == "image" else ()

        def names(frame: Frame) -> tuple[str, ...]:
            tokens = [one.token for one in frame.cameras if names_a_file(one.token)]
            return tuple(f"{token}{ending}" for token in tokens for ending in endings)

        return FrameFiles(Path(recipe.teacher.folder), names)

    def text(self, prompts: tuple[str, ...]) -> npt.NDArray[np.float32]:
        """Return the stored vector of each prompt, scaled to length 1, float32 (p, d); raises ConfigError."""
        check_prompts(self.config, prompts)
        return read_text(self.config, len(prompts))

    def encode(self, frame: Frame) -> dict[str, npt.NDArray[Any]]:
        """Raise ValueError: these files are finished segments, and there is nothing to encode."""
        raise ValueError("teacher artifacts has no encode half; its segments are read from files")

    def segment(self, frame: Frame, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]) -> list[Segments]:
        """Return the segments of every view as stored, vectors scaled to length 1, score 1 where none is read.

        Raises FrameError that lists everything that is wrong with the files of this frame, by token.
        """
        problems: list[str] = []
        n_prompts, n_dims = text.shape
        triples = [
            read_triple(self.config, one.token, n_prompts, n_dims, problems, (one.width_px, one.height_px), frame.files)
            for one in frame.cameras
        ]
        if len({triple.n_matrices for triple in triples if triple}) > 1:
            problems.append(
                "some .pt files hold one matrix and some two: they come from different teachers; give each a folder"
            )
        if problems:
            raise FrameError("; ".join(problems))
        return [Segments.from_label_map(one.label_map, one.prompt_id, one.score, one.vector) for one in triples if one]

    def pixel_scores(
        self, frame: Frame, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any], views: Sequence[Segments]
    ) -> list[npt.NDArray[Any]]:
        """Return the stored scores of each pixel, (H, W) for every view; see PixelTeacher."""
        found: list[npt.NDArray[Any]] = []
        for camera, view in zip(frame.cameras, views, strict=True):
            name = f"{camera.token}{SCORE_IMAGE}"
            try:
                content = read_bytes(Path(self.config.folder) / name, frame.files)
                found.append(read_label_map(content, (view.width_px, view.height_px)) / 255)
            except (ValueError, OSError) as error:
                raise FrameError(f"{name}: {reason(error)}") from None
        return found


def check_folder(config: ArtifactsConfig, tokens: Iterable[str], ontology: Ontology) -> list[str]:
    """Return a sentence for everything that is wrong with the text vectors and with the files of the images named.

    For a look at a whole data set before a run. It reads every file; image sizes are not known here, stage `segment`
    checks them.
    """
    n_prompts, n_dims = len(ontology.prompts), 0
    problems: list[str] = []
    try:
        check_prompts(config, ontology.prompts)
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


def check_prompts(config: ArtifactsConfig, prompts: Sequence[str]) -> None:
    """Raise ConfigError unless the files were made with these prompts, by what lies beside them or the recipe says."""
    path = Path(config.folder) / PROMPTS
    own = prompts_digest(prompts)
    try:
        written = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        if own != config.prompts_sha256:
            whose = "those of AFOV for nuScenes" if config.prompts_sha256 == OFFICIAL_PROMPTS else "others"
            raise ConfigError(
                f"teacher.folder: the files in {config.folder} name prompts by their position, and by "
                f"teacher.prompts_sha256 these are {whose}, not the {len(prompts)} of data.ontology. Name the "
                "dictionary that the files were made with; if they were made with this one, write its prompts, one a "
                f"line, to {path}, or say so by teacher.prompts_sha256={own}"
            ) from None
        return
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"teacher.folder: {path}: {reason(error)}") from None
    if prompts_digest(written) != own:
        first = next((i for i, (a, b) in enumerate(zip(written, prompts, strict=False)) if a != b), None)
        where = f"has {len(written)} prompts, data.ontology {len(prompts)}"
        if first is not None:
            where += f"; the first that differs is number {first}, {written[first]!r} there and {prompts[first]!r} here"
        raise ConfigError(f"teacher.folder: {path} {where}; name the dictionary that the files were made with")


def read_text(config: ArtifactsConfig, n_prompts: int) -> npt.NDArray[np.float32]:
    """Return the text vectors, scaled to length 1, float32 (n_prompts, d), without the last row for "void" if any.

    Raises ConfigError if the file is missing, damaged, or made for another class dictionary.
    """
    path = Path(config.folder) / TEXT
    try:
        matrices = read_matrices(read_bytes(path))
        if len(matrices) != 1:
            raise ValueError(f"holds {len(matrices)} matrices; expected one")
    except (ValueError, OSError) as error:
        raise ConfigError(f"teacher.folder: {path}: {reason(error)}") from None
    [vectors] = matrices
    if len(vectors) != n_prompts + config.has_void:
        void = ", and by teacher.void or its layout the last row stands for no prompt" if config.has_void else ""
        advice = "name in data.ontology the dictionary that the files were made with"
        if len(vectors) == n_prompts + 1:
            advice += ', or, if the last row stands for "void", set teacher.void = true'
        raise ConfigError(
            f"teacher.folder: {path} has {len(vectors)} rows, but the class dictionary has {n_prompts} prompts{void}; "
            + advice
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
    digests: Digests = MappingProxyType({}),
) -> Triple | None:
    """Return what is stored for an image, or None after adding to `problems` everything that is wrong with it.

    `n_dims` is the length of the text vectors, 0 if unknown; `size_px` the width and height of the image, None if
    unknown. Files must have the `digests` that are known of them.
    """
    start = len(problems)
    if not names_a_file(token):
        problems.append(f"image token {token!r} is no file name; expected letters, digits, '-', '_' and '.'")
        return None
    folder = Path(config.folder)
    label_map = prompt_id = vectors = score = None
    n_matrices = 1
    try:
        label_map = read_label_map(read_bytes(folder / f"{token}.png", digests), size_px)
    except (ValueError, OSError) as error:
        problems.append(f"{token}.png: {reason(error)}")
    n_pixels = np.bincount(label_map.ravel()) if label_map is not None else None
    try:
        content = read_bytes(folder / f"{token}.json", digests)
        prompt_id = read_names(content, n_prompts, n_pixels)
        score = read_scores(content) if config.scores == "segment" else np.ones(len(prompt_id), np.float32)
    except (ValueError, OSError) as error:
        problems.append(f"{token}.json: {reason(error)}")
    try:
        matrices = read_matrices(read_bytes(folder / f"{token}.pt", digests))
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
    if config.scores == "image" and label_map is not None and prompt_id is not None:
        try:
            content = read_bytes(folder / f"{token}{SCORE_IMAGE}", digests)
            height, width = label_map.shape
            score = scores_of_pixels(read_label_map(content, (width, height)), label_map, len(prompt_id))
        except (ValueError, OSError) as error:
            problems.append(f"{token}{SCORE_IMAGE}: {reason(error)}")
    if len(problems) > start or label_map is None or prompt_id is None or vectors is None or score is None:
        return None
    return Triple(label_map, prompt_id, vectors[1:], score, n_matrices)


def names_a_file(token: str) -> bool:
    """Return whether the files of a token stay in their folder."""
    return bool(_TOKEN.fullmatch(token))


def reason(error: Exception) -> str:
    """Return why a file could not be used, without its path."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def read_bytes(path: Path, digests: Digests = MappingProxyType({})) -> bytes:
    """Return the content of a file, which must have the digest that is known of its name, if there is one.

    Raises OSError, and ValueError for another file or one that is too large.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"has more than {MOST_BYTES >> 20} MB; no such file is as large")
    if path.name in digests and hashlib.sha256(content).hexdigest() != digests[path.name]:
        raise ValueError("was replaced since it was looked at; run again")
    return content


def read_label_map(content: bytes, size_px: tuple[int, int] | None) -> npt.NDArray[np.integer[Any]]:
    """Return the ids in a grey PNG of 8 or 16 bits, (H, W); raises ValueError or OSError.

    `size_px` is the width and height that it must have, None for any.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
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


def read_names(content: bytes, n_prompts: int, n_pixels: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int32]:
    """Return the prompt id of segments 1..n, (n,); raises ValueError that lists what is wrong.

    `n_pixels` is how many pixels of the label map have each id, None if the map could not be read.
    """
    try:
        entries = json.loads(content)
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


def read_scores(content: bytes) -> npt.NDArray[np.float32]:
    """Return the score of segments 1..n, (n,), of records that `read_names` has read; raises ValueError."""
    scores = [entry.get("score") for entry in json.loads(content)]
    for position, score in enumerate(scores, start=1):
        if type(score) not in (int, float) or not 0 < score <= 1:
            raise ValueError(f"segment {position} has score {score!r}; expected a number above 0 and up to 1")
    return np.array(scores, np.float32)


def scores_of_pixels(
    score_map: npt.NDArray[np.integer[Any]], label_map: npt.NDArray[np.integer[Any]], n: int
) -> npt.NDArray[np.float32]:
    """Return the mean of an image of scores 0..255 over the pixels of segments 1..n, (n,), 0..1; raises ValueError."""
    if score_map.dtype != np.uint8:
        raise ValueError("has pixels of 16 bits; scores are grey values of 8 bits, 255 for 1")
    return np.maximum(mean_score(score_map / 255, label_map, n), np.float32(LEAST_SCORE))


def read_matrices(content: bytes) -> list[npt.NDArray[np.float32]]:
    """Return the matrix, or the list of matrices, of a `.pt` file, float32; raises ValueError.

    Only tensors are unpickled, they come to the CPU wherever they were saved from, and what would unpack to more than
    a file of vectors can hold is not unpacked.
    """
    import torch

    if instead := instead_of_weights(io.BytesIO(content)):
        raise ValueError(instead)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        unpacked = 0  # a file of old, or a damaged one: torch says which
    if unpacked > MOST_BYTES:
        raise ValueError(f"would unpack to {unpacked >> 20} MB; no file of vectors is as large")
    try:
        stored = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError("holds other objects than tensors, or is no torch file, and is not opened") from None
    except Exception as error:  # zip and tensor errors of a damaged file share no base class
        raise ValueError(f"cannot be read as a torch file ({type(error).__name__}); it is damaged") from None
    tensors = stored if isinstance(stored, list | tuple) else [stored]
    matrices, n_values = [], 0
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 2 or not tensor.is_floating_point():
            raise ValueError("holds something else than matrices of floating point numbers")
        n_values += tensor.numel()
        if n_values > MOST_VALUES:
            raise ValueError(f"holds more than {MOST_VALUES:,} values; no file of vectors is as large")
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
