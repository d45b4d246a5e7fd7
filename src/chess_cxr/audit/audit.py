"""The leak audit: which patients and pictures several splits, stores or published training lists share."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chess_cxr.audit.alike import SearchOptions, find_alike
from chess_cxr.audit.matching import FilmMatch, compute_detail, lay_film
from chess_cxr.audit.near import EXACT_BELOW
from chess_cxr.audit.page import AuditTable, FilmPicture, PairPicture, render_audit
from chess_cxr.film_jpeg import encode_film
from chess_cxr.records import UsageError
from chess_cxr.report.page import write_page
from chess_cxr.store import Store

# Worst first: what is measured is wrong; what is measured may be; only weights are.
LEAKS = ("across splits", "across stores", "within a split")
KINDS = ("same film", "same pixels", "near duplicate", "one patient?")
PAIR_COLUMNS = (
    *("leak", "kind", "first_store", "first_split", "first_uid", "second_store", "second_split", "second_uid"),
    *("similarity", "transform", "overlap", "points", "same_patient", "first", "second"),
)
DRAWN_COLUMNS = ("match", "first_number", "second_number")
PATIENT_COLUMNS = ("leak", "patient", "where", "films")
LIST_COLUMNS = ("leak", "training_list", "store", "split", "films", "matched_by")
TOLD = {
    "same film": ("pair with one uid", "pairs with one uid"),
    "same pixels": ("pair with the same pixels", "pairs with the same pixels"),
    "near duplicate": ("near-duplicate pair", "near-duplicate pairs"),
    "one patient?": ("hint at one patient under two ids", "hints at one patient under two ids"),
    "patients": ("patient", "patients"),
}
GROUP_OF_PAIRS = 8  # copies of one film up to this many are all paired, more of them with the first of each split
THUMBNAIL = 192
ROWS_SHOWN = 20

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class AuditOptions(SearchOptions):
    """How hard to look and what counts; see `SearchOptions`.

    duplicate_similarity: of fine detail, from which two films are one exposure; below, they may be two exposures of one
    patient, a hint that is no leak by itself.  thorough: look for any turn, crop and scale too; None: for up to
    `thorough_up_to` films.  shown: pairs on the page.
    """

    duplicate_similarity: float = 0.85
    thorough: bool | None = None
    thorough_up_to: int = 2000
    shown: int = 60


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
            told = [_tell(kind, number) for kind, number in self.counts[leak].items() if number]
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
    Raises UsageError without a store, for a similarity beyond 1, for a list that cannot be read, or for hashes of
    another version.
    """
    if not stores:
        raise UsageError("name at least one store to audit, before --training-list")
    options, show = options or AuditOptions(), on_progress or _show_nothing
    if not 0 < options.duplicate_similarity <= 1:
        raise UsageError(f"the duplicate similarity {options.duplicate_similarity:g} is not between 0 and 1")
    options = replace(options, similarity=min(options.similarity, options.duplicate_similarity))
    lists = [(path.name, _read_list(path)) for path in training_lists]
    films = _read_films(stores)
    thorough = len(films) <= options.thorough_up_to if options.thorough is None else options.thorough
    seen = _find_equal(films)
    matched = _find_alike(stores, films, seen, thorough, options, show)
    pairs = _tabulate_pairs(films, seen, matched, options)
    compared = _compare_lists(films, lists)
    result = AuditResult(
        pairs=pairs[list(PAIR_COLUMNS)],
        patients=_find_shared_patients(films),
        lists=compared,
        films={str(name): int(count) for name, count in films["store"].value_counts(sort=False).items()},
        thorough=thorough,
        notes=tuple(_list_notes(films, lists, compared, thorough)),
    )
    return replace(result, page=_render(result, _draw_pairs(stores, pairs.head(options.shown), show)))


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
) -> dict[tuple[int, int], FilmMatch]:
    """Find films with one picture; equal films are compared once a store and split."""
    hashed = films[films["perceptual_hash"].map(len) > 0]
    copies = (hashed["pixel_hash"] != "") & hashed.duplicated(["pixel_hash", "store", "split"])
    place = hashed.index[~copies].to_numpy()
    place_of = {film: number for number, film in enumerate(place.tolist())}
    known = {(place_of[a], place_of[b]) for a, b in seen if a in place_of and b in place_of}
    read = _build_reader(stores, films.loc[place])
    found = find_alike(films["perceptual_hash"][place].tolist(), read, thorough, options, known, show)
    return {(int(place[a]), int(place[b])): match for (a, b), match in found.items()}


