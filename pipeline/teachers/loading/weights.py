"""Weights of networks: where a file lies, which file it must be, and how its tensors get into a network.

The one home of this for all teachers. A recipe pins weights by the sha256 of their file, and those of a hub by the
commit as well. Planning looks at these settings only and never downloads; loading fetches, verifies, and puts every
tensor in its place, or says in a sentence what does not fit. Nothing that a file contains is executed.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifests.config import ConfigError
from manifests.fingerprint import sha256_file
from manifests.foreign import OLDER_TORCH, instead_of_weights, is_safetensors
from manifests.sections.teachers.published import of_file
from manifests.sections.teachers.weights import HUB_FILE, Weights

if TYPE_CHECKING:
    import torch


_MANY = 3  # names told in a sentence; all of them go to the log
_WRAPPERS = ("module.", "_orig_mod.", "model.")

_log = logging.getLogger(__name__)


class NotPinned(ConfigError):
    """Weights that are here, and that nothing pins; `settings` of `[teacher]` would pin them, by their dotted keys."""

    def __init__(self, message: str, settings: Mapping[str, str]) -> None:
        super().__init__(message)
        self.settings = dict(settings)


def weights_file(weights: Weights) -> Path:
    """Return the verified file of a path or a hub name, fetched if it is not in the hub's cache.

    Raises ConfigError if it cannot be had, or is another file than the pinned one.
    """
    found = HUB_FILE.fullmatch(weights.source)
    if found is None:
        return verified(weights, Path(weights.source))
    return verified(weights, hub_file(found[1], found[2], weights.revision, f"teacher.{weights.key}"))


def at_hand(weights: Weights) -> Path | None:
    """Return the file if it is on this machine already, on disk or in the hub's cache; never fetches anything.

    None too for random weights, and for tags unless the link of their file is known.
    """
    if weights.link:
        linked = cache_of_links() / weights.link.rpartition("/")[2]
        return linked if linked.is_file() else None
    if found := HUB_FILE.fullmatch(weights.source):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(found[1], found[2], revision=weights.revision or None)
        return Path(cached) if isinstance(cached, str) else None
    return Path(weights.source) if weights.is_local and Path(weights.source).is_file() else None


def cache_of_links() -> Path:
    """Return the folder that keeps files fetched from a link; open_clip and OpenAI's code keep theirs there too."""
    return Path.home() / ".cache" / "clip"


def verified(weights: Weights, path: Path) -> Path:
    """Return the path; raises ConfigError unless a file is there and has the pinned digest."""
    if not path.is_file():
        known = of_file(path.name)
        told = f"; {known.link} has it ({known.licence}, about {known.megabytes} MB)" if known else ""
        raise ConfigError(f"teacher.{weights.key}: there is no file {path}{told}")
    found = sha256_file(path)
    if not weights.sha256:
        settings = {f"{weights.key}_sha256": found}
        commit = re.search(r"/snapshots/([0-9a-f]{40})/", path.as_posix())  # where the hub's cache keeps it
        if weights.is_hub and not weights.revision and commit:
            settings[f"{weights.key}_revision"] = commit[1]
        lines = " and ".join(f'{key} = "{value}"' for key, value in settings.items())
        raise NotPinned(
            f'teacher.{weights.key} "{weights.source}" is not pinned, so that tomorrow\'s tables could come from '
            f"another file under the same name; the file at hand{_form(weights, path)} is pinned by writing {lines} "
            "into section [teacher]",
            settings,
        )
    if found != weights.sha256:
        raise ConfigError(
            f"teacher.{weights.key}: {path} has sha256 {found}, but teacher.{weights.key}_sha256 is {weights.sha256}; "
            f"the file is damaged or another one{_other_form(weights, path)}"
        )
    return path


def _form(weights: Weights, path: Path) -> str:
    """Return which of several files with the same tensors was opened, where the recipe leaves that to open_clip."""
    return f", {path.name}," if weights.is_tag else ""


def _other_form(weights: Weights, path: Path) -> str:
    """Return that a tag's tensors may lie on the hub in two files, each with its digest."""
    if not weights.is_tag or weights.link:
        return ""
    return (
        f". open_clip opened {path.name}: it takes a .safetensors where the hub has one, else a .bin, and each has a "
        "digest of its own; hub:OWNER/NAME/FILE names one of them"
    )


def hub_file(repository: str, name: str, revision: str, setting: str) -> Path:
    """Return a file of a Hugging Face repository at a commit, from the cache or fetched; raises ConfigError."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name, revision=revision or None))
    except Exception as error:  # whatever the network, the hub or the disk may raise
        raise ConfigError(
            f"{setting}: {name} of {repository} could not be fetched ({first_line(error)}). Download it once on a "
            "machine with network access and give the file's path and sha256, or copy the cache of huggingface_hub"
        ) from None


def hub_folder(repository: str, revision: str, patterns: Iterable[str], setting: str) -> Path:
    """Return a folder with the files of a Hugging Face repository at a commit that a pattern names; like `hub_file`."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # whatever the network, the hub or the disk may raise
        raise ConfigError(
            f"{setting}: files of {repository} could not be fetched ({first_line(error)}). Download them once on a "
            "machine with network access and give the file's path and sha256, or copy the cache of huggingface_hub"
        ) from None


