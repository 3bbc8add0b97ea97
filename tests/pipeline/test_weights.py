"""Weights: how a recipe names and pins them, and that a wrong file never gets into a network quietly."""

import argparse
import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manifests.config import ConfigError
from manifests.recipe import load_recipe
from manifests.sections.teachers.published import pinned_by_publication, published
from manifests.sections.teachers.weights import Weights
from pipeline.teachers.loading import weights as module
from pipeline.teachers.loading.towers import ensure_torchvision
from pipeline.teachers.loading.weights import at_hand, fill, hub_file, read_tensors, verified, weights_file

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
        ({"source": "w.pt", "sha256": "abc"}, "expected 64 hexadecimal digits"),
        ({"source": "w.pt", "sha256": SHA, "revision": COMMIT}, "w.pt is a file on disk; remove it"),
        ({"source": "hub:a/b/c.pt", "sha256": SHA}, "weights_revision is missing"),
        ({"source": "hub:a/b/c.pt", "sha256": SHA, "revision": "main"}, "branches and tags move"),
        ({"source": "hub:a/c.pt", "sha256": SHA, "revision": COMMIT}, "written hub:OWNER/NAME/FILE"),
        ({"source": "hub:a/b/../c.pt", "sha256": SHA, "revision": COMMIT}, "written hub:OWNER/NAME/FILE"),
        ({"source": "random"}, "random:SEED"),
        ({"source": "random:-1"}, "random:SEED"),
        ({"source": "random:0", "sha256": SHA}, "random weights have no file"),
        ({"source": "hub:a/b/c.pt", "sha256": SHA, "key": "dino_weights"}, "dino_weights_revision is missing"),
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
    with pytest.raises(ConfigError, match=r"there is no file nowhere/w.pt$"):
        weights_file(Weights("nowhere/w.pt", SHA))
    with pytest.raises(
        ConfigError, match=r"nowhere/san_vit_b_16.pth; https://huggingface.co/Mendel192/san/.* \(MIT, about"
    ):
        weights_file(Weights("nowhere/san_vit_b_16.pth"))


