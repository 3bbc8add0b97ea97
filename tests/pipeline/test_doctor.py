"""The preflight: a sentence for everything that would stop a run, and none where nothing would."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from manifests.fingerprint import Json
from manifests.ontology import parse_ontology
from manifests.recipe import Recipe, load_recipe
from manifests.sections.data import RunConfig
from manifests.sections.teachers.artifacts import ArtifactsConfig
from manifests.sections.teachers.clip_dense import ClipDenseConfig
from manifests.sections.teachers.weights import Weights
from pipeline.__main__ import app
from pipeline.checks import trainer
from pipeline.checks.doctor import examine
from pipeline.checks.findings import Finding
from pipeline.checks.prompts import check_prompts
from pipeline.checks.trainer import check_gpus, check_splits, check_trainer
from pipeline.checks.weights import check_teacher, check_weights

Roots = Callable[..., Any]


def problems(findings: Iterable[Finding]) -> list[str]:
    return [finding.text for finding in findings if finding.level == "problem"]


@pytest.fixture
def real(shared: Path, mirror: Roots) -> Any:
    """The two real key frames, whose tables may be changed."""
    return mirror(shared / "data" / "nuscenes-real", "v1.0-mini")


@pytest.fixture
def recipe_at(recipe_over: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Recipe]:
    teacher = ClipDenseConfig(model="tiny", weights="random:0", short_side_px=64)
    run = RunConfig(store=str(tmp_path / "store"))
    return lambda root, version="v1.0-mini", **parts: recipe_over(
        root, version, **({"teacher": teacher, "run": run} | parts)
    )


def of_channel(root: Any, channel: str) -> list[dict[str, Any]]:
    [sensor] = [row["token"] for row in root.table("sensor") if row["channel"] == channel]
    return [row for row in root.table("calibrated_sensor") if row["sensor_token"] == sensor]


def turn(root: Any, channel: str, axis: str, degrees: float) -> None:
    """Turn a camera about an axis of its own in all scenes."""
    for row in of_channel(root, channel):
        rotation = Rotation.from_quat(row["rotation"], scalar_first=True) * Rotation.from_euler(axis, degrees, True)
        root.change(
            "calibrated_sensor",
            lambda one, token=row["token"]: one["token"] == token,
            rotation=rotation.as_quat(scalar_first=True).tolist(),
        )


def swap(root: Any, first: str, second: str) -> None:
    """Give each of two cameras the other's pose, in every scene."""
    for one, other in zip(of_channel(root, first), of_channel(root, second), strict=True):
        for row, source in ((one, other), (other, one)):
            root.change(
                "calibrated_sensor",
                lambda candidate, token=row["token"]: candidate["token"] == token,
                rotation=source["rotation"],
                translation=source["translation"],
            )


def test_real_frames_with_their_own_calibration_are_fine(real: Any, recipe_at: Callable[..., Recipe]) -> None:
    findings = list(examine(recipe_at(real.path)))
    assert problems(findings) == []
    told = "\n".join(finding.text for finding in findings)
    assert "2 sweeps and 12 images" in told and "CAM_BACK 13.3%" in told and "CAM_BACK_LEFT 9.5" in told


@pytest.mark.parametrize(("channel", "axis"), [("CAM_FRONT", "y"), ("CAM_FRONT_RIGHT", "z")])
def test_a_camera_turned_by_ten_degrees_is_named(
    real: Any, recipe_at: Callable[..., Recipe], channel: str, axis: str
) -> None:
    turn(real, channel, axis, 10)
    found = problems(examine(recipe_at(real.path)))
    assert {text.split(":")[0] for text in found} == {channel} and any("pose" in text for text in found)


def test_two_cameras_with_each_others_pose_are_named_as_a_pair(real: Any, recipe_at: Callable[..., Recipe]) -> None:
    swap(real, "CAM_FRONT", "CAM_BACK_LEFT")
    found = problems(examine(recipe_at(real.path)))
    for one, other in (("CAM_FRONT", "CAM_BACK_LEFT"), ("CAM_BACK_LEFT", "CAM_FRONT")):
        assert any(text.startswith(f"{one}: marks of the sweep fit where it has the pose of {other}") for text in found)


def test_an_inverted_pose_sees_no_points(real: Any, recipe_at: Callable[..., Recipe]) -> None:
    turn(real, "CAM_FRONT", "x", 90)  # it looks at the sky
    found = problems(examine(recipe_at(real.path), n_frames=1))
    assert any(text.startswith("CAM_FRONT sees 0.0") for text in found)


