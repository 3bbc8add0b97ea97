"""What every table is made from: the part of a stage that both sides know, and the identities that follow from it.

The pipeline adds to each of these how a row is computed (pipeline.stages). The trainer, which never imports the
pipeline, compares the recipe at hand with the tables it opens by what stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from manifests.config import ConfigError, changed_values
from manifests.fingerprint import Json, Settings
from manifests.recipe import Recipe
from manifests.records.table import Identity
from manifests.sections.teachers.registry import TEACHER_SECTIONS
from manifests.tables.base import EVERY_ROW, FrameRecord, Record
from manifests.tables.labels import Belief, Correct, Label, Mend, Target, Vote
from manifests.tables.motion import Motion, MovingThings
from manifests.tables.sensors import Coordinates, Index, PixelOfPair, PointOfPair, Points, Project
from manifests.tables.superpoints import Group, NamedPoints, Pairs, Superpoints
from manifests.tables.teacher import Encode, Score, Segment, SegmentMaps, Text
from manifests.templates import templates_of


@dataclass(frozen=True)
class Need:
    """An upstream table: its row of the same frame (`row`), or all its rows (`broadcast`); `kind` says which columns.

    `window`: that row, and those of up to `reach` frames of the same scene before and after, in the next shards too.
    `fused`: the stage makes that row itself on its way. The table's identity counts, and no table is read or written.
    """

    kind: type[Record]
    how: Literal["row", "broadcast", "fused", "window"] = "row"
    reach: int = 0

    @property
    def table(self) -> str:
        """The name of the table."""
        return self.kind.table

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns that are read of a row, beside those that every row has; None for all."""
        return None if self.kind.whole else tuple(name for name in self.kind.schema.names if name not in EVERY_ROW)

    @property
    def read(self) -> tuple[str, ...] | None:
        """The columns to read of a row; None for all."""
        return None if self.kind.whole else tuple(self.kind.schema.names)


