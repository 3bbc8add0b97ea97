import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from manifests.config import ConfigError, parse_section
from manifests.fingerprint import sha256_file
from manifests.ontology import load_ontology, parse_ontology
from manifests.sections.teachers.artifacts import ArtifactsConfig, prompts_digest
from pipeline.frame import Camera, Frame, FrameError
from pipeline.stages.registry import STAGES
from pipeline.teachers import artifacts
from pipeline.teachers.artifacts import Artifacts, check_folder, read_text
from tests.pipeline.test_teachers import BLANK

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
ONTOLOGY = parse_ontology(
    {
        "name": "street",
        "version": 1,
        "class": [{"name": "ignore", "colour": "#000000"}, {"name": "car", "colour": "#ff0000"}],
        "group": [{"name": "cars", "fine": "car", "thing": True, "prompts": ["car", "van", "bus"]}],
    }
)


def frame_of(*tokens: str, width_px: int = 4, height_px: int = 2) -> Frame:
    cameras = tuple(
        Camera(f"C{i}", token, "", 0, np.eye(3), np.eye(4), width_px=width_px, height_px=height_px)
        for i, token in enumerate(tokens)
    )
    return Frame("f", "s", 0, "l", "l.bin", None, np.eye(4), np.eye(4), cameras)


def key_frame(root: Path, sweep_token: str) -> Frame:
    """The six cameras of a nuScenes key frame, from the tables themselves."""
    tables = {
        name: json.loads((root / "v1.0-trainval" / f"{name}.json").read_text())
        for name in ("sample_data", "calibrated_sensor", "sensor")
    }
    channel = {row["token"]: row["channel"] for row in tables["sensor"]}
    channel = {row["token"]: channel[row["sensor_token"]] for row in tables["calibrated_sensor"]}
    [sample] = [row["sample_token"] for row in tables["sample_data"] if row["token"] == sweep_token]
    token = {
        channel[row["calibrated_sensor_token"]]: row["token"]
        for row in tables["sample_data"]
        if row["sample_token"] == sample and row["is_key_frame"]
    }
    return frame_of(*(token[name] for name in CAMERAS), width_px=1600, height_px=900)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the SAN script writes for one image of 2 x 4 pixels with two segments, and three prompts."""
    Image.fromarray(np.array([[1, 1, 1, 2], [0, 0, 2, 2]], np.uint8)).save(tmp_path / "a.png")
    records = [{"id": 1, "category_id": 2, "area": 3}, {"id": 2, "category_id": 0, "area": 3}]
    (tmp_path / "a.json").write_text(json.dumps(records))
    torch.save(torch.tensor([[0.0, 0.0], [0.6, 0.8], [1.0, 0.0]]), tmp_path / "a.pt")
    torch.save(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]), tmp_path / "text_embedding.pt")
    (tmp_path / "prompts.txt").write_text("car\nvan\nbus\n")
    return tmp_path


def teacher(folder: Path, **settings: Any) -> Artifacts:
    return Artifacts(ArtifactsConfig(folder=str(folder), **settings))


def rewrite_json(folder: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    path = folder / "a.json"
    records = json.loads(path.read_text())
    path.write_text(json.dumps(change(records) or records))


# -- what is read


def test_segments_are_read_as_stored(folder: Path) -> None:
    loaded = teacher(folder)
    text = loaded.text(ONTOLOGY.prompts)
    np.testing.assert_allclose(text, np.array([[1, 0], [0, 1], [0.6, 0.8]]))
    [found] = loaded.segment(frame_of("a"), {}, text)
    assert found.label_map().tolist() == [[1, 1, 1, 2], [0, 0, 2, 2]]
    assert found.prompt_id.tolist() == [2, 0]
    assert found.area_px.tolist() == [3, 3]
    assert found.score.tolist() == [1, 1]
    np.testing.assert_allclose(found.vector, np.array([[0.6, 0.8], [1, 0]]), atol=1e-3)


def test_scores_are_read_where_the_recipe_asks_for_them(folder: Path) -> None:
    text = teacher(folder).text(("car", "van", "bus"))

    def scores(**settings: Any) -> list[float]:
        [found] = teacher(folder, **settings).segment(frame_of("a"), {}, text)
        return [round(float(score), 3) for score in found.score]

    rewrite_json(folder, lambda records: [{**record, "score": 0.25 * record["id"]} for record in records])
    Image.fromarray(np.array([[51, 102, 153, 0], [9, 9, 255, 255]], np.uint8)).save(folder / "a_score.png")
    assert scores() == [1, 1]
    assert scores(scores="segment") == [0.25, 0.5]
    assert scores(scores="image") == [0.4, 0.667]  # (51 + 102 + 153) / 3 and (0 + 255 + 255) / 3, of 255
    Image.fromarray(np.zeros((2, 4), np.uint8)).save(folder / "a_score.png")
    assert scores(scores="image") == [0.002, 0.002]


@pytest.mark.parametrize(
    ("scores", "spoil", "message"),
    [
        ("segment", lambda folder: None, r"a\.json: segment 1 has score None; expected a number above 0 and up to 1"),
        ("image", lambda folder: None, r"a_score\.png: No such file"),
        ("image", lambda folder: (folder / "a_score.png").write_bytes(b""), r"a_score\.png: is not a PNG image"),
        (
            "image",
            lambda folder: Image.fromarray(np.zeros((2, 3), np.uint8)).save(folder / "a_score.png"),
            r"a_score\.png: has 3 x 2 pixels, the image has 4 x 2",
        ),
        (
            "image",
            lambda folder: Image.fromarray(np.zeros((2, 4), np.uint16)).save(folder / "a_score.png"),
            r"a_score\.png: has pixels of 16 bits",
        ),
    ],
)
def test_scores_that_are_not_there_are_not_made_up(
    folder: Path, scores: str, spoil: Callable[[Path], Any], message: str
) -> None:
    spoil(folder)
    loaded = teacher(folder, scores=scores)
    with pytest.raises(FrameError, match=message):
        loaded.segment(frame_of("a"), {}, loaded.text(("car", "van", "bus")))


def test_a_score_image_is_among_the_files_of_a_frame_only_where_it_is_read(folder: Path) -> None:
    for scores, names in (("image", {"a.png", "a.json", "a.pt", "a_score.png"}), ("none", {"a.png", "a.json", "a.pt"})):
        recipe = replace(BLANK, teacher=ArtifactsConfig(folder=str(folder), scores=scores))
        assert set(Artifacts.files(recipe).names(frame_of("a"))) == names
        assert "scores" not in recipe.teacher.settings("text")


def test_a_last_row_for_void_is_dropped_where_it_is_said_that_there_is_one_and_never_guessed(folder: Path) -> None:
    torch.save(torch.eye(4, 2) + 1, folder / "text_embedding.pt")
    assert teacher(folder, void=True).text(ONTOLOGY.prompts).shape == (3, 2)
    assert teacher(folder, layout="fcclip").text(ONTOLOGY.prompts).shape == (3, 2)
    with pytest.raises(ConfigError, match=r'has 4 rows, .* has 3 prompts; .* stands for "void", set teacher.void = tr'):
        teacher(folder).text(ONTOLOGY.prompts)
    torch.save(torch.eye(3, 2) + 1, folder / "text_embedding.pt")
    with pytest.raises(ConfigError, match=r"has 3 rows, .* has 3 prompts, and by teacher.void or its layout the last"):
        teacher(folder, void=True).text(ONTOLOGY.prompts)


def test_files_made_with_other_prompts_are_refused_as_soon_as_a_plan_is_made(
    folder: Path, recipe_over: Callable[..., Any]
) -> None:
    def plan(prompts: str | None = None, **settings: Any) -> None:
        (folder / "prompts.txt").unlink(missing_ok=True)
        if prompts is not None:
            (folder / "prompts.txt").write_bytes(prompts.encode())
        config = ArtifactsConfig(folder=str(folder), **settings)
        STAGES["text"].depends(recipe_over(folder, teacher=config, ontology=ONTOLOGY))

    plan("\ufeffcar\r\nvan\r\nbus\r\n")
    with pytest.raises(
        ConfigError, match=r"has 4 prompts, data.ontology 3; the first that differs is number 1, 'taxi'"
    ):
        plan("car\ntaxi\nvan\nbus\n")
    with pytest.raises(ConfigError, match=r"has 2 prompts, data.ontology 3; name the dictionary"):
        plan("car\nvan\n")
    with pytest.raises(ConfigError, match=r"these are those of AFOV for nuScenes, not the 3 of data.ontology") as told:
        plan()
    plan(prompts_sha256=str(told.value).rpartition("teacher.prompts_sha256=")[2])  # the advice
    with pytest.raises(ConfigError, match="these are others, not the 3"):
        plan(prompts_sha256="0" * 64)


def test_the_published_files_were_made_with_the_prompts_of_the_dictionary_for_nuscenes() -> None:
    assert prompts_digest(load_ontology("nuscenes").prompts) == ArtifactsConfig(folder="x").prompts_sha256


def test_a_small_file_that_would_unpack_to_a_large_one_is_not_unpacked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(torch.zeros(3, 1_000_000), folder / "large.pt")
    with zipfile.ZipFile(folder / "large.pt") as large, zipfile.ZipFile(folder / "a.pt", "w", 8) as small:
        for name in large.namelist():
            small.writestr(name, large.read(name))
    assert (folder / "a.pt").stat().st_size < 20_000
    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "MOST_BYTES", 1 << 20)
        problems = check_folder(ArtifactsConfig(folder=str(folder)), ["a"], ONTOLOGY)
        assert problems == ["a.pt: would unpack to 11 MB; no file of vectors is as large"]
    torch.save(torch.zeros(1, 2).expand(100_000_000, 2), folder / "a.pt")  # a view of two numbers
    problems = check_folder(ArtifactsConfig(folder=str(folder)), ["a"], ONTOLOGY)
    assert problems == ["a.pt: holds more than 67,108,864 values; no file of vectors is as large"]


@pytest.mark.parametrize("ending", ["png", "json", "pt"])
def test_a_file_that_is_not_the_one_that_was_digested_fails_the_frame(folder: Path, ending: str) -> None:
    text = teacher(folder).text(ONTOLOGY.prompts)
    digests = {f"a.{one}": sha256_file(folder / f"a.{one}") for one in ("png", "json", "pt")}
    frame = replace(frame_of("a"), files=digests)
    assert len(teacher(folder).segment(frame, {}, text)) == 1
    with (folder / f"a.{ending}").open("ab") as file:
        file.write(b" ")
    with pytest.raises(FrameError, match=rf"a\.{ending}: was replaced since it was looked at; run again"):
        teacher(folder).segment(frame, {}, text)


def test_fcclip_has_two_vectors_per_segment(folder: Path) -> None:
    inside, outside = torch.tensor([[0.0, 0], [1, 0], [1, 0]]), torch.tensor([[0.0, 0], [0, 5], [0, 5]])
    torch.save([inside, outside], folder / "a.pt")
    rewrite_json(folder, lambda records: [{"id": r["id"], "isthing": True, "category_id": 1} for r in records])
    text = teacher(folder).text(ONTOLOGY.prompts)
    for settings, expected in (
        ({}, [0, 1]),
        ({"layout": "fcclip"}, [0, 1]),
        ({"fcclip_feature": "in"}, [1, 0]),
    ):
        [found] = teacher(folder, **settings).segment(frame_of("a"), {}, text)
        assert found.vector.tolist() == [expected, expected]


def test_more_than_255_segments_need_sixteen_bits_and_survive(folder: Path) -> None:
    n = 300
    ids = np.arange(1, n + 1, dtype=np.uint16).reshape(15, 20)
    Image.fromarray(ids).save(folder / "a.png")
    (folder / "a.json").write_text(json.dumps([{"id": k, "category_id": k % 3} for k in range(1, n + 1)]))
    torch.save(torch.cat([torch.zeros(1, 2), torch.ones(n, 2)]), folder / "a.pt")
    loaded = teacher(folder)
    [found] = loaded.segment(frame_of("a", width_px=20, height_px=15), {}, loaded.text(ONTOLOGY.prompts))
    np.testing.assert_array_equal(found.label_map(), ids)
    assert len(found) == n


def test_an_image_without_segments_is_fine(folder: Path) -> None:
    Image.new("L", (4, 2)).save(folder / "a.png")
    (folder / "a.json").write_text("[]")
    torch.save(torch.zeros(1, 2), folder / "a.pt")
    [found] = teacher(folder).segment(frame_of("a"), {}, np.eye(3, 2, dtype=np.float32))
    assert len(found) == 0
    assert not found.label_map().any()


@pytest.mark.parametrize(
    ("golden", "root", "superpixels"),
    [
        ("pretrain_none_parametrizing_0.npz", "nuscenes_tiny", "superpixels_tiny"),
        ("pretrain_none_parametrizing_1.npz", "nuscenes_tiny", "superpixels_tiny"),
        ("pretrain_none_verifying_0.npz", "nuscenes_tiny", "superpixels_tiny"),
        ("real_nuscenes/pretrain_none_parametrizing_0.npz", "real_nuscenes/root", "real_nuscenes/superpixels"),
    ],
)
def test_official_files_give_what_the_reference_implementation_trains_on(
    shared: Path, golden: str, root: str, superpixels: str
) -> None:
    expected = np.load(shared / "golden" / golden)
    frame = key_frame(shared / "golden" / root, str(expected["lidar_token"]))
    loaded = teacher(shared / "golden" / superpixels, void=True)
    text = loaded.text(load_ontology("nuscenes").prompts)
    assert text.shape == (175, 768)
    views = loaded.segment(frame, {}, text)
    found = [(view, k, prompt) for view, one in enumerate(views) for k, prompt in enumerate(one.prompt_id)]
    np.testing.assert_array_equal(found, expected["features_image_id_seg_word"])
    vectors = np.concatenate([one.vector for one in views]).astype(np.float32)
    stored = expected["features_vec"]  # two of the files hold the first vector only
    assert len(stored) in (1, len(vectors))
    np.testing.assert_allclose(vectors[: len(stored)], stored, atol=2e-4)  # float16 of components below 0.25


@pytest.mark.parametrize(
    ("root", "superpixels"),
    [("nuscenes_tiny", "superpixels_tiny"), ("real_nuscenes/root", "real_nuscenes/superpixels")],
)
def test_nothing_is_wrong_with_the_golden_folders(shared: Path, root: str, superpixels: str) -> None:
    config = ArtifactsConfig(folder=str(shared / "golden" / superpixels), void=True)
    rows = json.loads((shared / "golden" / root / "v1.0-trainval" / "sample_data.json").read_text())
    tokens = [row["token"] for row in rows if row["fileformat"] == "jpg"]
    assert len(tokens) >= 12
    assert check_folder(config, tokens, load_ontology("nuscenes")) == []


# -- what is refused


def renumber(records: list[dict[str, Any]]) -> None:
    records[1]["id"] = 3


def misname(records: list[dict[str, Any]]) -> None:
    records[0]["category_id"] = 3


def shrink(records: list[dict[str, Any]]) -> None:
    records[0]["area"] = 9


@pytest.mark.parametrize(
    ("break_folder", "message"),
    [
        (lambda f: (f / "a.png").unlink(), r"a\.png: No such file"),
        (lambda f: (f / "a.json").unlink(), r"a\.json: No such file"),
        (lambda f: (f / "a.pt").unlink(), r"a\.pt: No such file"),
        (lambda f: (f / "a.png").write_bytes(b""), r"a\.png: is not a PNG image"),
        (lambda f: (f / "a.png").write_bytes((f / "a.png").read_bytes()[:-30]), r"a\.png: "),
        (lambda f: Image.new("L", (4, 2)).save(f / "a.png", format="JPEG"), r"a\.png: is not a PNG image"),
        (lambda f: Image.new("RGB", (4, 2)).save(f / "a.png"), r"a\.png: has pixels of kind RGB; expected grey"),
        (lambda f: Image.new("L", (8, 4)).save(f / "a.png"), r"a\.png: has 8 x 4 pixels, the image has 4 x 2"),
        (lambda f: (f / "a.json").write_text("[{"), r"a\.json: is not valid JSON"),
        (lambda f: (f / "a.json").write_bytes(b"\xff\xfe\x00"), r"a\.json: is not valid JSON"),
        (lambda f: (f / "a.json").write_text('{"id": 1}'), r"a\.json: is not a list of records"),
        (lambda f: (f / "a.json").write_text("[1, 2]"), r"a\.json: is not a list of records"),
        (lambda f: rewrite_json(f, renumber), r"a\.json: record 2 has id 3"),
        (lambda f: rewrite_json(f, misname), r"a\.json: segment 1 has category_id 3, expected 0 to 2"),
        (lambda f: rewrite_json(f, shrink), r"a\.json: segment 1 has area 9, but 3 pixels in the PNG"),
        (lambda f: rewrite_json(f, lambda r: r[:1]), r"names 1 segments, but the PNG has ids up to 2"),
        (
            lambda f: torch.save(torch.ones(5, 2), f / "a.pt"),
            r"a\.pt: has 5 rows, but 2 segments are named: expected 3",
        ),
        (
            lambda f: torch.save(torch.eye(3, 4) + 1, f / "a.pt"),
            r"has vectors of 4 values, but those of the prompts have 2",
        ),
        (lambda f: torch.save(torch.ones(3, 2), f / "a.pt"), r"a\.pt: row 0 is not zero"),
        (lambda f: torch.save(torch.zeros(3, 2), f / "a.pt"), r"a\.pt: row 1 is all zero"),
        (
            lambda f: torch.save(torch.full((3, 2), float("nan")), f / "a.pt"),
            r"a\.pt: holds values that are not finite",
        ),
        (lambda f: torch.save([torch.zeros(3, 2)] * 3, f / "a.pt"), r'holds 3 matrices; layout "auto" has 1 or 2'),
        (lambda f: torch.save([], f / "a.pt"), r"a\.pt: holds 0 matrices"),
        (lambda f: torch.save({"x": torch.zeros(3, 2)}, f / "a.pt"), r"a\.pt: holds something else than matrices"),
        (lambda f: torch.save(torch.zeros(3, 2, dtype=torch.int64), f / "a.pt"), r"holds something else than matrices"),
        (lambda f: torch.save(Path("/"), f / "a.pt"), r"a\.pt: holds other objects than tensors.* is not opened"),
        (lambda f: (f / "a.pt").write_bytes(b"PK\x03\x04 no"), r"a\.pt: is cut off after 7 bytes"),
        (
            lambda f: (f / "a.pt").write_bytes((f / "a.pt").read_bytes()[:-400]),
            r"a\.pt: is cut off after",
        ),
        (lambda f: (f / "a.pt").write_bytes(b""), r"a\.pt: is empty"),
    ],
)
def test_a_damaged_triple_is_refused_by_token(folder: Path, break_folder: Callable[[Path], Any], message: str) -> None:
    loaded = teacher(folder)
    text = loaded.text(ONTOLOGY.prompts)
    break_folder(folder)
    with pytest.raises(FrameError, match=message):
        loaded.segment(frame_of("a"), {}, text)


class Intruder:
    """Unpickled without care, this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (self.path, "gotcha")


