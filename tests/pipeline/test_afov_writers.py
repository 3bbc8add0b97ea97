"""One output of a network through the rules of AFOV's writers, pixel by pixel, and through our segments and `export`.

The rules are those of sbysbysbys/AFOV at a4fcda8, written down here once more as plain loops over whole maps.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from manifests.ontology import load_ontology
from manifests.recipe import Recipe
from manifests.sections.data import DataConfig, RunConfig
from manifests.sections.tables import GroupConfig, ProjectConfig, SegmentConfig, TextConfig
from manifests.sections.teachers.catseg import CatSegConfig
from manifests.sections.teachers.fcclip import FcClipConfig
from manifests.sections.teachers.san import SanConfig
from pipeline.exchange.export import ImageWriter
from pipeline.frame import Camera, Frame
from pipeline.teachers.catseg import CatSeg
from pipeline.teachers.fcclip import FcClip
from pipeline.teachers.san import San
from superpixels.segments import Segments

ONTOLOGY = load_ontology("nuscenes")
HEIGHT, WIDTH = 90, 160
CAMERA = Camera("C", "token", "image.png", 0, np.eye(3), np.eye(4), 0, WIDTH, HEIGHT)
FRAME = Frame("f", "s", 0, "l", "l.bin", None, np.eye(4), np.eye(4), (CAMERA,))

Triple = tuple[npt.NDArray[Any], list[dict[str, Any]], list[npt.NDArray[Any]]]
"""Ids (H, W), records and matrices, as the three files of an image hold them."""


def recipe_at(root: Path, teacher: Any) -> Recipe:
    return Recipe(
        name="test",
        data=DataConfig(root=str(root)),
        run=RunConfig(device="cpu"),
        teacher=teacher,
        project=ProjectConfig(),
        text=TextConfig(),
        segment=SegmentConfig(scale=1.0),
        group=GroupConfig(),
        ontology=ONTOLOGY,
    )


def unit_rows(rng: np.random.Generator, n: int, near: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
    """Random vectors of length 1 that float16 holds, or such as lie near others."""
    rows = rng.normal(size=(n, 32)) if near is None else near[rng.integers(0, len(near), n)] * 4
    rows = rows + rng.normal(size=(n, 32)) * 0.5
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(unit.astype(np.float16), np.float64)


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return torch.from_numpy(logits).softmax(dim=1).numpy()


def resampled(maps: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    return interpolate(torch.from_numpy(maps)[None], size=(height, width), mode="bilinear", align_corners=False)[
        0
    ].numpy()


def semantic(score: npt.NDArray[Any], feature: npt.NDArray[Any]) -> Triple:
    """What SAN's and CAT-Seg's writer makes of scores (t, H, W) and features (d, H, W)."""
    label = score.argmax(axis=0)
    ids, records, matrix = np.zeros(label.shape, int), [], [np.zeros(len(feature))]
    for number, prompt in enumerate(sorted(set(label.ravel().tolist())), start=1):
        here = label == prompt
        ids[here] = number
        records.append({"id": number, "category_id": prompt, "area": int(here.sum())})
        total = feature[:, here].sum(axis=1)
        matrix.append(total / np.linalg.norm(total))
    return ids, records, [np.stack(matrix)]


def panoptic(
    masks: npt.NDArray[Any], probability: npt.NDArray[Any], inside: npt.NDArray[Any], outside: npt.NDArray[Any]
) -> Triple:
    """What FC-CLIP's writer makes of mask logits (q, H, W), probabilities (q, t + 1) and vectors (q, d)."""
    n_prompts = probability.shape[1] - 1
    soft = 1 / (1 + np.exp(-masks))
    kept = [q for q in range(len(masks)) if probability[q].argmax() != n_prompts]
    owner = np.array(kept)[(probability[kept].max(axis=1)[:, None, None] * soft[kept]).argmax(axis=0)]
    ids, rows = np.zeros(owner.shape, int), []
    records: list[dict[str, Any]] = []
    stuff: dict[int, int] = {}
    for q in kept:
        prompt, whole = int(probability[q].argmax()), soft[q] >= 0.5
        here = (owner == q) & whole
        if not here.any() or (owner == q).sum() / whole.sum() < 0.8:
            continue
        thing = bool(ONTOLOGY.thing_of_prompt[prompt])
        if not thing and prompt in stuff:
            ids[here] = stuff[prompt]
            continue
        records.append({"id": len(records) + 1, "isthing": thing, "category_id": prompt})
        rows.append(q)
        ids[here] = stuff[prompt] = len(records)
    zeros = np.zeros((1, inside.shape[1]))
    return ids, records, [np.concatenate([zeros, vectors[rows]]) for vectors in (inside, outside)]


def exported(folder: Path, layout: str, segments: Segments) -> Triple:
    ImageWriter(folder, layout, False, ONTOLOGY, segments.vector.shape[1])(CAMERA, segments)
    with Image.open(folder / "token.png") as image:
        assert image.mode == "L"
        ids = np.asarray(image)
    stored = torch.load(folder / "token.pt", weights_only=True)
    matrices = stored if isinstance(stored, list) else [stored]
    return ids, json.loads((folder / "token.json").read_bytes()), [one.double().numpy() for one in matrices]


