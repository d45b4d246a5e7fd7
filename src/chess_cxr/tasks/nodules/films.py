"""Films with marked nodules, as arrays: from JSRT, NODE21, a folder of films and masks, or generated.

A film is represented by its source until it is needed.  Files are decoded in child processes, so that none can hang the
run.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from chess_cxr.decode.film import decode_film
from chess_cxr.ingest.split import assign_stratified_splits
from chess_cxr.records import SPLITS, ChessError, OnCount, SourceFilm, Undecodable, UsageError
from chess_cxr.sources.phantom.anatomy import draw_anatomy
from chess_cxr.sources.phantom.film import MAX_PIXEL, draw_exposure, render_film
from chess_cxr.sources.phantom.place import is_phantom, parse_phantom
from chess_cxr.tasks.ct_nodules import Mask, choose_ct_nodule, list_ct_rows, read_ct_nodule, read_mask_levels
from chess_cxr.tasks.nodules.files import NoduleEntry, list_nodule_films
from chess_cxr.tasks.nodules.insertion import draw_contrast, insert_ct_nodule
from chess_cxr.tasks.nodules.masks import draw_random_request, read_request_mask
from chess_cxr.views import resize_longest
from chess_cxr.workers.child import Limits, check_limits
from chess_cxr.workers.pool import ALL_AT_ONCE, call_in_child, run_in_order

_SIZES = (32, 4096)
_FINDINGS = ("nodule", "normal")  # of the films of a generated patient

Film = npt.NDArray[np.float32]
Done = TypeVar("Done")


@dataclass(frozen=True)
class NoduleFilm:
    """A film and its nodules.

    film_HW: float32 in [0, 1], bone bright.  mask_HW: bool, all nodules; without a nodule all False.  lung_HW: bool or
    None.  group: patient.  spacing_mm: between pixel centres at this size, None if unknown.  kind: "jsrt", "node21",
    "phantom", "ct" (a CT nodule in a generated film) or "folder".  malignant: 1, 0 or NaN.
    """

    name: str
    film_HW: Film
    mask_HW: Mask
    lung_HW: Mask | None
    group: str
    spacing_mm: float | None
    kind: str
    malignant: float = math.nan

    @property
    def has_nodule(self) -> bool:
        """Whether a nodule is marked."""
        return bool(self.mask_HW.any())


@dataclass(frozen=True)
class PhantomOrder:
    """A film to generate.  number: 0 for the patient's film with a nodule, 1 for the one without.  size: in pixels."""

    seed: int
    patient: int
    number: int
    size: int


@dataclass(frozen=True)
class CtOrder:
    """A generated film into which a CT nodule is inserted.  row, number: of nodules.csv.  size: in pixels."""

    folder: Path
    row: Mapping[Hashable, object]
    number: int
    size: int


FilmSource = NoduleEntry | PhantomOrder | CtOrder | NoduleFilm


def read_nodule_films(
    place: str,
    size: int | None = None,
    on_film: OnCount | None = None,
    limits: Limits | None = None,
    executor: Executor | None = None,
) -> list[NoduleFilm]:
    """Read all films of a place (see `list_sources`) into memory.

    size: longest side in pixels (32 to 4096) to which films are resampled, see `resample_nodule_film`.
    on_film: called with the number of films read and the total.  limits, executor and errors: see `read_each`.
    """
    if size is not None and not _SIZES[0] <= size <= _SIZES[1]:
        raise UsageError(f"a film size of {size} pixels is outside {_SIZES[0]} to {_SIZES[1]}")
    sources = list_sources(place, size)
    films = list[NoduleFilm]()
    for film in read_each(sources, _read_resampled, size, limits=limits, executor=executor):
        films.append(film)
        if on_film:
            on_film(len(films), len(sources))
    return films


def _read_resampled(source: FilmSource, size: int | None) -> NoduleFilm:
    film = read_source(source)
    return film if size is None else resample_nodule_film(film, size)


# ---------------------------------------------------------------- where films come from