@pytest.mark.parametrize("name", ["a.pt", "text_embedding.pt"])
def test_nothing_in_a_torch_file_is_executed(folder: Path, name: str) -> None:
    torch.save([torch.zeros(3, 2), Intruder(folder / "trace")], folder / name)
    problems = check_folder(ArtifactsConfig(folder=str(folder)), ["a"], ONTOLOGY)
    assert len(problems) == 1 and "holds other objects than tensors" in problems[0]
    assert not (folder / "trace").exists()


@pytest.mark.parametrize("token", ["../a", "/etc/passwd", "a/b", "..", "", "a\\b", "a\0"])
def test_a_token_never_leads_out_of_the_folder(folder: Path, token: str) -> None:
    inner = folder / "inner"
    inner.mkdir()
    with pytest.raises(FrameError, match="is no file name"):
        teacher(inner).segment(frame_of(token), {}, np.eye(3, 2, dtype=np.float32))


def test_everything_wrong_with_a_frame_is_told_at_once(folder: Path) -> None:
    rewrite_json(folder, renumber)
    with pytest.raises(FrameError) as caught:
        teacher(folder).segment(frame_of("b", "a"), {}, np.eye(3, 2, dtype=np.float32))
    for expected in ("b.png: No such file", "b.json: No such", "b.pt: No such", "a.json: record 2 has id 3"):
        assert expected in str(caught.value)


