"""List the films of public data sets from their published layouts."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from chess_cxr.files.listing import build_link_check, list_location
from chess_cxr.records import (
    SPLITS,
    FilmListing,
    SourceFilm,
    UsageError,
    parse_age_years,
    parse_date,
    parse_sex,
    parse_view,
)
from chess_cxr.sources.datasets.entry import DataSet, Findings, Row, get_text, is_blank, parse_label
from chess_cxr.sources.datasets.jsrt import BSE_JSRT, JSRT, NODE21
from chess_cxr.sources.datasets.nih import NIH, RSNA, SIIM
from chess_cxr.sources.datasets.padchest import PADCHEST
from chess_cxr.sources.datasets.physionet import BRAX, MIMIC, VINDR
from chess_cxr.sources.datasets.release import build_keep, open_release
from chess_cxr.sources.datasets.stanford import CHEXPERT, CHEXPERT_PLUS
from chess_cxr.sources.datasets.tuberculosis import MONTGOMERY, SHENZHEN
from chess_cxr.sources.tables import locate_below, name_split

_STUDIES = (CHEXPERT, CHEXPERT_PLUS, MIMIC, NIH, PADCHEST, VINDR, RSNA, SIIM, BRAX)
_SMALL = (JSRT, BSE_JSRT, SHENZHEN, MONTGOMERY, NODE21)
DATASETS: Mapping[str, DataSet] = {entry.name: entry for entry in (*_STUDIES, *_SMALL)}
VAL_SHARE = 0.1
_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".mha", ".img", ".tif", ".tiff")
_ROWS_AT_ONCE = 4096
_ROWS_TO_PROBE = 200


@dataclass(frozen=True)
class _Films:
    """Data set joined to one row a film; `layout`: index of the path in use among those of the entry."""

    entry: DataSet
    root: Path
    frame: pd.DataFrame
    layout: int
    val: float
    label_names: tuple[str, ...]


def read_dataset(name: str, root: Path, val: float = VAL_SHARE) -> FilmListing:
    """List the films of a public data set in `root`, its own folder or that folder's parent.

    Tables are held in memory; films are built while they are listed.  A film that a table names but the disk lacks is
    listed too and ends in the quarantine.  Files that no table names are left out (see `count_unlisted`), except
    unlabelled parts that a set publishes.

    val: share of the official training patients that becomes val if the set has only train and test; a hash of the
    patient decides, so the choice never changes.  Official test films stay test.

    Raises `UsageError` for an unknown name, a missing set, table or column, an unknown column, an invalid label, a film
    named twice, and a path that leads out of the set's folder.
    """
    films = _open_films(name, root, val)
    _check_films(films)
    return FilmListing(films.label_names, lambda: _list_films(films), lambda: len(films.frame))


def count_unlisted(name: str, root: Path) -> int:
    """Count the image files below the set's folder that no table names; walks the whole folder."""
    films = _open_films(name, root, VAL_SHARE)
    listed = {str(film.path) for film in _list_films(films)}
    return sum(str(path) not in listed for path, _ in list_location(films.root, build_keep(_IMAGE_ENDINGS)))


def find_dataset(name: str) -> DataSet:
    """Return the entry of a data set by its name in any case; raise `UsageError` if there is none."""
    entry = DATASETS.get(name.strip().lower().replace("_", "-"))
    if entry is None:
        raise UsageError(f"no data set is named {name!r}; there are {', '.join(DATASETS)}")
    return entry


def list_datasets() -> str:
    """Return the catalogue as a table of text: name, films, title, and how to get access."""
    rows = [("name", "films", "data set", "access")]
    rows += [(entry.name, entry.films, entry.title, entry.access) for entry in DATASETS.values()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(text.ljust(width) for text, width in zip(row[:3], widths, strict=True)), row[3]]) for row in rows
    )


def list_datasets_as_json() -> list[dict[str, str]]:
    """Return the catalogue as JSON values: name, title, films, licence, access, url of each data set."""
    keys = ("name", "title", "films", "licence", "access", "url")
    return [{key: getattr(entry, key) for key in keys} for entry in DATASETS.values()]


def _open_films(name: str, root: Path, val: float) -> _Films:
    if not 0 <= val < 1:
        raise UsageError(f"val {val:g} must be 0 or more and below 1")
    entry = find_dataset(name)
    try:
        release = open_release(entry, root)
        frame = entry.build(release)
    except OSError as error:
        raise UsageError(f"{root} cannot be read ({type(error).__name__})") from None
    if not len(frame):
        raise UsageError(f"no film of {entry.title} in {release.root}")
    own = Path(os.path.abspath(release.root))
    return _Films(entry, own, frame, _choose_layout(entry, own, frame), val, _name_labels(entry, frame))


# ---------------------------------------------------------------- films


