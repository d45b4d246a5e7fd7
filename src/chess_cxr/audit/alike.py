"""Search for films that show the same picture: by hashes, then points, then pixels, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from chess_cxr.audit.matching import FilmDetail, FilmMatch, compute_detail, find_by_points, match_films
from chess_cxr.audit.near import find_near_hashes, unpack_hashes
from chess_cxr.audit.options import SearchOptions
from chess_cxr.evaluation.neighbours import find_nearest_of_all
from chess_cxr.records import OnProgress
from chess_cxr.workers.cores import count_usable_cores

FILMS_AT_ONCE = 256
PAIRS_AT_ONCE = 1024
DETAILS_KEPT = 4000  # about 0.1 MB each

ReadFilms = Callable[[Sequence[int]], Sequence[np.ndarray]]


def find_alike(
    hashes: Sequence[bytes],
    read_films: ReadFilms,
    thorough: bool,
    options: SearchOptions,
    known: Collection[tuple[int, int]],
    on_progress: OnProgress,
    unit_ND: np.ndarray | None = None,
) -> dict[tuple[int, int], FilmMatch]:
    """Find pairs of films, first < second, with the same or nearly the same picture.

    hashes: perceptual hash of each film.  read_films: returns the pictures of films by number, uint8 [H, W].
    Hashes find quarter turns, mirror images and inverted films; with `thorough`, points find any turn, scale and crop.
    known: pairs to skip.  unit_ND: features of an encoder, less their mean and at length 1, whose nearest films are
    compared too.
    """
    if len(hashes) < 2:
        return {}
    near = find_near_hashes(
        unpack_hashes(hashes),
        options.hash_similarity,
        options.candidates_per_film,
        on_progress=lambda done, total: on_progress("compare hashes", done, total),
    )
    poses = (near.first, near.second, near.mirrored, near.inverted)
    candidates = set(zip(*(column.tolist() for column in poses), strict=True))
    details = _Details(read_films, options.threads or count_usable_cores())
    if thorough:
        every: list[FilmDetail] = []
        for start in range(0, len(hashes), FILMS_AT_ONCE):
            some = range(start, min(start + FILMS_AT_ONCE, len(hashes)))
            every += details.get(some).values()
            on_progress("find points", len(every), len(hashes))
        candidates |= set(find_by_points(every, lambda done, total: on_progress("compare points", done, total)))
    if unit_ND is not None:
        candidates |= _find_by_features(unit_ND, options, on_progress)
    pairs = sorted(pair for pair in candidates if pair[:2] not in known)
    return _verify(pairs, details, options, on_progress)


def _find_by_features(
    unit_ND: np.ndarray, options: SearchOptions, on_progress: OnProgress
) -> set[tuple[int, int, bool, bool]]:
    """Return the nearest films of each film, upright and mirrored; an encoder tells inverted films apart."""
    near_NK, cosine_NK = find_nearest_of_all(
        unit_ND, options.candidates_per_film, lambda done, total: on_progress("compare features", done, total)
    )
    first, place = np.nonzero(cosine_NK >= options.feature_similarity)
    second = near_NK[first, place]
    pairs = zip(np.minimum(first, second).tolist(), np.maximum(first, second).tolist(), strict=True)
    return {(a, b, mirrored, False) for a, b in pairs for mirrored in (False, True)}


def _verify(
    pairs: Sequence[tuple[int, int, bool, bool]], details: _Details, options: SearchOptions, on_progress: OnProgress
) -> dict[tuple[int, int], FilmMatch]:
    """Keep the pairs whose pictures agree, each in its best pose."""
    kept: dict[tuple[int, int], FilmMatch] = {}
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        some = pairs[start : start + PAIRS_AT_ONCE]
        held = details.get(sorted({film for pair in some for film in pair[:2]}))
        matches = details.pool.map(
            lambda pair, at=held: match_films(at[pair[0]], at[pair[1]], pair[2], pair[3], options.points), some
        )
        for pair, match in zip(some, matches, strict=True):
            if match and match.similarity >= options.similarity and match.overlap >= options.overlap:
                best = kept.get(pair[:2])
                kept[pair[:2]] = match if best is None or match.similarity > best.similarity else best
        on_progress("compare pictures", start + len(some), len(pairs))
    return kept


class _Details:
    """Cache of the details of films."""

    def __init__(self, read_films: ReadFilms, threads: int) -> None:
        self.pool = ThreadPoolExecutor(threads)
        self._read_films = read_films
        self._kept: OrderedDict[int, FilmDetail] = OrderedDict()

    def get(self, films: Iterable[int]) -> dict[int, FilmDetail]:
        wanted = list(films)
        held = {film: self._kept[film] for film in wanted if film in self._kept}
        missing = [film for film in wanted if film not in held]
        for start in range(0, len(missing), FILMS_AT_ONCE):
            some = missing[start : start + FILMS_AT_ONCE]
            held |= zip(some, self.pool.map(compute_detail, self._read_films(some)), strict=True)
        for film in wanted:
            self._kept[film] = held[film]
            self._kept.move_to_end(film)
        while len(self._kept) > DETAILS_KEPT:
            self._kept.popitem(last=False)
        return {film: held[film] for film in wanted}
