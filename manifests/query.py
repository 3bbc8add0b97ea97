"""What a map was asked for, and what was found: a phrase with its vector, and the frames that are most like it.

    <runs>/<recipe>/queries/<slug>.json           the query: the pipeline writes it, both sides read it
    <runs>/<recipe>/queries/<slug>.masks.json     frames ranked by the vectors of their masks (pipeline)
    <runs>/<recipe>/queries/<slug>.tmp.json       frames ranked by TMP features (trainer)

Phrases come from people: the name of a file is made of their letters and digits only, and never leaves the folder.
"""

from __future__ import annotations

import json
import re
import secrets
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from manifests.config import ConfigError
from manifests.fingerprint import Json, Settings, digest
from manifests.records.codec import as_document, as_record
from manifests.tables.teacher import Text

By = Literal["masks", "tmp"]
"""What was compared with the phrase: the cached vectors of masks, or the features of a network after pre-training."""

HEADINGS = ("", "frame", "shard", "margin", "cosine", "points")
"""Of a ranking as a table."""

T = TypeVar("T")

MAX_LETTERS = 200
_SLUG_LETTERS = 48
_SAME = 0.9999  # the cosine from which on a prompt is the phrase itself, in other words


@dataclass(frozen=True, eq=False)
class Query:
    """A phrase and its vector, unit length float32 (d,).

    `text` is the fingerprint of the table `text` whose vectors it is comparable with, `encoder` what made both, as the
    identity of that table says.
    """

    phrase: str
    vector: NDArray[np.float32]
    text: str
    encoder: Settings

    @property
    def slug(self) -> str:
        """The name of its files."""
        return slug_of(self.phrase)

    @property
    def identity(self) -> str:
        """A digest of what answers depend on."""
        return digest([self.vector.tolist(), self.text])

    def rivals(self, rows: Iterable[Text]) -> NDArray[np.float32]:
        """Return the vectors of a dictionary's other prompts, (p, d), from the rows of table `text`.

        Left out are the phrase itself and prompts that mean exactly the same to the encoder. Raises ConfigError if the
        table has vectors of another size.
        """
        vectors = [row.vector for row in rows if normal(row.prompt) != normal(self.phrase)]
        kept = np.stack(vectors).astype(np.float32) if vectors else np.zeros((0, len(self.vector)), np.float32)
        check_width(self, kept.shape[1], "table `text`")
        return np.asarray(kept[kept @ self.vector < _SAME])


@dataclass(frozen=True)
class RankedFrame:
    """A frame, where it is found (its row in every shard of that name), and how like the phrase its best points are.

    `margin` and `cosine` as in superpixels.similarity, over `points` points that are known.
    """

    frame_id: str
    shard: str
    row: int
    margin: float
    cosine: float
    points: int


@dataclass(frozen=True)
class Ranking:
    """The frames most like a phrase, best first, of `n_frames` that were looked at; `query` is the query's identity.

    `table` is the fingerprint of what was compared: table `pairs` or `similarity`. `low` and `high` are the ends of a
    colour scale for margins: what an ordinary point has (the median over frames of their medians), and the best frame.
    """

    by: By
    query: str
    table: str
    n_frames: int
    low: float
    high: float
    frames: tuple[RankedFrame, ...]

    def cells(self) -> list[tuple[str, ...]]:
        """Return the ranking as rows of a table with the columns `HEADINGS`."""
        return [
            (str(place), one.frame_id, one.shard, f"{one.margin:+.3f}", f"{one.cosine:.3f}", f"{one.points:,}")
            for place, one in enumerate(self.frames, 1)
        ]

    def about(self) -> str:
        """Return what the numbers are, as a sentence or two."""
        return (
            f"{self.n_frames} frames were looked at. margin: by how much their most similar points are more like the "
            "phrase than like any prompt of the dictionary."
        )


def rank(
    by: By, query: Query, table: str, found: Sequence[RankedFrame], medians: Sequence[float], limit: int
) -> Ranking:
    """Return the ranking of frames by their margin, equal ones in the order of the data set; at most `limit` are kept.

    `medians` are the median margins of the same frames. Raises ConfigError if there is no frame.
    """
    if not found:
        raise ConfigError(f"no point of any frame has a vector to compare “{query.phrase}” with")
    best = sorted(found, key=lambda frame: -frame.margin)
    low, high = float(np.median(medians)), best[0].margin
    return Ranking(by, query.identity, table, len(found), low, high, tuple(best[:limit]))


def encoder_of(settings: Settings) -> dict[str, Json]:
    """Return, of the settings in the identity of a table `text`, what says which encoder made its vectors."""
    return {name: value for name, value in settings.items() if name in ("teacher", "templates")}


