"""The ladder: its plan, what is run again and what is not, and what its scores come to."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

import bench.ladder as ladder_program
from bench.ladder import Ladder, Processes, StepFailed, locked, read_seeds
from bench.ladder_plan import PLAIN, Plan, chosen, read_rungs, steps_of
from bench.ladder_results import BEGIN, END, Gain, Spread, between_markers, gain, table, write_documents
from manifests.asked import tables_of
from manifests.config import ConfigError, read_recipe
from manifests.fingerprint import digest
from manifests.recipe import load_recipe
from manifests.storage.refs import TableRef
from manifests.storage.store import Store
from tests.refs import newest, put_ref

RUNGS = """
[rung.group]
part = "Labels"
title = "as they are"
task = "labels"

[rung.vote]
part = "Labels"
title = "voted"
task = "labels"
after = "group"
against = "group"
set.target.labels = "vote"

[rung.start]
task = "pretrain"

[rung.plain]
part = "Students"
title = "plain"
task = "distill"

[rung.best]
part = "Students"
title = "best"
task = "distill"
labels = "vote"
after = "start"
against = "plain"
refine.afi = { title = "best, corrected", against = "best" }

[rung.second]
part = "Students"
title = "best, four views"
task = "predict"
labels = "vote"
after = "best"
against = "best"
set.predict.views = 4

[rung.few]
part = "Few labels"
title = "few"
task = "finetune"
after = "best"
set.finetune = { every_scan = 100 }
"""


class Machine:
    """Stands in for the processes: leaves the files that the pipeline and the trainer would leave."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.calls: list[str] = []
        self.broken: set[str] = set()
        self.miou = 0.5

    def __call__(self, arguments: Sequence[str], log: Path) -> tuple[int, float]:
        program, what, recipe = arguments[0], arguments[1], Path(next(a for a in arguments if a.endswith(".toml")))
        name = recipe.stem.removeprefix("san_like-")
        call = " ".join([name, what, *arguments[3:]]) if program == "trainer" else f"{name} labels"
        self.calls.append(call)
        if call in self.broken:
            log.write_text("a bar of progress\nout of memory\n")
            return 1, 0.5
        sections = read_recipe(recipe).sections
        folder = Path(str(sections["run"]["runs"])) / recipe.stem
        if program == "pipeline":
            labels = digest(sections.get("target", {}).get("labels", "group"))
            tables = {stage: TableRef(stage, labels, ()) for stage in ("points", "target", "label")}
            put_ref(self.store, load_recipe(recipe), tables)
        elif what == "evaluate":
            task, refine = sections.get("predict", {}).get("of", "distill"), arguments[-1].partition("refine=")[2]
            middle = "-pseudo" if "--of" in arguments else "" if task == "distill" else f"-{task}"
            score = {"mean_iou": self.miou, "iou": [self.miou], "calibration_error": None, "augrc": 0.2}
            scores = {part: score for part in ("all", "seen", "unseen")}
            document = {"classes": ["car"], "scores": scores}
            if refine not in ("", PLAIN):
                document["scores_before"] = {part: {"mean_iou": 0.25, "iou": [0.25]} for part in scores}
            tail = f"-{refine}" if refine not in ("", PLAIN) else ""
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"evaluate{middle}{tail}.json").write_text(json.dumps(document))
        elif what != "predict":
            (folder / what).mkdir(parents=True, exist_ok=True)
            training = {
                "curves": [{"seconds": 2.0}, {"seconds": 1.0}],
                "epochs": 2,
                "frames": {"number": 4},
                "result": {"weights": f"{name} {sections[what]}"},
                "commit": "abc",
                "device": "cpu",
                "hardware": {"processor": "a processor", "threads": 1},
            }
            (folder / what / "run.json").write_text(json.dumps(training))
        return 0, 1.5


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "rungs.toml").write_text(RUNGS)
    rungs = read_rungs(tmp_path / "rungs.toml")
    return Plan("san_like", tmp_path / "runs", rungs, (f"run.store={tmp_path / 'store'}",))


def prepared(plan: Plan, seeds: Sequence[int] = (0,), machine: Machine | None = None) -> tuple[Ladder, Machine]:
    ladder = Ladder.prepare(plan, seeds, Console(quiet=True))
    machine = machine or Machine(ladder.store)
    ladder.launch = machine
    return ladder, machine


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_the_rungs_that_come_with_it_are_whole() -> None:
    rungs = read_rungs()
    parts = [line.part for rung in rungs.values() for line in rung.lines()]
    assert len(dict.fromkeys(parts)) == 1 + sum(one != other for one, other in itertools.pairwise(parts))
    titles = [(line.part, line.title) for rung in rungs.values() for line in rung.lines()]
    assert len(set(titles)) == len(titles)
    plan = Plan("san_like", Path("runs"), rungs)
    for step in steps_of(rungs, [0]).values():
        assert plan.sections(step)["data"]["root"] == "data/city_bench"


