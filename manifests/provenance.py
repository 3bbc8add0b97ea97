"""What made a result: the commit of the code, the versions of packages."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path


def git_commit() -> str | None:
    """Return the commit of the checkout this code runs from, or None outside one."""
    root = Path(__file__).parent.parent
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that results may depend on."""
    found = {}
    for name in (
        "numpy",
        "scipy",
        "pyarrow",
        "pillow",
        "scikit-image",
        "torch",
        "open_clip_torch",
        "timm",
        "transformers",
        "ray",
    ):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
