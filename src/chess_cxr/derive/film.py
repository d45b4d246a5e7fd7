"""Write derived films, bone-suppressed or with a SYNTHETIC nodule, in the format of their source.

DICOM becomes DICOM of the same patient and study; PNG, JPEG, TIFF, WebP and raw JSRT films become PNG.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import uuid
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from chess_cxr.decode.decoded import count_levels, find_window, stretch
from chess_cxr.decode.dicom import is_dicom
from chess_cxr.decode.film import read_film_content, refuse_damage
from chess_cxr.decode.image import decode_image
from chess_cxr.decode.jsrt import decode_jsrt, is_jsrt
from chess_cxr.decode.volume import is_volume
from chess_cxr.derive.dicom import KINDS, SOFTWARE, Derivation, Kind, derive_dicom
from chess_cxr.derive.grey import change_film
from chess_cxr.files.whole import place_new, write_flushed
from chess_cxr.records import ChessError, Undecodable, UsageError

__all__ = ["KINDS", "Kind", "write_derived_film", "write_new_file"]

_MAX_STEM = 200  # bytes; file systems take names of 255
_MAX_CLASHES = 10_000
_MAX_MODEL = 200


def write_derived_film(
    source: Path | str,
    change_HW: np.ndarray,
    out: Path,
    *,
    kind: Kind,
    text: str = "",
    model: str = "",
    seed: int | None = None,
) -> Path:
    """Write the film in `source` plus `change_HW` into the folder `out`; return the path of the new file.

    change_HW: float32 of the size of the whole film in `decode.film.decode_film`; added to its grey (air 0, bone 1), it
    removes bone or adds a nodule.  A DICOM file decodes to clip(film + change, 0, 1), to the nearest stored value.  PNG
    has no window: a film of 16 bits keeps its stored values where the change is 0, but its percentiles, and so its
    stretched greys, may shift a little.

    kind: kind of derivation, named in the file.  text: burned into a corner unless empty, usually `KINDS[kind].text`.
    model: name of the weights, ASCII.  seed: makes UIDs, and so the whole DICOM file, reproducible.
    The file has the name of the source with .dcm or .png, if necessary with -2, -3 and so on; none is overwritten.

    Raises `UsageError` for an invalid change, text or `out`, `Undecodable` for a film that cannot be read or derived
    from (colour, several frames, 32 bits, big-endian), `ChessError` if the file cannot be written.
    """
    derivation = Derivation(kind, text, _check_model(model), seed)
    if kind not in KINDS:
        raise UsageError(f"unknown kind of derived film {kind!r}: use one of {', '.join(KINDS)}")
    change_HW = _check_change(change_HW)
    content = read_film_content(source)
    with refuse_damage("derive from it"):
        derived, suffix = _derive(content, str(source), change_HW, derivation)
    return write_new_file(out, Path(str(source)).stem, suffix, derived)


def _check_model(model: str) -> str:
    if not (model.isascii() and (model.isprintable() or not model) and len(model) <= _MAX_MODEL) or "\\" in model:
        raise UsageError(f"the name of a model must be at most {_MAX_MODEL} printable ASCII characters without \\")
    return model


def _check_change(change_HW: np.ndarray) -> np.ndarray:
    if change_HW.ndim != 2 or change_HW.dtype.kind != "f" or not np.isfinite(change_HW).all():
        raise UsageError("a change must be finite floating-point numbers, height x width")
    return change_HW.astype(np.float32, copy=False)


def _derive(content: bytes, name: str, change_HW: np.ndarray, derivation: Derivation) -> tuple[bytes, str]:
    if is_dicom(content):
        return derive_dicom(content, change_HW, derivation), ".dcm"
    if is_volume(content):
        raise Undecodable("cannot derive from NIfTI or MetaImage: give DICOM, PNG, JPEG or TIFF")
    raw_HW, table_N = _read_jsrt(content) if is_jsrt(content, name) else _read_image(content)
    return _derive_png(content, raw_HW, table_N, change_HW, derivation), ".png"


# ---------------------------------------------------------------- images


def _read_jsrt(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    film_HW = decode_jsrt(content).pixels
    raw_HW = np.frombuffer(content, dtype=">u2").reshape(film_HW.shape).astype(np.uint16)
    return raw_HW, _find_table(raw_HW, film_HW)


def _read_image(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return stored values, uint8 or uint16 [H, W], and the grey of each, float32 [256 or 65,536]."""
    film_HW = decode_image(content).pixels  # refuses a damaged or too large file
    if content[8:12] != b"WEBP":
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "TIFF")) as image:
            if image.mode[:1] in ("I", "F"):
                deep = np.asarray(ImageOps.exif_transpose(image))
                if deep.dtype.kind not in "iu" or deep.min() < 0 or deep.max() > 65_535:
                    raise Undecodable(
                        "cannot derive from a film of more than 16 bits: only 8 and 16 bits are supported"
                    )
                raw_HW = np.ascontiguousarray(deep.astype(np.uint16))
                return raw_HW, _find_table(raw_HW, film_HW)
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    return np.rint(film_HW * 255).astype(np.uint8), levels