def list_sources(place: str, size: int | None = None) -> list[FilmSource]:
    """List the films of a folder (layouts: `list_nodule_films`), or of "phantom:PATIENTS[@SIZE][#SEED]" (SYNTHETIC).

    A generated patient has a film with a nodule and one without; SIZE is `size` or 256 by default.  A folder of CT
    nodules (`read_ct_nodules`) gives a generated film for each (SYNTHETIC).  JSRT copies in which bone is dark are
    inverted when they are read.
    """
    if (Path(place) / "nodules.csv").is_file():
        rows = enumerate(list_ct_rows(Path(place)), start=2)
        return [CtOrder(Path(place), row, number, size or 256) for number, row in rows]
    if not is_phantom(place):
        return list[FilmSource](list_nodule_films(Path(place)))
    drawn = parse_phantom(place, size or 256)
    return [
        PhantomOrder(drawn.seed, patient, number, drawn.size)
        for patient in range(drawn.patients)
        for number in range(len(_FINDINGS))
    ]


def read_source(source: FilmSource) -> NoduleFilm:
    """Decode or generate a film; raises `Undecodable` or `UsageError` for a file that cannot be used."""
    if isinstance(source, NoduleFilm):
        return source
    if isinstance(source, CtOrder):
        return _insert_ct(source)
    return _draw_phantom(source) if isinstance(source, PhantomOrder) else _decode(source)


def read_each(
    sources: Sequence[FilmSource],
    task: Callable[..., Done],
    *request: object,
    limits: Limits | None = None,
    executor: Executor | None = None,
    in_flight: int = ALL_AT_ONCE,
    told: str = "by name",
) -> Iterator[Done]:
    """Yield task(source, *request) for each source, in order; child processes with limits decode files.

    task: a function of a module that does not import torch.  executor: from `build_ingest_pool`; by default one
    process.  in_flight: number of films read ahead of the caller, roughly.  told: what a film's number in an error
    counts.
    Raises, in one line with that number, `ChessError` if a film cannot be decoded, kills its process or takes too long,
    and `UsageError` if its mask does not fit.
    """
    limits, total = limits or Limits(), len(sources)

    def work(numbered: tuple[int, FilmSource]) -> Done | ChessError:
        number, source = numbered
        try:
            if isinstance(source, NoduleEntry | CtOrder):
                return call_in_child(task, limits, source, *request)
            return task(source, *request)
        except Undecodable as error:
            return ChessError(f"film {number} of {total} {told} cannot be decoded: {error}")
        except UsageError as error:
            return UsageError(f"film {number} of {total} {told}: {error}")

    check_limits(limits)
    with contextlib.closing(run_in_order(enumerate(sources, 1), work, executor, in_flight)) as results:
        for result in results:
            if isinstance(result, ChessError):
                raise result
            yield result


# ---------------------------------------------------------------- generated


def _draw_phantom(order: PhantomOrder) -> NoduleFilm:
    draws = np.random.SeedSequence([order.seed, order.patient, 77]).generate_state(3)
    finding, exposure = _FINDINGS[order.number], draw_exposure(int(draws[1 + order.number]))
    film = render_film(draw_anatomy(int(draws[0])), exposure, finding, order.size)
    return NoduleFilm(
        name=f"PHANTOM{order.patient:04d}-{finding}",
        film_HW=(film.pixels / np.float32(MAX_PIXEL)).astype(np.float32),
        mask_HW=film.finding_mask,
        lung_HW=film.lung_mask,
        group=f"PHANTOM{order.patient:04d}",
        spacing_mm=film.spacing_mm,
        kind="phantom",
    )


def _insert_ct(order: CtOrder) -> NoduleFilm:
    """Insert a CT nodule, turned at random, into the lung of a generated film; none that is too small or too long."""
    nodule = read_ct_nodule(order.folder, order.row, order.number)
    draws = np.random.SeedSequence([order.number, 79]).generate_state(3)
    film = render_film(draw_anatomy(int(draws[0])), draw_exposure(int(draws[1])), "normal", order.size)
    film_HW, lung_HW = (film.pixels / np.float32(MAX_PIXEL)).astype(np.float32), film.lung_mask
    mask_HW, rng, wide_mm = np.zeros(film_HW.shape, bool), np.random.default_rng(draws[2]), nodule.diameter_mm
    with contextlib.suppress(UsageError):
        turned = choose_ct_nodule([nodule], wide_mm, rng)
        request = draw_random_request(lung_HW, film.spacing_mm, (wide_mm, wide_mm), rng)
        contrast = draw_contrast(film_HW, lung_HW, wide_mm, rng)
        film_HW, mask_HW = insert_ct_nodule(film_HW, turned, request.centre_px, wide_mm, film.spacing_mm, contrast)
    return NoduleFilm(nodule.name, film_HW, mask_HW, lung_HW, nodule.series_uid, film.spacing_mm, "ct")


