"""Check decoders: write a picture in every supported transfer syntax and image format, read it back, compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import simplejpeg
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder

from chess_cxr.decode.film import decode_film
from chess_cxr.doctor.check import Finding, Request, Step, tell
from chess_cxr.doctor.requirements import advise_reinstall
from chess_cxr.records import ChessError, Undecodable

HEIGHT, WIDTH = 48, 64
LOSSY_LEVELS = 8  # of 255, greatest error of the lossy codecs at these qualities
_CORNER = 5

_Encode = Callable[[np.ndarray], bytes]


@dataclass(frozen=True)
class Syntax:
    """Transfer syntax and its encoder.

    encode: encodes one frame of `bits`; None for native pixels.  codec: name in imagecodecs of the decoder, empty if
    another package decodes it.  package: to be reinstalled after a failure.
    """

    name: str
    uid: uid.UID
    encode: _Encode | None = None
    codec: str = ""
    bits: int = 16
    lossy: bool = False
    package: str = "imagecodecs"


def encode_rle(stored: np.ndarray) -> bytes:
    """Encode RLE Lossless (PS3.5 annex G) with pydicom's own encoder, which needs no other package."""
    frame: bytes = RLELosslessEncoder.encode(
        stored, encoding_plugin="pydicom", rows=stored.shape[0], columns=stored.shape[1], samples_per_pixel=1,
        number_of_frames=1, bits_allocated=16, bits_stored=16, pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
    )  # fmt: skip
    return frame


def encode_jpeg(stored: np.ndarray) -> bytes:
    """Encode JPEG with 8 bits (PS3.5 A.4.1)."""
    return bytes(simplejpeg.encode_jpeg(stored[..., None], 95, "GRAY"))


def _with(codec: str, **options: Any) -> _Encode:
    """Return an encoder of imagecodecs."""
    return lambda stored: bytes(getattr(imagecodecs, f"{codec}_encode")(stored, **options))


_JPEG_LOSSLESS = {"lossless": True, "bitspersample": 16}
_J2K, _J2K_LOSSY = {"level": 0, "reversible": True}, {"level": 60, "reversible": False}  # level: decibels
SYNTAXES = (
    Syntax("implicit little endian", uid.ImplicitVRLittleEndian, package="pydicom"),
    Syntax("explicit little endian", uid.ExplicitVRLittleEndian, package="pydicom"),
    Syntax("explicit big endian", uid.ExplicitVRBigEndian, package="pydicom"),
    Syntax("deflated", uid.DeflatedExplicitVRLittleEndian, package="pydicom"),
    Syntax("RLE", uid.RLELossless, encode_rle, "DICOMRLE"),
    Syntax("JPEG baseline", uid.JPEGBaseline8Bit, encode_jpeg, bits=8, lossy=True, package="simplejpeg"),
    Syntax("JPEG extended", uid.JPEGExtended12Bit, _with("jpeg8", level=95, bitspersample=12), "JPEG8", 12, lossy=True),
    Syntax("JPEG lossless", uid.JPEGLossless, _with("jpeg8", predictor=6, **_JPEG_LOSSLESS), "JPEG8"),
    Syntax("JPEG lossless SV1", uid.JPEGLosslessSV1, _with("jpeg8", predictor=1, **_JPEG_LOSSLESS), "JPEG8"),
    Syntax("JPEG-LS", uid.JPEGLSLossless, _with("jpegls"), "JPEGLS"),
    Syntax("JPEG-LS near-lossless", uid.JPEGLSNearLossless, _with("jpegls", level=100), "JPEGLS", lossy=True),
    Syntax("JPEG 2000 lossless", uid.JPEG2000Lossless, _with("jpeg2k", codecformat="j2k", **_J2K), "JPEG2K"),
    Syntax("JPEG 2000", uid.JPEG2000, _with("jpeg2k", codecformat="j2k", **_J2K_LOSSY), "JPEG2K", lossy=True),
    Syntax("HTJ2K lossless", uid.HTJ2KLossless, _with("htj2k", reversible=True), "JPEG2K"),
    Syntax("HTJ2K", uid.HTJ2K, _with("htj2k", level=0.0001, reversible=False), "JPEG2K", lossy=True),
)


@dataclass(frozen=True)
class Format:
    """Image format with its name in Pillow and the bits to test."""

    name: str
    kind: str
    bits: int
    package: str
    lossy: bool = False

    def write(self, path: Path, stored: np.ndarray) -> Path:
        """Write a picture, lossless if the format can be."""
        options = {"quality": 95} if self.lossy else {"lossless": True} if self.kind == "WEBP" else {}
        Image.fromarray(stored).save(path, self.kind, **options)
        return path


FORMATS = (
    Format("PNG", "PNG", 8, "imagecodecs"),
    Format("PNG of 16 bits", "PNG", 16, "imagecodecs"),
    Format("JPEG", "JPEG", 8, "simplejpeg", lossy=True),
    Format("TIFF", "TIFF", 8, "pillow"),
    Format("TIFF of 16 bits", "TIFF", 16, "pillow"),
    Format("WebP", "WEBP", 8, "pillow"),
)


