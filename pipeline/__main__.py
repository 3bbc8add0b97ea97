"""Command line of the offline pipeline: look, plan, run, ask about tables, show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.table import Table

from manifests import schema
from manifests.config import ConfigError, RunConfig
from manifests.query import HEADINGS
from manifests.storage.archive import pack, unpack
from manifests.storage.errors import StoreError
from manifests.storage.store import Store
from manifests.storage.verify import damaged_shards
from pipeline.checks.doctor import FRAMES, examine
from pipeline.commands.console import FramesOption, RecipeArgument, SetOption, Targets, console, sentences
from pipeline.engine.cost import Cost, costs
from pipeline.engine.pools import make_pool
from pipeline.engine.progress import progress_of
from pipeline.engine.refs import MANY_FAILURES
from pipeline.engine.runner import Runner
from pipeline.engine.tasks import Failure, Outcome, StagePlan, Task
from pipeline.exchange.export import LAYOUTS, export
from pipeline.look.pictures import draw_frames
from pipeline.look.query import ask
from pipeline.look.report import write_report
from pipeline.look.viewer import view_frames, write_recording
from pipeline.recipe import Recipe, load_recipe
from pipeline.stages import PACKED, STAGES

app = typer.Typer(
    help="Offline pipeline: precompute masks, features, projections and groupings into Parquet tables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tables = typer.Typer(help="Hand tables on as one file.", no_args_is_help=True)
app.add_typer(tables, name="store")

LICENCES = {
    "nuscenes": "Made from nuScenes, or from logs in its layout. nuScenes is for non-commercial use (CC BY-NC-SA 4.0 "
    "and its terms of use), and so are these tables; other logs have terms of their own.\n",
    "semantic_kitti": "Made from SemanticKITTI and the KITTI odometry benchmark, which are for non-commercial use (CC "
    "BY-NC-SA), and so are these tables.\n",
}
"""The note that goes with tables of a data set where none is given."""


@app.command()
def plan(
    recipe: RecipeArgument,
    targets: Targets = None,
    set_: SetOption = None,
    cost: Annotated[bool, typer.Option("--cost", help="Hours too, from what was measured.")] = False,
) -> None:
    """Print what a run would build, why, and how many GB; builds nothing."""
    with sentences():
        runner = Runner(load_recipe(recipe, set_ or ()))
        plans = runner.plan(expand(targets or ["pack"]))
        print_plan(plans)
        if cost:
            print_costs(list(costs(runner, plans)), runner.recipe)
        for item in plans:
            if item.stage.name == "encode":
                console.print(
                    f"encode keeps about {item.kilobytes_per_frame / 6:.0f} kB per image, for any class dictionary; "
                    "run.keep_encode = false keeps none, and encodes again for every new one",
                    markup=False,
                )
        for twin in runner.recipe.ontology.duplicates():
            console.print(f"note: the class dictionary holds one prompt more than once: {twin}", markup=False)
        free = runner.store.free_bytes()
        if free is not None:
            need = sum(item.gigabytes_to_write for item in plans)
            console.print(f"about {need:.3f} GB to write, {free / 1e9:.1f} GB free in {runner.store.place}")
            if need * 1e9 > free:
                raise StoreError(f"store {runner.store.place} has too little space for this run")


@app.command()
def run(
    target: Annotated[
        str,
        typer.Argument(
            help=f"pack (= {', '.join(PACKED)}) or one of: {', '.join(STAGES)}; or several, as in pack,label."
        ),
    ],
    recipe: RecipeArgument,
    set_: SetOption = None,
    again: Annotated[bool, typer.Option("--again", help="Build the target's shards even if they exist.")] = False,
) -> None:
    """Build what is missing of a table and of all that it needs. Kill it at any time and start it again."""
    with sentences():
        loaded = load_recipe(recipe, set_ or ())
        targets = expand(target.split(","))
        watcher = ProgressWatcher(loaded.run.progress and console.is_terminal)
        with watcher.progress, make_pool(loaded) as pool:
            failures = Runner(loaded).run(targets, pool, watcher, targets if again else ())
        if failures:
            print_failures(failures, loaded)
            raise typer.Exit(1)
        if not watcher.built:
            console.print(f"{target}: everything is built already")


@app.command()
def why(recipe: RecipeArgument, targets: Targets = None, set_: SetOption = None) -> None:
    """Print, stage by stage, why something would be built: which settings differ from what is there."""
    with sentences():
        for item in Runner(load_recipe(recipe, set_ or ())).plan(expand(targets or ["pack"])):
            if item.complete:
                console.print(f"[green]{item.stage.name}[/]: built ({item.fingerprint})")
                continue
            missing = [shard for shard in item.shards if not shard.done]
            console.print(f"[yellow]{item.stage.name}[/]: {len(missing)} of {len(item.shards)} shards to build")
            for line in item.changes:
                console.print(f"  {line}", markup=False)
            if not item.changes:
                for reason in sorted({shard.reason for shard in missing}):
                    names = [shard.shard for shard in missing if shard.reason == reason]
                    console.print(f"  {reason}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}", markup=False)


@app.command()
def doctor(
    recipe: RecipeArgument,
    set_: SetOption = None,
    frames: Annotated[int, typer.Option(min=1, help="How many frames have all their files read.")] = FRAMES,
) -> None:
    """Look at files, calibration, splits, disk, memory, GPU, engine and weights before a run; exit 1 with problems."""
    with sentences():
        problems = 0
        for finding in examine(load_recipe(recipe, set_ or ()), set_ or (), recipe, frames):
            problems += finding.level == "problem"
            colour = {"ok": "green", "note": "yellow", "problem": "red"}[finding.level]
            console.print(f"[{colour}]{finding.level:>7}[/] {finding.about}: {escape(finding.text)}", soft_wrap=True)
        if problems:
            console.print(f"{problems} problems; mend them first")
            raise typer.Exit(1)
        console.print("nothing stands in the way of a run")


@app.command()
def status(recipe: RecipeArgument, targets: Targets = None, set_: SetOption = None) -> None:
    """Print how far the tables of a recipe are, from the store alone: run it anywhere, while a run goes on or after."""
    with sentences():
        table = Table("stage", "shards done", "missing", "failed", "frames done", "GB", "last written (UTC)")
        failures: list[Failure] = []
        for item in progress_of(Runner(load_recipe(recipe, set_ or ())), expand(targets or ["pack"])):
            failures += item.failures
            table.add_row(
                item.stage,
                f"{item.n_done} of {item.n_shards}",
                str(item.n_shards - item.n_done) if item.n_done < item.n_shards else "-",
                str(len(item.failures) or "-"),
                str(item.n_frames),
                f"{item.n_bytes / 1e9:.3f}",
                item.last_written.strftime("%Y-%m-%d %H:%M:%S") if item.last_written else "-",
            )
        console.print(table)
        for failure in failures[:20]:
            where = f"{failure.stage} {failure.shard}" + (f" {failure.frame_id}" if failure.frame_id else "")
            console.print(f"failed in the last run: {where}: {failure.cause}", markup=False, soft_wrap=True)


@app.command()
def verify(
    recipe: RecipeArgument,
    set_: SetOption = None,
    drop: Annotated[bool, typer.Option("--drop", help="Remove damaged shards; the next run builds them.")] = False,
) -> None:
    """Read every byte of a recipe's tables and compare with the digests taken when they were written."""
    with sentences():
        loaded = load_recipe(recipe, set_ or ())
        store = Store.open(loaded.run.store)
        ref = store.read_ref(loaded.name)
        total = sum(shard.bytes for table in ref.tables.values() for shard in table.shards)
        with Progress(console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("verify", total=total)
            damaged = damaged_shards(store, ref, lambda size: progress.advance(bar, size))
        for table, shard, what in damaged:
            console.print(f"[red]{table.stage}/{table.fingerprint}/{shard.name}[/]: {what}")
            if drop:
                store.forget(table.stage, table.fingerprint, shard)
        shards = sum(len(table.shards) for table in ref.tables.values())
        found = f"{len(damaged)} damaged{' and dropped' if drop and damaged else ''}"
        console.print(f"{shards} shards, {total / 1e9:.3f} GB read, {found}")
        if damaged:
            raise typer.Exit(1)


@app.command()
def gc(
    recipe: RecipeArgument,
    set_: SetOption = None,
    delete: Annotated[bool, typer.Option("--delete", help="Really delete; without it, only list.")] = False,
    min_age_hours: Annotated[
        float, typer.Option(help="Leave younger files alone: a run in progress may be about to name them.")
    ] = 24.0,
) -> None:
    """List (or delete) the files of a recipe's store that no recipe and no training run names any more."""
    with sentences():
        store = Store.open(load_recipe(recipe, set_ or ()).run.store)
        garbage = store.unreferenced(min_age_hours * 3600)
        for path, size in garbage:
            console.print(f"{size:>14,} {path}", markup=False)
        if delete:
            store.delete(path for path, _ in garbage)
        total = sum(size for _, size in garbage) / 1e9
        console.print(f"{len(garbage)} files, {total:.3f} GB {'deleted' if delete else 'could go (--delete)'}")


@app.command()
def query(
    recipe: RecipeArgument,
    phrase: Annotated[str, typer.Argument(metavar="WORDS", help='What to look for, for example "fire hydrant".')],
    set_: SetOption = None,
    frames: Annotated[int, typer.Option(min=1, help="How many frames to keep of the ranking.")] = 10,
) -> None:
    """Ask the map: rank frames by how like a phrase the masks of their points are; `report` and `view` show it."""
    with sentences():
        asked, ranking = ask(load_recipe(recipe, set_ or ()), phrase, frames, shown)
        table = Table(*HEADINGS, title=f"“{escape(asked.phrase)}”, by mask vectors")
        for cells in ranking.cells():
            table.add_row(*cells)
        console.print(table, markup=False)
        console.print(ranking.about(), soft_wrap=True)


@app.command()
def report(
    recipe: RecipeArgument,
    set_: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the page; default: reports/RECIPE.")] = None,
    frames: FramesOption = 4,
) -> None:
    """Write one offline page: frames, scores per class, label coverage, training curves, identities of everything."""
    with sentences():
        loaded = load_recipe(recipe, set_ or ())
        page = write_report(loaded, out or Path("reports") / loaded.name, frames, shown)
        console.print(f"wrote {page}", markup=False, soft_wrap=True)


@app.command()
def view(
    recipe: RecipeArgument,
    set_: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Write this .rrd file instead of opening the viewer.")] = None,
    frames: FramesOption = 4,
) -> None:
    """Open frames in Rerun (install/requirements-viewer.txt), or write them as a recording for it."""
    with sentences():
        loaded = load_recipe(recipe, set_ or ())
        if out is None:
            view_frames(loaded, frames, shown)
        else:
            write_recording(loaded, out, frames, shown)
            console.print(f"wrote {out}; look at it with: rerun {out}", markup=False, soft_wrap=True)


@app.command()
def pictures(
    recipe: RecipeArgument,
    set_: SetOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("pictures"),
    frames: FramesOption = 4,
) -> None:
    """Draw frames, a picture each: images with segments and points, and all labels there are from above."""
    with sentences():
        for path in draw_frames(load_recipe(recipe, set_ or ()), out, frames):
            console.print(f"wrote {path}", markup=False, soft_wrap=True)


@app.command("export")
def export_command(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Argument(help="Folder to write; an earlier export of the same tables is gone on with.")],
    set_: SetOption = None,
    layout: Annotated[str, typer.Option(help=f"Whose files they look like: {' or '.join(LAYOUTS)}.")] = "san",
    sixteen_bit: Annotated[
        bool, typer.Option("--sixteen-bit", help="Write images of more than 255 segments too; the reference cannot.")
    ] = False,
) -> None:
    """Write segments and point labels as the official scripts do, for their trainer. Kill it and start it again."""
    with sentences():
        done = export(load_recipe(recipe, set_ or ()), out, layout, sixteen_bit, shown)
        console.print(f"{out}: {done.written} frames written, {done.kept} there before", markup=False, soft_wrap=True)
        for note in done.notes():
            console.print(f"note: {note}", markup=False, soft_wrap=True)


