"""Strip compressed frames of all that may hold text: comments, application data, trailing bytes.

Nothing is decoded: segments that decoding needs are copied to the bit, all others are left out.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from chess_cxr.records import Undecodable

# PS3.5 10 and A.4: JPEG processes 1, 2 and 4, 14; JPEG-LS; JPEG 2000 and High-Throughput JPEG 2000; RLE.
_JPEG = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70))
_JPEG_LS = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (80, 81))
_JPEG_2000 = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203))
_RLE = "1.2.840.10008.1.2.5"
COMPRESSED = _JPEG | _JPEG_LS | _JPEG_2000 | {_RLE}

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
# ISO/IEC 10918-1 table B.1: SOF0-15 with DHT and DAC; DQT, DNL, DRI.  ISO/IEC 14495-1 C.1: SOF55 and LSE.
_JPEG_TABLES = frozenset(range(0xC0, 0xD0)) - {0xC8} | {0xDB, 0xDC, 0xDD, 0xF7, 0xF8}
_APP0, _APP8, _APP14 = 0xE0, 0xE8, 0xEE
_JPEG_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
_JPEG_LS_MARKER = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")  # after 0xFF a data byte begins with a zero bit

# ISO/IEC 15444-1 table A.2 and 15444-15: SIZ CAP PRF CPF COD COC TLM PLM PLT QCD QCC RGN POC PPM PPT CRG
_J2K_TABLES = frozenset({0xFF50, 0xFF51, 0xFF52, 0xFF53, 0xFF55, 0xFF56, 0xFF57, 0xFF58, 0xFF59, 0xFF5C, 0xFF5D})
_J2K_TABLES |= {0xFF5E, 0xFF5F, 0xFF60, 0xFF61, 0xFF63}
_J2K_COMMENT, _J2K_SOT, _J2K_SOD = 0xFF64, 0xFF90, 0xFF93
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"


def strip_frame(frame: bytes, transfer_syntax: str, pixels: int) -> bytes:
    """Return one frame of encapsulated pixel data that decodes to the same values and holds no text.

    pixels: height times width of the frame.
    Raises `Undecodable` unless the frame is complete and of the transfer syntax (one of `COMPRESSED`).
    """
    try:
        if transfer_syntax in _JPEG_2000:
            return _strip_jpeg_2000(frame)
        if transfer_syntax in _JPEG or transfer_syntax in _JPEG_LS:
            return _strip_jpeg(frame, _JPEG if transfer_syntax in _JPEG else _JPEG_LS)
        return _strip_rle(frame, pixels)
    except (struct.error, IndexError):
        raise Undecodable("DICOM compressed image ends early") from None


# ---------------------------------------------------------------- JPEG and JPEG-LS


def _strip_jpeg(frame: bytes, family: frozenset[str]) -> bytes:
    """Copy tables and scans up to EOI (ISO/IEC 10918-1 B.1, 14495-1 C)."""
    if frame[:2] != b"\xff\xd8":
        raise Undecodable("DICOM compressed image is not of its transfer syntax")
    is_marker = _JPEG_MARKER if family is _JPEG else _JPEG_LS_MARKER
    kept, at = [b"\xff\xd8"], 2
    while True:
        marker, body, at = _read_jpeg_segment(frame, at)
        if marker == _EOI:
            kept.append(b"\xff\xd9")
            return b"".join(kept)
        if marker == _SOS:
            found = is_marker.search(frame, at)
            if found is None:
                raise Undecodable("DICOM compressed image ends early")
            body += frame[at : found.start()]
            at = found.start()
        else:
            body = _clean_jpeg_segment(marker, body)
        if body:
            kept += [bytes((0xFF, marker)), body]


def _read_jpeg_segment(frame: bytes, at: int) -> tuple[int, bytes, int]:
    """Return the marker at `at`, its segment including the length, and the position of the next marker."""
    if frame[at] != 0xFF:
        raise Undecodable("DICOM compressed image is damaged")
    while frame[at] == 0xFF:  # fill bytes
        at += 1
    marker = frame[at]
    if marker == _EOI:
        return marker, b"", at + 1
    if marker in (0x00, 0x01, _SOI) or 0xD0 <= marker <= 0xD7:
        raise Undecodable("DICOM compressed image is damaged")
    (length,) = struct.unpack_from(">H", frame, at + 1)
    body = frame[at + 1 : at + 1 + length]
    if length < 2 or len(body) < length:
        raise Undecodable("DICOM compressed image ends early")
    return marker, body, at + 1 + length


def _clean_jpeg_segment(marker: int, body: bytes) -> bytes:
    """Keep of a segment what decoding needs: tables, JFIF without its thumbnail, Adobe's colour transform."""
    if marker in _JPEG_TABLES:
        return body
    if marker == _APP0 and body[2:7] == b"JFIF\0" and len(body) >= 16:
        return struct.pack(">H", 16) + body[2:14] + b"\0\0"
    if marker == _APP8 and body[2:6] == b"mrfx" and len(body) >= 7:  # the colour transform of JPEG-LS writers
        return struct.pack(">H", 7) + body[2:7]
    if marker == _APP14 and body[2:7] == b"Adobe" and len(body) >= 14:
        return struct.pack(">H", 14) + body[2:14]
    return b""


