"""Rows change only with a version, defaults too, and no stage or teacher reads what its identity does not hold.

What is measured, and how it is written down: tests/versions.py; on which inputs: tests/fixed_rows.py. Reading is
watched by tests/reads.py.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manifests import learnt
from manifests.config import ConfigError
from manifests.fingerprint import canonical, differences
from manifests.recipe import SECTION_CLASSES, Recipe
from manifests.sections.teachers.registry import TEACHER_SECTIONS
from manifests.stages import SPECS, fingerprint, identity
from pipeline.frame import Frame, FrameError
from tests.fixed_rows import VARIANTS, Rows, listed, rows_of_stage
from tests.pipeline.test_teachers import frame_of as teacher_frame
from tests.reads import Read, other_dictionaries, other_recipes, section_of, touched, value_of, with_value
from tests.versions import ENTERS, GOLDEN, Measured, compare, digest_of, measure, write

PLACES = {"root", "folder", "corrections"}
"""Settings that say where files lie: what is in them is known by digest (tests/pipeline/test_content.py)."""

LISTED = {"cameras", "split", "exclude", "lidar", "time_unit", "incomplete", "masks", "sweeps"}
"""Settings of [data] that say what is listed, and when: the listing is in the key of every shard."""

WITHOUT_OTHER = {
    "weights": "a file is known by its digest",
    "weights_sha256": "random weights have no file; a test below pins files",
    "weights_revision": "a commit of the hub that a digest goes with",
    "name": "picks the class of the section",
    "masks": "picks a part; the settings of others are refused",
    "features": "picks a part; the settings of others are refused",
    "text": "picks an encoder, which then has settings that none other takes",
    "artifacts": "finished maps as a member: files of their own, tried in tests/pipeline/test_ensemble.py",
    "augment": "words of its own, tried in tests/pipeline/test_views.py",
    "scored": "pairs of scores, tried in tests/pipeline/test_oracle_settings.py",
    "class_weights": "pairs of a class and a number, tried in tests/pipeline/test_ensemble.py",
}
"""Settings that have no other value while the rest of the section is as it is, and why that is well."""

HELD_BEFORE = {
    ("segment", "prompts renamed"): "FC-CLIP looks for names it was trained with; `text` holds the prompts",
    ("belief", "a class more"): "evidence in logarithms is shared among all classes; `group` holds how many there are",
}
"""What a stage reads of the class dictionary that is in the identity of a table which it needs, not in its own part."""

LAST_BITS = ("concepts_at_once",)
"""Settings of how much a network takes at once, which may move the last bits and nothing else."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return measure(tmp_path_factory.mktemp("versions"))


@pytest.fixture(scope="module")
def found(measured: Measured) -> dict[str, Any]:
    return measured.entries


def test_rows_and_defaults_are_those_of_their_versions(found: dict[str, Any]) -> None:
    differences = compare(json.loads(GOLDEN.read_text()), found)
    assert differences == [], "\n".join(map(str, differences))


def test_every_stage_and_teacher_and_every_section_of_a_table_is_measured(found: dict[str, Any]) -> None:
    assert found["stages"].keys() | {"encode"} == SPECS.keys()  # `encode` is that of teachers with networks
    assert {name.partition(":")[0] for name in found["teachers"]} == set(TEACHER_SECTIONS)
    assert (
        SECTION_CLASSES.keys() - {"data", "run", "predict", "refine", "evaluate", "calibrate", "labels"}
        == ENTERS.keys()
    )


def test_variants_take_the_branches_that_they_are_for(measured: Measured) -> None:
    # two are other from the vote on
    read = {name: "vote" if name in ("all classes", "what moves") else "group" for name in measured.stages}
    digests = [digest_of(measured.stages[name][1][stage]) for name, stage in read.items()]
    assert len(set(digests)) == len(digests)
    rows = {name: one[1] for name, one in measured.stages.items()}
    assert any(row.changed.any() for row in rows["all in one"]["vote"])
    assert any(row.thing.any() for row in rows["what moves"]["motion"])
    assert any(row.changed.any() for row in rows["last camera"]["correct"])
    assert any(row.occluded.any() for row in rows["default"]["project"])
    assert all(len(set(row.superpoint_view)) == 2 for row in rows["default"]["group"])


