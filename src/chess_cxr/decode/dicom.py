"""DICOM files (PS3.10) to grey films."""

from __future__ import annotations

import io
import math
import re
import struct
import zlib

import pydicom
from pydicom.multival import MultiValue

from chess_cxr.decode.decoded import MAX_MEGAPIXELS, DecodedFilm, FilmHeader
from chess_cxr.decode.dicom_grey import find_functional_group, map_to_grey
from chess_cxr.decode.dicom_pixels import decode_stored, read_pixel_module
from chess_cxr.records import Undecodable, parse_age_years, parse_sex, parse_view

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_EXPLICIT = b"1.2.840.10008.1.2.1".ljust(len(_DEFLATED), b"\0")  # PS3.5 6.2: UI is padded with NUL
_STEP_BYTES = 1 << 24
MAX_INFLATED_BYTES = 2 * MAX_MEGAPIXELS * 1_000_000 + (1 << 24)


def is_dicom(content: bytes) -> bool:
    """Tell DICOM by its prefix (PS3.10 7.1), or without one by a first element of group 0002 or 0008."""
    if content[128:132] == b"DICM" or content[:4] == b"DICM":
        return True
    if len(content) < 132 or content[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        return False
    explicit = content[4:6].isalpha() and content[4:6].isupper()
    if content[:2] == b"\x00\x08":  # big endian (retired) is always explicit
        return explicit and content[2] == 0
    return content[3] == 0 and (explicit or int.from_bytes(content[4:8], "little") < len(content))


def decode_dicom(content: bytes, at_least: int = 0) -> DecodedFilm:
    """Decode the first frame of a DICOM file, with what its header says of the patient and the pixel spacing.

    at_least: as for `chess_cxr.decode.film.decode_film`.
    """
    dataset = read_dataset(content)
    module = read_pixel_module(dataset)
    stored = decode_stored(dataset, module, at_least)
    grey = map_to_grey(stored, module, dataset)
    spacing_mm = read_spacing_mm(dataset) * 2**stored.halvings
    return DecodedFilm(grey, spacing_mm, read_film_header(dataset), module.height, module.width)


def read_dataset(content: bytes) -> pydicom.Dataset:
    """Read a DICOM file (PS3.10 7), also one without preamble, prefix or file meta information."""
    if content[:4] == b"DICM":
        content = bytes(128) + content
    if _DEFLATED in content[132:2048]:
        content = _inflate(content)
    dataset = pydicom.dcmread(io.BytesIO(content), force=content[128:132] != b"DICM")
    _name_transfer_syntax(dataset)
    return dataset


def _inflate(content: bytes) -> bytes:
    """Undo Deflated Explicit VR Little Endian (PS3.5 A.5) with a bound, which pydicom does without.

    The data set begins where File Meta Information Group Length (0002,0000) says (PS3.10 7.1).
    """
    if content[128:132] != b"DICM" or content[132:138] != b"\x02\0\0\0UL":
        raise Undecodable("deflated DICOM file without a complete header")
    start = 144 + struct.unpack_from("<I", content, 140)[0]
    inflater, packed = zlib.decompressobj(-zlib.MAX_WBITS), content[start:]
    inflated = bytearray(content[:start].replace(_DEFLATED, _EXPLICIT))
    try:
        # In steps: asked for all at once, zlib holds what it found twice.
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
    """Fill in the transfer syntax (0002,0010) that a file without meta header was seen to have."""
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
    if dataset.file_meta.get("TransferSyntaxUID"):
        return
    implicit, little = dataset.original_encoding
    if implicit:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    else:
        dataset.file_meta.TransferSyntaxUID = (
            pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
        )


def read_spacing_mm(dataset: pydicom.Dataset) -> float:
    """Return the spacing in the patient where it is known, else at the detector (PS3.3 10.7.1.3), NaN if uneven."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        try:
            source = find_functional_group(dataset, "PixelMeasuresSequence", name)
            row_mm, column_mm = (float(value) for value in source.get(name) or ())
        except Exception:  # a value that breaks its own VR says nothing
            continue
        if 0 < row_mm < math.inf and math.isclose(row_mm, column_mm, rel_tol=0.01):
            return math.sqrt(row_mm * column_mm)
    return math.nan


def read_film_header(dataset: pydicom.Dataset) -> FilmHeader:
    """Return what the data set says of patient, study and device; never raises: what cannot be read is empty."""

    def text(name: str) -> str:
        try:
            value = dataset.get(name)
            first = next(iter(value), "") if isinstance(value, MultiValue) else value
            return "" if first is None else str(first).replace("\0", "").strip()
        except Exception:  # a value that breaks its own VR says nothing
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
        study_date=_parse_date(text("StudyDate")),
        manufacturer=text("Manufacturer"),
        burned_in=burned_in if burned_in in ("YES", "NO") else "",
        modality=text("Modality").upper(),
        body_part=text("BodyPartExamined").upper(),
        frames=int(frames) if frames.isascii() and frames.isdigit() and int(frames) else 1,
    )


def _parse_date(text: str) -> str:
    """Return YYYYMMDD of a DA (PS3.5 6.2), also in ACR-NEMA's form with dots; "" for what is no date."""
    found = re.fullmatch(r"([12]\d{3})[.-]?(0[1-9]|1[0-2])[.-]?(0[1-9]|[12]\d|3[01])", text)
    return "".join(found.groups()) if found else ""