@pytest.mark.parametrize(
    ("changed", "to", "words"),
    [
        ('after = "start"', 'aftre = "start"', "rung best has no `aftre` (did you mean `after`?); it has"),
        ('task = "pretrain"', 'task = "pretend"', "rung start has task 'pretend'; there are"),
        ('after = "best"', 'after = "bset"', "rung second needs rung bset, and there is none"),
        ('after = "best"', 'after = "start"', "rung second predicts with what no rung has trained to; name one in"),
        ('against = "plain"', 'against = "plane"', "best is compared with plane, and there is no such line"),
        ('labels = "vote"\nafter', 'labels = "plain"\nafter', "rung best learns the labels of plain, which makes none"),
    ],
)
def test_a_rung_that_is_not_right_is_a_sentence(tmp_path: Path, changed: str, to: str, words: str) -> None:
    path = tmp_path / "rungs.toml"
    path.write_text(RUNGS.replace(changed, to, 1))
    with pytest.raises(ConfigError) as caught:
        read_rungs(path)
    assert words in str(caught.value)


def test_what_is_asked_for_brings_what_it_needs(plan: Plan) -> None:
    assert chosen(plan.rungs, []) == set(plan.rungs)
    assert chosen(plan.rungs, ["vote"]) == {"group", "vote"}
    assert chosen(plan.rungs, ["second"]) == {"group", "vote", "start", "best", "second"}
    with pytest.raises(ConfigError, match=r"--only names rung beast, and there is none \(did you mean `best`\?\)"):
        chosen(plan.rungs, ["beast"])


def test_a_recipe_says_all_that_a_rung_is(plan: Plan) -> None:
    step = steps_of(plan.rungs, [3])["best_s3"]
    plan.write_recipe(step)
    sections = read_recipe(plan.recipe_path(step)).sections
    assert {name: dict(values) for name, values in sections.items()} == plan.sections(step)
    assert sections["distill"]["seed"] == 3
    assert sections["distill"]["init"] == str(plan.folder / "runs" / "san_like-start_s3" / "pretrain")
    assert sections["distill"]["epochs"] == read_recipe("san_like").sections["distill"]["epochs"]
    plain = plan.sections(steps_of(plan.rungs, [3])["plain_s3"])
    assert plain["distill"]["init"] == "", "the preset starts from its pre-training"
    second = plan.sections(steps_of(plan.rungs, [3])["second_s3"])
    assert second["predict"]["checkpoint"] == str(plan.folder / "runs" / "san_like-best_s3" / "distill")
    assert second["predict"]["of"] == "distill" and second["predict"]["views"] == 4


def test_what_was_learnt_depends_on_its_own_settings(plan: Plan) -> None:
    def digests(rung: str, *overrides: str) -> tuple[str, str]:
        changed = Plan(plan.preset, plan.folder, plan.rungs, (*plan.overrides, *overrides))
        step = steps_of(plan.rungs, [0])[rung]
        return changed.learnt(step, changed.sections(step)), changed.whole(step, changed.sections(step))

    learnt, whole = digests("best_s0")
    assert digests("best_s0") == (learnt, whole)
    assert digests("best_s0", "distill.epochs=9")[0] != learnt
    assert digests("best_s0", "voxels.size_m=0.3")[0] != learnt
    assert digests("best_s0", "finetune.epochs=9") == (learnt, whole)
    judged = digests("best_s0", "correct.k=9")
    assert judged[0] == learnt and judged[1] != whole
    assert digests("vote", "vote.voxel_m=0.3")[0] != digests("vote")[0]


@pytest.mark.parametrize("text", ["", "0,x", "1,1", "-1"])
def test_seeds_are_different_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match="expected different numbers"):
        read_seeds(text)
    assert read_seeds("2,0") == [2, 0]


# -- doing it ----------------------------------------------------------------------------------------------------------