# -- what is said of a difference


@pytest.fixture
def before(found: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(found)


def said(before: dict[str, Any], now: dict[str, Any], path: Path) -> tuple[list[str], bool]:
    """What is said, and whether it may be written down."""
    path.write_text(json.dumps(before))
    return [str(one) for one in compare(before, now)], write(now, path) == []


def test_other_rows_without_a_version_are_refused_and_the_first_stage_is_named(
    found: dict[str, Any], before: dict[str, Any], tmp_path: Path
) -> None:
    for stage in ("group", "pairs", "target"):
        before["stages"][stage]["default"]["rows"] = "0" * 12
    sentence, writable = said(before, found, tmp_path / "versions.json")
    assert sentence == [
        "stage group (default) gives other rows, but is version 1 as before: raise SPECS['group'].version in "
        "manifests/stages.py, then run: python -m tests.versions --write"
    ]
    assert not writable
    assert json.loads((tmp_path / "versions.json").read_text()) == before


def test_other_rows_of_a_raised_version_are_written_down(
    found: dict[str, Any], before: dict[str, Any], tmp_path: Path
) -> None:
    for name, stage in before["stages"].items():
        for entry in stage.values():
            if "group" in entry["versions"]:
                entry["versions"]["group"] -= 1
                entry["rows"] = f"before {name}"
    sentences, writable = said(before, found, tmp_path / "versions.json")
    below = ("group", "vote", "correct", "pairs", "target", "belief")
    assert len(sentences) == (len(below) - 1) * len(VARIANTS) + 1  # `belief` in one variant
    assert all(one.split()[1] in below and "(group 0 -> 1)" in one for one in sentences)
    assert writable and compare(json.loads((tmp_path / "versions.json").read_text()), found) == []


def test_a_version_that_was_taken_back_is_refused(
    found: dict[str, Any], before: dict[str, Any], tmp_path: Path
) -> None:
    before["stages"]["label"]["default"]["versions"]["label"] = 2
    [sentence], writable = said(before, found, tmp_path / "versions.json")
    assert "lower than what was written down" in sentence and not writable


def test_other_numbers_of_a_network_are_told_and_rounding_is_not(
    found: dict[str, Any], before: dict[str, Any], tmp_path: Path
) -> None:
    numbers = before["teachers"]["san"]["numbers"]
    numbers["text"][1] += 1e-6
    assert compare(before, found) == []
    assert said(before, found, tmp_path / "versions.json") == ([], True)
    assert json.loads((tmp_path / "versions.json").read_text()) == before
    numbers["text"][1] += 0.01
    assert said(before, found, tmp_path / "versions.json") == (
        [
            "teacher san (text) gives other rows, but is version 2 as before: raise `version` in "
            "manifests/sections/teachers/san.py, then run: python -m tests.versions --write"
        ],
        False,
    )


def test_another_default_needs_a_version_and_a_new_setting_is_only_written_down(
    found: dict[str, Any], before: dict[str, Any], tmp_path: Path
) -> None:
    before["defaults"]["group"]["defaults"]["min_points"] = 2
    [sentence], writable = said(before, found, tmp_path / "versions.json")
    assert "min_points has another default, 2 -> 1" in sentence and "raise SPECS['group'].version" in sentence
    assert not writable
    before["defaults"]["group"]["versions"]["group"] -= 1
    assert said(before, found, tmp_path / "versions.json")[1]
    before["defaults"]["group"] = copy.deepcopy(found["defaults"]["group"])
    before["defaults"]["voxels"]["versions"]["training"] -= 1
    name = next(name for name, value in before["defaults"]["voxels"]["defaults"].items() if isinstance(value, float))
    before["defaults"]["voxels"]["defaults"][name] += 1.0
    [sentence], writable = said(before, found, tmp_path / "versions.json")
    assert sentence.endswith(
        "raise PREDICT_VERSION in manifests/labels.py and SIMILARITY_VERSION in manifests/labels.py, "
        "then run: python -m tests.versions --write"
    )
    before["defaults"]["voxels"] = copy.deepcopy(found["defaults"]["voxels"])
    del before["defaults"]["teacher composite"]["defaults"]["slic.side_px"]
    sentences, writable = said(before, found, tmp_path / "versions.json")
    assert sentences == ["[teacher composite] has a new setting `slic.side_px`; run: python -m tests.versions --write"]
    assert writable


# -- what is read, and what the identity holds


def cases(measured: Measured) -> Iterator[tuple[str, str, Recipe, Rows]]:
    """Every stage of every variant and example, with the recipe and the rows that it had."""
    for key, (recipe, rows) in {**measured.stages, **measured.teachers}.items():
        for stage in rows:
            yield key, stage, recipe, rows


def own_identity(recipe: Recipe, stage: str) -> str:
    """What of an identity a stage adds itself: it has to hold all that tells its rows from others of the same rows."""
    whole = identity(recipe, stage)
    return canonical({"settings": whole.settings, "needs": sorted(whole.needs)})


def same_identity(recipe: Recipe, other: Recipe, stage: str) -> bool:
    """Whether a stage takes two recipes for each other, where what it needs is the same; one that is refused is not."""
    try:
        return own_identity(other, stage) == own_identity(recipe, stage)
    except ConfigError:
        return False


def same_rows(recipe: Recipe, other: Recipe, stage: str, rows: Rows) -> bool | None:
    """Whether a stage makes the same rows of two recipes, from the same rows of other stages; None if it refuses."""
    if "index" in rows:
        frames = listed(recipe) if stage == "index" else [Frame.of(row) for row in rows["index"]]
    else:
        frames = [teacher_frame("FRONT", "SIDE")]
    try:
        made = rows_of_stage(recipe, stage, frames, rows, other)
    except (ConfigError, FrameError):
        return None
    return digest_of(made) == digest_of(rows[stage])


def unheld_settings(measured: Measured, only: tuple[str, ...] = ()) -> set[tuple[str, Read]]:
    """Settings that a stage reads, and of which another value leaves its identity as it is and changes its rows.

    Texts are names of things: the first other one that is not refused is tried, and of all else every value.
    """
    unheld, named = set(), set()
    for key, stage, recipe, rows in cases(measured):
        for read in measured.reads[key][stage]:
            if (only and (stage, read[1]) != only) or read[0].startswith("ontology") or read[1] in PLACES | LISTED:
                continue
            for other in other_recipes(recipe, read):
                name = (recipe.teacher.name, stage, read)
                if name in named or read[1] in LAST_BITS or not same_identity(recipe, other, stage):
                    continue
                same = same_rows(recipe, other, stage, rows)
                if same is False:
                    unheld.add((stage, read))
                elif same and isinstance(value_of(other, read), str):
                    named.add(name)
    return unheld


def unheld_dictionaries(measured: Measured, only: tuple[str, str] | None = None) -> set[tuple[str, str]]:
    """What of the class dictionary changes the rows of a stage and not its identity; `only` of a case and a stage."""
    unheld, known = set(), set()
    for key, stage, recipe, rows in cases(measured):
        reads = frozenset(read for read in measured.reads[key][stage] if read[0].startswith("ontology"))
        for name, dictionary in other_dictionaries(recipe.ontology).items():
            tried = (recipe.teacher.name, stage, reads, name)
            if (
                (only and (key, stage) != only)
                or not touched(name) & reads
                or (key in measured.teachers and tried in known)
            ):
                continue
            known.add(tried)
            other = dataclasses.replace(recipe, ontology=dictionary)
            if same_identity(recipe, other, stage) and same_rows(recipe, other, stage, rows) is False:
                held = (stage, name) in HELD_BEFORE and fingerprint(recipe, stage) != fingerprint(other, stage)
                unheld |= set() if held else {(stage, name)}
    return unheld


def test_every_setting_that_is_read_is_in_the_identity_or_changes_no_row(measured: Measured) -> None:
    assert unheld_settings(measured) == set()


def test_every_part_of_the_class_dictionary_that_changes_rows_is_in_the_identity(measured: Measured) -> None:
    assert unheld_dictionaries(measured) == set()


def test_every_setting_that_is_read_was_tried_with_another_value(measured: Measured) -> None:
    tried, untried = set[Read](), set[Read]()
    for key, stage, recipe, _ in cases(measured):
        for read in measured.reads[key][stage]:
            if read[0].startswith("ontology") or read[1] in WITHOUT_OTHER:
                continue
            one = (type(section_of(recipe, read)).__name__, read[1])
            (tried if any(True for _ in other_recipes(recipe, read)) else untried).add(one)
    assert untried - tried == set()
    assert len(tried) > 100


@pytest.mark.parametrize("example", ["catseg", "clip_dense", "fcclip", "san"])
def test_another_digest_of_weights_is_another_identity(measured: Measured, example: str) -> None:
    recipe, rows = measured.teachers[example]
    file: dict[str, Any] = {"weights": "/weights/one.pt", "weights_sha256": "1" * 64}
    file |= {"quick_gelu": True} if example == "clip_dense" else {}
    one = dataclasses.replace(recipe, teacher=dataclasses.replace(recipe.teacher, **file))
    other = with_value(one, ("teacher", "weights_sha256"), "2" * 64)
    moved = with_value(one, ("teacher", "weights"), "/elsewhere/two.pt")
    for stage in rows:
        assert fingerprint(one, stage) != fingerprint(other, stage)
        assert fingerprint(one, stage) == fingerprint(moved, stage)


def without(monkeypatch: pytest.MonkeyPatch, stage: str, *names: str) -> None:
    """Let a stage forget what of its settings enters its identity."""
    spec = SPECS[stage]

    def settings(recipe: Recipe) -> dict[str, Any]:
        return {key: value for key, value in spec.settings(recipe).items() if key not in names}

    monkeypatch.setitem(SPECS, stage, dataclasses.replace(spec, settings=settings))


@pytest.mark.parametrize(("stage", "name"), [("project", "cell_px"), ("group", "policy"), ("vote", "disputed")])
def test_a_setting_that_an_identity_forgets_is_found(
    measured: Measured, monkeypatch: pytest.MonkeyPatch, stage: str, name: str
) -> None:
    without(monkeypatch, stage, name)
    assert unheld_settings(measured, only=(stage, name)) == {(stage, (stage, name))}


@pytest.mark.parametrize(
    ("case", "stage", "content", "what"),
    [
        ("default", "label", "ontology", "raw labels"),
        ("default", "text", "groups", "groups renamed"),
        ("default", "group", "ontology", "fine classes of other classes"),
        ("noisy", "vote", "classes", "groups of another fine class"),
        ("last camera", "correct", "ground_classes", "ground"),
        ("fcclip", "segment", "thing_of_prompt", "things"),
    ],
)
def test_a_part_of_the_class_dictionary_that_an_identity_forgets_is_found(
    measured: Measured, monkeypatch: pytest.MonkeyPatch, case: str, stage: str, content: str, what: str
) -> None:
    without(monkeypatch, stage, content)
    assert (stage, what) in unheld_dictionaries(measured, only=(case, stage))


def test_a_run_of_another_version_of_training_is_not_that_of_the_recipe(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, _ = measured.stages["default"]
    before = learnt.settings_of(recipe, "distill")
    assert "version" not in before
    monkeypatch.setattr(learnt, "VERSION", 2)
    assert differences(before, learnt.settings_of(recipe, "distill")) == ["version: (default) -> 2"]
