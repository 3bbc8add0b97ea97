"""Command line of the offline pipeline: look, plan, run, ask about tables, show them."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.table import Table

from manifests import schema
from manifests.archive import pack, unpack
from manifests.config import ConfigError, RunConfig
from manifests.query import HEADINGS
from manifests.store import Store, StoreError
from pipeline.city.config import SIZES, city_config
from pipeline.city.generate import write_city
from pipeline.cost import Cost, costs
from pipeline.doctor import FRAMES, examine
from pipeline.export import LAYOUTS, export
from pipeline.pictures import draw_frames
from pipeline.pools import make_pool
from pipeline.progress import progress_of
from pipeline.query import ask
from pipeline.recipe import Recipe, load_recipe
from pipeline.report import write_report
from pipeline.runner import MANY_FAILURES, Failure, Outcome, Runner, StagePlan, Task, damaged_shards
from pipeline.stages import PACKED, STAGES
from pipeline.teacher_speed import LARGE, LARGE_BATCHES, SMALL, bench_recipe, measure, write_frames
from pipeline.teachers.towers import pick_device
from pipeline.viewer import view_frames, write_recording

app = typer.Typer(
    help="Offline pipeline: precompute masks, features, projections and groupings into Parquet tables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tables = typer.Typer(help="Hand tables on as one file.", no_args_is_help=True)
app.add_typer(tables, name="store")
console = Console(stderr=False, highlight=False)

LICENCES = {
    "nuscenes": "Made from nuScenes, or from logs in its layout. nuScenes is for non-commercial use (CC BY-NC-SA 4.0 "
    "and its terms of use), and so are these tables; other logs have terms of their own.\n",
    "semantic_kitti": "Made from SemanticKITTI and the KITTI odometry benchmark, which are for non-commercial use (CC "
    "BY-NC-SA), and so are these tables.\n",
}
"""The note that goes with tables of a data set where none is given."""

RecipeArgument = Annotated[str, typer.Argument(help="A recipe: a .toml file, or the name of a built-in one.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a value; may be repeated.")
]
FramesOption = Annotated[int, typer.Option(min=1, help="How many frames at most, evenly chosen.")]
Targets = Annotated[list[str] | None, typer.Argument(help="Stages; default: all that the trainer reads (pack).")]


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
def city(
    out: Annotated[Path, typer.Argument(help="Folder to write, a data root for recipes.")] = Path("data/city"),
    size: Annotated[str, typer.Option(help=f"One of: {', '.join(SIZES)}.")] = "demo",
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another city.")] = 0,
    image_size: Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Size of all images.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; their number changes no byte.")] = 2,
) -> None:
    """Write a synthetic city in nuScenes format, with true labels and class maps; needs no licence and no download."""
    with sentences():
        config = city_config(size, seed, image_size)
        with Progress(console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("city", total=len(config.scenes))
            write_city(out, config, workers, lambda scene: progress.advance(bar))
        console.print(
            f"{len(config.scenes)} scenes of {config.keyframes} key frames in {out}, version {config.version}"
        )


@app.command("bench-teacher")
def bench_teacher(
    name: Annotated[str, typer.Argument(help="A teacher, as recipes name it.")],
    set_: SetOption = None,
    images: Annotated[int, typer.Option(min=1, help="How many images go through, six to a frame.")] = 96,
    image_size: Annotated[str, typer.Option(metavar="WIDTHxHEIGHT", help="Their size on disk.")] = "1600x900",
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Images at once; may be repeated.")] = None,
) -> None:
    """Measure images a second of each part of a teacher, on noise with random weights; on a CPU a small tower runs."""
    with sentences():
        measure_teacher(name, set_ or (), images, image_size, batch or [])


@app.command()
def docs(
    path: Annotated[Path, typer.Argument(help="Where to write.")] = Path("docs/data.md"),
) -> None:
    """Write the description of all tables, generated from their schemas."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data_document(), encoding="utf-8")
    console.print(f"wrote {path}")


def measure_teacher(name: str, overrides: Sequence[str], images: int, image_size: str, batches: list[int]) -> None:
    """Print a line per tower and batch; raises ConfigError for a teacher that has nothing to measure."""
    if name not in SMALL:
        raise ConfigError(f'"{name}" is no teacher with a network; there are {", ".join(sorted(SMALL))}')
    width, cross, height = image_size.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ConfigError(f'--image-size is "{image_size}"; expected WIDTHxHEIGHT, for example 1600x900')
    with tempfile.TemporaryDirectory(prefix="afov-bench-") as folder:
        root = Path(folder)
        on_gpu = pick_device(bench_recipe(name, root, SMALL[name][0], overrides).run.device).type == "cuda"
        cases = (LARGE if on_gpu else SMALL)[name]
        if not on_gpu:
            console.print(
                "There is no GPU here: a small tower runs on the CPU, and says nothing about a GPU.", soft_wrap=True
            )
        frames = write_frames(root, images, int(width), int(height))
        table = Table(title=f"{name}, {images} images of {image_size}, random weights; images a second")
        for heading in ("tower", "batch", "whole", "decode", "model", "pack", "post", "network runs"):
            table.add_column(heading, justify="right")
        sizes: Sequence[int | None] = batches or (LARGE_BATCHES if on_gpu else [None])
        for number, case in enumerate(cases, 1):
            for size in sizes:
                speed = measure(bench_recipe(name, root, case, overrides), frames, size)
                if size == sizes[0]:
                    console.print(f"{number}: {speed.what} on {speed.device}", markup=False, soft_wrap=True)
                parts = (speed.wall_s, speed.decode_s, speed.model_s, speed.pack_s, speed.post_s)
                rates = (speed.rate(seconds) for seconds in parts)
                table.add_row(
                    *(str(number), str(speed.batch or "-")),
                    *("-" if rate is None else f"{rate:.1f}" for rate in rates),
                    "-" if speed.busy is None else f"{speed.busy:.0%}",
                )
        console.print(table)
        console.print(
            "whole: stage encode without writing; decode and pack: one thread (run.decode_threads of them work side by "
            "side); post: stage segment, one thread; network runs: share of the whole time.",
            soft_wrap=True,
        )


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


@contextmanager
def sentences() -> Iterator[None]:
    """Print expected errors as one sentence: exit 2 for a wrong recipe, exit 1 for a table or a machine at fault."""
    try:
        yield
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except RuntimeError as error:  # StoreError, FrameError, Ray that cannot be reached
        if isinstance(error, typer.Exit):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("stopped; finished shards are kept, the next run goes on from them", file=sys.stderr)
        raise typer.Exit(130) from None


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
