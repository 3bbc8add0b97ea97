"""Documents and their records: read back as they were written, and refused where they are none of their kind."""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.records.codec import REST, Unfit, as_document, as_record
from manifests.records.evaluation import EvaluationRecord, JudgedEvaluation
from manifests.records.log import run_log
from manifests.records.run import Ancestor, NumbersLine, RunRecord, StartLine
from manifests.storage.sealed import Damaged, read_as, write_sealed
from tests.records import NOW, epoch_line, evaluation, hardware, refined, run_record, start_line


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Something within a document."""

    count: int
    word: Literal["one", "two"] = "one"


@dataclass(frozen=True, kw_only=True)
class Outer:
    """A document with a field of every kind."""

    name: str
    share: float | None
    inner: Inner
    several: tuple[Inner, ...] = ()
    pair: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    again: "Outer | None" = None
    others: Mapping[str, bool] = field(default_factory=dict, metadata=REST)


INNER = st.builds(Inner, count=st.integers(), word=st.sampled_from(["one", "two"]))
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.text(min_size=1).filter(lambda name: name not in Outer.__dataclass_fields__)
OUTER = st.builds(
    Outer,
    name=st.text(),
    share=st.none() | NUMBERS,
    inner=INNER,
    several=st.lists(INNER, max_size=2).map(tuple),
    pair=st.dictionaries(st.text(), st.lists(NUMBERS, max_size=2).map(tuple), max_size=2),
    again=st.none() | st.builds(Outer, name=st.text(), share=st.none(), inner=INNER, others=st.just({})),
    others=st.dictionaries(NAMES, st.booleans(), max_size=2),
)


@given(OUTER)
def test_what_was_written_is_read_back(record: Outer) -> None:
    assert as_record(Outer, json.loads(json.dumps(as_document(record)))) == record


def test_what_has_no_default_is_written_and_what_does_not_apply_is_not() -> None:
    document = as_document(Outer(name="a", share=None, inner=Inner(count=1), others={"open": True}))
    inner = {"count": 1, "word": "one"}
    assert document == {"name": "a", "share": None, "inner": inner, "several": [], "pair": {}, "open": True}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": 3}, "its `name` is 3; expected str"),
        ({"share": "much"}, "its `share` is 'much'; expected float"),
        ({"share": float("nan")}, "its `share` is nan; expected float"),
        ({"share": True}, "its `share` is True; expected float"),
        ({"inner": {"count": True}}, "its `inner.count` is True; expected int"),
        ({"inner": {"count": 1, "word": "three"}}, "its `inner.word` is 'three'; expected 'one' or 'two'"),
        ({"inner": {}}, "it lacks `inner.count`"),
        ({"inner": {"count": 1, "cuont": 1}}, "it holds `inner.cuont`, which no such document does"),
        ({"inner": [1]}, "its `inner` is [1]; expected an object"),
        ({"several": {"count": 1}}, "its `several` is {'count': 1}; expected a list"),
        ({"several": [{"count": 1}, {"count": None}]}, "its `several[1].count` is None; expected int"),
        ({"pair": {"a": [0.5, "b"]}}, "its `pair.a[1]` is 'b'; expected float"),
        ({"again": {"name": "a"}}, "it lacks `again.inner`"),
        ({"anything": "else"}, "its `others.anything` is 'else'; expected bool"),
        ({"name": "a" * 99 + "b", "share": "a" * 99}, f"its `share` is '{'a' * 59}...; expected float"),
    ],
)
def test_what_is_no_such_document_is_told_by_place_and_value(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unfit) as found:
        as_record(Outer, {"name": "a", "share": 0.5, "inner": {"count": 1}, **changes})
    assert str(found.value) == reason


DOCUMENTS: dict[type[Any], Callable[[], dict[str, Any]]] = {
    EvaluationRecord: lambda: evaluation(refine=refined("vote+afi", all=3), weights="feed", step=None),
    JudgedEvaluation: lambda: evaluation(labels="read", also_trained_on=["scene-0061"]),
    StartLine: lambda: start_line(hardware=hardware(), initial={"file": "a.pt", "initial": {"file": "b.pt"}}),
    NumbersLine: lambda: epoch_line(1, 2.5, lr_head=0.1),
    RunRecord: lambda: run_record(evaluations={"evaluate": evaluation()}, curves=[epoch_line(1, 2.5)]),
}


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_a_document_on_the_disk_is_whole_or_damaged(kind: type[Any], tmp_path: Path) -> None:
    document, path = DOCUMENTS[kind](), tmp_path / "one.json"
    write_sealed(path, document)
    record = read_as(kind, path)
    write_sealed(path, as_document(record))
    assert read_as(kind, path) == record
    needed = [item.name for item in fields(kind) if MISSING is item.default is item.default_factory]
    assert needed and set(needed) - {"values"} <= document.keys()
    for name in set(needed) - {"values"}:
        write_sealed(path, {other: value for other, value in document.items() if other != name})
        with pytest.raises(Damaged, match=f"it lacks `{name}`"):
            read_as(kind, path)


def test_a_log_counts_a_step_as_it_went_the_last_time_and_names_what_is_no_line() -> None:
    lines = [
        start_line(),
        {"event": "step", "time": NOW, "epoch": 1, "step": 10, "total": 9.0},
        epoch_line(1, 5.0),
        start_line(epoch=1, batch=2),
        epoch_line(1, 4.0),
        epoch_line(2, 3.0, lr_head="much"),
    ]
    log = run_log(lines)
    assert [start.epoch for start in log.starts] == [0, 1] and [line.values["total"] for line in log.epochs] == [4.0]
    assert log.steps[0].losses == {"total": 9.0} and log.steps[0].seconds is None
    assert log.epochs[0].rates == {"head": 0.1, "trunk": 0.2}
    assert log.damage == "line 6: its `values.lr_head` is 'much'; expected float"


def test_a_record_from_before_steps_were_told_is_read() -> None:
    """As versions up to 0.9 wrote it."""
    result = {"file": "e", "sha256": "0", "weights": "feed", "epoch": 2, "chosen": "the last epoch"}
    first = {name: value for name, value in epoch_line(1, 2.5).items() if name not in ("event",)}
    old = {name: value for name, value in run_record(result=result, curves=[first], format=1).items()}
    del old["log"], old["unreadable"]
    found = as_record(RunRecord, old)
    assert found.result and found.result.step is None and found.log is None and found.curves[0].event == "epoch"


def test_a_checkpoint_of_a_checkpoint_is_described_alike() -> None:
    found = as_record(Ancestor, {"file": "a", "task": "distill", "initial": {"file": "b", "task": "pretrain"}})
    assert found.initial and found.initial.task == "pretrain" and found.initial.initial is None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A document with pairs of fixed length, as those of coverage and risk are."""

    risk: tuple[tuple[float, float], ...] = ()


def test_pairs_of_fixed_length_are_read_back_and_others_refused() -> None:
    curve = Curve(risk=((0.5, 0.1), (1.0, 0.3)))
    assert as_record(Curve, json.loads(json.dumps(as_document(curve)))) == curve
    with pytest.raises(Unfit, match=r"its `risk\[1\]` is \[1.0\]; expected a list of 2"):
        as_record(Curve, {"risk": [[0.5, 0.1], [1.0]]})
    with pytest.raises(Unfit, match=r"its `risk\[0\]\[1\]` is 'x'"):
        as_record(Curve, {"risk": [[0.5, "x"]]})
