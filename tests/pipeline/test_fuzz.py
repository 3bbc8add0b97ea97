"""Whatever stands in a file that comes from outside: a right result, or an error of ours. Bounded, and always the same.

Held for every example: no other exception, no hang, and no more memory than `MOST_GROWTH_BYTES` for all of them.
"""

from __future__ import annotations

import io
import json
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from manifests.config import RECIPES, ConfigError
from manifests.recipe import load_recipe
from manifests.sections.data import DataConfig
from manifests.sections.teachers.artifacts import ArtifactsConfig
from manifests.storage import refs
from manifests.storage.documents import decode, encode, seal
from manifests.storage.errors import StoreError
from manifests.storage.manifest import Manifest
from manifests.storage.refs import Ref, TableRef
from manifests.storage.store import Store
from manifests.tables.arrow import to_arrow
from manifests.tables.labels import Target
from pipeline.datasets.folder import FolderDataset
from pipeline.datasets.nuscenes import NuScenesDataset, camera_matrix, pose
from pipeline.datasets.semantic_kitti import calibration, split_projection
from pipeline.frame import Camera, Frame, FrameError
from pipeline.stages.index import camera_problems, check_frame, pose_problems
from pipeline.teachers.artifacts import read_text, read_triple
from tests.pipeline.scenes import SMALL
from tests.refs import identity

MOST_GROWTH_BYTES = 512 << 20
MOST_SECONDS = 120  # no test of time: it ends a test that hangs

FINGERPRINT, KEY = "0123456789ab", "00aa11bb22cc"

