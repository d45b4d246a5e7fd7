"""DICOM to grey: Image Pixel, Modality LUT and VOI LUT modules of PS3.3."""

from __future__ import annotations

import contextlib
import io
import math
import struct

import numpy as np
import pydicom
from pydicom.encaps import get_frame
from pydicom.pixels import apply_modality_lut, apply_windowing, pixel_array

from chess_cxr.ingest.decoded import DecodedFilm, FilmHeader, Undecodable, check_size, find_window, stretch
from chess_cxr.sources.demographics import parse_age_years, parse_sex, parse_view

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow's "L"


def is_dicom(content: bytes) -> bool:
    """Tell DICOM by its prefix (PS3.10 7.1), or without one by a first element of group 0002 or 0008."""
    if content[128:132] == b"DICM":
        return True
    if len(content) < 132 or content[:2] not in (b"\x02\x00", b"\x08\x00") or content[3] != 0:
        return False
    explicit = content[4:6].isalpha() and content[4:6].isupper()
    return explicit or int.from_bytes(content[4:8], "little") < len(content)


def decode_dicom(content: bytes) -> DecodedFilm:
    """Decode the first frame of a DICOM file, with what its header says of the patient and the pixel spacing."""
    if _DEFLATED in content[:2048]:
        raise Undecodable("deflated DICOM is not read")
    dataset = pydicom.dcmread(io.BytesIO(content), force=content[128:132] != b"DICM")
    _check_pixel_module(dataset)
    _name_transfer_syntax(dataset)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        _check_codestream(dataset)
        # Named, so that no other decoder that happens to be installed answers first.
        raw = pixel_array(dataset, index=0, decoding_plugin="pylibjpeg")
    else:
        raw = pixel_array(dataset, index=0)
    grey = _apply_grey_levels(raw, dataset) if raw.ndim == 2 else _compute_luminance(raw, dataset)
    return DecodedFilm(grey, _read_spacing_mm(dataset), _read_header(dataset))


def _check_pixel_module(dataset: pydicom.Dataset) -> None:
    """Judge the Image Pixel module (PS3.3 C.7.6.3) before any memory is taken for it."""
    if not dataset.get("PixelData"):
        raise Undecodable("DICOM without pixel data")
    try:
        height, width = int(dataset.Rows), int(dataset.Columns)
        frames = int(dataset.get("NumberOfFrames") or 1)
        allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
        photometric = str(dataset.PhotometricInterpretation)
    except (AttributeError, TypeError, ValueError):
        raise Undecodable("DICOM image description is incomplete") from None
    if allocated not in (8, 16) or not 1 <= stored <= allocated:
        raise Undecodable("DICOM bit depth is not 8 to 16 bits")
    if photometric not in ("MONOCHROME1", "MONOCHROME2", "RGB") and not photometric.startswith("YBR_"):
        raise Undecodable("DICOM photometric interpretation is not supported")
    check_size(height, width, frames)


def _name_transfer_syntax(dataset: pydicom.Dataset) -> None:
    """Fill in the transfer syntax that a file without meta header was seen to have."""
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
    if "TransferSyntaxUID" in dataset.file_meta:
        return
    implicit, little = dataset.original_encoding
    if implicit:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    else:
        dataset.file_meta.TransferSyntaxUID = (
            pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
        )


def _check_codestream(dataset: pydicom.Dataset) -> None:
    """Refuse a frame that is cut off, or whose size is not the header's: decoders allocate what the stream claims."""
    frame = get_frame(dataset.PixelData, 0, number_of_frames=int(dataset.get("NumberOfFrames") or 1))
    size = _read_codestream_size(frame)
    if size is not None and size != (int(dataset.Rows), int(dataset.Columns)):
        raise Undecodable("DICOM header and compressed image differ in size")
    # EOI of JPEG and JPEG-LS, EOC of JPEG 2000: the decoders fill in what is missing without a word.
    if size is not None and b"\xff\xd9" not in frame[-1024:]:
        raise Undecodable("DICOM compressed image ends early")


def _read_codestream_size(frame: bytes) -> tuple[int, int] | None:
    """Return height and width of a JPEG, JPEG-LS or JPEG 2000 codestream; None for what has no such marker."""
    if frame[:4] == b"\xff\x4f\xff\x51":  # SOC, SIZ (ISO/IEC 15444-1 A.5.1)
        x1, y1, x0, y0 = struct.unpack_from(">4I", frame, 8)
        return y1 - y0, x1 - x0
    at = 2
    while frame[:2] == b"\xff\xd8" and at + 9 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        # SOF0 to SOF15 without DHT, JPG and DAC (ISO/IEC 10918-1 B.1.1.3); SOF55 is JPEG-LS (14495-1)
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            height, width = struct.unpack_from(">2H", frame, at + 5)
            return height, width
        at += 1 if marker == 0xFF else 2 + length
    return None


