"""Command line of the trainer: `python -m trainer pretrain|...|predict|refine|submit|evaluate|scores|check RECIPE`.

Nothing heavy is imported before the recipe is read: MinkowskiEngine is bit-exact on the CPU only where
OMP_NUM_THREADS=1 stands in the environment when it is loaded, and run.deterministic asks for that.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from manifests.config import read_recipe
from manifests.console import RecipeArgument, SetOption, debuggable, plain_console, sentences
from manifests.endings import Ending
from manifests.sections.data import RunConfig

if TYPE_CHECKING:
    from manifests.recipe import Recipe
    from manifests.sections.training import Task

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train a sparse network on packed tables, predict with it, and score it. `make pack RECIPE=...` makes the "
    "tables. Exit codes: 0 done, 1 the run failed, 2 the recipe is not right, 3 a table is missing or damaged, 70 a "
    "bug, 130 interrupted.",
)


class Resume(StrEnum):
    """What to do with what an earlier run has saved."""

    auto = "auto"
    never = "never"


class Of(StrEnum):
    """What to score."""

    prediction = "prediction"
    pseudo = "pseudo"
    majority = "majority"
    tree = "tree"


class Sent(StrEnum):
    """Which table goes to a benchmark's server."""

    predict = "predict"
    refine = "refine"


class Refine(StrEnum):
    """What happens to labels before they are scored."""

    none = "none"
    afi = "afi"
    vote = "vote"
    vote_afi = "vote+afi"


ResumeOption = Annotated[
    Resume, typer.Option(help="auto: go on from what the same configuration saved last; never: refuse to.")
]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Move an earlier run aside and start over.")]
OfOption = Annotated[
    list[Of] | None,
    typer.Option(
        help="prediction (default): the network's answers; pseudo: the pseudo-labels that it learns from; majority, "
        "tree: what the most frequent class, or a decision tree on intensity, height and range, makes of the same "
        "pseudo-labels. May be repeated."
    ),
]

RefineOption = Annotated[
    list[Refine] | None,
    typer.Option(
        help="In place of evaluate.refine: score labels before and after flat interaction (afi), the vote of the "
        "sweeps before and after (vote), or first the vote and then the other (vote+afi). May be repeated.",
        show_default=False,
    ),
]


@app.command()
@debuggable
def pretrain(
    recipe: RecipeArgument, override: SetOption = None, resume: ResumeOption = Resume.auto, fresh: FreshOption = False
) -> None:
    """Contrastive pre-training (TMP) on the tables points, pairs and text; reads the sections voxels, network, augment
    and pretrain.
    """
    run_training("pretrain", recipe, override, resume, fresh)


@app.command()
@debuggable
def distill(
    recipe: RecipeArgument, override: SetOption = None, resume: ResumeOption = Resume.auto, fresh: FreshOption = False
) -> None:
    """Learn the pseudo-labels in the tables points and target, from the pre-trained weights unless distill.init says
    otherwise.
    """
    run_training("distill", recipe, override, resume, fresh)


@app.command()
@debuggable
def probe(
    recipe: RecipeArgument, override: SetOption = None, resume: ResumeOption = Resume.auto, fresh: FreshOption = False
) -> None:
    """Linear probing with true labels: only the last layer learns, on the weights that probe.init names."""
    run_training("probe", recipe, override, resume, fresh)


@app.command()
@debuggable
def finetune(
    recipe: RecipeArgument, override: SetOption = None, resume: ResumeOption = Resume.auto, fresh: FreshOption = False
) -> None:
    """Fine-tuning with few true labels, from the weights that finetune.init names."""
    run_training("finetune", recipe, override, resume, fresh)


@app.command()
@debuggable
def supervised(
    recipe: RecipeArgument, override: SetOption = None, resume: ResumeOption = Resume.auto, fresh: FreshOption = False
) -> None:
    """Learn all true labels from scratch: an upper bound for learning without any."""
    run_training("supervised", recipe, override, resume, fresh)


@app.command()
@debuggable
def predict(recipe: RecipeArgument, override: SetOption = None) -> None:
    """Predict every point of the scenes in predict.split, as table predict of the store."""
    with reported() as console:
        loaded = load(recipe, override)
        from trainer.inference.predict import predict as run

        run(loaded, console)


