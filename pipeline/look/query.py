"""Ask the map: which points and frames are most like a phrase, by the vectors of the masks that were made of images."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manifests.asked import tables_of
from manifests.config import ConfigError
from manifests.fingerprint import Settings, differences
from manifests.labels import similarities_of
from manifests.query import (
    By,
    Query,
    RankedFrame,
    Ranking,
    check_width,
    cleaned,
    encoder_of,
    normal,
    queries_folder,
    query_files,
    rank,
    read_query,
    read_ranking,
    write_query,
    write_ranking,
)
from manifests.recipe import Recipe
from manifests.sections.teachers.registry import TEACHER_SECTIONS
from manifests.stages import text_settings
from manifests.storage.errors import StoreError
from manifests.storage.refs import Ref, TableRef
from manifests.storage.store import Store
from manifests.tables.answers import Similarity
from manifests.tables.base import Failed, Float32
from manifests.tables.superpoints import PairVectors
from manifests.tables.teacher import Text
from pipeline.look.browse import Browser, Place, Track
from pipeline.teachers.registry import TEACHERS
from superpixels.similarity import Similarity as SimilarityOfPoints
from superpixels.similarity import similarity, spread, top_mean

NEAR_PROMPTS = 5


def ask(recipe: Recipe, phrase: str, n_frames: int, track: Track = lambda items, _: items) -> tuple[Query, Ranking]:
    """Return a phrase with its vector and the `n_frames` frames most like it; both are written for others to show.

    A point is as like the phrase as the most similar of its superpoints; a frame as its most similar points are on
    average. Excluded frames and those that failed are left out. Raises ConfigError for a phrase that the teacher has
    no vector of, and StoreError for tables that are missing, damaged, or of different text encoders.
    """
    store = Store.open(recipe.run.store)
    ref = tables_of(store, recipe, ["index", "text", "pairs"])
    rows = text_rows(store, ref)
    query = understand(recipe, phrase, store, ref, rows)
    ranking = rank_by_masks(query, store, ref, query.rivals(rows), recipe.data.exclude, n_frames, track)
    folder = queries_folder(recipe.run.runs, recipe.run_name)
    write_query(folder, query)
    write_ranking(folder, query, ranking)
    return query, ranking


def text_rows(store: Store, ref: Ref) -> list[Text]:
    """Return the rows of table `text`; raises StoreError unless the masks were named with these very vectors."""
    table, name = ref.table("text"), "pairs"
    fingerprint = ref.table(name).fingerprint
    for needed in ("segment", "text"):
        manifest = store.read_manifest(name, fingerprint)
        if manifest is None or needed not in manifest.identity.needs:
            break  # nothing says so: vectors of another size are still found out
        name, fingerprint = needed, manifest.identity.needs[needed]
    else:
        if fingerprint != table.fingerprint:
            raise StoreError(
                f"the masks of recipe {ref.recipe} were named with other text vectors than table `text` has now; run: "
                f"{ref.make('pairs')}"
            )
    return store.every(Text, table.fingerprint, table.shards)


def understand(recipe: Recipe, phrase: str, store: Store, ref: Ref, rows: Sequence[Text]) -> Query:
    """Return a phrase with its vector: that of a prompt of the dictionary, else what the teacher's text encoder says.

    `rows` are those of table `text`. Raises ConfigError if the phrase is no prompt, and the teacher has no encoder or
    is not the one that the tables were made with.
    """
    words, table, kind = cleaned(phrase), ref.table("text"), TEACHERS[recipe.teacher.name]
    manifest = store.read_manifest("text", table.fingerprint)
    made: Settings = manifest.identity.settings if manifest else {}
    encoder = encoder_of(made)
    known = {normal(row.prompt): row for row in rows}
    if normal(words) in known:
        return Query(words, np.asarray(known[normal(words)].vector, np.float32), table.fingerprint, encoder)
    if recipe.teacher.ready_made or not recipe.teacher.text_means:
        able = [name for name, other in TEACHER_SECTIONS.items() if not (other.ready_made or other.simulated)]
        raise ConfigError(
            f"teacher {recipe.teacher.name} has no text encoder, so it knows the {len(known)} prompts of dictionary "
            f"{recipe.ontology.name} and not “{words}”{near(words, [row.prompt for row in rows])}. Any phrase can "
            f"be asked where the teacher is one of {', '.join(able)}"
        )
    changes = differences(encoder, encoder_of(text_settings(recipe))) if encoder else []
    if changes:
        raise ConfigError(
            f"the tables were made with another text encoder than the recipe has now ({'; '.join(changes)}); run: "
            f"{recipe.make('pack')}"
        )
    (vector,) = kind.load(recipe, "text").text((words,))
    return Query(words, np.asarray(vector, np.float32), table.fingerprint, encoder)


def near(phrase: str, prompts: Sequence[str]) -> str:
    """Return, as part of a sentence, the prompts that share a word with a phrase or are spelt alike, if any."""
    words = set(normal(phrase).split())
    alike = [prompt for prompt in prompts if words & set(normal(prompt).split())]
    alike += difflib.get_close_matches(phrase, prompts, n=NEAR_PROMPTS, cutoff=0.5)
    names = list(dict.fromkeys(alike))[:NEAR_PROMPTS]
    return f"; near are {', '.join(f'“{name}”' for name in names)}" if names else ""


def rank_by_masks(
    query: Query, store: Store, ref: Ref, rivals: Float32, excluded: Sequence[str], limit: int, track: Track
) -> Ranking:
    """Return the frames whose masks are most like a query; raises ConfigError if no frame has a mask."""
    table = ref.table("pairs")
    left_out = {*ref.excluded, *excluded}
    found: list[RankedFrame] = []
    medians: list[float] = []
    for shard in track(table.shards, "pairs"):
        for number, row in enumerate(store.records(PairVectors, table.fingerprint, shard)):
            if isinstance(row, Failed) or row.frame_id in left_out or len(row.point) == 0:
                continue
            points = similarity_of_points(query, rivals, row, int(row.point.max()) + 1)
            margin = points.margin[np.isfinite(points.margin)]
            scores = top_mean(margin), top_mean(points.cosine)
            found.append(RankedFrame(row.frame_id, shard.shard, number, *scores, len(margin)))
            medians.append(float(np.median(margin)))
    return rank("masks", query, table.fingerprint, found, medians, limit)


def similarity_of_points(query: Query, rivals: Float32, pairs: PairVectors, n_points: int) -> SimilarityOfPoints:
    """Return the similarity of a frame's points to a query by the row of table `pairs`; NaN where no mask is seen.

    Raises ConfigError if the masks have vectors of another size.
    """
    if len(pairs.vector):
        check_width(query, pairs.vector.shape[1], "table `pairs`")
    found = similarity(pairs.vector.reshape(-1, len(query.vector)), query.vector, rivals)
    return spread(found, pairs.point, pairs.superpoint, n_points)


# -- what was asked, to be shown ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Asked:
    """A query with its rankings, as far as they are of the tables that the recipe's name stands for now.

    `rivals` are the vectors of the dictionary's other prompts, `tables` what each ranking was made from; `hidden` says
    why a ranking that there is by TMP features is none of them.
    """

    query: Query
    rankings: Mapping[By, Ranking]
    tables: Mapping[By, TableRef]
    rivals: NDArray[np.float32]
    store: Store
    hidden: str = ""

    def margins(self, place: Place, frame_id: str, n_points: int) -> dict[By, NDArray[np.float32]]:
        """Return the margins of a frame's points, (n,) each, NaN where nothing is known; without the frame, nothing.

        Raises StoreError for a table that is damaged or out of step.
        """
        found: dict[By, NDArray[np.float32]] = {}
        for by, table in self.tables.items():
            for shard in table.shards:
                if shard.shard == place.shard and place.row < shard.rows:
                    kind = PairVectors if by == "masks" else Similarity
                    row = self.store.open_shard(table.stage, table.fingerprint, shard).record(place.row, kind)
                    if row.frame_id != frame_id:
                        raise StoreError(
                            f"row {place.row} of shard {place.shard} is frame {row.frame_id} in table "
                            f"`{table.stage}` and {frame_id} in `index`; run: make query RECIPE=... "
                            f'WORDS="{self.query.phrase}"'
                        )
                    if isinstance(row, PairVectors):
                        found[by] = similarity_of_points(self.query, self.rivals, row, n_points).margin
                    elif isinstance(row, Similarity):
                        found[by] = row.margin.astype(np.float32)
        return found


def asked_of(browser: Browser, runs: str) -> tuple[list[Asked], list[str]]:
    """Return the queries of a recipe in the order of their names, and sentences on what cannot be shown of them.

    `runs` is `run.runs`. Raises StoreError for a table that is damaged.
    """
    found: list[Asked] = []
    sentences: list[str] = []
    store, ref = browser.store, Ref(browser.recipe.name, browser.tables)
    folder = queries_folder(runs, browser.recipe.run_name)
    for path in query_files(folder):
        try:
            one = read_asked(path, store, ref, browser.recipe)
        except ConfigError as error:
            sentences.append(str(error))
            continue
        if one.rankings:
            found.append(one)
        if one.hidden:
            sentences.append(f"“{one.query.phrase}” is not shown by TMP features: {one.hidden}")
        elif not one.rankings:
            sentences.append(
                f"“{one.query.phrase}” was asked of tables that are not those of the recipe any more: it is not shown. "
                f"Run: {browser.recipe.make('query', phrase=one.query.phrase)}"
            )
    return found, sentences


def read_asked(path: Path, store: Store, ref: Ref, recipe: Recipe) -> Asked:
    """Return what was asked in a file; raises ConfigError for files that are no queries or rankings."""
    query = read_query(path)
    tables: dict[By, TableRef] = {}
    rivals = np.zeros((0, len(query.vector)), np.float32)
    if "text" not in ref.tables or ref.tables["text"].fingerprint != query.text:
        return Asked(query, {}, {}, rivals, store)
    similar, hidden = None, ""
    try:
        similar = similarities_of(store, recipe, ref.table("points"), query.slug, query.identity, query.phrase)
    except (StoreError, ConfigError) as error:
        hidden = str(error)
    candidates: dict[By, TableRef | None] = {"masks": ref.tables.get("pairs"), "tmp": similar}
    rankings: dict[By, Ranking] = {}
    for by, table in candidates.items():
        ranking = read_ranking(path.parent, query, by)
        if ranking and table and ranking.table == table.fingerprint:
            rankings[by], tables[by] = ranking, table
    if tables:
        rivals = query.rivals(text_rows(store, ref))
    return Asked(query, rankings, tables, rivals, store, hidden)
