"""The ladder's plan: rungs as data, what needs what, the recipe of every training, and what makes it out of date."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manifests.config import RECIPES, ConfigError, find_recipe, listing, nearest, parse_override, read_recipe
from manifests.fingerprint import digest

LADDER = Path(__file__).with_name("ladder.toml")
BEDS: Mapping[str, tuple[Path, str]] = {
    "city": (LADDER, "san_like"),
    "kitti-real": (LADDER.with_name("ladder_real.toml"), "kitti_real"),
}
"""What the ladder is climbed on: its rungs, and the preset that is meant where none is named."""
PLAIN = "none"
"""What `evaluate.refine` is called where nothing happens to predictions."""

TRAINED = ("pretrain", "distill", "probe", "finetune", "supervised")
STARTS = ("distill", "probe", "finetune")
"""Tasks whose section says where weights start. Task "predict" trains nothing: it predicts otherwise with another's."""

KEYS = ("part", "title", "task", "labels", "after", "against", "set", "refine")
NETWORK = ("data", "voxels", "network", "augment")
READS: Mapping[str, Sequence[str]] = {
    "labels": ("data", "teacher", "project", "text", "segment", "group", "vote", "correct", "target"),
    **{task: (*NETWORK, task) for task in TRAINED},
    "predict": (*NETWORK, "predict"),
}
"""The sections that the result of a task depends on."""

JUDGED_BY = ("correct", "vote", "predict", "evaluate")
TABLES: Mapping[str, Sequence[str]] = {
    "labels": ("points", "pairs", "target", "label"),
    "pretrain": ("points", "pairs", "text"),
    **{task: ("points", "target", "label") for task in (*TRAINED[1:], "predict")},
}


@dataclass(frozen=True)
class Line:
    """One line of results: predictions of a rung, refined in some way, and the line its gain is counted from."""

    name: str
    part: str
    title: str
    refine: str
    against: str


@dataclass(frozen=True)
class Rung:
    """One training, or one kind of labels; the keys of bench/ladder.toml say what is what."""

    name: str
    task: str
    part: str = ""
    title: str = ""
    labels: str = "group"
    after: str = ""
    against: str = ""
    set: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    refine: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def seeded(self) -> bool:
        return self.task != "labels"

    @property
    def needs(self) -> tuple[str, ...]:
        """The rungs it reads tables, weights or predictions of."""
        labels = (self.labels,) if self.seeded else ()
        return tuple(dict.fromkeys(name for name in (*labels, self.after) if name))

    def lines(self) -> list[Line]:
        if not self.title:
            return []
        refined = [
            Line(f"{self.name}+{refine}", self.part, text["title"], refine, text.get("against", ""))
            for refine, text in self.refine.items()
        ]
        return [Line(self.name, self.part, self.title, PLAIN, self.against), *refined]


@dataclass(frozen=True)
class Step:
    """A rung with one seed; labels have none."""

    rung: Rung
    seed: int | None

    @property
    def name(self) -> str:
        return self.rung.name if self.seed is None else f"{self.rung.name}_s{self.seed}"


