"""Weights: how a recipe names and pins them, and that a wrong file never gets into a network quietly."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from manifests.config import ConfigError
from manifests.sections.teachers.weights import Weights
from pipeline.teachers.loading import weights as module
from pipeline.teachers.loading.weights import fill, hub_file, read_tensors, verified, weights_file

SHA = "0123456789abcdef" * 4
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("openai", "tag"),
        ("laion2b_s34b_b88k", "tag"),
        ("random:3", "random"),
        ("weights.safetensors", "local"),
        ("w/openai", "local"),
        ("hub:Mendel192/san/san_vit_b_16.pth", "hub"),
    ],
)
def test_a_source_is_of_one_kind(source: str, kind: str) -> None:
    pins = {"local": {"sha256": SHA}, "hub": {"sha256": SHA, "revision": COMMIT}}.get(kind, {})
    found = Weights(source, **pins)
    told = {"tag": found.is_tag, "random": found.seed is not None, "local": found.is_local, "hub": found.is_hub}
    assert told == {name: name == kind for name in told}
    assert found.identity == (f"sha256:{SHA}" if pins else source)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "w.pt"}, "weights_sha256 is missing; pin w.pt with the output of sha256sum"),
        ({"source": "w.pt", "sha256": "abc"}, "expected 64 hexadecimal digits"),
        ({"source": "w.pt", "sha256": SHA, "revision": COMMIT}, "w.pt is a file on disk; remove it"),
        ({"source": "hub:a/b/c.pt", "sha256": SHA}, "weights_revision is missing"),
        ({"source": "hub:a/b/c.pt", "revision": COMMIT}, "weights_sha256 or"),
        ({"source": "hub:a/b/c.pt", "sha256": SHA, "revision": "main"}, "branches and tags move"),
        ({"source": "hub:a/c.pt", "sha256": SHA, "revision": COMMIT}, "written hub:OWNER/NAME/FILE"),
        ({"source": "hub:a/b/../c.pt", "sha256": SHA, "revision": COMMIT}, "written hub:OWNER/NAME/FILE"),
        ({"source": "random"}, "random:SEED"),
        ({"source": "random:-1"}, "random:SEED"),
        ({"source": "random:0", "sha256": SHA}, "random weights have no file"),
        ({"source": "d.pt", "key": "dino_weights"}, "dino_weights_sha256 is missing"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_is_read(values: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Weights(**values)


def test_a_file_must_be_the_pinned_one(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(b"weights")
    pinned = hashlib.sha256(b"weights").hexdigest()
    assert weights_file(Weights(str(path), pinned)) == path
    with pytest.raises(ConfigError, match=f"has sha256 {pinned}, but teacher.weights_sha256 is {SHA}; the file is dam"):
        weights_file(Weights(str(path), SHA))
    with pytest.raises(ConfigError, match=f'"openai" is not pinned.*weights_sha256 = "{pinned}"'):
        verified(Weights("openai"), path)
    assert verified(Weights("openai", pinned), path) == path
    with pytest.raises(ConfigError, match="there is no file nowhere/w.pt"):
        weights_file(Weights("nowhere/w.pt", SHA))


def test_a_hub_file_is_asked_for_at_its_commit_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b.pth"
    path.write_bytes(b"weights")
    asked: list[tuple[str, ...]] = []

    def fetch(*arguments: str) -> Path:
        asked.append(arguments)
        return path

    monkeypatch.setattr(module, "hub_file", fetch)
    pinned = hashlib.sha256(b"weights").hexdigest()
    assert weights_file(Weights("hub:own.er/na-me/sub/b.pth", pinned, COMMIT)) == path
    assert asked == [("own.er/na-me", "sub/b.pth", COMMIT, "teacher.weights")]
    with pytest.raises(ConfigError, match="the file is damaged or another one"):
        weights_file(Weights("hub:own.er/na-me/sub/b.pth", SHA, COMMIT))


def test_a_hub_that_cannot_be_reached_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(ConfigError, match=r"c.pt of a/b could not be fetched \(OSError: no route to host\)\. Download"):
        hub_file("a/b", "c.pt", COMMIT, "teacher.weights")


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "iteration": 7}])
def test_tensors_are_found_in_their_wrapper(tmp_path: Path, wrap: Any) -> None:
    torch.save(wrap({"module.a": torch.ones(2), "module.b": torch.zeros(1)}), tmp_path / "w.pt")
    assert {name: one.tolist() for name, one in read_tensors(tmp_path / "w.pt").items()} == {"a": [1, 1], "b": [0]}


@pytest.mark.parametrize("content", [{}, [torch.ones(1)], {"a": 3}, torch.ones(1)])
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="teacher.dino: .*w.pt cannot be read as a checkpoint: it holds no dict"):
        read_tensors(tmp_path / "w.pt", "teacher.dino")


def test_every_tensor_must_find_its_place_and_all_that_do_not_are_named(caplog: pytest.LogCaptureFixture) -> None:
    network = torch.nn.Linear(2, 1)
    fill(network, {"weight": torch.ones(1, 2), "bias": torch.zeros(1), "mean": torch.ones(1)}, "w.pt", ["mean"])
    assert network.weight.tolist() == [[1, 1]]
    wrong = {"weight": torch.ones(1, 3), **{f"more{i}": torch.ones(1) for i in range(5)}}
    with pytest.raises(ConfigError) as caught:
        fill(network, wrong, "w.pt is not a checkpoint of a line")
    assert str(caught.value) == (
        "w.pt is not a checkpoint of a line: of 2 tensors, 1 missing, such as bias; 5 not expected, such as more0, "
        "more1, more2; 1 of another shape, such as weight (1, 3) instead of (1, 2)"
    )
    assert "more0, more1, more2, more3, more4" in caplog.text
