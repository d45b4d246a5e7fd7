"""Codes of findings in structured reports: SNOMED CT and DCM where a label has one, else the private scheme 99CHESS."""

from __future__ import annotations

import hashlib

from pydicom.sr.coding import Code

PRIVATE_SCHEME = "99CHESS"
PRIVATE_SCHEME_NAME = "Labels of chess-cxr models"
_SH, _LO = 16, 64  # greatest lengths of a code value and a code meaning, PS3.5 6.2

# By label in lower case, with spaces for underscores.  From PS3.16: CID 6104 (infiltrate, mass, nodule, opacity),
# CID 6105 (pneumothorax), CID 645 (pleural effusion), CID 3700 (pulmonary edema).  The others are concepts of SNOMED CT
# International.  Labels of several meanings, such as "Hernia" or "Lung Lesion", stay private.
_ATELECTASIS = Code("46621007", "SCT", "Atelectasis")
_CARDIOMEGALY = Code("8186001", "SCT", "Cardiomegaly")
_CONSOLIDATION = Code("95436008", "SCT", "Lung consolidation")
_EDEMA = Code("19242006", "SCT", "Pulmonary edema")
_EFFUSION = Code("60046008", "SCT", "Pleural effusion")
_EMPHYSEMA = Code("87433001", "SCT", "Pulmonary emphysema")
_FIBROSIS = Code("51615001", "SCT", "Fibrosis of lung")
_FRACTURE = Code("125605004", "SCT", "Fracture of bone")
_INFILTRATE = Code("112121", "DCM", "Infiltrate")
_NODULE = Code("27925004", "SCT", "Nodule")
_OPACITY = Code("112001", "DCM", "Opacity")
_TUBERCULOSIS = Code("154283005", "SCT", "Pulmonary tuberculosis")
FINDINGS = {
    "atelectasis": _ATELECTASIS,
    "cardiomegaly": _CARDIOMEGALY,
    "consolidation": _CONSOLIDATION,
    "edema": _EDEMA,
    "pulmonary edema": _EDEMA,
    "effusion": _EFFUSION,
    "pleural effusion": _EFFUSION,
    "emphysema": _EMPHYSEMA,
    "fibrosis": _FIBROSIS,
    "pulmonary fibrosis": _FIBROSIS,
    "fracture": _FRACTURE,
    "hiatal hernia": Code("84089009", "SCT", "Hiatal hernia"),
    "infiltration": _INFILTRATE,
    "infiltrate": _INFILTRATE,
    "infiltrates": _INFILTRATE,
    "lung opacity": _OPACITY,
    "mass": Code("4147007", "SCT", "Mass"),
    "nodule": _NODULE,
    "pneumonia": Code("233604007", "SCT", "Pneumonia"),
    "pneumothorax": Code("36118008", "SCT", "Pneumothorax"),
    "tuberculosis": _TUBERCULOSIS,
    "pulmonary tuberculosis": _TUBERCULOSIS,
}


def find_code(label: str) -> Code:
    """Return the public code of a finding, or a private one with the label as its meaning."""
    return FINDINGS.get(label.replace("_", " ").strip().lower()) or build_private_code(label)


def build_private_code(label: str) -> Code:
    """Return a code of the scheme 99CHESS: the label itself if it fits, else a hash of it, as the code value."""
    text = label.replace("\\", " ").strip() or "unnamed"
    fits = len(text) <= _SH and text.isascii()
    return Code(text if fits else hashlib.sha256(text.encode()).hexdigest()[:_SH], PRIVATE_SCHEME, text[:_LO])
