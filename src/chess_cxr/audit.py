"""The leak audit: which patients and pictures several splits, stores or published training lists share."""

from __future__ import annotations

import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chess_cxr.film_jpeg import encode_film
from chess_cxr.ingest.duplicates import find_near_hashes, unpack_hashes
from chess_cxr.ingest.matching import FilmDetail, FilmMatch, compute_detail, find_by_points, lay_film, match_films
from chess_cxr.records import UsageError
from chess_cxr.report.audit_page import FilmPicture, PairPicture, render_audit
from chess_cxr.report.page import write_page
from chess_cxr.store import Store

# Worst first: what is measured is wrong; what is measured may be; only weights are.
LEAKS = ("across splits", "across stores", "within a split")
KINDS = ("same film", "same pixels", "near duplicate", "one patient?")
PAIR_COLUMNS = (
    *("leak", "kind", "first_store", "first_split", "first_uid", "second_store", "second_split", "second_uid"),
    *("similarity", "transform", "overlap", "points", "same_patient", "first", "second"),
)
PATIENT_COLUMNS = ("leak", "patient", "where", "films")
LIST_COLUMNS = ("leak", "training_list", "store", "split", "films", "matched_by")
FILMS_AT_ONCE = 256
PAIRS_AT_ONCE = 1024
DETAILS_KEPT = 4000  # about 0.1 MB each
GROUP_OF_PAIRS = 8  # copies of one film up to this many are all paired, more of them in a chain
THUMBNAIL = 192

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class AuditOptions:
    """How hard to look, and what counts.

    hash_similarity: cosine of perceptual hashes from which two films are compared by their pictures.
    duplicate_similarity: of fine detail, from which two films are one exposure.  patient_similarity: from which they
    may be two exposures of one patient; a hint that is no leak by itself.  points, overlap: least of both.
    thorough: look for any turn, crop and scale too, by points; None: for up to `thorough_up_to` films.
    """

    hash_similarity: float = 0.93
    duplicate_similarity: float = 0.85
    patient_similarity: float = 0.7
    points: int = 12
    overlap: float = 0.2
    candidates_per_film: int = 8
    thorough: bool | None = None
    thorough_up_to: int = 2000
    shown: int = 60
    threads: int = 0  # 0: one a core


