"""Official files from our tables: byte for byte what is read back, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from manifests.config import ConfigError
from manifests.ontology import load_ontology
from manifests.recipe import Recipe
from manifests.sections.data import DataConfig, RunConfig
from manifests.sections.tables import GroupConfig, ProjectConfig, SegmentConfig, TextConfig
from manifests.sections.teachers.artifacts import ArtifactsConfig
from manifests.storage.errors import StoreError
from manifests.storage.refs import TableRef
from manifests.storage.shards import ShardFile
from manifests.storage.store import Store
from manifests.tables.arrow import to_arrow
from manifests.tables.base import FrameRecord, Record
from manifests.tables.sensors import Index
from manifests.tables.superpoints import Group
from manifests.tables.teacher import Segment, Text
from pipeline.__main__ import app
from pipeline.exchange import export as module
from pipeline.exchange.export import Exported, export
from pipeline.frame import Camera, Frame
from pipeline.stages.segment import segment_row
from pipeline.teachers.artifacts import Artifacts
from superpixels.lifting import parse_official_point_labels
from superpixels.segments import Segments
from tests.filled import record
from tests.refs import newest, put_ref

ONTOLOGY = load_ontology("nuscenes")
CAR, SKY = 0, len(ONTOLOGY.prompts) - 1
FRAMES = {"scene-0001": ("a", "b"), "scene-0002": ("c",)}


def segments(label_map: Sequence[Sequence[int]], prompt_id: Sequence[int]) -> Segments:
    vector = np.random.default_rng(len(prompt_id)).normal(size=(len(prompt_id), 3)).astype(np.float32)
    return Segments.from_label_map(np.array(label_map), prompt_id, np.ones(len(prompt_id)), vector)


LEFT = segments([[1, 1, 0, 2], [1, 0, 2, 2]], [CAR, SKY])  # at the size of its image
RIGHT = segments([[0, 1]], [CAR + 1])  # at half of it
POINT_SUPERPOINT = np.array([-1, 2, 0, 0, 1], np.int32)
POINT_LABELS = [-1, 217, 17, 17, 100 + int(ONTOLOGY.fine_of_prompt[SKY])]  # both first prompts are vehicle.car, 17


def frame_of(name: str) -> Frame:
    cameras = tuple(
        Camera(camera, f"{name}-{camera}", "i.jpg", 0, np.eye(3), np.eye(4), width_px=4, height_px=2)
        for camera in ("LEFT", "RIGHT")
    )
    return Frame(name, "s", 0, f"{name}-lidar", "l.bin", None, np.eye(4), np.eye(4), cameras, n_points=5)


def group_row(name: str) -> Group:
    prompt = np.array([CAR, SKY, CAR + 1])
    return record(
        Group,
        frame_id=name,
        superpoint_view=np.array([0, 0, 1], np.uint8),
        superpoint_segment=np.array([1, 2, 1], np.uint16),
        superpoint_prompt=prompt.astype(np.int32),
        superpoint_fine=ONTOLOGY.fine_of_prompt[prompt].astype(np.uint8),
        superpoint_score=np.ones(3, np.float16),
        point_superpoint=POINT_SUPERPOINT,
    )


def build(root: Path, views: Sequence[Segments] = (LEFT, RIGHT), key: str = "0" * 12) -> Recipe:
    """Write the four tables that an export reads, and return the recipe that names them."""
    store = Store.open(root / "store")
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(len(ONTOLOGY.prompts), 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    text = [Text(prompt_id=i, prompt=prompt, vector=vectors[i]) for i, prompt in enumerate(ONTOLOGY.prompts)]
    tables = {"text": table(store, Text, {"all": text}, key)}
    make: dict[type[FrameRecord], Callable[[str], FrameRecord]] = {
        Index: lambda name: frame_of(name).index(),
        Segment: lambda name: segment_row(name, views),
        Group: group_row,
    }
    for kind, row in make.items():
        rows = {shard: [row(name) for name in names] for shard, names in FRAMES.items()}
        tables[kind.table] = table(store, kind, rows, key)
    recipe = Recipe(
        name="test",
        data=DataConfig(root=str(root)),
        run=RunConfig(store=str(root / "store")),
        teacher=ArtifactsConfig(folder="unused"),
        project=ProjectConfig(),
        text=TextConfig(),
        segment=SegmentConfig(),
        group=GroupConfig(),
        ontology=ONTOLOGY,
    )
    put_ref(store, recipe, tables)
    return recipe


def table(store: Store, kind: type[Record], rows: Mapping[str, Sequence[Record]], key: str) -> TableRef:
    shards: list[ShardFile] = [
        store.write(kind.table, "f" * 12, shard, key, to_arrow(some, kind)) for shard, some in rows.items()
    ]
    return TableRef(kind.table, "f" * 12, tuple(shards))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# -- what is written


def test_an_image_becomes_the_three_files_of_san_at_the_size_of_the_image(tmp_path: Path) -> None:
    recipe = build(tmp_path)
    assert export(recipe, tmp_path / "out") == Exported(written=3, kept=0, most_segments=2, n_dims=3)
    masks = tmp_path / "out" / "superpixels"
    with Image.open(masks / "a-LEFT.png") as image:
        assert image.mode == "L" and np.asarray(image).tolist() == [[1, 1, 0, 2], [1, 0, 2, 2]]
    with Image.open(masks / "a-RIGHT.png") as image:
        assert np.asarray(image).tolist() == [[0, 0, 1, 1]] * 2
    assert json.loads((masks / "a-LEFT.json").read_bytes()) == [
        {"id": 1, "category_id": CAR, "area": 3},
        {"id": 2, "category_id": SKY, "area": 3},
    ]
    assert json.loads((masks / "a-RIGHT.json").read_bytes()) == [{"id": 1, "category_id": 1, "area": 4}]
    stored = torch.load(masks / "a-LEFT.pt", weights_only=True)
    assert stored.dtype == torch.float32
    np.testing.assert_array_equal(stored.numpy(), np.concatenate([np.zeros((1, 3)), LEFT.vector]))
    assert torch.load(masks / "text_embedding.pt", weights_only=True).shape == (175, 3)


def test_fcclip_has_two_matrices_says_what_is_a_thing_and_names_void(tmp_path: Path) -> None:
    export(build(tmp_path), tmp_path / "out", "fcclip")
    masks = tmp_path / "out" / "superpixels"
    assert json.loads((masks / "b-LEFT.json").read_bytes()) == [
        {"id": 1, "isthing": True, "category_id": CAR},
        {"id": 2, "isthing": False, "category_id": SKY},
    ]
    inside, outside = torch.load(masks / "b-LEFT.pt", weights_only=True)
    assert torch.equal(inside, outside) and inside.shape == (3, 3)
    text = torch.load(masks / "text_embedding.pt", weights_only=True)
    assert text.shape == (176, 3) and not text[175].any()


def test_point_labels_are_a_hundred_times_the_superpoint_plus_the_fine_class(tmp_path: Path) -> None:
    export(build(tmp_path), tmp_path / "out")
    labels = np.load(tmp_path / "out" / "lidarseg_ov" / "c-lidar_lidarseg.npy", allow_pickle=False)
    assert labels.dtype == np.int32 and labels.tolist() == POINT_LABELS
    superpoint, fine = parse_official_point_labels(labels, 5)
    np.testing.assert_array_equal(superpoint, POINT_SUPERPOINT)
    assert fine[1:].tolist() == [17, 17, 17, ONTOLOGY.fine_of_prompt[SKY]]


@pytest.mark.parametrize("layout", module.LAYOUTS)
def test_what_is_exported_is_imported_as_it_was(tmp_path: Path, layout: str) -> None:
    export(build(tmp_path), tmp_path / "out", layout)
    teacher = Artifacts(ArtifactsConfig(folder=str(tmp_path / "out" / "superpixels"), layout=layout))
    text = teacher.text(ONTOLOGY.prompts)
    left, right = teacher.segment(frame_of("a"), {}, text)
    for one, before in ((left, LEFT), (right, RIGHT)):
        np.testing.assert_array_equal(one.prompt_id, before.prompt_id)
        np.testing.assert_allclose(one.vector, before.vector, atol=1e-3)  # float16
    np.testing.assert_array_equal(left.label_map(), LEFT.label_map())
    np.testing.assert_array_equal(right.label_map(), np.kron(RIGHT.label_map(), np.ones((2, 2), int)))


def test_images_without_segments_are_written_too(tmp_path: Path) -> None:
    empty = segments([[0, 0]], [])
    export(build(tmp_path, (empty, RIGHT)), tmp_path / "out")
    teacher = Artifacts(ArtifactsConfig(folder=str(tmp_path / "out" / "superpixels")))
    found, _ = teacher.segment(frame_of("a"), {}, teacher.text(ONTOLOGY.prompts))
    assert len(found) == 0 and not found.label_map().any()


def test_golden_files_come_back_and_so_do_their_point_labels(shared: Path, tmp_path: Path) -> None:
    """Official masks to tables to official masks, twice: everything is as it was, and labels are the reference's."""
    golden = shared / "golden"

    def chain(name: str, folder: Path, void: str) -> Path:
        recipe = tmp_path / f"{name}.toml"
        recipe.write_text(
            f'[data]\nroot = "{golden / "nuscenes_tiny"}"\n'
            f'[teacher]\nname = "artifacts"\nfolder = "{folder}"\nvoid = {void}\n'
            f'[group]\npolicy = "last_camera"\noccluded = true\n[run]\nstore = "{tmp_path / "store"}"\n'
        )
        assert command("run", "group", recipe).exit_code == 0
        done = command("export", recipe, tmp_path / name)
        assert done.exit_code == 0 and "3 frames written, 0 there before" in done.output
        return tmp_path / name

    once = chain("once", golden / "superpixels_tiny", "true")
    twice = chain("twice", once / "superpixels", "false")
    before, after = content(once), content(twice)
    assert len(before) == 3 * (6 * 3 + 1) + 3
    before.pop("export.json"), after.pop("export.json")
    texts = [torch.load(folder / "superpixels" / "text_embedding.pt", weights_only=True) for folder in (once, twice)]
    torch.testing.assert_close(*texts, atol=1e-6, rtol=0)  # scaled to length 1 once more
    for files in (before, after):
        files.pop("superpixels/text_embedding.pt")
    assert before == after
    for path in (once / "superpixels").glob("*.json"):
        assert json.loads(path.read_bytes()) == json.loads((golden / "superpixels_tiny" / path.name).read_bytes())
        with (
            Image.open(path.with_suffix(".png")) as ours,
            Image.open(golden / "superpixels_tiny" / f"{path.stem}.png") as theirs,
        ):
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    for path in golden.glob("superpoints_scene-*.npz"):
        with np.load(path) as expected:
            labels = np.load(once / "lidarseg_ov" / f"{expected['lidar_token']}_lidarseg.npy")
            np.testing.assert_array_equal(labels, expected["label_set_float64"])