def test_all_rungs_are_made_in_order_and_once(plan: Plan) -> None:
    ladder, machine = prepared(plan, (0, 1))
    assert ladder.climb(list(ladder.steps), jobs=1) == {}
    assert machine.calls[:4] == [
        "group labels",
        "group evaluate --of pseudo",
        "vote labels",
        "vote evaluate --of pseudo",
    ]
    best = [call for call in machine.calls if call.startswith("best_s1")]
    assert best[:3] == ["best_s1 distill", "best_s1 predict", "best_s1 evaluate --set evaluate.refine=afi"]
    assert machine.calls.index("start_s1 pretrain") < machine.calls.index("best_s1 distill")
    assert not any(call.startswith("start_s0 predict") for call in machine.calls), "weights alone have no score"
    second = [call for call in machine.calls if call.startswith("second_s0")]
    assert second == ["second_s0 predict", "second_s0 evaluate --set evaluate.refine=none"], "it trains nothing"
    assert machine.calls.index("best_s0 distill") < machine.calls.index("second_s0 predict")
    best_recipe = load_recipe(ladder.plan.recipe_path(ladder.steps["best_s0"]))
    assert tables_of(ladder.store, best_recipe, ["target"]).table("target").fingerprint == digest("vote")

    record = ladder.record(ladder.steps["best_s0"])
    assert record["scores"][PLAIN]["all"]["mean_iou"] == 0.25 and record["scores"]["afi"]["all"]["iou"] == {"car": 0.5}
    assert record["scores"]["afi"]["all"]["augrc"] == 0.2 and "calibration_error" not in record["scores"]["afi"]["all"]
    assert record["training"]["seconds"] == 3.0 and record["cpu_s"] == 4.5 and record["done"] is True
    assert 'init = "' in record["recipe"]

    again, _ = prepared(plan, (0, 1), machine)
    machine.calls.clear()
    assert again.climb(list(again.steps), jobs=2) == {} and machine.calls == []
    assert again.climb(["group"], jobs=1, again=True) == {} and len(machine.calls) == 2


def test_what_needs_a_step_that_is_done_runs_beside_another(plan: Plan) -> None:
    ladder, machine = prepared(plan)
    ladder.climb(list(ladder.steps), jobs=2)
    for name in ("plain_s0", "few_s0"):  # few_s0 needs best_s0, which is ready at the same time as plain_s0, and done
        ladder.record_path(ladder.steps[name]).unlink()
    both = threading.Barrier(2)

    def launch(arguments: Sequence[str], log: Path) -> tuple[int, float]:
        if arguments[1] in ("distill", "finetune"):
            both.wait(timeout=60)
        return machine(arguments, log)

    ladder.launch = launch
    assert ladder.climb(list(ladder.steps), jobs=2) == {} and not both.broken


def test_a_rung_that_fails_holds_up_only_what_needs_it(plan: Plan) -> None:
    ladder, machine = prepared(plan)
    machine.broken = {"best_s0 predict"}
    failed = ladder.climb(list(ladder.steps), jobs=2)
    assert set(failed) == {"best_s0", "second_s0", "few_s0"}
    assert "ended with 1: out of memory; log:" in failed["best_s0"]
    assert failed["few_s0"] == "few_s0: needs best_s0"
    assert ladder.state(ladder.steps["best_s0"]) == "begun" and ladder.state(ladder.steps["plain_s0"]) == "done"
    assert set(ladder.done_records()) == {"group", "vote", "start_s0", "plain_s0"}

    machine.broken.clear()
    machine.calls.clear()
    ladder, _ = prepared(plan, machine=machine)
    assert ladder.climb(list(ladder.steps), jobs=2) == {}
    assert machine.calls[0] == "best_s0 distill", "which goes on where it was, and is not told to begin afresh"
    assert not any(call.startswith(("plain", "start", "group")) for call in machine.calls)
    assert ladder.record(ladder.steps["best_s0"])["cpu_s"] == 1.5 + 0.5 + 4.5, "what the first try cost counts"


def test_what_changed_is_made_anew_and_so_is_what_started_from_it(plan: Plan) -> None:
    ladder, machine = prepared(plan)
    ladder.climb(list(ladder.steps), jobs=1)
    changed = Plan(plan.preset, plan.folder, plan.rungs, (*plan.overrides, "pretrain.epochs=9"))
    ladder, _ = prepared(changed, machine=machine)
    states = {name: ladder.state(step) for name, step in ladder.steps.items()}
    assert states["start_s0"] == "out of date" and states["plain_s0"] == states["group"] == "done"

    machine.calls.clear()
    assert ladder.climb(list(ladder.steps), jobs=1) == {}
    assert machine.calls[0] == "start_s0 pretrain --fresh"
    assert "best_s0 distill --fresh" in machine.calls, "its start has other weights"
    assert not any(call.startswith(("plain", "group", "vote")) for call in machine.calls)

    labels = load_recipe(changed.recipe_path(ladder.steps["group"]))
    tables = dict(newest(machine.store, "san_like-group").tables)
    put_ref(machine.store, labels, tables | {"target": TableRef("target", digest("other"), ())})
    assert ladder.state(ladder.steps["plain_s0"]) == "out of date", "its labels were made anew"


