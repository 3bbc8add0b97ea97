"""What the command lines of pipeline and trainer share: errors as sentences, exit codes, `--debug`, the log file."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from manifests.advice import filled
from manifests.config import RECIPES, ConfigError, find_recipe, local_file, read_recipe
from manifests.endings import Ending, ending_of, summary, trace_of
from manifests.pulse import pulse
from manifests.sections.data import RunConfig
from manifests.shown import shown_text

LOG_NAME = "afov.log"
MOST_LOG_BYTES = 16_000_000  # then it becomes afov.log.1, and a new one begins

FOR_THE_LOG = "afov"  # what this logger, and those below it, are told goes to the log file and not to the screen
OURS = ("manifests", "pipeline", "trainer", "bench")

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")  # of `s3://bucket`, a path keeps one slash

_log = logging.getLogger(FOR_THE_LOG)


def matching_recipes(incomplete: str) -> list[str]:
    """Return the built-in recipes, and the .toml files here, that begin so."""
    names = [*sorted(file.stem for file in RECIPES.glob("*.toml")), *sorted(map(str, Path().glob("*.toml")))]
    return [name for name in names if name.startswith(incomplete) and not name.endswith(".local.toml")]


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe: a .toml file, or the name of a built-in one.",
        autocompletion=matching_recipes,
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a value; may be repeated.")
]
LicenceOption = Annotated[
    Path | None, typer.Option(help="A text on whose data this is and who may use it; needed for your own logs.")
]
AloneOption = Annotated[
    bool, typer.Option("--alone", help="Leave out what the tables were made from; others build that anew.")
]
DebugOption = Annotated[
    bool, typer.Option("--debug", help="Print the trace of every error too; the log file says more.")
]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Keep runs, scores, report and labels under this name: run.name.")
]


@dataclass(frozen=True)
class Asked:
    """What a command was asked: its recipe, as far as it has one, and whether with `--debug`."""

    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    debug: bool = False


_asked: ContextVar[Asked] = ContextVar("_asked", default=Asked())  # noqa: B039 (it is frozen)


def plain_console(**options: Any) -> Console:
    """Return a console that prints text as it is: no markup and no emoji is read out of it.

    Causes and file names hold brackets and colons, which markup and emoji would swallow or stumble over.
    """
    return PlainConsole(highlight=False, markup=False, emoji=False, **options)


class PlainConsole(Console):
    """A console that tells advice with the recipe as it was typed, in tables too."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text to show."""
        return super().render_str(told(text), **options)


def told(text: str) -> str:
    """Return a message with the command's recipe in its advice, where the command has one."""
    asked = _asked.get()
    return text if asked.recipe is None else filled(text, asked.recipe, asked.overrides)


def forgiving_streams() -> None:
    """Have characters that stdout and stderr cannot hold written as their numbers, instead of failing at the first."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # a stand-in for a stream, or one that is closed
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def debuggable(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that also takes `--debug`, and `--name` if it has a recipe, which its `sentences` know."""
    signature = inspect.signature(command, eval_str=True)
    known = dict(signature.parameters)
    sets = next((word for word in ("set_", "override") if word in known), "")

    @functools.wraps(command)
    def called(*args: Any, debug: bool = False, name: str | None = None, **words: Any) -> None:
        if name is not None:
            words[sets] = [*(words.get(sets) or ()), f"run.name={json.dumps(name)}"]
        recipes = [words.get("recipe"), *(words.get("recipes") or ())]
        overrides = words.get(sets) or ()
        for name, value in words.items():
            if isinstance(value, Path) and _ADDRESS.match(str(value)):  # it would become a folder of that name
                told_as = f"{shown_text(str(value))} is an address; give a path on this machine"
                raise typer.BadParameter(told_as, param_hint=name)
        token = _asked.set(Asked(next(filter(None, recipes), None), tuple(overrides), debug))
        try:
            command(*args, **words)
        finally:
            _asked.reset(token)

    last = [inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=DebugOption)]
    if sets and "name" not in known:
        last.append(inspect.Parameter("name", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=NameOption))
    parameters = [*known.values(), *last]
    called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in parameters}
    return called


@contextmanager
def sentences(program: str = "error", kept: str = "finished shards are kept, the next run goes on") -> Iterator[None]:
    """End the program with a sentence on stderr and the code of the table where something goes wrong.

    A bug ends it with its whole trace. The trace of any other error goes to the log file, and to stderr with `--debug`.
    Ctrl-C and SIGTERM end it alike; `kept` says what of its work stays.
    """
    asked = _asked.get()
    forgiving_streams()
    with interruptible(), logged(asked) as log, heartbeat(asked):
        try:
            tell_of_local_file(asked)
            yield
        except (typer.Exit, typer.Abort, SystemExit):
            raise
        except BaseException as error:
            end(error, program, kept, asked.debug, log)


@contextmanager
def heartbeat(asked: Asked) -> Iterator[None]:
    """Let the command say that it lives, where no terminal shows it; not with `run.progress` false."""
    if not wants_progress(asked):
        yield
        return
    with pulse(next((word for word in sys.argv[1:] if not word.startswith("-")), "afov")):
        yield


