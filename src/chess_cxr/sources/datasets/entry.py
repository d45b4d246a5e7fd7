"""What the catalogue says of one public data set: a declaration that `catalog` turns into films."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pandas as pd

from chess_cxr.records import UNCERTAIN, UsageError
from chess_cxr.sources.read_table import read_table

Row = Mapping[str, str]
Value = str | Callable[[Row], str]  # a column, or what is computed from a row; "" for what the set does not tell

CHEXPERT_LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
_BLANK = frozenset({"", "nan", "none", "null", "na", "n/a", "<na>"})
_LABELS = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "-1": UNCERTAIN, "-1.0": UNCERTAIN}


@dataclass(frozen=True)
class Table:
    """A table as it was published.

    names: files it may be, from the set's folder; the first that is there counts, upper and lower case are the same.
    columns: all that it must have, "a|b" for one whose name differs between releases (it becomes "a").  optional: may
    be missing; "" is a column without a name.  drop: checked but not kept, such as the text of reports.
    """

    names: tuple[str, ...]
    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    needed: bool = True
    read: Callable[[Path], pd.DataFrame] = read_table


@dataclass(frozen=True)
class Release:
    """A data set as it lies on this machine: its own folder and its tables, all of text, by the entry's names."""

    root: Path
    tables: Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Fields:
    """Where the fields of a film come from.

    paths: where the file may lie, from the set's folder, one a layout in use; the one most films are found by counts.
    age: in any spelling `parse_age_years` knows.  date: in any that `parse_date` knows.
    """

    uid: Value
    paths: tuple[Value, ...]
    patient: Value = ""
    study: Value = ""
    view: Value = ""
    age: Value = ""
    sex: Value = ""
    split: Value = ""
    date: Value = ""
    manufacturer: Value = ""


@dataclass(frozen=True)
class Findings:
    """A column that lists what is present, so that all other names are absent.

    parse: gives the names, None where nothing is known, and raises ValueError for what is no such list.
    names: those that may occur; () for whichever do.
    """

    column: str
    parse: Callable[[str], tuple[str, ...] | None]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """One public data set.

    folders: names of its own folder below a parent.  marks: files or folders of which it has one at least.
    build: joins the tables into one of a row a film.  labels: label -> column of 1, 0, -1 (uncertain) and blanks.
    divide_train: the official split has no val, so some of its training patients become it.
    splits, policy: how the official split and the labels are taken, in words.  overlaps: sets it shares films with.
    """

    name: str
    title: str
    films: str
    licence: str
    access: str
    url: str
    folders: tuple[str, ...]
    marks: tuple[str, ...]
    build: Callable[[Release], pd.DataFrame]
    fields: Fields
    splits: str
    policy: str
    tables: Mapping[str, Table] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    findings: Findings | None = None
    divide_train: bool = False
    overlaps: tuple[str, ...] = ()
    irregularities: tuple[str, ...] = ()


def is_blank(text: str) -> bool:
    """Whether a cell says nothing: empty, or one of the words that programs write for it ("nan", "None" ...)."""
    return text.strip().casefold() in _BLANK


def get_text(row: Row, value: Value) -> str:
    """Return the stripped text of a field, "" where it is blank."""
    text = (value(row) if callable(value) else row.get(value, "") if value else "").strip()
    return "" if is_blank(text) else text


@cache
def parse_label(text: str) -> float:
    """Return 1.0, 0.0, `UNCERTAIN`, or NaN for a blank; raise ValueError for anything else."""
    if is_blank(text):
        return math.nan
    if text.strip() not in _LABELS:
        raise ValueError("no label")
    return _LABELS[text.strip()]


def name_labels(names: Iterable[str] = CHEXPERT_LABELS) -> dict[str, str]:
    """Return the mapping of labels whose columns have their names."""
    return {name: name for name in names}


def keep_one_a_film(frame: pd.DataFrame, key: str, columns: tuple[str, ...], title: str) -> pd.DataFrame:
    """Return the first row of each `key` of a table with several rows a film.

    Raises `UsageError` if rows of one film differ in any of `columns`.
    """
    pairs = frame[[key, *columns]].drop_duplicates()
    torn = int(pairs[key].duplicated().sum())
    if torn:
        raise UsageError(f"{torn} film(s) of {title} have rows that differ in {' or '.join(columns)}")
    return frame.drop_duplicates(key).reset_index(drop=True)
