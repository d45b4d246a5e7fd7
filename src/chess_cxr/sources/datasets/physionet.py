"""Read MIMIC-CXR-JPG, VinDr-CXR and BRAX, all with credentialed access at PhysioNet."""

from __future__ import annotations

import pandas as pd

from chess_cxr.records import UsageError
from chess_cxr.sources.datasets.entry import (
    CHEXPERT_LABELS,
    DataSet,
    Fields,
    Release,
    Row,
    Table,
    name_labels,
    parse_label,
)

_LICENCE = "PhysioNet Credentialed Health Data License"
_ACCESS = "PhysioNet account with credentials and CITI training, signed agreement; no redistribution"

# ---------------------------------------------------------------- MIMIC-CXR-JPG

_BY_HAND = " (radiologist)"
_PROCEDURE = (
    *("PerformedProcedureStepDescription", "Rows", "Columns", "StudyTime", "ProcedureCodeSequence_CodeMeaning"),
    *("ViewCodeSequence_CodeMeaning", "PatientOrientationCodeSequence_CodeMeaning"),
)
_MIMIC_LABELS = tuple(sorted(CHEXPERT_LABELS))


def _find_path(row: Row) -> str:
    patient, study, film = row["subject_id"], row["study_id"], row["dicom_id"]
    return f"files/p{patient[:2]}/p{patient}/s{study}/{film}.jpg" if film else ""


def _build_mimic(release: Release) -> pd.DataFrame:
    films = _join(release.tables["films"], release.tables["split"][["dicom_id", "split"]], ["dicom_id"])
    films = _join(films, release.tables["labels"], ["subject_id", "study_id"])
    if "test" not in release.tables:
        return films
    by_hand = release.tables["test"].rename(columns={name: name + _BY_HAND for name in CHEXPERT_LABELS})
    return _join(films, by_hand, ["study_id"])


