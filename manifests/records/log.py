"""The log of a run, `log.jsonl`: every start of it, and the numbers of its steps and epochs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from manifests.fingerprint import Settings
from manifests.records.codec import Unfit, as_record
from manifests.records.run import NumbersLine, StartLine


@dataclass(frozen=True)
class RunLog:
    """What a log holds, in the order of steps; `damage` says which line is none, empty where all are.

    A step or an epoch that was done again after an interruption counts as it went the last time.
    """

    starts: tuple[StartLine, ...]
    steps: tuple[NumbersLine, ...]
    epochs: tuple[NumbersLine, ...]
    damage: str


def run_log(lines: Iterable[Settings]) -> RunLog:
    """Return what the lines of a log say; those that are none of their kind are left out and told as damage."""
    starts: list[StartLine] = []
    steps: dict[int, NumbersLine] = {}
    epochs: dict[int, NumbersLine] = {}
    damage = ""
    for number, line in enumerate(lines, start=1):
        try:
            if line.get("event") == "start":
                starts.append(as_record(StartLine, line))
                continue
            numbers = as_record(NumbersLine, line)
        except Unfit as error:
            damage = damage or f"line {number}: {error}"
            continue
        if numbers.event == "step":
            steps[numbers.step] = numbers
        else:
            epochs[numbers.epoch] = numbers
    return RunLog(tuple(starts), _in_order(steps), _in_order(epochs), damage)


def _in_order(lines: Mapping[int, NumbersLine]) -> tuple[NumbersLine, ...]:
    return tuple(lines[number] for number in sorted(lines))
