"""De-identify one DICOM film, bytes in and bytes out: PS3.15 Annex E, with the allow-list of this package.

The copy is a new data set that receives the allowed elements one by one.  Nothing is deleted from the source, so
nothing can be overlooked.
"""

from __future__ import annotations

import io
import uuid
from dataclasses import dataclass

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import UID

from chess_cxr.decode.decoded import check_size
from chess_cxr.decode.dicom import is_dicom, read_dataset
from chess_cxr.decode.film import refuse_damage
from chess_cxr.deidentify.codestreams import COMPRESSED, strip_frame
from chess_cxr.deidentify.identity import hash_id
from chess_cxr.deidentify.profile import (
    BASIC_PROFILE,
    EMPTY,
    EMPTY_IF_UNKNOWN,
    KEPT,
    METHODS,
    MODIFIED_DATES,
    PATIENT_CHARACTERISTICS,
    RADIOGRAPHS,
    SECONDARY_CAPTURES,
    VITAL,
)
from chess_cxr.deidentify.values import Identity, build_code, clean_dataset, get_tag, read_word
from chess_cxr.records import SourceFilm, Undecodable

METHOD = "chess-cxr: PS3.15 Annex E, allow-list"
IMPLEMENTATION = UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_DNS, 'chess-cxr').int}")
IMPLEMENTATION_NAME = "CHESS_CXR"
MAX_READS = 200_000  # a film has some hundred elements of at most three reads each
_NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_OVERLAY_BIT_POSITIONS = tuple(0x60000102 + 0x20000 * number for number in range(16))  # (60xx,0102)


@dataclass(frozen=True)
class DeidentifiedFilm:
    """Content of a copy's file, and the keyed hashes of the film's patient, study and instance."""

    content: bytes
    patient: str
    study: str
    instance: str


def deidentify_dicom(content: bytes, film: SourceFilm, key: bytes, allow_burned_in: bool = False) -> DeidentifiedFilm:
    """Copy the film in `content` without anything that identifies its patient.

    film: its patient (else Patient ID (0010,0020), else the film itself) owns the copy.
    allow_burned_in: also copy films with possible text in their pixels: Burned In Annotation (0028,0301) YES, colour,
    and secondary captures without NO.

    Raises `Undecodable`, whose text holds nothing of the header, for a film that is damaged, no radiograph or not
    allowed.
    """
    with refuse_damage("read it"):
        try:
            return _deidentify(content, film, key, allow_burned_in)
        except Warning:
            raise Undecodable("DICOM ends early") from None


def _deidentify(content: bytes, film: SourceFilm, key: bytes, allow_burned_in: bool) -> DeidentifiedFilm:
    source = _read_allowed(content)
    syntax = source.file_meta.TransferSyntaxUID
    if read_word(source, "SOPClassUID") not in RADIOGRAPHS | SECONDARY_CAPTURES:
        raise Undecodable("DICOM object is not a radiograph")
    # The same owner as in a store: films of unknown patients must not merge into one patient.
    owner = film.patient or _read_id(source, "PatientID") or f"\0film\0{film.uid}"
    identity = Identity(key, owner)
    copy = clean_dataset(source, KEPT, identity)
    if not all(f"{level}InstanceUID" in copy for level in ("Study", "Series", "SOP")):
        raise Undecodable("DICOM without study, series or instance UID")
    _check_vital(source, copy)
    _check_image(copy)
    if not allow_burned_in:
        _check_burned_in(copy)
    patient = hash_id(key, "patient", owner)
    _write_identity(copy, patient)
    _write_pixels(source, copy, syntax)
    study = hash_id(key, "study", _read_id(source, "StudyInstanceUID"))
    instance = hash_id(key, "uid", _read_id(source, "SOPInstanceUID"))
    return DeidentifiedFilm(write_dicom(copy, syntax), patient, study, instance)


# ---------------------------------------------------------------- reading


