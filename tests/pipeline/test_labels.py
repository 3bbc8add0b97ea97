"""Labels as files: every layout is read back, by our own readers, by Open3D, and by the rules of semantic-kitti-api."""

from __future__ import annotations

import csv
import json
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from manifests.config import ConfigError
from manifests.ontology import load_ontology
from manifests.recipe import Recipe
from manifests.records.codec import as_document
from manifests.storage.errors import StoreError
from manifests.storage.store import Store
from manifests.tables.registry import FRAME_TABLES
from pipeline.__main__ import app as pipeline
from pipeline.datasets.clouds import read_cloud
from pipeline.datasets.formats import read_point_labels
from pipeline.exchange import labels as module
from pipeline.exchange.label_files import LabelledSweep
from pipeline.exchange.label_folder import sole_writer
from pipeline.exchange.labels import raw_numbers, write_labels
from tests.fixed_rows import recipe_over, write_log
from tests.refs import newest
from trainer.__main__ import app as trainer

LAYOUTS = ("npy", "kitti", "lidarseg", "pcd", "ply", "parquet")


@dataclass(frozen=True)
class Place:
    """A log of a few frames of 40 points with all tables of labels that need no training."""

    folder: Path

    def recipe(self, *overrides: str) -> Recipe:
        return recipe_over(self.folder / "log", "refine.of=pseudo", *overrides)

    def rows(self, stage: str) -> dict[str, Any]:
        store = Store.open(self.folder / "store")
        tables = newest(store, "tiny").tables
        table = tables[stage] if stage != "refine" else self.refined(store)
        return {row.frame_id: row for row in store.every(FRAME_TABLES[stage], table.fingerprint, table.shards)}

    def refined(self, store: Store) -> Any:
        return next(ref.tables["refine"] for ref in store.refs().values() if "refine" in ref.tables)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("labels"))
    write_log(place.folder / "log")
    place.recipe()
    path = str(place.folder / "tiny.toml")
    done = CliRunner().invoke(pipeline, ["run", "pack,label,vote,correct", path])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(trainer, ["refine", path, "--set", "refine.of=pseudo"])
    assert done.exit_code == 0, done.output
    return place


@pytest.fixture(scope="module")
def written(place: Place) -> Path:
    """All layouts of table `refine`."""
    formats = json.dumps(LAYOUTS)
    return write_labels(place.recipe(f"labels.formats={formats}"), place.folder / "out").folder


def frames_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "frames.csv").open(newline="") as table:
        return list(csv.DictReader(table))


def record_of(folder: Path) -> Any:
    return json.loads((folder / "labels.json").read_text())


# -- layouts


def test_arrays_hold_the_classes_of_the_table(place: Place, written: Path) -> None:
    rows, frames = place.rows("refine"), frames_of(written)
    assert [frame["frame_id"] for frame in frames] == list(rows)
    for frame in frames:
        path = written / frame["npy"]
        label = read_point_labels(path, path.read_bytes())
        np.testing.assert_array_equal(label, rows[frame["frame_id"]].label)
        sure = np.load(path.with_name(f"{path.stem}.confidence.npy"))
        np.testing.assert_array_equal(sure, rows[frame["frame_id"]].confidence)


@pytest.mark.parametrize("layout", ["pcd", "ply"])
def test_point_clouds_are_read_by_our_reader_and_by_open3d(place: Place, written: Path, layout: str) -> None:
    import open3d

    points, rows = place.rows("points"), place.rows("refine")
    for frame in frames_of(written):
        path, name = written / frame[layout], frame["frame_id"]
        ours = read_cloud(path.name, path.read_bytes(), None, place.recipe().data)
        np.testing.assert_array_equal(ours.xyz_m, points[name].xyz_m)
        np.testing.assert_array_equal(ours.intensity, points[name].intensity)
        cloud = open3d.t.io.read_point_cloud(path)
        np.testing.assert_array_equal(cloud.point.positions.numpy(), points[name].xyz_m)
        np.testing.assert_array_equal(cloud.point["label"].numpy().ravel(), rows[name].label)
        expected = (rows[name].confidence / 255).astype(np.float32)
        np.testing.assert_array_equal(cloud.point["confidence"].numpy().ravel(), expected)


