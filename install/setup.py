"""Bring the checkout's `.venv` to the proven set of packages, or leave it alone when it is there already.

Every make target calls this first. It needs only a Python 3.11 with its standard library. A stamp in the virtual
environment says that the last run reached its end and what it ended with; it goes away when a run starts, so a run that
was cut short is taken up again by the next one. MinkowskiEngine is compiled once for each pair of Python and torch; the
wheel is kept in the user's cache.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PYTHON_VERSION = (3, 11)
ENGINE = "MinkowskiEngine"
ENGINE_VERSION = "0.5.4"
GIB_PER_COMPILER = 3  # the largest source file of the engine takes 2.5 GiB to compile

OPEN3D_PACKAGES = ("libusb-1.0-0", "libegl1", "libgl1", "libx11-6", "libidn2-0", "libudev1")
RUNTIME_PACKAGES = ("libopenblas0", *OPEN3D_PACKAGES)  # the first is for MinkowskiEngine
BUILD_PACKAGES: tuple[str, ...] = ("libopenblas-dev",)
WAIT_FOR_LOCK = ("-o", "DPkg::Lock::Timeout=120")
"""Seconds that apt-get waits for whoever else installs something (a machine's own updates, say) before it gives up."""
EXTRAS = ("onnx", "dev", "docs")
"""Extras of the package that `.venv` gets."""

# Loads the compiled half, the one that a wrong torch breaks, and asks whether the Python half is there. Importing that
# too takes the shim for Python 3.10 and later, whose one place is the trainer.
IMPORT_ENGINE = """
import importlib.metadata, importlib.util, torch, MinkowskiEngineBackend._C
importlib.metadata.version("MinkowskiEngine")
assert importlib.util.find_spec("MinkowskiEngine").origin, "the Python half of MinkowskiEngine is missing"
"""

LOCAL_FILES = "*.local.toml"
"""What is laid over recipes on one machine."""


class SetupError(Exception):
    """What stands in the way and what to do about it; printed without a trace."""


@dataclass(frozen=True)
class Place:
    """Where one checkout and one user keep what this script makes."""

    root: Path
    cache: Path

    @classmethod
    def of_this_checkout(cls) -> Place:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cls(root=Path(__file__).resolve().parent.parent, cache=cache.absolute() / "afov")

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def site(self) -> Path:
        return self.venv / "lib" / "python{}.{}".format(*PYTHON_VERSION) / "site-packages"

    @property
    def stamp(self) -> Path:
        return self.venv / "afov-setup.json"

    @property
    def install(self) -> Path:
        return self.root / "install"

    def wheels(self, torch_version: str, for_cuda: bool = False) -> Path:
        """Folder of the engine's wheel; the local part of torch's version counts, CPU and CUDA builds differ."""
        python, kind = "cp{}{}".format(*PYTHON_VERSION), "-cuda" if for_cuda else ""
        return self.cache / "wheels" / f"{python}-torch{torch_version}-{platform.machine()}{kind}"


# ---- is there anything to do? ----------------------------------------------------------------------------------------


def state_key(place: Place) -> str:
    """Hash of everything that decides what `.venv` should hold: requirements, pins, this script, the Python."""
    digest = hashlib.sha256()
    for path in (*requirements(place), place.install / "constraints.txt", place.install / "setup.py"):
        digest.update(path.read_bytes() + b"\0")
    digest.update(repr(package_of(place)).encode())
    digest.update(f"{sys.version} {platform.machine()}".encode())
    return digest.hexdigest()


def requirements(place: Place) -> list[Path]:
    """Return the lists of what to install: what running needs, and the extras that tests need."""
    return [place.install / f"requirements{extra}.txt" for extra in ("", *(f"-{extra}" for extra in EXTRAS))]


def package_of(place: Place) -> dict[str, object]:
    """Return what pyproject.toml says of the package and how it is installed; empty without that file."""
    path = place.root / "pyproject.toml"
    document = tomllib.loads(path.read_text()) if path.is_file() else {}
    return {name: document.get(name, {}) for name in ("build-system", "project")}


def is_up_to_date(place: Place, thorough: bool = False) -> bool:
    """Return True when the last run ended well, with the same inputs, and what it installed is still there.

    The stamp lists the top of site-packages, where each package has a folder named after its version: a package that
    was removed or replaced by another version (a torch of the user's own, say) shows in one directory listing.
    `thorough` looks at every file.
    """
    try:
        stamp = json.loads(place.stamp.read_text())
        key, entries = stamp["key"], set(stamp["entries"])
        present = os.listdir(place.site)
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return (
        key == state_key(place)
        and entries.issubset(present)
        and os.access(place.python, os.X_OK)
        and not (thorough and damaged_packages(place.site))
    )


def write_stamp(place: Place) -> None:
    entries = sorted(name for name in os.listdir(place.site) if name != "__pycache__")
    fresh = place.stamp.with_suffix(".new")
    fresh.write_text(json.dumps({"key": state_key(place), "entries": entries}))
    fresh.replace(place.stamp)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file's lock. The kernel frees it with the last process that has it: a file left behind blocks nobody.

    A file system without locks (Lustre without -o flock, NFS without lockd) costs a sentence: what they keep apart are
    two set-ups of one checkout, or of one user, at the same moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another set-up holds {path}; waiting for it to end")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            say(f"{path} cannot be locked ({error.strerror}); going on, so start no other set-up beside this one")
        os.set_inheritable(file.fileno(), True)  # a pip that outlives this process keeps others out until it is done
        yield


# ---- the system ------------------------------------------------------------------------------------------------------


def check_python() -> None:
    wanted = "{}.{}".format(*PYTHON_VERSION)
    if sys.version_info[:2] != PYTHON_VERSION:
        raise SetupError(
            f"Python {wanted} is needed, but {sys.executable} is {platform.python_version()}. "
            f"Install Python {wanted} and name it: make setup PYTHON=/path/to/python{wanted}"
        )
    if importlib.util.find_spec("ensurepip") is None and not is_debian_python():
        raise SetupError(f"{sys.executable} has no ensurepip module and cannot make a virtual environment with pip.")


def is_debian_python() -> bool:
    return os.path.realpath(sys.executable).startswith("/usr/bin/")


def runtime_packages() -> tuple[str, ...]:
    """Debian packages without which `.venv` cannot be made or used."""
    has_venv = importlib.util.find_spec("ensurepip") is not None
    return RUNTIME_PACKAGES + (() if has_venv else ("python{}.{}-venv".format(*PYTHON_VERSION),))


def build_packages() -> tuple[str, ...]:
    """Debian packages that compiling MinkowskiEngine needs; a compiler or headers from elsewhere are as good."""
    packages = BUILD_PACKAGES
    if shutil.which("g++") is None:
        packages += ("g++",)
    if is_debian_python() and not Path(sysconfig.get_path("include"), "Python.h").exists():
        packages += ("python{}.{}-dev".format(*PYTHON_VERSION),)
    return packages


def missing_system_packages(packages: Sequence[str]) -> list[str]:
    """Those of the Debian packages that are not installed, in the order given; none where there is no dpkg to ask."""
    if shutil.which("dpkg-query") is None:
        say(f"this is no Debian or Ubuntu; these libraries, or their like, must be installed: {' '.join(packages)}")
        return []
    query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\\n", *packages]
    answer = subprocess.run(
        query, capture_output=True, text=True, errors="backslashreplace"
    ).stdout  # exits 1 when it does not know one of them
    installed = {line.split()[0] for line in answer.splitlines() if line.endswith(" installed")}
    return [package for package in packages if package not in installed]


def install_system_packages(packages: Sequence[str]) -> None:
    missing = missing_system_packages(packages)
    if not missing:
        return
    install = ["apt-get", "install", "-y", *WAIT_FOR_LOCK, "--no-install-recommends", *missing]
    if os.geteuid() != 0:
        raise SetupError(
            f"System packages are missing, and only root may install them. Run this, then make again:\n"
            f"  sudo apt-get update && sudo {shlex.join(install)}"
        )
    say(f"installing system packages: {' '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-q"], env=environment)  # a source that fails must not stop the others
    if subprocess.run(install, env=environment).returncode != 0:
        raise SetupError(
            f"apt-get could not install the system packages; its message is above, its command was\n"
            f"  {shlex.join(install)}"
        )