def _apply_grey_levels(raw: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Map stored values to [0, 1] through one table: a film has 65,536 grey levels at most, but millions of pixels."""
    lowest, highest = int(raw.min()), int(raw.max())
    stored = np.arange(lowest, highest + 1, dtype=np.int64)
    index_HW = raw.astype(np.int32) - lowest
    padding = _find_padding(stored, dataset)
    counts = np.bincount(index_HW.ravel(), minlength=len(stored))
    counts[padding] = 0
    if not counts.any():
        raise Undecodable("blank image")
    values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
    table = _apply_voi(values, dataset)
    if table is None and int(dataset.BitsStored) == 8 and np.array_equal(values, stored) and lowest >= 0:
        table = stored / 255  # eight bits without a window were made for a screen, like a PNG
    if table is None:
        seen = counts > 0
        table = stretch(values, *find_window(values[seen], counts[seen]))
    table = np.clip(table, 0, 1).astype(np.float32)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        table = 1 - table
    table[padding] = 0
    grey: np.ndarray = table[index_HW]
    return grey


def _find_padding(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Return which stored values are padding: one value or a range (PS3.3 C.7.5.1.1.2)."""
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if not isinstance(value, int):
        return np.zeros(len(stored), dtype=bool)
    first, last = sorted((value, limit if isinstance(limit, int) else value))
    return (stored >= first) & (stored <= last)


def _apply_voi(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray | None:
    """Return `values` through the first VOI LUT or window on [0, 1]; None where there is none that works."""
    if dataset.get("VOILUTSequence"):
        return _apply_voi_lut(values, dataset.VOILUTSequence[0], dataset)
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        return None
    if "VOILUTFunction" in dataset and not dataset.VOILUTFunction:
        del dataset.VOILUTFunction
    try:
        low, high = apply_windowing(np.array([-np.inf, np.inf]), dataset)
        windowed = apply_windowing(values, dataset)
    except (TypeError, ValueError):
        return None  # a width of zero or an unknown function: archives hold both
    # Against its own ends the window rises, whatever the sign of the rescale slope.
    table: np.ndarray | None = (windowed - low) / (high - low) if np.isfinite(high - low) and high != low else None
    return table


def _apply_voi_lut(values: np.ndarray, item: pydicom.Dataset, dataset: pydicom.Dataset) -> np.ndarray:
    """Look `values` up (PS3.3 C.11.2.1.1) on the range that the entries use.

    Written here since pydicom 3.0's apply_voi wraps the index of 8-bit tables, and since many devices
    declare 16 bits an entry and fill 12.
    """
    entries, first = int(item.LUTDescriptor[0]) or 65536, int(item.LUTDescriptor[1])
    lut: np.ndarray
    if isinstance(item.LUTData, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        lut = np.frombuffer(item.LUTData, dtype=f"{order}u2" if len(item.LUTData) >= 2 * entries else "u1")
    else:
        lut = np.asarray(item.LUTData)
    lut = lut[:entries].astype(np.float64)
    if len(lut) < entries or lut.max() <= 0:
        raise Undecodable("DICOM VOI lookup table is damaged")
    index = np.clip(np.rint(values) - first, 0, entries - 1).astype(np.int64)
    table: np.ndarray = lut[index] / lut.max()
    return table


def _compute_luminance(raw: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    grey: np.ndarray = raw.astype(np.float32) @ _LUMINANCE / np.float32(2 ** int(dataset.BitsStored) - 1)
    np.clip(grey, 0, 1, out=grey)
    return grey


def _read_spacing_mm(dataset: pydicom.Dataset) -> float:
    """Return the spacing in the patient where it is known, else at the detector (PS3.3 10.7.1.3), NaN if uneven."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        with contextlib.suppress(TypeError, ValueError, KeyError):
            row_mm, column_mm = (float(value) for value in dataset.get(name) or ())
            if row_mm > 0 and math.isclose(row_mm, column_mm, rel_tol=0.01):
                return math.sqrt(row_mm * column_mm)
    return math.nan


def _read_header(dataset: pydicom.Dataset) -> FilmHeader:
    def text(name: str) -> str:
        try:
            return str(dataset.get(name) or "").strip().strip("\0").strip()
        except Exception:  # a value that breaks its own VR says nothing
            return ""

    return FilmHeader(
        patient=text("PatientID"),
        study=text("StudyInstanceUID"),
        uid=text("SOPInstanceUID"),
        view=parse_view(text("ViewPosition")),
        age_years=parse_age_years(text("PatientAge")),
        sex=parse_sex(text("PatientSex")),
    )
