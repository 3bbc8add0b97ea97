"""Command line of the offline pipeline: look, plan, run, ask about tables, show them."""

from __future__ import annotations

from collections.abc import Callable

import typer

from manifests.console import debuggable
from pipeline.commands import beds, build, debug, exchange, look, teacher

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
    app.command()(debuggable(command))
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(beds.city)
app.command("debug-frame")(debuggable(debug.debug_frame))
app.command("check-teacher")(debuggable(teacher.check_teacher))
app.command("export")(debuggable(exchange.export_command))
app.command("labels")(debuggable(exchange.labels_command))
app.command("import")(debuggable(exchange.import_log))
app.command("review")(debuggable(exchange.review_command))

tables = typer.Typer(help="Hand tables on as one file; mark a store of an earlier version.", no_args_is_help=True)
tables.command("export")(debuggable(exchange.export_tables))
tables.command("import")(debuggable(exchange.import_tables))
tables.command("mark")(debuggable(exchange.mark_store))
app.add_typer(tables, name="store")

if __name__ == "__main__":
    app()
