"""One DICOM film to its de-identified copy, from bytes to bytes: PS3.15 Annex E, with the allow-list of this package.

The copy is a new data set, to which what may stay is carried over one element at a time; nothing is deleted from the
old one, so that nothing can be forgotten there.
"""

from __future__ import annotations

import contextlib
import io
import logging
import uuid
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian

from chess_cxr.decode.decoded import check_size
from chess_cxr.decode.dicom import is_dicom
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
MAX_INFLATED_BYTES = 1 << 30
# A film has some hundred elements; each costs the reader up to three reads.
MAX_READS = 200_000
_NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
_DEFLATED = "1.2.840.10008.1.2.1.99"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_OVERLAY_BIT_POSITIONS = tuple(0x60000102 + 0x20000 * number for number in range(16))  # (60xx,0102)


@dataclass(frozen=True)
class DeidentifiedFilm:
    """A copy as the content of a file, and the keyed hashes of the film's patient, study and instance."""

    content: bytes
    patient: str
    study: str
    instance: str


def deidentify_dicom(content: bytes, film: SourceFilm, key: bytes, allow_burned_in: bool = False) -> DeidentifiedFilm:
    """Write the film in `content` anew without what identifies its patient.

    film: whose patient (else Patient ID (0010,0020), else the film itself) owns the copy.
    allow_burned_in: also take what may well hold words in its pixels: Burned In Annotation (0028,0301) YES, colour, and
    secondary captures that do not declare it NO.

    Raises `Undecodable`, whose text holds nothing of the header, for what is damaged, no radiograph or not allowed.
    """
    try:
        with _silence():
            return _deidentify(content, film, key, allow_burned_in)
    except Undecodable:
        raise
    except MemoryError:
        raise Undecodable("not enough memory to read it") from None
    except Warning:
        raise Undecodable("DICOM ends early") from None
    except Exception as error:
        # The text of a library's error may quote the header: only its type is safe to pass on.
        raise Undecodable(f"damaged or unsupported file ({type(error).__name__})") from None


def _deidentify(content: bytes, film: SourceFilm, key: bytes, allow_burned_in: bool) -> DeidentifiedFilm:
    source, syntax = _read_dataset(content)
    if read_word(source, "SOPClassUID") not in RADIOGRAPHS | SECONDARY_CAPTURES:
        raise Undecodable("DICOM object is no radiograph")
    # The same owner as in a store: films of unknown patients must not become one patient.
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
    written = UID(ExplicitVRLittleEndian if syntax == _DEFLATED else syntax)
    study = hash_id(key, "study", _read_id(source, "StudyInstanceUID"))
    return DeidentifiedFilm(
        _write_file(copy, written), patient, study, hash_id(key, "uid", _read_id(source, "SOPInstanceUID"))
    )


# ---------------------------------------------------------------- reading


class _CountedReads(io.BytesIO):
    """A file whose reader is stopped after `MAX_READS` reads: a gigabyte of tiny elements would take 60 of memory."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS:
            raise Undecodable("DICOM with too many elements")
        return super().read(size)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep pydicom from printing: its warnings and log lines quote header values."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # pydicom only warns where a file ends early; what is left of such a film is not a film.
            warnings.filterwarnings("error", message=".*(End of file reached|EOF)")
            yield
    finally:
        logger.setLevel(level)


def _read_dataset(content: bytes) -> tuple[Dataset, str]:
    """Return the elements that may matter, and the transfer syntax, seen where the file does not say it."""
    if not is_dicom(content):
        raise Undecodable("not a DICOM file")
    tags = [get_tag(name) for name in (*KEPT, "SpecificCharacterSet", "PatientID", "PixelData")]
    inflated = _inflate(content)
    source = pydicom.dcmread(
        _CountedReads(content if inflated is None else inflated),
        force=inflated is not None or content[128:132] != b"DICM",
        specific_tags=[*tags, *_OVERLAY_BIT_POSITIONS],
    )
    if inflated is not None:
        return source, _DEFLATED
    syntax = str(source.file_meta.get("TransferSyntaxUID") or "") if hasattr(source, "file_meta") else ""
    if not syntax:
        implicit, little = source.original_encoding
        syntax = "1.2.840.10008.1.2" if implicit else ExplicitVRLittleEndian if little else _BIG_ENDIAN
    if syntax not in _NATIVE | COMPRESSED:
        raise Undecodable("DICOM transfer syntax is not supported")
    return source, syntax


def _inflate(content: bytes) -> bytes | None:
    """Return the data set of a deflated file (PS3.5 A.5), bounded; None for a file of any other transfer syntax."""
    if content[128:132] != b"DICM" or content[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
        return None
    start = 144 + int.from_bytes(content[140:144], "little")
    if _DEFLATED.encode() not in content[144:start]:
        return None
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = stream.decompress(content[start:], MAX_INFLATED_BYTES)
    if stream.unconsumed_tail:
        raise Undecodable("DICOM inflates to more than 1 GiB")
    if not stream.eof:
        raise Undecodable("DICOM deflated data set ends early")
    return inflated


def _read_id(source: Dataset, name: str) -> str:
    """Return an identifier as a store's ingest reads it, so that its hash is the same there."""
    try:
        return str(source.get(name) or "").strip().strip("\0").strip()
    except Exception:  # a value that breaks its own VR names nobody
        return ""


