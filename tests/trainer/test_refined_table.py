"""Table `refine`: what its columns say, that it is built as every table is, and who may read it."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from manifests.asked import tables_of
from manifests.fingerprint import digest
from manifests.labels import ORIGINS, REFINE_VERSION, refine_pin, refined_of, students_predictions
from manifests.recipe import Recipe
from manifests.sections.labels import LabelsConfig
from manifests.storage.errors import StoreError
from manifests.storage.refs import TableRef
from manifests.storage.shards import ShardWriter
from manifests.tables.answers import Refine
from manifests.tables.base import Failed
from manifests.tables.motion import Motion
from pipeline.exchange.labels import write_labels
from pipeline.exchange.review import review
from tests.trainer.test_refine import (
    CAR,
    MIDDLE_ERRS,
    PLACES_M,
    RIGHT,
    ROAD,
    SHARDS,
    WALL,
    fill,
    index_row,
    points_row,
    target_row,
)
from tests.versions import digest_of
from trainer.errors import TrainerError
from trainer.inference import refine as arrays
from trainer.inference.predict import predict
from trainer.inference.refined_table import refine, refine_each
from trainer.inference.sources import source_of
from trainer.inference.submit import submit
from trainer.loop.train import train
from trainer.scoring.evaluate import evaluate

ALL = ("predict.split=all", "refine.split=all")


def rows_of(fleet: Any, table: TableRef) -> dict[str, Any]:
    """The rows of a table by frame."""
    rows = (row for shard in table.shards for row in fleet.store.records(Refine, table.fingerprint, shard))
    return {row.frame_id: row for row in rows}


def names_of(table: TableRef) -> dict[str, str]:
    """The files of a table, whose names hold the digest of their content, by shard."""
    return {shard.shard: shard.name for shard in table.shards}


# -- what the columns say


def test_a_label_says_where_it_comes_from_and_what_comes_next(fleet: Any, console: Console) -> None:
    fill(fleet, MIDDLE_ERRS, second={"w0": ROAD})
    rows = rows_of(fleet, refine(fleet.recipe("refine.by=vote", "vote.own=0"), console))
    assert rows["v1"].label.tolist() == RIGHT
    assert [ORIGINS[one] for one in rows["v1"].origin] == ["student", "neighbour", "student"]
    assert rows["v1"].runner_up.tolist() == [0, CAR, 0], "what it was called itself has fewer votes"
    assert rows["v1"].confidence[1] > rows["v1"].runner_up_confidence[1] > 0
    assert rows["w0"].runner_up.tolist() == [ROAD] * 3 and rows["w0"].label.tolist() == [CAR] * 3
    flat = rows_of(fleet, refine(fleet.recipe("refine.by=afi"), console))["w0"]
    untouched = flat.origin == ORIGINS.index("student")
    assert untouched.any() and (flat.confidence[untouched] == 204).all()
    assert (flat.runner_up[untouched] == ROAD).all() and (flat.runner_up_confidence[untouched] == 200).all()
    assert flat.note == "ego ring skipped: the height of the sensor was not given"


def test_flat_interaction_keeps_what_a_point_was_called_as_its_second_choice(fleet: Any, console: Console) -> None:
    scan = fleet.sweep("v0")
    label = scan.label.copy()
    wrong = np.flatnonzero(label == ROAD)[::40]
    label[wrong] = CAR
    put_sweeps(fleet, {"v0": scan.xyz_m}, {"v0": label})
    found = rows_of(fleet, refine(fleet.recipe("refine.of=pseudo", "refine.by=afi"), console))["v0"]
    mended = np.flatnonzero(found.label != label)
    assert len(mended) and {ORIGINS[one] for one in found.origin[mended]} == {"flat interaction"}
    np.testing.assert_array_equal(found.runner_up[mended], label[mended])
    assert (found.runner_up_confidence <= found.confidence).all()
    assert {ORIGINS[one] for one in np.delete(found.origin, mended)} == {"camera"}


def test_points_without_a_label_get_one_from_a_neighbour_and_keep_none_otherwise(fleet: Any, console: Console) -> None:
    fill(fleet, {"v0": [WALL, 0, 0], "v1": [0, WALL, 0], "v2": [0, 0, 0], "w0": [0, 0, 0]})
    rows = rows_of(fleet, refine(fleet.recipe("refine.of=pseudo", "refine.by=vote"), console))
    assert [ORIGINS[one] for one in rows["v0"].origin] == ["camera", "neighbour", "none"]
    for name in ("label", "confidence", "runner_up", "runner_up_confidence"):
        assert not getattr(rows["w0"], name).any()


def test_things_in_images_come_from_a_camera(fleet: Any, console: Console) -> None:
    fill(fleet, MIDDLE_ERRS)
    fleet.put("target", lambda name: target_row(name, [CAR] * 3))
    table = refine(fleet.recipe("refine.by=afi", "refine.merge=true", "correct.max_support=0"), console)
    found = rows_of(fleet, table)["v0"]
    taken = found.label == CAR
    assert taken.any() and {ORIGINS[one] for one in found.origin[taken]} == {"camera"}
    assert (found.runner_up[taken] == WALL).all() and (found.confidence[taken] == 204).all()


def put_sweeps(fleet: Any, xyz_m: dict[str, Any], label: dict[str, Any]) -> None:
    """Frames with such points and pseudo-labels, all of them seen and 200 of 255 sure."""
    fleet.frames = {"scene-0103": tuple(xyz_m)}
    fleet.put("index", lambda n: replace(index_row("v0"), frame_id=n, timestamp_us=int(n[1:]) * 500_000))
    fleet.put("points", lambda n: points_row(n, xyz_m[n]))
    fleet.put("target", lambda n: target_row(n, label[n], 200))


def test_rows_change_only_with_a_version(fleet: Any, console: Console) -> None:
    """The digest of the rows that a fixed input gives: when it changes, raise REFINE_VERSION in manifests/labels.py."""
    rng = np.random.default_rng(3)
    xyz_m = {f"v{n}": np.round(rng.uniform((-9, -9, -2), (9, 9, 2), (400, 3)), 2).astype(np.float32) for n in range(3)}
    label = {name: rng.integers(0, 4, 400, np.uint8) for name in xyz_m}
    put_sweeps(fleet, xyz_m, label)
    rows = rows_of(fleet, refine(fleet.recipe("refine.of=pseudo"), console))
    total = hashlib.sha256()
    for name in ("label", "confidence", "runner_up", "runner_up_confidence", "origin"):
        total.update(b"".join(getattr(rows[frame], name).tobytes() for frame in sorted(rows)))
    assert (REFINE_VERSION, total.hexdigest()[:12]) == (2, "70115518a480")


# -- no truth, no training


def test_neither_truth_nor_a_student_is_needed_for_pseudo_labels(fleet: Any, console: Console) -> None:
    fill(fleet, MIDDLE_ERRS)
    fleet.drop_table("label")
    recipe = fleet.recipe("refine.of=pseudo", "refine.by=vote", "vote.own=0", "evaluate.refine=vote")
    table = refine(recipe, console)
    assert rows_of(fleet, table)["v1"].label.tolist() == RIGHT
    assert [shard.shard for shard in table.shards] == list(SHARDS), "all scenes, not those of a split"
    with pytest.raises(StoreError, match="has no labels to evaluate against"):
        evaluate(recipe, console, "pseudo")


def test_evaluate_scores_this_very_table(fleet: Any, console: Console, capsys: Any) -> None:
    fill(fleet, MIDDLE_ERRS)
    table = refine(fleet.recipe("refine.by=vote", "vote.own=0", "predict.split=all"), console)
    capsys.readouterr()
    document = evaluate(fleet.recipe("evaluate.refine=vote", "vote.own=0"), console).document
    assert document.tables["refine"] == table.fingerprint
    assert "0 shards computed, 3 were there" in capsys.readouterr().out
    truth = np.full(3, WALL)
    hits = sum(int((found.label == truth).sum()) for found in rows_of(fleet, table).values())
    assert document.confusion["all"][WALL][WALL] == hits


# -- built as every table is


def test_a_shard_that_is_gone_is_made_again_with_the_same_bytes(fleet: Any, console: Console, capsys: Any) -> None:
    fill(fleet, MIDDLE_ERRS)
    first = refine(fleet.recipe(), console)
    assert "3 shards computed, 0 were there" in capsys.readouterr().out
    fleet.store.forget("refine", first.fingerprint, first.shards[1])
    assert names_of(refine(fleet.recipe(), console)) == names_of(first)
    assert "1 shards computed, 2 were there" in capsys.readouterr().out
    assert fleet.store.read_ref(refine_pin(fleet.recipe(), "prediction", "vote+afi")).tables["refine"] == first
    manifest = fleet.store.read_manifest("refine", first.fingerprint)
    assert manifest.identity.needs.keys() == {"points", "predict"} and manifest.shards


def test_several_processes_write_the_bytes_of_one(fleet: Any, console: Console) -> None:
    fill(fleet, MIDDLE_ERRS)
    alone = refine(fleet.recipe(), console)
    for shard in alone.shards:
        fleet.store.forget("refine", alone.fingerprint, shard)
    assert names_of(refine(fleet.recipe("run.loader_workers=3"), console)) == names_of(alone)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_run_that_was_killed_is_gone_on_with(fleet: Any, console: Console, capsys: Any, n_workers: int) -> None:
    fill(fleet, MIDDLE_ERRS)
    whole = refine(fleet.recipe(), console)
    for shard in whole.shards:
        fleet.store.forget("refine", whole.fingerprint, shard)
    recipe = fleet.recipe(f"run.loader_workers={n_workers}")
    if (child := os.fork()) == 0:  # of a process that is killed while it writes its second shard
        append = ShardWriter.append

        def dying(self: Any, row: Any, counts: Any = None) -> None:
            append(self, row, counts)
            if row.frame_id == "v2":
                if n_workers:
                    os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)  # a worker too, so that this shard is never finished

        ShardWriter.append = dying  # type: ignore[method-assign]
        refine(recipe, console)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    left = len(fleet.store.shards("refine", whole.fingerprint))
    assert left < 3
    capsys.readouterr()
    assert names_of(refine(fleet.recipe(), console)) == names_of(whole)
    if not n_workers:  # the workers of one that was killed may finish what they are at
        assert f"{3 - left} shards computed, {left} were there" in capsys.readouterr().out


def test_only_what_is_in_reach_of_a_change_is_made_again(fleet: Any, console: Console, capsys: Any) -> None:
    pseudo = ("refine.of=pseudo", "refine.by=vote", "vote.reach=1")
    fill(fleet, MIDDLE_ERRS)
    before = names_of(refine(fleet.recipe(*pseudo), console))
    moved = {**MIDDLE_ERRS, "w0": RIGHT}
    fleet.put("target", lambda name: target_row(name, moved[name]))
    capsys.readouterr()
    after = names_of(refine(fleet.recipe(*pseudo), console))
    # the test's store gives all shards of a table another key; what they hold is in their digest, and in ours
    assert before["scene-0003"] != after["scene-0003"]
    excluded = refine(fleet.packed(*pseudo, 'data.exclude=["v0"]'), console)
    now = names_of(excluded)
    assert now["scene-0003"] == after["scene-0003"], "out of reach"
    assert now["scene-0103+0000"] != after["scene-0103+0000"] and now["scene-0103+0002"] == after["scene-0103+0002"]
    assert rows_of(fleet, excluded)["v0"].reason == "excluded by data.exclude"


def test_no_more_frames_are_held_than_are_in_reach(
    fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"v{number:02d}" for number in range(30)]
    put_sweeps(
        fleet,
        {name: PLACES_M.astype(np.float32) for name in names},
        {name: np.full(3, WALL, np.uint8) for name in names},
    )
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0
    kept = arrays.Answered.__init__

    def counted(self: Any, *args: Any, **words: Any) -> None:
        nonlocal most
        kept(self, *args, **words)
        alive.add(self)
        most = max(most, len(alive))

    monkeypatch.setattr(arrays.Answered, "__init__", counted)
    refine(fleet.recipe("refine.of=pseudo", "refine.by=vote", "vote.reach=3"), console)
    assert 7 <= most <= 8, "three before, three after, the frame itself, and one that is just let go"


# -- its version


ROWS_OF_VERSION = {1: "d6a6aa156bf2", 2: "d6a6aa156bf2"}
"""A digest of the rows below by REFINE_VERSION: other rows under the old one would be mixed with those of before.