def cleaned(phrase: str) -> str:
    """Return a phrase with single spaces; raises ConfigError if there are no words in it, or too many letters."""
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in phrase).split())
    if not any(letter.isalnum() for letter in words):
        raise ConfigError(f'there are no words in "{words}"; say what to look for, for example "fire hydrant"')
    if len(words) > MAX_LETTERS:
        raise ConfigError(f"the phrase has {len(words)} letters; at most {MAX_LETTERS} are understood")
    return words


def normal(phrase: str) -> str:
    """Return a phrase as it is compared: letter case and spaces do not count."""
    return " ".join(phrase.split()).casefold()


def slug_of(phrase: str) -> str:
    """Return a name for the files of a phrase: small letters a-z, digits and hyphens.

    Where it does not say all of the phrase, it ends with a digest of it, so that different phrases have different ones.
    """
    ascii_ = unicodedata.normalize("NFKD", phrase).encode("ascii", "ignore").decode()
    slug = "-".join(re.findall(r"[a-z0-9]+", ascii_.lower()))[:_SLUG_LETTERS].strip("-")
    return slug if slug.replace("-", " ") == normal(phrase) else "-".join([*([slug] if slug else []), digest(phrase)])


def check_width(query: Query, width: int, what: str) -> None:
    """Raise ConfigError unless vectors have the size of the query's."""
    if width != len(query.vector):
        raise ConfigError(
            f"“{query.phrase}” has a vector of {len(query.vector)} numbers, and {what} has {width}: they are of "
            "different text encoders; build the tables with the recipe's teacher, and ask again"
        )


# -- files -------------------------------------------------------------------------------------------------------------


def queries_folder(runs: str, recipe: str) -> Path:
    """Return the folder of a recipe's queries; `runs` is `run.runs`."""
    return Path(runs).expanduser() / recipe / "queries"


def ranking_path(folder: Path, slug: str, by: By) -> Path:
    """Return the file of a ranking."""
    return folder / f"{slug}.{by}.json"


@dataclass(frozen=True)
class _QueryRecord:
    """The file of a query."""

    phrase: str
    text: str
    encoder: Settings
    vector: tuple[float, ...]


def write_query(folder: Path, query: Query) -> Path:
    """Write a query and return its path; raises ConfigError where it cannot be written."""
    vector = tuple(query.vector.tolist())
    return write(folder / f"{query.slug}.json", _QueryRecord(query.phrase, query.text, query.encoder, vector))


def read_query(path: Path) -> Query:
    """Return the query in a file; raises ConfigError if it cannot be read or is none."""
    record = read(path, _QueryRecord, "query")
    try:
        phrase, vector = cleaned(record.phrase), np.array(record.vector, np.float32)
        if abs(float(np.linalg.norm(vector)) - 1) >= 1e-3 or f"{slug_of(phrase)}.json" != path.name:
            raise ValueError
    except ValueError:
        raise ConfigError(f"{path} is not a query; delete it and ask again") from None
    return Query(phrase, vector, record.text, record.encoder)


def query_files(folder: Path) -> list[Path]:
    """Return the files of all queries in a folder, by name; rankings left out."""
    return sorted(path for path in folder.glob("*.json") if re.fullmatch(r"[a-z0-9-]+", path.stem))


def write_ranking(folder: Path, query: Query, ranking: Ranking) -> Path:
    """Write a ranking beside its query and return its path; raises ConfigError where it cannot be written."""
    return write(ranking_path(folder, query.slug, ranking.by), ranking)


def read_ranking(folder: Path, query: Query, by: By) -> Ranking | None:
    """Return a ranking for a query, None if there is none, or only one for an older vector of the phrase.

    Raises ConfigError if the file cannot be read or holds none.
    """
    path = ranking_path(folder, query.slug, by)
    if not path.is_file():
        return None
    found = read(path, Ranking, "ranking")
    if found.by != by:
        raise ConfigError(f"{path} is not a ranking; delete it and ask again")
    return found if found.query == query.identity else None


def read(path: Path, kind: type[T], what: str) -> T:
    """Return the record in a file; raises ConfigError if there is none of its kind."""
    try:
        return as_record(kind, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, OverflowError) as error:
        raise ConfigError(f"{path} is not a {what} ({error}); delete it and ask again") from None


def write(path: Path, record: _QueryRecord | Ranking) -> Path:
    """Write a record as JSON that appears whole; raises ConfigError where it cannot be written."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(as_document(record), indent=1, ensure_ascii=False), encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from None
    finally:
        scratch.unlink(missing_ok=True)
    return path
