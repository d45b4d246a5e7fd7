"""Audit leaks: patients and pictures shared between splits, stores or published training lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chess_cxr.audit.alike import find_alike
from chess_cxr.audit.matching import FilmMatch
from chess_cxr.audit.near import EXACT_BELOW
from chess_cxr.audit.options import AuditOptions
from chess_cxr.audit.page import draw_pairs, render_result
from chess_cxr.audit.result import (
    DRAWN_COLUMNS,
    KINDS,
    LEAKS,
    LIST_COLUMNS,
    PAIR_COLUMNS,
    PATIENT_COLUMNS,
    AuditResult,
    get_row,
)
from chess_cxr.evaluation.neighbours import make_unit
from chess_cxr.records import OnProgress, UsageError
from chess_cxr.store import Store

GROUP_OF_PAIRS = 8  # up to so many copies of one film are all paired; more are paired with the first of each split


def audit_stores(
    stores: Sequence[Store],
    training_lists: Sequence[Path] = (),
    options: AuditOptions | None = None,
    on_progress: OnProgress | None = None,
    features: Sequence[np.ndarray] = (),
) -> AuditResult:
    """Find patients and pictures shared between stores, between splits, within a split, and with training lists.

    training_lists: encoder folders (their training_uids.txt), or text or CSV files with hashed uids, hashed patients or
    pixel hashes in any place; a listed film is a leak unless it is in the train split of its store.
    on_progress: called with the stage, the finished pieces and the total.
    features: of an encoder for the films of each store, float32 [N, D]; films that are near in them are compared too.
    Raises `UsageError` without a store, for a similarity outside (0, 1], an unreadable list, or hashes of another
    version.
    """
    if not stores:
        raise UsageError("name at least one store to audit, before --training-list")
    options, show = options or AuditOptions(), on_progress or (lambda *_: None)
    if not 0 < options.duplicate_similarity <= 1:
        raise UsageError(f"the duplicate similarity {options.duplicate_similarity:g} is not between 0 and 1")
    options = replace(options, similarity=min(options.similarity, options.duplicate_similarity))
    lists = [(path.name, _read_list(path)) for path in training_lists]
    films = _read_films(stores)
    thorough = len(films) <= options.thorough_up_to if options.thorough is None else options.thorough
    seen = _find_equal(films)
    unit_ND = _center(features) if features else None
    matched = _find_alike(stores, films, seen, thorough, options, show, unit_ND)
    pairs = _tabulate_pairs(films, seen, matched, options)
    compared = _compare_lists(films, lists)
    result = AuditResult(
        pairs=pairs[list(PAIR_COLUMNS)],
        patients=_find_shared_patients(films),
        lists=compared,
        films={str(name): int(count) for name, count in films["store"].value_counts(sort=False).items()},
        thorough=thorough,
        notes=tuple(_list_notes(films, lists, compared, thorough)),
        by_features=bool(features),
    )
    synthetic = all("SYNTHETIC" in store.dataset_name for store in stores)
    pictures = draw_pairs(stores, pairs.head(options.shown), show)
    return replace(result, page=render_result(result, pictures, synthetic))


def _read_films(stores: Sequence[Store]) -> pd.DataFrame:
    """Join the films of all stores in one table; number: index of the store, row: row number in it."""
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
    """Find films with equal uid or equal pixels; return the kind of each pair of places in `films`."""
    found: dict[tuple[int, int], str] = {}
    for column, kind in (("pixel_hash", KINDS[1]), ("uid", KINDS[0])):
        named = films[(films[column] != "") & films.duplicated(column, keep=False)].sort_values([column, "split"])
        for _, group in named.groupby(column, sort=False):
            places = group.index.tolist()
            every: Iterable[tuple[int, int]] = combinations(places, 2)
            if len(places) > GROUP_OF_PAIRS:
                firsts = group.groupby(["store", "split"], sort=False).head(1).index
                every = ((first, film) for first in firsts for film in places if film != first)
            found |= {(min(pair), max(pair)): kind for pair in every}
    return found


def _find_alike(
    stores: Sequence[Store],
    films: pd.DataFrame,
    seen: Mapping[tuple[int, int], str],
    thorough: bool,
    options: AuditOptions,
    show: OnProgress,
    unit_ND: np.ndarray | None,
) -> dict[tuple[int, int], FilmMatch]:
    """Find films with the same picture; of equal films, compare one for each store and split."""
    hashed = films[films["perceptual_hash"].map(len) > 0]
    copies = (hashed["pixel_hash"] != "") & hashed.duplicated(["pixel_hash", "store", "split"])
    place = hashed.index[~copies].to_numpy()
    known_place = np.flatnonzero(np.isin(place, [film for pair in seen for film in pair]))
    place_of = dict(zip(place[known_place].tolist(), known_place.tolist(), strict=True))
    known = {(place_of[a], place_of[b]) for a, b in seen if a in place_of and b in place_of}
    read = _build_reader(stores, films.loc[place])
    own_ND = None if unit_ND is None else unit_ND[place]
    found = find_alike(films["perceptual_hash"][place].tolist(), read, thorough, options, known, show, own_ND)
    return {(int(place[a]), int(place[b])): match for (a, b), match in found.items()}


def _center(features: Sequence[np.ndarray]) -> np.ndarray:
    """Join the features of all stores, less their mean and at length 1, float32 [N, D]."""
    feature_ND = np.concatenate(features)
    centred_ND = feature_ND - feature_ND.mean(0, dtype=np.float64).astype(np.float32)
    return make_unit(centred_ND).astype(np.float32)


def _build_reader(stores: Sequence[Store], films: pd.DataFrame) -> Callable[[Sequence[int]], list[np.ndarray]]:
    """Return a function that reads the pictures of places in `films`, each store once a call."""
    number, row = films["number"].to_numpy(), films["row"].to_numpy()

    def read(places: Sequence[int]) -> list[np.ndarray]:
        wanted = np.asarray(places, np.int64)
        pictures: dict[int, np.ndarray] = {}
        for store in np.unique(number[wanted]):
            own = wanted[number[wanted] == store]
            pictures |= zip(own.tolist(), stores[store].read_films(row[own]), strict=True)
        return [pictures[place] for place in wanted.tolist()]

    return read


def _tabulate_pairs(
    films: pd.DataFrame,
    seen: Mapping[tuple[int, int], str],
    matched: Mapping[tuple[int, int], FilmMatch],
    options: AuditOptions,
) -> pd.DataFrame:
    """Return `PAIR_COLUMNS` and `DRAWN_COLUMNS`, worst first, without hints at patients known to be the same."""
    rows = [_describe_pair(films, pair, kind, None) for pair, kind in seen.items()]
    for pair, match in matched.items():
        kind = KINDS[2] if match.similarity >= options.duplicate_similarity else KINDS[3]
        rows.append(_describe_pair(films, pair, kind, match))
    table = pd.DataFrame(rows, columns=[*PAIR_COLUMNS, *DRAWN_COLUMNS, "rank"])
    table = table[~((table["kind"] == KINDS[3]) & table["same_patient"].astype(bool))]
    return (
        table.sort_values(["rank", "similarity"], ascending=[True, False]).drop(columns="rank").reset_index(drop=True)
    )


def _describe_pair(films: pd.DataFrame, pair: tuple[int, int], kind: str, match: FilmMatch | None) -> dict[str, Any]:
    first, second = (get_row(films, place) for place in pair)
    leak = _name_leak((first["store"], first["split"]), (second["store"], second["split"]))
    equal = first["pixel_hash"] != "" and first["pixel_hash"] == second["pixel_hash"]
    row = {
        "leak": leak,
        "kind": kind,
        "similarity": match.similarity if match else 1.0 if equal else np.nan,
        "transform": match.describe() if match else "upright" if equal else "",
        "overlap": match.overlap if match else 1.0 if equal else np.nan,
        "points": match.points if match else 0,
        "same_patient": bool(first["patient"]) and first["patient"] == second["patient"],
        "match": match,
        "rank": (kind == KINDS[3], LEAKS.index(leak), first["split"] == second["split"]),
    }
    for name, film in (("first", first), ("second", second)):
        row |= {f"{name}_{column}": film[column] for column in ("store", "split", "uid", "number")}
        row[name] = int(film["row"])
    return row


def _name_leak(first: tuple[str, str], second: tuple[str, str]) -> str:
    if first[0] != second[0]:
        return LEAKS[1]
    return LEAKS[0] if first[1] != second[1] else LEAKS[2]


def _find_shared_patients(films: pd.DataFrame) -> pd.DataFrame:
    named = films[films["patient"] != ""]
    spread = named.drop_duplicates(["patient", "store", "split"])
    spread = spread[spread.duplicated("patient", keep=False)]
    count = named["patient"].value_counts()
    rows = []
    for patient, places in spread.groupby("patient", sort=True):
        across = LEAKS[0] if places.duplicated("store").any() else LEAKS[1]
        where = ", ".join((places["store"] + ": " + places["split"].replace("", "no split")).tolist())
        rows.append((across, patient, where, int(count[patient])))
    return pd.DataFrame(rows, columns=list(PATIENT_COLUMNS)).sort_values(["leak", "patient"], key=_rank_leaks)


def _rank_leaks(column: pd.Series[Any]) -> pd.Series[Any]:
    return column.map(LEAKS.index) if column.name == "leak" else column


def _read_list(path: Path) -> set[str]:
    """Return every word of a training list; a word that equals an identifier of a store is one."""
    file = path / "training_uids.txt" if path.is_dir() else path
    try:
        with file.open(encoding="utf-8") as lines:
            return {word for line in lines for word in re.findall(r"[^\s,;\"']+", line)}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise UsageError(f"cannot read the training list {file}: {reason}") from None


def _compare_lists(films: pd.DataFrame, lists: Sequence[tuple[str, set[str]]]) -> pd.DataFrame:
    rows = []
    for name, words in lists:
        matched_by = np.select(
            [films[column].isin(words) for column in ("uid", "pixel_hash", "patient")],
            ["uid", "pixel hash", "patient"],
            default="",
        )
        listed = films.assign(matched_by=matched_by)[matched_by != ""]
        for (store, split, by), group in listed.groupby(["store", "split", "matched_by"], sort=False):
            rows.append((split != "train", name, store, split, len(group), by))
    return pd.DataFrame(rows, columns=list(LIST_COLUMNS)).sort_values("leak", ascending=False, kind="stable")


def _list_notes(
    films: pd.DataFrame, lists: Sequence[tuple[str, set[str]]], compared: pd.DataFrame, thorough: bool
) -> Iterator[str]:
    """Yield what the audit could not judge."""
    if blank := int((films["perceptual_hash"].map(len) == 0).sum()):
        yield f"{blank} films have no hash of their picture; ingest them again to have them compared"
    if len(films) > EXACT_BELOW:
        yield f"above {EXACT_BELOW} films hashes are compared by buckets, which miss a few per cent of the copies"
    if not thorough:
        yield "copies that were cropped, scaled or turned by other than quarter turns are found with --thorough only"
    for (one, ours), (other, theirs) in combinations(films.groupby("store", sort=False), 2):
        if not (set(ours["patient"]) & set(theirs["patient"]) - {""}):
            yield (
                f"{one} and {other} have no patient hash in common: either they share no patient, or their ids were "
                "hashed with different keys; in that case only pictures were compared"
            )
    for name, words in lists:
        if name not in set(compared["training_list"]):
            yield (
                f"{name}: none of its {len(words)} entries is a uid, patient or pixel hash of these stores; only ids "
                "hashed with the same key can be compared"
            )
