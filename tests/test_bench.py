"""The yardstick of `make bench` is the reference implementation's way, and the bench times nothing that disagrees."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import typer
from typer.testing import CliRunner

import bench.afi
import bench.encode
import bench.packed
import bench.run
from bench.afi import DENSE_TWICE, AfiReport, Cost
from bench.checks import DifferentResults, check_labels, check_pairs, check_targets
from bench.encode import Overhead
from bench.encode import measure as measure_encode
from bench.packed import OurWay, Source
from bench.usual import Sample, UsualWay, label_by_masks
from manifests.ontology import load_ontology
from manifests.sections.network import VoxelConfig
from pipeline.datasets.nuscenes import find_version, open_tables

SIMULATED = ("nuscenes_tiny", "superpixels_tiny", ".")
REAL = ("real_nuscenes/root", "real_nuscenes/superpixels", "real_nuscenes")
SECONDS = {"dense": 4.0, DENSE_TWICE: 8.4, "parity": 0.16, "default": 0.4}
AS_REFERENCE = VoxelConfig(label="first")


@pytest.fixture(params=[SIMULATED, REAL], ids=["simulated", "real"])
def recorded(request: pytest.FixtureRequest, shared: Path, tmp_path: Path) -> tuple[UsualWay, dict[str, str], Path]:
    """The usual way, the key frame of every sweep token, and the folder of what the reference made of them."""
    root, masks, expected = (shared / "golden" / folder for folder in request.param)
    tables = open_tables(root, find_version(root, "v1.0-trainval"))
    frame_of_sweep = {sample["data"]["LIDAR_TOP"]: sample["token"] for sample in tables.sample}
    return UsualWay(tables, root, masks, tmp_path, load_ontology("nuscenes")), frame_of_sweep, expected


def arrays(folder: Path, pattern: str) -> list[dict[str, npt.NDArray[Any]]]:
    files = sorted(folder.glob(pattern))
    assert files
    return [dict(np.load(file)) for file in files]


def test_the_usual_way_gives_the_point_labels_of_the_reference(recorded: Any) -> None:
    usual, frame_of_sweep, folder = recorded
    for expected in arrays(folder, "superpoints_*.npz"):
        frame_id = frame_of_sweep[str(expected["lidar_token"])]
        np.testing.assert_array_equal(usual.point_labels(frame_id), expected["label_set"])
        cloud = usual.cloud(frame_id)
        cloud.points = cloud.points.astype(np.float64)
        exact = usual.label_points(frame_id, cloud, usual.views(frame_id, images=False))
        np.testing.assert_array_equal(exact, expected["label_set_float64"])


def test_the_usual_way_gives_the_training_samples_of_the_reference(recorded: Any) -> None:
    usual, frame_of_sweep, folder = recorded
    for expected in arrays(folder, "pretrain_none_*.npz"):
        sample: Sample = usual.sample(frame_of_sweep[str(expected["lidar_token"])])
        np.testing.assert_array_equal(sample.cells, expected["coords"][:, 1:])
        np.testing.assert_array_equal(sample.features, expected["feats"])
        np.testing.assert_array_equal(sample.pair_voxel, expected["pairing_points"])
        np.testing.assert_array_equal(sample.pair_pixel, expected["pairing_images"])
        np.testing.assert_array_equal(sample.names - [0, 1, 0], expected["features_image_id_seg_word"])
        vectors = expected["features_vec"]  # of some frames only the first
        np.testing.assert_array_equal(sample.vectors[: len(vectors)], vectors)
        assert tuple(sample.label_maps.shape) == tuple(expected["superpixel_shape"])
        assert sample.images is not None and tuple(sample.images.shape) == tuple(expected["image_shape"])
        np.testing.assert_allclose(sample.images.double().mean((0, 2, 3)), expected["image_mean"], rtol=1e-5)


def test_leaving_the_images_out_changes_nothing_else(recorded: Any) -> None:
    usual, frame_of_sweep, _ = recorded
    frame_id = next(iter(frame_of_sweep.values()))
    whole, lean = usual.sample(frame_id), usual.sample(frame_id, images=False)
    assert lean.images is None
    np.testing.assert_array_equal(whole.pair_pixel, lean.pair_pixel)
    np.testing.assert_array_equal(whole.label_maps, lean.label_maps)
    np.testing.assert_array_equal(usual.point_labels(frame_id), usual.point_labels(frame_id, images=False))


def test_a_later_view_writes_over_an_earlier_one_and_superpoints_count_on() -> None:
    labels = np.full(5, -1, np.int32)
    first = label_by_masks(labels, np.array([0, 1, 2]), np.array([2, 0, 5]), np.array([3, 9, 3, 3, 7]), 0)
    assert labels.tolist() == [9, -1, 107, -1, -1] and first == 2
    second = label_by_masks(labels, np.array([2, 3]), np.array([1, 1]), np.array([4]), first)
    assert labels.tolist() == [9, -1, 204, 204, -1] and second == 1


@pytest.fixture(scope="module")
def both(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[UsualWay, OurWay]:
    """Both ways over the simulated frames."""
    golden = shared / "golden"
    source = Source("simulated", golden / "nuscenes_tiny", golden / "superpixels_tiny")
    return bench.run.both_ways(source, tmp_path_factory.mktemp("bench"), n_scenes=2)


def test_both_ways_agree_on_labels_samples_and_targets(both: tuple[UsualWay, OurWay]) -> None:
    bench.run.check_equal(*both, range(3))


def one_changed(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy in which one entry of those that are not -1 is another."""
    changed = values.copy()
    place = int(np.flatnonzero(values > 0)[0])
    changed[place] -= 1
    return changed


