"""How programs end: one table of exit codes, messages that are never empty, and traces that leave nothing out."""

import errno
import pickle
import re
from enum import Enum
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manifests.config import ConfigError
from manifests.endings import Bug, Ending, ending_of, is_bug, one_line, printable, summary, trace_of
from manifests.storage.errors import DiskFull, StoreError
from pipeline.frame import FrameError
from trainer.errors import TrainerError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (ConfigError("x"), Ending.RECIPE),
        (StoreError("x"), Ending.STORE),
        (DiskFull("x"), Ending.STORE),
        (FrameError("x"), Ending.FAILED),
        (TrainerError("x"), Ending.FAILED),
        (OSError(errno.ENOSPC, "No space left on device"), Ending.FAILED),
        (MemoryError(), Ending.FAILED),
        (torch.OutOfMemoryError("x"), Ending.FAILED),
        (KeyboardInterrupt(), Ending.INTERRUPTED),
        (Bug("x", "trace"), Ending.BUG),
        *((kind("x"), Ending.BUG) for kind in (KeyError, TypeError, AttributeError, AssertionError, IndexError)),
        *((kind("x"), Ending.BUG) for kind in (NameError, ValueError, RuntimeError, ZeroDivisionError)),
    ],
)
def test_an_error_has_one_exit_code_whatever_program_meets_it(error: BaseException, ending: Ending) -> None:
    assert ending_of(error) is ending
    assert is_bug(error) == (ending is Ending.BUG) or isinstance(error, KeyboardInterrupt)


def test_the_table_of_exit_codes_in_the_documentation_is_the_one_of_the_code() -> None:
    document = (ROOT / "docs" / "debugging.md").read_text(encoding="utf-8")
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", document, re.MULTILINE)}
    assert issubclass(Ending, Enum) and told == {int(ending) for ending in Ending}


@given(kind=st.sampled_from([RuntimeError, KeyError, FrameError, ConfigError, StoreError]), text=st.text(max_size=20))
def test_a_message_is_one_line_never_empty_and_holds_nothing_that_a_terminal_obeys(
    kind: type[Exception], text: str
) -> None:
    told = summary(kind(text))
    assert told and told.isprintable()
    if text and text.isprintable() and text == " ".join(text.split()) and kind is FrameError:
        assert told == text


def test_an_error_without_a_message_is_told_by_its_kind() -> None:
    assert summary(RuntimeError()) == "RuntimeError" and summary(FrameError("")) == "FrameError"
    assert printable("a\x1b[2Jb\n") == r"a\x1b[2Jb\n"


def test_a_list_stays_readable_as_one_line() -> None:
    told = TrainerError("run is another one:\n  lr: 1 -> 2\n  split: a -> b\nTrain it again: make distill")
    assert summary(told) == "run is another one: lr: 1 -> 2; split: a -> b. Train it again: make distill"
    assert one_line("no list\nof any kind") == "no list of any kind" and one_line("\n") == ""
    assert one_line("one:\n  ends here.\nThen more") == "one: ends here. Then more"


def test_a_trace_holds_what_raise_from_none_leaves_out() -> None:
    def told() -> None:
        try:
            dict[str, int]()["veiw"]
        except KeyError:
            raise FrameError("a sentence") from None

    with pytest.raises(FrameError) as caught:
        told()
    assert "KeyError: 'veiw'" in trace_of(caught.value) and "a sentence" in trace_of(caught.value)


def test_a_bug_travels_between_processes_with_its_trace() -> None:
    try:
        dict[str, int]()["veiw"]
    except KeyError as error:
        bug = pickle.loads(pickle.dumps(Bug.of(error, "in stage group")))
    assert str(bug) == "KeyError: 'veiw' (in stage group)" and '()["veiw"]' in trace_of(bug)
    assert Bug.of(bug, "elsewhere") is bug


def test_a_file_name_that_the_locale_cannot_say_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnicodeEncodeError) as caught:
        "stör\udcc3".encode()
    assert is_bug(caught.value), "in a locale of UTF-8 it is one"
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    assert ending_of(caught.value) is Ending.FAILED
    assert summary(caught.value).endswith("file names to be ascii here; set PYTHONUTF8=1, or LC_ALL=C.UTF-8")