def test_many_wrong_records_are_counted_not_listed(folder: Path) -> None:
    (folder / "a.json").write_text(json.dumps([{"id": 0, "category_id": 0}] * 20))
    problems = check_folder(ArtifactsConfig(folder=str(folder)), ["a"], ONTOLOGY)
    assert "record 5 has id 0, and 15 more like these" in problems[0]


def test_images_of_one_frame_must_come_from_one_teacher(folder: Path) -> None:
    for suffix in ("png", "json"):
        (folder / f"b.{suffix}").write_bytes((folder / f"a.{suffix}").read_bytes())
    torch.save([torch.load(folder / "a.pt")] * 2, folder / "b.pt")
    text = teacher(folder).text(ONTOLOGY.prompts)
    with pytest.raises(FrameError, match=r"some .pt files hold one matrix and some two"):
        teacher(folder).segment(frame_of("a", "b"), {}, text)
    with pytest.raises(FrameError, match=r'a\.pt: holds 1 matrices; layout "fcclip" has 2'):
        teacher(folder, layout="fcclip").segment(frame_of("a", "b"), {}, text)
    assert check_folder(ArtifactsConfig(folder=str(folder)), ["a", "b"], ONTOLOGY) == [
        "a.pt holds one matrix and b.pt two: they come from different teachers"
    ]


