"""Read NIH ChestX-ray14 and two challenges with its films: RSNA Pneumonia and SIIM-ACR Pneumothorax."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from chess_cxr.records import UsageError
from chess_cxr.sources.datasets.entry import DataSet, Fields, Findings, Release, Row, Table, keep_one_a_film
from chess_cxr.sources.datasets.release import index_files, locate_films

# ---------------------------------------------------------------- NIH ChestX-ray14

_FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax", "No Finding"),
)
# Commas in brackets are not quoted in the header, and the older file has an empty 12th column.
_GEOMETRY = (
    *("OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]", ""),
    *("OriginalImage[Width,Height]", "OriginalImagePixelSpacing[x,y]"),
)


def read_names(path: Path) -> pd.DataFrame:
    """Read a list with one film a line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UsageError(f"the list {path} is not UTF-8 text; save it as UTF-8") from None
    return pd.DataFrame({"Image Index": [line.strip() for line in lines if line.strip()]})


def _build_nih(release: Release) -> pd.DataFrame:
    files = index_files(release.root, (".png",))
    films = locate_films(release.tables["films"], "Image Index", files, ".png", "images")
    lists = {split: release.tables[split]["Image Index"] for split in ("train", "test") if split in release.tables}
    if len(lists) == 1:
        raise UsageError("NIH ChestX-ray14 needs both train_val_list.txt and test_list.txt, or neither; one is there")
    films = films.assign(split="")
    for split, names in lists.items():
        listed = films["Image Index"].isin(names)
        if (listed & (films["split"] != "")).any():
            raise UsageError("train_val_list.txt and test_list.txt of NIH ChestX-ray14 share films")
        films["split"] = films["split"].mask(listed, split)
    return films


def _split_findings(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split("|") if name.strip())


NIH = DataSet(
    name="nih-chestxray14",
    title="NIH ChestX-ray14",
    films="112,120",
    licence="no restriction on use; cite the paper, link the site and name the NIH Clinical Center",
    access="free download",
    url="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    folders=("ChestX-ray14", "ChestXray-NIHCC", "nih-chest-xrays", "CXR8"),
    marks=("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv"),
    tables={
        "films": Table(
            ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv"),
            (
                *("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age"),
                *("Patient Gender|Patient Sex", "View Position"),
            ),
            optional=_GEOMETRY,
            drop=_GEOMETRY,
        ),
        "train": Table(("train_val_list.txt",), ("Image Index",), needed=False, read=read_names),
        "test": Table(("test_list.txt",), ("Image Index",), needed=False, read=read_names),
    },
    build=_build_nih,
    fields=Fields(
        uid="Image Index",
        paths=("path",),
        patient="Patient ID",
        study=lambda row: f"{row['Patient ID']}/{row['Follow-up #']}",
        view="View Position",
        age="Patient Age",
        sex="Patient Gender",
        split="split",
    ),
    findings=Findings("Finding Labels", _split_findings, _FINDINGS),
    divide_train=True,
)

# ---------------------------------------------------------------- RSNA Pneumonia

_CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")


def read_mapping(path: Path) -> pd.DataFrame:
    """Read the NIH film of each film of RSNA."""
    try:
        pairs = [(str(row["subset_img_id"]), str(row["img_id"])) for row in json.loads(path.read_text("utf-8"))]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UsageError(f"{path} is not a list of objects with subset_img_id and img_id") from None
    return pd.DataFrame(pairs, columns=["patientId", "img_id"])


def _build_rsna(release: Release) -> pd.DataFrame:
    films = keep_one_a_film(release.tables["boxes"], "patientId", ("Target",), "RSNA Pneumonia")
    if "classes" in release.tables:
        classes = keep_one_a_film(release.tables["classes"], "patientId", ("class",), "RSNA Pneumonia")
        if unknown := set(classes["class"]) - set(_CLASSES):
            raise UsageError(f"column 'class' of RSNA Pneumonia has {min(unknown)!r}, which is not published")
        for name in _CLASSES[:2]:
            classes[name] = (classes["class"] == name).astype(int).astype(str)
        films = films.merge(classes.drop(columns="class"), on="patientId", how="left")
    files = index_files(release.root, (".dcm",), ("stage_2_train_images", "stage_2_test_images"))
    films = locate_films(films.fillna(""), "patientId", files, ".dcm", "stage_2_train_images", add_unlisted=True)
    if "mapping" in release.tables:
        mapping = release.tables["mapping"].drop_duplicates("patientId")
        films = films.merge(mapping, on="patientId", how="left").fillna("")
    return films


def _get_nih_patient(row: Row) -> str:
    """Return the patient of NIH if the mapping exists, so that films of one patient in both sets match."""
    found = re.match(r"0*(\d+)_\d+\.png$", row.get("img_id", ""))
    return found[1] if found else row["patientId"]


RSNA = DataSet(
    name="rsna-pneumonia",
    title="RSNA Pneumonia Detection Challenge",
    films="29,684 (26,684 labelled)",
    licence="rules of the challenge; RSNA's terms of use",
    access="Kaggle account, accept the rules",
    url="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge",
    folders=("rsna-pneumonia-detection-challenge", "rsna-pneumonia"),
    marks=("stage_2_train_labels.csv",),
    tables={
        "boxes": Table(("stage_2_train_labels.csv",), ("patientId", "x", "y", "width", "height", "Target")),
        "classes": Table(("stage_2_detailed_class_info.csv",), ("patientId", "class"), needed=False),
        "mapping": Table(
            ("pneumonia-challenge-dataset-mappings_2018.json",),
            ("patientId", "img_id"),
            needed=False,
            read=read_mapping,
        ),
    },
    build=_build_rsna,
    fields=Fields(uid="patientId", paths=("path",), patient=_get_nih_patient),
    labels={"Pneumonia": "Target"} | {name: name for name in _CLASSES[:2]},
)

# ---------------------------------------------------------------- SIIM-ACR Pneumothorax

_RUNS = re.compile(r"\s*\d+\s+\d+(?:\s+\d+\s+\d+)*\s*")


def _build_siim(release: Release) -> pd.DataFrame:
    runs = release.tables["runs"]
    text = runs["EncodedPixels"].str.strip()
    none = text == "-1"
    wrong = int((~none & ~text.str.fullmatch(_RUNS)).sum())
    if wrong:
        raise UsageError(f"column 'EncodedPixels' of SIIM-ACR holds {wrong} cell(s) that are neither runs nor -1")
    films = runs.assign(Pneumothorax=np.where(none, "0", "1"))
    films = keep_one_a_film(films, "ImageId", ("Pneumothorax",), "SIIM-ACR")[["ImageId", "Pneumothorax"]]
    files = index_files(release.root, (".dcm",), ("dicom-images-train", "dicom-images-test"))
    return locate_films(films, "ImageId", files, ".dcm", "dicom-images-train", add_unlisted=True)


SIIM = DataSet(
    name="siim-acr",
    title="SIIM-ACR Pneumothorax Segmentation",
    films="12,047",
    licence="rules of the challenge",
    access="Kaggle account, accept the rules",
    url="https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation",
    folders=("siim-acr-pneumothorax-segmentation", "siim-acr", "siim"),
    marks=("train-rle.csv", "stage_2_train.csv"),
    tables={"runs": Table(("train-rle.csv", "stage_2_train.csv"), ("ImageId", "EncodedPixels"))},
    build=_build_siim,
    fields=Fields(uid="ImageId", paths=("path",)),
    labels={"Pneumothorax": "Pneumothorax"},
)