def _find_table(raw_HW: np.ndarray, film_HW: np.ndarray) -> np.ndarray:
    """Return the grey of each of 65,536 stored values; the decoded film tells whether air is bright in them."""
    value_N, counts_N = np.arange(1 << 16), count_levels(raw_HW)
    seen = counts_N > 0
    table_N = stretch(value_N, *find_window(value_N[seen], counts_N[seen]))
    for shown_N in (table_N, 1 - table_N):
        if np.array_equal(shown_N[raw_HW], film_HW):
            return shown_N
    raise Undecodable("the file's grey scale is of an unknown kind")


def _derive_png(
    content: bytes, raw_HW: np.ndarray, table_N: np.ndarray, change_HW: np.ndarray, derivation: Derivation
) -> bytes:
    """Return a PNG of the source's depth and polarity, with its provenance in a tEXt chunk."""
    if change_HW.shape != raw_HW.shape:
        sizes = (" x ".join(str(side) for side in array.shape[::-1]) for array in (change_HW, raw_HW))
        raise UsageError("a change of {} pixels does not fit a film of {} pixels".format(*sizes))
    derived_HW = change_film(raw_HW, change_HW, table_N, derivation.text)
    told = PngInfo()
    for key, value in _tell(content, derivation).items():
        told.add_text(key, value)
    written = io.BytesIO()
    Image.fromarray(derived_HW).save(written, "PNG", pnginfo=told)
    return written.getvalue()


def _tell(content: bytes, derivation: Derivation) -> dict[str, str]:
    """Describe the source by the hash of its content; a path may name the patient."""
    words = KINDS[derivation.kind]
    found = {
        SOFTWARE: f"{words.series}, derived from {hashlib.sha256(content).hexdigest()}",
        "Description": words.description,
        "Software": f"{SOFTWARE} {version(SOFTWARE)}",
    }
    return found | ({"Model": derivation.model} if derivation.model else {})


# ---------------------------------------------------------------- writing


def write_new_file(out: Path, stem: str, suffix: str, content: bytes) -> Path:
    """Write a new file, whole or not at all, under a free name; return its path.

    The name is `stem`, cut to 200 bytes, plus `suffix`; if taken, with -2, -3 and so on between them.  Programs that
    write at the same time take different names.
    Raises `UsageError` if `out` is not a folder, `ChessError` if it cannot be written into.
    """
    while len(os.fsencode(stem)) > _MAX_STEM:  # cut whole letters, which can be printed
        stem = stem[:-1]
    stem = stem or "film"
    growing = out / f".{uuid.uuid4().hex}.partial"
    try:
        out.mkdir(parents=True, exist_ok=True)
        try:
            write_flushed(growing, content, 0o600)
            return _move(growing, out, stem, suffix)
        finally:
            growing.unlink(missing_ok=True)
    except FileExistsError:
        raise UsageError(f"{out} is not a folder; choose another") from None
    except OSError as error:
        raise ChessError(f"cannot write into {out} ({error.strerror})") from None


def _move(growing: Path, out: Path, stem: str, suffix: str) -> Path:
    for number in range(1, _MAX_CLASHES):
        target = out / (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
        with contextlib.suppress(FileExistsError):
            place_new(growing, target)
            return target
    raise ChessError(f"{out} holds {_MAX_CLASHES} films of this name; choose another folder")
