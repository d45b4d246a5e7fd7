"""Read PadChest."""

from __future__ import annotations

import re

from chess_cxr.records import parse_date
from chess_cxr.sources.datasets.entry import DataSet, Fields, Findings, Row, Table, get_text

_NAMES = ("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", "PADCHEST_chest_x_ray_images_labels_160K.csv")
_KEPT = (
    *("ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM"),
    *("Projection", "Manufacturer_DICOM", "Labels"),
)
_DROPPED = (
    *("ViewPosition_DICOM", "MethodProjection", "Pediatric", "Modality_DICOM", "PhotometricInterpretation_DICOM"),
    *("PixelRepresentation_DICOM", "PixelAspectRatio_DICOM", "SpatialResolution_DICOM", "BitsStored_DICOM"),
    *("WindowCenter_DICOM", "WindowWidth_DICOM", "Rows_DICOM", "Columns_DICOM", "XRayTubeCurrent_DICOM"),
    *("Exposure_DICOM", "ExposureInuAs_DICOM", "ExposureTime", "RelativeXRayExposure_DICOM", "ReportID", "Report"),
    *("MethodLabel", "Localizations", "LabelsLocalizationsBySentence", "labelCUIS", "LocalizationsCUIS"),
)
_SPELLED = {"ExposureTime": "ExposureTime|ExposureTime_DICOM", "labelCUIS": "labelCUIS|LabelCUIS"}
_ITEM = re.compile(r"""\s*(?:'([^'\\]*)'|"([^"\\]*)")\s*(,|$)""")
MAX_LIST_CHARACTERS = 10_000
MAX_LABELS_A_FILM = 200


def parse_quoted_list(text: str) -> tuple[str, ...]:
    """Return the items of "['pleural effusion', 'COPD signs']": stripped, in lower case, distinct, none blank.

    Nothing is evaluated: the text must be a flat list of quoted texts without escapes.
    Raises `ValueError` for anything else, and for lists that are too long for a report.
    """
    inside = text.strip()
    if len(inside) > MAX_LIST_CHARACTERS:
        raise ValueError(f"a list is longer than {MAX_LIST_CHARACTERS} characters")
    if not (len(inside) > 1 and inside.startswith("[") and inside.endswith("]")):
        raise ValueError("a cell is not a list in brackets")
    inside, items, at = inside[1:-1].strip(), [], 0
    while at < len(inside):
        found = _ITEM.match(inside, at)
        if found is None:
            raise ValueError("a list holds something other than quoted texts and commas")
        items.append((found[1] or found[2] or "").strip().lower())
        at = found.end()
        if len(items) > MAX_LABELS_A_FILM:
            raise ValueError(f"a list holds more than {MAX_LABELS_A_FILM} labels")
    return tuple(dict.fromkeys(item for item in items if item))


def _get_age(row: Row) -> str:
    """Return the years between birth and study; the table gives only the year of birth."""
    date, born = parse_date(row["StudyDate_DICOM"]), get_text(row, "PatientBirth").split(".")[0]
    return str(int(date[:4]) - int(born)) if date and re.fullmatch(r"\d{4}", born) else ""


PADCHEST = DataSet(
    name="padchest",
    title="PadChest",
    films="160,868",
    licence="PadChest Dataset Research Use Agreement",
    access="register at BIMCV and accept the agreement",
    url="https://bimcv.cipf.es/bimcv-projects/padchest/",
    folders=("PadChest", "BIMCV-PadChest"),
    marks=(*_NAMES, *(f"{name}.gz" for name in _NAMES)),
    tables={
        "films": Table(
            (*_NAMES, *(f"{name}.gz" for name in _NAMES)),
            (*_KEPT, *(_SPELLED.get(name, name) for name in _DROPPED)),
            optional=("",),
            drop=(*_DROPPED, ""),
        )
    },
    build=lambda release: release.tables["films"],
    fields=Fields(
        uid="ImageID",
        paths=(
            lambda row: f"{get_text(row, 'ImageDir').split('.')[0] or '.'}/{row['ImageID']}",
            "ImageID",
            lambda row: f"images/{row['ImageID']}",
        ),
        patient="PatientID",
        study="StudyID",
        view="Projection",
        age=_get_age,
        sex="PatientSex_DICOM",
        date="StudyDate_DICOM",
        manufacturer="Manufacturer_DICOM",
    ),
    findings=Findings("Labels", parse_quoted_list),
)