def wants_progress(asked: Asked) -> bool:
    """Return whether the recipe asks for progress to be shown; also where it cannot be read, which is told later."""
    if asked.recipe is None:
        return True
    try:
        return read_recipe(asked.recipe, asked.overrides).section("run", RunConfig).progress
    except (ConfigError, OSError):
        return True


def tell_of_local_file(asked: Asked) -> None:
    """Print which file is laid over the command's recipe, if one is."""
    with suppress(ConfigError):  # the command itself says what is wrong with its recipe
        if asked.recipe is not None and (local := local_file(find_recipe(asked.recipe))).is_file():
            tell(f"note: {local} is laid over recipe {asked.recipe}")


def end(error: BaseException, program: str, kept: str, debug: bool, log: Path | None) -> NoReturn:
    """Tell why the program ends, on stderr and in the log, and end it with the code of the table."""
    ending, trace = ending_of(error), trace_of(error)
    if ending is Ending.INTERRUPTED:
        tell(f"{program}: {error}" if str(error) else f"{program}: interrupted; {kept}")
        raise typer.Exit(int(ending)) from None
    _log.error("%s\n%s", told(summary(error)), trace)
    if ending is Ending.BUG or debug:
        tell(trace.rstrip())
    if ending is not Ending.BUG:
        tell(f"{program}: {told(summary(error))}")
        raise typer.Exit(int(ending)) from None
    where = f" and in {log}" if log and log.exists() else ""
    tell(
        f"{program}: this is a bug in AFOV, not in your data: {summary(error)}\nIts trace is above{where}; "
        "please report it. What was finished is kept. docs/debugging.md says how to look closer."
    )
    raise typer.Exit(int(ending)) from None


def tell(text: str) -> None:
    """Print on stderr, whatever its encoding can hold; a stderr that is gone is no reason to fail."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    with suppress(OSError, ValueError):
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr, flush=True)


@contextmanager
def interruptible() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def logged(asked: Asked) -> Iterator[Path | None]:
    """Have what is logged written to the recipe's log file, and warnings to stderr; yield its path, None without one.

    The file comes into being with the first thing that is worth telling: a warning, a failure, an error, with `--debug`
    every step. The command stands before it. A folder that cannot be written costs the log, not the run.
    """
    root, stack = logging.getLogger(), ExitStack()
    stderr = Telling()
    stderr.setLevel(logging.WARNING)
    stderr.addFilter(lambda record: not record.name.startswith(FOR_THE_LOG))
    handlers: list[logging.Handler] = [stderr]
    path = log_path(asked)
    if path is not None:
        file = LogFile(path)
        handlers.append(file)
        for name in (FOR_THE_LOG, *(OURS if asked.debug else ())):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.DEBUG if asked.debug else logging.INFO)
    with stack:
        for handler in handlers:
            root.addHandler(handler)
        try:
            _log.debug("begins")
            yield path
        finally:
            for handler in handlers:
                root.removeHandler(handler)
                handler.close()


def log_path(asked: Asked) -> Path | None:
    """Return where the log of a command's recipe is: `run.runs`/RECIPE/afov.log; None without a readable recipe."""
    if asked.recipe is None:
        return None
    try:
        recipe = read_recipe(asked.recipe, asked.overrides)
        run = recipe.section("run", RunConfig)
        return Path(run.runs).expanduser() / (run.name or recipe.name) / LOG_NAME
    except (ConfigError, OSError):
        return None  # the command itself says what is wrong with it


class Telling(logging.Handler):
    """Prints warnings on stderr as plain lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one."""
        tell(told(shown_text(record.getMessage())))


class LogFile(RotatingFileHandler):
    """A log file that comes into being, with the command on top, when something is written."""

    def __init__(self, path: Path) -> None:
        how = {"maxBytes": MOST_LOG_BYTES, "backupCount": 1, "encoding": "utf-8", "errors": "backslashreplace"}
        super().__init__(path, delay=True, **how)  # type: ignore[arg-type]
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._path, self._begun, self._broken = path, False, False

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as it stands in the log: without passwords, which the command line may hold."""
        return shown_text(super().format(record))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; the first failure to write is told, and the last."""
        if self._broken:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not self._begun:
                self._begun = True
                words = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
                super().emit(self._made(record, f"process {os.getpid()}: {words}"))
            super().emit(record)
        except (OSError, UnicodeError) as error:
            self._fail(error)

    def handleError(self, record: logging.LogRecord) -> None:
        """Tell that the log cannot be written, once."""
        self._fail(sys.exc_info()[1])

    def _fail(self, error: BaseException | None) -> None:
        if not self._broken:
            tell(f"note: the log {self._path} cannot be written: {error}")
        self._broken = True

    @staticmethod
    def _made(record: logging.LogRecord, text: str) -> logging.LogRecord:
        return logging.LogRecord(_log.name, logging.INFO, record.pathname, 0, text, None, None)
