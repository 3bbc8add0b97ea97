"""What tests of the engine share: a recipe over the simulated root, what is built of it, and which shards there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from manifests.recipe import Recipe
from manifests.storage.shards import ShardFile
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.runner import Runner
from pipeline.engine.tasks import Outcome, StagePlan, Task
from pipeline.stages.registry import PACKED
from tests.refs import newest


class Recorder:
    """A watcher that remembers which shards of which stage were built."""

    def __init__(self) -> None:
        self.built: list[str] = []

    def stage_started(self, plan: StagePlan, n_frames: int) -> None:
        pass

    def shard_finished(self, task: Task, outcome: Outcome) -> None:
        if outcome.shard and not outcome.looked:
            self.built.append(f"{task.stage}/{task.shard}")

    def stage_finished(self, plan: StagePlan) -> None:
        pass


def write_recipe(path: Path, root: Path, masks: Path, store: Path) -> Path:
    path.write_text(
        f'[data]\nroot = "{root}"\n[teacher]\nname = "artifacts"\nvoid = true\nfolder = "{masks}"\n'
        f'[run]\nstore = "{store}"\n'
    )
    return path


def build(recipe: Recipe, targets: Sequence[str] = PACKED) -> list[str]:
    """Build the targets and return what was built, as stage/shard."""
    recorder = Recorder()
    failures = Runner(recipe).run(targets, InlinePool(recipe), recorder)
    assert failures == []
    return recorder.built


def stages(built: Sequence[str]) -> list[str]:
    """Return the stages of what was built, once each, in order."""
    return list(dict.fromkeys(name.split("/")[0] for name in built))


def shards_of(recipe: Recipe) -> dict[str, tuple[ShardFile, ...]]:
    """Return all shards that the recipe's ref names, with their digests."""
    return {name: table.shards for name, table in newest(Runner(recipe).store, recipe.name).tables.items()}


def garbage_of(recipe: Recipe) -> list[str]:
    """Return the stages of everything that a collection would delete."""
    return sorted({path.split("/")[0] for path, _ in Runner(recipe).store.unreferenced(0)})