def _build_reader(stores: Sequence[Store], films: pd.DataFrame) -> Callable[[Sequence[int]], list[np.ndarray]]:
    """Return a function from places in `films` to their pictures, which reads each store once."""
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
    """Return `PAIR_COLUMNS` and the match, worst first; a hint at a patient who is known anyway is left out."""
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
    first, second = (_get_row(films, place) for place in pair)
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


def _get_row(table: pd.DataFrame, place: int) -> dict[str, Any]:
    return {name: table[name].iat[place] for name in table.columns}


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
    """Return every word of a training list: what is an identifier in it shows when it meets a store's."""
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
    """Say what could not be judged, so that silence is not taken for proof."""
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
                "hashed with different keys; only pictures were compared then"
            )
    for name, words in lists:
        if name not in set(compared["training_list"]):
            yield (
                f"{name}: none of its {len(words)} entries is a uid, patient or pixel hash of these stores; only ids "
                "hashed with the same key can be compared"
            )


def _tell(kind: str, number: int) -> str:
    one, many = TOLD[kind]
    return f"{number} {one if number == 1 else many}"


def _to_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(name): None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}
        for row in table.to_dict("records")
    ]


def _render(result: AuditResult, pictures: Sequence[PairPicture]) -> str:
    counts = pd.DataFrame(
        [{"": TOLD[kind][1], **{leak: result.counts[leak][kind] for leak in LEAKS}} for kind in (*KINDS, "patients")]
    )
    told = ", ".join(f"{name} ({count:,} films)" for name, count in result.films.items())
    tables = [
        AuditTable("What is shared", counts, "Hints, two exposures that look like one person, do not count as leaks.")
    ]
    if len(result.patients):
        shown = result.patients.head(ROWS_SHOWN)
        caption = f"{len(shown)} of {len(result.patients)} patients; all stand in patients.csv. Ids are keyed hashes."
        tables.append(AuditTable("Patients in more than one place", shown, caption))
    if len(result.lists):
        shown = result.lists.assign(leak=result.lists["leak"].map({True: "LEAK", False: "as expected"}))
        tables.append(AuditTable("Films in training lists", shown, "Films of a train split are expected there."))
    verdict = (
        f"{result.leaks:,} leaks across splits, stores or training lists were found."
        if result.leaks
        else "No leak across splits, stores or training lists was found."
    )
    return render_audit(
        f"Leak audit of {told}", verdict, result.leaks, tables, pictures, len(result.pairs), result.notes
    )


def _draw_pairs(stores: Sequence[Store], pairs: pd.DataFrame, show: OnProgress) -> list[PairPicture]:
    drawn = []
    for number in range(len(pairs)):
        pair = _get_row(pairs, number)
        first, second = (_read_one(stores, pair, name) for name in ("first", "second"))
        facts = [str(pair["kind"]), *([f"similarity {pair['similarity']:.2f}"] if pair["similarity"] > 0 else [])]
        facts += [pair["transform"]] if pair["transform"] else []
        facts += ["one patient by id" if pair["same_patient"] else "two patients by id"]
        laid = _draw_laid(first, second, pair["match"]) if pair["match"] else b""
        films = [
            FilmPicture(_say_where(pair, name), pair[f"{name}_uid"], _shrink(film))
            for name, film in (("first", first), ("second", second))
        ]
        drawn.append(PairPicture(_head(pair), tuple(facts), films[0], films[1], laid))
        show("draw pairs", number + 1, len(pairs))
    return drawn


def _say_where(pair: Mapping[str, Any], name: str) -> str:
    return f"{pair[f'{name}_store']}, {pair[f'{name}_split'] or 'no split'}"


def _head(pair: Mapping[str, Any]) -> str:
    return (
        f"Hints at one patient under two ids, {pair['leak']}"
        if pair["kind"] == KINDS[3]
        else f"Films shared {pair['leak']}"
    )


def _read_one(stores: Sequence[Store], pair: Mapping[str, Any], name: str) -> np.ndarray:
    film: np.ndarray = stores[pair[f"{name}_number"]].read_films([pair[name]])[0]
    return film


def _draw_laid(first: np.ndarray, second: np.ndarray, match: FilmMatch) -> bytes:
    laid, covered = lay_film(compute_detail(first).grey_HW, match.matrix_23, compute_detail(second).grey_HW.shape)
    return _shrink(np.where(covered > 0, 255 - laid if match.inverted else laid, 0).astype(np.uint8))


def _shrink(film: np.ndarray) -> bytes:
    return encode_film(film.astype(np.float32) / 255, THUMBNAIL)[0]