@app.command()
@debuggable
def refine(recipe: RecipeArgument, override: SetOption = None) -> None:
    """Make labels better at the end, as section `refine` asks: predictions or pseudo-labels, as table refine."""
    with reported() as console:
        loaded = load(recipe, override)
        from trainer.inference.refined_table import refine as run

        run(loaded, console)


@app.command()
@debuggable
def calibrate(
    recipe: RecipeArgument,
    override: SetOption = None,
    of: Annotated[
        str,
        typer.Option(help="The table of labels: refine, predict, target, correct, vote, group; default: labels.of."),
    ] = "",
) -> None:
    """Make confidences say how often labels are right, as section `calibrate` asks, as table calibrate."""
    with reported() as console:
        loaded = load(recipe, [*(override or ()), *([f"labels.of={of}"] if of else [])])
        from trainer.scoring.calibrate import calibrate as run

        run(loaded, console, loaded.labels.of)


@app.command()
@debuggable
def query(
    recipe: RecipeArgument,
    phrase: Annotated[str, typer.Argument(metavar="WORDS", help="What to look for; the pipeline's query comes first.")],
    override: SetOption = None,
    frames: Annotated[int, typer.Option(min=1, help="How many frames to keep of the ranking.")] = 10,
    if_trained: Annotated[
        bool, typer.Option("--if-trained", help="Without a finished pre-training, say so and be done.")
    ] = False,
) -> None:
    """Ask the map by TMP features: how like a phrase every point of predict.split is, as table similarity."""
    with reported() as console:
        loaded = load(recipe, override)
        from trainer.errors import TrainerError
        from trainer.inference.search import finished_pretraining, search

        try:
            finished_pretraining(loaded)
        except TrainerError as error:
            if not if_trained:
                raise
            console.print(f"query: by mask vectors only: {error}")
            return
        search(loaded, phrase, frames, console)


@app.command()
@debuggable
def submit(
    recipe: RecipeArgument,
    override: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: in the folder of the runs.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Write what there is, though servers refuse it.")] = False,
    of: Annotated[Sent, typer.Option(help="predict: the student's own answers; refine: table refine.")] = Sent.predict,
) -> None:
    """Write the predictions as the files of the benchmark's server: nuScenes lidarseg, or SemanticKITTI."""
    with reported() as console:
        loaded = load(recipe, override)
        from trainer.inference.submit import submit as run

        run(loaded, console, out, partial, of.value)


@app.command()
@debuggable
def evaluate(
    recipe: RecipeArgument, override: SetOption = None, of: OfOption = None, refine: RefineOption = None
) -> None:
    """Score predictions or pseudo-labels against the true labels of evaluate.split, seen and unseen points apart."""
    with reported() as console:
        chosen = [f"evaluate.refine={name.value}" for name in refine or ()]
        loaded = [load(recipe, [*(override or ()), *words]) for words in ([[word] for word in chosen] or [[]])]
        from trainer.scoring.evaluate import evaluate_each

        for what in of or [Of.prediction]:
            evaluate_each(loaded[0], console, what.value, [one.evaluate.refine for one in loaded])


@app.command()
@debuggable
def scores(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Recipes of the same data set.")],
    override: SetOption = None,
) -> None:
    """Print all scores of some recipes in one table: pseudo-labels, students and yardsticks, seen and unseen points
    apart.
    """
    with reported() as console:
        loaded = [load(recipe, override) for recipe in recipes]
        from trainer.scoring.scoreboard import class_tables, read_lines, summary_table

        lines = read_lines(loaded)
        for table in class_tables(lines, loaded[0].ontology.class_names[1:]):
            console.print(table)
        console.print(summary_table(lines))


RunsOption = Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="The folder of runs: run.runs.")]
RunArgument = typer.Argument(metavar="RUN", help="A run as `runs` lists it, NAME/TASK, or its folder.")


