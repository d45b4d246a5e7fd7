"""Folders of films with marked nodules: JSRT as PNG, NODE21, and films with masks beside them.

Only tables and names are read here; `chess_cxr.tasks.nodules.films` decodes the files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pandas as pd

from chess_cxr.records import UsageError
from chess_cxr.sources.read_table import read_table

JSRT_FIELD_MM = 0.175 * 2048  # side of every JSRT film (Shiraishi et al. 2000)
_LUNG_BITS = 3  # 1 right lung, 2 left lung
_HEART_BIT = 4
_NODE21_COLUMNS = ("height", "img_name", "label", "width", "x", "y")
_FILM_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".dcm", ".dicom", ".mha", ".nii", ".nii.gz", ".img")
_MALIGNANT = {"malignant": 1.0, "1": 1.0, "benign": 0.0, "0": 0.0}


@dataclass(frozen=True)
class NoduleEntry:
    """A film that is not yet decoded.

    group: patient.  mask, lung: files of the film's size, None if absent.  lung_bits, heart_bit: bits of lung and heart
    in the lung file; lung_bits is 0 for a plain mask.  boxes: (x, y, width, height) in pixels, with an elliptic nodule
    in each.  field_mm: length of the film's longest side, NaN if only the film's header knows.
    """

    name: str
    film: Path
    kind: str
    group: str
    mask: Path | None = None
    lung: Path | None = None
    lung_bits: int = 0
    heart_bit: int = 0
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    field_mm: float = math.nan
    spacing_mm: float = math.nan
    malignant: float = math.nan


def list_nodule_films(folder: Path) -> list[NoduleEntry]:
    """List the films of a folder by name; the content of the folder tells its layout.

    JSRT: cases.csv (file, case, nodule, state, low_contrast), images/, nodule_masks/, masks/ (bit field); low_contrast
    films are left out.  NODE21: metadata.csv (height, img_name, label, width, x, y; one row per box) and images/*.mha.
    Others: films/, masks/ and optionally lungs/, matched by file name without extension; a film without a mask has no
    nodule.  An optional films.csv (film, and any of patient, spacing_mm, malignant) says more; without it, each film is
    a patient.

    Raises `UsageError`, in one line, for another layout, missing columns or files, and paths outside the folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; give JSRT, NODE21, or a folder with films/ and masks/")
    if (folder / "cases.csv").is_file():
        return _list_jsrt(folder)
    if (folder / "metadata.csv").is_file():
        return _list_node21(folder)
    if (folder / "films").is_dir():
        return _list_plain(folder)
    raise UsageError(f"{folder} has neither cases.csv (JSRT) nor metadata.csv (NODE21) nor films/ and masks/")


def _read_columns(table: Path, needed: tuple[str, ...]) -> pd.DataFrame:
    frame = read_table(table)
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise UsageError(f"{table} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}")
    return frame


def _locate(folder: Path, relative: str, what: str) -> Path:
    """Return a file that a table names; it must lie inside the folder, also after following links."""
    path = folder / relative
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{what} leads out of {folder}")
    if not path.is_file():
        raise UsageError(f"{what} is not in {folder}")
    return path


def _read_number(row: Mapping[str, object], column: str, what: str) -> float:
    try:
        value = float(str(row[column]))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{column} of {what} is no number")
    return value


def _iterate(frame: pd.DataFrame) -> list[dict[str, str]]:
    return cast(list[dict[str, str]], frame.fillna("").to_dict("records"))


# ---------------------------------------------------------------- JSRT


def _list_jsrt(folder: Path) -> list[NoduleEntry]:
    table = folder / "cases.csv"
    entries = []
    for number, row in enumerate(_iterate(_read_columns(table, ("file", "case", "nodule"))), start=2):
        if str(row.get("low_contrast", "")) == "1":
            continue
        what = f"the film of row {number} of {table.name}"
        film = _locate(folder, row["file"], what)
        mask = None
        if str(row["nodule"]) == "1":
            mask = _locate(folder, f"nodule_masks/{row['case']}.png", f"the nodule mask of {what}")
        lung = (
            _locate(folder, f"masks/{row['case']}.png", f"the lung mask of {what}") if _has(folder, "masks") else None
        )
        entries.append(
            NoduleEntry(
                name=row["case"],
                film=film,
                kind="jsrt",
                group=row["case"],
                mask=mask,
                lung=lung,
                lung_bits=_LUNG_BITS,
                heart_bit=_HEART_BIT,
                field_mm=JSRT_FIELD_MM,
                malignant=_MALIGNANT.get(str(row.get("state", "")), math.nan),
            )
        )
    return sorted(entries, key=lambda entry: entry.name)


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_dir()


# ---------------------------------------------------------------- NODE21


def _list_node21(folder: Path) -> list[NoduleEntry]:
    """Join the boxes of each film; NODE21 has no patient ids, so each film is a patient."""
    table = folder / "metadata.csv"
    rows_of: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for number, row in enumerate(_iterate(_read_columns(table, _NODE21_COLUMNS)), start=2):
        rows_of.setdefault(str(row["img_name"]), []).append((number, row))
    images = "images/" if _has(folder, "images") else ""
    entries = []
    for name, rows in sorted(rows_of.items()):
        film = _locate(folder, images + name, f"the film of row {rows[0][0]} of {table.name}")
        boxes = tuple(_read_box(row, f"row {number} of {table.name}") for number, row in rows if _is_positive(row))
        stem = Path(name).stem
        entries.append(NoduleEntry(name=stem, film=film, kind="node21", group=stem, boxes=boxes))
    return entries


def _is_positive(row: Mapping[str, object]) -> bool:
    return str(row["label"]) in ("1", "1.0")


def _read_box(row: Mapping[str, object], what: str) -> tuple[float, float, float, float]:
    x, y, width, height = (_read_number(row, column, what) for column in ("x", "y", "width", "height"))
    if width <= 0 or height <= 0:
        raise UsageError(f"the box of {what} is {width:g} x {height:g} pixels")
    return x, y, width, height


# ---------------------------------------------------------------- films/ and masks/


def _list_plain(folder: Path) -> list[NoduleEntry]:
    films = _index(folder, "films")
    masks, lungs = (_index(folder, name) if _has(folder, name) else {} for name in ("masks", "lungs"))
    if not films:
        raise UsageError(f"{folder / 'films'} holds no film")
    for name, files in (("masks", masks), ("lungs", lungs)):
        lonely = [number for number, stem in enumerate(files, start=1) if stem not in films]
        if lonely:
            raise UsageError(
                f"{len(lonely)} of {len(files)} files in {folder / name} have no film of that name, "
                f"first number {lonely[0]} by name"
            )
    told = _read_told(folder, films)
    return [
        NoduleEntry(
            name=stem,
            film=film,
            kind="folder",
            group=str(told.get(stem, {}).get("patient", "")) or stem,
            mask=masks.get(stem),
            lung=lungs.get(stem),
            spacing_mm=_read_told_number(told.get(stem, {}), "spacing_mm"),
            malignant=_MALIGNANT.get(str(told.get(stem, {}).get("malignant", "")).lower(), math.nan),
        )
        for stem, film in films.items()
    ]


def _index(folder: Path, name: str) -> dict[str, Path]:
    """Return the files of a subfolder by name without extension."""
    files: dict[str, Path] = {}
    for path in sorted((folder / name).iterdir()):
        ending = next((e for e in _FILM_ENDINGS if path.name.lower().endswith(e)), None)
        if ending is None or path.name.startswith("."):
            continue
        stem = path.name[: -len(ending)]
        if stem in files:
            raise UsageError(f"two files in {folder / name} differ in their extension alone; keep one")
        files[stem] = _locate(folder, f"{name}/{path.name}", f"file number {len(files) + 1} by name in {name}/")
    return files


def _read_told(folder: Path, films: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    table = folder / "films.csv"
    if not table.is_file():
        return {}
    told: dict[str, dict[str, str]] = {}
    names = {path.name: stem for stem, path in films.items()}
    for number, row in enumerate(_iterate(_read_columns(table, ("film",))), start=2):
        stem = names.get(str(row["film"]), str(row["film"]))
        if stem not in films or stem in told:
            fault = "occurs twice" if stem in told else "is not in films/"
            raise UsageError(f"the film of row {number} of {table.name} {fault}")
        told[stem] = row
    return told


def _read_told_number(row: Mapping[str, object], column: str) -> float:
    if str(row.get(column, "")) == "":
        return math.nan
    value = _read_number(row, column, "a film in films.csv")
    if value <= 0:
        raise UsageError(f"{column} of a film in films.csv is {value:g}; it must be above 0")
    return value
