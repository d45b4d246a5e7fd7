"""What results inherit from the film they belong to, and the UIDs that are derived from it."""

from __future__ import annotations

import contextlib
from importlib.metadata import version
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.valuerep import DA, TM

from chess_cxr.decode.dicom import is_dicom, read_dataset
from chess_cxr.decode.film import read_film_content, refuse_damage
from chess_cxr.deidentify.identity import hash_uid
from chess_cxr.deidentify.values import build_code
from chess_cxr.derive.dicom import SOFTWARE
from chess_cxr.records import Undecodable

# Patient, Patient Study and General Study modules (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2), and what references need
_KEPT = (
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID",
    "PatientName", "IssuerOfPatientID", "OtherPatientNames", "EthnicGroup", "PatientComments", "Occupation",
    "AdditionalPatientHistory", "StudyID", "AccessionNumber", "ReferringPhysicianName", "StudyDescription",
    "NameOfPhysiciansReadingStudy", "AdmittingDiagnosesDescription", "AdmissionID",
)  # fmt: skip
_CHECKED = (
    "PatientBirthDate", "PatientBirthTime", "PatientAge", "PatientSize", "PatientWeight", "PatientSex", "StudyDate",
    "StudyTime",
)  # fmt: skip
# Type 2 of these modules: present, perhaps empty
_NEEDED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


def find_uid(source: str, sha256: str, kind: str) -> str:
    """Return the UID of a result or a part of it, made from the film's SOP Instance UID, the model's hash, the kind."""
    return hash_uid(f"{sha256} {kind}".encode(), source)


def check_film(path: Path) -> bool:
    """Return whether a spooled file is a film to answer, and not a result of this package; runs in a child.

    Raises `Undecodable` if no result could refer to it.
    """
    content = read_film_content(path)
    with refuse_damage("read it"):
        if not is_dicom(content):
            raise Undecodable("not a DICOM file")
        dataset = read_dataset(content)
        if not all(dataset.get(name) for name in _UIDS):
            raise Undecodable("DICOM without SOP Class, SOP Instance, Series or Study Instance UID")
        return not is_result(dataset)


def is_result(dataset: Dataset) -> bool:
    """Whether this package made the object; if results were answered in turn, it would never end."""
    items = dataset.get("ContributingEquipmentSequence") or ()
    return SOFTWARE in [str(item.get("Manufacturer")) for item in (dataset, *items)]


def read_source(content: bytes) -> Dataset:
    """Read what results inherit from the film.

    Dates, numbers and sexes that violate their form are left empty.  Identifiers and names are kept as they are, or
    an archive would file the results under another patient.
    """
    film, source = read_dataset(content), Dataset()
    for name in (*_KEPT, *_CHECKED):
        with contextlib.suppress(Exception):
            value = film.get(name)
            if name in _CHECKED:
                _check_form(name, str(value))
            if value is not None:
                setattr(source, name, value)
    for name in _NEEDED:
        if name not in source:
            setattr(source, name, None)
    return source


def _check_form(name: str, text: str) -> None:
    """Raise `ValueError` unless a value has the form of its VR (PS3.5 6.2)."""
    if name.endswith("Date"):
        DA(text)
    elif name.endswith("Time"):
        TM(text)
    elif name == "PatientSex":
        if text not in ("M", "F", "O"):
            raise ValueError
    elif name == "PatientAge":
        if not (len(text) == 4 and text[:3].isdigit() and text[3] in "DWMY"):
            raise ValueError
    else:
        float(text)


def inherit(result: Dataset, source: Dataset) -> None:
    """Add what highdicom left out of the film's patient and study."""
    for element in source:
        if element.tag not in result:
            result.add(element)


def describe_software(model: str, sha256: str) -> Items:
    """Return a Contributing Equipment Sequence (PS3.3 C.12.1.1.1), by which results are recognised."""
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = Items([build_code("109102", "DCM", "Processing Equipment")])
    item.Manufacturer, item.ManufacturerModelName = SOFTWARE, model[:64]
    item.SoftwareVersions = [version(SOFTWARE), sha256[:64]]
    return Items([item])