# ---- the virtual environment -----------------------------------------------------------------------------------------


def child_environment(place: Place) -> dict[str, str]:
    """Environment in which `.venv` answers to `pip` and `ninja`; the engine's build calls the first ones on PATH."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    path = os.pathsep.join([str(place.venv / "bin"), os.environ.get("PATH", os.defpath)])
    return {**kept, "PATH": path, "PYTHONNOUSERSITE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def run(place: Place, command: Sequence[str | Path], **extra_environment: str) -> None:
    """Run a command that must succeed, with its output on the terminal."""
    words = [str(word) for word in command]
    # close_fds=False: the lock's file stays open in the child, see `locked`.
    code = subprocess.run(words, env={**child_environment(place), **extra_environment}, close_fds=False).returncode
    if code != 0:
        raise SetupError(
            f"a command ended with exit code {code}; its message is above. Running make again goes on from here.\n"
            f"  {shlex.join(words)}"
        )


def ask(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Return what the virtual environment's Python answers; a code other than 0 when it does not start at all."""
    command = [str(place.python), "-I", *arguments]
    try:
        return subprocess.run(
            command, env=child_environment(place), capture_output=True, text=True, errors="backslashreplace"
        )
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def venv_is_sound(place: Place) -> bool:
    """Return whether the interpreter runs, is of our version, and its scripts call it and not one they came from."""
    pip = place.venv / "bin" / "pip"
    probe = f"import sys; sys.exit(sys.version_info[:2] != {PYTHON_VERSION} or sys.prefix == sys.base_prefix)"
    has_own_scripts = not pip.exists() or str(place.venv) in pip.read_text(errors="replace")
    return has_own_scripts and ask(place, "-c", probe).returncode == 0