def test_what_is_not_pinned_may_be_planned_and_loading_says_the_lines_to_add(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "models--a--b" / "snapshots" / COMMIT / "c.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    pinned = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(module, "hub_file", lambda *_: path)
    assert Weights("hub:a/b/c.pt").identity == "hub:a/b/c.pt"
    with pytest.raises(ConfigError, match=f'weights_sha256 = "{pinned}" and weights_revision = "{COMMIT}" into sect'):
        weights_file(Weights("hub:a/b/c.pt"))
    with pytest.raises(ConfigError, match=f'writing weights_sha256 = "{pinned}" into section'):
        weights_file(Weights(str(path)))


def test_a_tag_is_pinned_by_the_digest_that_is_published_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_openai = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"
    found = pinned_by_publication(Weights("openai"), "ViT-B-16-quickgelu")
    assert found.sha256 == of_openai and of_openai in found.link and found.is_tag
    assert pinned_by_publication(Weights("openai", of_openai), "ViT-B-16").link == found.link
    for other in (Weights("openai", SHA), Weights("laion2b_s34b_b88k"), Weights("random:0"), Weights("openai.pt")):
        assert pinned_by_publication(other, "ViT-B-16-quickgelu") is other
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert at_hand(found) is None
    kept = tmp_path / ".cache" / "clip" / "ViT-B-16.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"weights")
    assert at_hand(found) == kept


def test_of_a_tag_the_file_that_was_opened_is_named(tmp_path: Path) -> None:
    path = tmp_path / "open_clip_model.safetensors"
    path.write_bytes(b"weights")
    with pytest.raises(ConfigError, match=r"file at hand, open_clip_model.safetensors, is pinned by writing clip_weig"):
        verified(Weights("laion2b", key="clip_weights"), path)
    with pytest.raises(ConfigError, match=r"open_clip opened open_clip_model.safetensors: .* each has a digest of its"):
        verified(Weights("laion2b", SHA), path)


def test_what_is_published_is_whole_and_agrees_with_open_clip() -> None:
    ensure_torchvision()
    import open_clip

    assert {one.licence for one in published()} <= {"MIT", "Apache-2.0"}
    for one in published():
        assert one.source and one.link.startswith("https://") and one.megabytes > 0
        for model in one.models:
            known = open_clip.get_pretrained_cfg(model, one.tag)
            assert known, (model, one.tag)
            if one.sha256:
                assert known["url"] == one.link and one.sha256 in one.link
                Weights(one.tag, one.sha256)


def test_no_recipe_of_ours_has_a_digest_that_no_file_has() -> None:
    recipes = sorted((Path(__file__).parents[2] / "manifests" / "recipes").glob("*.toml"))
    assert recipes
    for path in recipes:
        assert not re.search(r'"0{40,}"', path.read_text()), path.name
        load_recipe(path.stem, [] if "data" in path.read_text() else ["data.root=data"])


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


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.module."])
def test_what_wrappers_put_before_every_name_goes(tmp_path: Path, prefix: str) -> None:
    torch.save({f"{prefix}a.b": torch.ones(2), f"{prefix}c": torch.zeros(1)}, tmp_path / "w.pt")
    assert read_tensors(tmp_path / "w.pt").keys() == {"a.b", "c"}
    torch.save({f"{prefix}a": torch.ones(2), "c": torch.zeros(1)}, tmp_path / "w.pt")
    assert read_tensors(tmp_path / "w.pt").keys() == {f"{prefix}a", "c"}  # it is not before every name


class Trainer:
    """An object of some training code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.path, "it ran")


def test_what_lies_beside_the_tensors_is_neither_built_nor_run(tmp_path: Path) -> None:
    """As Detectron2 saves it: NumPy scalars in the schedule, and here an object that would act when it is built."""
    state = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones((), dtype=torch.bfloat16), "c": torch.zeros(0)}
    shared_numbers = torch.arange(10.0)
    state |= {"d": shared_numbers[2:5], "e": shared_numbers[::2], "f": torch.nn.Parameter(torch.ones(2))}
    beside = {"scheduler": {"base_lrs": [np.float64(1e-4)]}, "iteration": np.int64(7)}
    for more in ({}, {"trainer": Trainer(tmp_path / "trace")}, {"args": argparse.Namespace(lr=1), "best": np.ones(3)}):
        torch.save({"model": state, **beside, **more}, tmp_path / "w.pth")
        found = read_tensors(tmp_path / "w.pth")
        assert found.keys() == state.keys()
        for name, tensor in state.items():
            assert torch.equal(found[name], tensor.detach()) and found[name].dtype == tensor.dtype
    assert not (tmp_path / "trace").exists()


def test_a_whole_object_is_refused_by_its_class(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(2, 2), "iteration": 3}, tmp_path / "w.pt")
    with pytest.raises(
        ConfigError, match=r"holds more than tensors \(torch.nn.modules.linear.Linear\).* dict of model, i"
    ):
        read_tensors(tmp_path / "w.pt")
    torch.save({"network": {"a": torch.ones(1)}}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="it holds no dict of tensors by name; it is a dict of network"):
        read_tensors(tmp_path / "w.pt")


class Nested(torch.nn.Module):
    """Two linear maps, one of them inside another module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 4)
        self.rest = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(4, 2, bias=False))
        self.register_buffer("input_resolution", torch.tensor(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.rest(self.first(x))
        return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("half", [False, True])
def test_a_torchscript_archive_is_read_and_its_code_is_not(
    tmp_path: Path, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Nested().half() if half else Nested()
    archive: Any = torch.jit.trace(network.float(), torch.zeros(1, 3))
    torch.jit.save(archive.half() if half else archive, tmp_path / "w.pt")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the archive was opened by torch")

    monkeypatch.setattr(torch.jit, "load", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    found = read_tensors(tmp_path / "w.pt")
    expected = archive.state_dict()
    assert found.keys() == expected.keys() == {"first.weight", "first.bias", "rest.1.weight", "input_resolution"}
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(Nested(), torch.zeros(1, 3)), tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    numbers = Nested().first.weight.numel() * 4
    assert numbers == 48
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        inside = archive.getinfo("w/data/0").header_offset
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[inside + 70] ^= 1
    (tmp_path / "flipped.pt").write_bytes(bytes(flipped))
    for name in ("cut", "flipped"):
        with pytest.raises(ConfigError, match=f"{name}.pt (is cut off|cannot be read as a checkpoint)"):
            read_tensors(tmp_path / f"{name}.pt")


def test_a_file_that_is_none_of_weights_is_refused_for_its_true_reason(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ConfigError, match=r"teacher.clip_weights: .*w.pth is a web page: .* fetch the file"):
        read_tensors(tmp_path / "w.pth", "teacher.clip_weights")


def test_the_older_format_is_read_where_it_holds_tensors_and_else_refused_with_a_command_that_mends_it(
    tmp_path: Path,
) -> None:
    old, new = tmp_path / "old.pth", tmp_path / "new.pth"
    torch.save({"model": {"a": torch.ones(2)}, "iteration": 3}, old, _use_new_zipfile_serialization=False)
    assert read_tensors(old)["a"].tolist() == [1, 1]
    beside = {"scheduler": Trainer(tmp_path / "trace")}
    torch.save({"model": {"a": torch.ones(2)}, **beside}, old, _use_new_zipfile_serialization=False)
    with pytest.raises(ConfigError, match=r"is in the older format .* more than tensors \([\w.]+\), which") as caught:
        read_tensors(old)
    assert not (tmp_path / "trace").exists()
    torch.save({"model": {"a": torch.ones(2)}, "best": np.float64(3)}, old, _use_new_zipfile_serialization=False)
    command = str(caught.value).partition("python -c ")[2].replace("OLD", str(old)).replace("NEW", str(new))
    subprocess.run([sys.executable, "-c", command.strip('"')], check=True)
    assert read_tensors(new)["a"].tolist() == [1, 1]


def test_a_file_is_read_by_what_it_holds_whatever_its_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "w.bin")
    torch.save({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    for name in ("w.bin", "w.safetensors"):
        assert read_tensors(tmp_path / name)["a"].tolist() == [1, 1]


@pytest.mark.parametrize("content", [{}, [torch.ones(1)], {"a": 3}, torch.ones(1)])
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"teacher.dino: .*w.pt cannot be read as a checkpoint: it holds no dict"):
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


def test_half_precision_fills_a_network_and_what_is_no_weight_does_not() -> None:
    network = torch.nn.Linear(2, 1)
    for dtype in (torch.float16, torch.bfloat16):
        fill(network, {"weight": torch.tensor([[1.5, -2]], dtype=dtype), "bias": torch.zeros(1, dtype=dtype)}, "w.pt")
        assert network.weight.tolist() == [[1.5, -2]] and network.weight.dtype == torch.float32
    with pytest.raises(ConfigError, match=r"1 of another kind, such as weight torch.int8 instead of torch.float32"):
        fill(network, {"weight": torch.ones((1, 2), dtype=torch.int8), "bias": torch.zeros(1)}, "w.pt")
    for value in (float("nan"), float("inf"), -float("inf"), 1e300):
        bias = torch.tensor([value], dtype=torch.float64)
        with pytest.raises(ConfigError, match=r"w.pt: of 2 tensors, 1 with values that are not finite, such as bias$"):
            fill(network, {"weight": torch.ones(1, 2), "bias": bias}, "w.pt")