def read_tensors(path: Path, setting: str = "teacher.weights") -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint by name, on the CPU, as they were saved.

    Takes .safetensors, files of torch.save and TorchScript archives (as OpenAI's are). The file is a state_dict, or a
    dict that holds one as "state_dict" or "model" beside whatever else, such as Detectron2's scheduler: that is neither
    built nor run. Prefixes that wrappers put before every name go. Raises ConfigError for a damaged file, and for one
    that holds no dict of tensors.
    """
    import torch

    with path.open("rb") as file:
        reason = instead_of_weights(file)
        head = file.read(len(OLDER_TORCH))
    if reason:
        raise ConfigError(f"{setting}: {path} {reason}")
    try:
        content = _content(path, head)
    except pickle.UnpicklingError as error:
        raise ConfigError(f"{setting}: {path} {_not_opened(path, head, error)}") from None
    except Exception as error:  # zip, safetensors, tensor and file errors of a damaged file share no base class
        raise ConfigError(
            f"{setting}: {path} cannot be read as a checkpoint ({first_line(error)}); it is damaged, or not a "
            "state_dict"
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(torch.is_tensor(one) for one in content.values()):
        raise ConfigError(f"{setting}: {path} {_instead_of_tensors(content)}")
    return unwrapped(content)


def _content(path: Path, head: bytes) -> Any:
    """Return what a file holds, foreign objects as stand-ins; raises what it may be refused for."""
    import torch

    from pipeline.teachers.loading import archives

    if is_safetensors(head) or (path.suffix == ".safetensors" and not archives.is_archive(path)):
        from safetensors.torch import load_file

        return load_file(path)
    if archives.is_torchscript(path):
        return archives.read_torchscript(path)
    try:
        with path.open("rb") as file:  # by a path, torch takes the format from the name
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if not archives.is_archive(path):  # the older format is one stream of pickles, which our reader does not take
            raise
        return archives.read_archive(path)


def _not_opened(path: Path, head: bytes, error: pickle.UnpicklingError) -> str:
    """Return the end of a sentence about a file that torch's reader of weights refuses."""
    if head != OLDER_TORCH:
        return (
            f"cannot be read as a checkpoint ({first_line(error)}); it is of another kind, or damaged: save its "
            "state_dict with torch.save, or as .safetensors"
        )
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    return (
        f"is in the older format of torch.save and holds more than tensors ({named[1] if named else first_line(error)})"
        ", which is not opened, as that can run code; where you trust it, save it in the format of today: "
        "python -c \"import torch; torch.save(torch.load('OLD', map_location='cpu', weights_only=False), 'NEW')\""
    )


def _instead_of_tensors(content: Any) -> str:
    """Return the end of a sentence about a file that holds no dict of tensors by name."""
    from pipeline.teachers.loading.archives import stand_ins

    foreign = stand_ins(content)
    keys = f"; it is a dict of {', '.join(map(str, list(content)[:_MANY]))}" if isinstance(content, Mapping) else ""
    if foreign:
        return (
            f"holds more than tensors ({', '.join(foreign[:_MANY])}), which are not opened, and no dict of tensors by "
            f"name{keys}; save its state_dict with torch.save, or as .safetensors"
        )
    return f"cannot be read as a checkpoint: it holds no dict of tensors by name{keys}"


def unwrapped(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors under the names that the network itself gives them.

    What parallel training ("module."), torch.compile ("_orig_mod.") or a class that holds the network as its only part
    ("model.") puts before every name goes.
    """
    found = {str(name): tensor for name, tensor in tensors.items()}
    while found and any(all(name.startswith(prefix) for name in found) for prefix in _WRAPPERS):
        found = {name.partition(".")[2]: tensor for name, tensor in found.items()}
    return found


def fill(
    network: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    what: str,
    ignored: Iterable[str] = (),
    names: Iterable[str] | None = None,
) -> None:
    """Put tensors into a network: every one, under its name and of exactly its shape.

    Numbers of half precision become those that the network computes with. `what` names file and network in the
    message, "w.pth is not a checkpoint of SAN". Names in `ignored` may be there and are left out. `names` are those of
    the network that this file is to fill, where it is one of several. Raises ConfigError that counts what is missing,
    not expected, of another shape, or not finite; the log names every one.
    """
    left_out = set(ignored)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    state = network.state_dict()
    if names is not None:
        state = {name: state[name] for name in names}
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    both = sorted(expected.keys() & found.keys())
    parts = {
        "missing": sorted(expected.keys() - found.keys()),
        "not expected": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{name} {found[name]} instead of {expected[name]}" for name in both if found[name] != expected[name]
        ],
        "of another kind": [  # whole numbers for fractions: weights that were quantised
            f"{name} {tensors[name].dtype} instead of {state[name].dtype}"
            for name in both
            if tensors[name].is_floating_point() != state[name].is_floating_point()
        ],
        "with values that are not finite": [name for name in both if not _finite(tensors[name], state[name].dtype)],
    }
    if any(parts.values()):
        for kind, some in parts.items():
            if some:
                _log.warning("%s: %d tensors %s: %s", what, len(some), kind, ", ".join(some))
        told = "; ".join(
            f"{len(some)} {kind}, such as {', '.join(some[:_MANY])}" for kind, some in parts.items() if some
        )
        raise ConfigError(f"{what}: of {len(expected)} tensors, {told}")
    network.load_state_dict(tensors, strict=names is None)


def _finite(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether all values are numbers, also as those that a network computes with: 1e300 is none in float32."""
    import torch

    return tensor.is_meta or bool(torch.isfinite(tensor.to(dtype)).all())


def first_line(error: BaseException) -> str:
    """Return the first line of an error, with its kind."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
