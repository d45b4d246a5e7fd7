"""Decode DICOM files (PS3.10) into grey films."""

from __future__ import annotations

import io
import math
import struct
import zlib

import pydicom
from pydicom.multival import MultiValue

from chess_cxr.decode.decoded import MAX_MEGAPIXELS, DecodedFilm, FilmHeader
from chess_cxr.decode.dicom_grey import find_functional_group, map_to_grey
from chess_cxr.decode.dicom_pixels import decode_stored, read_pixel_module
from chess_cxr.records import Undecodable, parse_age_years, parse_date, parse_sex, parse_view

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_EXPLICIT = b"1.2.840.10008.1.2.1".ljust(len(_DEFLATED), b"\0")  # PS3.5 6.2: UI is padded with NUL
_STEP_BYTES = 1 << 24
MAX_INFLATED_BYTES = 2 * MAX_MEGAPIXELS * 1_000_000 + (1 << 24)


def is_dicom(content: bytes) -> bool:
    """Recognise DICOM by its prefix (PS3.10 7.1), or without one by a first element of group 0002 or 0008."""
    if content[128:132] == b"DICM" or content[:4] == b"DICM":
        return True
    if len(content) < 132 or content[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        return False
    explicit = content[4:6].isalpha() and content[4:6].isupper()
    if content[:2] == b"\x00\x08":  # big endian (retired) is always explicit
        return explicit and content[2] == 0
    return content[3] == 0 and (explicit or int.from_bytes(content[4:8], "little") < len(content))


def decode_dicom(content: bytes, at_least: int = 0) -> DecodedFilm:
    """Decode the first frame of a DICOM file, with its header and pixel spacing.

    at_least: as for `chess_cxr.decode.film.decode_film`.
    """
    dataset = read_dataset(content)
    module = read_pixel_module(dataset)
    stored = decode_stored(dataset, module, at_least)
    grey = map_to_grey(stored, module, dataset)
    spacing_mm = read_spacing_mm(dataset) * 2**stored.halvings
    return DecodedFilm(grey, spacing_mm, read_film_header(dataset), module.height, module.width)


def read_dataset(
    content: bytes, tags: list[int] | None = None, open_file: type[io.BytesIO] = io.BytesIO
) -> pydicom.Dataset:
    """Read a DICOM file (PS3.10 7), even without preamble, prefix or file meta information.

    A deflated file becomes one in Explicit VR Little Endian.  tags: the only elements to read.
    """
    if content[:4] == b"DICM":
        content = bytes(128) + content
    if _DEFLATED in content[132:2048]:
        content = _inflate(content)
    dataset = pydicom.dcmread(open_file(content), force=content[128:132] != b"DICM", specific_tags=tags)
    _name_transfer_syntax(dataset)
    return dataset


def _inflate(content: bytes) -> bytes:
    """Inflate Deflated Explicit VR Little Endian (PS3.5 A.5) up to a bound, which pydicom lacks.

    File Meta Information Group Length (0002,0000) tells where the data set begins (PS3.10 7.1).
    """
    if content[128:132] != b"DICM" or content[132:138] != b"\x02\0\0\0UL":
        raise Undecodable("deflated DICOM file without a complete header")
    start = 144 + struct.unpack_from("<I", content, 140)[0]
    inflater, packed = zlib.decompressobj(-zlib.MAX_WBITS), content[start:]
    inflated = bytearray(content[:start].replace(_DEFLATED, _EXPLICIT))
    try:
        # Step by step: in one call, zlib would hold its output twice.
        while not inflater.eof and (step := inflater.decompress(packed, _STEP_BYTES)):
            inflated += step
            packed = inflater.unconsumed_tail
            if len(inflated) > MAX_INFLATED_BYTES:
                raise Undecodable(f"DICOM data set inflates to more than {MAX_INFLATED_BYTES >> 20} MiB")
    except zlib.error:
        raise Undecodable("deflated DICOM data set is damaged") from None
    if not inflater.eof:
        raise Undecodable("deflated DICOM data set ends early")
    return bytes(inflated)


def _name_transfer_syntax(dataset: pydicom.Dataset) -> None:
    """Fill in the transfer syntax (0002,0010) that was detected in a file without it."""
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
    if dataset.file_meta.get("TransferSyntaxUID"):
        return
    implicit, little = dataset.original_encoding
    explicit = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if implicit else explicit


def read_spacing_mm(dataset: pydicom.Dataset) -> float:
    """Return the spacing in the patient if known, else at the detector (PS3.3 10.7.1.3), NaN if uneven."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        try:
            source = find_functional_group(dataset, "PixelMeasuresSequence", name)
            row_mm, column_mm = (float(value) for value in source.get(name) or ())
        except Exception:  # a value that violates its VR
            continue
        if 0 < row_mm < math.inf and math.isclose(row_mm, column_mm, rel_tol=0.01):
            return math.sqrt(row_mm * column_mm)
    return math.nan


def read_film_header(dataset: pydicom.Dataset) -> FilmHeader:
    """Read patient, study and device from a data set; never raises: unreadable values become empty."""

    def text(name: str) -> str:
        try:
            value = dataset.get(name)
            first = next(iter(value), "") if isinstance(value, MultiValue) else value
            return "" if first is None else str(first).replace("\0", "").strip()
        except Exception:  # a value that violates its VR
            return ""

    burned_in = text("BurnedInAnnotation").upper()
    frames = text("NumberOfFrames")
    return FilmHeader(
        patient=text("PatientID"),
        study=text("StudyInstanceUID"),
        uid=text("SOPInstanceUID"),
        view=parse_view(text("ViewPosition")),
        age_years=parse_age_years(text("PatientAge")),
        sex=parse_sex(text("PatientSex")),
        study_date=parse_date(text("StudyDate")),
        manufacturer=text("Manufacturer"),
        burned_in=burned_in if burned_in in ("YES", "NO") else "",
        modality=text("Modality").upper(),
        body_part=text("BodyPartExamined").upper(),
        frames=int(frames) if frames.isascii() and frames.isdigit() and int(frames) else 1,
    )