def test_points_in_the_frame_of_the_vehicle_are_judged_from_amid_the_cameras(
    shared: Path, mirror: Roots, recipe_at: Callable[..., Recipe]
) -> None:
    root = mirror(shared / "data" / "tri-dgp-nuscenes", "v1.0-mini")
    findings = list(examine(recipe_at(root.path), n_frames=3))
    assert problems(findings) == []
    assert not any("too faint" in finding.text for finding in findings)


def test_a_file_that_cannot_be_read_and_a_folder_that_is_not_there(
    tiny: Any, recipe_at: Callable[..., Recipe], tmp_path: Path
) -> None:
    frame = tiny.frames()[0]
    tiny.write_file(frame.cameras[0].image_path, b"no image")
    [problem] = problems(examine(recipe_at(tiny.path, "v1.0-trainval")))
    assert frame.frame_id in problem and "cannot be decoded" in problem and "data.exclude" in problem
    assert "is not a folder" in problems(examine(recipe_at(tmp_path / "nowhere")))[0]


def test_mask_files_are_looked_at(shared: Path, tiny: Any, recipe_at: Callable[..., Recipe], tmp_path: Path) -> None:
    masks = shared / "golden" / "superpixels_tiny"
    frames = tiny.frames()
    recipe = recipe_at(tiny.path, "v1.0-trainval", teacher=ArtifactsConfig(folder=str(masks), void=True))
    assert problems(check_teacher(recipe, frames)) == []
    stranger = replace(frames[0], cameras=(replace(frames[0].cameras[0], token="stranger"),))
    found = problems(check_teacher(recipe, [stranger]))
    assert found and all("stranger" in problem for problem in found)


def test_weights_are_verified_and_never_fetched(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"tensors")
    right = "0" * 64
    wrong = check_weights(Weights(str(path), right))
    assert wrong.level == "problem" and "the file is damaged or another one" in wrong.text
    from manifests.fingerprint import sha256_file

    assert check_weights(Weights(str(path), sha256_file(path))).level == "ok"
    assert check_weights(Weights(str(tmp_path / "none.pth"), right)).level == "problem"
    hub = check_weights(Weights("hub:nobody/nothing/w.safetensors", right, "0" * 40))
    assert hub.level == "note" and "not on this machine: a run fetches it from the hub" in hub.text
    assert "not pinned: the first run does that" in check_weights(Weights("laion2b_s34b_b88k")).text
    unpinned = check_weights(Weights(str(path)))
    assert unpinned.level == "note" and f"weights_sha256 = {sha256_file(path)}" in unpinned.text
    known = check_weights(Weights("laion2b_s29b_b131k_ft_soup")).text
    assert "about 14" in known and "MB, MIT" in known and "https://huggingface.co/laion/" in known
    published = check_weights(ClipDenseConfig().pinned)
    assert "fetches it from https://openaipublic" in published.text or "has the pinned" in published.text


