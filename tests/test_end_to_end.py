"""The whole chain as a user types it, on real key frames: pack, pretrain, distill, predict, evaluate."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline.__main__ import app as pipeline
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
        teacher = f'name = "artifacts"\nfolder = "{shared / "golden" / "real_nuscenes" / "superpixels"}"'
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
        assert done.exit_code == 2 and "no labels to evaluate against" in done.stderr
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
