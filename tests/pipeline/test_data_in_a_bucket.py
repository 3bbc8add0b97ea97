"""A data set on object storage: tables as of the folder, replaced files noticed, and no outage a fault of a frame."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from manifests.asked import asked
from manifests.config import ConfigError
from manifests.recipe import Recipe, load_recipe
from manifests.sections.data import DataConfig
from manifests.sources import compare_files
from manifests.storage import kept, places, remote
from manifests.storage.errors import StoreError
from manifests.storage.kept import KeptFiles
from manifests.storage.places import DataUnreachable, RemotePath, digest_of, root_of
from pipeline.datasets.registry import open_dataset
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.runner import Runner
from pipeline.frame import FrameError, read_file
from tests.manifests.s3_server import Bucket, Line, Server, line_to
from tests.pipeline.building import Recorder, stages
from tests.refs import newest


def uploaded(bucket: Bucket, root: Path) -> str:
    """Put a folder into a bucket and return its URI there."""
    for path in sorted(root.rglob("*")):
        if path.is_file():
            bucket.put(f"store/{path.relative_to(root).as_posix()}", path.read_bytes())
    return bucket.uri()


@pytest.fixture
def recipe_over(tmp_path: Path) -> Callable[..., Recipe]:
    def make(root: str, name: str, dataset: str = "nuscenes", *more: str) -> Recipe:
        path = tmp_path / f"{name}.toml"
        path.write_text(
            f'[data]\ndataset = "{dataset}"\nroot = "{root}"\ncache = "{tmp_path / "cache"}"\n'
            f'[teacher]\nname = "artifacts"\nfolder = "unused"\n[run]\nstore = "{tmp_path / name}"\n'
        )
        return load_recipe(path, more)

    return make


def built(recipe: Recipe) -> list[str]:
    recorder = Recorder()
    assert Runner(recipe).run(["points", "project", "label"], InlinePool(recipe), recorder) == []
    return recorder.built


def digests(recipe: Recipe) -> dict[str, list[str]]:
    tables = newest(Runner(recipe).store, recipe.name).tables
    return {name: sorted(shard.sha256 for shard in table.shards) for name, table in tables.items()}


@pytest.mark.parametrize("dataset", ["nuscenes", "folder"])
def test_a_data_set_in_a_bucket_gives_the_tables_of_the_folder_and_is_fetched_once(
    shared: Path,
    s3: Server,
    dataset: str,
    folder_layout: Callable[[Path, str], Path],
    recipe_over: Callable[..., Recipe],
) -> None:
    tiny = shared / "golden" / "nuscenes_tiny"
    root = folder_layout(tiny, "v1.0-trainval") if dataset == "folder" else tiny
    bucket = s3.bucket()
    here, there = recipe_over(str(root), "here", dataset), recipe_over(uploaded(bucket, root), "there", dataset)
    assert built(here) == built(there)
    assert digests(here) == digests(there) and digests(here).keys() == {"index", "points", "project", "label"}
    fetched = [path for method, path, _ in bucket.answered() if method == "GET" and path.endswith((".jpg", ".pcd.bin"))]
    assert len(fetched) == len(set(fetched)) > 0, "a file is fetched once, and read from the cache by all stages"
    assert built(there) == []
    again = [path for method, path, _ in bucket.answered() if method == "GET" and path.endswith((".jpg", ".pcd.bin"))]
    assert again == fetched, "a second plan looks and fetches nothing"


def test_semantic_kitti_is_listed_from_a_bucket_as_from_the_folder(shared: Path, s3: Server, tmp_path: Path) -> None:
    root = tmp_path / "kitti"
    for source in sorted((shared / "data/semantickitti-real").rglob("*")):
        name = source.relative_to(shared / "data/semantickitti-real")
        if source.is_file() and source.stat().st_size < 4e6:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(source.read_bytes())
    uri = uploaded(s3.bucket(), root)
    data = DataConfig(dataset="semantic_kitti", root=str(root), version="1.0", cache=str(tmp_path / "cache"))
    far = DataConfig(dataset="semantic_kitti", root=uri, version="1.0", cache=str(tmp_path / "cache"))
    one, other = open_dataset(data), open_dataset(far)
    frames = list(one.frames())
    assert [frame.frame_id for frame in frames] == [frame.frame_id for frame in other.frames()] != []
    for frame, same in zip(frames, other.frames(), strict=True):
        assert one.read_cloud(frame).xyz_m.tobytes() == other.read_cloud(same).xyz_m.tobytes()
        assert [camera.image_path for camera in frame.cameras] == [camera.image_path for camera in same.cameras]


def test_a_file_that_is_replaced_in_the_bucket_is_noticed_even_within_a_second_and_with_its_length(
    shared: Path, s3: Server, recipe_over: Callable[..., Recipe]
) -> None:
    bucket = s3.bucket()
    recipe = recipe_over(uploaded(bucket, shared / "golden" / "nuscenes_tiny"), "tiny")
    built(recipe)
    key = next(key for key in bucket.objects() if "scene" not in key and key.endswith(".pcd.bin"))
    content = bytearray(bucket.read(key))
    content[12:16] = b"\0\0\0\0" if content[12:16] != b"\0\0\0\0" else b"\0\0\x80?"  # an intensity
    ref = newest(Runner(recipe).store, recipe.name)
    shards = {shard.shard for shard in ref.tables["points"].shards}
    assert compare_files(Runner(recipe).store, recipe, ref, shards, ["points"]).files > 0
    bucket.put(key, bytes(content))
    with pytest.raises(StoreError, match=r"s3://bucket-\d+/store/samples/LIDAR_TOP/\S+ holds something else"):
        compare_files(Runner(recipe).store, recipe, ref, shards, ["points"])
    assert stages(built(recipe)) == ["index", "points", "project"], "and no labels"
    assert built(recipe) == []


@pytest.fixture
def line(s3: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    monkeypatch.setattr(remote, "WAITS_S", (0.01, 0.01))
    with line_to(s3.port) as line:
        yield line


def test_what_passes_is_tried_again_and_an_outage_ends_the_run_and_is_no_fault_of_a_frame(
    s3: Server, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3.bucket()
    bucket.put("store/a/sweep.bin", b"0123456789")
    uri = bucket.uri().replace(str(s3.port), str(line.port))
    root = root_of(DataConfig(root=uri, cache=str(tmp_path / "cache")))
    line.fails(1, "SlowDown", "GET")
    assert read_file(root, "a/sweep.bin") == b"0123456789"
    line.fails(1, "cut", "GET")
    assert isinstance(root, RemotePath) and (root / "a/sweep.bin").read_bytes() == b"0123456789"
    with pytest.raises(FrameError, match=r"a/none\.bin: No such file or directory"):
        read_file(root, "a/none.bin")
    line.fails(10**6, "ExpiredToken")
    for action in (
        lambda: read_file(root, "a/sweep.bin"),
        lambda: (root / "a/sweep.bin").looks(),
        lambda: digest_of(root / "a/sweep.bin"),
        lambda: list(open_dataset(DataConfig(dataset="folder", root=uri)).frames()),
    ):
        with pytest.raises(DataUnreachable, match="credentials are refused") as refused:
            action()
        assert "secret" not in str(refused.value) and "data.root: s3://bucket" in str(refused.value)


def test_what_is_kept_is_whole_bounded_and_done_without_where_it_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import hashlib

    keeping = KeptFiles(tmp_path / "cache", 1000)
    contents = [bytes([i]) * 200 for i in range(20)]
    names = [hashlib.sha256(content).hexdigest() for content in contents]
    for at, (name, content) in enumerate(zip(names, contents, strict=True)):
        keeping.keep(name, content)
        os.utime(keeping.folder / name[:2] / name, ns=(at, at)) if keeping.size(name) else None
    left = [name for name in names if keeping.size(name) is not None]
    assert left == names[-len(left) :] and 2 <= len(left) <= 5, "the last ones, within the bound"
    assert keeping.read(names[-1]) == contents[-1]
    (keeping.folder / names[-1][:2] / names[-1]).write_bytes(b"damaged")
    assert keeping.read(names[-1]) is None and keeping.size(names[-1]) is None
    assert keeping.read("../../etc/passwd") is None
    (tmp_path / "file").write_bytes(b"")
    for name, content in zip(names, contents, strict=True):
        KeptFiles(tmp_path / "file", 1000).keep(name, content)
    assert len([one for one in caplog.messages if "cannot be written" in one]) == 1


def test_where_files_are_kept_is_no_part_of_what_is_asked_for(recipe_over: Callable[..., Recipe]) -> None:
    recipe = recipe_over("s3://bucket/logs", "tiny")
    assert asked(recipe).data == asked(recipe_over("s3://bucket/logs", "tiny", "nuscenes", "data.cache_gb=1")).data
    assert asked(recipe).root == "s3://bucket/logs"
    assert asked(recipe_over("s3://key:secret@bucket/logs/?region=x", "tiny")).root == "s3://bucket/logs"
    with pytest.raises(ConfigError, match="cache_gb"):
        recipe_over("s3://bucket/logs", "tiny", "nuscenes", "data.cache_gb=-1")


def test_a_file_uri_is_the_folder_itself(tmp_path: Path) -> None:
    assert root_of(DataConfig(root=f"file://{tmp_path}")) == tmp_path
    assert places.place_of_root(f"file://{tmp_path}") == str(tmp_path)
    assert kept.SPARE < 1
