"""Decode NIfTI (.nii, .nii.gz) and MetaImage (.mha) files that hold one 2-D image.

MetaImage needs the optional SimpleITK: `pip install 'chess-cxr[volumes]'`.  SimpleITK allocates what a header claims,
so headers are checked here first.  It reads only files, so the bytes go through a file in memory that vanishes with the
process: a killed decoder must leave no film behind.  SimpleITK recognises NIfTI by a file extension, which such a file
lacks; NumPy reads NIfTI instead, a plain array behind a header.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from chess_cxr.decode.decoded import DecodedFilm, check_size, scale_8_bits, stretch_between_percentiles
from chess_cxr.records import Undecodable, UsageError, import_extra

_GZIP = b"\x1f\x8b\x08"
_NIFTI_HEADER = 348
_META_FIRST = re.compile(rb"\s*(ObjectType|NDims|Comment)\s*=")
_META_LAST = re.compile(rb"^ElementDataFile[ \t]*=[ \t]*(\S*)[ \t]*\r?\n", re.MULTILINE)
_META_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "FLOAT": 4, "DOUBLE": 8}
# Real data types of nifti1.h, and its units of length in millimetres
_NIFTI_GREY = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
_NIFTI_UNITS_MM = {1: 1000.0, 2: 1.0, 3: 0.001}


@dataclass(frozen=True)
class _Claim:
    """Claims of a header.  sides: every dimension.  data_bytes: of the uncompressed image, from byte `start` on."""

    sides: tuple[int, ...]
    data_bytes: int
    start: int


def is_volume(content: bytes) -> bool:
    """Recognise NIfTI-1 by its magic, gzipped or not, and MetaImage by its first key."""
    head = _inflate(content, _NIFTI_HEADER) if content[:3] == _GZIP else content
    return head[344:348] == b"n+1\0" or bool(_META_FIRST.match(content))


def decode_volume(content: bytes) -> DecodedFilm:
    """Decode a NIfTI-1 or MetaImage file that holds one 2-D image, in its order of rows and columns.

    Unsigned 8-bit values are kept as value / 255; everything else is stretched between its percentiles.
    spacing_mm is NaN if the header gives no unit or the pixels are not square.
    """
    pixels, spacing = _read_meta(content) if _META_FIRST.match(content) else _read_nifti(content)
    grey = scale_8_bits(pixels) if pixels.dtype == np.uint8 else stretch_between_percentiles(pixels)
    spacing_mm = math.nan
    if len(spacing) == 2 and min(spacing) > 0 and math.isclose(*spacing, rel_tol=0.01):
        spacing_mm = math.sqrt(spacing[0] * spacing[1])
    return DecodedFilm(grey, spacing_mm)


def _check_claim(claim: _Claim) -> None:
    sides = [side for side in claim.sides if side != 1]
    if any(side < 1 for side in claim.sides):
        raise Undecodable("image dimensions are damaged")
    if len(sides) > 2:
        raise Undecodable("a volume of many slices, not a film")
    check_size(*(sides + [1, 1])[:2])


# ---------------------------------------------------------------- NIfTI


def _inflate(content: bytes, most: int) -> bytes:
    """Inflate at most `most` bytes of a gzip file."""
    parts: list[bytes] = []
    try:
        while content[:3] == _GZIP and most > 0:  # a file may consist of several gzip members
            member = zlib.decompressobj(16 + zlib.MAX_WBITS)
            parts.append(member.decompress(content, most))
            most -= len(parts[-1])
            content = member.unused_data
        return b"".join(parts)
    except zlib.error:
        raise Undecodable("damaged gzip file") from None


def _read_nifti(content: bytes) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read NIfTI-1.1 (nifti1.h: dim, datatype, pixdim, vox_offset, scl_slope, scl_inter, xyzt_units).

    Returns the image and its spacing in mm, NaN if the header gives no unit.
    """
    is_packed = content[:3] == _GZIP
    head = _inflate(content, _NIFTI_HEADER) if is_packed else content[:_NIFTI_HEADER]
    order = "<" if head[:4] == struct.pack("<i", _NIFTI_HEADER) else ">"
    count, *dims = struct.unpack_from(f"{order}8h", head, 40)
    datatype = struct.unpack_from(f"{order}h", head, 70)[0]
    offset, slope, inter = struct.unpack_from(f"{order}3f", head, 108)
    if not 1 <= count <= 7 or not _NIFTI_HEADER <= offset < 1 << 24:
        raise Undecodable("NIfTI header is damaged")
    if datatype not in _NIFTI_GREY:
        raise Undecodable("NIfTI image is not grey")
    sides, dtype = tuple(dims[:count]), np.dtype(order + _NIFTI_GREY[datatype])
    claim = _Claim(sides, math.prod(sides) * dtype.itemsize, int(offset))
    _check_claim(claim)
    if is_packed:
        content = _inflate(content, claim.start + claim.data_bytes)
    if len(content) < claim.start + claim.data_bytes:
        raise Undecodable("NIfTI image ends early")
    stored = np.frombuffer(content, dtype, math.prod(sides), claim.start).reshape(sides[::-1])
    pixels = _squeeze(stored.astype(dtype.newbyteorder("="), copy=False))
    if math.isfinite(slope) and slope != 0 and (slope, inter) != (1, 0):  # a slope of 0 means none
        pixels = pixels * slope + (inter if math.isfinite(inter) else 0.0)
    unit_mm = _NIFTI_UNITS_MM.get(head[123] & 7, math.nan)
    pixdim = struct.unpack_from(f"{order}{count}f", head, 80)
    return pixels, tuple(abs(s) * unit_mm for s, side in zip(pixdim, sides, strict=True) if side > 1)


