"""Read the Shenzhen and Montgomery sets of the National Library of Medicine: a reading beside each film, no table."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from chess_cxr.records import UsageError
from chess_cxr.sources.datasets.entry import DataSet, Fields, Release
from chess_cxr.sources.datasets.release import find_entry, index_files

_SEX = re.compile(r"\b(fe)?mal(?:e|(?=\s))", re.IGNORECASE)
_SEX_LETTER = re.compile(r"Sex:\s*([MF])", re.IGNORECASE)
_AGE = re.compile(r"\d{1,3}\s*[A-Za-z]?")
_SAME_PATIENT = re.compile(r"same (?:pt|patient) as (\w+_\d{4}_[01])", re.IGNORECASE)
MAX_READING_BYTES = 100_000


def parse_reading(text: str) -> tuple[str, str]:
    """Parse sex and age from "male 45yrs", "femal 32yrs", or "Patient's Sex: F" and "Patient's Age: 027Y"."""
    head = " ".join(text.splitlines()[:2]) if "Sex:" in text else (text.splitlines() or [""])[0]
    letter, word, age = _SEX_LETTER.search(head), _SEX.search(head), _AGE.search(head)
    sex = letter[1].upper() if letter else "" if word is None else "F" if word[1] else "M"
    return sex, age[0] if age else ""


def _read_reading(folder: Path | None, stem: str) -> str:
    path = find_entry(folder, f"{stem}.txt") if folder else None
    if path is None or not path.is_file() or path.stat().st_size > MAX_READING_BYTES:
        return ""
    return path.read_text(encoding="utf-8-sig", errors="replace")


def _build_from_readings(release: Release, prefix: str, title: str) -> pd.DataFrame:
    name = re.compile(rf"({prefix}_\d{{4}}_([01]))\.png", re.IGNORECASE)
    readings = find_entry(release.root, "ClinicalReadings")
    rows = []
    for file, path in sorted(index_files(release.root, (".png",), ("CXR_png",)).items()):
        if found := name.fullmatch(file):
            stem = found[1].upper()
            text = _read_reading(readings, stem)
            same = _SAME_PATIENT.search(text)
            rows.append((stem, path, found[2], *parse_reading(text), same[1].upper() if same else ""))
    if not rows:
        raise UsageError(f"no film of {title} in {release.root}; they are named {prefix}_####_0.png or _1.png")
    frame = pd.DataFrame(rows, columns=["film", "path", "tuberculosis", "sex", "age", "same"])
    return frame.assign(patient=_name_patients(dict(zip(frame["film"], frame["same"], strict=True))))


def _name_patients(same_as: dict[str, str]) -> list[str]:
    """Name the patient of each film by the first of the films that refer to one another."""
    patients = []
    for film in same_as:
        chain = [film]
        while (other := same_as.get(chain[-1], "")) and other not in chain:
            chain.append(other)
        patients.append(min(chain) if other else chain[-1])
    return patients


_FIELDS = Fields(uid="film", paths=("path",), patient="patient", age="age", sex="sex")
_ACCESS = "free download"
_LICENCE = "free for research with citation; de-identified, National Library of Medicine"

SHENZHEN = DataSet(
    name="shenzhen",
    title="Shenzhen Hospital",
    films="662",
    licence=_LICENCE,
    access=_ACCESS,
    url="https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets/Shenzhen-Hospital-CXR-Set/",
    folders=("ChinaSet_AllFiles", "Shenzhen-Hospital-CXR-Set"),
    marks=("CXR_png",),
    build=lambda release: _build_from_readings(release, "CHNCXR", "Shenzhen"),
    fields=_FIELDS,
    labels={"Tuberculosis": "tuberculosis"},
)

MONTGOMERY = DataSet(
    name="montgomery",
    title="Montgomery County",
    films="138",
    licence=_LICENCE,
    access=_ACCESS,
    url="https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets/Montgomery-County-CXR-Set/",
    folders=("MontgomerySet", "Montgomery-County-CXR-Set/MontgomerySet"),
    marks=("CXR_png",),
    build=lambda release: _build_from_readings(release, "MCUCXR", "Montgomery"),
    fields=_FIELDS,
    labels={"Tuberculosis": "tuberculosis"},
)
