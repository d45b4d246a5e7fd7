"""Decoding plugin of pydicom with the codecs of imagecodecs, simplejpeg and Pillow.

Among the public decoders these take the least processor time, and they agree with the others to the bit.  The plugin
decodes to the size that the runner asks for: for a half, a quarter or an eighth of the frame, the codec skips the
finest octaves.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import imagecodecs
import numpy as np
import simplejpeg
from PIL import Image
from pydicom import uid
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import DecodeRunner

PLUGIN = "chess_cxr"
DECODER_DEPENDENCIES: dict[uid.UID, tuple[str, ...]] = {}  # part of the plugin interface; nothing is optional

_Decode = Callable[[bytes, DecodeRunner], np.ndarray]


def is_available(transfer_syntax: str) -> bool:
    """Whether the plugin decodes a transfer syntax; part of the plugin interface."""
    return transfer_syntax in _DECODERS


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """Decode one frame to unsigned or signed little-endian samples, pixel by pixel (Planar Configuration 0).

    Raises `ValueError` or an error of the codec if the frame is damaged or has another size than the runner's.
    """
    try:
        return _decode_frame(src, runner)
    except MemoryError:
        raise MemoryError("unable to allocate memory") from None  # pydicom keeps the text of an error only


def _decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    stored = _DECODERS[runner.transfer_syntax](src, runner)
    shape = (runner.rows, runner.columns) + ((runner.samples_per_pixel,) if runner.samples_per_pixel > 1 else ())
    if stored.shape != shape:
        raise ValueError("the compressed frame and the header differ in shape")
    runner.set_option("bits_allocated", 8 * stored.dtype.itemsize)
    if runner.samples_per_pixel > 1:
        runner.set_option("planar_configuration", 0)
    return stored.astype(stored.dtype.newbyteorder("<"), copy=False).tobytes()


def _decode_rle(src: bytes, runner: DecodeRunner) -> np.ndarray:
    """Decode RLE Lossless (PS3.5 annex G): one segment a byte of a sample, planes one after another."""
    dtype = np.dtype(f"<u{runner.bits_allocated // 8}")
    planes = (runner.samples_per_pixel, runner.rows, runner.columns)
    buffer = bytearray(dtype.itemsize * int(np.prod(planes)))
    decoded = imagecodecs.dicomrle_decode(src, dtype.str, out=buffer)
    # A segment may end in one byte of padding.
    stored = np.frombuffer(decoded, dtype, count=int(np.prod(planes))).reshape(planes)
    return np.moveaxis(stored, 0, -1) if runner.samples_per_pixel > 1 else stored[0]


def _decode_jpeg(src: bytes, runner: DecodeRunner) -> np.ndarray:
    """Decode JPEG with 8 bits (PS3.5 A.4.1) strictly; return the luminance of colour if one sample is asked for."""
    if runner.samples_per_pixel == 1:
        grey = simplejpeg.decode_jpeg(src, colorspace="GRAY", min_height=runner.rows, min_width=runner.columns)
        return np.asarray(grey[..., 0])
    if runner.get_option("stored_as_rgb"):  # only Photometric Interpretation tells, not the stream
        return imagecodecs.jpeg8_decode(src, colorspace="RGB", outcolorspace="RGB")
    return np.asarray(simplejpeg.decode_jpeg(src, colorspace="RGB"))


def _decode_deep_jpeg(src: bytes, runner: DecodeRunner) -> np.ndarray:
    """Decode JPEG with 12 bits, or lossless JPEG of any selection value (PS3.5 A.4.1, A.4.2)."""
    try:
        return imagecodecs.jpeg8_decode(src)
    except imagecodecs.Jpeg8Error:
        return imagecodecs.jpegsof3_decode(src)  # twice as slow, but reads the odd streams of old devices


def _decode_jpeg_ls(src: bytes, runner: DecodeRunner) -> np.ndarray:
    """Decode JPEG-LS, lossless or near-lossless (PS3.5 A.4.3)."""
    return imagecodecs.jpegls_decode(src)


def _decode_jpeg_2000(src: bytes, runner: DecodeRunner) -> np.ndarray:
    """Decode JPEG 2000 Part 1 (PS3.5 A.4.4) or High-Throughput JPEG 2000 (A.4.10) with OpenJPEG.

    OpenJPH takes half the time for the latter, but imagecodecs 2026.3 ignores its errors and returns uninitialised
    memory.
    """
    if halvings := runner.get_option("halvings", 0):
        return _decode_halved(src, halvings)
    return imagecodecs.jpeg2k_decode(src, numthreads=1)


def _decode_halved(src: bytes, halvings: int) -> np.ndarray:
    """Decode a grey frame without its finest `halvings` octaves, in the bits of the full decoder.

    Pillow shifts values up to fill 8 or 16 bits and offsets signed ones above zero; both are undone.
    """
    precision, signed = _get_depth(src)
    with Image.open(io.BytesIO(src), formats=["JPEG2000"]) as image:
        image.reduce = halvings  # type: ignore[method-assign,assignment]
        lifted = np.asarray(image)
    if lifted.dtype.itemsize * 8 < precision or lifted.ndim != 2:
        raise ValueError("the compressed frame has more bits than its decoder gives")
    lifted = lifted >> (8 * lifted.dtype.itemsize - precision)
    # In two's complement, undoing the offset means flipping the sign bit.
    return lifted ^ lifted.dtype.type(1 << (precision - 1)) if signed else lifted


def _get_depth(src: bytes) -> tuple[int, bool]:
    """Return bits and signedness of the first component (Ssiz, ISO/IEC 15444-1 A.5.1)."""
    depth = src[src.index(b"\xff\x4f\xff\x51") + 42]
    return (depth & 0x7F) + 1, bool(depth & 0x80)


_DECODERS: dict[str, _Decode] = {
    uid.RLELossless: _decode_rle,
    uid.JPEGBaseline8Bit: _decode_jpeg,
    uid.JPEGExtended12Bit: _decode_deep_jpeg,
    uid.JPEGLossless: _decode_deep_jpeg,
    uid.JPEGLSLossless: _decode_jpeg_ls,
    uid.JPEGLSNearLossless: _decode_jpeg_ls,
    uid.JPEG2000Lossless: _decode_jpeg_2000,
    uid.JPEG2000: _decode_jpeg_2000,
    uid.HTJ2KLossless: _decode_jpeg_2000,
    uid.HTJ2K: _decode_jpeg_2000,
}

for _syntax in _DECODERS:
    get_decoder(_syntax).add_plugin(PLUGIN, (__name__, decode_frame.__name__))
