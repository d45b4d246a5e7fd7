"""Attributes, and values of them, that a de-identified copy of a DICOM film may hold.

This is an allow-list within the Basic Application Level Confidentiality Profile (PS3.15 Annex E, table E.1-1).  All
attributes not named here are removed, whether or not the profile knows them.  A named one is kept only if its value is
a number in a plausible range or a term of the standard, or is replaced by a keyed hash.  No free text passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID_dictionary


@dataclass(frozen=True)
class Numbers:
    """Numbers in [low, high]; text is rounded to `digits` digits, so that no long number passes (0: not rounded).

    most: greatest number of values, if the standard sets none.
    """

    low: float
    high: float
    digits: int = 5
    most: int = 1


@dataclass(frozen=True)
class Terms:
    """Code strings, all in `allowed`; only the first `most` are read and kept."""

    allowed: frozenset[str]
    most: int = 1


@dataclass(frozen=True)
class Items:
    """Sequence of at most `most` items with their own rules; removed unless every item has all of `needed`."""

    kept: Mapping[str, Rule]
    needed: tuple[str, ...] = ()
    most: int = 8


@dataclass(frozen=True)
class Concepts:
    """Code sequence with known codes of PS3.16; meanings are taken from the standard, not from the file."""


@dataclass(frozen=True)
class Uid:
    """UID: those of the standard are kept, all others hashed."""


@dataclass(frozen=True)
class Day:
    """Date, or date of a date and time, shifted by the patient's secret."""


@dataclass(frozen=True)
class Age:
    """Age in years, months, weeks or days; 90 years for everybody above 89."""


@dataclass(frozen=True)
class Maker:
    """Name of the closed list of `name_manufacturer`."""


@dataclass(frozen=True)
class Table:
    """8 or 16-bit entries of a look-up table, as many as the named descriptor states."""

    descriptor: str


Rule = Numbers | Terms | Items | Concepts | Uid | Day | Age | Maker | Table


def _terms(text: str, most: int = 1) -> Terms:
    """Split at commas if there are any, since some terms hold spaces."""
    return Terms(frozenset(text.split(",") if "," in text else text.split()), most)