class _CountedReads(io.BytesIO):
    """File that allows `MAX_READS` reads: a gigabyte of tiny elements would take 60 GB of memory."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS:
            raise Undecodable("DICOM with too many elements")
        return super().read(size)


def _read_allowed(content: bytes) -> Dataset:
    """Read the elements that may matter; detect a missing transfer syntax."""
    if not is_dicom(content):
        raise Undecodable("not a DICOM file")
    tags = [get_tag(name) for name in (*KEPT, "SpecificCharacterSet", "PatientID", "PixelData")]
    source = read_dataset(content, [*tags, *_OVERLAY_BIT_POSITIONS], _CountedReads)
    if source.file_meta.TransferSyntaxUID not in _NATIVE | COMPRESSED:
        raise Undecodable("DICOM transfer syntax is not supported")
    return source


def _read_id(source: Dataset, name: str) -> str:
    """Return an identifier as the ingest reads it, so that its hash agrees with a store."""
    try:
        return str(source.get(name) or "").strip().strip("\0").strip()
    except Exception:  # a value that violates its VR
        return ""


# ---------------------------------------------------------------- checks and identity


def _check_vital(source: Dataset, copy: Dataset) -> None:
    """Refuse a film that would look different without its removed values."""
    for name in VITAL:
        tag = get_tag(name)
        if name not in copy and tag in source and _is_filled(source, tag):
            raise Undecodable("DICOM image description holds a value that cannot be kept")
    for name in ("WindowCenter", "WindowWidth"):
        other = "WindowWidth" if name == "WindowCenter" else "WindowCenter"
        if name in copy and other not in copy:
            del copy[name]


def _is_filled(source: Dataset, tag: int) -> bool:
    element = source.get_item(tag)
    value = element.value if element is not None else None
    return bool(value.strip(b" \0") if isinstance(value, bytes) else value)


def _check_burned_in(copy: Dataset) -> None:
    declared = copy.get("BurnedInAnnotation", "")
    if declared == "YES":
        raise Undecodable("burned-in annotation is declared")
    if copy.SamplesPerPixel > 1 or not str(copy.PhotometricInterpretation).startswith("MONOCHROME"):
        raise Undecodable("colour image, which may be a screenshot with text in it")
    if copy.SOPClassUID in SECONDARY_CAPTURES and declared != "NO":
        raise Undecodable("secondary capture, which may hold text")


def _write_identity(copy: Dataset, patient: str) -> None:
    """Fill in the hashed patient, the empty attributes, and the method as PS3.15 E.1 and E.3.6 demand."""
    copy.PatientID = copy.PatientName = patient
    for name in EMPTY:
        setattr(copy, name, None)
    for name in EMPTY_IF_UNKNOWN:
        if name not in copy:
            setattr(copy, name, None)
    has_dates = any(element.VR in ("DA", "DT") and element.value for element in copy)
    copy.PatientIdentityRemoved = "YES"
    copy.DeidentificationMethod = METHOD
    used = (BASIC_PROFILE, PATIENT_CHARACTERISTICS, *([MODIFIED_DATES] if has_dates else []))
    copy.DeidentificationMethodCodeSequence = Sequence([build_code(code, "DCM", METHODS[code]) for code in used])
    copy.LongitudinalTemporalInformationModified = "MODIFIED" if has_dates else "REMOVED"


# ---------------------------------------------------------------- pixels


def _write_pixels(source: Dataset, copy: Dataset, syntax: str) -> None:
    """Copy the pixels to the bit, without data beside, behind or above them."""
    element = source.get_item("PixelData") if "PixelData" in source else None
    if element is None or not isinstance(element.value, bytes) or not element.value:
        raise Undecodable("DICOM without pixel data")
    is_compressed = syntax in COMPRESSED
    if (element.length == 0xFFFFFFFF) != is_compressed:
        raise Undecodable("DICOM pixel data is not of its transfer syntax")
    if is_compressed:
        if any(_is_filled(source, tag) for tag in _OVERLAY_BIT_POSITIONS if tag in source):
            raise Undecodable("DICOM overlay within compressed pixels")  # retired (PS3.5 8.1.2); cannot be cleared
        pixels = _strip_frames(element.value, copy, syntax)
    else:
        pixels = _cut_pixels(element.value, copy, syntax == _BIG_ENDIAN)
    copy.add(DataElement(0x7FE00010, "OB" if is_compressed or copy.BitsAllocated == 8 else "OW", pixels))
    copy["PixelData"].is_undefined_length = is_compressed


def _check_image(copy: Dataset) -> None:
    """Check the Image Pixel module (PS3.3 C.7.6.3)."""
    try:
        height, width, samples = int(copy.Rows), int(copy.Columns), int(copy.SamplesPerPixel)
        allocated, stored, high_bit = int(copy.BitsAllocated), int(copy.BitsStored), int(copy.HighBit)
    except AttributeError:
        raise Undecodable("DICOM image description is incomplete") from None
    if "PhotometricInterpretation" not in copy or "PixelRepresentation" not in copy:
        raise Undecodable("DICOM image description is incomplete")
    if allocated not in (8, 16) or not 1 <= stored <= allocated:
        raise Undecodable("DICOM bit depth is not 8 to 16 bits")
    if high_bit != stored - 1 or samples not in (1, 3):
        raise Undecodable("DICOM pixels are laid out in a way that is not supported")
    check_size(height, width, int(copy.get("NumberOfFrames", 1)))


def _strip_frames(value: bytes, copy: Dataset, syntax: str) -> bytes:
    frames, pixels = int(copy.get("NumberOfFrames", 1)), int(copy.Rows) * int(copy.Columns)
    stripped = [strip_frame(frame, syntax, pixels) for frame in generate_frames(value, number_of_frames=frames)]
    if len(stripped) != frames:
        raise Undecodable("DICOM compressed image ends early")
    return bytes(encapsulate(stripped))


def _cut_pixels(value: bytes, copy: Dataset, big_endian: bool) -> bytes:
    """Return the pixels without trailing data (PS3.5 8.1.1)."""
    size = int(copy.Rows) * int(copy.Columns) * int(copy.SamplesPerPixel) * int(copy.BitsAllocated) // 8
    size *= int(copy.get("NumberOfFrames", 1))
    if copy.PhotometricInterpretation == "YBR_FULL_422":
        size = size * 2 // 3
    if len(value) < size:
        raise Undecodable("DICOM pixel data is shorter than its description")
    return _clear_unused_bits(value[:size], copy, big_endian) + bytes(size % 2)


def _clear_unused_bits(pixels: bytes, copy: Dataset, big_endian: bool) -> bytes:
    """Clear the bits above Bits Stored (0028,0101) as PS3.5 8.1.1 demands; old files keep overlays there."""
    allocated, stored = int(copy.BitsAllocated), int(copy.BitsStored)
    if stored == allocated:
        return pixels
    signed = copy.get("PixelRepresentation") == 1
    values = np.frombuffer(pixels, f"{'>' if big_endian else '<'}{'i' if signed else 'u'}{allocated // 8}")
    shift = allocated - stored
    cleared = (values << shift) >> shift if signed else values & ((1 << stored) - 1)
    return bytes(cleared.astype(values.dtype).tobytes())


def write_dicom(dataset: Dataset, syntax: str) -> bytes:
    """Return a DICOM file (PS3.10 7.1) with a zero preamble and a meta group that does not tell its origin."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = UID(syntax)
    meta.ImplementationClassUID, meta.ImplementationVersionName = IMPLEMENTATION, IMPLEMENTATION_NAME
    dataset.file_meta, dataset.preamble = meta, bytes(128)
    written = io.BytesIO()
    dataset.save_as(written, enforce_file_format=True)
    return written.getvalue()