def damaged_packages(site: Path) -> list[Path]:
    """Return the .dist-info folders whose list of files is missing, or names a file missing or of another size.

    Compiled .pyc files are left out: Python writes them anew.
    """
    return [info for info in sorted(site.glob("*.dist-info")) if not _is_intact(info)]


def _is_intact(info: Path) -> bool:
    site = str(info.parent)
    try:
        with (info / "RECORD").open(newline="") as record:
            return all(
                os.stat(os.path.join(site, name)).st_size == int(size)
                for name, _, size in csv.reader(record)
                if size and not name.endswith(".pyc")
            )
    except (OSError, ValueError):
        return False


def forget_damaged(site: Path) -> None:
    """Make pip install damaged packages again: without its .dist-info folder a package counts as absent."""
    for info in damaged_packages(site):
        say(f"{info.name.removesuffix('.dist-info')} is damaged and will be installed again")
        shutil.rmtree(info)
    for leftover in site.glob("~*"):  # what an interrupted pip had moved out of the way
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def make_venv(place: Place) -> None:
    """Make a virtual environment with a working pip, keeping what one holds whose interpreter is sound."""
    if not venv_is_sound(place):
        say(f"making {place.venv}")
        # The base interpreter: the one running this may belong to the very environment that is about to be cleared.
        run(place, [os.path.realpath(sys.executable), "-m", "venv", "--clear", place.venv])
    forget_damaged(place.site)
    if ask(place, "-m", "pip", "--version").returncode != 0:
        run(place, [place.python, "-m", "ensurepip", "--upgrade", "--default-pip"])


def install_requirements(place: Place) -> None:
    say("installing the Python packages that differ from the pins; all of them are 2.6 GB and take minutes")
    lists: list[str | Path] = []
    for path in requirements(place):
        lists += ["-r", path]
    run(place, [place.python, "-m", "pip", "install", "-c", place.install / "constraints.txt", *lists])


def install_command(place: Place) -> None:
    """Leave the command `afov` in `.venv`: the checkout itself, as a package that follows every edit."""
    how = ["--quiet", "--no-deps", "--no-build-isolation", "--editable", str(place.root)]
    run(place, [place.python, "-m", "pip", "install", *how])


# ---- MinkowskiEngine -------------------------------------------------------------------------------------------------


def engine_error(place: Place) -> str | None:
    """Why `.venv` has no working MinkowskiEngine, or None when it has one; a CUDA build of the user's own counts."""
    result = ask(place, "-c", IMPORT_ENGINE)
    return None if result.returncode == 0 else last_line(result.stderr)


def is_whole_wheel(path: Path) -> bool:
    """Return whether it is a zip archive whose members have the right checksums, the compiled engine among them."""
    try:
        with zipfile.ZipFile(path) as archive:
            has_engine = any(name.startswith("MinkowskiEngineBackend/_C.") for name in archive.namelist())
            return has_engine and archive.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error):
        return False


def cached_wheel(folder: Path) -> Path | None:
    """Return the engine's wheel in the folder, or None; a wheel that is cut short or damaged is passed over."""
    return next((path for path in sorted(folder.glob("*.whl")) if is_whole_wheel(path)), None)


def will_build_engine(place: Place) -> bool:
    """Return True when a compiler will be needed, as far as can be told before torch is installed."""
    pin = re.search(r"^torch==(\S+)$", (place.install / "constraints.txt").read_text(), re.MULTILINE)
    folders = place.wheels(f"{pin[1]}*" if pin else "*")
    has_wheel = any(cached_wheel(folder) for folder in folders.parent.glob(folders.name))
    return not has_wheel and engine_error(place) is not None


