"""Films whose nodules are marked, as arrays: from JSRT, NODE21, a folder of films and masks, or generated."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from chess_cxr.decode.film import decode_film
from chess_cxr.ingest.split import assign_stratified_splits
from chess_cxr.records import SPLITS, ChessError, SourceFilm, Undecodable, UsageError
from chess_cxr.sources.phantom.anatomy import draw_anatomy
from chess_cxr.sources.phantom.film import MAX_PIXEL, draw_exposure, render_film
from chess_cxr.tasks.nodules.files import NoduleEntry, list_nodule_films
from chess_cxr.tasks.nodules.masks import read_mask_levels, read_request_mask

__all__ = ["NoduleFilm", "read_nodule_films", "resample_nodule_film", "split_nodule_films", "square_film"]

_PHANTOM = re.compile(r"phantom:(\d{1,6})(?:@(\d{1,5}))?(?:#(\d{1,9}))?")
_PHANTOM_SIZE = 256
_SIZES = (32, 4096)

Film = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class NoduleFilm:
    """One film and its nodules.

    film_HW: float32 in [0, 1], bone bright.  mask_HW: bool, all nodules; empty = no nodule.  lung_HW: bool or None.
    group: patient.  spacing_mm: between pixel centres at this size, None where unknown.  kind: "jsrt", "node21",
    "phantom" or "folder".  malignant: 1, 0 or NaN.
    """

    name: str
    film_HW: Film
    mask_HW: Mask
    lung_HW: Mask | None
    group: str
    spacing_mm: float | None
    kind: str
    malignant: float = math.nan


def read_nodule_films(
    place: str, size: int | None = None, on_film: Callable[[int, int], None] | None = None
) -> list[NoduleFilm]:
    """Read the films of a folder (layouts: `list_nodule_films`), or generate those of "phantom:PATIENTS[@SIZE][#SEED]".

    A generated patient (SYNTHETIC) has a film with a nodule and one without; SIZE is `size` or 256 by default, SEED 0.
    size: films are resampled so that their longest side has that many pixels (32 to 4096), by area; masks by the half
    of a pixel's area, but no nodule vanishes.  JSRT copies in which bone is dark are inverted.
    on_film: called with how many of how many are read.
    Raises `UsageError` for what is asked wrongly, `ChessError` for a film that cannot be decoded.
    """
    if size is not None and not _SIZES[0] <= size <= _SIZES[1]:
        raise UsageError(f"a film size of {size} pixels is outside {_SIZES[0]} to {_SIZES[1]}")
    if place.startswith("phantom:"):
        total, films = _generate_films(place, size)
    else:
        entries = list_nodule_films(Path(place))
        total, films = len(entries), _decode_entries(entries)
    read = list[NoduleFilm]()
    for film in films:
        read.append(film if size is None else resample_nodule_film(film, size))
        if on_film:
            on_film(len(read), total)
    return read


# ---------------------------------------------------------------- generated


def _generate_films(place: str, size: int | None) -> tuple[int, Iterator[NoduleFilm]]:
    """Return how many films there will be, and the films."""
    found = _PHANTOM.fullmatch(place)
    if found is None or not int(found[1]):
        raise UsageError(f"{place!r} is not phantom:PATIENTS[@SIZE][#SEED], such as phantom:40@128#1")
    side = int(found[2] or size or _PHANTOM_SIZE)
    if not 64 <= side <= _SIZES[1]:
        raise UsageError(f"a generated film of {side} pixels is outside 64 to {_SIZES[1]}")
    patients, seed = int(found[1]), int(found[3] or 0)
    return 2 * patients, (film for patient in range(patients) for film in _generate_patient(patient, seed, side))


def _generate_patient(patient: int, seed: int, side: int) -> Iterator[NoduleFilm]:
    draws = np.random.SeedSequence([seed, patient, 77]).generate_state(3)
    anatomy = draw_anatomy(int(draws[0]))
    for film_seed, finding in zip(draws[1:], ("nodule", "normal"), strict=True):
        film = render_film(anatomy, draw_exposure(int(film_seed)), finding, side)
        yield NoduleFilm(
            name=f"PHANTOM{patient:04d}-{finding}",
            film_HW=(film.pixels / np.float32(MAX_PIXEL)).astype(np.float32),
            mask_HW=film.finding_mask,
            lung_HW=film.lung_mask,
            group=f"PHANTOM{patient:04d}",
            spacing_mm=film.spacing_mm,
            kind="phantom",
        )


# ---------------------------------------------------------------- decoded


def _decode_entries(entries: Sequence[NoduleEntry]) -> Iterator[NoduleFilm]:
    for number, entry in enumerate(entries, start=1):
        try:
            yield _decode_entry(entry)
        except Undecodable as error:
            raise ChessError(f"film {number} of {len(entries)} by name cannot be decoded: {error}") from None
        except UsageError as error:
            raise UsageError(f"film {number} of {len(entries)} by name: {error}") from None


def _decode_entry(entry: NoduleEntry) -> NoduleFilm:
    decoded = decode_film(entry.film)
    film_HW = decoded.pixels
    shape = (film_HW.shape[0], film_HW.shape[1])
    lung_HW = None
    if entry.lung is not None and entry.lung_bits:
        organ_HW = _read_organs(entry.lung, shape)
        lung_HW = (organ_HW & entry.lung_bits) > 0
        heart_HW = ((organ_HW & entry.heart_bit) > 0) & ~lung_HW
        if heart_HW.any() and lung_HW.any() and np.median(film_HW[heart_HW]) < np.median(film_HW[lung_HW]):
            film_HW = 1 - film_HW
    elif entry.lung is not None:
        lung_HW = read_request_mask(entry.lung, shape)
    mask_HW = _draw_boxes(entry.boxes, shape) if entry.mask is None else read_request_mask(entry.mask, shape)
    spacing_mm = next((s for s in (entry.field_mm / max(shape), entry.spacing_mm, decoded.spacing_mm) if s > 0), None)
    return NoduleFilm(
        entry.name, film_HW, mask_HW, lung_HW, entry.group, spacing_mm, entry.kind, malignant=entry.malignant
    )


def _read_organs(path: Path, shape: tuple[int, int]) -> npt.NDArray[np.integer]:
    organ_HW = read_mask_levels(path)
    if organ_HW.shape != shape:
        raise UsageError(
            f"the organ mask has {organ_HW.shape[1]} x {organ_HW.shape[0]} pixels, the film {shape[1]} x {shape[0]}"
        )
    return organ_HW


def _draw_boxes(boxes: Sequence[tuple[float, float, float, float]], shape: tuple[int, int]) -> Mask:
    """Fill the ellipse of each box (x, y, width, height); one smaller than a pixel marks the nearest."""
    mask_HW = np.zeros(shape, bool)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for left, top, width, height in boxes:
        column, row = left + (width - 1) / 2, top + (height - 1) / 2
        if not (0 <= column <= shape[1] - 1 and 0 <= row <= shape[0] - 1):
            raise UsageError(f"a box is centred outside the film of {shape[1]} x {shape[0]} pixels")
        mask_HW |= ((x - column) / (width / 2)) ** 2 + ((y - row) / (height / 2)) ** 2 <= 1
        mask_HW[round(row), round(column)] = True
    return mask_HW


# ---------------------------------------------------------------- resampled


def resample_nodule_film(film: NoduleFilm, size: int) -> NoduleFilm:
    """Bring the longest side to `size`: grey by area, masks where half of a pixel is covered; no nodule is lost."""
    height, width = film.film_HW.shape
    scale = size / max(height, width)
    if scale == 1:
        return film
    shape = (max(1, round(height * scale)), max(1, round(width * scale)))
    mask_HW = _resample_mask(film.mask_HW, shape)
    _restore_pieces(film.mask_HW, mask_HW)
    return replace(
        film,
        film_HW=np.clip(_resample(film.film_HW, shape), 0, 1),
        mask_HW=mask_HW,
        lung_HW=None if film.lung_HW is None else _resample_mask(film.lung_HW, shape),
        spacing_mm=None if film.spacing_mm is None else film.spacing_mm / scale,
    )


def _resample(values_HW: Film, shape: tuple[int, int]) -> Film:
    by = cv2.INTER_AREA if shape[0] < values_HW.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(values_HW, shape[::-1], interpolation=by), np.float32)


def _resample_mask(mask_HW: Mask, shape: tuple[int, int]) -> Mask:
    return np.asarray(_resample(mask_HW.astype(np.float32), shape) > 0.5)


def _restore_pieces(before_HW: Mask, after_HW: Mask) -> None:
    """Mark the middle of each nodule of which nothing is left."""
    count, label_HW = cv2.connectedComponents(before_HW.astype(np.uint8), connectivity=8)
    scale = np.array(after_HW.shape) / before_HW.shape
    for number in range(1, count):
        points_N2 = np.argwhere(label_HW == number)
        at_N2 = np.minimum(((points_N2 + 0.5) * scale).astype(np.int64), np.array(after_HW.shape) - 1)
        if not after_HW[at_N2[:, 0], at_N2[:, 1]].any():
            row, column = at_N2[np.argmin(((points_N2 - points_N2.mean(axis=0)) ** 2).sum(axis=1))]
            after_HW[row, column] = True


def square_film(film: NoduleFilm, size: int) -> NoduleFilm:
    """Bring a film and its masks to size x size pixels; a film without a lung mask gets an empty one."""
    side = (size, size)

    def shrink(mask_HW: np.ndarray | None) -> np.ndarray:
        if mask_HW is None:
            return np.zeros(side, bool)
        return np.asarray(cv2.resize(mask_HW.astype(np.float32), side, interpolation=cv2.INTER_AREA) > 0.5)

    film_HW = cv2.resize(film.film_HW, side, interpolation=cv2.INTER_AREA)
    masks = shrink(film.mask_HW), shrink(film.lung_HW)
    return NoduleFilm(film.name, np.asarray(film_HW, np.float32), *masks, film.group, None, film.kind)


# ---------------------------------------------------------------- split


def split_nodule_films(films: Sequence[NoduleFilm], seed: int, val: float, test: float) -> dict[str, list[NoduleFilm]]:
    """Divide films among "train", "val" and "test" by patient; films with and without nodule get their share in each.

    val, test: fractions of patients in [0, 1), together below 1.  The order of the films does not matter.
    """
    told = [
        SourceFilm(path="", uid=film.name, patient=film.group, labels={"nodule": float(film.mask_HW.any())})
        for film in films
    ]
    split_of = assign_stratified_splits(told, seed, val, test)
    return {split: [film for film in films if split_of[film.group] == split] for split in SPLITS}