def test_kitti_files_are_read_as_semantic_kitti_api_does(place: Place, written: Path) -> None:
    """`SemLaserScan.open_label`: uint32, the class in the lower 16 bits, as many as the scan has points of 4 floats."""
    rows, points, frames = place.rows("refine"), place.rows("points"), frames_of(written)
    config = yaml.safe_load((written / "kitti/semantic-kitti.yaml").read_text())
    classes = load_ontology("nuscenes").class_names
    for frame in frames:
        path = written / frame["kitti"]
        label = np.fromfile(path, dtype=np.int32).reshape(-1)
        scan = np.fromfile(path.parent.parent / "velodyne" / f"{path.stem}.bin", dtype=np.float32).reshape(-1, 4)
        assert len(scan) == len(label)
        np.testing.assert_array_equal(scan[:, :3], points[frame["frame_id"]].xyz_m)
        semantic, instance = label & 0xFFFF, label >> 16
        assert not instance.any() and (semantic + (instance << 16) == label).all()
        learnt = np.vectorize(config["learning_map"].get)(semantic)
        np.testing.assert_array_equal(learnt, rows[frame["frame_id"]].label)
        assert {config["labels"][one] for one in np.unique(semantic).tolist()} <= set(classes)
        np.testing.assert_array_equal(read_point_labels(path, path.read_bytes()), semantic)
    assert all(len(colour) == 3 for colour in config["color_map"].values())
    assert {config["learning_map_inv"][config["learning_map"][raw]] for raw in config["labels"]} == set(
        config["labels"]
    )
    assert config["learning_ignore"][0] is True and not any(list(config["learning_ignore"].values())[1:])


def test_single_objects_stand_in_the_upper_half_of_kitti_files(place: Place, written: Path, tmp_path: Path) -> None:
    wanted = place.recipe('labels.formats=["kitti"]', "labels.instance_gap_m=0.6")
    folder = write_labels(wanted, tmp_path / "objects").folder
    things = np.flatnonzero(wanted.ontology.thing_of_class)
    n_objects = 0
    for frame, plain in zip(frames_of(folder), frames_of(written), strict=True):
        value = np.fromfile(folder / frame["kitti"], np.uint32)
        lower, upper = value & 0xFFFF, value >> 16
        np.testing.assert_array_equal(lower, np.fromfile(written / plain["kitti"], np.uint32))
        np.testing.assert_array_equal(read_point_labels(folder / frame["kitti"], value.tobytes()), lower)
        label = place.rows("refine")[frame["frame_id"]].label
        assert np.isin(label[upper > 0], things).all()
        for number in range(1, upper.max(initial=0) + 1):
            assert len(np.unique(label[upper == number])) == 1 and np.count_nonzero(upper == number) >= 5
        n_objects += int(upper.max(initial=0))
    assert n_objects > 0
    assert "within 0.6 m of each other" in record_of(folder)["layouts"]["kitti"]["instances"]
    assert write_labels(wanted, folder).kept, "and they are known again"
    assert record_of(written)["layouts"]["kitti"]["instances"] == "none"


