"""Tables that owners keep beside their films: read as they stand, and turned into films."""

from __future__ import annotations

import csv
import gzip
import io
import os
import posixpath
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd

from chess_cxr.locations import find_kind, is_url, read_location, simplify_location
from chess_cxr.records import SPLITS, UNCERTAIN, FilmListing, SourceFilm, UsageError
from chess_cxr.sources.demographics import parse_age_years, parse_sex, parse_view

_FILM_FIELDS = ("path", "uid", "patient", "study", "view", "age", "sex", "split")
FIELDS = (*_FILM_FIELDS, "class", "labels", "study_date", "manufacturer")
PATH_COLUMNS = ("file", "path", "Path", "filename", "file_name", "image", "Image Index", "dicom_path", "ImageID")
MAX_TABLE_BYTES = 8 << 30
MAX_CLASSES = 1000
_SAME_NAME = (*_FILM_FIELDS[2:], "study_date", "manufacturer")
_BLANK = frozenset({"", "nan", "NaN", "NaT", "NA", "<NA>", "N/A", "null", "None"})
_SPLIT_NAMES = {"training": "train", "valid": "val", "validate": "val", "validation": "val", "dev": "val"} | {
    "testing": "test"
}
# Labels are held as small codes: -1, 0 and 1 stand for themselves, and -1 takes the last of these.
_UNKNOWN = 2
_LABEL_OF_CODE = np.array([0.0, 1.0, np.nan, UNCERTAIN])
_ROWS_A_SLICE = 4096
_DATE = re.compile(r"^(\d{4})(-?)(\d{2})\2(\d{2})(?:[ T].*)?$")


def read_table(table: Path | str) -> pd.DataFrame:
    """Read a CSV, TSV or Parquet file or object (text may be gzipped); text columns hold every value as it stands.

    Raises `UsageError`, in one line, for a table that is absent, unreadable or without rows.
    """
    table = simplify_location(table)
    try:
        if isinstance(table, Path) and not table.is_file():
            raise FileNotFoundError
        content = table if isinstance(table, Path) else io.BytesIO(read_location(table, MAX_TABLE_BYTES))
        name = str(table).lower()
        frame = pd.read_parquet(content) if name.endswith((".parquet", ".pq")) else _read_text_table(content, name)
    except FileNotFoundError:
        raise UsageError(f"the table {table} does not exist") from None
    except PermissionError:
        raise UsageError(f"no permission to read the table {table}") from None
    except UnicodeDecodeError:
        raise UsageError(f"the table {table} is not UTF-8 text; save it as UTF-8") from None
    except (ValueError, OSError, EOFError, csv.Error, pd.errors.ParserWarning) as error:
        raise UsageError(f"the table {table} cannot be read ({type(error).__name__})") from None
    frame.columns = pd.Index([str(name).strip() for name in frame.columns])
    if not len(frame):
        raise UsageError(f"the table {table} has no rows")
    return frame


def _read_text_table(content: Path | io.BytesIO, name: str) -> pd.DataFrame:
    """Read CSV or TSV as text, every value as it stands; a comma at the end of each row is no column."""
    with _open_text(content, name) as file:
        head = file.readline()
        tabs = name.endswith((".tsv", ".tab", ".tsv.gz"))
        separator = "\t" if tabs else ";" if ";" in head and "," not in head else ","
        names = next(csv.reader([head], delimiter=separator), [])
        first = next(csv.reader(file, delimiter=separator), [])
    if len(first) == len(names) + 1 and not first[-1]:
        names.append("")
    with _open_text(content, name) as file, warnings.catch_warnings():
        # Without index_col=False pandas takes the first column as an index where rows are longer than the
        # header; with it, it drops what is too much and warns.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = pd.read_csv(
            file,
            sep=separator,
            header=0,
            names=list(range(len(names))),  # pandas would rename a column that occurs twice
            dtype=str,
            keep_default_na=False,
            index_col=False,
        )
    frame.columns = pd.Index(names)
    return frame


