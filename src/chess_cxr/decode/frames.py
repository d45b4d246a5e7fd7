"""Read the header of a compressed frame before a decoder sees it.

Decoders allocate what the stream claims, and some files name another codec than their frames were written with.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pydicom import uid

_ENDS = frozenset({0xD8, 0xD9, *range(0xD0, 0xD8), 0x01})  # markers without a length: SOI, EOI, RSTn, TEM
_SOC_SIZ = b"\xff\x4f\xff\x51"
# Markers of JPEG 2000 (ISO/IEC 15444-1 table A.2; CAP in 15444-15)
_CAP, _COD, _SOT = 0xFF50, 0xFF52, 0xFF90
_HT_PART = 1 << (32 - 15)  # Pcap15 of CAP: the stream may hold code-blocks of High-Throughput JPEG 2000


@dataclass(frozen=True)
class FrameHeader:
    """syntax: transfer syntax of such a stream.  precision: bits of a sample.

    exact: lossless.  complete: not visibly cut off.  is_rgb: the decoder returns RGB, whatever the stream holds.
    halvings: number of octaves that the decoder can skip.
    """

    syntax: uid.UID
    height: int
    width: int
    samples: int
    precision: int
    exact: bool
    complete: bool
    is_rgb: bool = False
    halvings: int = 0


def read_frame_header(frame: bytes) -> FrameHeader | None:
    """Read the header of a JPEG, JPEG-LS, JPEG 2000 or HTJ2K frame; return None for any other content.

    Raises `struct.error` or `IndexError` if the header itself is cut off.
    """
    if frame[:2] == b"\xff\xd8":
        return _read_jpeg_header(frame)
    if frame[:4] == _SOC_SIZ:
        return _read_j2k_header(frame, 0)
    if frame[4:8] == b"jP  " and (start := frame.find(_SOC_SIZ, 0, 1 << 16)) > 0:
        return _read_j2k_header(frame, start)  # a whole JP2 file, against PS3.5 A.4.4
    return None


def find_rle_segments(frame: bytes) -> int:
    """Return the number of segments in an RLE header (PS3.5 G.5), 0 if it is none."""
    if len(frame) < 64:
        return 0
    segments, *offsets = struct.unpack_from("<16I", frame)
    if not 1 <= segments <= 15 or offsets[0] != 64 or any(offsets[segments:]):
        return 0
    used = offsets[:segments]
    return segments if used == sorted(used) and used[-1] < len(frame) else 0


# ---------------------------------------------------------------- JPEG and JPEG-LS


def _read_jpeg_header(frame: bytes) -> FrameHeader | None:
    """Read SOF and the first SOS (ISO/IEC 10918-1 B.2.2, B.2.3; SOF55 of 14495-1 C.2.2)."""
    found, is_rgb, has_marker, near = None, False, False, 0
    for marker, at, length in _iterate_jpeg_segments(frame):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) or marker == 0xF7:
            precision, height, width, samples = struct.unpack_from(">BHHB", frame, at)
            found = (marker, precision, height, width, samples)
            ids = frame[at + 6 : at + 6 + 3 * samples : 3]
            is_rgb = is_rgb or (not has_marker and ids in (b"RGB", b"rgb"))
        elif marker == 0xE0 and frame[at : at + 4] == b"JFIF":
            has_marker = True
        elif marker == 0xEE and frame[at : at + 5] == b"Adobe" and length >= 12:
            has_marker, is_rgb = True, frame[at + 11] == 0
        elif marker == 0xDA:
            near = frame[at + 1 + 2 * frame[at]]
            break
    if found is None:
        return None
    marker, precision, height, width, samples = found
    syntax, exact, halvings = _name_jpeg_syntax(marker, precision, near)
    # Decoders silently fill in missing data.
    complete = b"\xff\xd9" in frame[-1024:]
    return FrameHeader(syntax, height, width, samples, precision, exact, complete, is_rgb, halvings)


def _iterate_jpeg_segments(frame: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield each marker with position and length of its segment, up to the first scan."""
    at = 2
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF or marker in _ENDS:
            at += 1 if marker == 0xFF else 2
            continue
        length = struct.unpack_from(">H", frame, at + 2)[0]
        yield marker, at + 4, length - 2
        at += 2 + length


def _name_jpeg_syntax(marker: int, precision: int, near: int) -> tuple[uid.UID, bool, int]:
    """Return transfer syntax (PS3.5 A.4.1 to A.4.3), whether it is lossless, and the number of skippable octaves."""
    if marker == 0xF7:
        return (uid.JPEGLSNearLossless if near else uid.JPEGLSLossless), not near, 0
    if marker == 0xC3:
        return uid.JPEGLossless, True, 0
    # One decoder reads sequential, progressive, Huffman and arithmetic coding.
    return (uid.JPEGBaseline8Bit, False, 3) if precision == 8 else (uid.JPEGExtended12Bit, False, 0)


# ---------------------------------------------------------------- JPEG 2000


def _read_j2k_header(frame: bytes, start: int) -> FrameHeader:
    """Read SIZ, CAP and COD (ISO/IEC 15444-1 A.5.1, A.5.2, A.6.1) and follow the tile-parts (A.4.2) to the end."""
    x1, y1, x0, y0, samples, depth = struct.unpack_from(">4I16xHB", frame, start + 8)
    high_throughput, levels, mixes, reversible = False, 0, 0, False
    at = start + 2
    while at + 4 <= len(frame):
        marker, length = struct.unpack_from(">HH", frame, at)
        if marker == _CAP:
            high_throughput = bool(struct.unpack_from(">I", frame, at + 4)[0] & _HT_PART)
        elif marker == _COD:
            mixes, levels, reversible = frame[at + 8], frame[at + 9], frame[at + 13] == 1
        elif marker == _SOT:
            break
        at += 2 + length
    names = (uid.JPEG2000, uid.JPEG2000Lossless, uid.HTJ2K, uid.HTJ2KLossless)  # PS3.5 A.4.4
    return FrameHeader(
        syntax=names[2 * high_throughput + reversible],
        height=y1 - y0,
        width=x1 - x0,
        samples=samples,
        precision=(depth & 0x7F) + 1,
        exact=reversible,
        complete=_reaches_end(frame, at),
        is_rgb=samples == 3 and mixes == 1,
        halvings=min(levels, 3) if samples == 1 and not x0 and not y0 else 0,
    )


def _reaches_end(frame: bytes, at: int) -> bool:
    """Whether each tile-part has its stated length, and EOC follows the last one."""
    while at + 12 <= len(frame):
        marker, length = struct.unpack_from(">H4xI", frame, at)
        if marker != _SOT:
            break
        if length == 0:  # up to the end of the stream
            return b"\xff\xd9" in frame[-1024:]
        at += length
    return frame[at : at + 2] == b"\xff\xd9"
