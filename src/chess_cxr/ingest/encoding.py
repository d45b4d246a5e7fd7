"""Decode, judge and encode one film for the store."""

from __future__ import annotations

import contextlib
import itertools
import math
import operator
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from chess_cxr.decode.decoded import FilmHeader
from chess_cxr.decode.film import decode_film
from chess_cxr.film_jpeg import encode_film, shrink_film
from chess_cxr.ingest.hashes import compute_hashes
from chess_cxr.ingest.options import QualityOptions
from chess_cxr.ingest.quality import judge_film
from chess_cxr.records import SourceFilm, Undecodable
from chess_cxr.workers.child import Limits
from chess_cxr.workers.pool import call_in_child, run_in_order

JUDGED_SIDE = 512  # pixels; judging a film shrunk to this side gives the scores of the original


@dataclass(frozen=True)
class EncodeOptions:
    """longest_side: of the stored films, in pixels.  quality: thresholds that films are judged by."""

    longest_side: int = 512
    quality: QualityOptions = field(default_factory=QualityOptions)


@dataclass(frozen=True)
class EncodedFilm:
    """Film ready to be stored, or the reason why it is left out.

    spacing_mm: at the stored size.  view, flags, scores: judgement of the film.
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
    """Decode one film, judge it and encode it for the store.

    Raises `ConnectionError`, which is no fault of the film, if an object store cannot be reached.
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
        # Any other error concerns this film alone; its text may quote the header.
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


def encode_in_child(location: Path | str, options: EncodeOptions, limits: Limits) -> EncodedFilm:
    """Encode one film in this thread's child; a film that kills the child or takes too long is left out.

    Raises `ChessError` if no child can be started or the source of the films cannot be reached.
    """
    try:
        return call_in_child(encode_film_file, limits, location, options)
    except Undecodable as error:
        return EncodedFilm(reason=str(error))


def encode_in_order(
    films: Iterable[SourceFilm], options: EncodeOptions, limits: Limits, executor: Executor | None, in_flight: int
) -> Generator[tuple[SourceFilm, EncodedFilm], None, None]:
    """Yield every film with its result, in order, with about `in_flight` films submitted at a time.

    Raises `ChessError` if the executor is lost.
    """
    films, sent = itertools.tee(films)
    locations = map(operator.attrgetter("path"), sent)  # a worker must not learn more about a patient's film
    encode = partial(encode_in_child, options=options, limits=limits)
    with contextlib.closing(run_in_order(locations, encode, executor, in_flight)) as encoded:
        yield from zip(films, encoded, strict=True)