def _join(films: pd.DataFrame, told: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    if told.duplicated(keys).any():
        raise UsageError(f"a table of MIMIC-CXR-JPG has more than one row of one {' and '.join(keys)}")
    return films.merge(told, on=keys, how="left").fillna("")


MIMIC = DataSet(
    name="mimic-cxr-jpg",
    title="MIMIC-CXR-JPG",
    films="377,110",
    licence=_LICENCE,
    access=_ACCESS,
    url="https://physionet.org/content/mimic-cxr-jpg/",
    folders=("mimic-cxr-jpg", "mimic-cxr-jpg/2.1.0", "2.1.0", "physionet.org/files/mimic-cxr-jpg/2.1.0"),
    marks=("mimic-cxr-2.0.0-metadata.csv.gz", "mimic-cxr-2.0.0-metadata.csv"),
    tables={
        "films": Table(
            ("mimic-cxr-2.0.0-metadata.csv.gz", "mimic-cxr-2.0.0-metadata.csv"),
            ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", *_PROCEDURE),
            drop=_PROCEDURE,
        ),
        "split": Table(
            ("mimic-cxr-2.0.0-split.csv.gz", "mimic-cxr-2.0.0-split.csv"),
            ("dicom_id", "study_id", "subject_id", "split"),
        ),
        "labels": Table(
            ("mimic-cxr-2.0.0-chexpert.csv.gz", "mimic-cxr-2.0.0-chexpert.csv"),
            ("subject_id", "study_id", *_MIMIC_LABELS),
        ),
        "test": Table(
            ("mimic-cxr-2.1.0-test-set-labeled.csv", "mimic-cxr-2.1.0-test-set-labeled.csv.gz"),
            ("study_id", *("Lung Opacity|Airspace Opacity" if n == "Lung Opacity" else n for n in _MIMIC_LABELS)),
            needed=False,
        ),
    },
    build=_build_mimic,
    fields=Fields(
        uid="dicom_id",
        paths=(_find_path,),
        patient="subject_id",
        study="study_id",
        view="ViewPosition",
        split="split",
        date="StudyDate",
    ),
    labels=name_labels() | {name + _BY_HAND: name + _BY_HAND for name in CHEXPERT_LABELS},
)

# ---------------------------------------------------------------- VinDr-CXR

_VINDR_LABELS = (
    *("Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation"),
    *("Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst"),
    *("Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax"),
    *("Pulmonary fibrosis", "Rib fracture", "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis"),
    *("Other diseases", "No finding"),
)
_VINDR_COLUMNS = tuple("Other diseases|Other disease" if n == "Other diseases" else n for n in _VINDR_LABELS)


def _build_vindr(release: Release) -> pd.DataFrame:
    parts = [_count_votes(release.tables[part]).assign(split=part) for part in ("train", "test")]
    return pd.concat(parts, ignore_index=True)


def _count_votes(readings: pd.DataFrame) -> pd.DataFrame:
    """Return one row a film: 1 if more than half of its readers agree, -1 if exactly half do, else 0."""
    votes = readings[list(_VINDR_LABELS)]
    for name in _VINDR_LABELS:
        if wrong := set(votes[name].unique()) - {"0", "1", "0.0", "1.0", ""}:
            raise UsageError(f"column {name!r} of VinDr-CXR holds {min(wrong)!r}, which is neither 1, 0 nor blank")
    share = votes.map(parse_label).groupby(readings["image_id"], sort=False).mean()
    told = (share > 0.5).astype(int).astype(str).mask(share == 0.5, "-1").mask(share.isna(), "")
    return told.reset_index()


VINDR = DataSet(
    name="vindr-cxr",
    title="VinDr-CXR",
    films="18,000",
    licence=_LICENCE,
    access=_ACCESS,
    url="https://physionet.org/content/vindr-cxr/",
    folders=("vindr-cxr", "vindr-cxr/1.0.0", "1.0.0", "physionet.org/files/vindr-cxr/1.0.0"),
    marks=("image_labels_train.csv", "annotations/image_labels_train.csv"),
    tables={
        "train": Table(
            ("annotations/image_labels_train.csv", "image_labels_train.csv"),
            ("image_id", "rad_id|rad_ID", *_VINDR_COLUMNS),
        ),
        "test": Table(
            ("annotations/image_labels_test.csv", "image_labels_test.csv"),
            ("image_id", *_VINDR_COLUMNS),
            optional=("rad_id|rad_ID",),
        ),
    },
    build=_build_vindr,
    fields=Fields(
        uid="image_id",
        paths=(
            lambda row: f"{row['split']}/{row['image_id']}.dicom",
            lambda row: f"{row['split']}/{row['image_id']}.dcm",
        ),
        view=lambda row: "PA",
        split="split",
    ),
    labels=name_labels(_VINDR_LABELS),
    divide_train=True,
)

# ---------------------------------------------------------------- BRAX

BRAX = DataSet(
    name="brax",
    title="BRAX",
    films="40,967",
    licence=_LICENCE,
    access=_ACCESS,
    url="https://physionet.org/content/brax/",
    folders=("brax", "brax/1.1.0", "1.1.0", "physionet.org/files/brax/1.1.0"),
    marks=("master_spreadsheet_update.csv",),
    tables={
        "films": Table(
            ("master_spreadsheet_update.csv",),
            (
                *("DicomPath", "PngPath", "PatientID", "PatientSex", "PatientAge", "AccessionNumber", "StudyDate"),
                *(*CHEXPERT_LABELS, "ViewPosition", "Rows", "Columns", "Manufacturer"),
            ),
        )
    },
    build=lambda release: release.tables["films"],
    fields=Fields(
        uid="PngPath",
        paths=("PngPath", "DicomPath"),
        patient="PatientID",
        study="AccessionNumber",
        view="ViewPosition",
        age="PatientAge",
        sex="PatientSex",
        date="StudyDate",
    ),
    labels=name_labels(),
)
