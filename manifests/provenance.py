"""What made a result: the commit of the code, the versions of packages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path

from manifests.records.table import Provenance

PACKAGES = (
    *("numpy", "scipy", "pyarrow", "pillow", "scikit-image", "torch", "open_clip_torch", "timm", "transformers", "ray"),
)
"""Those that tables may depend on."""

TRAINER_PACKAGES = ("torch", "numpy", "pyarrow", "safetensors", "MinkowskiEngine")
"""Those that weights, and what they predict, may depend on."""


def git_commit() -> str | None:
    """Return the commit of the checkout this code runs from, with "+" where its files were changed since.

    None outside a checkout.
    """
    root = Path(__file__).parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def package_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed."""
    versions = {name: _version(name) for name in packages}
    return {"python": sys.version.split()[0], **{name: one for name, one in versions.items() if one}}


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def made_by() -> Provenance:
    """Return commit and packages of this process, looked up once."""
    return Provenance(commit=git_commit(), packages=package_versions())


def origin_of(device: str, batch: int | None) -> Provenance:
    """Return what a shard's sidecar says of how it was made: commit, packages, device, images at once of a network."""
    return replace(made_by(), device=device, batch=batch or None)
