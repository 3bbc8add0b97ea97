"""The whole chain as a user types it, on real key frames: pack, pretrain, distill, predict, evaluate."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from manifests.storage.store import Store
from pipeline.__main__ import app as pipeline
from tests.refs import newest
from trainer.__main__ import app as trainer


@dataclass(frozen=True)
class Logs:
    """Real logs: where they lie below `shared`, how they are named, what teaches, and whether they have true labels."""

    name: str
    root: str
    version: str
    n_frames: int
    has_labels: bool
    teacher: str = 'name = "clip_dense"\nmodel = "tiny"\nweights = "random:0"\nshort_side_px = 112'
    options: str = '[text]\ntemplates = "single"\n[segment]\nscale = 0.1'


LOGS = [
    Logs("mini", "data/nuscenes-real", "v1.0-mini", 2, False),
    Logs("trainval", "data/nuscenes-real", "v1.0-trainval", 2, False),
    Logs("semireal", "data/nuscenes-real", "v1.0-semireal", 2, True),
    Logs("tri", "data/tri-dgp-nuscenes", "v1.0-trainval", 3, False),
    Logs("imported", "golden/real_nuscenes/root", "v1.0-trainval", 2, True, "artifacts", ""),
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all recipes share, so that they also share tables."""
    return tmp_path_factory.mktemp("chain")


def command(program: str, *words: object) -> Result:
    """Run `python -m pipeline ...` or `python -m trainer ...` within this process."""
    return CliRunner().invoke({"pipeline": pipeline, "trainer": trainer}[program], [str(word) for word in words])


@pytest.mark.parametrize("logs", LOGS, ids=lambda logs: logs.name)
def test_the_whole_chain_runs_on_real_frames(shared: Path, workplace: Path, logs: Logs) -> None:
    teacher = logs.teacher
    if teacher == "artifacts":
        teacher = f'name = "artifacts"\nvoid = true\nfolder = "{shared / "golden" / "real_nuscenes" / "superpixels"}"'
    recipe = workplace / f"{logs.name}.toml"
    recipe.write_text(
        f"""
        [data]
        root = "{shared / logs.root}"
        version = "{logs.version}"
        [teacher]
        {teacher}
        {logs.options}
        [voxels]
        size_m = 0.4
        angle_deg = 2.0
        [network]
        name = "minkunet_small"
        [pretrain]
        split = "all"
        epochs = 1
        batch_size = 1
        lr = 0.05
        [distill]
        split = "all"
        epochs = 1
        batch_size = 1
        [predict]
        split = "all"
        [evaluate]
        split = "all"
        [run]
        store = "{workplace / "store"}"
        runs = "{workplace / "runs"}"
        loader_workers = 0
        """
    )
    for words in (("pipeline", "run", "pack", recipe), ("trainer", "pretrain", recipe), ("trainer", "distill", recipe)):
        done = command(*words)
        assert done.exit_code == 0, done.output

    done = command("pipeline", "run", "label", recipe)
    if logs.has_labels:
        assert done.exit_code == 0, done.stderr
    else:
        assert done.exit_code == 2 and "has no true point labels" in done.stderr
    assert command("trainer", "predict", recipe).exit_code == 0
    done = command("trainer", "evaluate", recipe)
    if not logs.has_labels:
        assert done.exit_code == 3 and "no labels to evaluate against" in done.stderr
        return
    assert done.exit_code == 0, done.stderr
    scores = json.loads((workplace / "runs" / logs.name / "evaluate.json").read_text())
    assert scores["frames"] == logs.n_frames and scores["scores"].keys() == {"all", "seen", "unseen"}
    assert "mIoU" in done.stdout and "unseen" in done.stdout


def test_versions_of_one_data_set_share_their_tables(shared: Path, workplace: Path) -> None:
    """The three versions list the same files, so only `index` was built three times."""
    if not (workplace / "store" / "refs" / "semireal.json").exists():
        pytest.skip("needs the tables that the test above builds")
    refs = [json.loads((workplace / "store" / "refs" / f"{name}.json").read_text()) for name in ("mini", "semireal")]
    assert refs[0]["tables"]["encode"] == refs[1]["tables"]["encode"]
    assert refs[0]["tables"]["target"] == refs[1]["tables"]["target"]
    assert refs[0]["tables"]["index"] != refs[1]["tables"]["index"]


