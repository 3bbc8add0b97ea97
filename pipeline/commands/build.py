"""Commands that build tables, say what they would build, and look after what is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.table import Column, Table
from rich.text import Text

from manifests.advice import HEAL
from manifests.asked import asked, variants
from manifests.config import find_recipe, local_file
from manifests.pulse import Bar
from manifests.recipe import Recipe, load_recipe
from manifests.stages import with_needs
from manifests.storage.errors import StoreError
from manifests.storage.names import scene_of
from manifests.storage.sealed import damaged_files
from manifests.storage.store import Store
from manifests.storage.verify import damaged_shards, heal, look_over
from pipeline.checks.findings import FRAMES
from pipeline.checks.weights import weights_of
from pipeline.commands.console import Ending, RecipeArgument, SetOption, Targets, console, expand, sentences
from pipeline.engine.absent import absent_files, only_absent
from pipeline.engine.cost import Cost, costs, learning_costs
from pipeline.engine.pools import make_pool
from pipeline.engine.progress import has_data, progress_of
from pipeline.engine.refs import MANY_FAILURES
from pipeline.engine.runner import Runner
from pipeline.engine.tasks import Failure, Outcome, StagePlan, Task
from pipeline.frame import Frame
from pipeline.stages.registry import PACKED, STAGES
from pipeline.teachers.loading.pinning import pinned_on_first_use


def plan(
    recipe: RecipeArgument,
    targets: Targets = None,
    set_: SetOption = None,
    cost: Annotated[bool, typer.Option("--cost", help="Hours too, from what was measured.")] = False,
) -> None:
    """Print what a run would build, why, and how many GB; builds nothing."""
    with sentences():
        runner = Runner(load_recipe(recipe, set_ or ()))
        plans = runner.plan(expand(targets or ["pack"], runner.recipe.run.pack_also))
        print_plan(plans)
        if cost:
            print_costs(list(costs(runner, plans)), list(learning_costs(runner)), runner.recipe)
        for item in plans:
            if item.stage.name == "encode":
                console.print(
                    f"encode keeps about {item.kilobytes_per_frame / 6:.0f} kB per image, for any class dictionary; "
                    "run.keep_encode = false keeps none, and encodes again for every new one",
                    markup=False,
                )
        for weights in weights_of(runner.recipe.teacher):
            if not weights.sha256 and weights.seed is None:
                console.print(
                    f"note: {weights.source} is not pinned; the first run that needs it does that, in "
                    f"{local_file(find_recipe(recipe))}",
                    markup=False,
                )
        for twin in runner.recipe.ontology.duplicates():
            console.print(f"note: the class dictionary holds one prompt more than once: {twin}")
        free = runner.store.free_bytes()
        if free is not None:
            need = sum(item.gigabytes_to_write for item in plans)
            console.print(f"about {need:.3f} GB to write, {free / 1e9:.1f} GB free in {runner.store.place}")
            if need * 1e9 > free:
                raise StoreError(f"store {runner.store.place} has too little space for this run")


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
        targets = expand(target.split(","), loaded.run.pack_also)
        if {"text", "encode", "segment"}.intersection(with_needs(loaded, targets)):
            loaded = pinned_on_first_use(loaded, lambda text: console.print(text, soft_wrap=True))
        runner = Runner(loaded)
        watcher = ProgressWatcher(loaded.run.progress and console.is_terminal)
        with watcher.progress, make_pool(loaded) as pool:
            failures = runner.run(targets, pool, watcher, targets if again else ())
        if failures:
            print_failures(failures, loaded, runner.listing())
            raise typer.Exit(Ending.FAILED)
        if not watcher.built:
            console.print(f"{target}: everything is built already")


def why(recipe: RecipeArgument, targets: Targets = None, set_: SetOption = None) -> None:
    """Print, stage by stage, why something would be built: which settings differ from what is there."""
    with sentences():
        loaded = load_recipe(recipe, set_ or ())
        for item in Runner(loaded).plan(expand(targets or ["pack"], loaded.run.pack_also)):
            if item.complete:
                console.print(Text.assemble((item.stage.name, "green"), f": built ({item.fingerprint})"))
                continue
            missing = [shard for shard in item.shards if not shard.done]
            count = f": {len(missing)} of {len(item.shards)} shards to build"
            console.print(Text.assemble((item.stage.name, "yellow"), count))
            for line in item.changes:
                console.print(f"  {line}")
            if not item.changes:
                for reason in sorted({shard.reason for shard in missing}):
                    names = [shard.shard for shard in missing if shard.reason == reason]
                    console.print(f"  {reason}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")


def doctor(
    recipe: RecipeArgument,
    set_: SetOption = None,
    frames: Annotated[int, typer.Option(min=1, help="How many frames have all their files read.")] = FRAMES,
) -> None:
    """Look at files, calibration, splits, disk, memory, GPU, engine and weights before a run; exit 1 with problems."""
    from pipeline.checks.doctor import examine

    with sentences():
        problems = 0
        for finding in examine(load_recipe(recipe, set_ or ()), set_ or (), recipe, frames):
            problems += finding.level == "problem"
            colour = {"ok": "green", "note": "yellow", "problem": "red"}[finding.level]
            line = Text.assemble((f"{finding.level:>7}", colour), f" {finding.about}: {finding.text}")
            console.print(line, soft_wrap=True)
        if problems:
            console.print(f"{problems} problems; mend them first")
            raise typer.Exit(Ending.FAILED)
        console.print("nothing stands in the way of a run")


def status(recipe: RecipeArgument, targets: Targets = None, set_: SetOption = None) -> None:
    """Print how far the tables of a recipe are, from the store alone: run it anywhere, while a run goes on or after."""
    with sentences():
        table = Table("stage", "shards done", "missing", "failed", "frames done", "GB", "last written (UTC)")
        failures: list[Failure] = []
        loaded = load_recipe(recipe, set_ or ())
        for item in progress_of(Runner(loaded), expand(targets or ["pack"], loaded.run.pack_also)):
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
        if not has_data(loaded):
            console.print(
                f"{loaded.data.root} is not on this machine: shards are counted as far as the store has heard of them",
                soft_wrap=True,
            )
        for failure in failures[:20]:
            where = f"{failure.stage} {failure.shard}" + (f" {failure.frame_id}" if failure.frame_id else "")
            console.print(f"failed in the last run: {where}: {failure.cause}", soft_wrap=True)


def verify(
    recipe: RecipeArgument,
    set_: SetOption = None,
    mend: Annotated[
        bool, typer.Option("--heal", "--drop", help="Drop what is damaged; the next run builds it again.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="The tables of all recipes in the store.")] = False,
) -> None:
    """Read every byte of a recipe's tables, and all documents of its store and runs, and compare with their digests."""
    with sentences():
        loaded = load_recipe(recipe, set_ or ())
        store = Store.open(loaded.run.store)
        found = look_over(store, None if everything else loaded.name)
        if not (found.refs or found.damages):
            raise StoreError(
                f"store {store.place} holds nothing of recipe {loaded.name} yet; run: {loaded.make('pack')}"
            )
        with Bar(console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("verify", total=found.n_bytes)
            damages = [*found.damages, *damaged_shards(store, found, lambda size: progress.advance(bar, size))]
        for damage in damages:
            console.print(Text.assemble((damage.path, "red"), f": {damage.what}"), soft_wrap=True)
        if mend:
            wanted = {stage: table.fingerprint or "" for stage, table in asked(loaded).tables.items()}
            for line in heal(store, damages, wanted):
                console.print(line, soft_wrap=True)
        outcome = f"{len(damages)} damaged{' and dropped' if mend and damages else ''}"
        read = f"{len(found.shards)} shards, {found.n_bytes / 1e9:.3f} GB and {found.documents} documents read"
        console.print(f"{read}, {outcome}", soft_wrap=True)
        if found.undigested:
            console.print(f"{found.undigested} documents are of an earlier version, which gave them no digest")
        if damages and not mend:
            console.print(HEAL, soft_wrap=True)
        of_runs = verify_runs(loaded, everything)
        if damages or of_runs:
            raise typer.Exit(Ending.STORE)


def verify_runs(recipe: Recipe, everything: bool) -> int:
    """Read every byte of a recipe's runs, or of those of all recipes, tell what is damaged, and return how much is.

    Nothing of it is dropped: a checkpoint cannot be built again as a table can.
    """
    folder = recipe.folder().parent if everything else recipe.folder()
    found = damaged_files(folder)
    for path, what in found:
        console.print(Text.assemble((str(path), "red"), f": {what}"), soft_wrap=True)
    if folder.is_dir():
        console.print(f"runs in {folder}: {len(found)} damaged", soft_wrap=True)
    if found:
        console.print(
            "these are kept: train again with the same command, which goes on from the newest whole checkpoint; "
            "predict and evaluate again for scores",
            soft_wrap=True,
        )
    return len(found)


def gc(
    recipe: RecipeArgument,
    set_: SetOption = None,
    delete: Annotated[bool, typer.Option("--delete", help="Really delete; without it, only list.")] = False,
    forget: Annotated[
        bool,
        typer.Option("--forget", help="Also what the recipe asked for before an edit, or with other --set."),
    ] = False,
    min_age_hours: Annotated[
        float, typer.Option(help="Leave younger files alone: a run in progress may be about to name them.")
    ] = 24.0,
) -> None:
    """List (or delete) the files of a recipe's store that no recipe and no training run names any more.

    What a recipe asked for before an edit, or with another `--set`, is kept until it is forgotten.
    """
    with sentences():
        loaded = load_recipe(recipe, set_ or ())
        store = Store.open(loaded.run.store)
        for name, changes in variants(store, loaded).items():
            kept = "forgotten" if forget and delete else "kept; --forget --delete lets go of it"
            console.print(f"variant {name} ({kept}): {'; '.join(changes) or 'the same tables'}", soft_wrap=True)
            if forget and delete:
                store.delete_ref(name)
        garbage = store.unreferenced(min_age_hours * 3600)
        for path, size in garbage:
            console.print(f"{size:>14,} {path}")
        if delete:
            store.delete(path for path, _ in garbage)
        total = sum(size for _, size in garbage) / 1e9
        console.print(f"{len(garbage)} files, {total:.3f} GB {'deleted' if delete else 'could go (--delete)'}")


class ProgressWatcher:
    """Shows one bar with an estimate of the time left per stage, or one line per stage where nobody watches."""

    def __init__(self, visible: bool) -> None:
        self.progress = Bar(
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
        self.built += outcome.shard is not None and not outcome.looked
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


def print_costs(found: list[Cost], after: list[Cost], recipe: Recipe) -> None:
    """Print what is missing in hours of one worker and GB, then what comes after the tables, and who measured it."""
    table = Table("stage", "frames to build", "hours of one worker", "GB", Column("measured by", overflow="fold"))
    for item in found:
        hours = "?" if item.hours is None else f"{item.hours:.2f}"
        table.add_row(item.stage, str(item.n_frames), hours, f"{item.gigabytes:.3f}", item.source)
    table.add_section()
    for item in after:
        table.add_row(item.stage, str(item.n_frames), f"{item.hours or 0:.2f}", "-", item.source)
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
    console.print(
        f"after the tables about {sum(item.hours or 0 for item in after):.2f} hours more on a machine like that of the "
        "page named, and everything from its start: what is trained already is not taken off",
        soft_wrap=True,
    )


def without_absent(
    failures: list[Failure], recipe: Recipe, listing: Mapping[str, Sequence[Frame]]
) -> tuple[list[Failure], int]:
    """Return what failed with one line for each scene of which files are not on disk, and how many scenes these are."""
    broken = {scene_of(failure.shard) for failure in failures if failure.stage == "index" and failure.frame_id}
    lines = []
    for scene in broken:
        frames = (frame for shard, part in listing.items() if scene_of(shard) == scene for frame in part)
        absent = absent_files(frames, recipe.data)
        if absent.n_absent:
            lines.append(Failure("index", scene, None, absent.sentence(scene)))
    others = [one for one in failures if one.stage != "index" or not only_absent(one.cause)]
    return [*sorted(lines, key=lambda one: one.shard), *others], len(lines)


def print_failures(failures: list[Failure], recipe: Recipe, listing: Mapping[str, Sequence[Frame]]) -> None:
    """Print what failed and what can be done about it."""
    failures, n_partial = without_absent(failures, recipe, listing)
    table = Table("stage", "shard", "frame", Column("cause", overflow="fold"))
    for failure in failures[:MANY_FAILURES]:
        table.add_row(failure.stage, failure.shard, failure.frame_id or "-", failure.cause)
    console.print(table)
    if len(failures) > MANY_FAILURES:
        console.print(f"... and {len(failures) - MANY_FAILURES} more")
    if n_partial:
        console.print(
            f"files of {n_partial} scenes are not on disk: fetch them, or take the scenes that are whole, in training "
            'too, with\n[data] incomplete = "leave out"\nWithout images, points and predictions are made with\n[data] '
            'cameras = ["none"]',
            markup=False,
        )
    frames = sorted({failure.frame_id for failure in failures if failure.frame_id})
    if frames:
        console.print(
            f"{len(frames)} frames failed; repair them and run again, or leave them out by name in the recipe:\n"
            f"[data] exclude = {frames[:3]}{' ...' if len(frames) > 3 else ''}",
            markup=False,
        )
