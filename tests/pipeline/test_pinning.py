"""Weights that nothing pins are pinned on their first use, in the recipe's local file, before anything is planned."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from manifests.config import ConfigError
from manifests.recipe import load_recipe
from pipeline.__main__ import app
from pipeline.teachers.loading.pinning import add_settings, pinned_on_first_use
from pipeline.teachers.loading.towers import build_clip


@pytest.fixture
def place(tmp_path: Path, tiny: Any) -> Path:
    """A folder with a recipe whose teacher is a tiny CLIP in a file that nothing pins."""
    clip, _ = build_clip("tiny", None, 3)
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    (tmp_path / "mine.toml").write_text(
        f"""
        [data]
        root = "{tiny.path}"
        version = "v1.0-trainval"
        [teacher]
        name = "clip_dense"
        model = "tiny"
        weights = "{tmp_path / "clip.pt"}"
        quick_gelu = true
        [text]
        templates = "single"
        [run]
        store = "{tmp_path / "store"}"
        runs = "{tmp_path / "runs"}"
        """
    )
    return tmp_path


def test_the_first_run_pins_says_so_once_and_goes_on(place: Path) -> None:
    words = ["run", "text", str(place / "mine.toml")]
    first, again = CliRunner().invoke(app, words), CliRunner().invoke(app, words)
    assert first.exit_code == 0, first.output
    digest = hashlib.sha256((place / "clip.pt").read_bytes()).hexdigest()
    assert f'pinned from now on, in {place / "mine.local.toml"}: weights_sha256 = "{digest}"' in first.stdout
    assert again.stdout == "text: everything is built already\n"
    assert tomllib.loads((place / "mine.local.toml").read_text()) == {"teacher": {"weights_sha256": digest}}
    clip, _ = build_clip("tiny", None, 4)
    torch.save(clip.state_dict(), place / "clip.pt")
    other = CliRunner().invoke(app, [*words, "--again"])
    assert other.exit_code != 0 and "the file is damaged or another one" in other.output


def test_what_needs_no_teacher_pins_nothing(place: Path) -> None:
    done = CliRunner().invoke(app, ["run", "points", str(place / "mine.toml")])
    assert done.exit_code == 0 and not (place / "mine.local.toml").exists()


def test_weights_that_set_chose_are_not_pinned_for_the_recipe(place: Path) -> None:
    chosen = f"teacher.weights={place / 'clip.pt'}"
    with pytest.raises(ConfigError, match=r"is not pinned.*weights_sha256"):
        pinned_on_first_use(load_recipe(place / "mine.toml", [chosen]), print)
    assert not (place / "mine.local.toml").exists()


def test_a_local_file_keeps_what_stands_in_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.local.toml"
    path.write_text("# mine\n[run]\nworkers = 4  # all of them\n[teacher] # which\nsigma = 2.0\n")
    add_settings(path, {"weights_sha256": "aa", "sam3.weights_sha256": "bb", "sam3.weights_revision": "cc"})
    text = path.read_text()
    assert text.startswith("# mine\n[run]\nworkers = 4  # all of them\n")
    assert tomllib.loads(text) == {
        "run": {"workers": 4},
        "teacher": {
            "sigma": 2.0,
            "weights_sha256": "aa",
            "sam3": {"weights_sha256": "bb", "weights_revision": "cc"},
        },
    }
    path.write_text("teacher = { sigma = 2.0 }\n")
    with pytest.raises(ConfigError, match=r'cannot be written .*; add weights_sha256 = "aa" to section'):
        add_settings(path, {"weights_sha256": "aa"})
    assert path.read_text() == "teacher = { sigma = 2.0 }\n"