def test_one_ladder_works_in_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ConfigError, match="another ladder works in"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_process_leaves_its_log_its_status_and_its_time(tmp_path: Path) -> None:
    processes = Processes()
    status, cpu_s = processes(["no_such_module"], tmp_path / "log")
    assert status == 1 and 0 < cpu_s < 10 and not processes.running
    text = (tmp_path / "log").read_text()
    assert text.startswith("\n$ python -m no_such_module\n") and "No module named no_such_module" in text


def test_what_runs_is_stopped_with_the_ladder(tmp_path: Path) -> None:
    processes, found = Processes(), []
    arguments = ["timeit", "-n1", "-r1", "__import__('time').sleep(600)"]
    thread = threading.Thread(target=lambda: found.append(processes(arguments, tmp_path / "log")))
    thread.start()
    while not processes.running:
        time.sleep(0.01)
    processes.stop()
    thread.join(60)
    assert found[0][0] < 0, "ended by a signal"
    assert processes(arguments, tmp_path / "log")[0] < 0, "and nothing runs on that was started too late"


def test_an_interrupted_ladder_keeps_what_is_done(plan: Plan) -> None:
    ladder, machine = prepared(plan)

    def interrupted(arguments: Sequence[str], log: Path) -> tuple[int, float]:
        if arguments[1] == "pretrain":
            raise KeyboardInterrupt
        return machine(arguments, log)

    ladder.launch = interrupted
    with pytest.raises(KeyboardInterrupt):
        ladder.climb(list(ladder.steps), jobs=1)
    ladder, _ = prepared(plan, machine=machine)
    assert set(ladder.done_records()) == {"group", "vote"}
    assert ladder.state(ladder.steps["start_s0"]) == "begun"


def test_the_program_ends_with_what_happened(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder_program, "read_rungs", lambda path: plan.rungs)
    machine = Machine(Store.open(tmp_path / "store"))

    def prepare(*arguments: Any) -> Ladder:
        ladder = Ladder(*arguments)
        ladder.launch = machine
        return ladder

    original = Ladder.prepare.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(ladder_program.Ladder, "prepare", classmethod(lambda cls, *given: original(prepare, *given)))
    app = typer.Typer()
    app.command()(ladder_program.main)

    def run(*words: str) -> Any:
        places = ["--runs", str(tmp_path / "all"), "--docs", str(tmp_path / "docs"), "--set", plan.overrides[0]]
        return CliRunner().invoke(app, [*places, "--seeds", "0", *words])

    listed = run("--list")
    assert listed.exit_code == 0 and "to do        best_s0" in listed.output and machine.calls == []
    assert run("--only", "beast").exit_code == 2
    assert run("--preset", "sun_like").exit_code == 2

    machine.broken = {"few_s0 finetune"}
    first = run()
    assert first.exit_code == 1 and "not done: few_s0" in first.output
    assert "few" not in json.loads((tmp_path / "docs" / "ladder.json").read_text())["presets"]["san_like"]["steps"]
    machine.broken.clear()
    last = run()
    assert last.exit_code == 0 and "| few |" in (tmp_path / "docs" / "results.md").read_text()
    with locked(tmp_path / "all" / "san_like"):
        assert run().exit_code == 2


# -- what it comes to --------------------------------------------------------------------------------------------------


def record_of(rung: str, seed: int | None, **miou: float) -> dict[str, Any]:
    scores = {
        refine.replace("_", "+"): {
            "all": {"mean_iou": value},
            "seen": {"mean_iou": value},
            "unseen": {"mean_iou": None},
        }
        for refine, value in miou.items()
    }
    record = {"rung": rung, "seed": seed, "scores": scores, "commit": "abc", "date": "2026-11-26T00:00:00+00:00"}
    return record | {"cpu_s": 3600.0, "training": None if seed is None else {"seconds": 200.0}}


RECORDS = {
    "group": record_of("group", None, none=0.5),
    "vote": record_of("vote", None, none=0.6),
    "plain_s0": record_of("plain", 0, none=0.40),
    "plain_s1": record_of("plain", 1, none=0.42),
    "best_s0": record_of("best", 0, none=0.45, afi=0.44),
    "best_s1": record_of("best", 1, none=0.41, afi=0.46),
    "best_s2": record_of("best", 2, none=0.90, afi=0.90),
}


