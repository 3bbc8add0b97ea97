"""Weights of networks as a recipe names and pins them; nothing here is fetched or opened."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from manifests.config import ConfigError
from manifests.fingerprint import Json, sha256_as_it_looks

HUB = "hub:"

RANDOM = "random"

_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".onnx")

HUB_FILE = re.compile(r"hub:([A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)/([A-Za-z0-9_][\w.-]*(?:/[A-Za-z0-9_][\w.-]*)*)")


@dataclass(frozen=True)
class Weights:
    """What a recipe says about the weights of one network.

    `source` is the path of a file, `hub:OWNER/NAME/FILE` (Hugging Face), `random:SEED` (tests and dry runs: results
    mean nothing), or anything else: the name of pretrained weights that only the teacher's library knows (a tag).
    `sha256` is the digest of the file, and `revision` the hub's commit, 40 hexadecimal digits, which a hub file that
    has the first needs too. All may be planned without them; nothing loads before they are there, and loading says the
    lines to write down. `link` is where the very file of that digest is published, if that is known. `key` is the
    setting that messages name; those of the digest and the commit are called `key` + "_sha256" and "_revision".

    Raises ValueError for what does not fit together.
    """

    source: str
    sha256: str = ""
    revision: str = ""
    key: str = "weights"
    link: str = ""

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
            if not HUB_FILE.fullmatch(self.source):
                raise ValueError(f'{self.key} is "{self.source}"; a file of the hub is written hub:OWNER/NAME/FILE')
            if self.sha256 and not self.revision:
                raise ValueError(
                    f"{self.key}_revision is missing; pin {self.source} with the commit that the hub shows for the file"
                )
        elif self.is_local and self.revision:
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


FILE = "model.safetensors"

SMALL_FILES = ("*.json", "*.txt", "tokenizer.model")


def check_precision(precision: str) -> None:
    """Raise ValueError unless a precision is one that networks compute in."""
    if precision not in ("fp32", "bf16"):
        raise ValueError(f'precision is "{precision}"; choose "fp32" or "bf16"')


def check_weights(weights: Weights) -> None:
    """Raise ValueError unless the weights are a file that lies in a folder of transformers."""
    if weights.seed is not None or weights.is_tag or not weights.source.endswith(f"/{FILE}"):
        raise ValueError(
            f'{weights.key} is "{weights.source}"; expected FOLDER/{FILE} or hub:OWNER/NAME/{FILE}, the file as '
            "transformers saves it, with config.json beside it"
        )


def weights_identity(weights: Weights) -> dict[str, Json]:
    """Return what stands for a network in an identity: its tensors by digest, and what the files beside them say.

    Those of the hub are known by the commit, those on disk are small and digested. Raises ConfigError if they lack.
    """
    if weights.is_hub:
        return {"weights": weights.identity, "revision": weights.revision}
    folder = Path(weights.source).parent
    files = {path.name: sha256_as_it_looks(path) for pattern in SMALL_FILES for path in sorted(folder.glob(pattern))}
    if "config.json" not in files:
        raise ConfigError(
            f"teacher.{weights.key}: {folder} has no config.json; give the folder as transformers saves it"
        )
    return {"weights": weights.identity, "files": files}