def test_results_that_differ_are_refused(both: tuple[UsualWay, OurWay]) -> None:
    usual, ours = both
    first, second = ours.frame_ids[:2]
    with pytest.raises(DifferentResults, match="34720 point labels for 34688 points"):
        check_labels(usual, first, ours.group_row(1))
    row = ours.group_row(0)
    with pytest.raises(DifferentResults, match="labels differ from the usual chain in float64"):
        check_labels(usual, first, dataclasses.replace(row, point_superpoint=one_changed(row.point_superpoint)))
    with pytest.raises(DifferentResults, match="cells of voxels differ"):
        check_pairs(usual, first, ours.pair_batch(1, AS_REFERENCE, None))
    batch = ours.pair_batch(0, AS_REFERENCE, None)
    batch.pair_superpoint[-1] -= 1
    with pytest.raises(DifferentResults, match="superpoints of pairs differ"):
        check_pairs(usual, first, batch)
    batch = ours.pair_batch(0, AS_REFERENCE, None)
    batch.superpoint_vector[0] = -batch.superpoint_vector[0]
    with pytest.raises(DifferentResults, match="vectors of superpoints"):
        check_pairs(usual, first, batch)
    np.save(usual.label_file(first), usual.point_labels(second)[: len(usual.point_labels(first))])
    with pytest.raises(DifferentResults, match=r"classes of .* voxels differ"):
        check_targets(usual, first, ours.target_batch(0, AS_REFERENCE, None))


def run(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(bench.run.main)
    return CliRunner().invoke(app, arguments)


def test_the_program_prints_every_way_and_writes_the_numbers(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.run, "SOURCES", bench.run.SOURCES[:1])
    monkeypatch.setattr(bench.packed, "SCENE_FRAMES", 2)
    costs = tuple(Cost(way, cpu_s, cpu_s, 100.0) for way, cpu_s in SECONDS.items())
    flat = AfiReport("golden sweep", 34_688, costs, 1.0, 0.99988)
    monkeypatch.setattr(bench.afi, "measure", lambda *_: flat)  # takes a while; see tests/bench/test_afi.py
    network = Overhead(20.0, 21.0, 21.0, 23.1)
    monkeypatch.setattr(bench.encode, "measure", lambda *_: network)  # likewise
    done = run("--repeats", "1", "--frames", "1", "--scenes", "1", "--json", str(tmp_path / "numbers.json"))
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "numbers.json").read_text())
    [report] = document["reports"]
    assert report["n_frames"] == 1 and document["machine"]["cores"]
    ways = [(one["job"], one["way"]) for one in report["measured"]]
    assert len(ways) == len(set(ways)) == 16
    for one in report["measured"]:
        assert one["cpu_min_ms"] > 0 and one["way"] in done.output
        in_memory = one["job"] == bench.run.ARITHMETIC or one["way"] == bench.run.DIGESTS
        assert (one["kilobytes"] > 100) == (not in_memory)
    assert "25.0 times less CPU time for the same labels (goal 20)" in done.output and "99.988%" in done.output
    assert document["flat interaction"]["n_points"] == 34_688
    assert [goal["met"] for goal in document["flat interaction"]["goals"]] == [True] * 4
    assert "1.050 times the CPU time of its bare network (goal 1.1)" in done.output and "1.10 times)" in done.output
    assert [goal["met"] for goal in document["encode"]["goals"]] == [True]
    assert len(report["goals"]) == 7 and all(goal["text"] in done.output for goal in report["goals"])


def test_nothing_is_timed_when_results_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disagree(*_: object) -> None:
        raise DifferentResults("frame a: 7 point labels differ")

    monkeypatch.setattr(bench.run, "SOURCES", (Source("present", tmp_path, tmp_path),))
    monkeypatch.setattr(bench.run, "both_ways", lambda *_: (None, SimpleNamespace(frame_ids=("a",))))
    monkeypatch.setattr(bench.run, "check_equal", disagree)
    done = run()
    assert done.exit_code == 1 and "7 point labels differ" in done.output and "CPU ms" not in done.output


def test_bytes_are_those_that_were_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(300_000))
    before = bench.run.spent()
    (tmp_path / "file").read_bytes()
    assert 300_000 <= bench.run.spent()[2] - before[2] < 310_000


def test_without_data_the_program_says_what_to_name_and_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.run, "SOURCES", (Source("absent", tmp_path / "root", tmp_path / "masks"),))
    done = run()
    assert done.exit_code == 2 and "--root" in done.output and "--masks" in done.output
    done = run("--root", str(tmp_path))
    assert done.exit_code == 2 and "belong together" in done.output


def test_more_than_one_thread_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    done = run()
    assert done.exit_code == 2 and "make bench" in done.output


def test_the_stage_and_the_bare_network_give_the_same_grids() -> None:
    found = measure_encode(1, 12, {"model": "tiny", "weights": "random:0", "short_side_px": 32})
    assert min(found.bare_cpu_s, found.bare_wall_s, found.stage_cpu_s, found.stage_wall_s) > 0
    assert found.cpu == found.stage_cpu_s / found.bare_cpu_s
