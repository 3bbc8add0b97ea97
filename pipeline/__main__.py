"""Command line of the offline pipeline: look, plan, run, ask about tables, show them."""

from __future__ import annotations

from collections.abc import Callable

import typer

from pipeline.commands import build, exchange, look

app = typer.Typer(
    help="Offline pipeline: precompute masks, features, projections and groupings into Parquet tables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS: tuple[Callable[..., None], ...] = (
    *(build.plan, build.run, build.why, build.doctor, build.status, build.verify, build.gc),
    *(look.query, look.report, look.view, look.pictures, look.docs),
)
for command in COMMANDS:
    app.command()(command)
app.command("export")(exchange.export_command)

tables = typer.Typer(help="Hand tables on as one file.", no_args_is_help=True)
tables.command("export")(exchange.export_tables)
tables.command("import")(exchange.import_tables)
app.add_typer(tables, name="store")

if __name__ == "__main__":
    app()