def _open_text(content: Path | io.BytesIO, name: str) -> TextIO:
    if isinstance(content, io.BytesIO):
        content = io.BytesIO(content.getbuffer())  # read again from its start, and closed without harm
    if name.endswith(".gz"):
        return gzip.open(content, "rt", encoding="utf-8-sig", newline="")
    if isinstance(content, Path):
        return content.open(encoding="utf-8-sig", newline="")
    return io.TextIOWrapper(content, encoding="utf-8-sig", newline="")


def parse_date(text: str) -> str:
    """Return YYYYMMDD from "20150203" or "2015-02-03", with a time behind it or not; "" from anything else."""
    found = _DATE.match(text.strip())
    if found is None:
        return ""
    try:
        date(int(found[1]), int(found[3]), int(found[4]))
    except ValueError:
        return ""
    return found[1] + found[3] + found[4]


# ---------------------------------------------------------------- rows to films


def build_table_listing(frame: pd.DataFrame, roots: Sequence[Path | str], columns: Mapping[str, str]) -> FilmListing:
    """Return the films of a table, one a row, in its order; every check is done at once, the films are made later.

    roots: folders or URLs that the paths in the table are below.  columns: as `read_folder` has them; its errors too.
    """
    chosen = _choose_columns(frame, columns)
    texts = {field: _read_text(frame[chosen[field]]) for field in FIELDS if field != "labels" and chosen.get(field)}
    places = [os.path.abspath(root) if isinstance(root, Path) else root for root in roots]
    _check_paths(texts["path"], places, chosen["path"])
    texts["uid"] = _choose_uids(texts.get("uid"), texts["path"])
    split_of = (
        {name: _parse_split(name, chosen["split"]) for name in texts["split"].unique()} if "split" in texts else {}
    )
    names, code_NL = _read_labels(frame, chosen, texts.pop("class", None))

    def list_films() -> Iterator[SourceFilm]:
        for start in range(0, len(code_NL), _ROWS_A_SLICE):
            rows = slice(start, start + _ROWS_A_SLICE)
            parts = {field: column.iloc[rows].tolist() for field, column in texts.items()}
            yield from _make_films(parts, places, split_of, names, _LABEL_OF_CODE[code_NL[rows]].tolist())

    return FilmListing(label_names=tuple(names), list_films=list_films, count=lambda: len(code_NL))


def _make_films(
    parts: Mapping[str, list[str]],
    places: Sequence[str],
    split_of: Mapping[str, str],
    names: Sequence[str],
    labels: Sequence[list[float]],
) -> Iterator[SourceFilm]:
    blank = [""] * len(labels)
    age, sex, view, day = cache(parse_age_years), cache(parse_sex), cache(parse_view), cache(parse_date)
    for row, label in enumerate(labels):
        yield SourceFilm(
            path=_find_film(parts["path"][row], places),
            uid=parts["uid"][row],
            patient=parts.get("patient", blank)[row],
            study=parts.get("study", blank)[row],
            view=view(parts.get("view", blank)[row]),
            age_years=age(parts.get("age", blank)[row]),
            sex=sex(parts.get("sex", blank)[row]),
            split=split_of.get(parts.get("split", blank)[row], ""),
            study_date=day(parts.get("study_date", blank)[row]),
            manufacturer=parts.get("manufacturer", blank)[row],
            labels=dict(zip(names, label, strict=True)),
        )


def _choose_columns(frame: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, str]:
    """Return which column fills each field; "" where none does."""
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


def _read_text(column: pd.Series) -> pd.Series:
    """Return the column as text, "" for blanks; whole numbers that a blank has turned into floats lose their ".0"."""
    if pd.api.types.is_float_dtype(column):
        whole = column.isna() | (column == column.round())
        texts = ["" if pd.isna(v) else str(int(v)) if w else str(v) for v, w in zip(column, whole, strict=True)]
        return pd.Series(texts, dtype=str)
    text = column.astype(str).str.strip()
    return text.mask(column.isna() | text.isin(_BLANK), "").reset_index(drop=True)


