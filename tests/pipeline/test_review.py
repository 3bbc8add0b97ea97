"""The loop of review: the riskiest frames go out as files, and what people corrected comes before machine labels."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

from manifests.asked import asked, tables_of
from manifests.config import ConfigError
from manifests.recipe import Recipe
from manifests.sources import compare_files
from manifests.stages import fingerprint
from manifests.storage.errors import StoreError
from manifests.storage.store import Store
from manifests.tables.labels import Target
from pipeline.__main__ import app as pipeline
from pipeline.exchange.review import Risk, review, riskiest
from pipeline.stages.mend import in_turn
from tests.fixed_rows import recipe_over, write_log
from trainer.records.record import reads_labels

CAR, ROAD = 4, 11


@dataclass(frozen=True)
class Place:
    """A log of a few frames of 40 points, packed."""

    folder: Path

    def recipe(self, *overrides: str) -> Recipe:
        return recipe_over(self.folder / "log", "labels.of=target", *overrides)

    def run(self, *words: str) -> Any:
        return CliRunner().invoke(pipeline, [words[0], *words[1:]])

    def pack(self, *overrides: str) -> Any:
        sets = [word for one in overrides for word in ("--set", one)]
        return self.run("run", "pack", str(self.folder / "tiny.toml"), *sets)

    def targets(self, *overrides: str) -> dict[str, Any]:
        recipe = self.recipe(*overrides)
        store = Store.open(recipe.run.store)
        table = tables_of(store, recipe, ["target"]).table("target")
        return {row.frame_id: row for row in store.every(Target, table.fingerprint, table.shards)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("review"))
    write_log(place.folder / "log")
    place.recipe()
    done = place.pack()
    assert done.exit_code == 0, done.output
    return place


@pytest.fixture
def first(place: Place, tmp_path: Path) -> Path:
    """The folder of rounds, with a first round of two frames."""
    review(place.recipe(), tmp_path / "rounds", 2)
    return tmp_path / "rounds"


def frames_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "frames.csv").open(newline="") as table:
        return list(csv.DictReader(table))


def correct(folder: Path, frame: dict[str, str], change: Callable[[npt.NDArray[Any]], None]) -> npt.NDArray[Any]:
    """Do what a person does in point_labeler: change numbers in a .label file."""
    path = folder / frame["kitti"]
    label = np.fromfile(path, "<u4")
    change(label)
    label.tofile(path)
    return label


def all_cars(label: npt.NDArray[Any]) -> None:
    label[:] = CAR | (7 << 16)  # an instance, as point_labeler gives it
    label[5] = 0


# -- out


def test_the_riskiest_frames_go_out_and_not_twice(place: Place, first: Path) -> None:
    rows = place.targets()
    doubt = sorted(rows, key=lambda name: (rows[name].confidence.mean(), name))
    assert {frame["frame_id"] for frame in frames_of(first / "1")} <= set(doubt)
    assert sorted(path.name for path in (first / "1").iterdir()) == [
        "files.sha256",
        "frames.csv",
        "kitti",
        "labels.json",
    ]
    again, chosen = review(place.recipe(), first, 99)
    assert again.folder == first / "2"
    names = [frame["frame_id"] for folder in ("1", "2") for frame in frames_of(first / folder)]
    assert sorted(names) == sorted(rows) and len(chosen) == len(rows) - 2
    with pytest.raises(ConfigError, match="no frame of recipe tiny is left to review: the 5 that have labels are in"):
        review(place.recipe(), first, 1)


def test_frames_are_chosen_by_risk_and_apart() -> None:
    risks = [Risk(f"a{n}", "a", n, doubt, 0.0) for n, doubt in enumerate([0.1, 0.9, 0.8, 0.1, 0.1, 0.1, 0.5])]
    risks.append(Risk("b0", "b", 0, 0.2, 0.0))
    assert [one.frame_id for one in riskiest(risks, 3)] == ["a1", "a6", "b0"], "a2 is next to a1"
    assert [one.frame_id for one in riskiest(risks, 4)][3] == "a2", "unless no other is left"
    assert riskiest([Risk("x", "a", 0, 0.2, 0.0), Risk("y", "a", 9, 0.0, 0.6)], 1)[0].frame_id == "y"


# -- back


def test_what_was_corrected_comes_before_machine_labels(place: Place, first: Path) -> None:
    before = place.targets()
    frame, untouched = frames_of(first / "1")
    correct(first / "1", frame, all_cars)
    setting = f"data.corrections={first}"
    done = place.pack(setting)
    assert done.exit_code == 0, done.output
    after = place.targets(setting)
    expected = np.full(40, CAR)
    expected[5] = 0
    assert after[frame["frame_id"]].label.tolist() == expected.tolist()
    assert after[frame["frame_id"]].confidence.tolist() == np.where(expected > 0, 255, 0).tolist()
    for name in before:
        if name != frame["frame_id"]:
            for column in ("label", "confidence", "seen"):
                np.testing.assert_array_equal(getattr(after[name], column), getattr(before[name], column))
    assert untouched["frame_id"] in before, "nobody is taken to agree with what nobody touched"
    assert place.targets().keys() == before.keys(), "without the setting all is as it was"


def test_a_correction_after_the_last_build_stops_whoever_learns_from_it(place: Place, first: Path) -> None:
    frame = frames_of(first / "1")[0]
    correct(first / "1", frame, all_cars)
    assert place.pack(f"data.corrections={first}").exit_code == 0
    recipe = place.recipe(f"data.corrections={first}")
    store = Store.open(recipe.run.store)
    ref = tables_of(store, recipe, ["points", "target"])
    shards = {shard.shard for shard in ref.table("target").shards}
    before = compare_files(store, recipe, ref, shards, ["points", "target"])
    assert before.files > compare_files(store, recipe, ref, shards, ["points"]).files
    np.full(40, ROAD, "<u4").tofile(first / "1" / frame["kitti"])
    with pytest.raises(StoreError, match=r"\.label holds something else than when the tables were made.* pack "):
        compare_files(store, recipe, ref, shards, ["points", "target"])
    assert compare_files(store, recipe, ref, shards, ["points"]), "who reads no labels goes on"


def test_a_later_round_comes_before_an_earlier_one_and_only_changed_shards_are_built_again(
    place: Place, first: Path
) -> None:
    frame = frames_of(first / "1")[0]
    correct(first / "1", frame, all_cars)
    setting = f"data.corrections={first}"
    assert place.pack(setting).exit_code == 0
    assert "everything is built already" in place.pack(setting).output
    later = first / "2"
    later.mkdir()
    (later / "labels.json").write_bytes((first / "1/labels.json").read_bytes())
    (later / "frames.csv").write_bytes((first / "1/frames.csv").read_bytes())
    path = later / frame["kitti"]
    path.parent.mkdir(parents=True)
    np.full(40, ROAD, "<u4").tofile(path)
    again = place.pack(setting)
    assert again.exit_code == 0 and "everything is built already" not in again.output, again.output
    assert (place.targets(setting)[frame["frame_id"]].label == ROAD).all()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda label: label.__setitem__(slice(3), 999), "label 999 is no class of labels.json beside it"),
        (None, "8 bytes; expected 4 for each of the 40 points of the sweep"),
    ],
)
def test_a_file_that_does_not_fit_is_named(place: Place, first: Path, spoil: Any, said: str) -> None:
    frame = frames_of(first / "1")[0]
    if spoil:
        correct(first / "1", frame, spoil)
    else:
        (first / "1" / frame["kitti"]).write_bytes(b"12345678")
    done = place.pack(f"data.corrections={first}")
    shown = re.sub(r"[\s│]", "", done.output)  # a table, whose cells are folded
    assert done.exit_code == 1 and frame["kitti"] in shown and said.replace(" ", "") in shown


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: None, "holds no labels.json, nor has a folder below it one"),
        (lambda folder: (folder / "labels.json").write_text("{}"), "is no folder of label files in KITTI's layout"),
        (
            lambda folder: (folder / "labels.json").write_text('{"layouts": {"kitti": {"values": {"cow": 1}}}}'),
            "has a class 'cow', which dictionary nuscenes does not",
        ),
    ],
)
def test_a_folder_that_is_no_review_is_refused(place: Place, tmp_path: Path, spoil: Any, said: str) -> None:
    (tmp_path / "frames.csv").write_text("frame_id,kitti,kitti_sha256\n")
    spoil(tmp_path)
    done = place.pack(f"data.corrections={tmp_path}")
    assert done.exit_code == 2 and said in " ".join((done.stderr or done.output).split())


def test_names_in_a_review_do_not_leave_its_folder(place: Place, first: Path) -> None:
    text = (first / "1/frames.csv").read_text()
    frame = frames_of(first / "1")[0]
    (first / "1/frames.csv").write_text(text.replace(frame["kitti"], "../../../etc/passwd"))
    before = place.targets()[frame["frame_id"]].label
    assert place.pack(f"data.corrections={first}").exit_code == 0
    found = place.targets(f"data.corrections={first}")[frame["frame_id"]].label
    np.testing.assert_array_equal(found, before, err_msg="such a file counts as not there")


# -- what else follows


def test_a_distillation_with_corrections_says_that_labels_were_read(place: Place, tmp_path: Path) -> None:
    plain, corrected = place.recipe(), place.recipe(f"data.corrections={tmp_path}")
    assert not reads_labels(plain, "distill", None, {"name": "clip_dense"})
    assert reads_labels(corrected, "distill", None, None) and not reads_labels(corrected, "pretrain", None, None)


def test_the_tenth_round_comes_after_the_ninth() -> None:
    folders = [Path("out") / name for name in ("10", "9", "1", "1-before-1")]
    assert [folder.name for folder in sorted(folders, key=in_turn)] == ["1-before-1", "1", "9", "10"]


def test_a_recipe_without_corrections_is_asked_for_as_before(place: Place, tmp_path: Path) -> None:
    plain, corrected = place.recipe(), place.recipe(f"data.corrections={tmp_path}")
    assert "mend" not in asked(plain).tables and "corrections" not in asked(plain).data
    assert asked(corrected).data["corrections"] == str(tmp_path)
    assert fingerprint(plain, "target") != fingerprint(corrected, "target")
    assert fingerprint(plain, "group") == fingerprint(corrected, "group")


def test_the_command_says_what_to_do_next(place: Place, tmp_path: Path) -> None:
    words = ("review", str(place.folder / "tiny.toml"), "--set", "labels.of=target", "--frames", "1")
    done = place.run(*words, "--out", str(tmp_path / "rounds"))
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert f'set [data] corrections = "{tmp_path / "rounds"}", and run: make pack' in said
    assert json.loads((tmp_path / "rounds/1/labels.json").read_bytes())["layouts"].keys() == {"kitti"}
