"""Read CheXpert and CheXpert Plus."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from chess_cxr.records import UsageError
from chess_cxr.sources.datasets.entry import (
    CHEXPERT_LABELS,
    DataSet,
    Fields,
    Release,
    Row,
    Table,
    is_blank,
    name_labels,
)
from chess_cxr.sources.datasets.release import build_keep, find_entry

_BELOW = re.compile(r"(?:^|/)((?:train|valid|test)/patient\d+/study\d+(?:/[^/]+)?)$")
_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS)


def _strip_folder(text: str) -> str:
    """Return a path relative to the set's folder; tables prefix its name, as in "CheXpert-v1.0-small/train/..."."""
    found = _BELOW.search(text)
    return found[1] if found else text


def _get_part(text: str, depth: int) -> str:
    """Return the patient (depth 2) or patient and study (3) of "train/patient1/study1/view1_frontal.jpg"."""
    found = _BELOW.search(text)
    return "/".join(found[1].split("/")[1:depth]) if found else ""


# ---------------------------------------------------------------- CheXpert


def _build_chexpert(release: Release) -> pd.DataFrame:
    parts = [release.tables[split].assign(split=split) for split in ("train", "valid")]
    if "test" in release.tables:
        parts.append(_list_test_films(release))
    return pd.concat(parts, ignore_index=True).fillna("")


def _list_test_films(release: Release) -> pd.DataFrame:
    """Return a row for each film on disk of the test part, whose labels are given by study."""
    keep, films = build_keep((".jpg", ".jpeg", ".png")), []
    for study in release.tables["test"].to_dict("records"):
        below = _strip_folder(study.pop("Study"))
        folder = None if ".." in below.split("/") else find_entry(release.root, below)
        names = sorted(path.name for path in folder.iterdir()) if folder and folder.is_dir() else []
        names = [name for name in names if keep(name) and not name.startswith(".")]
        for name in names or ["view1_frontal.jpg"]:  # a study without films ends in the quarantine
            view = "Lateral" if "lateral" in name.lower() else "Frontal"
            films.append({**study, "Path": f"{below}/{name}", "Frontal/Lateral": view, "split": "test"})
    return pd.DataFrame(films)


def _tell_view(direction: str, projection: str) -> str:
    """Return the view, unknown for a film that is frontal in one column and lateral (LL, RL) in the other."""
    if direction == "Lateral":
        return "LATERAL"
    return projection if projection in ("AP", "PA") else ""


def _tell_age(years: str) -> str:
    """Return the age, unknown if 0: all patients are adults."""
    return "" if years in ("0", "0.0") else years


CHEXPERT = DataSet(
    name="chexpert",
    title="CheXpert (also CheXpert-small)",
    films="224,316",
    licence="Stanford University Dataset Research Use Agreement",
    access="register at Stanford AIMI and accept the agreement; no redistribution",
    url="https://stanfordmlgroup.github.io/competitions/chexpert/",
    folders=("CheXpert-v1.0-small", "CheXpert-v1.0"),
    marks=("train.csv",),
    tables={
        "train": Table(("train.csv",), _COLUMNS),
        "valid": Table(("valid.csv",), _COLUMNS),
        "test": Table(("groundtruth.csv", "test/groundtruth.csv"), ("Study",), optional=CHEXPERT_LABELS, needed=False),
    },
    build=_build_chexpert,
    fields=Fields(
        uid=lambda row: _strip_folder(row["Path"]),
        paths=(lambda row: _strip_folder(row["Path"]),),
        patient=lambda row: _get_part(row["Path"], 2),
        study=lambda row: _get_part(row["Path"], 3),
        view=lambda row: _tell_view(row["Frontal/Lateral"], row["AP/PA"]),
        age=lambda row: _tell_age(row["Age"]),
        sex="Sex",
        split="split",
    ),
    labels=name_labels(),
)

# ---------------------------------------------------------------- CheXpert Plus

_TEXTS = (
    *("report", "section_narrative", "section_clinical_history", "section_history", "section_comparison"),
    *("section_technique", "section_procedure_comments", "section_findings", "section_impression"),
    *("section_end_of_impression", "section_summary", "section_accession_number"),
)
_UNUSED = ("race", "ethnicity", "interpreter_needed", "insurance_type", "recent_bmi", "deceased")
_PICTURES = ("", "PNG/", "PNG/PNG/", "PNGs/", "images/", "DICOM/")


def read_json_lines(path: Path) -> pd.DataFrame:
    """Read a file with one JSON object a line as text; null becomes a blank."""
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UsageError(f"line {number} of {path} is not a JSON object")
            rows.append({name: "" if value is None else str(value) for name, value in row.items()})
    return pd.DataFrame(rows).fillna("")


def _build_chexpert_plus(release: Release) -> pd.DataFrame:
    films = release.tables["films"]
    if "labels" not in release.tables:
        return films
    labels = release.tables["labels"].drop_duplicates("path_to_image")
    return films.merge(labels, on="path_to_image", how="left").fillna("")


def _get_picture(folder: str, column: str, ending: str) -> Callable[[Row], str]:
    return lambda row: "" if is_blank(row[column]) else f"{folder}{re.sub(r'[.][^./]*$', '', row[column])}{ending}"


CHEXPERT_PLUS = DataSet(
    name="chexpert-plus",
    title="CheXpert Plus",
    films="223,462",
    licence="Stanford University Dataset Research Use Agreement",
    access="register at Stanford AIMI and accept the agreement; no redistribution",
    url="https://aimi.stanford.edu/datasets/chexpert-plus",
    folders=("CheXpert-Plus", "chexpert_plus", "chexpertplus"),
    marks=("df_chexpert_plus_240401.csv",),
    tables={
        "films": Table(
            ("df_chexpert_plus_240401.csv",),
            (
                *("path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id"),
                *("patient_report_date_order", *_TEXTS, "age", "sex", *_UNUSED, "split"),
            ),
            optional=("",),
            drop=(*_TEXTS, *_UNUSED, ""),
        ),
        "labels": Table(
            ("chexbert_labels/impression_fixed.json", "impression_fixed.json"),
            ("path_to_image", *CHEXPERT_LABELS),
            needed=False,
            read=read_json_lines,
        ),
    },
    build=_build_chexpert_plus,
    fields=Fields(
        uid=lambda row: row["path_to_dcm"] if is_blank(row["path_to_image"]) else row["path_to_image"],
        paths=(
            *(_get_picture(folder, "path_to_image", ending) for folder in _PICTURES for ending in (".png", ".jpg")),
            *(_get_picture(folder, "path_to_dcm", ".dcm") for folder in _PICTURES),
        ),
        patient="deid_patient_id",
        study=lambda row: _get_part(row["path_to_image"], 3),
        view=lambda row: _tell_view(row["frontal_lateral"], row["ap_pa"]),
        age=lambda row: _tell_age(row["age"]),
        sex="sex",
        split="split",
    ),
    labels=name_labels(),
)
