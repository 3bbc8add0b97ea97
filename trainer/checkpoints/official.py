"""Checkpoints in the layout of SLidR and AFOV: read without running what they pickle, and written.

Such a file is a dictionary: the weights of the point network under `model_points` (a `.pt` file) or, beside those of
other networks, under `state_dict` (a Lightning `.ckpt`), and often a `config` with the voxels they were trained on.
Layers bear the names they have here, behind any of the prefixes `model.`, `model_points.`, `module.`, `encoder.`.
"""

from __future__ import annotations

import os
import pickle
import re
import secrets
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manifests.config import parse_section
from manifests.fingerprint import Settings
from manifests.foreign import instead_of_weights
from manifests.provenance import TRAINER_PACKAGES, made_by, package_versions
from manifests.recipe import Recipe
from manifests.records.checkpoint import CheckpointRecord
from manifests.sections.network import VoxelConfig
from trainer.checkpoints import checkpoint
from trainer.checkpoints.checkpoint import Checkpoint, InitialWeights
from trainer.errors import TrainerError
from trainer.network.minkunet import build_network
from trainer.network.sparse import Engine

ANGLE_DEG = 1.0
"""The one sector that the reference implementation cuts cylindrical voxels into; its configuration does not tell."""

_PREFIXES = re.compile(r"(?:(?:model|model_points|module|encoder)\.)+")
_BYSTANDERS = ("pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics", "numpy", "argparse")
"""Packages whose objects lie in Lightning's files beside the weights; nothing of theirs is run or needed."""


class Bystander:
    """Stands in for an object that is no tensor: it takes whatever it is given and does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def load(path: Path) -> Checkpoint:
    """Return a checkpoint of ours or an official one, on the CPU; raises TrainerError like `checkpoint.load`."""
    return checkpoint.load(path) if is_ours(path) else read_official(path)


def read_document(path: Path) -> CheckpointRecord:
    """Return the document of a checkpoint, ours or official; raises TrainerError like `load`."""
    return checkpoint.read_document(path) if is_ours(path) else read_official(path).document


def is_ours(path: Path) -> bool:
    """Return whether a file is to be read as a safetensors file: by its first bytes, as names may be anything."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError:
        return True  # `checkpoint` has the sentence for it
    return path.suffix == ".safetensors" or start[8:] == b"{"