def _each(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_YES_NO = _terms("YES NO")
# PS3.16 annex L: body parts that a chest unit exposes, and vendors' spellings.
_BODY_PARTS = _terms(
    "ABDOMEN ABDOMENPELVIS ANKLE ARM BREAST CHEST CHESTABDOMEN CHESTABDPELVIS CLAVICLE COCCYX CSPINE CTSPINE ELBOW "
    "EXTREMITY FINGER FOOT FOREARM HAND HEAD HEART HIP HUMERUS JAW KNEE LEG LSPINE LSSPINE LUNG MEDIASTINUM NECK "
    "NECKCHEST PEDIATRIC PELVIS PORTCHEST RIB RIBS SCAPULA SHOULDER SKULL SPINE SSPINE STERNUM THIGH THORAX "
    "THUMB TIBIA TIBIAFIBULA TLSPINE TOE TSPINE UNKNOWN WHOLEBODY WHOLESPINE WRIST ABD BODY"
)
_SIDES = [a + b + c for a in "APRLHF" for b in ("", *"APRLHF") for c in ("", *"APRLHF")]
_EDGE = Numbers(-99_999, 99_999)
_REFERENCE: dict[str, Rule] = {"ReferencedSOPClassUID": Uid(), "ReferencedSOPInstanceUID": Uid()}
_DESCRIPTOR = Numbers(-32_768, 65_535, digits=0)
_LUT: dict[str, Rule] = {"LUTDescriptor": _DESCRIPTOR, "LUTData": Table("LUTDescriptor")}
_GREY_UNITS = _terms("OD HU US MGML Z_EFF ED EDW HU_MOD PCT UNSPECIFIED")

KEPT: dict[str, Rule] = {
    # Identity, replaced (PS3.15 E.3.6: dates are modified)
    **_each("SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID", Uid()),
    **_each("ReferencedImageSequence SourceImageSequence", Items(_REFERENCE, ("ReferencedSOPInstanceUID",))),
    **_each("StudyDate SeriesDate AcquisitionDate ContentDate AcquisitionDateTime", Day()),
    # Patient characteristics (PS3.15 E.3.7)
    "PatientSex": _terms("F M O"),
    "PatientAge": Age(),
    # Kind of film
    "Modality": _terms("CR DX RF XA RG DR OT"),
    "ImageType": _terms("ORIGINAL DERIVED PRIMARY SECONDARY", most=2),
    "ConversionType": _terms("DV DI DF WSD SD SI DRW SYN"),
    "PresentationIntentType": _terms("FOR PRESENTATION,FOR PROCESSING"),
    "Manufacturer": Maker(),
    **_each("SeriesNumber InstanceNumber", Numbers(0, 99_999)),
    **_each("BurnedInAnnotation RecognizableVisualFeatures", _YES_NO),
    "QualityControlImage": _terms("YES NO BOTH"),
    "LossyImageCompression": _terms("00 01"),
    "LossyImageCompressionRatio": Numbers(0, 1000, most=4),
    "LossyImageCompressionMethod": _terms("ISO_10918_1 ISO_14495_1 ISO_15444_1 ISO_15444_15", most=4),
    # Anatomy and view
    "BodyPartExamined": _BODY_PARTS,
    "ViewPosition": _terms("PA AP LL RL RLD LLD RLO LLO LATERAL LAT L R LLAT RLAT"),
    "PatientOrientation": Terms(frozenset(_SIDES), most=2),
    "Laterality": _terms("R L"),
    "ImageLaterality": _terms("R L U B"),
    **_each("AnatomicRegionSequence ViewCodeSequence", Concepts()),
    # Exposure and geometry
    "KVP": Numbers(0, 500),
    "ExposureTimeInuS": Numbers(0, 1e8),
    **_each("XRayTubeCurrentInuA ExposureInuAs", Numbers(0, 1e7)),
    **_each("XRayTubeCurrent Exposure EntranceDoseInmGy FieldOfViewDimensions", Numbers(0, 9_999)),
    **_each("DistanceSourceToDetector DistanceSourceToPatient", Numbers(0, 9_999)),
    **_each("ExposureTime RelativeXRayExposure Sensitivity ExposureIndex TargetExposureIndex", Numbers(0, 99_999)),
    "ImageAndFluoroscopyAreaDoseProduct": Numbers(0, 99_999),
    "DeviationIndex": Numbers(-99, 99),
    "EstimatedRadiographicMagnificationFactor": Numbers(0.1, 10),
    "FocalSpots": Numbers(0, 10, most=4),
    "Grid": _terms("FIXED FOCUSED RECIPROCATING PARALLEL CROSSED IN NONE", most=4),
    "ExposureControlMode": _terms("MANUAL AUTOMATIC"),
    "DetectorType": _terms("DIRECT SCINTILLATOR STORAGE FILM"),
    "DetectorConfiguration": _terms("AREA SLOT"),
    "FieldOfViewShape": _terms("RECTANGLE ROUND HEXAGONAL"),
    "FieldOfViewOrigin": _EDGE,
    "FieldOfViewRotation": Numbers(0, 360),
    "FieldOfViewHorizontalFlip": _YES_NO,
    **_each("CollimatorShape ShutterShape", _terms("RECTANGULAR CIRCULAR POLYGONAL", most=3)),
    **_each("CollimatorLeftVerticalEdge CollimatorRightVerticalEdge", _EDGE),
    **_each("CollimatorUpperHorizontalEdge CollimatorLowerHorizontalEdge", _EDGE),
    **_each("ShutterLeftVerticalEdge ShutterRightVerticalEdge", _EDGE),
    **_each("ShutterUpperHorizontalEdge ShutterLowerHorizontalEdge", _EDGE),
    "CassetteOrientation": _terms("LANDSCAPE PORTRAIT"),
    **_each("PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing", Numbers(0.001, 100, digits=0)),
    "PixelSpacingCalibrationType": _terms("GEOMETRY FIDUCIAL"),
    "PixelAspectRatio": Numbers(1, 99_999),
    # Pixels (PS3.3 C.7.6.3) and their display (C.11)
    "SamplesPerPixel": Numbers(1, 3),
    "PhotometricInterpretation": _terms(
        "MONOCHROME1,MONOCHROME2,RGB,PALETTE COLOR,YBR_FULL,YBR_FULL_422,YBR_ICT,YBR_RCT"
    ),
    **_each("PlanarConfiguration PixelRepresentation", Numbers(0, 1)),
    "NumberOfFrames": Numbers(1, 9_999),
    **_each("Rows Columns", Numbers(1, 65_535)),
    "BitsAllocated": Numbers(8, 16),
    "BitsStored": Numbers(1, 16),
    "HighBit": Numbers(0, 15),
    **_each("PixelPaddingValue PixelPaddingRangeLimit SmallestImagePixelValue LargestImagePixelValue", _DESCRIPTOR),
    "PixelIntensityRelationship": _terms("LIN LOG DISP"),
    "PixelIntensityRelationshipSign": Numbers(-1, 1),
    **_each("RescaleIntercept RescaleSlope", Numbers(-1e6, 1e6, digits=0)),
    "RescaleType": _GREY_UNITS,
    "ModalityLUTSequence": Items(_LUT | {"ModalityLUTType": _GREY_UNITS}, ("LUTDescriptor", "LUTData"), most=1),
    "VOILUTSequence": Items(_LUT, ("LUTDescriptor", "LUTData")),
    "VOILUTFunction": _terms("LINEAR LINEAR_EXACT SIGMOID"),
    "WindowCenter": Numbers(-1e6, 1e6, digits=0, most=16),
    "WindowWidth": Numbers(0, 1e6, digits=0, most=16),
    "PresentationLUTShape": _terms("IDENTITY INVERSE"),
}
for _colour in ("Red", "Green", "Blue"):
    KEPT[f"{_colour}PaletteColorLookupTableDescriptor"] = _DESCRIPTOR
    KEPT[f"{_colour}PaletteColorLookupTableData"] = Table(f"{_colour}PaletteColorLookupTableDescriptor")

# A film is refused if one of these has a value that is not allowed, since it would look different without it.
VITAL = frozenset(
    {"SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"}
    | {"BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleIntercept", "RescaleSlope"}
    | {"ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction", "PresentationLUTShape", "PixelPaddingValue"}
    | {name for name in KEPT if "Palette" in name}
)
# Type 2 attributes of the Patient and General Study modules: present but empty in every copy.
EMPTY = ("StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientBirthDate", "StudyID")
# Type 2 attributes that are empty unless the film has an allowed value.
EMPTY_IF_UNKNOWN = ("StudyDate", "PatientSex", "Manufacturer", "SeriesNumber", "InstanceNumber", "PatientOrientation")

# Single-frame and multi-frame projection radiographs, by their names in PS3.6.
RADIOGRAPHS = frozenset(
    uid
    for uid, (name, kind, *_) in UID_dictionary.items()
    if kind == "SOP Class"
    and name
    in {
        "Computed Radiography Image Storage",
        "Digital X-Ray Image Storage - For Presentation",
        "Digital X-Ray Image Storage - For Processing",
        "X-Ray Angiographic Image Storage",
        "X-Ray Radiofluoroscopic Image Storage",
    }
)
SECONDARY_CAPTURES = frozenset(f"1.2.840.10008.5.1.4.1.1.7{kind}" for kind in ("", ".2", ".3", ".4"))

# PS3.16 CID 7050: de-identification methods.
BASIC_PROFILE, MODIFIED_DATES, PATIENT_CHARACTERISTICS = "113100", "113107", "113108"
METHODS = {
    BASIC_PROFILE: "Basic Application Confidentiality Profile",
    MODIFIED_DATES: "Retain Longitudinal Temporal Information Modified Dates Option",
    PATIENT_CHARACTERISTICS: "Retain Patient Characteristics Option",
}


def find_concept(value: str, scheme: str) -> Code | None:
    """Return the allowed code of a code value and scheme, with its meaning in PS3.16, None for any other.

    Allowed are anatomic regions (CID 4031), views and their modifiers (CID 4010, 4011) and sides (CID 244).  SNOMED RT
    of older films becomes SNOMED CT.
    """
    # No hash look-up: codes that are equal across the two schemes have different hashes.
    asked = Code(value, "SRT" if scheme in ("SNM3", "99SDM") else scheme, "")
    return next((code for code in _list_concepts() if code == asked), None)


@cache
def _list_concepts() -> tuple[Code, ...]:
    context: Any
    known = [Code("51185008", "SCT", "Chest")]  # the chest of CID 4031 until 2020
    for context in (codes.cid4031, codes.cid4010, codes.cid4011, codes.cid244):
        known += [getattr(context, name) for name in context.dir()]
    return tuple(known)