# ---------------------------------------------------------------- what is judged and what is added


def _check_vital(source: Dataset, copy: Dataset) -> None:
    """Refuse a film that would look different without what was left out, and one whose pixels are not described."""
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
        raise Undecodable("colour image, which may be a screenshot with words in it")
    if copy.SOPClassUID in SECONDARY_CAPTURES and declared != "NO":
        raise Undecodable("secondary capture, which may have words in it")


def _write_identity(copy: Dataset, patient: str) -> None:
    """Fill in the hashed patient, the empty attributes and what PS3.15 E.1 and E.3.6 want said of the method."""
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
    """Carry the pixel data over: to the bit, without what stands beside, behind or above the pixels."""
    element = source.get_item("PixelData") if "PixelData" in source else None
    if element is None or not isinstance(element.value, bytes) or not element.value:
        raise Undecodable("DICOM without pixel data")
    is_compressed = syntax in COMPRESSED
    if (element.length == 0xFFFFFFFF) != is_compressed:
        raise Undecodable("DICOM pixel data is not of its transfer syntax")
    if is_compressed:
        if any(_is_filled(source, tag) for tag in _OVERLAY_BIT_POSITIONS if tag in source):
            raise Undecodable("DICOM overlay within compressed pixels")  # retired (PS3.5 8.1.2), and cannot be cleared
        pixels = _strip_frames(element.value, copy, syntax)
    else:
        pixels = _cut_pixels(element.value, copy, syntax == _BIG_ENDIAN)
    copy.add(DataElement(0x7FE00010, "OB" if is_compressed or copy.BitsAllocated == 8 else "OW", pixels))
    copy["PixelData"].is_undefined_length = is_compressed


def _check_image(copy: Dataset) -> None:
    """Judge the Image Pixel module (PS3.3 C.7.6.3)."""
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
    """Return the pixels without what follows them (PS3.5 8.1.1)."""
    size = int(copy.Rows) * int(copy.Columns) * int(copy.SamplesPerPixel) * int(copy.BitsAllocated) // 8
    size *= int(copy.get("NumberOfFrames", 1))
    if copy.PhotometricInterpretation == "YBR_FULL_422":
        size = size * 2 // 3
    if len(value) < size:
        raise Undecodable("DICOM pixel data is shorter than its description")
    return _clear_unused_bits(value[:size], copy, big_endian) + bytes(size % 2)


def _clear_unused_bits(pixels: bytes, copy: Dataset, big_endian: bool) -> bytes:
    """Set the bits above Bits Stored (0028,0101) to what PS3.5 8.1.1 means by them: old files keep overlays there."""
    allocated, stored = int(copy.BitsAllocated), int(copy.BitsStored)
    if stored == allocated:
        return pixels
    signed = copy.get("PixelRepresentation") == 1
    values = np.frombuffer(pixels, f"{'>' if big_endian else '<'}{'i' if signed else 'u'}{allocated // 8}")
    shift = allocated - stored
    cleared = (values << shift) >> shift if signed else values & ((1 << stored) - 1)
    return bytes(cleared.astype(values.dtype).tobytes())


def _write_file(copy: Dataset, syntax: UID) -> bytes:
    """Write the file anew: zero preamble, and a meta group (PS3.10 7.1) that says nothing of where it came from."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = copy.SOPClassUID, copy.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID, meta.ImplementationVersionName = IMPLEMENTATION, IMPLEMENTATION_NAME
    copy.file_meta = meta
    written = io.BytesIO()
    pydicom.dcmwrite(written, copy, enforce_file_format=True)
    return written.getvalue()