def assert_unit_rows_are_equal(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    assert not found[0].any() and not expected[0].any() and len(found) == len(expected)
    length = np.linalg.norm(expected[1:], axis=1, keepdims=True)
    np.testing.assert_allclose(found[1:], expected[1:] / length, atol=1e-3)  # of float16


@pytest.mark.parametrize("seed", [0, 1, 3])  # of 2, one pixel lies nearer to two prompts than float32 can tell
def test_san_s_triple_is_the_reference_s(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.normal(0, 5, (10, 4, 8)).astype(np.float16)  # 64 x 113 pixels, padded to 128, in patches of 16
    text, none = unit_rows(rng, 20), rng.normal(0, 2, 10).astype(np.float32)
    embedding = unit_rows(rng, 10, near=text)
    probability = softmax(np.concatenate([20 * embedding @ text.T, none[:, None]], axis=1))[:, :-1]
    wide = resampled(masks.astype(np.float64), 64, 128)[:, :, :113]
    soft = 1 / (1 + np.exp(-resampled(wide, HEIGHT, WIDTH)))
    ids, records, [matrix] = semantic(
        np.einsum("qt,qhw->thw", probability, soft), np.einsum("qd,qhw->dhw", embedding, soft)
    )

    parts = {
        "C/masks": masks,
        "C/peak": masks.max(axis=0),
        "C/embedding": embedding.astype(np.float16),
        "C/none": none,
        "C/logit_scale": np.full(1, 20, np.float32),
    }
    recipe = recipe_at(tmp_path, SanConfig(model="tiny", weights="random:0", short_side_px=64, parity=True))
    [segments] = San.load(recipe, "segment").segment(FRAME, parts, text.astype(np.float32))
    found_ids, found_records, [found_matrix] = exported(tmp_path, "san", segments)
    assert len(records) > 3
    np.testing.assert_array_equal(found_ids, ids)
    assert found_records == records
    assert_unit_rows_are_equal(found_matrix, matrix)


def one_place_each(rng: np.random.Generator, n: int, height: int, width: int) -> npt.NDArray[Any]:
    """Mask logits float16 (n, h, w): each is positive about a place of its own, with some noise at its edges."""
    row, column = np.indices((height, width))
    places = rng.random((n, 2, 1, 1)) * [[[height]], [[width]]]
    distance = np.hypot(row - places[:, 0], column - places[:, 1])
    others = np.stack([np.delete(distance, q, axis=0).min(axis=0) for q in range(n)])
    noise = resampled(rng.normal(0, 1.5, (n, height // 4, width // 4)), height, width)
    return np.asarray(others - distance + noise, np.float16)


@pytest.mark.parametrize("seed", range(3))
def test_fcclip_s_triple_is_the_reference_s(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = one_place_each(rng, 12, 24, 40)  # 90 rows of pixels, padded to 96
    text = unit_rows(rng, len(ONTOLOGY.prompts))
    inside = unit_rows(rng, 12, near=text[[3, 20, 150, 160, 170]])
    outside = unit_rows(rng, 12, near=text[[3, 20, 150, 160, 170]])
    void = np.where(rng.random(12) < 0.25, 90, 0).astype(np.float32)
    recipe = recipe_at(tmp_path, FcClipConfig(model="tiny-convnext", weights="random:0", parity=True))
    teacher = FcClip.load(recipe, "segment")

    p_in, p_out = softmax(60 * inside @ text.T), softmax(60 * outside @ text.T)
    empty = softmax(np.concatenate([60 * inside @ text.T, void[:, None]], axis=1))[:, -1:]
    share = np.where(teacher.seen, 0.4, 0.8)
    joint = p_in ** (1 - share) * p_out**share
    joint = joint / joint.sum(axis=1, keepdims=True) * (1 - empty)
    probability = np.concatenate([joint, empty], axis=1) + 1e-8
    probability /= probability.sum(axis=1, keepdims=True)
    at_pixels = resampled(masks.astype(np.float64), 96, 160)[:, :HEIGHT]
    ids, records, [_, matrix] = panoptic(at_pixels, probability, inside, outside)

    outputs = {
        "near": np.ones(masks.shape, np.bool_),
        "masks": masks,
        "peak": masks.max(axis=0),
        "coarse": np.zeros((12, 3, 5), np.float32),
        "bound": np.zeros(masks.shape[1:], np.float32),
        "inside": inside,
        "outside": outside,
        "void": void,
        "logit_scale": np.full(2, 60, np.float32),
    }
    parts = {f"C/{name}": part for name, part in teacher.pack(CAMERA, outputs).items()}
    [segments] = teacher.segment(FRAME, parts, text.astype(np.float32))
    found_ids, found_records, [found_inside, found_outside] = exported(tmp_path, "fcclip", segments)
    assert len(records) > 2
    np.testing.assert_array_equal(found_ids, ids)
    assert found_records == records
    assert_unit_rows_are_equal(found_outside, matrix)
    np.testing.assert_array_equal(found_inside, found_outside)  # of two vectors we keep the one that AFOV trains on


def test_catseg_s_triple_is_the_reference_s(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (9, 16, 3), dtype=np.uint8)
    Image.fromarray(blocks.repeat(10, 0).repeat(10, 1)).save(tmp_path / "image.png")
    recipe = recipe_at(tmp_path, CatSegConfig(model="tiny", weights="random:0", kept="float32"))
    parts = CatSeg.load(recipe, "encode").encode(FRAME)
    teacher, text = CatSeg.load(recipe, "segment"), unit_rows(rng, 7).astype(np.float32)
    with torch.inference_mode():
        [logits] = teacher.logits({name.removeprefix("C/"): part for name, part in parts.items()}, text)
    score = resampled(logits.sigmoid().numpy(), HEIGHT, WIDTH)
    grid = parts["C/grid"][-1].astype(np.float64).transpose(2, 0, 1)
    ids, records, [matrix] = semantic(score, resampled(np.ascontiguousarray(grid), HEIGHT, WIDTH))

    [segments] = teacher.segment(FRAME, parts, text)
    found_ids, found_records, [found_matrix] = exported(tmp_path, "san", segments)
    assert len(records) > 1
    np.testing.assert_array_equal(found_ids, ids)
    assert found_records == records
    assert_unit_rows_are_equal(found_matrix, matrix)