@tables.command("export")
def export_tables(
    recipe: RecipeArgument,
    stages: Annotated[list[str], typer.Argument(metavar="TABLE...", help="Tables, or pack for all of training.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.tar", help="The file to write.")],
    set_: SetOption = None,
    licence: Annotated[
        Path | None, typer.Option(help="A text on whose data this is and who may use it; needed for your own logs.")
    ] = None,
) -> None:
    """Write tables with their manifests and a licence note as one archive, which `store import` checks and takes."""
    with sentences():
        loaded = load_recipe(recipe, set_ or ())
        note = licence.read_text(encoding="utf-8") if licence else LICENCES.get(loaded.data.dataset)
        if note is None:
            raise ConfigError(f"say who may use tables of data set {loaded.data.dataset}: --licence FILE with a text")
        done = pack(Store.open(loaded.run.store), loaded.name, expand(stages), note, out)
        for table in done:
            console.print(f"{table.stage}/{table.fingerprint}: {len(table.shards)} shards, {table.rows} frames")
        console.print(f"wrote {out}, {out.stat().st_size / 1e6:.1f} MB", markup=False, soft_wrap=True)


@tables.command("import")
def import_tables(
    archive: Annotated[Path, typer.Argument(metavar="OUT.tar", help="An archive that `store export` wrote.")],
    into: Annotated[str, typer.Option(help="The store to put them into.")] = RunConfig().store,
) -> None:
    """Check an archive to its last byte and put its tables into a store; a recipe that needs them finds them there."""
    with sentences():
        done = unpack(archive, Store.open(into))
        for table in done.tables:
            console.print(f"{table.stage}/{table.fingerprint}: {len(table.shards)} shards, {table.rows} frames")
        console.print(f"{done.n_new} shards were new; ref {done.ref} keeps them from collection")
        console.print(done.licence.strip(), markup=False, soft_wrap=True)