def _list_films(films: _Films) -> Iterator[SourceFilm]:
    fields = films.entry.fields
    age, sex, view, date = cache(parse_age_years), cache(parse_sex), cache(parse_view), cache(parse_date)
    columns = {label: column for label, column in films.entry.labels.items() if column in films.frame}
    leads_out = build_link_check(films.root)
    for number, row in enumerate(_list_rows(films.frame), start=1):
        uid, path = _identify(films, row, number)
        if leads_out(path):
            raise UsageError(f"row {number} of {films.entry.title} names a link that leads out of {films.root}")
        patient = get_text(row, fields.patient)
        yield SourceFilm(
            path=path,
            uid=uid,
            patient=patient,
            study=get_text(row, fields.study),
            view=view(get_text(row, fields.view)),
            age_years=age(get_text(row, fields.age)),
            sex=sex(get_text(row, fields.sex)),
            split=_read_split(films, get_text(row, fields.split), patient or uid),
            study_date=date(get_text(row, fields.date)),
            manufacturer=get_text(row, fields.manufacturer),
            labels=_read_labels(films, columns, row),
        )


def _list_rows(frame: pd.DataFrame) -> Iterator[Row]:
    names = list(frame.columns)
    for start in range(0, len(frame), _ROWS_AT_ONCE):
        part = frame.iloc[start : start + _ROWS_AT_ONCE]
        for values in zip(*(part[name].tolist() for name in names), strict=True):
            yield dict(zip(names, values, strict=True))


def _identify(films: _Films, row: Row, number: int) -> tuple[str, Path]:
    """Return uid and path of a film; a row without film gets a path without file, to be quarantined."""
    uid, text = get_text(row, films.entry.fields.uid), get_text(row, films.entry.fields.paths[films.layout])
    if not uid or not text:
        return f"row {number}", films.root / f"row {number} names no film"
    path = locate_below(str(films.root), text)
    if not path:
        raise UsageError(f"row {number} of {films.entry.title} names a file that leads out of {films.root}")
    return uid, Path(path)


def _choose_layout(entry: DataSet, root: Path, frame: pd.DataFrame) -> int:
    """Return the layout that finds most of some films spread over the table."""
    if len(entry.fields.paths) == 1:
        return 0
    rows = frame.iloc[np.unique(np.linspace(0, len(frame) - 1, _ROWS_TO_PROBE).astype(int))]
    hits = [0] * len(entry.fields.paths)
    for row in _list_rows(rows):
        for layout, value in enumerate(entry.fields.paths):
            hits[layout] += os.path.isfile(locate_below(str(root), get_text(row, value)))
    return hits.index(max(hits))


def _read_split(films: _Films, text: str, owner: str) -> str:
    split = name_split(text)
    if split and split not in SPLITS:
        raise UsageError(f"{films.entry.title} names a split {text!r}; as published there are train, val and test")
    return "val" if split == "train" and films.entry.divide_train and _falls_to_val(owner, films.val) else split


def _falls_to_val(owner: str, share: float) -> bool:
    digest = hashlib.sha256(f"val\0{owner}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def _check_films(films: _Films) -> None:
    """Check all films beforehand, so that an error stops the ingest at its start."""
    for column in films.entry.labels.values():
        if column in films.frame:
            _check_labels(films, column)
    seen: set[str] = set()
    repeated = 0
    for film in _list_films(films):
        repeated += film.uid in seen
        seen.add(film.uid)
    if repeated:
        raise UsageError(f"{repeated} film(s) of {films.entry.title} are named more than once by its tables")


# ---------------------------------------------------------------- labels


def _check_labels(films: _Films, column: str) -> None:
    for text in films.frame[column].unique():
        try:
            parse_label(text)
        except ValueError:
            count = int((films.frame[column] == text).sum())
            what = f"something other than 1, 0, -1 or blank in {count} row(s)"
            raise UsageError(f"column {column!r} of {films.entry.title} holds {what}") from None


def _name_labels(entry: DataSet, frame: pd.DataFrame) -> tuple[str, ...]:
    names = tuple(label for label, column in entry.labels.items() if column in frame)
    if entry.findings is None:
        return names
    return names + (entry.findings.names or tuple(sorted(_find_names(entry, entry.findings, frame))))


def _find_names(entry: DataSet, findings: Findings, frame: pd.DataFrame) -> set[str]:
    found: set[str] = set()
    for text in frame[findings.column].unique():
        found.update(_parse_findings(entry, findings, text) or ())
    return found


def _parse_findings(entry: DataSet, findings: Findings, text: str) -> tuple[str, ...] | None:
    if is_blank(text):
        return None
    try:
        present = findings.parse(text)
    except ValueError as error:
        raise UsageError(f"column {findings.column!r} of {entry.title} cannot be read: {error}") from None
    if unknown := sorted(set(present or ()) - set(findings.names)) if findings.names else []:
        raise UsageError(f"column {findings.column!r} of {entry.title} has {unknown[0]!r}, which is not published")
    return present


def _read_labels(films: _Films, columns: Mapping[str, str], row: Row) -> dict[str, float]:
    """Return the labels of a film; every film carries every name."""
    labels = {label: parse_label(row[column]) for label, column in columns.items()}
    findings = films.entry.findings
    if findings is None:
        return labels
    present = _parse_findings(films.entry, findings, row[findings.column])
    absent = math.nan if present is None else 0.0
    return labels | dict.fromkeys(films.label_names[len(labels) :], absent) | dict.fromkeys(present or (), 1.0)
