"""A command that says nothing for a while says how far it is; one that speaks, or that a terminal shows, does not."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from manifests.console import Asked, heartbeat, wants_progress
from manifests.pulse import Bar, Heard, pulse

ROOT = Path(__file__).resolve().parent.parent.parent


def said(program: str) -> list[str]:
    program = "import time\nfrom manifests.pulse import Bar, left_to_another, pulse\n" + textwrap.dedent(program)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    return done.stderr.splitlines()


def test_a_silent_command_says_how_far_its_newest_bar_is() -> None:
    lines = said(
        """
        with pulse("verify", 0.2), Bar(disable=True) as bar:
            task = bar.add_task("shards", total=8)
            bar.advance(task, 3)
            time.sleep(0.5)
            bar.advance(task, 5)
            time.sleep(0.3)
        """
    )
    assert lines[0].startswith("verify: shards: 3 of 8, ")
    assert lines[-1].startswith("verify: under way, ")  # all of the bar is done
    assert all(line.endswith(" s so far") for line in lines)


@pytest.mark.parametrize(
    "program",
    [
        'with pulse("x", 1.0):\n    for _ in range(12):\n        print("word", flush=True)\n        time.sleep(0.15)',
        'with pulse("x", 0.1), left_to_another():\n    time.sleep(0.5)',
        'with pulse("x", 0.1):\n    pass\ntime.sleep(0.3)',
    ],
    ids=["it speaks", "another speaks", "it has ended"],
)
def test_who_is_heard_otherwise_has_no_pulse(program: str) -> None:
    assert said(program) == []


def test_streams_are_as_before_when_a_command_ends_and_a_command_within_another_has_no_pulse_of_its_own(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyError), pulse("outer"):
        assert isinstance(sys.stderr, Heard)
        outer = sys.stderr
        assert outer.encoding == before[1].encoding
        with pulse("inner"):
            assert sys.stderr is outer
        raise KeyError
    assert (sys.stdout, sys.stderr) == before


def test_a_recipe_without_progress_has_no_pulse(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[run]\nprogress = false\n")
    assert not wants_progress(Asked(str(tmp_path / "r.toml")))
    assert wants_progress(Asked(str(tmp_path / "r.toml"), ("run.progress=true",)))
    assert wants_progress(Asked(str(tmp_path / "none.toml")))
    before = sys.stdout
    with heartbeat(Asked(str(tmp_path / "r.toml"))):
        assert sys.stdout is before


def test_a_bar_tells_bytes_as_a_share() -> None:
    with Bar(disable=True) as bar:
        task = bar.add_task("verify", total=4e9)
        bar.advance(task, 1e9)
        assert bar.where() == "verify: 25 %"