# ---------------------------------------------------------------- JPEG 2000


def _strip_jpeg_2000(frame: bytes) -> bytes:
    """Copy main header, tile-parts and EOC (ISO/IEC 15444-1 A); blank comments inside tile-parts.

    A JP2 file, which some writers embed against PS3.5 A.4.4, is reduced to its codestream.
    """
    if frame.startswith(_JP2_SIGNATURE):
        frame = _find_codestream(frame)
    if frame[:4] != b"\xff\x4f\xff\x51":
        raise Undecodable("DICOM compressed image is not of its transfer syntax")
    kept, at = [frame[:2]], 2
    for marker, start, end in _walk_j2k_header(frame, at, _J2K_SOT):
        if marker in _J2K_TABLES:
            kept.append(frame[start:end])
        at = end
    while frame[at : at + 2] != b"\xff\xd9":
        marker, length, _, tile_bytes = struct.unpack_from(">HHHI", frame, at)
        if marker != _J2K_SOT or length != 10:
            raise Undecodable("DICOM compressed image is damaged")
        # A tile-part of length 0 ends at EOC, which cannot occur within packets (ISO/IEC 15444-1 A.1.3).
        end = at + tile_bytes if tile_bytes else frame.find(b"\xff\xd9", at + 12)
        if not at + 14 <= end < len(frame):
            raise Undecodable("DICOM compressed image ends early")
        kept.append(_blank_tile_part(frame, at, end))
        at = end
    return b"".join(kept) + b"\xff\xd9"


def _find_codestream(frame: bytes) -> bytes:
    """Return the Contiguous Codestream box of a JP2 file (ISO/IEC 15444-1 I.5.4)."""
    at = 0
    while True:
        length, kind = struct.unpack_from(">I4s", frame, at)
        start = at + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", frame, start)
            start += 8
        end = at + length if length else len(frame)
        if kind == b"jp2c":
            return frame[start:end]
        if end < start:
            raise Undecodable("DICOM compressed image is damaged")
        at = end


def _walk_j2k_header(frame: bytes, at: int, last: int) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment before the marker `last`."""
    while True:
        (marker,) = struct.unpack_from(">H", frame, at)
        if marker == last:
            return
        (length,) = struct.unpack_from(">H", frame, at + 2)
        if marker < 0xFF00 or length < 2:
            raise Undecodable("DICOM compressed image is damaged")
        yield marker, at, at + 2 + length
        at += 2 + length


def _blank_tile_part(frame: bytes, at: int, end: int) -> bytes:
    """Zero the comments of a tile-part; keep its length, which TLM and Psot state."""
    tile = bytearray(frame[at:end])
    for marker, start, stop in _walk_j2k_header(frame, at + 12, _J2K_SOD):
        if stop > end:
            raise Undecodable("DICOM compressed image is damaged")
        if marker not in _J2K_TABLES:
            tile[start - at : start - at + 2] = _J2K_COMMENT.to_bytes(2, "big")
            tile[start - at + 4 : stop - at] = bytes(stop - start - 4)
    return bytes(tile)


# ---------------------------------------------------------------- RLE


def _strip_rle(frame: bytes, pixels: int) -> bytes:
    """Copy each segment up to its `pixels` bytes (PS3.5 G.3) behind a new header (G.5)."""
    count, *offsets = struct.unpack_from("<16I", frame)
    if not 1 <= count <= 15:
        raise Undecodable("DICOM compressed image is damaged")
    segments = []
    for offset in offsets[:count]:
        segment = frame[offset : _find_rle_end(frame, offset, pixels)]
        segments.append(segment + bytes(len(segment) % 2))
    places = [64 + sum(map(len, segments[:number])) for number in range(count)]
    return struct.pack("<16I", count, *places, *[0] * (15 - count)) + b"".join(segments)


def _find_rle_end(frame: bytes, at: int, pixels: int) -> int:
    """Return the end of a segment that unpacks to `pixels` bytes."""
    while pixels > 0:
        control = frame[at]
        if control < 128:
            at += control + 2
            pixels -= control + 1
        else:
            at += 1 if control == 128 else 2
            pixels -= 0 if control == 128 else 257 - control
    if pixels or at > len(frame):
        raise Undecodable("DICOM compressed image is damaged")
    return at
