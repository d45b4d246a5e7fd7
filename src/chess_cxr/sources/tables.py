"""List the films of a table that their owner keeps beside them."""

from __future__ import annotations

import math
import os
import posixpath
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from chess_cxr.files.listing import build_link_check, find_kind
from chess_cxr.files.locations import is_url
from chess_cxr.records import (
    SPLITS,
    UNCERTAIN,
    ChessError,
    FilmListing,
    SourceFilm,
    UsageError,
    parse_age_years,
    parse_date,
    parse_sex,
    parse_view,
)

_FILM_FIELDS = ("path", "uid", "patient", "study", "view", "age", "sex", "split")
FIELDS = (*_FILM_FIELDS, "class", "labels", "study_date", "manufacturer", "site")
PATH_COLUMNS = ("file", "path", "Path", "filename", "file_name", "image", "Image Index", "dicom_path", "ImageID")
MAX_CLASSES = 1000
MAX_SITES = 1000
_SAME_NAME = (*_FILM_FIELDS[2:], "study_date", "manufacturer")
_BLANK = frozenset({"", "nan", "NaN", "NaT", "NA", "<NA>", "N/A", "null", "None"})
_SPLIT_NAMES = {"training": "train", "testing": "test"} | dict.fromkeys(
    ("valid", "validate", "validation", "dev"), "val"
)
_NAMES = ("path", "uid", "patient", "study")
# Spellings that need a closer look: a part that is "", "." or "..", a leading backslash, a ":"
_ODD_PATH = r"(?:^|/)\.{0,2}(?:/|$)|^\\|:"
# Labels are held as small codes, which index these values; -1 takes the last.
_UNKNOWN = 2
_LABEL_OF_CODE = np.array([0.0, 1.0, np.nan, UNCERTAIN])
_ROWS_A_SLICE = 4096
_PARSERS: dict[str, Callable[[str], str | float]] = {
    "age": parse_age_years,
    "sex": parse_sex,
    "view": parse_view,
    "study_date": parse_date,
}


# ---------------------------------------------------------------- rows to films


def build_table_listing(frame: pd.DataFrame, roots: Sequence[Path | str], columns: Mapping[str, str]) -> FilmListing:
    """List the films of a table, one a row, in its order; check everything now and build the films later.

    roots: folders or URLs that hold the paths of the table.  columns, errors: as for `read_folder`.
    """
    chosen = _choose_columns(frame, columns)
    used = {field: chosen[field] for field in FIELDS if field != "labels" and chosen.get(field)}
    texts = {field: _read_text(frame[column], column, field) for field, column in used.items()}
    places = [os.path.abspath(root) if isinstance(root, Path) else root for root in roots]
    texts["path"] = _simplify_paths(texts["path"], places, chosen["path"])
    texts["uid"] = _choose_uids(texts.get("uid"), texts["path"])
    split_of = _read_splits(texts["split"], chosen["split"]) if "split" in texts else {}
    _check_sites(texts.get("site"), chosen.get("site", ""))
    names, code_NL = _read_labels(frame, chosen, texts.pop("class", None))

    def list_films() -> Iterator[SourceFilm]:
        checks = {place: build_link_check(place) for place in places}
        for start in range(0, len(code_NL), _ROWS_A_SLICE):
            rows = slice(start, start + _ROWS_A_SLICE)
            parts = {field: column.iloc[rows].tolist() for field, column in texts.items()}
            parts["location"] = _find_films(parts["path"], checks, start, chosen["path"])
            yield from _make_films(parts, split_of, names, _LABEL_OF_CODE[code_NL[rows]].tolist())

    notes = (_tell_columns(chosen, names), *_tell_unread(texts))
    return FilmListing(label_names=tuple(names), list_films=list_films, count=lambda: len(code_NL), notes=notes)


def _tell_columns(chosen: Mapping[str, str], label_names: Sequence[str]) -> str:
    used = " ".join(f"{field}={column}" for field, column in chosen.items() if column)
    unlabelled = "" if label_names else "; no labels (map class=COLUMN or labels=COLUMN,COLUMN)"
    return f"columns of the table: {used}{unlabelled}"


def _tell_unread(texts: Mapping[str, pd.Series]) -> Iterator[str]:
    """Yield a line for each field with unreadable cells, which become unknown."""
    for field, parse in _PARSERS.items():
        if field in texts:
            counts = texts[field].value_counts()
            unread = int(counts[[text for text in counts.index if text and _is_unknown(parse(str(text)))]].sum())
            if unread:
                yield f"{field}: {unread} cells are not understood and count as unknown"


def _is_unknown(value: str | float) -> bool:
    return value == "" if isinstance(value, str) else math.isnan(value)


