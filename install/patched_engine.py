"""Fetch the source of MinkowskiEngine 0.5.4 into a folder and change in it what nvcc of CUDA 12 and 13 needs.

    .venv/bin/python install/patched_engine.py FOLDER

prints the folder of the changed source, which `pip wheel` builds; docs/gpu.md says how, and `make setup` does it where
it finds nvcc. It needs torch (the engine's own set-up asks for it), a network and the program `patch`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

SOURCE = "MinkowskiEngine==0.5.4"
PATCH = Path(__file__).resolve().with_name("minkowskiengine-cuda.patch")


def main(folder: Path) -> int:
    """Fetch, unpack, change; returns an exit code, 0 where all of it went well."""
    folder.mkdir(parents=True, exist_ok=True)
    how = ["--quiet", "--no-deps", "--no-cache-dir", "--no-build-isolation", "--use-pep517", "--no-binary", ":all:"]
    fetch = [sys.executable, "-m", "pip", "download", *how, "--dest", str(folder), SOURCE]
    # pip runs the engine's own set-up to fetch it, which asks numpy.distutils for a BLAS: that needs Python's distutils
    environment = {**os.environ, "SETUPTOOLS_USE_DISTUTILS": "stdlib"}
    if code := subprocess.run(fetch, stdout=sys.stderr, env=environment, check=False).returncode:
        return code
    archives = sorted(folder.glob("*.tar.gz"))
    if len(archives) != 1:
        print(f"{folder} holds {len(archives)} archives; expected the one of {SOURCE}", file=sys.stderr)
        return 1
    with tarfile.open(archives[0]) as tar:
        tar.extractall(folder, filter="data")
    source = folder / archives[0].name.removesuffix(".tar.gz")
    # `git apply` would take the paths for those of a repository around it, and skip them all without a word
    words = ["patch", "--quiet", "--strip=1", f"--directory={source}", f"--input={PATCH}"]
    if code := subprocess.run(words, stdout=sys.stderr, check=False).returncode:
        return code
    print(source)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
