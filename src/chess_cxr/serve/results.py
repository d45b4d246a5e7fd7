"""Make the DICOM results of one film: structured report, heat map and film without bone, in the film's own study.

Their UIDs are derived from the film's SOP Instance UID, the hash of the model and the kind of result: whoever makes a
result again makes the same object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian

from chess_cxr.decode.dicom import read_dataset
from chess_cxr.decode.film import read_film_content, refuse_damage
from chess_cxr.deidentify.film import write_dicom
from chess_cxr.deidentify.values import build_code
from chess_cxr.derive.dicom import SOFTWARE, Derivation, derive_dicom
from chess_cxr.records import import_extra
from chess_cxr.serve.report import NOT_A_DEVICE, build_report
from chess_cxr.serve.source import describe_software, find_uid, inherit, read_source
from chess_cxr.tasks.answer import FilmAnswer

HEAT_MAP_SERIES, BONE_SERIES = 9902, 9903


@dataclass(frozen=True)
class ModelAnswer:
    """What a classifier says of a film, with a picture of what spoke for it, uint8 RGB [H, W, 3], or None."""

    film: FilmAnswer
    heat_map_HWC: np.ndarray | None = None


@dataclass(frozen=True)
class BoneChange:
    """What a bone model does to a film.

    model, sha256: its name and the hash of its weights.  change_HW: float32 of the size of the whole decoded film,
    added to its grey.
    """

    model: str
    sha256: str
    change_HW: np.ndarray


def build_results(path: Path, answers: Sequence[ModelAnswer], bones: BoneChange | None) -> list[bytes]:
    """Build the results of the film in `path`: a report and a heat map for each answer, and the film without bone.

    Returns DICOM files.  Runs in a child, since it reads a foreign file.
    """
    content = read_film_content(path)
    with refuse_damage("make results of it"), config.disable_value_validation():
        source, made = read_source(content), list[Dataset]()
        for answer in answers:
            made.append(build_report(source, answer.film))
            if answer.heat_map_HWC is not None:
                made.append(build_heat_map(source, answer.film, answer.heat_map_HWC))
        if bones is not None:
            made.append(build_suppressed(content, bones))
        return [write_dicom(result, ExplicitVRLittleEndian) for result in made]


def build_heat_map(source: Dataset, answer: FilmAnswer, heat_map_HWC: np.ndarray) -> Dataset:
    """Build a Secondary Capture of a heat map, uint8 RGB [H, W, 3].  source: of `read_source`."""
    capture = import_extra("highdicom.sc", "serve", "DICOM results").SCImage.from_ref_dataset(
        source,
        pixel_array=heat_map_HWC,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),
        series_instance_uid=find_uid(source.SOPInstanceUID, answer.model_sha256, "heat map series"),
        series_number=HEAT_MAP_SERIES,
        sop_instance_uid=find_uid(source.SOPInstanceUID, answer.model_sha256, "heat map"),
        instance_number=1,
        manufacturer=SOFTWARE,
        manufacturer_model_name=answer.model[:64],
        software_versions=(version(SOFTWARE), answer.model_sha256[:64]),
        series_description=f"Heat map ({SOFTWARE}, research)",
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    inherit(capture, source)
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.Laterality, capture.BurnedInAnnotation = "", "NO"
    capture.PatientOrientation = None  # the film's may be anything
    capture.DerivationDescription = f"Where model {answer.model} looked. {NOT_A_DEVICE}."
    capture.ContentQualification = "RESEARCH"
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = Items(
        [build_code("121322", "DCM", "Source image for image processing operation")]
    )
    capture.SourceImageSequence = Items([item])
    capture.ContributingEquipmentSequence = describe_software(answer.model, answer.model_sha256)
    made: Dataset = capture
    return made


def build_suppressed(content: bytes, bones: BoneChange) -> Dataset:
    """Build the film without bone, with UIDs that depend on the film and the model alone."""
    model = f"{bones.model} {bones.sha256[:16]}".strip()
    derived = read_dataset(derive_dicom(content, bones.change_HW, Derivation("bone-suppressed", model=model, seed=0)))
    source = str(derived.SourceImageSequence[0].ReferencedSOPInstanceUID)
    derived.SeriesNumber = BONE_SERIES
    derived.SeriesInstanceUID = find_uid(source, bones.sha256, "bone-suppressed series")
    derived.SOPInstanceUID = find_uid(source, bones.sha256, "bone-suppressed")
    return derived
