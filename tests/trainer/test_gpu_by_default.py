"""A GPU is used without being asked for, and where one is not used it is said; torch's sight of it is faked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from manifests.labels import predict_identity
from manifests.learnt import settings_of
from manifests.sections.data import RunConfig
from manifests.sections.network import NetworkConfig
from trainer.inference.predict import predict
from trainer.loop import device as module
from trainer.loop.device import unused_gpu
from trainer.loop.train import train
from trainer.machine import look_at
from trainer.network import sparse
from trainer.network.sparse import engine_for, open_engine


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch see a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100")


def built_for_cuda(monkeypatch: pytest.MonkeyPatch, is_so: bool) -> None:
    monkeypatch.setattr(sparse, "_installed", lambda package: True)
    monkeypatch.setattr(sparse.Minkowski, "cuda_usable", lambda self: is_so)


# -- the engine


@pytest.mark.parametrize(("is_so", "device", "engine"), [(True, "auto", "minkowski"), (False, "auto", "torch")])
def test_the_torch_engine_is_taken_where_minkowski_cannot_use_the_gpu(
    gpu: None, monkeypatch: pytest.MonkeyPatch, is_so: bool, device: str, engine: str
) -> None:
    built_for_cuda(monkeypatch, is_so)
    assert engine_for(device) == engine
    assert engine_for("cpu") == "minkowski", "the GPU is not asked for"


def test_a_build_that_does_not_load_beside_a_gpu_is_passed_over(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    built_for_cuda(monkeypatch, True)

    def broken(self: Any) -> bool:
        raise ImportError("libcudart.so.11: cannot open shared object file")

    monkeypatch.setattr(sparse.Minkowski, "cuda_usable", broken)
    assert open_engine("auto").name == "torch"


def test_without_minkowski_the_torch_engine_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "_installed", lambda package: False)
    assert open_engine("auto").name == "torch"
    monkeypatch.setattr(sparse, "_installed", lambda package: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert engine_for("auto") == "minkowski", "as ever"


def test_the_choice_moves_no_identity(fleet: Any) -> None:
    """Those of stores and runs from before "auto", whose default was MinkowskiEngine, stay what they are."""
    plain, named = fleet.recipe(), fleet.recipe("network.engine=minkowski")
    assert plain.network.engine == "auto" and NetworkConfig().content() == {}
    assert predict_identity(plain, "w", "p") == predict_identity(named, "w", "p")
    assert settings_of(plain, "distill") == settings_of(named, "distill")
    other = fleet.recipe("network.engine=torch")
    assert predict_identity(other, "w", "p").settings["engine"] == "torch"
    assert settings_of(other, "distill")["network"] == {"name": "minkunet_small", "engine": "torch"}


# -- what is said


def test_a_gpu_that_is_not_used_is_told(gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert unused_gpu(torch.device("cuda", 0)) == ""
    said = unused_gpu(torch.device("cpu"))
    assert said.startswith("A GPU IS HERE AND NOT USED: NVIDIA H100.") and 'network.engine = "auto"' in said
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module, "DRIVER", tmp_path / "version")
    assert unused_gpu(torch.device("cpu")) == "", "there is none"
    (tmp_path / "version").touch()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "a driver of NVIDIA is loaded, but torch" in unused_gpu(torch.device("cpu"))
    assert "is built for the CPU alone; docs/gpu.md" in unused_gpu(torch.device("cpu"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "of CUDA 13.0 cannot use it" in unused_gpu(torch.device("cpu"))


def test_training_and_prediction_say_so(
    fleet: Any, console: Console, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "version").touch()
    monkeypatch.setattr(module, "DRIVER", tmp_path / "version")
    recipe = fleet.recipe("distill.epochs=1")
    train(recipe, "distill", console)
    assert capsys.readouterr().out.count("A GPU IS HERE AND NOT USED") == 1
    predict(recipe, console)
    assert capsys.readouterr().out.count("A GPU IS HERE AND NOT USED") == 1
    assert look_at(recipe).unused.startswith("A GPU IS HERE AND NOT USED")
    assert "A GPU IS HERE AND NOT USED" in " ".join(look_at(recipe).sentences())


# -- Ray's workers


def test_workers_get_a_gpu_each_where_the_cluster_has_any(fleet: Any) -> None:
    from pipeline.engine.ray_pool import with_gpus

    recipe = fleet.recipe("run.pool=ray")
    assert recipe.run.gpus_per_worker == "auto" and recipe.run.asks_for_gpus and recipe.run.gpu_share == 0
    on_auto = replace(recipe, run=replace(recipe.run, device="auto"))
    assert with_gpus(on_auto, 8.0).run.gpus_per_worker == 1.0
    assert with_gpus(on_auto, 0.0).run.gpus_per_worker == 0.0
    assert with_gpus(recipe, 8.0).run.gpus_per_worker == 0.0, 'the fleet has run.device = "cpu"'
    fixed = replace(recipe, run=RunConfig(gpus_per_worker=0.25))
    assert with_gpus(fixed, 8.0) is fixed
