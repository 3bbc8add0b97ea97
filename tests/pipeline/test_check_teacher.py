"""The check of a teacher's weights: a picture that never changes, and numbers that tell trained from random."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from typer.testing import CliRunner

from manifests.fingerprint import sha256_file
from manifests.ontology import parse_ontology
from manifests.recipe import load_recipe
from pipeline.__main__ import app
from pipeline.checks.picture import PARTS, street
from pipeline.checks.teacher import WORDS, _of_names, _of_segments, _of_text, _warnings, look
from pipeline.teachers.loading.towers import build_clip
from superpixels.segments import Segments


def test_the_picture_has_every_part_and_the_same_pixels_everywhere() -> None:
    import hashlib

    picture = street()
    assert picture.rgb.shape == (900, 1600, 3) and picture.rgb.dtype == np.uint8
    area = np.bincount(picture.part.ravel(), minlength=len(PARTS)) / picture.part.size
    assert (area > 0.005).all() and area[PARTS.index("sky")] > 0.2
    assert hashlib.sha256(picture.rgb.tobytes()).hexdigest() == PICTURE_SHA256


PICTURE_SHA256 = "1d3bb3e20641b1a7f92dc335ebc9def9d17ae3014ad6949fe6792653ba260c6d"

ONTOLOGY = parse_ontology(
    {
        "name": "street",
        "version": 1,
        "class": [{"name": "ignore", "colour": "#000000"}, {"name": "seen", "colour": "#ff0000"}],
        "fine": [{"name": "thing", "class": "seen", "raw": [1]}],
        "group": [
            {"name": name, "fine": "thing", "thing": False, "prompts": [name, f"{name} far away"]}
            for name in (*PARTS, "cat")
        ],
    }
)


def unit(vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


def as_trained(noise: float, seed: int = 0) -> tuple[npt.NDArray[Any], npt.NDArray[Any], Segments]:
    """Text vectors, those of the words, and segments of the picture: near to each other where they mean the same."""
    rng = np.random.default_rng(seed)
    common = 2 * rng.normal(size=64)  # what all sentences share
    of_group = rng.normal(size=(len(ONTOLOGY.groups), 64))
    text = unit(common + of_group[ONTOLOGY.group_of_prompt] + noise * rng.normal(size=(len(ONTOLOGY.prompts), 64)))
    meaning = rng.normal(size=(2 * len(WORDS), 64))
    words = unit(common + np.stack([meaning[[k, k, len(WORDS) + k]] for k in range(len(WORDS))]).reshape(-1, 64))
    words = unit(words + noise * rng.normal(size=words.shape) / 8)
    label_map = street().part[::9, ::9].astype(np.uint16) + 1
    prompts = np.array([ONTOLOGY.prompts.index(name) for name in PARTS])
    order = np.argsort(prompts)
    renumbered = (np.argsort(order) + 1)[label_map - 1].astype(np.uint16)
    vectors = unit(text[prompts] + noise * rng.normal(size=(len(PARTS), 64)) / 8)
    return text, words, Segments.from_label_map(renumbered, prompts[order], np.full(len(PARTS), 0.5), vectors[order])


def test_what_means_something_raises_no_warning() -> None:
    text, words, segments = as_trained(noise=0.3)
    numbers = {**_of_text(text, words), **_of_segments(segments, text), **_of_names(segments, street(), ONTOLOGY)}
    assert _warnings(numbers) == []
    assert numbers["synonyms_nearer"] == 1 and numbers["segments"] == len(PARTS) and numbers["right_names_gain"] > 0.7


def test_what_means_nothing_raises_one_for_each_half() -> None:
    rng = np.random.default_rng(1)
    text, words, segments = as_trained(noise=0.3)
    alike = unit(1 + 0.01 * rng.normal(size=text.shape))
    same = unit(np.ones((len(segments), 64)))
    guessed = Segments.from_label_map(
        rng.integers(1, len(PARTS) + 1, (50, 90)).astype(np.uint16), np.sort(segments.prompt_id), segments.score, same
    )
    numbers = {
        **_of_text(alike, unit(rng.normal(size=words.shape))),
        **_of_segments(guessed, alike),
        **_of_names(guessed, street(), ONTOLOGY),
    }
    told = " ".join(_warnings(numbers))
    for part in ("about the same vector", "nearer to their synonyms", "as good as guessed", "no better than by chance"):
        assert part in told
    one = Segments.from_label_map(np.ones((9, 16), np.uint16), np.array([3]), np.array([0.5]), text[3:4])
    assert any("one name covers" in one for one in _warnings({**_of_text(text, words), **_of_segments(one, text)}))


def test_a_mean_cosine_is_that_of_all_pairs() -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(5, 4)))
    pairs = [vectors[i] @ vectors[j] for i in range(5) for j in range(5) if i != j]
    words = np.tile(vectors[:3], (len(WORDS), 1))
    assert _of_text(vectors, words)["prompts_alike"] == pytest.approx(np.mean(pairs), abs=1e-6)


def test_the_command_prints_numbers_writes_them_and_ends_with_1_where_weights_look_random(tmp_path: Path) -> None:
    recipe = tmp_path / "mini.toml"
    recipe.write_text(
        '[data]\nroot = "nowhere"\n[teacher]\nname = "clip_dense"\nmodel = "tiny"\nweights = "random:0"\n'
        'short_side_px = 64\n[segment]\nscale = 0.05\n[run]\ndevice = "cpu"\n'
    )
    done = CliRunner().invoke(app, ["check-teacher", str(recipe), "--out", str(tmp_path / "look.json")])
    assert done.exit_code == 1, done.output
    assert "looks untrained: words are nearer" in done.output and "entropy_of_names" in done.output
    written = json.loads((tmp_path / "look.json").read_text())
    assert written["weights"] == {"random:0": "not pinned"} and written["digests"]["text"] in done.output
    settings = written["settings"]
    assert settings["segment"]["segment"] == {"scale": 0.05}
    assert settings["encode"]["teacher"]["short_side_px"] == 64 and settings["text"]["teacher"]["weights"] == "random:0"


@pytest.mark.parametrize("override", ["segment.scale=0.02", "segment.split=components", "teacher.logit_scale=50.0"])
def test_two_looks_of_other_settings_are_told_apart(tmp_path: Path, override: str) -> None:
    recipe = tmp_path / "mini.toml"
    recipe.write_text(
        '[data]\nroot = "nowhere"\n[teacher]\nname = "clip_dense"\nmodel = "tiny"\nweights = "random:0"\n'
        'short_side_px = 32\n[segment]\nscale = 0.05\n[run]\ndevice = "cpu"\n'
    )
    assert look(load_recipe(recipe)).settings != look(load_recipe(recipe, [override])).settings


def test_weights_that_are_not_finite_are_a_sentence_that_names_file_and_tensor(tmp_path: Path) -> None:
    clip, _ = build_clip("tiny", seed=0)
    state = dict(clip.state_dict()) | {"visual.proj": torch.full_like(clip.visual.proj, torch.inf)}
    torch.save(state, tmp_path / "w.pt")
    recipe = tmp_path / "mini.toml"
    recipe.write_text(
        '[data]\nroot = "nowhere"\n[teacher]\nname = "clip_dense"\nmodel = "tiny"\nquick_gelu = true\n'
        f'weights = "{tmp_path}/w.pt"\nweights_sha256 = "{sha256_file(tmp_path / "w.pt")}"\n[run]\ndevice = "cpu"\n'
    )
    done = CliRunner().invoke(app, ["check-teacher", str(recipe)])
    told = " ".join(done.output.split())
    assert done.exit_code == 2 and "w.pt is not a checkpoint of tiny" in told
    assert "1 with values that are not finite, such as visual.proj" in told


@pytest.mark.parametrize("name", ["visual.proj", "text_projection", "visual.conv1.weight", "token_embedding.weight"])
def test_weights_so_large_that_features_are_no_numbers_are_no_bug(tmp_path: Path, name: str) -> None:
    clip, _ = build_clip("tiny", seed=0)
    state = dict(clip.state_dict())
    torch.save(state | {name: torch.full_like(state[name], 3e38)}, tmp_path / "w.pt")
    recipe = tmp_path / "mini.toml"
    recipe.write_text(
        '[data]\nroot = "nowhere"\n[teacher]\nname = "clip_dense"\nmodel = "tiny"\nquick_gelu = true\n'
        f'weights = "{tmp_path}/w.pt"\nweights_sha256 = "{sha256_file(tmp_path / "w.pt")}"\n[run]\ndevice = "cpu"\n'
    )
    small = ("--set", "segment.scale=0.05", "--set", "teacher.short_side_px=112")
    done = CliRunner().invoke(app, ["check-teacher", str(recipe), *small])
    assert done.exit_code in (1, 2), done.output
    assert "not finite" in done.output or "looks untrained" in done.output