def test_spread_and_gain_are_those_of_the_hand() -> None:
    assert str(Spread.of([40.0, 42.0])) == "41.00 ± 1.41" and str(Spread.of([40.0])) == "40.00"
    assert Spread.of([]) is None
    paired = gain({0: 45.0, 1: 41.0, 2: 90.0}, {0: 40.0, 1: 42.0})
    assert paired == Gain(2.0, 1, 2), "+5 and -1; seed 2 has no pair"
    assert str(paired) == "+2.00 (1 of 2)"
    assert gain({None: 60.0}, {None: 50.0}) == Gain(10.0, 1, 1)
    assert gain({0: 45.0, 1: 41.0}, {None: 42.0}) == Gain(1.0, 1, 2), "labels have no seed"
    assert gain({0: 45.0}, {1: 40.0}) is None


def test_the_table_names_the_line_that_a_gain_is_over(plan: Plan) -> None:
    rows = table(plan.rungs, RECORDS).splitlines()
    assert rows[2] == "| | **Labels** | | | | | | |"
    assert rows[3] == "| 1 | as they are | 50.00 | 50.00 | – |  |  | none |"
    assert rows[4] == "| 2 | voted | 60.00 | 60.00 | – | +10.00 (1 of 1) | 1 | none |"
    assert rows[6] == "| 3 | plain | 41.00 ± 1.41 | 41.00 ± 1.41 | – |  |  | 2 |"
    assert rows[7].startswith("| 4 | best | 58.67 ± ") and rows[7].endswith("| +2.00 (1 of 2) | 3 | 3 |")
    assert rows[8].startswith("| 5 | best, corrected | 60.00 ±") and rows[8].endswith("| +1.33 (1 of 3) | 4 | 3 |")
    assert len(rows) == 9, "what has no score has no row"


def test_what_the_confidence_is_worth_has_columns_where_it_was_measured(plan: Plan) -> None:
    worth = {"calibration_error": 0.125, "augrc": 0.25}
    measured = {"all": {"mean_iou": 0.5, **worth}, "seen": {"mean_iou": 0.5}, "unseen": {"mean_iou": None}}
    rows = table(plan.rungs, RECORDS | {"group": RECORDS["group"] | {"scores": {"none": measured}}}).splitlines()
    assert rows[0].endswith("| over | calibration error | AUGRC | seeds |") and rows[1].count("|") == 11
    assert rows[2] == "| | **Labels** | | | | | | | | |"
    assert rows[3] == "| 1 | as they are | 50.00 | 50.00 | – |  |  | 12.50 | 25.00 | none |"
    assert rows[4].endswith("| 1 | – | – | none |"), "scored before it was"


def test_words_around_the_table_and_other_presets_are_kept(plan: Plan, tmp_path: Path) -> None:
    numbers, picture, page = write_documents(tmp_path, "san_like", [], plan.rungs, RECORDS)
    page.write_text(f"Before.\n{page.read_text()}After.\n")
    write_documents(tmp_path, "fcclip_like", ["distill.epochs=9"], plan.rungs, {"group": RECORDS["group"]})
    text = page.read_text()
    assert text.startswith("Before.\n") and text.endswith("After.\n") and text.count("### Preset") == 2
    assert "`make ladder ARGS='--preset fcclip_like --set distill.epochs=9'`" in text
    assert "7.0 CPU hours, the longest training 200 s" in text and "**synthetic city**" in text
    assert set(json.loads(numbers.read_text())["presets"]) == {"san_like", "fcclip_like"}
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert write_documents(tmp_path, "catseg_like", [], plan.rungs, {}) == [] and page.read_text() == text
    anew = {"group": {**RECORDS["group"], "seconds": 1.0}}
    write_documents(tmp_path, "san_like", [], plan.rungs, anew)
    assert json.loads(numbers.read_text())["presets"]["san_like"]["steps"] == {**RECORDS, **anew}
    write_documents(tmp_path, "san_like", ["distill.epochs=9"], plan.rungs, anew)
    assert json.loads(numbers.read_text())["presets"]["san_like"]["steps"] == anew, "other settings, another ladder"


@pytest.mark.parametrize("text", ["nothing", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{END}{END}", f"{BEGIN}{BEGIN}{END}"])
def test_a_page_without_its_markers_is_not_written_over(text: str) -> None:
    with pytest.raises(ConfigError, match="needs the two lines"):
        between_markers(text, "a table")


def test_a_command_that_fails_is_named(plan: Plan) -> None:
    ladder, machine = prepared(plan)
    machine.broken = {"group labels"}
    with pytest.raises(StepFailed, match=r"`python -m pipeline run pack,label .*group\.toml` ended with 1"):
        ladder.do(ladder.steps["group"])