def test_a_store_without_space_and_workers_without_memory(
    tiny: Any, recipe_at: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = recipe_at(tiny.path, "v1.0-trainval", run=RunConfig(store=str(tmp_path / "s"), pool="ray", workers=2000))
    monkeypatch.setattr("manifests.storage.store.Store.free_bytes", lambda self: 1000)
    found = problems(examine(recipe, n_frames=1))
    assert any("1000" not in text and "0.0 GB free" in text and "run.store" in text for text in found)
    assert any("2000 workers take about" in text and "lower run.workers" in text for text in found)


def answer(**values: Any) -> Callable[[Any], tuple[str, str]]:
    machine = {"engine": "torch", "device": "cpu", "error": 1e-7, "gpus": [], "splits": {}, "problem": ""}
    return lambda words: ("a line before\n" + json.dumps(machine | values) + "\n", "")


def test_what_the_trainer_says_is_passed_on(tiny: Any, recipe_at: Callable[..., Recipe]) -> None:
    recipe = recipe_at(tiny.path, "v1.0-trainval")
    assert problems(check_trainer(recipe, (), "city", answer())) == []
    assert problems(check_trainer(recipe, (), "city", answer(problem="it computes wrong numbers"))) == [
        "it computes wrong numbers"
    ]
    [silent] = problems(check_trainer(recipe, (), "city", lambda words: ("", "Trace\nNo module named torch")))
    assert silent.endswith("No module named torch")
    eight = replace(recipe, run=RunConfig(pool="ray", gpus_per_worker=1.0))
    assert "workers ask for 1 GPUs each, torch sees none" in problems(check_gpus(eight, []))[0]
    assert problems(check_gpus(eight, [("H100", 80.0)])) == []
    by_itself = replace(recipe, run=RunConfig(pool="ray"))
    assert problems(check_gpus(by_itself, [])) == problems(check_gpus(by_itself, [("H100", 80.0)])) == []


def test_a_gpu_that_training_would_not_use_is_a_problem(tiny: Any, recipe_at: Callable[..., Recipe]) -> None:
    recipe = recipe_at(tiny.path, "v1.0-trainval")
    unused = "A GPU IS HERE AND NOT USED: NVIDIA H100. On the CPU this takes longer"
    assert problems(check_trainer(recipe, (), "city", answer(unused=unused))) == [unused]
    on_purpose = replace(recipe, run=RunConfig(device="cpu"))
    found = list(check_trainer(on_purpose, (), "city", answer(unused=unused)))
    assert [one.level for one in found if one.text == unused] == ["note"]


def test_splits_are_counted_and_an_empty_one_is_named(
    tiny: Any, recipe_at: Callable[..., Recipe], tmp_path: Path
) -> None:
    path = tmp_path / "r.toml"
    path.write_text(f'[data]\nroot = "{tiny.path}"\n[distill]\nsplit = "mini_val"\n')
    recipe = recipe_at(tiny.path, "v1.0-trainval")
    findings = list(check_splits(recipe, {"distill": "mini_val", "probe": "mini_val", "predict": "all"}, path, ()))
    assert [finding.level for finding in findings] == ["problem", "ok", "note"]
    assert "distill.split" in findings[0].text and "predict 3" in findings[1].text and "probe" in findings[2].text


def test_the_command_ends_with_0_or_1(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer is really asked, once; see tests/trainer/test_machine.py for what it answers."""
    path = tmp_path / "r.toml"
    path.write_text(
        f'[data]\nroot = "{tiny.path}"\n[run]\nstore = "{tmp_path / "store"}"\n[network]\nengine = "torch"\n'
        '[teacher]\nname = "clip_dense"\nmodel = "tiny"\nweights = "random:0"\n'
    )
    done = CliRunner().invoke(app, ["doctor", str(path), "--frames", "1"])
    assert done.exit_code == 0 and "torch on cpu is within" in done.output, done.output
    assert "nothing stands in the way" in done.output and not (tmp_path / "store").exists()
    monkeypatch.setattr(trainer, "ask_program", lambda words: ("", "no trainer"))
    done = CliRunner().invoke(app, ["doctor", str(path), "--set", f"data.root={tmp_path / 'nowhere'}"])
    assert done.exit_code == 1 and "2 problems" in done.output
    assert load_recipe(path).teacher.name == "clip_dense"


LONG = " ".join(["ground that may be driven over by a car or by a truck and that is not a road"] * 6)
ALIKE = [
    (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")),
    ("car &amp; van", "car & van"),
    ("car", "ＣＡＲ"),
    ("builder’s hut", "builder's hut"),
    (f"{LONG} of grass", f"{LONG} of sand"),
    # 35 pieces of many tokens each, which only the tokenizer itself can tell to be too many
    (" ".join(["zyxwvutsrq"] * 40) + " of grass", " ".join(["zyxwvutsrq"] * 40) + " of sand"),
]


@pytest.mark.parametrize("pair", ALIKE)
def test_prompts_that_the_tokenizer_reads_alike_are_named(
    recipe_over: Callable[..., Recipe], tmp_path: Path, pair: tuple[str, str]
) -> None:
    def findings(*prompts: str) -> list[Finding]:
        classes = [{"name": name, "colour": f"#00000{i}"} for i, name in enumerate(("ignore", "a", "b"))]
        groups: list[Json] = [
            {"name": name, "fine": name, "thing": True, "prompts": [prompt]}
            for name, prompt in zip("ab", prompts, strict=True)
        ]
        table: dict[str, Json] = {"name": "x", "version": 1, "class": classes, "group": groups}
        teacher = ClipDenseConfig(model="tiny", weights="random:0")
        return list(check_prompts(recipe_over(tmp_path, ontology=parse_ontology(table), teacher=teacher)))

    [told] = findings(*pair)
    assert told.level == "note" and "occurs at 0 (a), 1 (b); only the first can win" in told.text
    [right] = findings("grass", "sand")
    assert right.level == "ok" and "no two of 2 prompts are the same to the tokenizer" in right.text
