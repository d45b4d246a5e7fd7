"""Search an archive by films: those most alike, and what their labels say."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chess_cxr.encoders.film_features import FilmEncoder
from chess_cxr.evaluation.intervals import interval_of_rate
from chess_cxr.film_jpeg import decode_stored
from chess_cxr.ingest.encoding import EncodedFilm, EncodeOptions, encode_in_child
from chess_cxr.records import UsageError
from chess_cxr.search.archive import Archive, read_labels
from chess_cxr.search.index import Index
from chess_cxr.store import Store
from chess_cxr.workers.child import Limits
from chess_cxr.workers.pool import run_in_order


@dataclass(frozen=True)
class Query:
    """A film to search by: a stored one by its row, or a file.

    jpeg: of the film, as the store has it or would have it.  reason: why a file is refused, "" if it is not.
    row: of the stored film, or of one with the same pixels as the file; -1 if there is none.
    """

    name: str
    jpeg: bytes = field(default=b"", repr=False)
    row: int = -1
    reason: str = ""


@dataclass(frozen=True)
class Neighbour:
    """A film of the archive.  same_patient: None if the patient of the query is not known."""

    number: int
    uid: str
    cosine: float
    same_film: bool
    same_patient: bool | None
    split: str
    labels: dict[str, float | None]


@dataclass(frozen=True)
class Vote:
    """How many of the nearest patients have a label, among those of whom it is known.

    share, low, high: with Wilson's 95 % interval.  archive: the share among all films that were searched.
    """

    label: str
    positive: int
    known: int
    share: float
    low: float
    high: float
    archive: float


@dataclass(frozen=True)
class Answer:
    """The films most like a query, nearest first, and their votes."""

    query: Query
    neighbours: tuple[Neighbour, ...] = ()
    votes: tuple[Vote, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        told = {"film": self.query.name, "reason": self.query.reason}
        return told | {"neighbours": [asdict(n) for n in self.neighbours], "votes": [asdict(v) for v in self.votes]}

    def as_text(self) -> str:
        """Return the answer as a table, and one line a vote."""
        if self.query.reason:
            return f"{self.query.name}: {self.query.reason}"
        rows = [("cosine", "uid", "patient", "split", "labels")]
        rows += [
            (f"{n.cosine:.3f}", n.uid, tell_patient(n), n.split, ", ".join(tell_labels(n))) for n in self.neighbours
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([self.query.name, *lines, *map(tell_vote, self.votes)])


def tell_patient(neighbour: Neighbour) -> str:
    """Return the badge of a neighbour: the same film, the same patient, or nothing."""
    return "same film" if neighbour.same_film else "same" if neighbour.same_patient else ""


def tell_labels(neighbour: Neighbour) -> list[str]:
    """Return the labels that a neighbour has."""
    return [name for name, value in neighbour.labels.items() if value == 1]


def tell_vote(vote: Vote) -> str:
    """Return a vote as a line."""
    share = f"{vote.share:.2f} [{vote.low:.2f}, {vote.high:.2f}]"
    return f"{vote.label}: {vote.positive} of {vote.known} patients, {share}; {vote.archive:.2f} of those searched"


def find_queries(names: Sequence[str], films: pd.DataFrame) -> list[int | Path | str]:
    """Tell stored films, by row, from files and URLs; raises `UsageError` for what is neither."""
    from chess_cxr.files.locations import is_url, simplify_location

    row_of = {uid: row for row, uid in enumerate(films["uid"])} if names else {}
    found: list[int | Path | str] = []
    for name in names:
        if name in row_of:
            found.append(row_of[name])
        elif is_url(name) or Path(name).is_file():
            found.append(simplify_location(name))
        else:
            raise UsageError(
                f"{name} is neither a film file nor the uid of a film in the store; chess-cxr select lists uids"
            )
    return found


def read_queries(
    names: Sequence[str], store: Store, executor: Executor | None, limits: Limits
) -> Generator[Query, None, None]:
    """Yield the films to search by; files are read as the ingest does it, in child processes."""
    found = find_queries(names, store.films)
    files = [place for place in found if not isinstance(place, int)]
    options = EncodeOptions(longest_side=store.options.get("longest_side", EncodeOptions.longest_side))
    encoded = run_in_order(files, partial(encode_in_child, options=options, limits=limits), executor, 16)
    hashes = store.read_hashes()["pixel_hash"].to_numpy() if files else np.empty(0, object)
    for name, place in zip(names, found, strict=True):
        if isinstance(place, int):
            yield Query(name, store.read_jpegs([place])[0], place)
        else:
            yield _take_file(name, next(encoded), hashes)


def _take_file(name: str, film: EncodedFilm, hashes: np.ndarray) -> Query:
    same = np.flatnonzero(hashes == film.pixel_hash) if film.pixel_hash else np.empty(0, np.int64)
    return Query(name, film.jpeg, int(same[0]) if len(same) else -1, film.reason)


def answer_query(
    archive: Archive | Index, encoder: FilmEncoder, query: Query, count: int, rows: np.ndarray | None
) -> Answer:
    """Return the films most like a query, other than itself, and their votes.  rows: the films to search."""
    if query.reason:
        return Answer(query)
    [feature_D] = encoder.embed(encoder.prepare([decode_stored(query.jpeg)]))
    films, own = archive.store.films, query.row
    found, cosines = archive.find_nearest(feature_D, count + 1, rows)
    is_itself = (found == own) & (query.name == films["uid"].iat[own] if own >= 0 else False)
    found, cosines = found[~is_itself][:count], cosines[~is_itself][:count]
    patient = films["patient"].iat[own] if own >= 0 else ""
    neighbours = []
    for row, cosine, film in zip(found.tolist(), cosines.tolist(), films.iloc[found].to_dict("records"), strict=True):
        same = (row == own or film["patient"] == patient) if patient else (True if row == own else None)
        labels = read_labels(film, archive.store.label_names)
        neighbours.append(Neighbour(row, film["uid"], cosine, row == own, same, film["split"] or "", labels))
    return Answer(query, tuple(neighbours), tuple(count_votes(neighbours, archive.store, rows)))


def count_votes(neighbours: Sequence[Neighbour], store: Store, rows: np.ndarray | None) -> list[Vote]:
    """Count the labels of the nearest patients: each has one vote, of its nearest film that knows the label.

    The patient of the query has none.
    """
    films = store.films
    searched = films if rows is None else films.iloc[rows]
    voters = [neighbour for neighbour in neighbours if not neighbour.same_patient]
    votes = []
    for label in store.label_names:
        value_of: dict[str, float] = {}
        for neighbour in voters:
            value = neighbour.labels[label]
            if value in (0, 1):
                value_of.setdefault(str(films["patient"].iat[neighbour.number] or neighbour.uid), float(value))
        if not value_of:
            continue
        hits = np.array(list(value_of.values()))
        share = interval_of_rate(hits, list(value_of))
        of_all = searched[label].to_numpy(float)
        of_all = of_all[(of_all == 0) | (of_all == 1)]
        votes.append(Vote(label, int(hits.sum()), len(hits), share.value, share.low, share.high, float(of_all.mean())))
    return sorted(votes, key=lambda vote: -vote.share)