def test_a_whole_folder_is_checked_token_by_token(folder: Path) -> None:
    config = ArtifactsConfig(folder=str(folder))
    assert check_folder(config, ["a"], ONTOLOGY) == []
    (folder / "a.pt").unlink()
    (folder / "text_embedding.pt").unlink()
    problems = check_folder(config, ["a", "c"], ONTOLOGY)
    assert [problem.split(":")[0] for problem in problems] == ["teacher.folder", "a.pt", "c.png", "c.json", "c.pt"]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (torch.eye(5, 8), "has 5 rows, but the class dictionary has 3 prompts"),
        (torch.zeros(3, 8), "row 0 is all zero"),
        ([torch.eye(3), torch.eye(3)], "holds 2 matrices; expected one"),
        (torch.full((3, 2), float("inf")), "not finite"),
        ("text", "something else than matrices"),
    ],
)
def test_text_vectors_that_do_not_fit_are_refused(folder: Path, stored: object, message: str) -> None:
    torch.save(stored, folder / "text_embedding.pt")
    with pytest.raises(ConfigError, match=message):
        read_text(ArtifactsConfig(folder=str(folder)), 3)


# -- the section of the recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "folder is empty"),
        ({"folder": "x", "name": "san"}, 'these are the settings of "artifacts"'),
        ({"folder": "x", "layout": "SAN"}, 'choose "auto", "san", "catseg" or "fcclip"'),
        ({"folder": "x", "fcclip_feature": "both"}, 'choose "out" or "in"'),
        ({"folder": "x", "layout": "san", "fcclip_feature": "in"}, 'layout "san" has one vector per segment'),
        ({"folders": "x"}, "did you mean `folder`"),
    ],
)
def test_a_wrong_setting_is_refused_with_a_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_section("teacher", values, ArtifactsConfig)


def test_the_key_of_text_holds_the_digest_of_its_vectors_and_no_identity_where_they_lie(
    folder: Path, recipe_over: Callable[..., Any]
) -> None:
    config = ArtifactsConfig(folder=str(folder), layout="san", prompts_sha256=prompts_digest(ONTOLOGY.prompts))
    assert config.settings("segment") == {
        "name": "artifacts",
        "layout": "san",
    }
    found = STAGES["text"].content(recipe_over(folder, teacher=config, ontology=ONTOLOGY))
    assert found == {"text_sha256": sha256_file(folder / "text_embedding.pt")}


def test_a_folder_without_text_vectors_is_named_when_planning(tmp_path: Path, recipe_over: Callable[..., Any]) -> None:
    config = ArtifactsConfig(folder=str(tmp_path), prompts_sha256=prompts_digest(ONTOLOGY.prompts))
    with pytest.raises(ConfigError, match=r"text_embedding.pt: No such file"):
        STAGES["text"].content(recipe_over(tmp_path, teacher=config, ontology=ONTOLOGY))


def test_there_is_nothing_to_encode(folder: Path) -> None:
    with pytest.raises(ValueError, match="no encode half"):
        teacher(folder).encode(frame_of("a"))