# ---------------------------------------------------------------- MetaImage


def _read_meta(content: bytes) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read the image, and its spacing if the header gives one; refuse pixels in another file."""
    last = _META_LAST.search(content, 0, 1 << 16)
    if last is None or last[1] != b"LOCAL":
        raise Undecodable("MetaImage whose pixels are not in the file itself")
    lines = [line.partition("=") for line in content[: last.start()].decode("latin-1").splitlines()]
    fields = {key.strip(): value.strip() for key, _, value in lines}
    try:
        sides = tuple(int(side) for side in fields["DimSize"].split())
        size = _META_BYTES[fields["ElementType"].removeprefix("MET_")]
    except (KeyError, ValueError):
        raise Undecodable("MetaImage header is damaged") from None
    if int(fields.get("ElementNumberOfChannels", "1")) != 1:
        raise Undecodable("MetaImage is not grey")
    claim = _Claim(sides, math.prod(sides) * size, last.end())
    _check_claim(claim)
    _check_meta_is_whole(content, claim, fields.get("CompressedData", "False").lower() == "true")
    pixels, spacing = _read_with_itk(content)
    return pixels, spacing if "ElementSpacing" in fields or "ElementSize" in fields else ()


def _check_meta_is_whole(content: bytes, claim: _Claim, is_packed: bool) -> None:
    found = len(content) - claim.start
    if is_packed:
        try:
            found = len(zlib.decompressobj().decompress(memoryview(content)[claim.start :], claim.data_bytes))
        except zlib.error:
            raise Undecodable("MetaImage data are damaged") from None
    if found < claim.data_bytes:
        raise Undecodable("MetaImage ends early")


def _read_with_itk(content: bytes) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read the image and the spacing of the dimensions longer than one pixel."""
    try:
        itk = import_extra("SimpleITK", "volumes", "MetaImage")
    except UsageError as error:
        raise Undecodable(str(error)) from None
    with _lend_path(content) as path:
        reader = itk.ImageFileReader()
        reader.SetImageIO("MetaImageIO")  # else the file extension decides
        reader.SetFileName(path)
        reader.SetGlobalWarningDisplay(False)
        image = reader.Execute()
    spacing = tuple(s for s, side in zip(image.GetSpacing(), image.GetSize(), strict=True) if side > 1)
    return _squeeze(itk.GetArrayFromImage(image)), spacing


@contextlib.contextmanager
def _lend_path(content: bytes) -> Iterator[str]:
    """Yield a path from which this process can read `content`, in memory if the system can, else a temporary file."""
    try:
        descriptor = os.memfd_create("film")
    except (AttributeError, OSError):  # not Linux, or forbidden there
        with tempfile.NamedTemporaryFile(suffix=".mha") as file:
            file.write(content)
            file.flush()
            yield file.name
        return
    with os.fdopen(descriptor, "wb") as memory:
        memory.write(content)
        memory.flush()
        yield f"/proc/self/fd/{descriptor}"


def _squeeze(pixels: np.ndarray) -> np.ndarray:
    pixels = np.squeeze(pixels)
    if pixels.ndim != 2:
        raise Undecodable("image is not grey")
    return np.ascontiguousarray(pixels)