@dataclass(frozen=True)
class AuditResult:
    """What is shared, as tables with the worst first; every id in them is a keyed hash.

    pairs: `PAIR_COLUMNS`, `first` and `second` are row numbers in their stores.  patients: `PATIENT_COLUMNS`.
    lists: `LIST_COLUMNS`.  films: of each store.  notes: what the audit could not judge.  page: self-contained HTML.
    """

    pairs: pd.DataFrame
    patients: pd.DataFrame
    lists: pd.DataFrame
    films: Mapping[str, int]
    thorough: bool
    notes: tuple[str, ...] = ()
    page: str = field(default="", repr=False)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Pairs by leak and kind, patients and listed films by leak; "one patient?" pairs are hints, not leaks."""
        found = {
            leak: {kind: int(((self.pairs["leak"] == leak) & (self.pairs["kind"] == kind)).sum()) for kind in KINDS}
            | {"patients": int((self.patients["leak"] == leak).sum())}
            for leak in LEAKS
        }
        return found | {"training lists": {"films": int(self.lists.loc[self.lists["leak"], "films"].sum())}}

    @property
    def leaks(self) -> int:
        """How many pairs, patients and listed films cross splits or stores; 0 means that none was found."""
        crossing = [number for leak in LEAKS[:2] for kind, number in self.counts[leak].items() if kind != KINDS[3]]
        return sum(crossing) + self.counts["training lists"]["films"]

    def as_text(self) -> str:
        """Return the result in short lines, without any identifier."""
        films = ", ".join(f"{name} {count}" for name, count in self.films.items())
        lines = [f"films: {films}; turned and cropped copies {'' if self.thorough else 'NOT '}looked for"]
        for leak in LEAKS:
            told = [f"{_tell(kind, number)}" for kind, number in self.counts[leak].items() if number]
            lines.append(f"{leak}: {', '.join(told) or 'nothing'}")
        for row in self.lists.to_dict("records"):
            what = "LEAK" if row["leak"] else "as expected"
            where = f"{row['store']}, {row['split'] or 'no split'}"
            lines.append(f"{row['training_list']}: {row['films']} films of {where} by {row['matched_by']} ({what})")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def as_json(self) -> dict[str, Any]:
        """Return everything but the page as JSON-ready values."""
        tables = {name: _to_records(getattr(self, name)) for name in ("pairs", "patients", "lists")}
        films = {"films": dict(self.films), "thorough": self.thorough, "notes": list(self.notes)}
        return {"leaks": self.leaks, "counts": self.counts, **films, **tables}


def audit_stores(
    stores: Sequence[Store],
    training_lists: Sequence[Path] = (),
    options: AuditOptions | None = None,
    on_progress: OnProgress | None = None,
) -> AuditResult:
    """Find patients and pictures shared between stores, between splits and within a split, and with training lists.

    training_lists: encoder folders (their training_uids.txt), or text or CSV files that hold hashed uids, hashed
    patients or pixel hashes anywhere; their films are a leak unless the store has them in its train split.
    on_progress: called with the stage, and how much of it is done, of how much.
    Raises UsageError without a store, for a list that cannot be read, or for hashes of another version.
    """
    if not stores:
        raise UsageError("name at least one store to audit")
    options, show = options or AuditOptions(), on_progress or _show_nothing
    lists = [(_name_list(path), _read_list(path)) for path in training_lists]
    films = _read_films(stores)
    thorough = len(films) <= options.thorough_up_to if options.thorough is None else options.thorough
    seen = _find_equal(films)
    matched = _find_alike(stores, films, seen, thorough, options, show)
    pairs = _tabulate_pairs(films, seen, matched)
    result = AuditResult(
        pairs=pairs.drop(columns="match"),
        patients=_find_shared_patients(films),
        lists=_compare_lists(films, lists),
        films=films.groupby("store", sort=False).size().to_dict(),
        thorough=thorough,
        notes=tuple(_list_notes(films, lists, thorough)),
    )
    page = render_audit(*_describe(result), _picture_pairs(stores, films, pairs, options.shown), len(pairs))
    return AuditResult(**{**vars(result), "page": page})


def write_audit(result: AuditResult, out: Path) -> Path:
    """Write pairs.csv, patients.csv, lists.csv and report.html to a new folder, whole or not at all.

    Returns the page's path.  Raises UsageError where `out` exists.
    """
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists already; choose another --out or remove it")
    growing = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        growing.mkdir(parents=True)
        for name in ("pairs", "patients", "lists"):
            getattr(result, name).to_csv(growing / f"{name}.csv", index=False)
        write_page(growing / "report.html", result.page)
        growing.rename(out)
    finally:
        shutil.rmtree(growing, ignore_errors=True)
    return out / "report.html"


def _show_nothing(_stage: str, _done: int, _total: int) -> None:
    pass


def _read_films(stores: Sequence[Store]) -> pd.DataFrame:
    """Put the films of all stores into one table; `number` is the store's place, `row` the film's in it."""
    names: list[str] = []
    parts = []
    for number, store in enumerate(stores):
        again = names.count(store.path.name)
        names.append(store.path.name)
        part = store.films[["uid", "patient", "split"]].fillna("").join(store.read_hashes())
        name = f"{store.path.name} ({again + 1})" if again else store.path.name
        parts.append(part.assign(store=name, number=number, row=np.arange(len(part))))
    films = pd.concat(parts, ignore_index=True)
    films["pixel_hash"] = films["pixel_hash"].fillna("")
    films["perceptual_hash"] = [text or b"" for text in films["perceptual_hash"]]
    return films


def _find_equal(films: pd.DataFrame) -> dict[tuple[int, int], str]:
    """Find films with equal uid or equal pixels; places in `films` to kind."""
    found: dict[tuple[int, int], str] = {}
    for column, kind in (("pixel_hash", KINDS[1]), ("uid", KINDS[0])):
        named = films[(films[column] != "") & films.duplicated(column, keep=False)].sort_values([column, "split"])
        for _, group in named.groupby(column, sort=False):
            places = group.index.tolist()
            every = combinations(places, 2) if len(places) <= GROUP_OF_PAIRS else zip(places, places[1:], strict=False)
            found |= {(min(pair), max(pair)): kind for pair in every}
    return found


def _find_alike(
    stores: Sequence[Store],
    films: pd.DataFrame,
    seen: Mapping[tuple[int, int], str],
    thorough: bool,
    options: AuditOptions,
    show: OnProgress,
) -> dict[tuple[int, int], FilmMatch]:
    """Find films that show one exposure, or two of one patient; equal films are compared once a store and split."""
    single = films[films["perceptual_hash"].map(len) > 0]
    copies = (single["pixel_hash"] != "") & single.duplicated(["pixel_hash", "store", "split"])
    place = single.index[~copies].to_numpy()
    if len(place) < 2:
        return {}
    near = find_near_hashes(
        unpack_hashes(films["perceptual_hash"][place].tolist()),
        options.hash_similarity,
        options.candidates_per_film,
        on_progress=lambda done, total: show("compare hashes", done, total),
    )
    candidates = set(zip(near.first.tolist(), near.second.tolist(), near.mirrored, near.inverted, strict=True))
    details = _Details(stores, films, place, options.threads or os.cpu_count() or 1)
    if thorough:
        every = [detail for _, detail in details.walk(lambda done: show("find points", done, len(place)))]
        candidates |= set(find_by_points(every, lambda done, total: show("compare points", done, total)))
    pairs = sorted(pair for pair in candidates if (int(place[pair[0]]), int(place[pair[1]])) not in seen)
    return _verify(pairs, place, details, options, show)


def _verify(
    pairs: Sequence[tuple[int, int, bool, bool]],
    place: np.ndarray,
    details: _Details,
    options: AuditOptions,
    show: OnProgress,
) -> dict[tuple[int, int], FilmMatch]:
    kept: dict[tuple[int, int], FilmMatch] = {}
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        some = pairs[start : start + PAIRS_AT_ONCE]
        held = details.get({film for pair in some for film in pair[:2]})
        for first, second, mirrored, inverted in some:
            match = match_films(held[first], held[second], bool(mirrored), bool(inverted))
            pair = int(place[first]), int(place[second])
            if match and _counts(match, options) and (pair not in kept or match.similarity > kept[pair].similarity):
                kept[pair] = match
        show("compare pictures", start + len(some), len(pairs))
    return kept


def _counts(match: FilmMatch, options: AuditOptions) -> bool:
    return (
        match.similarity >= min(options.patient_similarity, options.duplicate_similarity)
        and match.points >= options.points
        and match.overlap >= options.overlap
    )