@app.command()
def docs(
    path: Annotated[Path, typer.Argument(help="Where to write.")] = Path("docs/data.md"),
) -> None:
    """Write the description of all tables, generated from their schemas."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data_document(), encoding="utf-8")
    console.print(f"wrote {path}")


def data_document() -> str:
    """Return docs/data.md: the conventions and every table, from the schemas themselves."""
    about = (schema.__doc__ or "").strip().split("\n", 1)
    head = f"# Tables\n\nGenerated by `make docs` from `manifests/schema.py`.\n\n{about[0]}\n{about[1]}\n\n"
    return head + schema.markdown()


def expand(targets: list[str]) -> list[str]:
    """Return stage names, `pack` taken apart; raises ConfigError for an unknown one."""
    names = []
    for target in targets:
        if target != "pack" and target not in STAGES:
            raise ConfigError(f"there is no stage `{target}`; there are pack, {', '.join(STAGES)}")
        names += list(PACKED) if target == "pack" else [target]
    return names


def shown(items: Sequence[Any], what: str) -> Iterable[Any]:
    """Yield the items, and show how far it got where somebody watches."""
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        yield from progress.track(items, description=what)


class ProgressWatcher:
    """Shows one bar with an estimate of the time left per stage, or one line per stage where nobody watches."""

    def __init__(self, visible: bool) -> None:
        self.progress = Progress(
            TextColumn("{task.description:>8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("frames"),
            TimeElapsedColumn(),
            Remaining(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not visible,
        )
        self._visible = visible
        self._bars: dict[str, TaskID] = {}
        self._failed: Counter[str] = Counter()
        self.built = 0

    def stage_started(self, plan: StagePlan, n_frames: int) -> None:
        """Open the stage's bar."""
        self._bars[plan.stage.name] = self.progress.add_task(plan.stage.name, total=n_frames, note="")

    def shard_finished(self, task: Task, outcome: Outcome) -> None:
        """Advance the stage's bar by a shard."""
        failed = self._failed[task.stage] = self._failed[task.stage] + len(outcome.failures)
        self.built += outcome.shard is not None
        note = f"[red]{failed} failed[/]" if failed else ""
        self.progress.update(self._bars[task.stage], advance=task.n_frames, note=note)

    def stage_finished(self, plan: StagePlan) -> None:
        """Stop the stage's bar where it is, and say what was built where no bar shows it."""
        bar = self._bars[plan.stage.name]
        self.progress.update(bar, total=self.progress.tasks[bar].completed)
        if not self._visible:
            done = [shard.done for shard in plan.shards if shard.done]
            size = sum(shard.bytes for shard in done) / 1e6
            console.print(f"{plan.stage.name}: {len(done)} of {len(plan.shards)} shards, {size:.1f} MB")


