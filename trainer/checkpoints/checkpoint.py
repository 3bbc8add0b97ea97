"""Checkpoints: what a network has learnt and all that it takes to go on, as one safetensors file; no pickles.

The file carries a digest of all its bytes (`manifests.storage.sealed`), its document one of its own, as it is also read
alone. Files of format 1, written before, have one of their weights.

Tensors are named `model.<name>`, `optimiser.<what>.<name>` (what it keeps of every weight, such as `momentum_buffer`),
`random.<source>` (states of the random generators) and, where a run keeps a moving average, `average.<name>`: the
weights that count, `model.` being those it goes on from. Under the key `checkpoint` the header holds one JSON document:
task, epoch, step, the recipe's sections, identities and shards of the tables that were seen, the class dictionary,
versions, seed, and a digest of the weights. One file is kept per epoch, and `running.safetensors` is the state in the
middle of one. Two states at least are kept, so that there is one to go on from where the newest is damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from manifests.fingerprint import DIGITS, differences
from manifests.recipe import Recipe
from manifests.records.checkpoint import CheckpointRecord
from manifests.records.codec import Unfit, as_document, as_record
from manifests.sections.network import VoxelConfig
from manifests.storage import sealed
from trainer.errors import TrainerError

FORMAT = sealed.SEALED_SINCE
_READABLE = (1, FORMAT)
_KEY, _OF_DOCUMENT, _OF_FILE = "checkpoint", "document_sha256", "seal"  # what the header holds
_SCRATCH = ".tmp-"
_FILE = re.compile(r"epoch-(\d+)\.safetensors")


EARLIER = "; use an earlier one"
"""What the error for a damaged file says for want of the run that it is of."""


class DamagedCheckpoint(TrainerError):
    """A file that is no checkpoint, or is not any more what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: its tensors by name, and its JSON document."""

    path: Path
    tensors: Mapping[str, Tensor]
    document: CheckpointRecord

    @property
    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers of the network to predict with and to start from, by name."""
        return weights_of(self.tensors)


@dataclass(frozen=True)
class InitialWeights:
    """What a network took over from a checkpoint: tensors loaded, those of another shape or unknown to the network,
    and those of the network that the checkpoint does not have; and settings that the checkpoint does not tell.
    """

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]
    absent: tuple[str, ...]
    unchecked: tuple[str, ...] = ()

    def sentence(self) -> str:
        """Return what was taken over and what was not, by name."""
        text = f"{len(self.loaded)} tensors taken over"
        for what, names in (("left out", self.skipped), ("not in the checkpoint", self.absent)):
            text += f"; {what}: {', '.join(names)}" if names else ""
        if self.unchecked:
            text += f"; it does not say on which voxels it was trained ({', '.join(self.unchecked)}): not compared"
        return text


