"""Documents as version 0.1 wrote them (tests/golden/documents.json): records read them and write the same again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from manifests.query import Ranking
from manifests.records.checkpoint import CheckpointRecord
from manifests.records.codec import as_document, as_record
from manifests.records.labels import ExportRecord, LabelsRecord
from manifests.records.table import Built, Computed, Predicted
from manifests.storage.documents import decode
from manifests.storage.manifest import Manifest, manifest_from
from manifests.storage.refs import ref_from
from manifests.storage.shards import sidecar_document, sidecar_from
from manifests.storage.store import Store

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "documents.json").read_text())
KINDS = {
    "checkpoint of pretrain": CheckpointRecord,
    "checkpoint of distill": CheckpointRecord,
    "labels": LabelsRecord,
    "export": ExportRecord,
    "ranking": Ranking,
}
MADE_BY = {"target": Built, "predict": Predicted, "refine": Computed}


def golden_manifest(stage: str) -> Manifest:
    document = GOLDEN[f"manifest of {stage}"]
    return manifest_from(document, stage, document["fingerprint"], "the manifest")


@pytest.mark.parametrize("name", KINDS)
def test_a_document_is_written_again_as_it_was_entry_after_entry(name: str) -> None:
    again = as_document(as_record(KINDS[name], GOLDEN[name]))
    assert json.dumps(again) == json.dumps(GOLDEN[name])


@pytest.mark.parametrize("stage", MADE_BY)
def test_a_manifest_is_written_again_as_it_was_and_names_its_folder(stage: str, tmp_path: Path) -> None:
    manifest, store = golden_manifest(stage), Store.open(tmp_path)
    assert manifest.identity.fingerprint == manifest.fingerprint
    store.write_manifest(manifest)
    path = tmp_path / stage / manifest.fingerprint / "manifest.json"
    assert decode(path.read_bytes(), "it") == GOLDEN[f"manifest of {stage}"]


@pytest.mark.parametrize("stage", MADE_BY)
def test_what_a_manifest_says_of_its_making_is_written_again_as_it_was(stage: str) -> None:
    how = golden_manifest(stage).how(MADE_BY[stage])
    assert how.finished and how.more == {} and as_document(how) == GOLDEN[f"manifest of {stage}"]["made"]


def test_a_student_that_predictions_remember_is_that_of_its_checkpoint() -> None:
    student = golden_manifest("predict").how(Predicted).student
    assert student is not None and student == as_record(CheckpointRecord, GOLDEN["checkpoint of distill"]).student


def test_a_sidecar_is_written_again_as_it_was() -> None:
    document = GOLDEN["sidecar"]
    place = document["stage"], document["fingerprint"]
    shard = sidecar_from(document, *place, f"{document['shard']}.{document['key']}.json", "the sidecar")
    assert sidecar_document(*place, shard) == document and shard.origin.packages


def test_a_ref_is_written_again_as_it_was(tmp_path: Path) -> None:
    ref, store = ref_from(GOLDEN["ref"], "the ref"), Store.open(tmp_path)
    store.write_ref(f"{ref.recipe}/{ref.key}", ref)
    (path,) = (tmp_path / "refs" / ref.recipe).iterdir()
    written = decode(path.read_bytes(), "it")
    assert {name: written[name] for name in GOLDEN["ref"]} == GOLDEN["ref"]
    assert store.expect_ref(f"{ref.recipe}/{ref.key}") == ref
    assert ref.asked is not None and ref.asked.tables["target"].fingerprint == ref.tables["target"].fingerprint