def print_plan(plans: list[StagePlan]) -> None:
    """Print a plan as a table."""
    table = Table("stage", "table", "shards", "to build", "frames", "GB", "why")
    for item in plans:
        missing = [shard for shard in item.shards if not shard.done]
        reasons = sorted({shard.reason for shard in missing})
        if item.changes:
            reasons = list(item.changes[:3])
        table.add_row(
            item.stage.name,
            item.fingerprint,
            str(len(item.shards)),
            str(len(missing)) if missing else "-",
            str(sum(shard.n_frames for shard in missing)) if missing else "-",
            f"{item.gigabytes_to_write:.3f}" if missing else "-",
            "; ".join(reasons) or "built",
        )
    console.print(table)


def print_costs(found: list[Cost], recipe: Recipe) -> None:
    """Print what is missing in hours of one worker and GB, and where the hours come from."""
    table = Table("stage", "frames to build", "hours of one worker", "GB", "measured by")
    for item in found:
        hours = "?" if item.hours is None else f"{item.hours:.2f}"
        table.add_row(item.stage, str(item.n_frames), hours, f"{item.gigabytes:.3f}", item.source)
    console.print(table)
    known = sum(item.hours or 0 for item in found)
    unknown = [item.stage for item in found if item.hours is None and item.n_frames]
    workers = recipe.run.workers if recipe.run.pool == "ray" else 1
    console.print(
        f"{known:.2f} hours of one worker, {known / workers:.2f} with run.workers = {workers} if each has a core (or "
        f"GPU) of its own; {sum(item.gigabytes for item in found):.3f} GB"
        + (f"; not counting {', '.join(unknown)}, which nobody has measured" if unknown else ""),
        soft_wrap=True,
    )


def print_failures(failures: list[Failure], recipe: Recipe) -> None:
    """Print what failed and what can be done about it."""
    table = Table("stage", "shard", "frame", "cause")
    for failure in failures[:MANY_FAILURES]:
        table.add_row(failure.stage, failure.shard, failure.frame_id or "-", failure.cause)
    console.print(table)
    if len(failures) > MANY_FAILURES:
        console.print(f"... and {len(failures) - MANY_FAILURES} more")
    frames = sorted({failure.frame_id for failure in failures if failure.frame_id})
    if frames:
        console.print(
            f"{len(frames)} frames failed; repair them and run again, or leave them out by name in the recipe:\n"
            f"[data] exclude = {frames[:3]}{' ...' if len(frames) > 3 else ''}",
            markup=False,
        )


if __name__ == "__main__":
    app()