# ---------------------------------------------------------------- decoded


def _decode(entry: NoduleEntry) -> NoduleFilm:
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
    """Fill the ellipse of each box (x, y, width, height); a box smaller than a pixel marks the nearest one."""
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
    """Resample the longest side to `size`: greys by area, masks at half a pixel's coverage; every nodule is kept."""
    scale = size / max(film.film_HW.shape)
    if scale == 1:
        return film
    mask_HW = _resample_mask(film.mask_HW, size)
    _restore_pieces(film.mask_HW, mask_HW)
    return replace(
        film,
        film_HW=np.clip(resize_longest(film.film_HW, size), 0, 1),
        mask_HW=mask_HW,
        lung_HW=None if film.lung_HW is None else _resample_mask(film.lung_HW, size),
        spacing_mm=None if film.spacing_mm is None else film.spacing_mm / scale,
    )


def _resample_mask(mask_HW: Mask, size: int) -> Mask:
    return np.asarray(resize_longest(mask_HW, size) > 0.5)


def _restore_pieces(before_HW: Mask, after_HW: Mask) -> None:
    """Mark the middle of each nodule that resampling removed."""
    count, label_HW = cv2.connectedComponents(before_HW.astype(np.uint8), connectivity=8)
    scale = np.array(after_HW.shape) / before_HW.shape
    for number in range(1, count):
        points_N2 = np.argwhere(label_HW == number)
        at_N2 = np.minimum(((points_N2 + 0.5) * scale).astype(np.int64), np.array(after_HW.shape) - 1)
        if not after_HW[at_N2[:, 0], at_N2[:, 1]].any():
            row, column = at_N2[np.argmin(((points_N2 - points_N2.mean(axis=0)) ** 2).sum(axis=1))]
            after_HW[row, column] = True


def square_film(film: NoduleFilm, size: int) -> NoduleFilm:
    """Resize a film and its masks to size x size pixels; without a lung mask, add an empty one."""
    side = (size, size)

    def shrink(mask_HW: np.ndarray | None) -> np.ndarray:
        if mask_HW is None:
            return np.zeros(side, bool)
        return np.asarray(cv2.resize(mask_HW.astype(np.float32), side, interpolation=cv2.INTER_AREA) > 0.5)

    film_HW = cv2.resize(film.film_HW, side, interpolation=cv2.INTER_AREA)
    masks = shrink(film.mask_HW), shrink(film.lung_HW)
    return NoduleFilm(film.name, np.asarray(film_HW, np.float32), *masks, film.group, None, film.kind)


# ---------------------------------------------------------------- split


class SplitFilm(Protocol):
    """What the split needs to know of a film."""

    @property
    def name(self) -> str:
        """Name of the film."""

    @property
    def group(self) -> str:
        """Patient."""

    @property
    def has_nodule(self) -> bool:
        """Whether a nodule is marked."""


AnyFilm = TypeVar("AnyFilm", bound=SplitFilm)


def split_nodule_films(films: Sequence[AnyFilm], seed: int, val: float, test: float) -> dict[str, list[AnyFilm]]:
    """Split films into "train", "val" and "test" by patient, each with its share of films with a nodule.

    val, test: fractions of patients in [0, 1), together below 1.  The order of the films does not matter.
    """
    told = [
        SourceFilm(path="", uid=film.name, patient=film.group, labels={"nodule": float(film.has_nodule)})
        for film in films
    ]
    split_of = assign_stratified_splits(told, seed, val, test)
    return {split: [film for film in films if split_of[film.group] == split] for split in SPLITS}
