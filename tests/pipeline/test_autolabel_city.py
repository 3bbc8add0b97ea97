"""One command from drives to label files, on the city with its labels hidden while they are made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.city.config import SIZES
from bench.city.generate import write_city
from manifests.ontology import load_ontology
from pipeline.__main__ import app as pipeline
from superpixels.metrics import Confusion, scores
from tests.pipeline.autolabelling import autolabel, command, label_files
from trainer.__main__ import app as trainer

ROOT = Path(__file__).resolve().parents[2]


def test_the_files_score_as_evaluate_says_of_the_table_to_the_last_digit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The city's labels are hidden while it is labelled, and shown to the test afterwards."""
    here = tmp_path
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    city = here / "data" / "city"
    write_city(city, SIZES["tiny"])
    tables = city / SIZES["tiny"].version
    (tables / "lidarseg.json").rename(here / "hidden.json")
    (here / "mine.toml").write_text(
        """
        base = "city"
        [pretrain]
        epochs = 1
        [distill]
        epochs = 2
        [network]
        engine = "torch"
        [run]
        device = "cpu"
        pool = "inline"
        """
    )
    done = autolabel("mine.toml")
    assert done.returncode == 0, done.stderr
    assert "autolabel: pack, pretrain, distill, predict, refine, labels, report; " in done.stdout
    labels = label_files(here / "labels" / "mine")
    record = json.loads((here / "labels/mine/labels.json").read_bytes())
    assert record["weights"] and record["identity"]["tables"].keys() == {"index", "points", "refine"}

    (here / "hidden.json").rename(tables / "lidarseg.json")
    command(pipeline, "run", "pack,label", "mine.toml")
    said = command(trainer, "evaluate", "mine.toml", "--refine", "vote+afi").output
    assert "refine: prediction by vote+afi: 0 shards computed, 1 were there" in said, "it scores the table of before"
    scored = json.loads((here / "runs/mine/evaluate-vote-afi.json").read_bytes())["scores"]["all"]

    kit = {row["token"]: row for row in json.loads((tables / "sample_data.json").read_bytes())}
    truth = {
        kit[row["sample_data_token"]]["sample_token"]: np.fromfile(city / row["filename"], np.uint8)
        for row in json.loads((tables / "lidarseg.json").read_bytes())
    }
    ontology = load_ontology("nuscenes")
    counts = Confusion(len(ontology.classes) - 1)
    for frame, label in labels.items():
        counts.add(ontology.class_of_raw_labels(truth[frame]), label)
    assert scored["mean_iou"] == scores(counts).mean_iou
    assert scored["points"] == scores(counts).n_points > 0