def command(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


# -- what is too many for 8 bits


def many(n: int) -> Segments:
    return segments(np.arange(1, n + 1).reshape(-1, 20).tolist(), [CAR] * n)


def test_more_than_255_segments_are_refused_unless_16_bits_are_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = build(tmp_path, (many(260), RIGHT))
    monkeypatch.setattr(module, "image_sized", lambda segments, camera: segments.label_map())
    with pytest.raises(StoreError, match=r"image a-LEFT has 260 segments, .* at most 255: raise segment.min_area_px"):
        export(recipe, tmp_path / "out")
    assert not (tmp_path / "out" / "superpixels" / "a-LEFT.png").exists()
    done = export(recipe, tmp_path / "wide", sixteen_bit=True)
    assert any("16 bits" in note for note in done.notes())
    with Image.open(tmp_path / "wide" / "superpixels" / "a-LEFT.png") as image:
        assert image.mode == "I;16" and np.asarray(image).max() == 260


def test_the_notes_say_what_the_reference_would_trip_over() -> None:
    assert Exported(1, 0, 149, 768).notes() == []
    [note] = Exported(1, 0, 150, 768).notes()
    assert "superpixel_size" in note
    [note] = Exported(1, 0, 10, 512).notes()
    assert "512 values" in note


# -- going on after a stop


def test_a_finished_export_is_kept_and_a_lost_or_stale_shard_is_written_again(tmp_path: Path) -> None:
    recipe, out = build(tmp_path), tmp_path / "out"
    export(recipe, out)
    before = content(out)
    assert export(recipe, out) == Exported(0, 3, 2, 3)
    (out / "superpixels" / "c-LEFT.pt").unlink()
    assert export(recipe, out) == Exported(1, 2, 2, 3)
    assert content(out) == before
    build(tmp_path, (LEFT, LEFT))  # the same tables, of the same keys, made again with other bits
    assert export(recipe, out).written == 3
    assert content(out)["superpixels/a-RIGHT.png"] == before["superpixels/a-LEFT.png"]


def test_a_frame_excluded_since_is_taken_out_and_comes_back(tmp_path: Path) -> None:
    recipe, out = build(tmp_path), tmp_path / "out"
    export(recipe, out)
    before = content(out)
    store = Store.open(tmp_path / "store")
    ref = newest(store, "test")
    put_ref(store, recipe, ref.tables, ("a",))
    assert export(recipe, out) == Exported(0, 2, 2, 3)
    assert before.keys() - content(out).keys() == {
        "lidarseg_ov/a-lidar_lidarseg.npy",
        *(f"superpixels/a-{side}.{kind}" for side in ("LEFT", "RIGHT") for kind in ("png", "json", "pt")),
    }
    put_ref(store, recipe, ref.tables)
    assert export(recipe, out).written == 2
    assert content(out) == before


@pytest.mark.parametrize("n_writes", range(1, 16, 3))
def test_killed_at_any_write_it_leaves_whole_files_and_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_writes: int
) -> None:
    recipe, out = build(tmp_path), tmp_path / "out"
    export(recipe, tmp_path / "undisturbed")
    real, left = module.put, iter(range(n_writes))

    def put(path: Path, write: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        real(path, write)

    monkeypatch.setattr(module, "put", put)
    with pytest.raises(KeyboardInterrupt):
        export(recipe, out)
    for image in out.glob("superpixels/*.png"):
        assert image.with_suffix(".pt").exists() and image.with_suffix(".json").exists()
    monkeypatch.setattr(module, "put", real)
    export(recipe, out)
    assert content(out) == content(tmp_path / "undisturbed")


def test_a_file_that_could_not_be_finished_is_not_there(tmp_path: Path) -> None:
    def fail(file: Any) -> None:
        file.write(b"half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        module.put(tmp_path / "a.png", fail)
    assert list(tmp_path.iterdir()) == []


# -- what is refused


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    recipe, out = build(tmp_path), tmp_path / "out"
    (out / "superpixels").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"holds no export.json; give a new folder"):
        export(recipe, out)
    export(recipe, tmp_path / "other")
    with pytest.raises(StoreError, match="other tables, or with other options"):
        export(recipe, tmp_path / "other", "fcclip")
    (tmp_path / "other" / "export.json").write_text("[1]")
    with pytest.raises(StoreError, match="is damaged"):
        export(recipe, tmp_path / "other")


def test_an_unknown_layout_and_a_changed_dictionary_are_refused(tmp_path: Path) -> None:
    recipe = build(tmp_path)
    with pytest.raises(ConfigError, match='layout is "catseg"; choose'):
        export(recipe, tmp_path / "out", "catseg")
    other = Recipe(**{**vars(recipe), "ontology": load_ontology("semantic_kitti")})
    with pytest.raises(StoreError, match=r"(?s)no tables of recipe test as it is now.*text.prompts"):
        export(other, tmp_path / "out")


def test_a_token_that_is_no_file_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FRAMES, "scene-0002", ("../c",))
    with pytest.raises(StoreError, match=r"token '../c-lidar' is no file name"):
        export(build(tmp_path), tmp_path / "out")


def test_without_tables_the_target_to_run_is_named(tmp_path: Path) -> None:
    recipe = build(tmp_path)
    store = Store.open(tmp_path / "store")
    ref = newest(store, "test")
    put_ref(store, recipe, {name: one for name, one in ref.tables.items() if name != "group"})
    with pytest.raises(StoreError, match="no table `group` yet; run: make group RECIPE="):
        export(recipe, tmp_path / "out")
