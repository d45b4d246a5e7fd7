"""NIfTI (.nii, .nii.gz) and MetaImage (.mha) files with one image in them, through SimpleITK.

SimpleITK is optional: `pip install 'chess-cxr[volumes]'`.  It allocates what a header claims, so headers are judged
here first, and it reads files only, so the bytes pass through a temporary one.
"""

from __future__ import annotations

import math
import re
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chess_cxr.ingest.decoded import DecodedFilm, Undecodable, check_size, scale_8_bits, stretch_between_percentiles

_GZIP = b"\x1f\x8b\x08"
_NIFTI_HEADER = 348
_META_FIRST = re.compile(rb"\s*(ObjectType|NDims|Comment)\s*=")
_META_LAST = re.compile(rb"^ElementDataFile[ \t]*=[ \t]*(\S*)[ \t]*\r?\n", re.MULTILINE)
_META_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "FLOAT": 4, "DOUBLE": 8}
# Data types of nifti1.h that are one real number: uint8, int16, int32, float32, float64, int8, uint16, uint32
_NIFTI_GREY = frozenset({2, 4, 8, 16, 64, 256, 512, 768})
_METRES, _MILLIMETRES, _MICRONS = 1, 2, 3


@dataclass(frozen=True)
class _Claim:
    """What a header claims.  sides: every dimension.  data_bytes: of the image, uncompressed.  start: where it begins.

    knows_spacing: the header says what unit its spacing has.
    """

    sides: tuple[int, ...]
    data_bytes: int
    start: int
    knows_spacing: bool


def is_volume(content: bytes) -> bool:
    """Tell NIfTI-1 by its magic, in a gzip file too, and MetaImage by its first key."""
    head = _inflate(content, _NIFTI_HEADER) if content[:3] == _GZIP else content
    return head[344:348] == b"n+1\0" or bool(_META_FIRST.match(content))


def decode_volume(content: bytes) -> DecodedFilm:
    """Decode a NIfTI-1 or MetaImage file that holds one 2-D image, in its order of rows and columns.

    8 bits without a sign are kept as value / 255; everything else is stretched between its percentiles.
    spacing_mm is NaN where the header gives no unit or the pixels are not square.
    """
    if _META_FIRST.match(content):
        claim, suffix = _read_meta_claim(content), ".mha"
        _check_claim(claim)
    else:
        claim, content = _read_nifti_claim(content)
        suffix = ".nii"
    pixels, spacing = _read_with_itk(content, suffix)
    grey = scale_8_bits(pixels) if pixels.dtype == np.uint8 else stretch_between_percentiles(pixels)
    spacing_mm = math.nan
    if claim.knows_spacing and len(spacing) == 2 and math.isclose(*spacing, rel_tol=0.01) and spacing[0] > 0:
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
    """Return at most `most` bytes of what a gzip file holds."""
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(content, most)
    except zlib.error:
        raise Undecodable("damaged gzip file") from None


def _read_nifti_claim(content: bytes) -> tuple[_Claim, bytes]:
    """Read the header of NIfTI-1.1 (nifti1.h: dim, datatype, bitpix, vox_offset, xyzt_units) and inflate the rest."""
    is_packed = content[:3] == _GZIP
    head = _inflate(content, _NIFTI_HEADER) if is_packed else content[:_NIFTI_HEADER]
    order = "<" if head[:4] == struct.pack("<i", _NIFTI_HEADER) else ">"
    count, *dims = struct.unpack_from(f"{order}8h", head, 40)
    datatype, bits = struct.unpack_from(f"{order}2h", head, 70)
    offset = struct.unpack_from(f"{order}f", head, 108)[0]
    if not 1 <= count <= 7 or not _NIFTI_HEADER <= offset < 1 << 24:
        raise Undecodable("NIfTI header is damaged")
    if datatype not in _NIFTI_GREY:
        raise Undecodable("NIfTI image is not grey")
    sides = tuple(dims[:count])
    known = head[123] & 7 in (_METRES, _MILLIMETRES, _MICRONS)
    claim = _Claim(sides, math.prod(sides) * bits // 8, int(offset), known)
    _check_claim(claim)
    if is_packed:
        content = _inflate(content, claim.start + claim.data_bytes)
    if len(content) < claim.start + claim.data_bytes:
        raise Undecodable("NIfTI image ends early")
    return claim, content


# ---------------------------------------------------------------- MetaImage


def _read_meta_claim(content: bytes) -> _Claim:
    """Read the text header of a MetaImage; one that names another file for its pixels is refused."""
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
    knows_spacing = "ElementSpacing" in fields or "ElementSize" in fields
    claim = _Claim(sides, math.prod(sides) * size, last.end(), knows_spacing)
    _check_claim(claim)
    _check_meta_is_whole(content, claim, fields.get("CompressedData", "False").lower() == "true")
    return claim


def _check_meta_is_whole(content: bytes, claim: _Claim, is_packed: bool) -> None:
    found = len(content) - claim.start
    if is_packed:
        try:
            found = len(zlib.decompressobj().decompress(memoryview(content)[claim.start :], claim.data_bytes))
        except zlib.error:
            raise Undecodable("MetaImage data are damaged") from None
    if found < claim.data_bytes:
        raise Undecodable("MetaImage ends early")


# ---------------------------------------------------------------- SimpleITK


def _read_with_itk(content: bytes, suffix: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Return the one 2-D image, and its spacing where two dimensions are longer than one pixel."""
    try:
        import SimpleITK
    except ImportError:
        raise Undecodable("NIfTI and MetaImage need SimpleITK: pip install 'chess-cxr[volumes]'") from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"film{suffix}"
        path.write_bytes(content)
        reader = SimpleITK.ImageFileReader()
        reader.SetFileName(str(path))
        reader.SetGlobalWarningDisplay(False)
        image = reader.Execute()
    spacing = tuple(s for s, side in zip(image.GetSpacing(), image.GetSize(), strict=True) if side > 1)
    pixels = np.squeeze(SimpleITK.GetArrayFromImage(image))
    if pixels.ndim != 2:
        raise Undecodable("image is not grey")
    return np.ascontiguousarray(pixels), spacing
