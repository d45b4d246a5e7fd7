"""Which attributes of a DICOM film a de-identified copy may hold, and which of their values.

An allow-list within the Basic Application Level Confidentiality Profile (PS3.15 Annex E, table E.1-1): what is not
named here is left out, whether or not the profile knows it, and what is named is kept only where its value is a number
in a plausible range, one of the terms that the standard lists, or made anew from a keyed hash.  No free text passes.
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
    """Numbers in [low, high]; text is rounded to `digits` digits, so that no long number passes; 0 keeps it as it is.

    most: of the values, where the standard sets no number.
    """

    low: float
    high: float
    digits: int = 5
    most: int = 1


@dataclass(frozen=True)
class Terms:
    """Code strings, all of them in `allowed`; only the first `most` are looked at and kept."""

    allowed: frozenset[str]
    most: int = 1


@dataclass(frozen=True)
class Items:
    """A sequence of at most `most` items with attributes of their own; one without any of `needed` is left out."""

    kept: Mapping[str, Rule]
    needed: tuple[str, ...] = ()
    most: int = 8


@dataclass(frozen=True)
class Concepts:
    """A code sequence whose codes are among the known ones of PS3.16; meanings are the standard's, not the file's."""


@dataclass(frozen=True)
class Uid:
    """A UID: the standard's own are kept, all others hashed."""


@dataclass(frozen=True)
class Day:
    """A date, or the date of a date and time, moved by the patient's secret."""


@dataclass(frozen=True)
class Age:
    """Years, months, weeks or days; 90 years for everybody above 89."""


@dataclass(frozen=True)
class Maker:
    """One of the closed list of `name_manufacturer`."""


@dataclass(frozen=True)
class Table:
    """A lookup table's 8 or 16-bit entries, as many as the named descriptor says."""

    descriptor: str


Rule = Numbers | Terms | Items | Concepts | Uid | Day | Age | Maker | Table


def _terms(text: str, most: int = 1) -> Terms:
    """Split at commas where there are any, since some terms hold spaces."""
    return Terms(frozenset(text.split(",") if "," in text else text.split()), most)


_YES_NO = _terms("YES NO")
# PS3.16 annex L, what a chest unit exposes, and the vendors' ways to write it.
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
    # Identity, all of it made anew (PS3.15 E.3.6: dates are modified)
    "SOPClassUID": Uid(),
    "SOPInstanceUID": Uid(),
    "StudyInstanceUID": Uid(),
    "SeriesInstanceUID": Uid(),
    "FrameOfReferenceUID": Uid(),
    "ReferencedImageSequence": Items(_REFERENCE, ("ReferencedSOPInstanceUID",)),
    "SourceImageSequence": Items(_REFERENCE, ("ReferencedSOPInstanceUID",)),
    "StudyDate": Day(),
    "SeriesDate": Day(),
    "AcquisitionDate": Day(),
    "ContentDate": Day(),
    "AcquisitionDateTime": Day(),
    # Patient characteristics (PS3.15 E.3.7)
    "PatientSex": _terms("F M O"),
    "PatientAge": Age(),
    # What kind of film it is
    "Modality": _terms("CR DX RF XA RG DR OT"),
    "ImageType": _terms("ORIGINAL DERIVED PRIMARY SECONDARY", most=2),
    "ConversionType": _terms("DV DI DF WSD SD SI DRW SYN"),
    "PresentationIntentType": _terms("FOR PRESENTATION,FOR PROCESSING"),
    "Manufacturer": Maker(),
    "SeriesNumber": Numbers(0, 99_999),
    "InstanceNumber": Numbers(0, 99_999),
    "BurnedInAnnotation": _YES_NO,
    "RecognizableVisualFeatures": _YES_NO,
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
    "AnatomicRegionSequence": Concepts(),
    "ViewCodeSequence": Concepts(),
    # Exposure and geometry
    "KVP": Numbers(0, 500),
    "ExposureTime": Numbers(0, 99_999),
    "ExposureTimeInuS": Numbers(0, 1e8),
    "XRayTubeCurrent": Numbers(0, 9_999),
    "XRayTubeCurrentInuA": Numbers(0, 1e7),
    "Exposure": Numbers(0, 9_999),
    "ExposureInuAs": Numbers(0, 1e7),
    "RelativeXRayExposure": Numbers(0, 99_999),
    "Sensitivity": Numbers(0, 99_999),
    "ExposureIndex": Numbers(0, 99_999),
    "TargetExposureIndex": Numbers(0, 99_999),
    "DeviationIndex": Numbers(-99, 99),
    "ImageAndFluoroscopyAreaDoseProduct": Numbers(0, 99_999),
    "EntranceDoseInmGy": Numbers(0, 9_999),
    "DistanceSourceToDetector": Numbers(0, 9_999),
    "DistanceSourceToPatient": Numbers(0, 9_999),
    "EstimatedRadiographicMagnificationFactor": Numbers(0.1, 10),
    "FocalSpots": Numbers(0, 10, most=4),
    "Grid": _terms("FIXED FOCUSED RECIPROCATING PARALLEL CROSSED IN NONE", most=4),
    "ExposureControlMode": _terms("MANUAL AUTOMATIC"),
    "DetectorType": _terms("DIRECT SCINTILLATOR STORAGE FILM"),
    "DetectorConfiguration": _terms("AREA SLOT"),
    "FieldOfViewShape": _terms("RECTANGLE ROUND HEXAGONAL"),
    "FieldOfViewDimensions": Numbers(0, 9_999),
    "FieldOfViewOrigin": Numbers(-99_999, 99_999),
    "FieldOfViewRotation": Numbers(0, 360),
    "FieldOfViewHorizontalFlip": _YES_NO,
    "CollimatorShape": _terms("RECTANGULAR CIRCULAR POLYGONAL", most=3),
    "CollimatorLeftVerticalEdge": _EDGE,
    "CollimatorRightVerticalEdge": _EDGE,
    "CollimatorUpperHorizontalEdge": _EDGE,
    "CollimatorLowerHorizontalEdge": _EDGE,
    "ShutterShape": _terms("RECTANGULAR CIRCULAR POLYGONAL", most=3),
    "ShutterLeftVerticalEdge": _EDGE,
    "ShutterRightVerticalEdge": _EDGE,
    "ShutterUpperHorizontalEdge": _EDGE,
    "ShutterLowerHorizontalEdge": _EDGE,
    "CassetteOrientation": _terms("LANDSCAPE PORTRAIT"),
    "PixelSpacing": Numbers(0.001, 100, digits=0),
    "ImagerPixelSpacing": Numbers(0.001, 100, digits=0),
    "NominalScannedPixelSpacing": Numbers(0.001, 100, digits=0),
    "PixelSpacingCalibrationType": _terms("GEOMETRY FIDUCIAL"),
    "PixelAspectRatio": Numbers(1, 99_999),
    # Pixels (PS3.3 C.7.6.3) and how they are shown (C.11)
    "SamplesPerPixel": Numbers(1, 3),
    "PhotometricInterpretation": _terms(
        "MONOCHROME1,MONOCHROME2,RGB,PALETTE COLOR,YBR_FULL,YBR_FULL_422,YBR_ICT,YBR_RCT"
    ),
    "PlanarConfiguration": Numbers(0, 1),
    "NumberOfFrames": Numbers(1, 9_999),
    "Rows": Numbers(1, 65_535),
    "Columns": Numbers(1, 65_535),
    "BitsAllocated": Numbers(8, 16),
    "BitsStored": Numbers(1, 16),
    "HighBit": Numbers(0, 15),
    "PixelRepresentation": Numbers(0, 1),
    "PixelPaddingValue": _DESCRIPTOR,
    "PixelPaddingRangeLimit": _DESCRIPTOR,
    "SmallestImagePixelValue": _DESCRIPTOR,
    "LargestImagePixelValue": _DESCRIPTOR,
    "PixelIntensityRelationship": _terms("LIN LOG DISP"),
    "PixelIntensityRelationshipSign": Numbers(-1, 1),
    "RescaleIntercept": Numbers(-1e6, 1e6, digits=0),
    "RescaleSlope": Numbers(-1e6, 1e6, digits=0),
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

