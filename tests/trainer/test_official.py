"""Checkpoints of SLidR and AFOV: read from every layout, never run, and written so that they can be read back."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from typer.testing import CliRunner

from manifests.sections.network import Architecture as ArchitectureName
from manifests.sections.network import NetworkConfig, VoxelConfig
from tests.records import told
from trainer.__main__ import app
from trainer.checkpoints import checkpoint
from trainer.checkpoints.official import export_official, import_official, is_ours, load, read_document, read_official
from trainer.errors import TrainerError
from trainer.inference.predict import predict
from trainer.loop.train import train
from trainer.network.minkunet import ARCHITECTURES, Architecture, MinkUNet, build_network
from trainer.network.sparse import Minkowski

CONFIG = {"voxel_size": 0.1, "cylindrical_coordinates": True, "model_n_out": 768, "datetime": "220101-0000", "lr": None}
IMAGES = {"model_images.encoder.conv1.weight": torch.ones(2), "criterion.weight": torch.ones(1)}


def small(n_outputs: int = 768, name: ArchitectureName = "minkunet_small") -> nn.Module:
    return build_network(NetworkConfig(name), 1, n_outputs, Minkowski(), generator=torch.Generator().manual_seed(1))


def behind(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


def pretraining_file(weights: dict[str, Tensor]) -> dict[str, Any]:
    return {"model_points": weights, "model_images": {"encoder.x": torch.ones(2)}, "epoch": 40, "config": CONFIG}


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "model_points": pretraining_file,
    "student": lambda weights: {"model_points": weights, "config": CONFIG},
    "several GPUs": lambda weights: {"model_points": behind("module.", weights), "config": CONFIG},
    "encoder": lambda weights: {"model_points": behind("module.encoder.", weights), "config": CONFIG},
    "Lightning, pretraining": lambda weights: {
        "state_dict": behind("model_points.", weights) | IMAGES,
        "epoch": 39,
        "hyper_parameters": CONFIG,
    },
    "Lightning, downstream": lambda weights: {"state_dict": behind("model.", weights), "config": CONFIG},
    "Lightning, wrapped": lambda weights: {"state_dict": behind("model.module.", weights), "config": CONFIG},
    "bare": lambda weights: dict(weights),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_weights(tmp_path: Path, layout: str) -> None:
    network = small()
    weights = dict(network.state_dict())
    torch.save(LAYOUTS[layout](weights), tmp_path / "model.pt")
    found = read_official(tmp_path / "model.pt")
    assert found.weights.keys() == weights.keys()
    assert all(torch.equal(found.weights[name], weights[name]) for name in weights)
    assert found.document.weights == checkpoint.weights_digest(weights)
    told = {} if layout == "bare" else {"coordinates": "cylindrical", "size_m": 0.1, "angle_deg": 1.0}
    assert found.document.config["voxels"] == told
    assert found.document.left_out == (tuple(IMAGES) if layout == "Lightning, pretraining" else ())


@pytest.mark.parametrize("kind", ["parameters", "half precision"])
def test_weights_are_read_as_plain_numbers_whatever_they_were_saved_as(tmp_path: Path, kind: str) -> None:
    network, path = small(17), tmp_path / "kept.pt"
    weights = network.state_dict(keep_vars=True)
    if kind == "half precision":
        weights = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    torch.save({"model_points": weights, "config": CONFIG}, path)
    found = read_official(path)
    assert not any(tensor.requires_grad for tensor in found.weights.values())
    exact = {name: tensor.detach().float() for name, tensor in weights.items()}
    assert all(torch.equal(tensor.float(), exact[name]) for name, tensor in found.weights.items())
    taken = checkpoint.load_initial(small(17), found, VoxelConfig())
    assert len(taken.loaded) == len(weights)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.eye(3).to_sparse(), r"tensor `final.kernel` is torch.sparse_coo"),
        (torch.empty(2, 2, device="meta"), r"tensor `final.kernel` is without values"),
        (
            torch.ones(2, 2, dtype=torch.complex64),
            r"tensor `final.kernel` is .* \(torch.complex64\); expected plain numbers",
        ),
    ],
)
def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path: Path, tensor: Tensor, words: str) -> None:
    path = tmp_path / "odd.pt"
    torch.save({"model_points": {"final.kernel": tensor}, "config": CONFIG}, path)
    with pytest.raises(TrainerError, match=words):
        read_official(path)


def test_every_tensor_that_is_not_loaded_is_named(tmp_path: Path) -> None:
    torch.save(LAYOUTS["Lightning, pretraining"](dict(small().state_dict())), tmp_path / "a.ckpt")
    student = small(17)
    taken = checkpoint.load_initial(student, load(tmp_path / "a.ckpt"), VoxelConfig())
    assert taken.skipped == ("final.kernel", "final.bias", *IMAGES)
    assert set(taken.loaded) == set(student.state_dict()) - {"final.kernel", "final.bias"}
    assert "left out: final.kernel, final.bias, model_images.encoder.conv1.weight" in taken.sentence()


def test_the_37_million_weights_of_the_reference_fit_by_name_and_shape(shared: Path, tmp_path: Path) -> None:
    import json

    keys = json.loads((shared / "design/checkpoints/minkunet34c.keys.json").read_text())["state_dict"]
    weights = {key["key"]: torch.zeros(key["shape"], dtype=getattr(torch, key["dtype"])) for key in keys}
    torch.save(pretraining_file(weights), tmp_path / "model.pt")
    taken = checkpoint.load_initial(small(17, "minkunet34c"), load(tmp_path / "model.pt"), VoxelConfig())
    assert (len(taken.loaded), taken.skipped, taken.absent) == (372, ("final.kernel", "final.bias"), ())


def test_the_reference_and_we_compute_the_same_from_its_file(shared: Path) -> None:
    """The slim network of the golden files, whose weights and outputs the reference implementation wrote."""
    golden = np.load(shared / "golden/backbone_slim_seed0.npz")
    slim = Architecture(4, (4, 8, 16, 32, 32, 16, 12, 12), ARCHITECTURES["minkunet34c"].blocks)
    network = MinkUNet(slim, NetworkConfig(), 1, 16, Minkowski(), normalise_output=True).eval()
    taken = checkpoint.load_initial(network, load(shared / "golden/backbone_slim_seed0.pt"), VoxelConfig())
    assert (taken.skipped, taken.absent) == ((), ())
    assert taken.unchecked == ("coordinates", "size_m", "angle_deg") and "not compared" in taken.sentence()
    with torch.no_grad():
        output = network(torch.from_numpy(golden["coords"]), torch.from_numpy(golden["feats"]))
    np.testing.assert_allclose(output.numpy(), golden["eval_out"], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"voxel_size": 0.2}, r"voxels.size_m: 0.2 -> 0.1"),
        ({"cylindrical_coordinates": False}, r'voxels.coordinates: "cartesian" -> "cylindrical"'),
        ({"voxel_size": "fine"}, r"voxel_size 'fine'.*expected a number of metres"),
    ],
)
def test_other_voxels_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    torch.save({"model_points": small().state_dict(), "config": CONFIG | changes}, tmp_path / "model.pt")
    with pytest.raises(TrainerError, match=words):
        checkpoint.load_initial(small(17), load(tmp_path / "model.pt"), VoxelConfig())


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    torch.save({"model_points": small().state_dict(), "config": CONFIG}, tmp_path / "model.pt")
    with pytest.raises(TrainerError, match=r"of another network: \d+ of its tensors.*conv0p1s1.kernel"):
        checkpoint.load_initial(small(17, "minkunet34c"), load(tmp_path / "model.pt"), VoxelConfig())


# -- what is no checkpoint ---------------------------------------------------------------------------------------------


class Bomb:
    """Explodes when it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was run",)