The second changes what flat interaction fills, which these few points have none of."""

WAYS = (
    ("refine.by=vote", "vote.own=0"),
    ("refine.by=afi",),
    ("refine.by=vote+afi", "refine.merge=true", "correct.max_support=0"),
    ("refine.of=pseudo", "refine.by=vote+afi"),
)


def test_other_rows_need_another_version(fleet: Any, console: Console) -> None:
    fill(fleet, MIDDLE_ERRS, second={"w0": ROAD})
    fleet.put("target", lambda name: target_row(name, [CAR, WALL, CAR]))
    tables = [refine(fleet.recipe(*words), console) for words in WAYS]
    found = [digest_of([rows[name] for name in sorted(rows)]) for rows in (rows_of(fleet, table) for table in tables)]
    assert len(set(found)) == len(WAYS), "each way gives rows of its own"
    assert digest(found) == ROWS_OF_VERSION.get(REFINE_VERSION), (
        "table `refine` has other rows: raise REFINE_VERSION in manifests/labels.py, and write its digest down here"
    )


# -- who reads it


def test_old_refined_labels_are_not_taken_for_those_of_now(fleet: Any, console: Console) -> None:
    fill(fleet, MIDDLE_ERRS)
    recipe = fleet.recipe("refine.by=vote")

    def read(*words: str) -> TableRef:
        now = fleet.recipe("refine.by=vote", *words)
        return refined_of(fleet.store, now, tables_of(fleet.store, now, ["index", "points"]))[0]

    with pytest.raises(StoreError, match=r"has no refined labels yet; run: make refine RECIPE=\S*street"):
        read()
    table = refine(recipe, console)
    assert read() == table
    with pytest.raises(StoreError, match=r"are others \(settings.vote.own: \(default\) -> 2.0\); run: make refine"):
        read("vote.own=2")
    fill(fleet, {**MIDDLE_ERRS, "v2": [CAR, CAR, CAR]})
    with pytest.raises(StoreError, match=r"refined labels of shard scene-0103.0000 were made from is another by now"):
        read()


def test_predictions_of_another_student_are_handed_on_by_nobody(fleet: Any, console: Console) -> None:
    """Who writes label files opens no checkpoint: what predictions say of their student is compared instead."""
    recipe = fleet.recipe("distill.epochs=1")
    train(recipe, "distill", console)
    predict(recipe, console)

    def read(*words: str) -> TableRef:
        now = fleet.recipe("distill.epochs=1", *words)
        points = tables_of(fleet.store, now, ["points"]).table("points")
        return students_predictions(fleet.store, now, points)[0]

    table = read("pretrain.epochs=9")
    assert table.shards, "what is not the student's changes nothing"
    named = f"predict.checkpoint={fleet.folder / 'other.safetensors'}"
    cases = {
        "distill.epochs=2": r"distill.epochs: 1 -> 2\nTake the change back, or train it: make distill .* then run: ",
        "group.policy=last_camera": "table `target`: it learnt from",
        'data.exclude=["v1"]': "data.exclude",
        "predict.of=supervised": r"/distill/epoch-0001.safetensors, and it names /\S*/supervised now; run: make",
        named: r"it names /\S*other.safetensors now; run: make pred",
    }
    for words, said in cases.items():
        with pytest.raises(StoreError, match=f"(?s){said}"):
            read(words)
    shutil.copy(recipe.folder() / "distill/epoch-0001.safetensors", fleet.folder / "other.safetensors")
    predict(fleet.recipe("distill.epochs=1", named), console)
    assert read(named) == table and read(named, "distill.epochs=2") == table, "a file that is named is taken as it is"
    os.utime(fleet.folder / "other.safetensors")
    with pytest.raises(StoreError, match=r"other.safetensors was written anew since .*; run: make predict"):
        read(named)


def test_no_reader_takes_what_another_student_said(
    fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.inference.submit.LIDARSEG_CLASSES", fleet.recipe().ontology.class_names[1:])
    fleet.put("index", lambda name: replace(index_row("v0"), frame_id=name))
    recipe = fleet.recipe("distill.epochs=1")
    train(recipe, "distill", console)
    predict(recipe, console)
    refine(recipe, console)
    readers: dict[str, Callable[[Recipe], object]] = {
        "evaluate": lambda now: evaluate(now, console),
        "evaluate refined": lambda now: evaluate(replace(now, evaluate=replace(now.evaluate, refine="vote")), console),
        "refine": lambda now: refine(now, console),
        "submit": lambda now: submit(now, console),
        "submit refined": lambda now: submit(now, console, of="refine"),
        "labels": lambda now: write_labels(replace(now, labels=LabelsConfig(of="predict")), fleet.folder / "out"),
        "refined labels": lambda now: write_labels(now, fleet.folder / "out"),
        "review": lambda now: review(now, fleet.folder / "out", 3),
    }
    edited = fleet.recipe("distill.epochs=2")
    for name, reader in readers.items():
        with pytest.raises((StoreError, TrainerError), match=r"distill.epochs: 1 -> 2\n.*--fresh"):
            reader(edited)
            raise AssertionError(f"{name} hands on what another student said")
    assert not (fleet.folder / "out").exists()


def test_what_was_made_for_another_split_stays(fleet: Any, console: Console) -> None:
    fill(fleet, MIDDLE_ERRS)
    everything = refine(fleet.recipe(*ALL), console)
    (fleet.folder / "one.txt").write_text("scene-0003\n")
    one = refine(fleet.recipe(f"refine.split={fleet.folder / 'one.txt'}"), console)
    assert [shard.shard for shard in one.shards] == ["scene-0003"]
    kept = fleet.store.read_ref(refine_pin(fleet.recipe(), "prediction", "vote+afi")).tables["refine"]
    assert kept == everything


def test_refined_labels_are_sent_to_a_server_and_it_is_said(
    fleet: Any, console: Console, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.inference import submit as sent

    fleet.put("index", lambda name: replace(index_row("v0"), frame_id=name, lidar_token=f"token-{name}"))
    recipe = fleet.recipe()
    train(recipe, "distill", console)
    predict(recipe, console)
    monkeypatch.setattr(sent, "LIDARSEG_CLASSES", recipe.ontology.class_names[1:])
    monkeypatch.setitem(sent.LIDARSEG_FRAMES, "val", 2)
    with pytest.raises(StoreError, match="no refined labels yet; run: make refine"):
        submit(recipe, console, of="refine")
    rows = rows_of(fleet, refine(recipe, console))
    folder = submit(recipe, console, of="refine")
    for name in ("v0", "v1"):
        written = np.fromfile(folder / f"lidarseg/val/token-{name}_lidarseg.bin", np.uint8)
        np.testing.assert_array_equal(written, rows[name].label)
    assert (
        "table refine, prediction by vote+afi: sweeps before and after had a say, so offline" in capsys.readouterr().out
    )


# -- what moves


def test_what_moves_is_followed_where_the_recipe_says_so(fleet: Any, console: Console) -> None:
    """A car goes 2 m in half a second; the middle sweep calls it a wall, and nobody looks through where it was."""
    places = {f"v{n}": np.array([[10.0 + 2 * n, 0, 0], [10.2 + 2 * n, 0, 0]], np.float32) for n in range(3)}
    put_sweeps(fleet, places, {"v0": np.array([CAR] * 2), "v1": np.array([WALL] * 2), "v2": np.array([CAR] * 2)})
    asked = ("refine.of=pseudo", "refine.by=vote", "vote.own=0")
    plain = rows_of(fleet, refine(fleet.recipe(*asked), console))["v1"]
    assert plain.label.tolist() == [WALL] * 2
    follows = fleet.recipe(*asked, "vote.follow=true")
    with pytest.raises(StoreError, match=r"no table `motion` yet; run: make motion"):
        refine(follows, console)
    fleet.put("motion", lambda n: Motion(frame_id=n, standing=np.zeros(2, np.uint8), thing=np.ones(2, np.uint16)))
    followed = refine(follows, console)
    row = rows_of(fleet, followed)["v1"]
    assert row.label.tolist() == [CAR] * 2 and [ORIGINS[one] for one in row.origin] == ["neighbour"] * 2
    lacks_motion = replace(fleet.ref(), tables={k: v for k, v in fleet.ref().tables.items() if k != "motion"})
    for ref in (fleet.ref(), lacks_motion):  # not every reader asks for what moves
        assert refined_of(fleet.store, follows, ref)[0].fingerprint == followed.fingerprint
    fleet.put("motion", lambda n: Motion(frame_id=n, standing=np.zeros(2, np.uint8), thing=np.zeros(2, np.uint16)))
    with pytest.raises(StoreError, match="made from is another by now"):
        refined_of(fleet.store, follows, fleet.ref())
    assert rows_of(fleet, refine(follows, console))["v1"].label.tolist() == [WALL] * 2
    assert refine(fleet.recipe(*asked), console).fingerprint != followed.fingerprint


def test_labels_that_follow_nothing_do_not_hear_of_what_moves(fleet: Any, console: Console) -> None:
    """A frame fails in table `motion`: labels after a vote lack it, those after flat interaction alone are as ever."""
    fill(fleet, MIDDLE_ERRS)
    fleet.put("motion", moves_nowhere)
    recipe = fleet.recipe("vote.follow=true", "evaluate.split=all")

    def failed() -> dict[str, Any]:
        store, ref = fleet.store, fleet.ref()
        source = source_of("prediction", recipe, store, ref, to_refine=True)
        found = refine_each(recipe, store, ref, source, ["afi", "vote"], "all", console)
        return {by: [name for shard in table.shards for name in shard.failed] for by, table in found.items()}

    assert failed() == {"afi": [], "vote": []}
    alone = names_of(refine(fleet.recipe("vote.follow=true", "refine.by=afi", "refine.split=all"), console))
    fleet.put("motion", lambda n: Failed(n, "no pose") if n == "v1" else moves_nowhere(n))
    assert failed() == {"afi": [], "vote": ["v1"]}
    again = refine(fleet.recipe("vote.follow=true", "refine.by=afi", "refine.split=all"), console)
    assert names_of(again) == alone


def moves_nowhere(name: str) -> Motion:
    return Motion(frame_id=name, standing=np.full(3, 255, np.uint8), thing=np.zeros(3, np.uint16))
