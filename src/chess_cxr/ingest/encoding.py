"""One film from its file to what the store holds of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chess_cxr.film_jpeg import encode_film, shrink_film
from chess_cxr.ingest.decode import decode_film
from chess_cxr.ingest.decoded import FilmHeader, Undecodable
from chess_cxr.ingest.duplicates import compute_hashes
from chess_cxr.ingest.quality import QualityOptions, judge_film

JUDGED_SIDE = 512  # a film of this many pixels is judged as its original is


@dataclass(frozen=True)
class EncodeOptions:
    """longest_side: of the stored films, in pixels.  quality: what is judged, and by which thresholds."""

    longest_side: int = 512
    quality: QualityOptions = field(default_factory=QualityOptions)


@dataclass(frozen=True)
class EncodedFilm:
    """The film ready to be stored, or the reason why it must not be.

    spacing_mm: of the stored size.  view, flags, scores: of the film as it was judged.
    """

    reason: str = ""
    jpeg: bytes = b""
    height: int = 0
    width: int = 0
    spacing_mm: float = math.nan
    header: FilmHeader = field(default_factory=FilmHeader)
    view: str = ""
    flags: frozenset[str] = frozenset()
    scores: Mapping[str, float] = field(default_factory=dict)
    pixel_hash: str = ""
    perceptual_hash: bytes = b""


def encode_film_file(location: Path | str, options: EncodeOptions) -> EncodedFilm:
    """Decode one film, judge it and encode it as the store wants it.

    Raises ConnectionError, which says nothing about the film, where an object store cannot be reached.
    """
    try:
        side = max(options.longest_side, JUDGED_SIDE)
        film = decode_film(location, at_least=side)
        judged = shrink_film(film.pixels, side, film.full_height, film.full_width)
        quality = judge_film(judged, film.header, film.full_height, film.full_width, options.quality)
        if quality.reject:
            return EncodedFilm(reason=quality.reject)
        small = shrink_film(judged, options.longest_side, film.full_height, film.full_width)
        if options.quality.correct_polarity and "inverted" in quality.flags:
            small = 1 - small
        hashes = compute_hashes(small)
        jpeg, height, width = encode_film(small, options.longest_side)
    except Undecodable as error:
        return EncodedFilm(reason=str(error))
    except MemoryError:
        return EncodedFilm(reason="not enough memory to decode it")
    except ConnectionError:
        raise
    except Exception as error:
        # Whatever it is, it concerns this film alone; its text may quote the header.
        return EncodedFilm(reason=f"cannot be judged or encoded ({type(error).__name__})")
    shrunk = math.sqrt(film.pixels.size / (height * width))
    return EncodedFilm(
        jpeg=jpeg,
        height=height,
        width=width,
        spacing_mm=film.spacing_mm * shrunk,
        header=film.header,
        view=quality.view,
        flags=quality.flags,
        scores=quality.scores,
        pixel_hash=hashes.pixel,
        perceptual_hash=hashes.perceptual,
    )
