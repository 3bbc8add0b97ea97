"""The set-up script and the Makefile, with stand-ins for apt and pip: nothing is installed."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from install import setup
from install.setup import Place, SetupError

ROOT = Path(__file__).resolve().parent.parent
WHEEL = "minkowskiengine-0.5.4-cp311-cp311-linux_x86_64.whl"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A checkout with the real install folder and no `.venv`."""
    shutil.copytree(ROOT / "install", tmp_path / "checkout" / "install", ignore=shutil.ignore_patterns("__pycache__"))
    return Place(root=tmp_path / "checkout", cache=tmp_path / "cache")


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Puts a shell script before everything else on PATH; returns the file that its calls are written to."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def write(name: str, body: str) -> Path:
        log = tmp_path / f"{name}.log"
        script = folder / name
        script.write_text(f'#!/bin/sh\necho "$@" >> {log}\n{body}\n')
        script.chmod(0o755)
        return log

    return write


def only_installed(*packages: str) -> str:
    """Body of a dpkg-query that knows these packages as installed, one as removed, and exits as the real one does."""
    lines = [f"echo '{package} installed'" for package in packages]
    return "\n".join([*lines, "echo 'libgl1 config-files'", "exit 1"])


def fake_package(site: Path, name: str, text: str = "x = 1\n") -> Path:
    """A package of one module, as pip leaves it; returns its .dist-info folder."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"{name}.py").write_text(text)
    (info / "RECORD").write_text(
        f"{name}.py,sha256=0,{len(text)}\n__pycache__/{name}.cpython-311.pyc,,\n{name}-1.0.dist-info/RECORD,,\n"
    )
    return info


def fake_venv(place: Place) -> None:
    """A `.venv` with a working interpreter and one package."""
    subprocess.run([os.path.realpath(sys.executable), "-m", "venv", "--without-pip", place.venv], check=True)
    fake_package(place.site, "torch")


def fake_wheel(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MinkowskiEngineBackend/_C.cpython-311-x86_64-linux-gnu.so", bytes(range(256)) * 64)
        archive.writestr("MinkowskiEngine/__init__.py", "")
    return path


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# ---- system packages


def test_only_packages_that_dpkg_does_not_call_installed_are_missing(stub: Callable[[str, str], Path]) -> None:
    stub("dpkg-query", only_installed("libopenblas0"))
    assert setup.missing_system_packages(["libopenblas0", "libgl1", "libegl1"]) == ["libgl1", "libegl1"]


def test_without_root_the_exact_command_is_printed_and_nothing_is_made(
    place: Place,
    stub: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_wheel(place.wheels("2.13.0+cpu") / WHEEL)
    stub("dpkg-query", only_installed("libopenblas0", "libegl1", "libx11-6", "libidn2-0", "libudev1"))
    apt = stub("apt-get", "exit 0")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert setup.main([], place) == 1

    install = "apt-get install -y -o DPkg::Lock::Timeout=120 --no-install-recommends libusb-1.0-0 libgl1"
    command = f"sudo apt-get update && sudo {install}\n"
    assert command in capsys.readouterr().err
    assert not apt.exists()
    assert not place.venv.exists()


def test_as_root_only_missing_packages_are_installed_even_if_one_apt_source_fails(
    stub: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub("dpkg-query", only_installed("libopenblas0"))
    apt = stub("apt-get", '[ "$1" = install ]')  # update fails
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    setup.install_system_packages(["libopenblas0", "libgl1"])
    install = "install -y -o DPkg::Lock::Timeout=120 --no-install-recommends libgl1"
    assert apt.read_text().splitlines() == ["update -q", install]


def test_apt_is_left_alone_when_nothing_is_missing(stub: Callable[[str, str], Path]) -> None:
    stub("dpkg-query", only_installed("libopenblas0"))
    apt = stub("apt-get", "exit 0")
    setup.install_system_packages(["libopenblas0"])
    assert not apt.exists()


def test_an_apt_that_fails_ends_with_the_command(
    stub: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub("dpkg-query", "exit 1")
    stub("apt-get", "exit 100")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(SetupError, match=r"apt-get install -y -o DPkg::Lock::Timeout=120 .* libgl1"):
        setup.install_system_packages(["libgl1"])


def test_build_packages_are_asked_for_only_where_no_wheel_fits_the_pinned_torch(place: Place) -> None:
    assert setup.will_build_engine(place)
    fake_wheel(place.wheels("2.12.0") / WHEEL)
    assert setup.will_build_engine(place)
    wheel = fake_wheel(place.wheels("2.13.0+cpu") / WHEEL)
    assert not setup.will_build_engine(place)
    cut_short(wheel)
    assert setup.will_build_engine(place)


def test_another_python_version_is_refused_with_a_way_out(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 12, 1, "final", 0))
    assert setup.main([], place) == 1
    assert "make setup PYTHON=" in capsys.readouterr().err


# ---- damage


def test_whole_wheels_are_told_from_cut_short_damaged_and_foreign_ones(tmp_path: Path) -> None:
    wheel = fake_wheel(tmp_path / WHEEL)
    assert setup.is_whole_wheel(wheel)

    flipped = tmp_path / "flipped.whl"
    data = bytearray(wheel.read_bytes())
    data[200] ^= 1
    flipped.write_bytes(data)
    assert not setup.is_whole_wheel(flipped)

    cut_short(wheel)
    assert not setup.is_whole_wheel(wheel)

    foreign = tmp_path / "foreign.whl"
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("six.py", "")
    assert not setup.is_whole_wheel(foreign)


def test_packages_with_missing_or_short_files_are_forgotten_and_others_kept(tmp_path: Path) -> None:
    whole, short, gone, unrecorded = (fake_package(tmp_path, name) for name in ("whole", "short", "gone", "unrecorded"))
    (tmp_path / "short.py").write_text("")
    (tmp_path / "gone.py").unlink()
    (unrecorded / "RECORD").unlink()
    (tmp_path / "~orch").mkdir()

    setup.forget_damaged(tmp_path)

    assert whole.exists()
    assert not short.exists() and not gone.exists() and not unrecorded.exists()
    assert not (tmp_path / "~orch").exists()


def test_an_environment_copied_from_another_folder_is_not_sound(place: Place) -> None:
    fake_venv(place)
    pip = place.venv / "bin" / "pip"
    pip.write_text(f"#!{place.python}\n")
    assert setup.venv_is_sound(place)
    pip.write_text("#!/elsewhere/.venv/bin/python\n")
    assert not setup.venv_is_sound(place)


def test_an_environment_whose_interpreter_is_gone_is_not_sound(place: Place) -> None:
    assert not setup.venv_is_sound(place)
    fake_venv(place)
    assert setup.venv_is_sound(place)
    place.python.unlink()
    place.python.symlink_to("/nowhere/python3.11")
    assert not setup.venv_is_sound(place)


# ---- nothing to do


def test_a_finished_environment_is_left_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_venv(place)
    setup.write_stamp(place)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    assert setup.main([], place) == 0
    assert setup.main(["--thorough"], place) == 0


def test_new_requirements_a_lost_package_or_a_lost_interpreter_call_for_a_run(place: Place) -> None:
    fake_venv(place)
    assert not setup.is_up_to_date(place)
    setup.write_stamp(place)
    assert setup.is_up_to_date(place)

    requirements = place.install / "requirements.txt"
    before = requirements.read_bytes()
    requirements.write_bytes(before + b"attrs\n")
    assert not setup.is_up_to_date(place)
    requirements.write_bytes(before)
    assert setup.is_up_to_date(place)

    (place.site / "torch-1.0.dist-info").rename(place.site / "torch-2.0.dist-info")
    assert not setup.is_up_to_date(place)
    (place.site / "torch-2.0.dist-info").rename(place.site / "torch-1.0.dist-info")
    assert setup.is_up_to_date(place)

    place.python.unlink()
    assert not setup.is_up_to_date(place)


def test_a_file_cut_short_shows_only_to_a_thorough_look(place: Place) -> None:
    fake_venv(place)
    setup.write_stamp(place)
    (place.site / "torch.py").write_text("")
    assert setup.is_up_to_date(place)
    assert not setup.is_up_to_date(place, thorough=True)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": 1, "entries": null}', '{"key": "0", "ent'])
def test_a_stamp_that_cannot_be_read_counts_as_none(place: Place, content: str) -> None:
    fake_venv(place)
    place.stamp.write_text(content)
    assert not setup.is_up_to_date(place)


def test_a_run_that_fails_leaves_no_stamp(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_venv(place)
    place.stamp.write_text(json.dumps({"key": "of older requirements", "entries": []}))
    monkeypatch.setattr(setup, "missing_system_packages", lambda _: [])
    monkeypatch.setattr(setup, "make_venv", lambda _: None)

    def no_network(_: Place) -> None:
        raise SetupError("no network")

    monkeypatch.setattr(setup, "install_requirements", no_network)
    assert setup.main([], place) == 1
    assert not place.stamp.exists()


# ---- MinkowskiEngine


class FakeEngine:
    """Stands for pip and the interpreter: counts builds, and knows which installed wheels can be imported."""

    def __init__(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        self.builds = 0
        self.installed: bytes | None = None
        self.unloadable: bytes | None = None
        monkeypatch.setattr(setup, "engine_error", lambda _: None if self.works() else "undefined symbol")
        monkeypatch.setattr(setup, "ask", lambda *_: subprocess.CompletedProcess([], 0, "2.13.0+cpu\n", ""))
        monkeypatch.setattr(setup, "run", self.run)
        monkeypatch.setattr(setup, "missing_system_packages", lambda _: [])

    def works(self) -> bool:
        return self.installed is not None and self.installed != self.unloadable

    def run(self, place: Place, command: list[object], **environment: str) -> None:
        words = [str(word) for word in command]
        if "wheel" in words:
            self.builds += 1
            fake_wheel(Path(words[words.index("--wheel-dir") + 1]) / WHEEL)
        else:
            self.installed = Path(words[-1]).read_bytes()


@pytest.fixture
def engine(place: Place, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    return FakeEngine(place, monkeypatch)


def test_the_engine_is_built_once_and_its_wheel_kept_for_the_next_checkout(place: Place, engine: FakeEngine) -> None:
    setup.install_engine(place)
    assert engine.works() and engine.builds == 1
    folder = place.wheels("2.13.0+cpu")
    assert [path.name for path in folder.iterdir() if path.name != ".lock"] == [WHEEL]

    engine.installed = None
    setup.install_engine(place)
    assert engine.works() and engine.builds == 1


def test_an_engine_that_can_be_imported_is_respected(place: Place, engine: FakeEngine) -> None:
    engine.installed = b"built by the user for a GPU"
    setup.install_engine(place)
    assert engine.builds == 0 and engine.installed == b"built by the user for a GPU"


def test_a_cached_wheel_that_is_cut_short_is_built_anew(place: Place, engine: FakeEngine) -> None:
    wheel = fake_wheel(place.wheels("2.13.0+cpu") / WHEEL)
    cut_short(wheel)
    setup.install_engine(place)
    assert engine.works() and engine.builds == 1 and setup.is_whole_wheel(wheel)


def test_a_cached_wheel_that_does_not_load_is_built_anew(place: Place, engine: FakeEngine) -> None:
    wheel = place.wheels("2.13.0+cpu") / WHEEL
    fake_wheel(wheel)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("made-for", "another torch")
    engine.unloadable = wheel.read_bytes()
    setup.install_engine(place)
    assert engine.works() and engine.builds == 1


def test_a_build_that_fails_leaves_nothing_in_the_cache(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place.wheels("2.13.0+cpu")

    def half_a_build(_: Place, command: list[object], **environment: str) -> None:
        cut_short(fake_wheel(folder / "build" / WHEEL))
        raise SetupError("killed")

    monkeypatch.setattr(setup, "run", half_a_build)
    with pytest.raises(SetupError, match="killed"):
        setup.build_engine(place, folder)
    assert list(folder.iterdir()) == []


def test_where_there_is_nvcc_and_a_torch_of_cuda_the_patched_source_is_built_for_gpus(
    place: Place, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, stub: Callable[[str, str], Path]
) -> None:
    stub("nvcc", "exit 0")
    commands: list[list[str]] = []
    run = engine.run

    def noted(place: Place, command: list[object], **environment: str) -> None:
        commands.append([str(word) for word in command])
        if "patched_engine.py" in commands[-1][1]:
            (Path(commands[-1][2]) / "MinkowskiEngine-0.5.4").mkdir(parents=True)
        else:
            run(place, command, **environment)

    monkeypatch.setattr(setup, "run", noted)
    monkeypatch.setattr(setup, "ask", lambda *_: subprocess.CompletedProcess([], 0, "2.13.0\n", ""))
    setup.install_engine(place)
    fetch, build, install = commands
    assert fetch[1] == str(place.install / "patched_engine.py")
    assert any("--force_cuda" in word for word in build) and build[-1].endswith("build/MinkowskiEngine-0.5.4")
    assert install[-1] == str(place.wheels("2.13.0", for_cuda=True) / WHEEL)
    # one of the CPU lies elsewhere, and a torch without CUDA has no use for nvcc
    engine.installed = None
    monkeypatch.setattr(setup, "ask", lambda *_: subprocess.CompletedProcess([], 0, "2.13.0+cpu\n", ""))
    setup.install_engine(place)
    assert any("--cpu_only" in word for word in commands[-2]) and commands[-2][-1] == "MinkowskiEngine==0.5.4"


def test_the_patch_says_what_it_changes_and_applies_to_nothing_else(tmp_path: Path) -> None:
    text = (ROOT / "install" / "minkowskiengine-cuda.patch").read_text()
    changed = re.findall(r"^\+\+\+ b/(\S+)", text, re.MULTILINE)
    assert "src/3rdparty/concurrent_unordered_map.cuh" in changed and "src/spmm.cu" in changed
    added = [line for line in text.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert "+#include <ATen/ATen.h>" in added and not any("cudaMemPrefetchAsync(" in line for line in added)
    if shutil.which("patch") is None:
        pytest.skip("there is no program `patch` on this machine")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "spmm.cu").write_text("something else\n")
    words = ["patch", "--quiet", "--strip=1", "--batch", f"--directory={tmp_path}"]
    with (ROOT / "install" / "minkowskiengine-cuda.patch").open() as patch:
        assert subprocess.run(words, stdin=patch, capture_output=True, check=False).returncode != 0


# ---- two at once


def test_a_lock_is_held_while_in_use_and_left_behind_it_blocks_nobody(tmp_path: Path) -> None:
    path = tmp_path / ".setup.lock"
    with setup.locked(path), path.open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_costs_a_sentence_and_not_the_set_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: int
) -> None:
    def refused(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refused)
    with setup.locked(tmp_path / ".setup.lock"):
        assert "cannot be locked" in capsys.readouterr().out


def test_a_terminal_that_knows_ascii_alone_is_told_of_a_folder_with_umlauts(tmp_path: Path) -> None:
    checkout = tmp_path / "Straßen"
    shutil.copytree(ROOT / "install", checkout / "install", ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / ".setup.lock").mkdir()  # cannot be opened: the error names it
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    words = [sys.executable, str(checkout / "install" / "setup.py")]
    done = subprocess.run(words, env=plain, capture_output=True, text=True, errors="replace")
    assert done.returncode == 1 and "Traceback" not in done.stderr and "Stra" in done.stderr


def test_the_lock_of_a_killed_set_up_is_free(tmp_path: Path) -> None:
    path = tmp_path / ".setup.lock"
    holder = f"""
        import time
        from pathlib import Path
        from install.setup import locked
        with locked(Path({str(path)!r})):
            print("held", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(holder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with path.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.send_signal(signal.SIGKILL)
    with setup.locked(path):
        pass


# ---- make


def test_git_ignores_local_files_by_a_list_of_its_own(place: Place) -> None:
    """And not by .gitignore, which Ray obeys: what is laid over a recipe has to travel with a job."""
    setup.ignore_local_files(place)
    assert not (place.root / ".git").exists(), "what is no checkout becomes none"
    subprocess.run(["git", "init", "-q", place.root], check=True)
    (place.root / "mine.local.toml").write_text("")
    (place.root / ".git" / "info" / "exclude").write_text("kept")
    for _ in range(2):
        setup.ignore_local_files(place)
    assert (place.root / ".git" / "info" / "exclude").read_text() == "kept\n*.local.toml\n"
    status = ["git", "-C", str(place.root), "status", "--porcelain", "--ignored", "mine.local.toml"]
    assert subprocess.run(status, capture_output=True, text=True, check=True).stdout == "!! mine.local.toml\n"


def test_an_environment_that_others_use_too_is_never_cleared(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other" / ".venv").mkdir(parents=True)
    (tmp_path / "other" / ".venv" / "kept").write_text("")
    place.venv.symlink_to(tmp_path / "other" / ".venv")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    setup.set_up(place)
    assert (tmp_path / "other" / ".venv" / "kept").exists() and "is a link to" in capsys.readouterr().out
