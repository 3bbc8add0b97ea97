"""Weights of networks: where a file lies, which file it must be, and how its tensors get into a network.

The one home of this for all teachers. A recipe pins weights by the sha256 of their file, and those of a hub by the
commit as well. Planning looks at these settings only and never downloads; loading fetches, verifies, and puts every
tensor in its place, or says in a sentence what does not fit. A file may hold tensors and nothing else: nothing that it
contains is executed.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifests.config import ConfigError
from manifests.fingerprint import sha256_file

if TYPE_CHECKING:
    import torch

HUB = "hub:"
RANDOM = "random"

_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_HUB_FILE = re.compile(r"hub:([A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)/([A-Za-z0-9_][\w.-]*(?:/[A-Za-z0-9_][\w.-]*)*)")
_MANY = 3  # names told in a sentence; all of them go to the log

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """What a recipe says about the weights of one network.

    `source` is the path of a file, `hub:OWNER/NAME/FILE` (Hugging Face), `random:SEED` (tests and dry runs: results
    mean nothing), or anything else: the name of pretrained weights that only the teacher's library knows (a tag).
    `sha256` is the digest of the file, and `revision` the hub's commit, 40 hexadecimal digits. A path needs the first,
    a hub file both. A tag may be planned without them, and loading then says what to write down. `key` is the setting
    that messages name; those of the digest and the commit are called `key` + "_sha256" and "_revision".

    Raises ValueError for what does not fit together.
    """

    source: str
    sha256: str = ""
    revision: str = ""
    key: str = "weights"

    def __post_init__(self) -> None:
        if self.sha256 and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f'{self.key}_sha256 is "{self.sha256}"; expected 64 hexadecimal digits in lower case')
        if self.revision and not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise ValueError(
                f'{self.key}_revision is "{self.revision}"; expected the 40 hexadecimal digits of a commit of the hub: '
                "branches and tags move"
            )
        if self.seed is not None:
            if self.sha256 or self.revision:
                raise ValueError(f"{self.key}_sha256 is given, but random weights have no file; remove one of the two")
        elif self.is_hub:
            if not _HUB_FILE.fullmatch(self.source):
                raise ValueError(f'{self.key} is "{self.source}"; a file of the hub is written hub:OWNER/NAME/FILE')
            if not self.sha256 or not self.revision:
                raise ValueError(
                    f"{self.key}_sha256 or {self.key}_revision is missing; pin {self.source} with the sha256 and the "
                    "commit that the hub shows for the file"
                )
        elif self.is_local:
            if not self.sha256:
                raise ValueError(f"{self.key}_sha256 is missing; pin {self.source} with the output of sha256sum")
            if self.revision:
                raise ValueError(f"{self.key}_revision is given, but {self.source} is a file on disk; remove it")

    @property
    def seed(self) -> int | None:
        """The seed of random weights, None for any other; raises ValueError if it is not a whole number."""
        kind, colon, seed = self.source.partition(":")
        if kind != RANDOM:
            return None
        if not colon or not seed.isdecimal():
            raise ValueError(
                f'{self.key} is "{self.source}"; random weights are written random:SEED, for example random:0'
            )
        return int(seed)

    @property
    def is_hub(self) -> bool:
        """Whether the weights are a file of the hub, given by name."""
        return self.source.startswith(HUB)

    @property
    def is_local(self) -> bool:
        """Whether the weights are a file on disk."""
        return not self.is_hub and ("/" in self.source or "\\" in self.source or self.source.endswith(_SUFFIXES))

    @property
    def is_tag(self) -> bool:
        """Whether the weights are a name that only the teacher's library knows."""
        return not self.is_hub and not self.is_local and self.seed is None

    @property
    def identity(self) -> str:
        """What stands for the weights in an identity: the digest, so that a file is the same one wherever it lies."""
        return f"sha256:{self.sha256}" if self.sha256 else self.source

    def file(self) -> Path:
        """Return the verified file of a path or a hub name, fetched if it is not in the hub's cache.

        Raises ConfigError if it cannot be had, or is another file than the pinned one.
        """
        found = _HUB_FILE.fullmatch(self.source)
        path = hub_file(found[1], found[2], self.revision, f"teacher.{self.key}") if found else Path(self.source)
        return self.verified(path)

    def at_hand(self) -> Path | None:
        """Return the file if it is on this machine already, on disk or in the hub's cache; never fetches anything.

        None too for tags and random weights, whose place is not known here.
        """
        if found := _HUB_FILE.fullmatch(self.source):
            from huggingface_hub import try_to_load_from_cache

            cached = try_to_load_from_cache(found[1], found[2], revision=self.revision)
            return Path(cached) if isinstance(cached, str) else None
        return Path(self.source) if self.is_local and Path(self.source).is_file() else None

    def verified(self, path: Path) -> Path:
        """Return the path; raises ConfigError unless a file is there and has the pinned digest."""
        if not path.is_file():
            raise ConfigError(f"teacher.{self.key}: there is no file {path}")
        found = sha256_file(path)
        if not self.sha256:
            raise ConfigError(
                f'teacher.{self.key} "{self.source}" is not pinned, so that tomorrow\'s tables could come from another '
                f'file under the same name; the file at hand is pinned by writing {self.key}_sha256 = "{found}" into '
                "section [teacher]"
            )
        if found != self.sha256:
            raise ConfigError(
                f"teacher.{self.key}: {path} has sha256 {found}, but teacher.{self.key}_sha256 is {self.sha256}; "
                "the file is damaged or another one"
            )
        return path


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

    Takes .safetensors and files of torch.save: a state_dict, or a dict that holds one as "state_dict" or "model"; the
    prefix that DistributedDataParallel puts before every name goes. Raises ConfigError for a damaged file, and for one
    that holds anything but tensors and plain values.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{setting}: {path} holds more than tensors, or is no checkpoint, and is not opened "
            f"({first_line(error)}); save its state_dict with torch.save, or as .safetensors"
        ) from None
    except Exception as error:  # zip, safetensors, tensor and file errors of a damaged file share no base class
        raise ConfigError(
            f"{setting}: {path} cannot be read as a checkpoint ({first_line(error)}); it is damaged, or not a "
            "state_dict"
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(torch.is_tensor(one) for one in content.values()):
        raise ConfigError(f"{setting}: {path} cannot be read as a checkpoint: it holds no dict of tensors by name")
    wrapped = all(name.startswith("module.") for name in content)
    return {name.removeprefix("module.") if wrapped else name: tensor for name, tensor in content.items()}


def fill(
    network: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    what: str,
    ignored: Iterable[str] = (),
) -> None:
    """Put tensors into a network: every one, under its name and of exactly its shape.

    `what` names file and network in the message, "w.pth is not a checkpoint of SAN". Names in `ignored` may be there
    and are left out. Raises ConfigError that counts what is missing, not expected or of another shape; the log names
    every one.
    """
    left_out = set(ignored)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if found != expected:
        parts = {
            "missing": sorted(expected.keys() - found.keys()),
            "not expected": sorted(found.keys() - expected.keys()),
            "of another shape": [
                f"{name} {found[name]} instead of {expected[name]}"
                for name in sorted(expected.keys() & found.keys())
                if found[name] != expected[name]
            ],
        }
        for kind, names in parts.items():
            if names:
                _log.warning("%s: %d tensors %s: %s", what, len(names), kind, ", ".join(names))
        told = "; ".join(
            f"{len(names)} {kind}, such as {', '.join(names[:_MANY])}" for kind, names in parts.items() if names
        )
        raise ConfigError(f"{what}: of {len(expected)} tensors, {told}")
    network.load_state_dict(dict(tensors))


def first_line(error: BaseException) -> str:
    """Return the first line of an error, with its kind."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
