"""Decode the first frame of a DICOM file to stored values: Image Pixel module (PS3.3 C.7.6.3), encodings of PS3.5."""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pydicom
from pydicom import uid
from pydicom.encaps import encapsulate, generate_fragments, get_frame, parse_basic_offsets
from pydicom.pixels import get_decoder

from chess_cxr.decode.decoded import check_size, choose_halvings
from chess_cxr.decode.dicom_codecs import PLUGIN
from chess_cxr.decode.frames import FrameHeader, find_rle_segments, read_frame_header
from chess_cxr.records import Undecodable

_ITEM = b"\xfe\xff\x00\xe0"  # (FFFE,E000), PS3.5 A.4
_GREY = ("MONOCHROME1", "MONOCHROME2")


@dataclass(frozen=True)
class PixelModule:
    """Checked attributes of the Image Pixel module (PS3.3 C.7.6.3.1).

    allocated: 8, 16 or 32 bits.  photometric: upper case, without surrounding spaces.  is_padded: some stored value
    means padding (PS3.3 C.7.5.1.1.2).
    """

    height: int
    width: int
    frames: int
    samples: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    photometric: str
    planar: int
    is_padded: bool

    @property
    def frame_bytes(self) -> int:
        """Bytes of one native frame (PS3.5 8.1.1; 4:2:2 chrominance in PS3.3 C.7.6.3.1.2)."""
        length = self.height * self.width * self.samples * (self.allocated // 8)
        return length // 3 * 2 if self.photometric == "YBR_FULL_422" and self.samples == 3 else length


@dataclass(frozen=True)
class StoredPixels:
    """One frame as stored in its file.

    pixels: unsigned integers [H, W], or [H, W, 3] if `is_rgb`.  bits: number of lowest bits that hold the value.
    overshoots: larger values are ringing of a lossy codec; otherwise higher bits are meaningless.
    is_luminance: grey derived from colour.  halvings: number of halvings during decoding.
    """

    pixels: np.ndarray
    bits: int
    shift: int = 0
    overshoots: bool = False
    is_rgb: bool = False
    is_luminance: bool = False
    halvings: int = 0


def read_pixel_module(dataset: pydicom.Dataset) -> PixelModule:
    """Read and check the Image Pixel module before memory is allocated for the image."""
    if not dataset.get("PixelData"):
        raise Undecodable("DICOM without pixel data")
    try:
        module = PixelModule(
            height=int(dataset.Rows),
            width=int(dataset.Columns),
            frames=max(1, int(dataset.get("NumberOfFrames") or 1)),
            samples=int(dataset.get("SamplesPerPixel") or 1),
            allocated=int(dataset.BitsAllocated),
            stored=int(dataset.BitsStored),
            high_bit=int(dataset.get("HighBit") or 0),
            signed=int(dataset.get("PixelRepresentation") or 0) == 1,
            photometric=str(dataset.PhotometricInterpretation).strip().upper(),
            planar=int(dataset.get("PlanarConfiguration") or 0),
            is_padded=dataset.get("PixelPaddingValue") is not None,
        )
    except (AttributeError, TypeError, ValueError):
        raise Undecodable("DICOM image description is incomplete") from None
    if module.allocated not in (8, 16, 32) or not 1 <= module.stored <= module.allocated:
        raise Undecodable("DICOM bit depth is not 8 to 32 bits")
    if module.photometric not in (*_GREY, "RGB", "PALETTE COLOR") and not module.photometric.startswith("YBR_"):
        raise Undecodable("DICOM photometric interpretation is not supported")
    if module.samples not in (1, 3) or (module.samples == 3 and module.photometric == "PALETTE COLOR"):
        raise Undecodable("DICOM samples per pixel do not fit the photometric interpretation")
    check_size(module.height, module.width)
    return module


def decode_stored(dataset: pydicom.Dataset, module: PixelModule, at_least: int = 0) -> StoredPixels:
    """Decode the first frame; at_least: as for `chess_cxr.decode.film.decode_film`.

    The bytes decide, not the transfer syntax: native data declared as compressed, compressed data declared as native or
    as of another codec, and frames without encapsulation are all read as what they are.
    """
    frame = _find_compressed_frame(dataset, module)
    if frame is None:
        return _decode_native(dataset, module)
    header = read_frame_header(frame)
    if header is not None:
        return _decode_compressed(frame, header, module, at_least)
    if find_rle_segments(frame) == module.samples * (module.allocated // 8):
        return _decode_rle(frame, module)
    raise Undecodable("DICOM compressed image is of an unknown kind")


# ---------------------------------------------------------------- where the frame is


def _find_compressed_frame(dataset: pydicom.Dataset, module: PixelModule) -> bytes | None:
    """Return the codestream of the first frame (PS3.5 A.4), None for native pixel data (PS3.5 8.2)."""
    data = dataset.PixelData
    if _is_encapsulated(data):
        frame = _join_first_frame(data, module)
        # Encapsulated Uncompressed (PS3.5 A.4.11), or any native frame put into items
        if module.frame_bytes <= len(frame) <= module.frame_bytes + 1 and _is_native(frame, module):
            dataset.PixelData = frame
            return None
        return frame
    if len(data) >= module.frame_bytes * module.frames:
        return None
    if read_frame_header(data) is None:
        raise Undecodable("DICOM pixel data end early")
    return bytes(data)


def _is_encapsulated(data: bytes) -> bool:
    """Whether the value is a chain of items; no native image begins with two item tags at the right distance."""
    if data[:4] != _ITEM:
        return False
    second = 8 + int.from_bytes(data[4:8], "little")
    return data[second : second + 4] == _ITEM


def _is_native(frame: bytes, module: PixelModule) -> bool:
    return read_frame_header(frame) is None and not find_rle_segments(frame)


def _join_first_frame(data: bytes, module: PixelModule) -> bytes:
    if module.frames > 1:
        first: bytes = get_frame(data, 0, number_of_frames=module.frames)
        return first
    # The offset table of a single frame is useless, and may be wrong.
    buffer = BytesIO(data)
    parse_basic_offsets(buffer)
    fragments = list(generate_fragments(buffer))
    return fragments[0] if len(fragments) == 1 else b"".join(fragments)


# ---------------------------------------------------------------- decoding


def _decode_native(dataset: pydicom.Dataset, module: PixelModule) -> StoredPixels:
    """Decode native pixel data of either byte order and planar configuration (PS3.5 8.1, A.1 to A.3)."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in (uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian):
        syntax = uid.ExplicitVRLittleEndian
    # Some files declare 4:2:2 but store every chrominance sample.
    is_halved = module.frame_bytes < module.height * module.width * module.samples * (module.allocated // 8)
    is_halved = is_halved and len(dataset.PixelData) < module.frame_bytes // 2 * 3 * module.frames
    pixels, _ = get_decoder(syntax).as_array(
        dataset.PixelData,
        index=0,
        raw=True,
        view_only=True,
        correct_unused_bits=False,
        allow_excess_frames=False,
        pixel_vr=dataset["PixelData"].VR,
        **_describe(module, module.height, module.width, "YBR_FULL_422" if is_halved else ""),
    )
    high_bit_shift = module.high_bit + 1 - module.stored
    shift = 0
    if high_bit_shift > 0 and module.high_bit < module.allocated:
        # ACR-NEMA files stored values below High Bit; most files that declare another one store them at the bottom.
        shift = high_bit_shift if int(pixels.max()) >> module.stored else 0
    return _take_luminance(StoredPixels(pixels, module.stored, shift), module, is_rgb=False)


def _decode_rle(frame: bytes, module: PixelModule) -> StoredPixels:
    """Decode RLE Lossless (PS3.5 annex G), in the size of the module: an RLE header states none."""
    pixels = _run_plugin(uid.RLELossless, frame, module, module.height, module.width)
    return _take_luminance(StoredPixels(pixels, module.stored), module, is_rgb=False)


def _decode_compressed(frame: bytes, header: FrameHeader, module: PixelModule, at_least: int) -> StoredPixels:
    """Decode JPEG (PS3.5 A.4.1, A.4.2), JPEG-LS (A.4.3), JPEG 2000 (A.4.4) or HTJ2K (A.4.10)."""
    if (header.height, header.width) != (module.height, module.width):
        raise Undecodable("DICOM header and compressed image differ in size")
    if not header.complete:
        raise Undecodable("DICOM compressed image ends early")
    if header.samples not in (1, 3) or header.precision > 32:
        raise Undecodable("DICOM compressed image is neither grey nor RGB")
    is_jpeg = header.syntax == uid.JPEGBaseline8Bit
    says_rgb = module.photometric == "RGB"
    # libjpeg assumes YCbCr; the RGB of the tag counts only if nothing in the stream decides
    stored_as_rgb = is_jpeg and says_rgb and header.samples == 3 and not header.is_rgb and b"JFIF" not in frame[:32]
    is_rgb = header.samples == 3 and (header.is_rgb or stored_as_rgb)
    samples = 1 if is_jpeg and not is_rgb else header.samples  # of YCbCr, only the luminance is needed
    halvings = _choose_halvings(header, module, at_least) if samples == 1 else 0
    pixels = _run_plugin(
        header.syntax,
        frame,
        module,
        math.ceil(module.height / 2**halvings),
        math.ceil(module.width / 2**halvings),
        samples=samples,
        halvings=halvings,
        stored_as_rgb=stored_as_rgb,
    )
    stored = StoredPixels(
        pixels,
        bits=min(header.precision, module.stored) if samples == 1 and header.samples == 1 else header.precision,
        overshoots=not header.exact,
        is_luminance=samples != header.samples,
        halvings=halvings,
    )
    return _take_luminance(stored, module, is_rgb)


def _choose_halvings(header: FrameHeader, module: PixelModule, at_least: int) -> int:
    """Return the number of octaves that the codec may skip.

    Images with padding or a palette are decoded in full: averaging would mix values of different meaning.
    """
    if module.is_padded or module.photometric == "PALETTE COLOR" or header.precision > min(module.stored, 16):
        return 0
    halvings = choose_halvings(module.height, module.width, at_least, header.halvings)
    if header.syntax != uid.JPEGBaseline8Bit:
        # JPEG 2000 rounds the reduced size up, Pillow half up; Pillow fails if the two differ.
        while any(0 < side % 2**halvings < 2**halvings // 2 for side in (module.height, module.width)):
            halvings -= 1
    return halvings


def _run_plugin(
    syntax: uid.UID,
    frame: bytes,
    module: PixelModule,
    height: int,
    width: int,
    samples: int = 0,
    halvings: int = 0,
    stored_as_rgb: bool = False,
) -> np.ndarray:
    samples = samples or module.samples
    buffer, found = get_decoder(syntax).as_buffer(
        encapsulate([frame], has_bot=False),
        index=0,
        decoding_plugin=PLUGIN,
        allow_excess_frames=False,
        halvings=halvings,
        stored_as_rgb=stored_as_rgb,
        **_describe(module, height, width) | {"samples_per_pixel": samples},
    )
    shape = (height, width, samples) if samples > 1 else (height, width)
    return np.frombuffer(buffer, dtype=f"<u{int(found['bits_allocated']) // 8}").reshape(shape)


def _describe(module: PixelModule, height: int, width: int, photometric: str = "") -> dict[str, object]:
    """Return the module as options of pydicom's decoders, such that they change nothing by themselves."""
    return {
        "rows": height,
        "columns": width,
        "number_of_frames": 1,
        "samples_per_pixel": module.samples,
        "bits_allocated": module.allocated,
        "bits_stored": module.stored,
        "pixel_representation": 0,
        "photometric_interpretation": photometric or ("RGB" if module.samples == 3 else "MONOCHROME2"),
        "planar_configuration": module.planar if module.samples == 3 else 0,
        "pixel_keyword": "PixelData",
    }


def _take_luminance(stored: StoredPixels, module: PixelModule, is_rgb: bool) -> StoredPixels:
    """Keep Y of YBR (PS3.3 C.7.6.3.1.2); leave RGB to `map_to_grey`."""
    if stored.pixels.ndim == 2:
        return stored
    if module.photometric.startswith(("YBR_FULL", "YBR_PARTIAL")) and not is_rgb:
        return StoredPixels(stored.pixels[..., 0], stored.bits, is_luminance=True)
    return StoredPixels(stored.pixels, stored.bits, is_rgb=True)
