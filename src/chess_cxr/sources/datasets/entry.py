"""Types to declare a public data set, which `catalog` turns into films; docs/datasets.md describes every set."""

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
Value = str | Callable[[Row], str]  # a column or a function of a row; "" if the set does not provide it

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
    """Table as published.

    names: possible files, relative to the set's folder, in any case; the first that exists is read.
    columns: required ones; "a|b" for one whose name differs between releases (it becomes "a").  optional: may be
    missing; "" is a column without a name.  drop: checked but not kept, such as the text of reports.
    """

    names: tuple[str, ...]
    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    needed: bool = True
    read: Callable[[Path], pd.DataFrame] = read_table


@dataclass(frozen=True)
class Release:
    """Local copy of a data set: its folder, and its tables as text by their names in the entry."""

    root: Path
    tables: Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Fields:
    """Sources of the fields of a film.

    paths: location of the file relative to the set's folder, one for each layout in use; the layout that finds most
    films is chosen.  age, date: in any form that `parse_age_years` and `parse_date` read.
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
    """Column that lists the findings that are present; all others are absent.

    parse: returns the names, None if nothing is known; raises `ValueError` for an invalid list.
    names: allowed names; () allows any.
    """

    column: str
    parse: Callable[[str], tuple[str, ...] | None]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """One public data set.

    folders: possible names of its own folder below a parent.  marks: files or folders that identify it, at least one.
    build: joins the tables into one row a film.  labels: label -> column of 1, 0, -1 (uncertain) and blanks.
    divide_train: draw val from the training patients, since the official split has none.
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
    tables: Mapping[str, Table] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    findings: Findings | None = None
    divide_train: bool = False


def is_blank(text: str) -> bool:
    """Whether a cell is empty or a word that programs write for it ("nan", "None" ...)."""
    return text.strip().casefold() in _BLANK


def get_text(row: Row, value: Value) -> str:
    """Return the stripped text of a field, "" for a blank."""
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
    """Map labels to columns of the same names."""
    return {name: name for name in names}


def keep_one_a_film(frame: pd.DataFrame, key: str, columns: tuple[str, ...], title: str) -> pd.DataFrame:
    """Keep the first row of each `key` of a table with several rows a film.

    Raises `UsageError` if rows of one film differ in any of `columns`.
    """
    pairs = frame[[key, *columns]].drop_duplicates()
    torn = int(pairs[key].duplicated().sum())
    if torn:
        raise UsageError(f"{torn} film(s) of {title} have rows that differ in {' or '.join(columns)}")
    return frame.drop_duplicates(key).reset_index(drop=True)