def test_point_labeler_finds_scans_poses_and_classes(place: Place, written: Path) -> None:
    index = place.rows("index")
    for number, scene in enumerate(dict.fromkeys(row.scene for row in index.values())):
        folder = written / f"kitti/sequences/{number:02d}"
        frames = [row for row in index.values() if row.scene == scene]
        poses = np.loadtxt(folder / "poses.txt", ndmin=2).reshape(-1, 3, 4)
        names = [f"{frame:06d}" for frame in range(len(frames))]
        assert [path.stem for path in sorted((folder / "velodyne").iterdir())] == names
        assert [path.stem for path in sorted((folder / "labels").iterdir())] == names
        calib = dict(line.split(": ") for line in (folder / "calib.txt").read_text().splitlines())
        np.testing.assert_array_equal(np.array(calib["Tr"].split(), float).reshape(3, 4), np.eye(4)[:3])
        for pose, row in zip(poses, frames, strict=True):
            expected = np.linalg.inv(frames[0].world_from_lidar) @ row.world_from_lidar
            np.testing.assert_allclose(pose, expected[:3], atol=1e-7)
    labels = ElementTree.parse(written / "kitti/labels.xml").getroot().findall("label")
    values = record_of(written)["layouts"]["kitti"]["values"]
    assert {one.findtext("name"): int(str(one.findtext("id"))) for one in labels} == values
    assert all(len(str(one.findtext("color")).split()) == 3 for one in labels)


def test_lidarseg_files_hold_a_byte_a_point_and_tables_name_them(place: Place, written: Path) -> None:
    rows = place.rows("refine")
    version = next(path for path in (written / "lidarseg").iterdir() if path.name != "lidarseg")
    names = {row["filename"] for row in json.loads((version / "lidarseg.json").read_text())}
    assert names == {frame["lidarseg"].removeprefix("lidarseg/") for frame in frames_of(written)}
    categories = {row["index"]: row["name"] for row in json.loads((version / "category.json").read_text())}
    assert [categories[n] for n in range(len(categories))] == list(load_ontology("nuscenes").class_names)
    for frame in frames_of(written):
        np.testing.assert_array_equal(np.fromfile(written / frame["lidarseg"], np.uint8), rows[frame["frame_id"]].label)


def test_parquet_has_plain_lists_that_need_none_of_our_code(place: Place, written: Path) -> None:
    rows, points = place.rows("refine"), place.rows("points")
    found: dict[str, Any] = {}
    for path in sorted((written / "parquet").glob("*.parquet")):
        table = pq.read_table(path)
        assert json.loads(table.schema.metadata[b"classes"])["4"] == "car"
        found |= {row["frame_id"]: row for row in table.to_pylist()}
    assert found.keys() == rows.keys()
    for name, row in found.items():
        for column in ("label", "runner_up", "runner_up_confidence", "origin"):
            assert row[column] == getattr(rows[name], column).tolist()
        assert row["x"] == points[name].xyz_m[:, 0].tolist()
        np.testing.assert_allclose(row["confidence"], rows[name].confidence / 255, atol=1e-7)


# -- which labels, and what is said of them


@pytest.mark.parametrize("of", ["group", "vote", "correct", "target"])
def test_any_table_of_labels_is_written(place: Place, tmp_path: Path, of: str) -> None:
    done = write_labels(place.recipe(f"labels.of={of}"), tmp_path / "out")
    rows = place.rows(of)
    for frame in frames_of(done.folder):
        np.testing.assert_array_equal(np.load(done.folder / frame["npy"]), rows[frame["frame_id"]].label)
        sure = np.load(done.folder / frame["npy"].replace(".npy", ".confidence.npy"))
        assert ((sure > 0) == (rows[frame["frame_id"]].label > 0)).all()


def test_the_record_says_what_is_there(place: Place, written: Path) -> None:
    record, rows = record_of(written), place.rows("refine")
    labels = np.concatenate([row.label for row in rows.values()])
    assert record["counts"]["frames"] == len(rows) and record["counts"]["points"] == len(labels)
    assert record["counts"]["labelled"] == np.count_nonzero(labels)
    assert record["counts"]["by_class"]["car"] == np.count_nonzero(labels == 4)
    assert (record["of"], record["refined"]) == ("refine", {"of": "pseudo", "by": "vote+afi"})
    assert record["classes"][4] == {
        "number": 4,
        "name": "car",
        "colour": module.hex_colour(load_ontology("nuscenes").classes[4].rgb),
        "thing": True,
    }
    assert record["identity"]["tables"].keys() == {"index", "points", "refine"}
    assert record["layouts"].keys() == set(LAYOUTS)
    origins = np.bincount(np.concatenate([row.origin for row in rows.values()]), minlength=5).tolist()
    assert list(record["counts"]["by_origin"].values()) == origins and sum(origins) == len(labels)
    sure = {name: row.confidence.mean() / 255 for name, row in rows.items()}
    assert [one["frame_id"] for one in record["look_first"]] == sorted(sure, key=lambda name: (sure[name], name))
    assert [float(one["mean_confidence"]) for one in frames_of(written)] == pytest.approx(list(sure.values()), abs=1e-4)