def cut(path: Path) -> None:
    torch.save(pretraining_file(dict(small().state_dict())), path)
    path.write_bytes(path.read_bytes()[:5000])


FOREIGN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (cut, "is cut off after 5,000 bytes"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(Bomb())), "is a plain pickle"),
    "bomb": (lambda path: torch.save({"model_points": Bomb()}, path), "asks to run code"),
    "list": (lambda path: torch.save([torch.ones(1)], path), "holds list and no dictionary"),
    "optimiser": (lambda path: torch.save({"optimizer": {}, "epoch": 3}, path), "it holds epoch, optimizer"),
    "infinite": (
        lambda path: torch.save({"state_dict": {"model.x": torch.tensor(torch.inf)}}, path),
        "tensor `x` holds values that are not finite",
    ),
    "twice": (
        lambda path: torch.save({"state_dict": {"model.x": torch.ones(1), "module.x": torch.ones(1)}}, path),
        "two tensors `x`",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_checkpoint_is_a_sentence(tmp_path: Path, kind: str) -> None:
    write, words = FOREIGN[kind]
    path = tmp_path / "model.pt"
    write(path)
    with pytest.raises(TrainerError, match=words):
        load(path)


def test_objects_of_lightning_beside_the_weights_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning keeps its callbacks in the file, by class: they are read as things that do nothing."""
    import sys
    import types

    class ModelCheckpoint:
        def __setstate__(self, _: Any) -> None:
            pytest.fail("a callback was run")

    module = types.ModuleType("pytorch_lightning.callbacks")
    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = module.__name__, "ModelCheckpoint"
    module.ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    callback = ModelCheckpoint()
    callback.__dict__["best"] = np.float64(0.5)
    weights = dict(small().state_dict())
    content = {"state_dict": behind("model.", weights), "callbacks": {ModelCheckpoint: callback}, "config": CONFIG}
    torch.save(content, tmp_path / "last.ckpt")
    assert read_official(tmp_path / "last.ckpt").weights.keys() == weights.keys()


# -- in a run ----------------------------------------------------------------------------------------------------------


def test_an_official_file_starts_a_run(fleet: Any, console: Console, capsys: Any) -> None:
    path = fleet.folder / "minkunet_slidr.pt"
    torch.save(pretraining_file(dict(small().state_dict())), path)
    with pytest.raises(TrainerError, match=r"voxels.angle_deg: 1.0 -> 4.0, voxels.size_m: 0.1 -> 0.4"):
        train(fleet.recipe(f"distill.init={path}"), "distill", console)
    words = ("voxels.size_m=0.1", "voxels.angle_deg=1.0", "distill.epochs=1")
    result = train(fleet.recipe(f"distill.init={path}", *words), "distill", console)
    assert "left out: final.kernel, final.bias\n" in capsys.readouterr().out
    assert told(checkpoint.read_document(result).identity).init == read_document(path).weights


def test_export_and_import_come_full_circle(fleet: Any, console: Console) -> None:
    run = CliRunner()
    trained = train(fleet.recipe("voxels.angle_deg=1", "distill.epochs=1"), "distill", console)
    out = fleet.folder / "ours.pt"
    done = run.invoke(app, ["export", str(trained), str(out)])
    assert done.exit_code == 0, done.output
    content = torch.load(out, weights_only=True)
    assert content["config"]["voxel_size"] == 0.4 and content["config"]["model_n_out"] == 4
    assert not is_ours(out) and read_document(out).weights == checkpoint.read_document(trained).weights

    words = ["import", str(fleet.recipe_path), str(out), "--set", "voxels.angle_deg=1"]
    done = run.invoke(app, words)
    assert done.exit_code == 0, done.output
    imported = fleet.folder / "runs/street/imported/ours.safetensors"
    assert is_ours(imported) and str(imported) in done.output
    assert checkpoint.load(imported).document.weights == checkpoint.read_document(trained).weights
    tables = [
        predict(fleet.recipe("voxels.angle_deg=1", f"predict.checkpoint={path}"), console)
        for path in (trained, out, imported)
    ]
    assert tables[0] == tables[1] == tables[2], "the same weights make the same table"

    refused = run.invoke(app, ["import", str(fleet.recipe_path), str(out)])
    assert refused.exit_code == 1 and "voxels.angle_deg: 1.0 -> 4.0" in refused.output


def test_what_an_export_says_of_its_weights_outlives_an_import(fleet: Any, console: Console) -> None:
    """Unit output vectors, and that true labels took part."""
    recipe = fleet.recipe("voxels.angle_deg=1", "supervised.epochs=1", "pretrain.epochs=1")
    folder = fleet.folder / "imported"
    said = {}
    for task in ("pretrain", "supervised"):
        file = fleet.folder / f"{task}.pt"
        export_official(train(recipe, task, console), file)
        imported = import_official(recipe, file, folder / task / "epoch-0001.safetensors", Minkowski())
        export_official(imported.path, file)
        said[task] = torch.load(file, weights_only=True)["config"]["normalize_features"]
    assert said == {"pretrain": True, "supervised": False}
    words = ("voxels.angle_deg=1", "distill.epochs=1", f"distill.init={folder}/supervised")
    assert checkpoint.read_document(train(fleet.recipe(*words), "distill", console)).reads_labels is True


def test_voxels_that_the_official_layout_cannot_tell_are_not_exported(fleet: Any, console: Console) -> None:
    trained = train(fleet.recipe("distill.epochs=1"), "distill", console)
    refused = CliRunner().invoke(app, ["export", str(trained), str(fleet.folder / "ours.pt")])
    assert refused.exit_code == 1 and "sectors of 4.0 degrees" in refused.output
    assert not (fleet.folder / "ours.pt").exists()