def _parse_split(text: str, column: str) -> str:
    split = _SPLIT_NAMES.get(text.lower(), text.lower())
    if split and split not in SPLITS:
        raise UsageError(
            f"column {column!r} holds {text!r}, which is no split; use train, val or test, or leave it out"
        )
    return split


def _choose_uids(uids: pd.Series | None, paths: pd.Series) -> pd.Series:
    uids = paths if uids is None else uids.where(uids != "", paths)
    repeated = uids[uids.duplicated(keep=False)].unique()
    if len(repeated):
        raise UsageError(
            f"{len(repeated)} uid{'s occur' if len(repeated) > 1 else ' occurs'} more than once, "
            f"first {repeated[0]!r}; every film needs a uid of its own"
        )
    return uids


# ---------------------------------------------------------------- paths


def _check_paths(paths: pd.Series, places: Sequence[str], column: str) -> None:
    """Raise `UsageError` for a row without a file and for one whose file is in none of the places."""
    if blank := np.flatnonzero(paths == "").tolist():
        raise UsageError(f"row {blank[0] + 1} of column {column!r} names no file")
    # Of millions, only those that could lead elsewhere are followed.
    odd = np.flatnonzero(paths.str.contains(r"^[/\\]|^[./]*$|(?:^|/)\.\.(?:/|$)|:", regex=True))
    for row in odd.tolist():
        if not any(_join(place, paths.iloc[row]) for place in places):
            raise UsageError(f"row {row + 1} of column {column!r} leads out of {', '.join(places)}")


def _join(place: str, text: str) -> str:
    """Return the location of a path in a table below a place, "" where it leads out of it."""
    if not is_url(place):
        path = os.path.normpath(os.path.join(place, text))
        return path if path.startswith(os.path.join(place, "")) and not is_url(text) else ""
    if is_url(text) and not text.startswith(f"{place}/"):
        return ""
    inside = posixpath.normpath(text.removeprefix(f"{place}/"))
    return "" if inside.startswith(("/", "../")) or inside in (".", "..") else f"{place}/{inside}"


def _find_film(text: str, places: Sequence[str]) -> Path | str:
    """Return the location that the table means; with several places the first that has the file counts."""
    found = [location for place in places if (location := _join(place, text))]
    if len(found) > 1:
        found = [location for location in found if find_kind(location)] or found
    return found[0] if is_url(found[0]) else Path(found[0])


# ---------------------------------------------------------------- labels


def _read_labels(
    frame: pd.DataFrame, chosen: Mapping[str, str], classes: pd.Series | None
) -> tuple[list[str], np.ndarray]:
    """Return the names of the labels and the code of each in each row, int8 [rows, labels]."""
    by_name = {name: _read_label(frame[name], name) for name in _split_names(chosen.get("labels", ""))}
    if classes is not None:
        values = sorted(set(classes.unique()) - {""})
        if len(values) > MAX_CLASSES:
            raise UsageError(f"column {chosen['class']!r} holds {len(values)} classes; {MAX_CLASSES} are the most")
        for value in values:
            if value in by_name:
                raise UsageError(f"the class {value!r} and a label column have the same name")
            by_name[value] = np.where(classes == "", _UNKNOWN, classes == value).astype(np.int8)
    if not by_name:
        return [], np.empty((len(frame), 0), np.int8)
    return list(by_name), np.stack(list(by_name.values()), axis=1)


def _read_label(column: pd.Series, name: str) -> np.ndarray:
    texts = _read_text(column)
    values = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.flatnonzero((texts != "").to_numpy() & ~np.isin(values, (-1.0, 0.0, 1.0)))
    if len(wrong):
        raise UsageError(
            f"column {name!r} holds something else than 1, 0, -1 or blank in row {wrong[0] + 1} "
            f"({len(wrong)} such row{'s' if len(wrong) > 1 else ''}); labels are numbers"
        )
    return np.where(np.isnan(values), _UNKNOWN, values).astype(np.int8)