@pytest.mark.parametrize("below", ["none", "unsure"])
def test_labels_that_are_not_sure_enough_are_none_or_unsure(place: Place, tmp_path: Path, below: str) -> None:
    rows = place.rows("refine")
    sure = np.concatenate([row.confidence for row in rows.values()])
    label = np.concatenate([row.label for row in rows.values()])
    least = float(np.median(sure[label > 0])) / 255
    settings = (f"labels.min_confidence={least}", f"labels.below={below}", 'labels.formats=["npy", "kitti"]')
    done = write_labels(place.recipe(*settings), tmp_path / "out")
    found = np.concatenate([np.load(done.folder / frame["npy"]) for frame in frames_of(done.folder)])
    unsure = 17 if below == "unsure" else 0
    np.testing.assert_array_equal(found, np.where((label > 0) & (sure < np.ceil(least * 255)), unsure, label))
    assert 0 < done.record.counts.not_sure_enough < np.count_nonzero(label)
    names = [one.name for one in done.record.classes]
    assert (names[-1] == "unsure") == (below == "unsure")
    if below == "unsure":
        values = done.record.layouts["kitti"].values
        assert values["unsure"] == max(values.values()) and len(set(values.values())) == len(values)


def test_numbers_in_kitti_files_are_the_data_set_s_own_where_each_class_has_one() -> None:
    assert raw_numbers(load_ontology("semantic_kitti"), 21).tolist()[:4] == [0, 10, 11, 15]
    assert raw_numbers(load_ontology("semantic_kitti"), 21)[-1] == 260, "unsure, behind 259, moving-other-vehicle"
    assert raw_numbers(load_ontology("nuscenes"), 17).tolist() == list(range(17))


def test_frames_without_labels_are_named_and_have_no_file(place: Place, tmp_path: Path) -> None:
    name = next(iter(place.rows("index")))
    left_out = place.recipe("labels.of=target", f"data.exclude=['{name}']")
    done = CliRunner().invoke(
        pipeline, ["run", "pack", str(place.folder / "tiny.toml"), "--set", left_out.overrides[-1]]
    )
    assert done.exit_code == 0, done.output
    written = write_labels(left_out, tmp_path / "out")
    assert written.record.without_labels == {name: "excluded by data.exclude"}
    assert name not in {frame["frame_id"] for frame in frames_of(written.folder)}


# -- the folder