@dataclass(frozen=True)
class TableSpec:
    """What a table is made from.

    `version` is raised when the code changes what a row means. `needs` are the tables that a row is made from,
    `settings` the recipe's values that can change one; both enter the identity. `alone`: one table for all frames.
    `affects` names settings that change some columns alone: whoever needs none of these does not depend on them.
    """

    kind: type[Record]
    version: int
    needs: Callable[[Recipe], tuple[Need, ...]]
    settings: Callable[[Recipe], Settings]
    alone: bool = False
    affects: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the table."""
        return self.kind.table


def no_needs(recipe: Recipe) -> tuple[Need, ...]:
    """Return the tables that a row is made from which is read from files alone."""
    return ()


def teacher_settings(recipe: Recipe, stage: str) -> dict[str, Json]:
    """Return what rows of "text", "encode" or "segment" depend on of the teacher and of what it is told."""
    teacher = recipe.teacher
    settings = dict(teacher.settings(stage))
    if teacher.version > 1:  # not at first, so that tables made before there were versions keep their names
        settings["version"] = teacher.version
    if recipe.data.rectify and stage != "text":
        if teacher.ready_made or teacher.simulated or teacher.reads_files or teacher.needs():
            raise ConfigError(
                f"data.rectify shows a teacher's network other images, and teacher {teacher.name} looks at none: its "
                "segments are of the raw images, or of none; leave it out"
            )
        settings["rectified"] = True
    return {"teacher": settings, **teacher.content(recipe.ontology, recipe.data, stage)}


HOW_SWEEPS_ARE_READ = ("columns", "points_in", "min_range_m", "max_range_m", "time_column", "time_column_unit")


def sweep_settings(recipe: Recipe) -> dict[str, Json]:
    """Return what the points of a sweep depend on beside its file."""
    changed = changed_values(recipe.data)
    return {"dataset": recipe.data.dataset, **{key: changed[key] for key in HOW_SWEEPS_ARE_READ if key in changed}}


def text_settings(recipe: Recipe) -> Settings:
    """Return what the vectors depend on: prompts, templates (their sentences, not their name), and the text tower."""
    teacher = recipe.teacher
    content = {"prompts": recipe.ontology.prompt_content(), **teacher_settings(recipe, "text")}
    if not teacher.ready_made and not teacher.simulated:
        try:
            teacher.check_templates(recipe.template_list)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        content["templates"] = list(templates_of(recipe.template_list))
    elif changed_values(recipe.text):
        raise ConfigError(
            f"[text] does not apply to teacher {teacher.name}, whose text vectors are "
            + ("drawn from random numbers" if teacher.simulated else "read from a file")
        )
    return content


def segment_needs(recipe: Recipe) -> tuple[Need, ...]:
    """Return the tables that segments are made from: the encode half if any, the prompts, and what else is needed."""
    teacher = recipe.teacher
    encoding = (Need(Encode, "fused" if fused(recipe) else "row"),) if teacher.has_encode else ()
    return (*encoding, Need(Text, "broadcast"), *map(Need, teacher.needs()))


def score_needs(recipe: Recipe) -> tuple[Need, ...]:
    """Return the tables that scores of pixels are made from; raises ConfigError where the teacher has none."""
    teacher = recipe.teacher
    if not teacher.scores_pixels:
        able = sorted(name for name, kind in TEACHER_SECTIONS.items() if kind.scores_pixels)
        raise ConfigError(
            f'group.scores is "pixel", but teacher {teacher.name}, as it is set, scores whole segments; those of '
            f'{", ".join(able)} score pixels (artifacts with scores = "image")'
        )
    if fused(recipe):
        raise ConfigError(
            'group.scores is "pixel", which looks at table encode once more, and run.keep_encode is false; set it true'
        )
    encoding = (Need(Encode),) if teacher.has_encode else ()
    rows = teacher.needs() if teacher.scores_from_rows else ()
    pixels = () if Project in rows else (Need(PixelOfPair),)  # which a whole row of that table stands for
    return (*pixels, Need(SegmentMaps), *encoding, Need(Text, "broadcast"), *map(Need, rows))


def group_needs(recipe: Recipe) -> tuple[Need, ...]:
    """Return the tables that superpoints and pseudo-labels are made from."""
    scores = (Need(Score),) if recipe.group.scores == "pixel" else ()
    return (Need(Project), Need(SegmentMaps), *scores)


def fused(recipe: Recipe) -> bool:
    """Return whether stage `segment` runs the encode half itself, so that no table holds it."""
    return recipe.teacher.has_encode and not recipe.run.keep_encode


def segment_settings(recipe: Recipe) -> Settings:
    """Return what segments depend on beside the tables they are made from."""
    content, changed = teacher_settings(recipe, "segment"), changed_values(recipe.segment)
    if not recipe.teacher.ready_made:
        content["segment"] = changed
    elif changed:
        raise ConfigError(
            f"[segment] does not apply to teacher {recipe.teacher.name}, whose segments are read from files; "
            f"remove {', '.join(changed)}"
        )
    return content


def window_needs(recipe: Recipe) -> tuple[Need, ...]:
    """Return the tables that a vote reads of a frame and of those around it.

    Raises ConfigError where points are to have several names and the recipe asks for no scores of pixels.
    """
    kinds: tuple[type[FrameRecord], ...] = (Coordinates, PointOfPair, NamedPoints)
    if recipe.vote.names > 1:
        if recipe.group.scores != "pixel":
            raise ConfigError(
                f"vote.names is {recipe.vote.names}, which takes what else a pixel may show from table `score`; set "
                'group.scores = "pixel", or vote.names = 1'
            )
        kinds += (Score,)
    if recipe.vote.follow:
        kinds += (MovingThings,)
    return tuple(Need(kind, "window", recipe.vote.window) for kind in kinds)


def vote_needs(recipe: Recipe) -> tuple[Need, ...]:
    """Return the tables that the labels after the vote are made from; raises ConfigError like `window_needs`."""
    return (Need(NamedPoints), Need(Belief)) if recipe.vote.belief else window_needs(recipe)


def belief_needs(recipe: Recipe) -> tuple[Need, ...]:
    """Return the tables that all classes of a point are made from; raises ConfigError where they are not kept."""
    if not recipe.vote.belief:
        raise ConfigError("vote.belief is false, so that one class a point is kept after the vote; set it true")
    return window_needs(recipe)


def votes_settings(recipe: Recipe) -> dict[str, Json]:
    """Return what a vote depends on beside tables."""
    return {**changed_votes(recipe), "classes": recipe.ontology.class_of_prompt.tolist()}


def changed_votes(recipe: Recipe) -> dict[str, Json]:
    """Return the settings of a vote that are not the usual ones, and what has been made of them since."""
    changed = dict(changed_values(recipe.vote))
    if recipe.vote.evidence == "log":  # hard votes are what they were, and keep their identities
        changed["log"] = 2
    return changed


def believed(recipe: Recipe, key: str) -> tuple[Need, ...]:
    """Return the need of table `belief` for the setting `key`; raises ConfigError where there is none."""
    if not recipe.vote.belief or "vote" not in recipe.target.labels:
        raise ConfigError(
            f"{key} looks at all classes that a point may be, as table `belief` keeps them; set vote.belief = true and "
            'target.labels = "vote" or "vote+correct"'
        )
    return (Need(Belief),)


def correct_needs(recipe: Recipe) -> tuple[Need, ...]:
    """Return the tables that labels after flat interaction are made from."""
    divided = believed(recipe, 'correct.evidence = "divided"') if recipe.correct.evidence == "divided" else ()
    return (Need(Points), Need(corrected_table(recipe)), *divided)


def corrected_table(recipe: Recipe) -> type[Group] | type[Vote]:
    """Return the table whose labels stage `correct` corrects."""
    return Vote if recipe.target.labels == "vote+correct" else Group


TARGET_NEEDS = {
    "group": (Need(Group),),
    "vote": (Need(Vote),),
    "correct": (Need(Group), Need(Correct)),
    "vote+correct": (Need(Vote), Need(Correct)),
}
"""What each choice of `target.labels` needs: labels that flat interaction does not touch keep their confidence."""


def target_needs(recipe: Recipe) -> tuple[Need, ...]:
    """Return the tables that targets are made from, with the labels that people corrected where there are any."""
    mended = (Need(Mend),) if recipe.data.corrections else ()
    margin = believed(recipe, 'target.confidence = "margin"') if recipe.target.confidence == "margin" else ()
    return (*TARGET_NEEDS[recipe.target.labels], Need(Project), *mended, *margin)


def mend_settings(recipe: Recipe) -> dict[str, Json]:
    """Return what corrected labels depend on beside their files; raises ConfigError where the recipe names none."""
    if not recipe.data.corrections:
        raise ConfigError("data.corrections names no folder of corrected labels, so there is no table `mend`")
    return {"classes": list(recipe.ontology.class_names)}


SPECS: dict[str, TableSpec] = {
    spec.name: spec
    for spec in (
        TableSpec(
            kind=Index,
            version=4,
            needs=no_needs,
            settings=lambda recipe: {**sweep_settings(recipe), "version": recipe.data.version},
        ),
        TableSpec(Points, 1, no_needs, sweep_settings),
        TableSpec(
            kind=Project,
            version=2,
            needs=lambda recipe: (Need(Coordinates),),
            settings=lambda recipe: changed_values(recipe.project),
        ),
        TableSpec(
            kind=Label,
            version=1,
            needs=no_needs,
            settings=lambda recipe: {"dataset": recipe.data.dataset, "ontology": recipe.ontology.raw_content()},
        ),
        TableSpec(Text, 1, no_needs, text_settings, alone=True),
        TableSpec(Encode, 5, no_needs, lambda recipe: teacher_settings(recipe, "encode")),
        TableSpec(Segment, 1, segment_needs, segment_settings),
        TableSpec(
            kind=Score,
            version=2,
            needs=score_needs,
            settings=lambda recipe: {
                "teacher": recipe.teacher.name,
                **({"rectified": True} if recipe.data.rectify else {}),
                "classes": recipe.ontology.class_of_prompt.tolist(),
            },
        ),
        TableSpec(
            kind=Group,
            version=1,
            needs=group_needs,
            settings=lambda recipe: {**changed_values(recipe.group), "ontology": recipe.ontology.label_content()},
            affects=dict.fromkeys(("policy", "scores"), ("point_superpoint", "label", "confidence")),
        ),
        TableSpec(
            kind=Motion,
            version=1,
            needs=lambda recipe: (Need(Coordinates, "window", recipe.motion.window),),
            settings=lambda recipe: changed_values(recipe.motion),
        ),
        TableSpec(Belief, 2, belief_needs, votes_settings),
        TableSpec(Vote, 2, vote_needs, votes_settings),
        TableSpec(
            kind=Correct,
            version=5,
            needs=correct_needs,
            settings=lambda recipe: {
                **changed_values(recipe.correct),
                "n_classes": len(recipe.ontology.classes) - 1,
                "ground_classes": list(recipe.ontology.ground_class_ids),
            },
        ),
        TableSpec(
            kind=Pairs,
            version=1,
            needs=lambda recipe: (Need(Project), Need(Superpoints), Need(Segment)),
            settings=lambda recipe: {},
        ),
        TableSpec(Mend, 1, no_needs, mend_settings),
        TableSpec(
            kind=Target,
            version=1,
            needs=target_needs,
            settings=lambda recipe: changed_values(recipe.target),
        ),
    )
}
"""The tables that the pipeline makes, in the order data flows."""


Known = dict[tuple[str, tuple[str, ...] | None], str]
"""Fingerprints that were found already, by table and columns, of one recipe and one moment."""


def identity(recipe: Recipe, name: str, columns: Collection[str] | None = None, known: Known | None = None) -> Identity:
    """Return the readable identity of a table; its digest, the fingerprint, names the folder of the table.

    With `columns` it is that of these columns alone, as it enters the identity of whoever needs no others. Raises
    ConfigError where the recipe asks for a table that its teacher does not make.
    """
    spec, known = SPECS[name], {} if known is None else known
    of_others = {key for key, some in spec.affects.items() if columns is not None and not set(some) & set(columns)}
    needs = {}
    for need in spec.needs(recipe):
        asked = need.table, need.columns
        if asked not in known:  # several tables need the same ones, and those again
            known[asked] = identity(recipe, *asked, known).fingerprint
        needs[need.table] = known[asked]
    return Identity(
        stage=name,
        version=spec.version,
        columns=spec.kind.signature(),
        settings={key: value for key, value in spec.settings(recipe).items() if key not in of_others},
        needs=needs,
    )


def identities(recipe: Recipe) -> dict[str, Identity]:
    """Return the identities of all tables that a recipe can have, in the order data flows.

    One that it cannot have (`encode` of a teacher that encodes nothing) is left out.
    """
    found, known = {}, Known()
    for name in SPECS:
        with suppress(ConfigError):
            found[name] = identity(recipe, name, known=known)
    return found


def fingerprint(recipe: Recipe, name: str, columns: Collection[str] | None = None) -> str:
    """Return the digest of a table's identity, or of that of some of its columns."""
    return identity(recipe, name, columns).fingerprint


def with_needs(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """Return the named tables and everything that they are made from, `index` first, in the order data flows.

    Tables that a stage makes on its way, of which none is kept, are left out.
    """
    wanted, waiting = {"index"}, list(names)
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting += [need.table for need in SPECS[name].needs(recipe) if need.how != "fused"]
    return [name for name in SPECS if name in wanted]