def _make_films(
    parts: Mapping[str, list[str]], split_of: Mapping[str, str], names: Sequence[str], labels: Sequence[list[float]]
) -> Iterator[SourceFilm]:
    blank = [""] * len(labels)
    age, sex, view, day = cache(parse_age_years), cache(parse_sex), cache(parse_view), cache(parse_date)
    for row, label in enumerate(labels):
        yield SourceFilm(
            path=location if is_url(location := parts["location"][row]) else Path(location),
            uid=parts["uid"][row],
            patient=parts.get("patient", blank)[row],
            study=parts.get("study", blank)[row],
            view=view(parts.get("view", blank)[row]),
            age_years=age(parts.get("age", blank)[row]),
            sex=sex(parts.get("sex", blank)[row]),
            split=split_of.get(parts.get("split", blank)[row], ""),
            study_date=day(parts.get("study_date", blank)[row]),
            manufacturer=parts.get("manufacturer", blank)[row],
            site=parts.get("site", blank)[row],
            labels=dict(zip(names, label, strict=True)),
        )


def name_split(text: str) -> str:
    """Return the split that a word means, or the word in lower case; the caller checks it against `SPLITS`."""
    return _SPLIT_NAMES.get(text.lower(), text.lower())


def _choose_columns(frame: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, str]:
    """Return the column of each field, "" for none."""
    if unknown := [field for field in columns if field not in FIELDS]:
        raise UsageError(f"no field is named {unknown[0]!r}; fields are {', '.join(FIELDS)}")
    chosen = {field: field for field in _SAME_NAME if field in frame.columns} | dict(columns)
    if not chosen.get("path"):
        chosen["path"] = next((name for name in PATH_COLUMNS if name in frame.columns), "")
    if not chosen["path"]:
        raise UsageError(f"no column holds the files; map one with path=NAME: {_list_columns(frame)}")
    asked = [name for field, name in chosen.items() if field != "labels" and name]
    asked += _split_names(chosen.get("labels", ""))
    if missing := [name for name in asked if name not in frame.columns]:
        raise UsageError(f"the table has no column {missing[0]!r}; {_list_columns(frame)}")
    if doubled := [name for name in asked if list(frame.columns).count(name) > 1]:
        raise UsageError(f"the table has more than one column {doubled[0]!r}")
    return chosen


def _list_columns(frame: pd.DataFrame) -> str:
    return f"it has {', '.join(map(str, frame.columns))}"


def _split_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _read_text(column: pd.Series, name: str, field: str = "") -> pd.Series:
    """Return a column as text, "" for blanks; whole numbers that blanks turned into floats lose their ".0".

    Words such as NA are blanks, except in paths and uids: a file may be named "NA".
    """
    missing = column.isna().reset_index(drop=True)
    if pd.api.types.is_float_dtype(column):
        text = _write_numbers(column, name, field)
    elif column.dtype == object:
        text = pd.Series(_decode_bytes(column, name), dtype=str)
    else:
        text = column.astype(str).reset_index(drop=True)
    if field in ("path", "uid"):
        return text.mask(missing | (text.str.strip() == ""), "")
    text = text.str.strip()
    return text.mask(missing | text.isin(_BLANK), "")


def _write_numbers(column: pd.Series, name: str, field: str) -> pd.Series:
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    if field in _NAMES and (wrong := np.flatnonzero(np.isinf(values))).size:
        raise UsageError(f"column {name!r} holds an infinite number in row {wrong[0] + 1}, which names nothing")
    return pd.Series([str(int(v)) if v.is_integer() else str(v) for v in values.tolist()], dtype=str)


def _decode_bytes(column: pd.Series, name: str) -> list[str]:
    """Return the values of a column as text; Parquet tables of some tools are binary."""
    texts = []
    for row, value in enumerate(column.tolist(), start=1):
        try:
            texts.append(value.decode() if isinstance(value, bytes) else str(value))
        except UnicodeDecodeError:
            raise UsageError(f"column {name!r} is binary, and row {row} is not UTF-8 text") from None
    return texts


def _read_splits(texts: pd.Series, column: str) -> dict[str, str]:
    """Return the split of each text in a column."""
    split_of = {text: name_split(text) for text in texts.unique()}
    unknown = [text for text, split in split_of.items() if split and split not in SPLITS]
    if unknown:
        rows = np.flatnonzero(texts.isin(unknown))
        raise UsageError(
            f"column {column!r} holds something other than a split in {_name_rows(rows)}; "
            "use train, val or test, or leave it out"
        )
    return split_of