def test_a_folder_appears_whole_and_what_a_killed_run_left_is_removed(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if (child := os.fork()) == 0:
        module.record_of = lambda *_: os._exit(9)
        write_labels(place.recipe(), out)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not out.exists() and [path for path in tmp_path.iterdir() if path.is_dir()]
    write_labels(place.recipe(), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_same_labels_are_left_and_others_are_moved_aside(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_labels(place.recipe(), out)
    stamp = (out / "labels.json").stat().st_mtime_ns
    assert write_labels(place.recipe(), out).kept and (out / "labels.json").stat().st_mtime_ns == stamp
    file = min((out / "npy").rglob("*.npy"))
    file.write_bytes(file.read_bytes()[:-1])
    kept = write_labels(place.recipe(), out)
    assert kept.kept and kept.changed == (str(file.relative_to(out)),), "corrected files are neither lost nor hidden"
    assert f"not as they were written, such as {kept.changed[0]}: corrected" in said_of_labels(place, out)
    other = write_labels(place.recipe("labels.of=vote"), out)
    assert other.aside == tmp_path / "out-before-1" and record_of(other.aside)["of"] == "refine"
    labels = min(file for file in (out / "npy").rglob("*.npy") if "confidence" not in file.name)
    every = (out / "files.sha256", out / "frames.csv", labels, min((out / "npy").rglob("*.confidence.npy")))
    for number, file in enumerate(every, 2):
        file.unlink()
        broken = write_labels(place.recipe("labels.of=vote"), out)
        assert not broken.kept and broken.aside == tmp_path / f"out-before-{number}", "whichever file is missing"


def said_of_labels(place: Place, out: Path) -> str:
    place.recipe()
    options = ["--set", "refine.of=pseudo", "--out", str(out)]
    done = CliRunner().invoke(pipeline, ["labels", str(place.folder / "tiny.toml"), *options])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_record_is_written_anew_where_the_dictionary_has_another_name(place: Place, tmp_path: Path) -> None:
    """That is in the record and in no table."""
    out, path = tmp_path / "out", tmp_path / "dictionary.toml"
    write_labels(place.recipe(), out)
    path.write_text(Path("manifests/ontologies/nuscenes.toml").read_text().replace('"nuscenes"', '"other"', 1))
    written = write_labels(replace(place.recipe(), ontology=load_ontology(str(path))), out)
    assert not written.kept and as_document(written.record) == record_of(out) and written.record.dictionary == "other"


def test_a_folder_that_is_not_ours_is_refused(place: Place, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"out is there and holds no labels.json of labels; name another folder"):
        write_labels(place.recipe(), tmp_path / "out")
    assert (tmp_path / "out/precious.txt").read_text() == "mine"


def test_two_writers_of_one_folder_are_kept_apart(place: Place, tmp_path: Path) -> None:
    with sole_writer(tmp_path / "out"), pytest.raises(ConfigError, match="is being written by another run"):
        write_labels(place.recipe(), tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (("labels.of=predict",), StoreError, "recipe tiny has no predictions yet; run: make predict"),
        (("refine.by=vote",), StoreError, "recipe tiny has no refined labels yet; run: make refine"),
        (("vote.own=3.0", "labels.of=vote"), StoreError, r"vote.own.*3.0"),
        (("vote.own=3.0",), StoreError, r"settings.vote.own.*run: make refine"),
    ],
)
def test_what_is_missing_or_old_is_said(place: Place, tmp_path: Path, words: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=f"(?s){said}"):
        write_labels(place.recipe(*words), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("labels.of=label", "labels.of is 'label'; choose one of 'refine'"),
        ('labels.formats=["npy", "npy"]', "name each wanted one of npy, kitti"),
        ("labels.min_confidence=2", r"min_confidence is 2.0; expected 0..1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(place: Place, words: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        place.recipe(words)


def test_the_command_takes_table_and_layouts(place: Place, tmp_path: Path) -> None:
    words = [
        "labels",
        str(place.folder / "tiny.toml"),
        "--of",
        "vote",
        "--as",
        "npy, ply",
        "--out",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(pipeline, words)
    assert done.exit_code == 0, done.output
    assert "frames of table vote in" in done.output and record_of(tmp_path / "out")["layouts"].keys() == {"npy", "ply"}
    done = CliRunner().invoke(pipeline, words)
    assert "all was there already" in done.output
    done = CliRunner().invoke(pipeline, [*words[:3], "truth"])
    assert done.exit_code == 2 and "labels.of is 'truth'" in done.output


def test_names_of_scenes_and_frames_stay_in_the_folder(written: Path) -> None:
    sweep: Callable[..., LabelledSweep] = LabelledSweep
    nothing = np.zeros(0, np.uint8)
    one = sweep(
        "../../x",
        "..",
        "../x",
        0,
        0,
        0,
        "../t",
        "p",
        np.eye(4),
        np.zeros((0, 3), np.float32),
        nothing,
        nothing,
        nothing,
    )
    assert ".." not in one.place and one.place.count("/") == 1