# Where a film has one of these and its value is not allowed, the film would change its look: it is refused instead.
VITAL = frozenset(
    {"SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"}
    | {"BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleIntercept", "RescaleSlope"}
    | {"ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction", "PresentationLUTShape", "PixelPaddingValue"}
    | {name for name in KEPT if "Palette" in name}
)
# Type 2 attributes of the Patient and General Study modules: present in every copy, and empty.
EMPTY = ("StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientBirthDate", "StudyID")
# Type 2 attributes that are empty where the film has no value that may stay.
EMPTY_IF_UNKNOWN = ("StudyDate", "PatientSex", "Manufacturer", "SeriesNumber", "InstanceNumber", "PatientOrientation")

# Single-frame and multi-frame projection radiographs; the names are PS3.6's.
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
SECONDARY_CAPTURES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.7",
        "1.2.840.10008.5.1.4.1.1.7.2",
        "1.2.840.10008.5.1.4.1.1.7.3",
        "1.2.840.10008.5.1.4.1.1.7.4",
    }
)

# PS3.16 CID 7050: what was done.
BASIC_PROFILE, MODIFIED_DATES, PATIENT_CHARACTERISTICS = "113100", "113107", "113108"
METHODS = {
    BASIC_PROFILE: "Basic Application Confidentiality Profile",
    MODIFIED_DATES: "Retain Longitudinal Temporal Information Modified Dates Option",
    PATIENT_CHARACTERISTICS: "Retain Patient Characteristics Option",
}


def find_concept(value: str, scheme: str) -> Code | None:
    """Return the code that may stay for a code value and its scheme, with its meaning as in PS3.16; None for others.

    Anatomic regions (CID 4031), views and their modifiers (CID 4010, 4011) and sides (CID 244).  What older films carry
    of SNOMED RT becomes SNOMED CT.
    """
    # Compared one by one: codes that are equal across the two schemes differ in their hashes.
    asked = Code(value, "SRT" if scheme in ("SNM3", "99SDM") else scheme, "")
    return next((code for code in _list_concepts() if code == asked), None)


@cache
def _list_concepts() -> tuple[Code, ...]:
    context: Any
    known = [Code("51185008", "SCT", "Chest")]  # the chest of CID 4031 until 2020
    for context in (codes.cid4031, codes.cid4010, codes.cid4011, codes.cid244):
        known += [getattr(context, name) for name in context.dir()]
    return tuple(known)