def list_dicom_steps(request: Request) -> Iterator[Step]:
    """List a step for every supported transfer syntax."""
    for each in SYNTAXES:
        yield Step(each.name, partial(try_syntax, each, request), "DICOM decoders", advise_reinstall(each.package))


def list_image_steps(request: Request) -> Iterator[Step]:
    """List a step for every supported image format."""
    for each in FORMATS:
        yield Step(each.name, partial(try_format, each, request), "image decoders", advise_reinstall(each.package))


def draw_picture(bits: int) -> np.ndarray:
    """Draw a ramp with noise, uint8 or uint16 [H, W], that changes under every turn and mirroring.

    One corner is 0 and another the largest value, each 0.8 % of the picture, so that stretching a deep image between
    its percentiles changes no value.
    """
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    ramp = 0.05 + 0.6 * y / (HEIGHT - 1) + 0.25 * x / (WIDTH - 1)
    noise = np.random.default_rng(0).uniform(0, 0.02, ramp.shape)
    stored: np.ndarray = np.rint((ramp + noise) * ((1 << bits) - 1)).astype(np.uint8 if bits == 8 else np.uint16)
    stored[:_CORNER, :_CORNER], stored[-_CORNER:, -_CORNER:] = 0, (1 << bits) - 1
    return stored


def try_syntax(syntax: Syntax, request: Request) -> Finding:
    """Write the picture in a transfer syntax, decode it as the ingest does, and compare."""
    stored, frame = draw_picture(syntax.bits), None
    if syntax.encode is not None:
        if syntax.codec and not getattr(imagecodecs, syntax.codec).available:
            return Finding("broken", f"imagecodecs comes without {syntax.codec}", advise_reinstall("imagecodecs"))
        try:
            frame = syntax.encode(stored)
        except ImportError as error:
            return Finding("optional", f"not tried: no encoder is here ({tell(error)}); the decoder itself loads")
    with request.open_folder() as folder:
        path = write_dicom(folder / "picture.dcm", stored, syntax, frame)
        return compare(stored, decode(path), syntax.bits, syntax.lossy, syntax.package)


def try_format(kind: Format, request: Request) -> Finding:
    """Write the picture in an image format, decode it as the ingest does, and compare."""
    stored = draw_picture(kind.bits)
    with request.open_folder() as folder:
        path = kind.write(folder / "picture", stored)
        return compare(stored, decode(path), kind.bits, kind.lossy, kind.package)


def write_dicom(path: Path, stored: np.ndarray, syntax: Syntax, frame: bytes | None) -> Path:
    """Write the picture as DICOM with a window that maps each stored value to its share of the largest one.

    PS3.3 C.11.2.1.2.1, LINEAR: (value - (center - 0.5)) / (width - 1) + 0.5.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax.uid
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid(entropy_srcs=[syntax.name])
    dataset.StudyInstanceUID = uid.generate_uid(entropy_srcs=["study"])
    dataset.SeriesInstanceUID = uid.generate_uid(entropy_srcs=["series"])
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored = 8 * stored.itemsize, syntax.bits
    dataset.HighBit, dataset.PixelRepresentation = syntax.bits - 1, 0
    dataset.WindowCenter, dataset.WindowWidth = 1 << (syntax.bits - 1), 1 << syntax.bits
    ordered = stored.astype(stored.dtype.newbyteorder(">" if syntax.uid == uid.ExplicitVRBigEndian else "<"))
    content = ordered.tobytes() if frame is None else encapsulate([frame])
    dataset.add_new(0x7FE00010, "OB" if syntax.bits == 8 or frame is not None else "OW", content)
    dataset.save_as(path, enforce_file_format=True)
    return path


def decode(path: Path) -> np.ndarray:
    """Decode a film as the ingest does, float32 [H, W]; errors quote the library that raised them.

    The ingest does not quote libraries, which may quote the header; this film is the doctor's own.
    """
    try:
        return decode_film(path).pixels
    except Undecodable as error:
        cause = error.__context__
        raise ChessError(f"{error} [{tell(cause)}]" if cause else str(error)) from None


def compare(stored: np.ndarray, film_HW: np.ndarray, bits: int, lossy: bool, package: str) -> Finding:
    """Compare a decoded film, float [H, W] in [0, 1], with the stored values."""
    if film_HW.shape != stored.shape:
        return Finding("broken", f"comes back as {film_HW.shape}, not {stored.shape}", advise_reinstall(package))
    top = (1 << bits) - 1
    levels = float(np.abs(film_HW.astype(np.float64) - stored / top).max() * 255)
    facts = {"lossy": lossy, "largest_difference_of_255": round(levels, 4)}
    if lossy and levels <= LOSSY_LEVELS:
        return Finding("ok", f"within {levels:.1f} of 255 grey levels", facts=facts)
    if not lossy and np.array_equal(np.rint(film_HW.astype(np.float64) * top).astype(stored.dtype), stored):
        return Finding("ok", "to the bit", facts=facts)
    return Finding("broken", f"comes back other than written, by {levels:.2g} of 255", advise_reinstall(package), facts)