NUMBERS = st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, -1e308, float("nan"), float("inf")])
LEAVES = (
    st.none()
    | st.booleans()
    | NUMBERS
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["..", "../x", "/etc/passwd", "a/b", "\0", "a" * 5000, "%2e%2e", "\ud800"[:0]])
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_GROWTH_BYTES


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError(f"an example took more than {MOST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MOST_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module", autouse=True)
def damage_stays() -> Iterator[None]:
    """No half-written file is to be waited for here, and hundreds of documents are damaged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refs, "LOOKED_AT_AGAIN_AFTER_S", (0.0,))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with some changed, cut out, doubled or put in."""
    out = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(out)))
        kind = draw(st.sampled_from(["flip", "cut", "drop", "insert", "double"]))
        if kind == "flip" and start < len(out):
            out[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del out[start:]
        elif kind == "drop":
            del out[start : start + draw(st.integers(1, 64))]
        elif kind == "insert":
            out[start:start] = draw(st.binary(max_size=16))
        else:
            out[start:start] = out[start : start + 200]
    return bytes(out)


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """A document with one value, anywhere in it, replaced by another or taken out."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in range(len(value)) if isinstance(value, list) else list(value):
            places.append((value, key))
            if isinstance(value[key], list | dict):
                walk(value[key])

    copy = json.loads(json.dumps(document))
    walk(copy)
    holder, key = places[draw(st.integers(0, len(places) - 1))]
    if isinstance(holder, dict) and draw(st.booleans()) and draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = draw(VALUES)
    return copy


# -- recipes -----------------------------------------------------------------------------------------------------------


def allow(action: Callable[[], Any], *errors: type[Exception]) -> Any:
    """Return the result, or the sentence of an error of ours."""
    try:
        return action()
    except errors as error:
        assert str(error).strip()
        return str(error)


@given(data=st.data())
@settings(max_examples=80)
def test_a_recipe_is_read_or_refused(data: st.DataObject, place: Path) -> None:
    source = data.draw(st.sampled_from(sorted(RECIPES.glob("*.toml"))))
    (place / "recipe.toml").write_bytes(data.draw(damaged(source.read_bytes())))
    allow(lambda: load_recipe(place / "recipe.toml"), ConfigError)


@given(
    section=st.sampled_from(["data", "run", "group", "teacher", "project", "segment", "vote", "correct", "target"]),
    key=st.sampled_from(
        ["root", "split", "workers", "store", "name", "min_points", "policy", "scale", "exclude", "x.y"]
    )
    | st.text(max_size=6),
    value=VALUES,
)
@settings(max_examples=100)
def test_an_override_is_taken_or_refused(section: str, key: str, value: Any) -> None:
    text = f"{section}.{key}={json.dumps(value)}"
    allow(lambda: load_recipe("nuscenes_mini", [text]), ConfigError)


# -- the store ---------------------------------------------------------------------------------------------------------


def row(frame_id: str, n_points: int) -> Target:
    random = np.random.default_rng(len(frame_id))
    columns = {name: random.integers(0, 17, n_points, dtype=np.uint8) for name in ("label", "confidence")}
    return Target(frame_id=frame_id, seen=random.random(n_points) < 0.5, **columns)


@pytest.fixture(scope="module")
def stored(place: Path) -> tuple[Store, dict[str, Any], dict[str, Path]]:
    """A store with one shard, and its documents by what they are."""
    store = Store.open(place / "store")
    shard = store.write("target", FINGERPRINT, "scene-1", KEY, to_arrow([row("a", 50), row("b", 50)], Target))
    store.write_manifest(Manifest("target", FINGERPRINT, identity("target"), (shard,), {"finished": "now"}))
    table = TableRef("target", FINGERPRINT, (shard,))
    store.write_ref("recipe", Ref("recipe", {"target": table}, ("frame",), (table,)))
    folder = place / "store" / "target" / FINGERPRINT
    paths = {
        "sidecar": folder / f"scene-1.{KEY}.json",
        "manifest": folder / "manifest.json",
        "ref": place / "store" / "refs" / "recipe.00000001.json",
    }
    return store, {name: decode(path.read_bytes(), name) for name, path in paths.items()}, paths


def ask_everything(store: Store) -> None:
    for action in (
        lambda: store.shards("target", FINGERPRINT),
        lambda: store.manifests("target"),
        lambda: store.read_manifest("target", FINGERPRINT),
        lambda: store.refs(),
        lambda: store.unreferenced(0),
    ):
        allow(action, StoreError)
    shards = allow(lambda: store.shards("target", FINGERPRINT), StoreError)
    for shard in shards.values() if isinstance(shards, dict) else ():
        allow(lambda: store.damage("target", FINGERPRINT, shard), StoreError)  # noqa: B023
        allow(lambda: store.records(Target, FINGERPRINT, shard), StoreError)  # noqa: B023


@pytest.mark.parametrize("kind", ["sidecar", "manifest", "ref"])
@given(data=st.data())
@settings(max_examples=80)
def test_a_document_of_the_store_is_read_or_refused(data: st.DataObject, kind: str, stored: Any) -> None:
    store, documents, paths = stored
    if data.draw(st.booleans()):
        content = seal(json.dumps(data.draw(changed(documents[kind]))).encode("utf-8", "replace"))
    else:
        content = data.draw(damaged(encode(documents[kind])))
    try:
        paths[kind].write_bytes(content)
        ask_everything(store)
    finally:
        paths[kind].write_bytes(encode(documents[kind]))


@pytest.mark.parametrize("content", [b"[" * 200_000, b"1" * 10_000, b'{"a":' * 100_000, b"\xff\xfe", b"null", b"{}"])
@pytest.mark.parametrize("kind", ["sidecar", "manifest", "ref"])
def test_a_document_made_to_hurt_is_refused(content: bytes, kind: str, stored: Any) -> None:
    store, documents, paths = stored
    try:
        paths[kind].write_bytes(content)
        ask_everything(store)
    finally:
        paths[kind].write_bytes(encode(documents[kind]))


def test_200_of_200_flipped_bits_are_caught_and_no_other_value_is_ever_read(place: Path) -> None:
    """Verifying sees every one of them. Reading sees them too, or reads what was written."""
    store = Store.open(place / "flipped")
    shard = store.write("target", FINGERPRINT, "scene-1", KEY, to_arrow([row("a", 400), row("b", 400)], Target))
    path = place / "flipped" / "target" / FINGERPRINT / shard.name
    intact = path.read_bytes()
    expected = store.read("target", FINGERPRINT, shard)
    random = np.random.default_rng(200)
    bits = random.choice(8 * len(intact), 200, replace=False)
    verified = read = 0
    for bit in bits.tolist():
        content = bytearray(intact)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        verified += store.damage("target", FINGERPRINT, shard) is not None
        try:
            assert store.read("target", FINGERPRINT, shard).equals(expected)
        except StoreError:
            read += 1
    assert verified == 200
    assert read >= 190  # the rest lies in bytes that carry no value: magic words, parts of page headers


# -- official artefacts ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def triple(place: Path) -> dict[str, bytes]:
    """The three files of an image with two segments, and text vectors, by ending."""
    folder = place / "masks"
    folder.mkdir()
    Image.fromarray(np.array([[1, 1, 1, 2], [0, 0, 2, 2]], np.uint8)).save(folder / "a.png")
    records = [{"id": 1, "category_id": 2, "area": 3}, {"id": 2, "category_id": 0, "area": 3}]
    (folder / "a.json").write_text(json.dumps(records))
    torch.save(torch.tensor([[0.0, 0.0], [0.6, 0.8], [1.0, 0.0]]), folder / "a.pt")
    torch.save(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]), folder / "text_embedding.pt")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["a.png", "a.json", "a.pt", "text_embedding.pt"])
@given(data=st.data())
@settings(max_examples=60)
def test_an_artefact_is_read_or_refused(data: st.DataObject, name: str, triple: dict[str, bytes], place: Path) -> None:
    folder, config = place / "masks", ArtifactsConfig(folder=str(place / "masks"))
    content = data.draw(damaged(triple[name]))
    if name == "a.json" and data.draw(st.booleans()):
        content = json.dumps(data.draw(changed(json.loads(triple[name])))).encode("utf-8", "replace")
    try:
        (folder / name).write_bytes(content)
        if name == "text_embedding.pt":
            allow(lambda: read_text(config, 3), ConfigError)
        else:
            problems: list[str] = []
            found = read_triple(config, "a", 3, 2, problems, (4, 2))
            assert (found is None) == bool(problems)
    finally:
        (folder / name).write_bytes(triple[name])


@pytest.mark.parametrize("content", [b"[" * 200_000, b"[{}]", b"1" * 10_000, b"[1e999]", b'[{"id": 1e400}]'])
def test_names_made_to_hurt_are_refused(content: bytes, triple: dict[str, bytes], place: Path) -> None:
    folder = place / "masks"
    try:
        (folder / "a.json").write_bytes(content)
        problems: list[str] = []
        assert read_triple(ArtifactsConfig(folder=str(folder)), "a", 3, 2, problems, (4, 2)) is None and problems
    finally:
        (folder / "a.json").write_bytes(triple["a.json"])


# -- sweeps ------------------------------------------------------------------------------------------------------------

POSE = np.eye(4)


def frame_with(path: str, cameras: tuple[Camera, ...] = ()) -> Frame:
    return Frame("f", "s", 0, "t", path, None, POSE, POSE, cameras)


@given(data=st.data())
@settings(max_examples=60)
def test_a_sweep_is_read_or_refused(data: st.DataObject, place: Path) -> None:
    points = np.linspace(-50, 50, 100, dtype="<f4").tobytes()
    (place / "a.pcd.bin").write_bytes(data.draw(damaged(points)))
    dataset = NuScenesDataset(DataConfig(root=str(place)))
    made = allow(lambda: check_frame(dataset, place, frame_with("a.pcd.bin")), FrameError)
    assert isinstance(made, str) or (made.n_points > 0 and made.lidar_bytes == 20 * made.n_points)


@given(data=st.data())
@settings(max_examples=60)
def test_an_image_is_read_or_refused(data: st.DataObject, place: Path) -> None:
    file = io.BytesIO()
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"]))
    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    Image.fromarray(noise).save(file, kind)
    (place / "image").write_bytes(data.draw(damaged(file.getvalue())))
    (place / "a.pcd.bin").write_bytes(np.ones(20, "<f4").tobytes())
    camera = Camera("CAM", "t", "image", 0, np.diag([9.0, 9.0, 1.0]), POSE)
    dataset = NuScenesDataset(DataConfig(root=str(place)))
    allow(lambda: check_frame(dataset, place, frame_with("a.pcd.bin", (camera,))), FrameError)


# -- calibration -------------------------------------------------------------------------------------------------------


@given(rotation=VALUES | st.lists(NUMBERS, min_size=4, max_size=4), translation=VALUES | st.lists(NUMBERS, max_size=3))
@settings(max_examples=100)
def test_a_pose_in_a_table_is_a_pose_or_a_problem(rotation: Any, translation: Any) -> None:
    found = pose({"rotation": rotation, "translation": translation})
    assert found.shape == (4, 4)
    assert pose_problems(found) or np.isfinite(found).all()


@given(values=VALUES | st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=3, max_size=3))
@settings(max_examples=100)
def test_a_camera_matrix_is_one_or_a_problem(values: Any) -> None:
    matrix = camera_matrix(values)
    problems = camera_problems(Camera("CAM", "t", "p", 0, matrix, POSE))
    assert problems or (np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0)


CALIB = "".join(f"P{i}: 7e2 0 6e2 0 0 7e2 2e2 0 0 0 1 0\n" for i in range(4)) + "Tr: 0 -1 0 0 0 0 -1 0 1 0 0 0\n"


@given(content=damaged(CALIB.encode()))
@settings(max_examples=80)
def test_a_calibration_file_is_read_or_refused(content: bytes) -> None:
    found = allow(lambda: calibration(content.decode("latin-1"), "calib.txt"), FrameError)
    if isinstance(found, dict):
        for name, matrix in found.items():
            if name != "Tr":
                allow(lambda: split_projection(matrix), ValueError)  # noqa: B023


@given(data=st.data())
@settings(max_examples=100)
def test_the_description_of_a_scene_is_read_or_refused(data: st.DataObject, place: Path) -> None:
    (place / "logs" / "drive").mkdir(parents=True, exist_ok=True)
    if data.draw(st.booleans()):
        content = data.draw(damaged(SMALL.encode()))
    else:
        number = st.sampled_from(
            ["1e308", "-1e308", "inf", "nan", "9223372036854775808", '"x"', "[]", "{}", "true", "0"]
        )
        words = SMALL.split(" ")
        words[data.draw(st.integers(0, len(words) - 1))] = data.draw(number)
        content = " ".join(words).encode()
    (place / "logs" / "drive" / "scene.toml").write_bytes(content)
    dataset = FolderDataset(DataConfig(dataset="folder", root=str(place / "logs")))
    frames = allow(lambda: list(dataset.frames()), ConfigError)
    for frame in frames if isinstance(frames, list) else ():
        allow(lambda: check_frame(dataset, place / "logs", frame), FrameError)  # noqa: B023
