"""A bug is told as a bug, with its trace; bad data as bad data, word for word; and both leave a log."""

from __future__ import annotations

import dataclasses
import errno
import io
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from manifests.endings import Bug, Ending
from manifests.recipe import load_recipe
from manifests.sections.data import DataConfig
from manifests.storage.store import Store
from manifests.tables.superpoints import Group
from pipeline.__main__ import app
from pipeline.commands import build
from pipeline.commands.console import console
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.ray_pool import RayPool
from pipeline.engine.runner import Runner
from pipeline.engine.tasks import Failure, Outcome, Task
from pipeline.engine.worker import Worker
from pipeline.frame import FrameError
from pipeline.stages.base import FrameInput, OneByOne
from pipeline.stages.registry import STAGES
from trainer.__main__ import app as trainer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe(shared: Path, tmp_path: Path) -> Path:
    """A recipe of three simulated frames, whose runs are kept below `tmp_path` too."""
    path = tmp_path / "tiny.toml"
    path.write_text(
        f'[data]\nroot = "{shared / "golden" / "nuscenes_tiny"}"\n[run]\nstore = "{tmp_path / "store"}"\n'
        f'runs = "{tmp_path / "runs"}"\n'
        f'[teacher]\nname = "artifacts"\nfolder = "{shared / "golden" / "superpixels_tiny"}"\nvoid = true\n'
    )
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Return a function that runs a command and returns exit code and everything printed."""
    monkeypatch.setenv("COLUMNS", "240")

    def command(*words: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(word) for word in words])
        return result.exit_code, result.output

    return command


@pytest.fixture
def group_raises(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], BaseException]], None]:
    """Return a function that lets stage `group` fail on every frame in the given way."""

    def fail(error: Callable[[], BaseException]) -> None:
        def group(inputs: FrameInput) -> Group:
            raise error()

        broken = dataclasses.replace(STAGES["group"], prepare=lambda recipe: group)
        monkeypatch.setitem(STAGES, "group", broken)

    return fail


@pytest.mark.parametrize("kind", [KeyError, TypeError, AssertionError, IndexError, ValueError, RuntimeError])
def test_a_bug_in_a_stage_ends_the_run_with_its_trace_and_a_code_of_its_own(
    run: Callable[..., tuple[int, str]], recipe: Path, tmp_path: Path, group_raises: Callable[..., None], kind: type
) -> None:
    group_raises(lambda: kind("veiw"))
    code, text = run("run", "group", recipe)
    log = (tmp_path / "runs" / "tiny" / "afov.log").read_text()
    assert code == Ending.BUG
    assert "this is a bug in AFOV, not in your data" in text and "in stage group, shard scene-0001, frame" in text
    for told in (text, log):
        assert told.count("Traceback") == 1 and "test_bugs.py" in told and kind.__name__ in told and "veiw" in told
    assert "exclude" not in text and "repair" not in text
    store = Store.open(tmp_path / "store")
    [segment] = store.manifests("segment")
    assert len(segment.shards) == 2, "what was committed before stays"


def test_bad_frames_are_all_listed_and_their_traces_are_in_the_log_alone(
    run: Callable[..., tuple[int, str]], recipe: Path, tmp_path: Path, group_raises: Callable[..., None]
) -> None:
    group_raises(lambda: FrameError("a [left] image of 0 bytes: [/b] :car: [nan, nan]"))
    code, text = run("run", "group", recipe)
    assert code == Ending.FAILED and text.count("a [left] image of 0 bytes: [/b] :car: [nan, nan]") == 3
    assert "3 frames failed; repair them" in text and "Traceback" not in text
    log = (tmp_path / "runs" / "tiny" / "afov.log").read_text()
    assert "run group" in log.splitlines()[0] or "process" in log.splitlines()[0]
    assert log.count("failed: group") == 3 and "Traceback" in log and "test_bugs.py" in log


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_a_machine_that_fails_is_no_bug(
    run: Callable[..., tuple[int, str]], recipe: Path, group_raises: Callable[..., None], error: Exception
) -> None:
    group_raises(lambda: error)
    code, text = run("run", "group", recipe)
    assert code == Ending.FAILED and type(error).__name__ in text and "bug" not in text


def test_an_error_that_a_command_did_not_expect_is_never_told_by_an_empty_message(
    run: Callable[..., tuple[int, str]], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(*_: object) -> Iterator[Path]:
        raise RuntimeError

    monkeypatch.setattr("pipeline.look.frames.draw_frames", draw)
    code, text = run("pictures", recipe)
    assert code == Ending.BUG and "Traceback" in text and "not in your data: RuntimeError" in text


def test_debug_prints_the_trace_of_an_expected_error_and_is_an_option_of_every_command(
    run: Callable[..., tuple[int, str]], recipe: Path
) -> None:
    words = ("plan", recipe, "--set", "data.split=nowhere")
    code, text = run(*words)
    assert code == Ending.RECIPE and "Traceback" not in text
    code, text = run(*words, "--debug")
    assert code == Ending.RECIPE and "Traceback" in text
    assert text.rstrip().splitlines()[-1].startswith("error: data.split")
    for program in (app, trainer):
        commands = [[one.name or str(one.callback.__name__)] for one in program.registered_commands if one.callback]
        for group in program.registered_groups:
            found = group.typer_instance.registered_commands if group.typer_instance else []
            commands += [[str(group.name), str(one.name)] for one in found]
        assert len(commands) >= 14
        for command in commands:
            if command == ["city"]:  # hands over to another program
                continue
            told = CliRunner().invoke(program, [*command, "--help"])
            assert told.exit_code == 0 and "--debug" in told.output, command


def test_with_debug_the_log_tells_every_shard_and_without_a_good_run_leaves_none(
    run: Callable[..., tuple[int, str]], recipe: Path, tmp_path: Path
) -> None:
    log = tmp_path / "runs" / "tiny" / "afov.log"
    assert run("run", "points", recipe)[0] == 0 and not log.exists()
    assert run("run", "project", recipe, "--debug")[0] == 0
    assert log.read_text().count("project scene-") == 2
    assert not [handler for handler in logging.getLogger().handlers if "LogFile" in type(handler).__name__]


def test_a_log_that_cannot_be_written_costs_a_note_and_not_the_run(
    run: Callable[..., tuple[int, str]], recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs").write_text("a file where a folder is wanted")
    code, text = run("run", "points", recipe, "--debug")
    assert code == 0 and text.count("the log") == 1 and "cannot be written" in text


@given(cause=st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], max_codepoint=0x2FF), min_size=1))
def test_a_cause_is_printed_as_it_is_whatever_signs_it_holds(cause: str) -> None:
    printed = Console(width=400, record=True, file=io.StringIO(), markup=False, emoji=False, highlight=False)
    recipe: Any = SimpleNamespace(data=DataConfig(root="data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "console", printed)
        build.print_failures([Failure("index", "scene", "[i]frame[/i]", f"[b]{cause}[/b]")], recipe, {})
    told = printed.export_text()
    assert f"[b]{cause}[/b]" in told and "[i]frame[/i]" in told


def test_the_pipelines_console_reads_nothing_out_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    console.print("[/b] [left] :car: [red]x[/red] [nan, nan]")
    assert capsys.readouterr().out == "[/b] [left] :car: [red]x[/red] [nan, nan]\n"


def test_a_terminal_without_umlauts_gets_their_numbers(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Straßen ☃"
    folder.mkdir()
    there = folder / "tiny.toml"
    there.write_text(recipe.read_text().replace(str(tmp_path / "store"), str(folder / "störe")))
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    words = [sys.executable, "-m", "pipeline", "plan", str(there), "index"]
    done = subprocess.run(words, cwd=ROOT, env=plain, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr and b"GB free in" in done.stdout and b"st\\xf6re" in done.stdout


class Misspelt(Worker):
    """A worker with a bug in its stage."""

    def run(self, task: Task) -> Outcome:
        if task.stage == "points":
            self._function = OneByOne(lambda inputs: inputs["veiw"])  # type: ignore[index]
            self._stage = STAGES["points"]
        return super().run(task)


def test_on_ray_the_trace_of_the_worker_arrives(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    with RayPool(loaded, Misspelt) as pool, pytest.raises(Bug) as caught:
        Runner(loaded).run(["points"], pool)
    assert "in stage points" in str(caught.value)
    assert "Traceback" in caught.value.trace and 'inputs["veiw"]' in caught.value.trace


def test_a_bug_names_what_was_built_before_it(recipe: Path, group_raises: Callable[..., None]) -> None:
    loaded = load_recipe(recipe)
    group_raises(lambda: KeyError("veiw"))
    with pytest.raises(Bug):
        Runner(loaded).run(["group"], InlinePool(loaded))
    ref = Runner(loaded).read_ref()
    assert ref is not None and "segment" in ref.tables


def test_one_frame_is_made_in_this_process_and_nothing_is_committed(
    run: Callable[..., tuple[int, str]], recipe: Path, tmp_path: Path, group_raises: Callable[..., None]
) -> None:
    loaded = load_recipe(recipe)
    frame = next(iter(Runner(loaded).listing().values()))[1].frame_id
    code, text = run("debug-frame", "group", recipe, frame)
    assert code == Ending.RECIPE and "make group" in text, "what it needs is not built"
    assert run("run", "project,segment", recipe)[0] == 0
    code, text = run("debug-frame", "group", recipe, frame)
    assert code == 0 and "point_superpoint  int32 (" in text
    assert Store.open(loaded.run.store).manifests("group") == []
    group_raises(lambda: KeyError("veiw"))
    code, text = run("debug-frame", "group", recipe, frame)
    assert code == Ending.BUG and "test_bugs.py" in text
    assert run("debug-frame", "group", recipe, "nowhere")[0] == Ending.RECIPE
    assert run("debug-frame", "text", recipe, frame)[0] == Ending.RECIPE


def test_a_temporary_folder_without_room_is_told_in_a_sentence(
    run: Callable[..., tuple[int, str]], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open("/dev/full", "r+b", buffering=0))  # noqa: SIM115
    code, text = run("run", "points", recipe)
    assert code == Ending.FAILED and "Traceback" not in text and "TMPDIR=/a/folder" in text


@pytest.mark.parametrize("utf8", [True, False])
def test_a_run_in_folders_with_umlauts_works_in_the_c_locale_or_says_what_to_set(
    recipe: Path, tmp_path: Path, utf8: bool
) -> None:
    folder = tmp_path / "Straßen ☃"
    folder.mkdir()
    (folder / "tiny.toml").write_text(recipe.read_text().replace(str(tmp_path), str(folder)))
    off = {} if utf8 else {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, "-m", "pipeline", "run", "index", str(folder / "tiny.toml"), "--debug"]
    plain = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", **off}
    done = subprocess.run(words, cwd=ROOT, env=plain, capture_output=True, timeout=200)
    if utf8:
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
        assert "Straßen ☃" in (folder / "runs" / "tiny" / "afov.log").read_text(encoding="utf-8")
    else:
        assert done.returncode == Ending.FAILED and b"PYTHONUTF8=1" in done.stderr, done.stderr