def _check_sites(texts: pd.Series | None, column: str) -> None:
    """Refuse a column that names films or patients: sites are stored as they are written."""
    if texts is None:
        return
    named = texts[texts != ""]
    if (sites := named.nunique()) > min(MAX_SITES, max(1, len(named) // 2)):
        raise UsageError(f"column {column!r} holds {sites} values in {len(named)} rows, too many for sites")


def _name_rows(rows: np.ndarray) -> str:
    """Name the first of some rows, counted from 1 below the header; its content may name a patient."""
    return f"row {rows[0] + 1}" + (f" ({len(rows)} such rows)" if len(rows) > 1 else "")


def _choose_uids(uids: pd.Series | None, paths: pd.Series) -> pd.Series:
    """Return the uids, or paths in their place; refuse two rows with one file or one uid."""
    _check_unique(paths, "file")
    if uids is None:
        return paths
    uids = uids.where(uids != "", paths)
    _check_unique(uids, "uid")
    return uids


def _check_unique(texts: pd.Series, what: str) -> None:
    repeated = np.flatnonzero(texts.duplicated())
    if len(repeated):
        first = int(np.flatnonzero(texts == texts.iloc[repeated[0]])[0])
        raise UsageError(
            f"the {what} of row {first + 1} occurs again in {_name_rows(repeated)}; "
            f"every film needs a {what} of its own"
        )


# ---------------------------------------------------------------- paths


def _simplify_paths(paths: pd.Series, places: Sequence[str], column: str) -> pd.Series:
    """Return paths in a unique spelling, relative to their place if it is certain.

    Raises `UsageError` for a row without a file and for a file outside all places.
    """
    if (blank := np.flatnonzero(paths == "")).size:
        raise UsageError(f"row {blank[0] + 1} of column {column!r} names no file")
    # Of millions of paths, only the odd ones are resolved.
    odd = np.flatnonzero(paths.str.contains(_ODD_PATH, regex=True))
    if not len(odd):
        return paths
    simple = paths.to_numpy(dtype=object, copy=True)
    plain = set(simple.tolist()) if len(places) > 1 else set()
    for row in odd.tolist():
        simple[row] = _simplify_path(simple[row], places, plain)
        if not simple[row]:
            raise UsageError(f"row {row + 1} of column {column!r} leads out of {', '.join(places)}")
    return pd.Series(simple, dtype=str)


def _simplify_path(text: str, places: Sequence[str], plain: Collection[str]) -> str:
    """Return a relative path; with several places, keep an absolute one unless its file is in `plain` too."""
    found = next(((place, location) for place in places if (location := locate_below(place, text))), None)
    if found is None:
        return ""
    place, location = found
    inside = location[len(place) :].lstrip("/")
    if len(places) == 1 or not (text.startswith("/") or is_url(text)):
        return inside
    return inside if inside in plain and _find_film(inside, places)[1] == location else location


def locate_below(place: str, text: str) -> str:
    """Return the location of a table's path below a place, "" if it leads out."""
    if not is_url(place):
        path = os.path.normpath(os.path.join(place, text))
        return path if path.startswith(os.path.join(place, "")) and not is_url(text) else ""
    if is_url(text) and not text.startswith(f"{place}/"):
        return ""
    inside = posixpath.normpath(text.removeprefix(f"{place}/"))
    return "" if inside.startswith(("/", "../")) or inside in (".", "..") else f"{place}/{inside}"


def _find_film(text: str, places: Iterable[str]) -> tuple[str, str]:
    """Return place and location of a table's file; of several places, the first one that has it."""
    found = [(place, location) for place in places if (location := locate_below(place, text))]
    if len(found) > 1:
        found = [pair for pair in found if find_kind(pair[1])] or found
    return found[0]


def _find_films(
    texts: Sequence[str], leads_out_of: Mapping[str, Callable[[str], bool]], start: int, column: str
) -> list[str]:
    """Return the locations of films; raise `UsageError` for a link out of its place, as a walk would skip it."""
    locations = []
    for row, text in enumerate(texts, start=start + 1):
        try:
            place, location = _find_film(text, leads_out_of)
        except OSError as error:  # its text may hold the name
            raise ChessError(f"the file of row {row} cannot be looked up ({type(error).__name__})") from None
        if leads_out_of[place](location):
            raise UsageError(f"row {row} of column {column!r} names a link that leads out of {place}")
        locations.append(location)
    return locations


# ---------------------------------------------------------------- labels


def _read_labels(
    frame: pd.DataFrame, chosen: Mapping[str, str], classes: pd.Series | None
) -> tuple[list[str], np.ndarray]:
    """Return the names of the labels and the code of each in each row, int8 [rows, labels]."""
    by_name = {name: _read_label(frame[name], name) for name in _split_names(chosen.get("labels", ""))}
    if classes is not None:
        values = sorted(set(classes.unique()) - {""})
        if len(values) > MAX_CLASSES:
            raise UsageError(
                f"column {chosen['class']!r} holds {len(values)} classes; at most {MAX_CLASSES} are allowed"
            )
        for value in values:
            if value in by_name:
                raise UsageError(f"the class {value!r} and a label column have the same name")
            by_name[value] = np.where(classes == "", _UNKNOWN, classes == value).astype(np.int8)
    if not by_name:
        return [], np.empty((len(frame), 0), np.int8)
    return list(by_name), np.stack(list(by_name.values()), axis=1)


def _read_label(column: pd.Series, name: str) -> np.ndarray:
    if pd.api.types.infer_dtype(column, skipna=True) == "boolean":  # of a Parquet table; in text, True is a word
        column = column.map({True: "1", False: "0"})
    texts = _read_text(column, name)
    values = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.flatnonzero((texts != "").to_numpy() & ~np.isin(values, (-1.0, 0.0, 1.0)))
    if len(wrong):
        raise UsageError(
            f"column {name!r} holds something other than 1, 0, -1 or blank in {_name_rows(wrong)}; labels are numbers"
        )
    return np.where(np.isnan(values), _UNKNOWN, values).astype(np.int8)