def save(
    path: Path,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    document: CheckpointRecord,
    average: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint that is there whole or not at all, even where the process is killed meanwhile.

    `average` are the moving averages of the network's parameters, by name, where the run keeps them. Raises
    TrainerError where it cannot be written (disk full, no rights); earlier files are left as they are.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
    for name, parameter in network.named_parameters():
        for what, value in optimiser.state[parameter].items():
            if value is not None:
                tensors[f"optimiser.{what}.{name}"] = value.detach().cpu().contiguous()
    if average is not None:
        averaged = weights | {name: tensor.cpu().contiguous() for name, tensor in average.items()}
        tensors |= {f"average.{name}": tensor.clone() for name, tensor in averaged.items()}  # buffers stand in both
    tensors |= {f"random.{source}": state for source, state in random_states().items()}
    write(path, tensors, document)


def write(path: Path, tensors: Mapping[str, Tensor], document: CheckpointRecord) -> None:
    """Write tensors, all contiguous on the CPU, and a document as a checkpoint; see `save`."""
    digest = weights_digest(weights_of(tensors))
    text = json.dumps(as_document(replace(document, format=FORMAT, weights=digest)), allow_nan=False)
    header = {_KEY: text, _OF_DOCUMENT: sha256_text(text), _OF_FILE: sealed.UNSEALED}
    scratch = path.with_name(f"{_SCRATCH}{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.touch()
        rights = (
            scratch.stat().st_mode & 0o777
        )  # as the umask leaves them; the library's files are for their owner alone
        save_file(dict(tensors), scratch, metadata=header)
        scratch.chmod(rights)
        sealed.seal_file(scratch)  # on the disk after this
        os.replace(scratch, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, SafetensorError) as error:
        raise TrainerError(
            f"{path} cannot be written: {error}. Earlier checkpoints are safe; free space or mend the folder and run "
            "the same command again"
        ) from None
    finally:
        scratch.unlink(missing_ok=True)


def load(path: Path) -> Checkpoint:
    """Return a checkpoint, on the CPU, after a look at every byte of it.

    Raises DamagedCheckpoint if one has changed, or if it is no checkpoint of ours; TrainerError if it is missing or
    cannot be read.
    """
    document = read_document(path)
    try:
        is_sealed = sealed.check_file(path)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except sealed.Damaged as error:
        raise DamagedCheckpoint(f"{path} is damaged: {error}{EARLIER}") from None
    except SafetensorError as error:
        raise DamagedCheckpoint(f"{path} is damaged: {error}{EARLIER}") from None
    except OSError as error:
        raise TrainerError(f"{path} cannot be read: {error}") from None
    checkpoint = Checkpoint(path, tensors, document)
    if document.format == FORMAT and not is_sealed:  # a bit of the entry's own name is enough to lose it
        raise DamagedCheckpoint(f"{path} is damaged: the digest of its bytes is not there{EARLIER}")
    if not is_sealed and weights_digest(checkpoint.weights) != document.weights:
        raise DamagedCheckpoint(f"{path} is damaged: its weights have changed since it was written{EARLIER}")
    return checkpoint


def read_document(path: Path) -> CheckpointRecord:
    """Return what a checkpoint says of itself, checked, without reading its tensors; raises like `load`."""
    if not path.is_file():
        raise TrainerError(f"{path}: there is no such checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        text = header.get(_KEY)
        document = sealed.strict_json(text) if text else None
    except OSError as error:
        if error.errno is not None:  # the library's own complaints about a file have none
            raise TrainerError(f"{path} cannot be read: {error}") from None
        raise DamagedCheckpoint(f"{path} is no checkpoint, or a damaged one: {error}") from None
    except (SafetensorError, ValueError) as error:
        raise DamagedCheckpoint(f"{path} is no checkpoint, or a damaged one: {error}") from None
    if not isinstance(document, dict) or document.get("format") not in _READABLE:
        formats = " or ".join(map(str, _READABLE))
        raise DamagedCheckpoint(f"{path} is no checkpoint of this trainer (format {formats})")
    if document["format"] == FORMAT and header.get(_OF_DOCUMENT) != sha256_text(text or ""):
        raise DamagedCheckpoint(f"{path} is damaged: what it says of itself has changed since it was written")
    try:
        record = as_record(CheckpointRecord, document)
    except Unfit as error:
        raise DamagedCheckpoint(f"{path} is damaged: {error}") from None
    if not record.weights:
        raise DamagedCheckpoint(f"{path} is damaged: it does not say which weights it holds")
    if name := record.negative():
        raise DamagedCheckpoint(f"{path} is damaged: its `{name}` is {getattr(record, name)}; expected 0 or more")
    return record


def epoch_path(folder: Path, epoch: int) -> Path:
    """Return the file of the checkpoint after that many epochs."""
    return folder / f"epoch-{epoch:04d}.safetensors"


def finished_epochs(folder: Path) -> list[int]:
    """Return the epochs after which a checkpoint was kept, ascending."""
    names = (_FILE.fullmatch(file.name) for file in folder.glob("epoch-*.safetensors"))
    return sorted(int(name[1]) for name in names if name)


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run, or None."""
    epochs = finished_epochs(folder)
    return epoch_path(folder, epochs[-1]) if epochs else None


def newest_weights(recipe: Recipe, task: str) -> str | None:
    """Return the digest of the weights in the newest checkpoint of a recipe's run, None if there is none."""
    path = latest(recipe.folder() / task)
    return read_document(path).weights if path else None


def running_path(folder: Path) -> Path:
    """Return the file of the state in the middle of an epoch."""
    return folder / "running.safetensors"


def running_before_path(folder: Path) -> Path:
    """Return the file of the state before that one, which is kept until there are checkpoints of two epochs."""
    return folder / "running-before.safetensors"


def states(folder: Path) -> list[Path]:
    """Return the files of all states that a run could go on from."""
    middle = [path for path in (running_path(folder), running_before_path(folder)) if path.is_file()]
    return [*(epoch_path(folder, epoch) for epoch in finished_epochs(folder)), *middle]


@dataclass(frozen=True)
class Newest:
    """What a run goes on from: the newest whole state, None without one; and why newer ones, by file, are of no use."""

    path: Path | None
    damaged: Mapping[Path, str]


def newest(folder: Path) -> Newest:
    """Return the whole state that has seen most steps, every byte of it checked, and the damaged ones met on the way.

    Raises TrainerError for a file that cannot be read: it may be whole.
    """
    damaged: dict[Path, str] = {}
    steps: dict[Path, int] = {}
    for path in states(folder):
        try:
            step = read_document(path).step
        except DamagedCheckpoint as error:
            damaged[path] = str(error)
            continue
        if step is None:
            damaged[path] = f"{path} is damaged: it does not say how many steps it has seen"
        else:
            steps[path] = step
    for path in sorted(steps, key=lambda path: -steps[path]):  # of equals the first: that of an epoch
        try:
            load(path)
        except DamagedCheckpoint as error:
            damaged[path] = str(error)
            continue
        return Newest(path, damaged)
    return Newest(None, damaged)


def set_aside(path: Path) -> Path:
    """Rename a damaged state, so that nothing takes it for one; return its new path."""
    aside = path.with_name(f"{path.name}.damaged")
    path.replace(aside)
    return aside


def before_running(folder: Path) -> None:
    """Make room for the next state in the middle of an epoch, and keep the last one while there are not two epochs."""
    if len(finished_epochs(folder)) < KEPT and running_path(folder).is_file():
        running_path(folder).replace(running_before_path(folder))


KEPT = 2
"""Checkpoints that are always kept: the newest, and one to go on from should that be damaged."""


def prune(folder: Path, keep_every: int) -> None:
    """Delete the checkpoints that are neither the newest two nor of every `keep_every`-th epoch (0: of none).

    To be called when an epoch is saved: states in its middle go too, once there are two checkpoints.

    What killed writers left goes too; the caller holds the lock of the run, so that nobody writes meanwhile.
    """
    for scratch in folder.glob(f"{_SCRATCH}*"):
        scratch.unlink(missing_ok=True)
    epochs = finished_epochs(folder)
    if len(epochs) >= KEPT:
        running_path(folder).unlink(missing_ok=True)
        running_before_path(folder).unlink(missing_ok=True)
    for epoch in epochs[:-KEPT]:
        if keep_every == 0 or epoch % keep_every:
            epoch_path(folder, epoch).unlink(missing_ok=True)


def restore(checkpoint: Checkpoint, network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Put network, optimiser and the process's random generators into the state that was saved.

    Returns the moving averages of parameters and buffers, by name, if there are any. Raises TrainerError if the
    checkpoint is of another network.
    """
    load_weights(checkpoint, network)
    parameters = dict(network.named_parameters())
    try:
        network.load_state_dict(part(checkpoint.tensors, "model."))
        for key, value in part(checkpoint.tensors, "optimiser.").items():
            what, _, name = key.partition(".")
            counts = what == "step"  # AdamW counts on the CPU, wherever the weights are
            optimiser.state[parameters[name]][what] = value if counts else value.to(parameters[name].device)
        set_random_states(part(checkpoint.tensors, "random."))
    except (RuntimeError, LookupError, ValueError, TypeError) as error:  # a file without a seal can hold anything
        raise DamagedCheckpoint(f"{checkpoint.path} is no state to go on from: {error}") from None
    return part(checkpoint.tensors, "average.")


def load_weights(checkpoint: Checkpoint, network: nn.Module) -> None:
    """Put every weight and buffer of the checkpoint into the network; raises TrainerError unless all of them fit."""
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    stored = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
    if own != stored:
        names = sorted(name for name in own.keys() | stored.keys() if own.get(name) != stored.get(name))
        raise TrainerError(
            f"{checkpoint.path} is of another network: {len(names)} tensors are missing, unknown or of another shape "
            f"({', '.join(names[:4])}{', ...' if len(names) > 4 else ''}); set [network] as it was trained"
        )
    network.load_state_dict(checkpoint.weights)


def load_initial(network: nn.Module, checkpoint: Checkpoint, voxels: VoxelConfig) -> InitialWeights:
    """Put every tensor whose name and shape the network shares into it, batch norm statistics included.

    A network pre-trained against text vectors thus gives all but its head, `final.kernel` and `final.bias`. Raises
    TrainerError if it was trained on other voxels, or if anything but the head does not fit.
    """
    check_learnt(checkpoint)
    unchecked = check_voxels(checkpoint, voxels, intensity=False)
    own, stored = network.state_dict(), checkpoint.weights
    fitting = {name: tensor for name, tensor in stored.items() if name in own and own[name].shape == tensor.shape}
    if not fitting:
        raise TrainerError(f"{checkpoint.path} shares no tensor with the network; set [network] as it was trained")
    trunk = [name for name in own if name not in fitting and not name.startswith("final.")]
    unfit = [name for name in trunk if not name.endswith("num_batches_tracked")]  # which old versions of torch lack
    if unfit:
        raise TrainerError(
            f"{checkpoint.path} is of another network: {len(unfit)} of its tensors are missing or of another shape "
            f"({', '.join(unfit[:4])}{', ...' if len(unfit) > 4 else ''}); set [network] as it was trained"
        )
    network.load_state_dict(own | fitting)
    return InitialWeights(
        loaded=tuple(name for name in own if name in fitting),
        skipped=(
            *(name for name in [*own, *sorted(stored.keys() - own.keys())] if name in stored.keys() - fitting.keys()),
            *(checkpoint.document.left_out or ()),
        ),
        absent=tuple(name for name in own if name not in stored),
        unchecked=unchecked,
    )


def check_learnt(checkpoint: Checkpoint) -> None:
    """Raise TrainerError if the run had nothing to learn until it wrote this: its weights are those it began with."""
    document = checkpoint.document
    loss = document.loss or {}
    # before rows were counted, a loss of exactly 0 in an epoch was one without a term
    if document.taught == 0 or (document.taught is None and loss.get("total") == 0):
        raise TrainerError(
            f"{checkpoint.path} has learnt nothing: the loss of its run never had a term (no pair, or no label). Mend "
            f"what it learns from, and train again with --fresh"
        )


def check_voxels(checkpoint: Checkpoint, voxels: VoxelConfig, *, intensity: bool) -> tuple[str, ...]:
    """Raise TrainerError unless the checkpoint was trained on this grid of voxels, and on the same `intensity` scale.

    Transfer to another data set may change the scale; prediction with trained weights may not. Returns the settings
    that an official checkpoint does not tell, and which were therefore not compared.
    """
    grid = ["coordinates", "size_m", "angle_deg", *(["intensity_scale", "intensity_offset"] if intensity else ())]
    if voxels.coordinates == "cartesian":
        grid.remove("angle_deg")
    known = checkpoint.document.config.get("voxels")
    if known is None:
        raise TrainerError(f"{checkpoint.path} does not say on which voxels it was trained; use one that does")
    trained = {name: known[name] for name in grid if name in known}
    wanted = {name: value for name, value in asdict(voxels).items() if name in trained}
    if trained != wanted:
        raise TrainerError(
            f"{checkpoint.path} was trained on other voxels (voxels.{', voxels.'.join(differences(trained, wanted))}); "
            "set [voxels] as it was trained"
        )
    return tuple(name for name in grid if name not in known)


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose name starts so, without that start."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def weights_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that count among the tensors of a checkpoint: the moving average, where there is one."""
    return part(tensors, "average.") or part(tensors, "model.")


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return a digest of names, types, shapes and values: equal for equal weights, wherever and whenever written."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        values = weights[name].numpy()
        digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:DIGITS]


def random_states() -> dict[str, Tensor]:
    """Return the states of the process's random generators (torch, its GPUs, NumPy, Python) as tensors of bytes."""
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda.{number}": state for number, state in enumerate(torch.cuda.get_rng_state_all())}
    kind, keys, *rest = np.random.get_state()
    plain = {"numpy": [kind, np.asarray(keys).tolist(), *rest], "python": random.getstate()}
    return states | {name: to_bytes(json.dumps(state)) for name, state in plain.items()}


def set_random_states(states: Mapping[str, Tensor]) -> None:
    """Put the process's random generators into these states; GPUs that are not here are left out."""
    torch.set_rng_state(states["torch"])
    for number in range(torch.cuda.device_count()):
        if f"cuda.{number}" in states:
            torch.cuda.set_rng_state(states[f"cuda.{number}"], number)
    kind, keys, *rest = json.loads(bytes(states["numpy"].tolist()))
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    major, internal, gauss = json.loads(bytes(states["python"].tolist()))
    random.setstate((major, tuple(internal), gauss))


def to_bytes(text: str) -> Tensor:
    """Return the bytes of a text, (n,) uint8."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def sha256_text(text: str) -> str:
    """Return the hex sha256 of a text."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