def read_rungs(path: Path = LADDER) -> dict[str, Rung]:
    """Return all rungs by name, in the order of the file; raises ConfigError for one that is not right."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    rungs = {}
    for name, values in document.get("rung", {}).items():
        for key in values:
            if key not in KEYS:
                raise ConfigError(f"{path}: rung {name} has no `{key}`{nearest(key, KEYS)}; it has {listing(KEYS)}")
        if values.get("task") not in READS:
            raise ConfigError(f"{path}: rung {name} has task {values.get('task')!r}; there are {listing(tuple(READS))}")
        rungs[name] = Rung(name, **values)
    lines = {line.name for rung in rungs.values() for line in rung.lines()}
    for rung in rungs.values():
        for need in rung.needs:
            check_known(need, rungs, f"{path}: rung {rung.name} needs")
        for line in rung.lines():
            if line.against and line.against not in lines:
                raise ConfigError(f"{path}: {line.name} is compared with {line.against}, and there is no such line")
        if rung.task == "predict" and (not rung.after or rungs[rung.after].task not in TRAINED[1:]):
            raise ConfigError(
                f"{path}: rung {rung.name} predicts with what no rung has trained to; name one in `after`"
            )
        if rung.seeded and rungs[rung.labels].task != "labels":
            raise ConfigError(f"{path}: rung {rung.name} learns the labels of {rung.labels}, which makes none")
    return rungs


def check_known(name: str, rungs: Mapping[str, Rung], where: str) -> None:
    """Raise ConfigError unless there is a rung of that name."""
    if name not in rungs:
        hint = nearest(name, tuple(rungs))
        raise ConfigError(f"{where} rung {name}, and there is none{hint}; there are {listing(tuple(rungs))}")


def chosen(rungs: Mapping[str, Rung], only: Iterable[str]) -> set[str]:
    """Return the names of some rungs and of all that they need; all where none is named. Raises ConfigError."""
    wanted, waiting = set[str](), list(only) or list(rungs)
    while waiting:
        name = waiting.pop()
        check_known(name, rungs, "--only names")
        if name not in wanted:
            wanted.add(name)
            waiting += rungs[name].needs
    return wanted


def steps_of(rungs: Mapping[str, Rung], seeds: Sequence[int]) -> dict[str, Step]:
    """Return all steps by name in the order of work: labels, then every rung of the first seed, then of the next."""
    steps = [Step(rung, None) for rung in rungs.values() if not rung.seeded]
    steps += [Step(rung, seed) for seed in seeds for rung in rungs.values() if rung.seeded]
    return {step.name: step for step in steps}


@dataclass(frozen=True)
class Plan:
    """Where a ladder lives, its rungs, and how its preset is changed for all of them."""

    preset: str
    folder: Path
    rungs: Mapping[str, Rung]
    overrides: tuple[str, ...] = ()
    bed: str = "city"

    def recipe_name(self, step: Step) -> str:
        """Return the name under which store and runs know a step; presets may share a store."""
        return f"{Path(self.preset).stem}-{step.name}"

    def recipe_path(self, step: Step) -> Path:
        return self.folder / "recipes" / f"{self.recipe_name(step)}.toml"

    def run_folder(self, step: Step) -> Path:
        """Return where the trainer writes what it learns and scores in a step."""
        return self.folder / "runs" / self.recipe_name(step)

    def labels_file(self, step: Step) -> Path:
        """Return where labels of real frames are judged, table by table."""
        return self.run_folder(step) / "labels.json"

    def needed(self, step: Step, name: str) -> Step:
        """Return the step of another rung that goes with a step: that of the same seed, or its labels."""
        rung = self.rungs[name]
        return Step(rung, step.seed if rung.seeded else None)

    def labels(self, step: Step) -> Step:
        """Return the step whose tables a step reads: its own, where it makes some."""
        return self.needed(step, step.rung.labels) if step.rung.seeded else step

    def weights(self, step: Step) -> Step | None:
        """Return the step that a training starts from, if any."""
        return self.needed(step, step.rung.after) if step.rung.seeded and step.rung.after else None

    def student(self, step: Step) -> str:
        """Return the task whose network is scored in a step."""
        return self.rungs[step.rung.after].task if step.rung.task == "predict" else step.rung.task

    def settings(self, step: Step) -> dict[str, dict[str, Any]]:
        """Return in what a step's recipe differs from the preset: its rung, then the command line, then what it needs.

        Raises ConfigError for an override that is not `section.key=value`.
        """
        rung, task = step.rung, step.rung.task
        own = {"target": dict(self.labels(step).rung.set.get("target", {}))}
        own |= {section: {**own.get(section, {}), **values} for section, values in rung.set.items()}
        for section, key, value in map(parse_override, self.overrides):
            own.setdefault(section, {})[key] = value
        own.setdefault("run", {}).update(runs=str(self.folder / "runs"), progress=False)
        if task in TRAINED:
            own.setdefault(task, {})["seed"] = step.seed
        if task in STARTS:
            start = self.weights(step)
            own[task]["init"] = str(self.run_folder(start) / start.rung.task) if start else ""
        if task in (*TRAINED[1:], "predict"):
            own.setdefault("predict", {})["of"] = self.student(step)
        if task == "predict":
            start = self.needed(step, rung.after)
            own["predict"]["checkpoint"] = str(self.run_folder(start) / start.rung.task)
        return own

    def sections(self, step: Step) -> dict[str, dict[str, Any]]:
        """Return the recipe of a step, with what it has of the preset.

        Raises ConfigError where the preset or an override is not right.
        """
        changes = [
            f"{section}.{key}={json.dumps(value)}"
            for section, values in self.settings(step).items()
            for key, value in values.items()
        ]
        return {name: dict(values) for name, values in read_recipe(self.preset, changes).sections.items()}

    def write_recipe(self, step: Step) -> None:
        """Write the recipe of a step: the preset as its base, and in what it differs."""
        preset, path = find_recipe(self.preset), self.recipe_path(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        if preset.parent != RECIPES:
            write_text(path.parent / preset.name, preset.read_text(encoding="utf-8"))
        write_text(path, recipe_text(preset.stem, self.settings(step)))

    def commands(self, step: Step, fresh: bool) -> list[list[str]]:
        """Return what makes a step and scores it, as arguments of `python -m`."""
        recipe, task = str(self.recipe_path(step)), step.rung.task
        if task == "labels":
            made = [["pipeline", "run", "pack,label", recipe], ["trainer", "evaluate", recipe, "--of", "pseudo"]]
            told = ["bench.real_labels", recipe, "--out", str(self.labels_file(step))]
            return [*made, told] if self.bed == "kitti-real" else made
        training = [["trainer", task, recipe, *(["--fresh"] if fresh else [])]] if task in TRAINED else []
        if not step.rung.title:
            return training
        judged = [["trainer", "evaluate", recipe, "--set", f"evaluate.refine={name}"] for name in self.refined(step)]
        return [*training, ["trainer", "predict", recipe], *judged]

    def refined(self, step: Step) -> list[str]:
        """Return the ways of refining that have to be run; each scores what there was before it too."""
        return list(step.rung.refine) or [PLAIN]

    def learnt(self, step: Step, sections: Mapping[str, Any]) -> str:
        """Return the digest of the settings that a step's weights or tables depend on."""
        return digest({name: sections.get(name, {}) for name in READS[step.rung.task]})

    def whole(self, step: Step, sections: Mapping[str, Any]) -> str:
        """Return the digest of all settings and commands behind a step's scores."""
        judged = {name: sections.get(name, {}) for name in JUDGED_BY}
        return digest([self.learnt(step, sections), judged, self.commands(step, fresh=False)])

    def score_files(self, step: Step) -> dict[str, Path]:
        """Return the file that holds the scores of each line of a step."""
        folder, task = self.run_folder(step), step.rung.task
        student = "-pseudo" if task == "labels" else "" if self.student(step) == "distill" else f"-{self.student(step)}"
        files = {refine: folder / f"evaluate{student}-{refine.replace('+', '-')}.json" for refine in step.rung.refine}
        plain = f"evaluate{student}.json" if not files else next(iter(files.values())).name
        return {PLAIN: folder / plain, **files} if step.rung.title else {}


def recipe_text(base: str, settings: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a recipe that says in what it differs from another; JSON writes these values as TOML does."""
    lines = ["# Written by make ladder.", f"base = {json.dumps(base)}"]
    for section, values in settings.items():
        if values:
            lines += ["", f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