@app.command("runs")
@debuggable
def list_runs(runs: RunsOption = Path("runs")) -> None:
    """List all runs: recipe, state, loss, mIoU of its predictions where they were scored, when, commit."""
    with reported() as console:
        from trainer.records.listing import runs_in

        lines = runs_in(runs)
        if not lines:
            console.print(f"no runs in {runs} yet: a training makes one")
            return
        table = Table(box=None)
        longest = max(len(line.run) for line in lines)  # a name that is cut off could not be given to `diff`
        table.add_column("run", no_wrap=True, min_width=longest)
        for title in ("recipe", "state", "epochs", "loss", "mIoU %", "begun (UTC)", "commit"):
            table.add_column(title, overflow="fold")
        for line in lines:
            table.add_row(*astuple(line))
        console.print(table)
        console.print(f"curves of all of them: tensorboard --logdir {shlex.quote(str(runs))}")


@app.command()
@debuggable
def diff(
    one: Annotated[Path, RunArgument],
    other: Annotated[Path, RunArgument],
    runs: RunsOption = Path("runs"),
    everything: Annotated[
        bool, typer.Option("--all", help="Versions of packages, commit, device and hardware too.")
    ] = False,
) -> None:
    """Print what differs between two runs: in what was asked, in what they learnt from, in curves and results."""
    with reported() as console:
        from trainer.records.compare import compare
        from trainer.records.listing import folder_of
        from trainer.records.record import read_record

        found = compare(*(read_record(folder_of(run, runs)) for run in (one, other)))
        versions = [] if everything else found.pop("versions", [])
        for heading, lines in found.items():
            console.print(f"{heading}:")
            for line in lines:
                console.print(f"  {line}")
        if versions:
            console.print(f"versions, device and hardware: {len(versions)} differences, which --all shows")
        if not found and not versions:
            console.print("the runs do not differ")


@app.command()
@debuggable
def check(
    recipe: RecipeArgument,
    override: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of sentences.")] = False,
) -> None:
    """Compare the recipe's engine with dense convolutions, and say which GPUs and which scenes training would use."""
    with reported() as console:
        loaded = load(recipe, override)
        from trainer.machine import look_at

        machine = look_at(loaded)
        if as_json:
            typer.echo(machine.json())
        else:
            for sentence in machine.sentences():
                console.print(f"check: {sentence}")
        if machine.problem:
            raise typer.Exit(Ending.FAILED)


@app.command("import")
@debuggable
def import_(
    recipe: RecipeArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .pt or .ckpt file of SLidR or AFOV.")],
    override: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Default: runs/RECIPE/imported/FILE.safetensors.")] = None,
) -> None:
    """Turn an official checkpoint into one of ours, checked against the recipe's network and voxels."""
    with reported() as console:
        loaded = load(recipe, override)
        from trainer.checkpoints.official import import_official
        from trainer.network.sparse import open_engine

        path = out or loaded.folder() / "imported" / f"{file.stem}.safetensors"
        imported = import_official(loaded, file, path, open_engine(loaded.network.engine))
        console.print(f"import: {imported.taken.sentence()}\nimport: {imported.path}")


@app.command("export")
@debuggable
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint of ours.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .pt file to write.")],
) -> None:
    """Write a checkpoint in the layout of SLidR and AFOV."""
    with reported() as console:
        from trainer.checkpoints.official import export_official

        for note in export_official(checkpoint, out):
            console.print(f"export: {note}")
        console.print(f"export: {out}")


def run_training(task: Task, recipe: str, override: list[str] | None, resume: Resume, fresh: bool) -> None:
    """Train one objective of a recipe."""
    with reported() as console:
        loaded = load(recipe, override)
        from trainer.loop.train import train

        path = train(loaded, task, console, resume=resume.value, fresh=fresh)
        console.print(f"{task}: {path}")


def load(recipe: str, override: list[str] | None) -> Recipe:
    """Return the recipe; where it asks for determinism, the environment is set before torch is imported.

    The engine in plain PyTorch repeats itself with any number of threads: with it one that is set already stays.
    """
    file = read_recipe(recipe, override or ())
    if file.section("run", RunConfig).deterministic:
        if file.sections.get("network", {}).get("engine") != "torch":
            os.environ["OMP_NUM_THREADS"] = "1"
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks of deterministic sums on a GPU
    from manifests.recipe import load_recipe

    return load_recipe(recipe, override or ())


@contextmanager
def reported() -> Iterator[Console]:
    """Yield the console; what the user can mend becomes one sentence and an exit code, a bug its trace and another."""
    with sentences("trainer", "what is finished is kept, and the same command goes on from there"):
        yield plain_console(soft_wrap=True)


if __name__ == "__main__":
    app()
