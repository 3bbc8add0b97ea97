"""Weights of FC-CLIP from one official file or two: which are read, and what is said of those that are none."""

import pickle
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manifests.config import ConfigError
from pipeline.frame import Frame
from pipeline.teachers.fcclip import FcClip
from pipeline.teachers.networks.fcclip import build_fcclip
from tests.pipeline.street import Foreign, cut_off, street_in
from tests.pipeline.test_fcclip import SIZES, recipe_at


@pytest.fixture
def street(tmp_path: Path) -> Frame:
    return street_in(tmp_path, **SIZES)


def official_name(name: str) -> str:
    """The official name of one of our tensors, written down once more in the other direction."""
    head, pixels = "sem_seg_head.predictor.", "sem_seg_head.pixel_decoder."
    if name.startswith("clip."):
        return "backbone.clip_model." + name.removeprefix("clip.")
    if name.startswith("pixel_decoder.encoder."):
        for ours, theirs in (("self_attn_layer_norm", "norm1"), ("final_layer_norm", "norm2"), (".fc", ".linear")):
            name = name.replace(ours, theirs)
        return name.replace("pixel_decoder.", f"{pixels}transformer.")
    if name.startswith("pixel_decoder."):
        for ours, theirs in (
            ("pixel_decoder.level_embed", "pixel_decoder.transformer.level_embed"),
            ("input_projections", "input_proj"),
            ("mask_projection", "mask_features"),
            ("_1.0.weight", "_1.weight"),
            ("_1.1.", "_1.norm."),
        ):
            name = name.replace(ours, theirs)
        return name.replace("pixel_decoder.", pixels)
    if name.startswith("decoder.decoder.layers."):
        number, part, rest = name.removeprefix("decoder.decoder.layers.").split(".", 2)
        layer, inner = {
            "self_attn": ("self_attention", "self_attn"),
            "self_attn_layer_norm": ("self_attention", "norm"),
            "cross_attn": ("cross_attention", "multihead_attn"),
            "cross_attn_layer_norm": ("cross_attention", "norm"),
            "fc1": ("ffn", "linear1"),
            "fc2": ("ffn", "linear2"),
            "final_layer_norm": ("ffn", "norm"),
        }[part]
        return f"{head}transformer_{layer}_layers.{number}.{inner}.{rest}"
    for ours, theirs in (
        ("decoder.decoder.layernorm.", f"{head}decoder_norm."),
        ("decoder.queries_features.", f"{head}query_feat."),
        ("decoder.queries_embedder.", f"{head}query_embed."),
        ("decoder.level_embed.", f"{head}level_embed."),
        ("pooled_proj.", f"{head}_mask_pooling_proj."),
        ("class_embed.", f"{head}class_embed.layers."),
        ("logit_scale", f"{head}logit_scale"),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def official_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state = dict(state)
    official = {"criterion.empty_weight": torch.ones(3)}
    for name in list(state):
        if ".self_attn.q_proj." in name and name.startswith("decoder."):
            parts = [state.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
            joint = name.replace("q_proj.", "in_proj_")
            number, _, rest = joint.removeprefix("decoder.decoder.layers.").partition(".")
            official[f"sem_seg_head.predictor.transformer_self_attention_layers.{number}.{rest}"] = torch.cat(parts)
    for name, tensor in state.items():
        if "mask_embedder" in name:
            number, _, rest = name.removeprefix("decoder.decoder.mask_predictor.mask_embedder.").split(".")
            official[f"sem_seg_head.predictor.mask_embed.layers.{number}.{rest}"] = tensor
        else:
            official[official_name(name)] = tensor
    return official


def pinned(path: Path) -> dict[str, Any]:
    return {"weights": str(path), "weights_sha256": sha256(path.read_bytes()).hexdigest()}


def test_a_file_in_the_official_layout_gives_the_network_it_was_saved_from(tmp_path: Path, street: Frame) -> None:
    network, _ = build_fcclip("tiny-convnext", seed=7)
    path = tmp_path / "fcclip.pth"
    torch.save({"model": official_state(network.state_dict())}, path)
    from_file = FcClip.load(recipe_at(tmp_path, **pinned(path)), "encode").encode(street)
    from_seed = FcClip.load(recipe_at(tmp_path, weights="random:7"), "encode").encode(street)
    for name, part in from_seed.items():
        np.testing.assert_array_equal(part, from_file[name])


def test_the_published_size_loads_by_recipe_from_two_files(tmp_path: Path) -> None:
    """The files' tensors are one number each, spread out, so that a network of a gigabyte has small files."""
    with torch.device("meta"):
        network, _ = build_fcclip("convnext_large_d_320")
    spread = {name: torch.tensor(0.25).expand(tensor.shape) for name, tensor in network.state_dict().items()}
    official = official_state(spread)
    head = {name: tensor for name, tensor in official.items() if not name.startswith("backbone.")}
    torch.save({"model": head}, tmp_path / "head.pth")
    clip = {name.removeprefix("clip."): tensor for name, tensor in spread.items() if name.startswith("clip.")}
    torch.save(clip, tmp_path / "clip.bin")
    digest = sha256((tmp_path / "clip.bin").read_bytes()).hexdigest()
    recipe = recipe_at(
        tmp_path,
        model="convnext_large_d_320",
        clip_weights=str(tmp_path / "clip.bin"),
        clip_weights_sha256=digest,
        **pinned(tmp_path / "head.pth"),
    )
    teacher = FcClip.load(recipe, "text")
    assert teacher.network is not None
    assert all((tensor.view(-1)[-1] == 0.25).item() for tensor in teacher.network.state_dict().values())


def two_files(folder: Path, network: Any) -> dict[str, Any]:
    """A head without CLIP, and CLIP alone as open_clip saves it; the settings that name both."""
    official = official_state(network.state_dict())
    head = {name: tensor for name, tensor in official.items() if not name.startswith("backbone.")}
    torch.save({"model": head, "iteration": 0}, folder / "head.pth")
    torch.save(network.clip.state_dict(), folder / "clip.bin")
    digest = sha256((folder / "clip.bin").read_bytes()).hexdigest()
    clip = {"clip_weights": str(folder / "clip.bin"), "clip_weights_sha256": digest}
    return {**pinned(folder / "head.pth"), **clip}


def test_a_head_without_clip_and_clip_in_a_file_of_its_own_give_the_same_network(tmp_path: Path, street: Frame) -> None:
    network, _ = build_fcclip("tiny-convnext", seed=7)
    recipe = recipe_at(tmp_path, **two_files(tmp_path, network))
    from_files = FcClip.load(recipe, "encode").encode(street)
    for name, part in FcClip.load(recipe_at(tmp_path, weights="random:7"), "encode").encode(street).items():
        np.testing.assert_array_equal(part, from_files[name])
    text = FcClip.load(recipe, "text").text(("car", "road"))
    np.testing.assert_array_equal(
        text, FcClip.load(recipe_at(tmp_path, weights="random:7"), "text").text(("car", "road"))
    )


def test_what_the_head_s_file_holds_of_clip_counts_as_in_the_reference(tmp_path: Path) -> None:
    network, _ = build_fcclip("tiny-convnext", seed=7)
    settings = two_files(tmp_path, network)
    head = torch.load(tmp_path / "head.pth")
    head["model"]["backbone.clip_model.logit_scale"] = torch.tensor(1.5)
    torch.save(head, tmp_path / "head.pth")
    teacher = FcClip.load(recipe_at(tmp_path, **settings | pinned(tmp_path / "head.pth")), "text")
    assert teacher.network is not None and teacher.network.clip.logit_scale.item() == 1.5


def test_a_clip_that_is_not_pinned_is_refused_with_the_line_to_add(tmp_path: Path) -> None:
    network, _ = build_fcclip("tiny-convnext", seed=7)
    settings = two_files(tmp_path, network)
    digest = settings.pop("clip_weights_sha256")
    with pytest.raises(ConfigError, match=f'clip_weights_sha256 = "{digest}" into section'):
        FcClip.load(recipe_at(tmp_path, **settings), "encode")


def test_a_head_without_clip_says_which_file_is_wanting(tmp_path: Path) -> None:
    network, _ = build_fcclip("tiny-convnext", seed=7)
    two_files(tmp_path, network)
    with pytest.raises(
        ConfigError, match=r"tensors of the CLIP under them are not in it; .* give that as clip_weights"
    ):
        FcClip.load(recipe_at(tmp_path, **pinned(tmp_path / "head.pth")), "encode")


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ({"text_projection": None}, "teacher.clip_weights: .*clip.bin is not .* 1 missing, such as clip.text_pro"),
        ({"text_projection": torch.ones(3)}, "teacher.clip_weights: .*clip.bin is not .* 1 of another shape"),
        ({"logit_scale": torch.tensor(torch.inf)}, "teacher.clip_weights: .*clip.bin is not .* not finite, such as cl"),
        ({"more": torch.ones(3)}, "teacher.clip_weights: .*clip.bin is not .* 1 not expected, such as clip.more"),
        ({"attn_mask": torch.full((77, 77), -torch.inf)}, ""),
    ],
)
def test_a_fault_of_clip_s_file_is_told_of_clip_s_file(tmp_path: Path, spoilt: dict[str, Any], message: str) -> None:
    network, _ = build_fcclip("tiny-convnext", seed=7)
    settings = two_files(tmp_path, network)
    state = {name: one for name, one in {**network.clip.state_dict(), **spoilt}.items() if one is not None}
    torch.save(state, tmp_path / "clip.bin")
    settings["clip_weights_sha256"] = sha256((tmp_path / "clip.bin").read_bytes()).hexdigest()
    if not message:
        FcClip.load(recipe_at(tmp_path, **settings), "text")
        return
    with pytest.raises(ConfigError, match=message):
        FcClip.load(recipe_at(tmp_path, **settings), "text")


def test_a_fault_of_the_head_s_file_is_told_of_the_head_s_file(tmp_path: Path) -> None:
    network, _ = build_fcclip("tiny-convnext", seed=7)
    settings = two_files(tmp_path, network)
    head = torch.load(tmp_path / "head.pth")
    del head["model"]["sem_seg_head.predictor.logit_scale"]
    torch.save(head, tmp_path / "head.pth")
    with pytest.raises(ConfigError, match=r"teacher.weights: .*head.pth is not .* 1 missing, such as logit_scale$"):
        FcClip.load(recipe_at(tmp_path, **settings | pinned(tmp_path / "head.pth")), "text")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: torch.save({"model": {"a": torch.ones(2)}}, path), "is not a checkpoint of FC-CLIP on tiny"),
        (lambda path: cut_off(path), "w.pth is cut off after"),
        (lambda path: path.write_bytes(pickle.dumps(Foreign(), protocol=2)), "w.pth is a plain pickle"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "w.pth"
    write(path)
    with pytest.raises(ConfigError, match=message):
        FcClip.load(recipe_at(tmp_path, **pinned(path)), "encode")
