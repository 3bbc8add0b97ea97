"""Halves of a teacher in one go: the same segments with an encoding kept and without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from manifests.config import ConfigError
from manifests.recipe import Recipe, load_recipe
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.keys import digest_table
from pipeline.engine.runner import Runner
from pipeline.engine.tasks import Failure, Outcome, Queue, Task
from pipeline.stages.registry import STAGES
from tests.pipeline.building import build, stages
from tests.refs import newest


@pytest.fixture
def street(root: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Makes a recipe with a tiny tower over both scenes, three frames."""
    recipe = tmp_path / "street.toml"
    recipe.write_text(
        f'[data]\nroot = "{root}"\n[run]\nstore = "{tmp_path / "store"}"\n'
        '[teacher]\nname = "clip_dense"\nmodel = "tiny"\nweights = "random:0"\nshort_side_px = 64\n'
        '[segment]\nscale = 0.05\n[text]\ntemplates = "single"\n'
    )
    return lambda *overrides: load_recipe(recipe, overrides)


def segments(recipe: Recipe) -> dict[str, str]:
    """A digest of every byte of the rows of table `segment`, by folder and scene."""
    store = Runner(recipe).store
    table = newest(store, "street").table("segment")
    return {
        f"{table.fingerprint}/{shard.shard}": digest_table(store.read("segment", table.fingerprint, shard))
        for shard in table.shards
    }


def test_fused_halves_write_no_encoding_and_the_same_segments(street: Callable[..., Recipe], tmp_path: Path) -> None:
    apart = street("run.batch=4")
    assert stages(build(apart, ["segment"])) == ["index", "text", "encode", "segment"]
    fused = street("run.batch=4", "run.keep_encode=false", f"run.store={tmp_path / 'other'}")
    assert stages(build(fused, ["segment"])) == ["index", "text", "segment"]
    assert segments(fused) == segments(apart)
    assert "encode" not in newest(Runner(fused).store, "street").tables
    assert build(fused, ["segment"]) == []


def test_an_encoding_that_was_kept_is_not_made_again_to_keep_none(street: Callable[..., Recipe]) -> None:
    apart, fused = street(), street("run.keep_encode=false")
    build(apart, ["group"])
    before = segments(apart)
    assert build(fused, ["group"]) == []
    assert build(street("run.keep_encode=false", "segment.min_area_px=9"), ["segment"]) != []
    assert build(apart, ["group"]) == []
    assert segments(apart) == before


def test_another_dictionary_calls_no_image_tower_and_equals_a_run_from_scratch(
    street: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from manifests import ontology
    from pipeline.teachers.dense import DenseTower

    source = Path(ontology.__file__).parent / "ontologies" / "nuscenes.toml"
    changed = tmp_path / "changed.toml"
    changed.write_text(source.read_text().replace('"hatch-back"', '"small red car"'))
    other = f"data.ontology={changed}"
    forward, images = DenseTower.__call__, []

    def counted(self: DenseTower, batch: object) -> object:
        images.append(len(batch))  # type: ignore[arg-type]
        return forward(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(DenseTower, "__call__", counted)
    build(street(), ["segment"])
    assert sum(images) == 18  # three frames with six images
    images.clear()
    assert stages(build(street(other), ["segment"])) == ["text", "segment"]
    assert images == []
    scratch = street(other, f"run.store={tmp_path / 'scratch'}")
    build(scratch, ["segment"])
    assert sum(images) == 18
    assert segments(scratch) == segments(street(other))


def test_the_manifest_says_on_what_and_how_many_at_once(street: Callable[..., Recipe]) -> None:
    build(street("run.batch=5", "run.device=cpu"), ["encode"])
    runner = Runner(street())
    table = newest(runner.store, "street").table("encode")
    manifest = runner.store.read_manifest("encode", table.fingerprint)
    assert manifest is not None
    assert (manifest.made["devices"], manifest.made["batches"]) == (["cpu"], [2])  # whatever is asked for


def test_the_manifest_says_on_what_prompts_were_encoded(
    street: Callable[..., Recipe], packed: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.engine.worker.device_name", lambda recipe: "a GPU")
    build(street(), ["text"])
    assert [one.made["devices"] for one in Runner(street()).store.manifests("text")][-1] == ["a GPU"]
    assert STAGES["text"].gpus(packed) is None, "vectors that are read from a file need none"


def test_a_shard_that_failed_ran_on_no_device(street: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    class OneFails(InlinePool):
        failed = False

        def run(self, queue: Queue) -> Iterator[tuple[Task, Outcome]]:
            for task, outcome in super().run(queue):
                if task.stage == "encode" and not self.failed:
                    self.failed = True
                    outcome = Outcome(None, (Failure("encode", task.shard, None, "its worker died"),))
                yield task, outcome

    monkeypatch.setattr("pipeline.engine.worker.device_name", lambda recipe: "a GPU")
    runner = Runner(street())
    assert len(runner.run(["encode"], OneFails(street()))) == 1
    assert [one.made["devices"] for one in runner.store.manifests("encode")] == [["a GPU"]]


def test_planning_downloads_nothing(street: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fetch(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    build(street(), ["index"])
    pins = (f"teacher.weights_sha256={'ab' * 32}", f"teacher.weights_revision={'cd' * 20}", "teacher.quick_gelu=true")
    recipe = street("teacher.model=ViT-B-16-quickgelu", "teacher.weights=hub:own/name/w.pt", *pins)
    plan = {item.stage.name: item for item in Runner(recipe).plan(["segment"])}
    teacher: Any = plan["encode"].identity.settings["teacher"]
    assert teacher["weights"] == f"sha256:{'ab' * 32}"
    with pytest.raises(ConfigError, match=r"w.pt of own/name could not be fetched"):
        Runner(recipe).run(["encode"], InlinePool(recipe))
