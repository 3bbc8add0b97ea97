"""`afov VERB RECIPE ...`, or `python -m afov`: the verbs of both programs, each imported when it is asked for."""

from __future__ import annotations

import importlib
import os
import site
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from afov.verbs import ELSEWHERE, JOBS, PROGRAMS, job_of, source
from manifests.advice import STYLE


class Verbs(TyperGroup):
    """A group whose commands come from the programs that have them, when they are needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return all verbs by job, then those that a program has and no job lists."""
        listed = [verb for verbs in JOBS.values() for verb in verbs]
        more = [
            verb
            for program, hidden in ELSEWHERE.items()
            for verb in program_verbs(program)
            if verb not in hidden and verb not in listed
        ]
        return [*listed, *dict.fromkeys(more)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a verb's command; None where there is no such verb."""
        found = source(cmd_name)
        if found is not None:
            program, words = found
            command: Any = typer.main.get_command(importlib.import_module(PROGRAMS[program]).app)
            for word in words:
                command = command.commands[word]
        else:
            rooms = [room for room, hidden in ELSEWHERE.items() if cmd_name not in hidden]
            command = next((program_verbs(room)[cmd_name] for room in rooms if cmd_name in program_verbs(room)), None)
        if command is not None:
            command.name = cmd_name
            command.rich_help_panel = job_of(cmd_name)
        return command

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return the verbs that begin so; no program is imported for that."""
        from typer._click.shell_completion import CompletionItem

        verbs = [verb for verbs in JOBS.values() for verb in verbs if verb.startswith(incomplete)]
        return [CompletionItem(verb, help=job_of(verb)) for verb in verbs]


def program_verbs(program: str) -> dict[str, Any]:
    """Return the commands of a program by name."""
    group: Any = typer.main.get_command(importlib.import_module(PROGRAMS[program]).app)
    return dict(group.commands)


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def told_version(wanted: bool) -> None:
    """Print the version and end, where it is asked for."""
    if wanted:
        typer.echo(f"afov {metadata.version('afov')}")
        raise typer.Exit


@app.callback()
def afov(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=told_version, is_eager=True)
    ] = False,
) -> None:
    """Label-free LiDAR segmentation: tables from logs and images, students from tables, labels from both.

    Every verb takes a recipe first: the name of a built-in one (`afov recipes`), or a .toml file.
    """


def main() -> None:
    """Run the command: processes that it starts import this code and not what lies in the working folder."""
    root = str(Path(__file__).resolve().parent.parent)
    if (
        root not in site.getsitepackages()
    ):  # a checkout; site-packages before the standard library would hide parts of it
        others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != root]
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *others])
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ.setdefault(STYLE, "afov")
    sys.argv[0] = "afov"
    app(prog_name="afov")


if __name__ == "__main__":
    main()