def test_the_development_kit_takes_our_submission_and_agrees_with_our_score(
    shared: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scene 0003 is all of split "val" that is there, so the kit is told that this is the split."""
    if not (workplace / "store" / "refs" / "semireal.json").exists():
        pytest.skip("needs the tables that the first test builds")
    from nuscenes import NuScenes
    from nuscenes.eval.lidarseg import utils
    from nuscenes.eval.lidarseg.evaluate import LidarSegEval
    from nuscenes.eval.lidarseg.validate_submission import validate_submission

    recipe, out = workplace / "semireal.toml", workplace / "submission"
    on_val = ("--set", "predict.split=val", "--set", "evaluate.split=val")
    assert command("trainer", "predict", recipe, *on_val).exit_code == 0
    done = command("trainer", "submit", recipe, *on_val, "--out", out)
    assert done.exit_code == 2 and "the split has 6019 frames, 1 are here" in done.stderr
    assert command("trainer", "submit", recipe, *on_val, "--out", out, "--partial").exit_code == 0
    assert command("trainer", "evaluate", recipe, *on_val).exit_code == 0

    monkeypatch.setattr(utils, "create_splits_scenes", lambda **_: {"val": ["scene-0003"]})
    kit = NuScenes("v1.0-semireal", str(shared / "data" / "nuscenes-real"), verbose=False)
    validate_submission(kit, str(out), "val")
    official = LidarSegEval(kit, str(out), "val").evaluate()
    ours = json.loads((workplace / "runs" / "semireal" / "evaluate.json").read_text())["scores"]["all"]
    assert ours["mean_iou"] == pytest.approx(official["miou"], abs=1e-6)
    assert ours["frequency_weighted_iou"] == pytest.approx(official["freq_weighted_iou"], abs=1e-6)


# -- SemanticKITTI ---------------------------------------------------------------------------------

KITTI = """
[data]
dataset = "semantic_kitti"
root = "{root}"
version = "1.0"
ontology = "semantic_kitti"
split = "{scenes}"
[teacher]
{teacher}
[text]
{text}
[segment]
scale = 0.25
[voxels]
coordinates = "cartesian"
size_m = 0.8
intensity_offset = 1.0
[network]
name = "minkunet_small"
[pretrain]
split = "train"
epochs = 1
batch_size = 2
lr = 0.05
[distill]
split = "train"
epochs = 2
batch_size = 2
[evaluate]
absent = "zero"
[run]
store = "{workplace}/store"
runs = "{workplace}/runs"
loader_workers = 0
"""


def kitti_recipe(shared: Path, workplace: Path, name: str, scenes: str, teacher: str, text: str = "") -> Path:
    """Write a recipe over the real scans of some sequences."""
    (workplace / f"{name}.txt").write_text(scenes)
    path = workplace / f"{name}.toml"
    root = shared / "data" / "semantickitti-real"
    listed = workplace / f"{name}.txt"
    path.write_text(KITTI.format(root=root, scenes=listed, teacher=teacher, text=text, workplace=workplace))
    return path


def test_semantic_kitti_is_trained_on_00_to_06_and_scored_on_08_as_its_own_evaluator_does(
    shared: Path, workplace: Path
) -> None:
    scenes = "\n".join(["00", "01", "02", "03", "04", "05", "06", "08"])
    recipe = kitti_recipe(shared, workplace, "kitti", scenes, 'name = "oracle"\nsource = "points"')
    steps = ("pipeline run pack", "pipeline run label", "trainer pretrain", "trainer distill", "trainer predict")
    for step in steps:
        done = command(*step.split(), recipe)
        assert done.exit_code == 0, done.output
    assert command("trainer", "evaluate", recipe).exit_code == 0
    scores = json.loads((workplace / "runs" / "kitti" / "evaluate.json").read_text())
    assert (scores["split"], scores["frames"]) == ("val", 2)

    done = command("trainer", "submit", recipe)
    assert done.exit_code == 3 and "sequence 08 has 4071 frames, 2 are here" in done.stderr
    assert command("trainer", "submit", recipe, "--partial").exit_code == 0
    written = workplace / "runs" / "kitti" / "submission-val"
    iou = official_iou(written, shared / "data" / "semantickitti-real", ["000000", "000001"])
    assert scores["scores"]["all"]["iou"] == pytest.approx(iou, abs=1e-12)
    assert scores["scores"]["all"]["mean_iou"] == pytest.approx(sum(iou) / 19, abs=1e-12)
    assert min(iou) == 0 < max(iou), "a class that is absent counts as 0"


RAW_OF_CLASS = (
    *((10, 252), (11,), (15,), (18, 258), (13, 16, 20, 256, 257, 259), (30, 254), (31, 253), (32, 255), (40, 60)),
    *((44,), (48,), (49,), (50,), (51,), (70,), (71,), (72,), (80,), (81,)),
)
"""Raw labels of the 19 classes, as semantic-kitti.yaml fuses them, moving things with those that stand."""


def official_iou(written: Path, root: Path, scans: list[str]) -> list[float]:
    """Return IoU by class straight from the files of sequence 08, as evaluate_semantics.py of semantic-kitti-api
    defines it: points whose label is in no class do not count, and nothing in nothing is 0.
    """
    labels = [np.fromfile(root / f"sequences/08/labels/{scan}.label", "<u4") & 0xFFFF for scan in scans]
    answers = [np.fromfile(written / f"sequences/08/predictions/{scan}.label", "<u4") for scan in scans]
    truth, answer = np.concatenate(labels), np.concatenate(answers)
    counted = np.isin(truth, np.concatenate(RAW_OF_CLASS))
    truth, answer = truth[counted], answer[counted]
    iou = []
    for raw in RAW_OF_CLASS:
        is_so, said_so = np.isin(truth, raw), np.isin(answer, raw)
        either = np.count_nonzero(is_so | said_so)
        iou.append(np.count_nonzero(is_so & said_so) / either if either else 0.0)
    return iou


def test_semantic_kitti_goes_through_clip_and_flat_interaction(shared: Path, workplace: Path) -> None:
    """`encode`, `correct` and `vote` are no part of the test above; sequence 01 has few cars and no labels are read."""
    teacher = 'name = "clip_dense"\nmodel = "tiny"\nweights = "random:0"\nshort_side_px = 112'
    recipe = kitti_recipe(shared, workplace, "kitti_clip", "01\n", teacher, 'templates = "single"')
    for stage in ("pack", "correct", "vote"):
        done = command("pipeline", "run", stage, recipe)
        assert done.exit_code == 0, done.output
    tables = newest(Store.open(workplace / "store"), "kitti_clip").tables
    assert {"encode", "pairs", "target", "correct", "vote"} <= tables.keys() and "label" not in tables