def read_official(path: Path) -> Checkpoint:
    """Return an official checkpoint.

    Its document has `weights`, `epoch` where the file tells it, `n_outputs` of the head, in `config` the section
    `voxels` as far as the file tells, and in `left_out` the tensors that are not of the point network. Raises
    TrainerError for a file that is damaged, holds anything but weights and plain values, or has no point network.
    """
    content = unpickled(path)
    source = next((key for key in ("model_points", "state_dict") if isinstance(content.get(key), Mapping)), None)
    tensors = content[source] if source else content
    named = {name: value for name, value in tensors.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not named or (source is None and len(named) < len(content)):
        raise TrainerError(
            f"{path} holds no weights of a point network: expected `model_points`, `state_dict`, or tensors by name; "
            f"it holds {', '.join(sorted(map(str, content))[:6]) or 'nothing'}"
        )
    weights: dict[str, Tensor] = {}
    left_out = []
    prefixed = source == "state_dict" and any(_PREFIXES.match(name) for name in named)
    for name, tensor in named.items():
        bare = _PREFIXES.sub("", name, count=1) if _PREFIXES.match(name) else name
        if prefixed and bare == name:  # of another network, or of a loss
            left_out.append(name)
        elif bare in weights:
            raise TrainerError(f"{path} holds two tensors `{bare}` behind different prefixes; take one of them out")
        else:
            weights[bare] = plain_tensor(bare, tensor, path)
    epoch, config = content.get("epoch"), content.get("config", content.get("hyper_parameters"))
    document = CheckpointRecord(
        format=checkpoint.FORMAT,
        task="official",
        epoch=epoch if isinstance(epoch, int) else None,
        config={"voxels": voxels_of(content, path)},
        n_outputs=weights["final.kernel"].shape[-1] if "final.kernel" in weights else None,
        left_out=tuple(left_out),
        unit_output=isinstance(config, Mapping) and config.get("normalize_features") is True,
        reads_labels=content.get("reads_labels") is True,  # what we wrote says so; what others wrote tells nothing
        weights=checkpoint.weights_digest(weights),
    )
    return Checkpoint(path, {f"model.{name}": tensor for name, tensor in weights.items()}, document)


def plain_tensor(name: str, tensor: Tensor, path: Path) -> Tensor:
    """Return a tensor, or a parameter, as plain numbers, floats in float32.

    Raises TrainerError for one without numbers that lie in memory.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_complex():
        kind = "quantised" if tensor.is_quantized else "without values" if tensor.is_meta else str(tensor.layout)
        raise TrainerError(f"{path}: tensor `{name}` is {kind} ({tensor.dtype}); expected plain numbers in memory")
    plain = tensor.detach()
    if not plain.isfinite().all():
        raise TrainerError(f"{path}: tensor `{name}` holds values that are not finite; fetch the file again")
    return (plain.float() if plain.is_floating_point() else plain).contiguous()


def unpickled(path: Path) -> Mapping[Any, Any]:
    """Return the dictionary in a file of torch, unpickled by torch's reader of weights, which runs nothing.

    Raises TrainerError for anything that it refuses.
    """
    if path.is_file():
        with path.open("rb") as file:
            instead = instead_of_weights(file)
        if instead:
            raise TrainerError(f"{path} {instead}")
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not a zip archive: an old file of torch, or none; the next lines tell
        named = []
    foreign = sorted(name for name in named if name.partition(".")[0] not in _BYSTANDERS)
    if foreign:
        raise TrainerError(
            f"{path} asks to run code that is no weight ({', '.join(foreign[:4])}); it was not opened. Where you trust "
            "it, save its `model_points` or `state_dict` alone"
        )
    try:
        with torch.serialization.safe_globals([(Bystander, name) for name in named]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle's protocol: it is read or refused all the same
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise TrainerError(f"{path} is no checkpoint, or a damaged one: {reason}") from None
    if not isinstance(content, Mapping):
        raise TrainerError(f"{path} holds {type(content).__name__} and no dictionary; it is no checkpoint")
    return content


def voxels_of(content: Mapping[Any, Any], path: Path) -> Settings:
    """Return what the `config` in a file says of voxels, as keys of VoxelConfig; empty where there is none."""
    config = content.get("config", content.get("hyper_parameters"))
    if not isinstance(config, Mapping) or "voxel_size" not in config or "cylindrical_coordinates" not in config:
        return {}
    size, cylindrical = config["voxel_size"], config["cylindrical_coordinates"]
    if not isinstance(size, int | float) or not isinstance(cylindrical, bool):
        raise TrainerError(
            f"{path}: its config says voxel_size {size!r} and cylindrical_coordinates {cylindrical!r}; expected a "
            "number of metres, and true or false"
        )
    if cylindrical:
        return {"coordinates": "cylindrical", "size_m": float(size), "angle_deg": ANGLE_DEG}
    return {"coordinates": "cartesian", "size_m": float(size)}


@dataclass(frozen=True)
class Imported:
    """An official checkpoint that was written as one of ours, and what of it was taken over."""

    path: Path
    taken: InitialWeights


def import_official(recipe: Recipe, file: Path, path: Path, engine: Engine) -> Imported:
    """Write an official checkpoint as one of ours, with the recipe's voxels in its document.

    Raises TrainerError unless the file fits the recipe's network and voxels.
    """
    found = read_official(file)
    head = found.weights.get("final.kernel")
    if head is None or head.ndim != 2:
        raise TrainerError(f"{file} has no layer `final.kernel` of two axes; it is of another network")
    network = build_network(recipe.network, 1, head.shape[1], engine)
    taken = checkpoint.load_initial(network, found, recipe.voxels)
    names = recipe.ontology.class_names
    document = replace(
        found.document,
        recipe=recipe.name,
        config={"voxels": asdict(recipe.voxels), "network": asdict(recipe.network)},
        class_names=names if head.shape[1] == len(names) else None,
        imported=file.name,
        unchecked=taken.unchecked,
        versions=package_versions(TRAINER_PACKAGES),
        commit=made_by().commit,
    )
    weights = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    checkpoint.write(path, weights, document)
    return Imported(path, taken)


def export_official(file: Path, path: Path) -> list[str]:
    """Write a checkpoint of ours in the official layout; return sentences on what that layout cannot say.

    Raises TrainerError if it was trained on voxels that the reference implementation does not know, or if the file
    cannot be written.
    """
    found = checkpoint.load(file)
    document = found.document
    voxels = parse_section("voxels", document.config.get("voxels", {}), VoxelConfig)
    network = document.config.get("network", {})
    if voxels.coordinates == "cylindrical" and voxels.angle_deg != ANGLE_DEG:
        raise TrainerError(
            f"{file} was trained on sectors of {voxels.angle_deg} degrees; the official layout knows {ANGLE_DEG:g} "
            "degree alone, and would be read wrongly"
        )
    config = {
        "voxel_size": voxels.size_m,
        "cylindrical_coordinates": voxels.coordinates == "cylindrical",
        "use_intensity": True,
        "model_points": "minkunet",
        "model_n_out": found.weights["final.kernel"].shape[1],
        "normalize_features": document.task == "pretrain" or bool(document.unit_output),
        "kernel_size": network.get("stem_kernel_size", 3),
        "bn_momentum": network.get("batch_norm_momentum"),
    }
    scratch = path.with_name(f"{path.stem}.{secrets.token_hex(8)}.tmp")  # torch refuses names that start with a dot
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"model_points": found.weights, "epoch": document.epoch, "config": config}
        torch.save({**content, "reads_labels": document.reads_labels}, scratch)
        os.replace(scratch, path)
    except (OSError, RuntimeError) as error:
        raise TrainerError(f"{path} cannot be written: {error}") from None
    finally:
        scratch.unlink(missing_ok=True)
    notes = []
    if network.get("name", "minkunet34c") != "minkunet34c":
        notes.append(f"The reference implementation has no network {network['name']}; only ours can read it back.")
    default = VoxelConfig()
    scale = (voxels.intensity_scale, voxels.intensity_offset)
    if scale != (default.intensity_scale, default.intensity_offset):
        notes.append(f"The network saw intensity * {scale[0]:g} + {scale[1]:g}, which the official layout cannot say.")
    return notes
