"""What every test may rely on: one thread, no network, the shared data where it is present."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.manifests.s3_server import Server

# Read by the libraries when they load, so set here, before any test module is imported. MinkowskiEngine gives the same
# bits in every run only with one thread.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"

# A shell without job control starts what runs in its background with SIGINT ignored, and children inherit that: tests
# that interrupt a process would wait for it to end by itself.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests start processes by the hundred, and compiling our modules is a third of what each needs to start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Folders of tests lie in memory where there is room: stores sync every file they write, and a disk takes its time. What
# passed is removed at once (tmp_path_retention_policy).
MEMORY = Path("/dev/shm")
RUNS_PROGRAMS = os.access(MEMORY, os.W_OK) and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
if RUNS_PROGRAMS and shutil.disk_usage(MEMORY).free > 4e9:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# No deadline: the first example of many tests pays for an import. Derandomised: a run says the same as the one before.
settings.register_profile("afov", deadline=None, derandomize=True)
settings.load_profile("afov")

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"

os.environ.pop("COLUMNS", None)  # of whoever runs the tests; a console that is made with it keeps that width for good


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Fails the run when something loaded torch before the variable above was set."""
    torch = sys.modules.get("torch")
    assert torch is None or torch.get_num_threads() == 1, "torch was imported before OMP_NUM_THREADS=1 was set"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the checkout, with real frames and golden files; the test is skipped without it."""
    if not SHARED.is_dir():
        absent = f"{SHARED} is absent: this test reads real frames or golden files from it"
        if os.environ.get("AFOV_REQUIRE_SHARED") == "1":
            pytest.fail(absent)
        pytest.skip(absent)
    return SHARED


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Server]":
    """Moto's S3 server, started for the first test that wants it."""
    from tests.manifests.s3_server import run_moto

    with run_moto(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB; needs the right to mount."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)