def build_engine(place: Place, folder: Path, for_cuda: bool = False) -> Path:
    """Compile MinkowskiEngine against the torch in `.venv` and put its wheel into the folder, whole or not at all."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    affordable = min(len(os.sched_getaffinity(0)), int(memory_gib / GIB_PER_COMPILER))
    jobs = os.environ.get("MAX_JOBS") or str(max(1, affordable))
    what = f"{ENGINE} {ENGINE_VERSION}{' with nvcc' if for_cuda else ''}"
    say(f"compiling {what}, {jobs} files at a time: minutes, but once for this Python and torch")
    workplace = folder / "build"
    shutil.rmtree(workplace, ignore_errors=True)  # of a build that was killed
    command: list[str | Path] = [place.python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", workplace]
    source: str | Path = f"{ENGINE}=={ENGINE_VERSION}"
    # --no-cache-dir: pip keeps the wheels it built by version only, and would hand out one made for another torch.
    command += ["--no-cache-dir", "--no-build-isolation", "--use-pep517"]
    command += [f"--config-settings=--global-option=--blas=openblas {'--force_cuda' if for_cuda else '--cpu_only'}"]
    try:
        if for_cuda:
            run(place, [place.python, place.install / "patched_engine.py", workplace])
            (source,) = (path for path in workplace.iterdir() if path.is_dir())
        run(place, [*command, source], CXX="g++", CFLAGS="-g0", MAX_JOBS=jobs)  # debug information is 50 times as big
        built = cached_wheel(workplace)
        if built is None:
            raise SetupError(f"the build of {ENGINE} ended well but left no usable wheel in {workplace}")
        return built.replace(folder / built.name)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def install_engine(place: Place) -> None:
    """Leave a working MinkowskiEngine in `.venv`: the present one, else the cached wheel, else a new build."""
    if engine_error(place) is None:
        return
    version = ask(place, "-c", "import importlib.metadata as m; print(m.version('torch'))")
    if version.returncode != 0:
        raise SetupError(f"torch is not installed in {place.venv} although pip ended well: {last_line(version.stderr)}")
    for_cuda = shutil.which("nvcc") is not None and not version.stdout.strip().endswith("+cpu")
    folder = place.wheels(version.stdout.strip(), for_cuda)
    install: list[str | Path] = [place.python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall"]
    with locked(folder / ".lock"):
        wheel = cached_wheel(folder)
        if wheel is not None:
            run(place, [*install, wheel])
            if engine_error(place) is None:
                return
            say(f"the cached {wheel} does not load; building it anew")
        for useless in folder.glob("*.whl"):
            useless.unlink()
        install_system_packages(build_packages() + (("patch",) if for_cuda else ()))
        run(place, [*install, build_engine(place, folder, for_cuda)])
    error = engine_error(place)
    if error is not None:
        raise SetupError(f"{ENGINE} was built but cannot be imported: {error}")


# ---- all of it -------------------------------------------------------------------------------------------------------


def check_result(place: Place) -> None:
    """Errors that pip does not see: packages that contradict each other, system libraries that are not there."""
    agree = ask(place, "-m", "pip", "check")
    if agree.returncode != 0:
        raise SetupError(f"the installed packages contradict each other:\n{agree.stdout}{agree.stderr}")
    load = ask(place, "-c", "import torch, pyarrow, sklearn, open3d")
    if load.returncode != 0:
        raise SetupError(f"an installed package cannot be imported: {last_line(load.stderr)}")


def set_up(place: Place, thorough: bool = False) -> None:
    """Do what is missing, and nothing when nothing is."""
    if is_up_to_date(place, thorough):
        return
    if place.venv.is_symlink():  # others use it: to clear it is not ours
        say(f"{place.venv} is a link to {place.venv.resolve()}, which is taken as it is; its own checkout keeps it up")
        return
    with locked(place.root / ".setup.lock"):
        if is_up_to_date(place, thorough):  # whoever held the lock did it
            return
        place.stamp.unlink(missing_ok=True)
        install_system_packages(runtime_packages() + (build_packages() if will_build_engine(place) else ()))
        make_venv(place)
        install_requirements(place)
        install_command(place)
        install_engine(place)
        check_result(place)
        write_stamp(place)


def ignore_local_files(place: Place) -> None:
    """Have git ignore NAME.local.toml by a list of its own: what .gitignore names does not travel with a Ray job."""
    if not (place.root / ".git").exists():
        return
    command = ["git", "-C", str(place.root), "rev-parse", "--git-path", "info/exclude"]
    with contextlib.suppress(OSError):  # no git, or a folder of it that cannot be written: nothing depends on this
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        path = place.root / asked.stdout.strip()
        known = path.read_text().splitlines() if path.is_file() else []
        if asked.returncode == 0 and LOCAL_FILES not in known:
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join([*known, LOCAL_FILES, ""]))


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def main(arguments: Sequence[str] | None = None, place: Place | None = None) -> int:
    parser = argparse.ArgumentParser(description="Bring .venv to the proven set of packages.")
    parser.add_argument("--thorough", action="store_true", help="look at every installed file, not only at the stamp")
    options = parser.parse_args(arguments)
    place = place or Place.of_this_checkout()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # a test's stand-in
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        check_python()
        ignore_local_files(place)
        set_up(place, options.thorough)
    except (SetupError, OSError) as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; running make again goes on from here", file=sys.stderr)
        return 130
    if options.thorough:
        say(f"{place.venv} is ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
