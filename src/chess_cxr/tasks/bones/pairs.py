"""Pairs of a film and the same film without bone: read, check, match their grey scales, and split."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from chess_cxr.decode.decoded import DecodedFilm
from chess_cxr.decode.film import decode_film
from chess_cxr.records import OnCount, Undecodable, UsageError
from chess_cxr.sources.phantom.anatomy import draw_anatomy
from chess_cxr.sources.phantom.film import MAX_PIXEL, draw_exposure, render_film
from chess_cxr.sources.phantom.place import is_phantom, parse_phantom
from chess_cxr.tasks.bones.files import PairFiles, PairKind, find_pairs
from chess_cxr.workers.child import Limits
from chess_cxr.workers.pool import ALL_AT_ONCE, call_in_child, run_in_order

LARGEST_SHIFT = 0.01  # of the side: the worst of 16 real pairs is off by 0.009
LARGEST_QUARTER_SHIFT = 0.015  # of the side: 0.010 in the worst real pair, 0.017 and more after a turn by 3 degrees
LEAST_PEAK = 0.2  # phase correlation of a quarter with enough structure to compare: 0.38 and more in pairs
LEAST_LIKENESS = 0.5  # correlation of edges: 0.8 to 1 for real pairs, below 0.4 for films of two patients
SAME_RMS = 0.004  # one grey level of 255, smoothed: real pairs differ by 0.008 and more, a film and its JPEG by 0.0025
FIELD_MM = 350.0  # longest side of a film whose pixel spacing is unknown
_REGISTERED = 256  # side at which pairs are compared
_JSRT = re.compile(r"JPC(?:LN|NN)\d{3}", re.IGNORECASE)


@dataclass(frozen=True)
class FilmPair:
    """A film and the same film without bone, float32 [H, W] in [0, 1], bone bright, on one grey scale.

    group: patient; all its films stay in one split.  notes: what was corrected.
    lung_HW, nodule_HW: masks; bone_cm_HW: thickness of bone; known for phantoms.
    """

    name: str
    film_HW: np.ndarray
    bone_free_HW: np.ndarray
    group: str
    kind: PairKind
    notes: tuple[str, ...] = ()
    lung_HW: np.ndarray | None = None
    bone_cm_HW: np.ndarray | None = None
    nodule_HW: np.ndarray | None = None
    spacing_mm: float | None = None


def find_spacing(pair: FilmPair) -> float:
    """Return the pixel spacing of a pair in mm; if it is unknown, that of a film of `FIELD_MM`."""
    return pair.spacing_mm or FIELD_MM / max(pair.film_HW.shape)


# ---------------------------------------------------------------- reading


def read_pairs(
    place: str,
    limits: Limits | None = None,
    executor: Executor | None = None,
    on_pair: OnCount | None = None,
    reduce: Callable[[FilmPair], FilmPair] | None = None,
) -> list[FilmPair]:
    """Read the pairs of a folder, or draw those of "phantom:PATIENTS[@SIZE][#SEED]" (SYNTHETIC).

    executor: from `build_ingest_pool`.  on_pair: called with the number of pairs read and the total.  reduce: shrinks
    each pair at once, so that thousands of large films fit in memory.
    Raises UsageError, in one line, for the first two files that are not a pair.
    """
    if is_phantom(place):
        drawn = parse_phantom(place)
        orders = [(drawn.seed, patient, drawn.size) for patient in range(drawn.patients)]
        return _collect(orders, _draw_ordered_pair, executor, on_pair, reduce)
    read = partial(_read_pair, limits=limits or Limits())
    return _collect(find_pairs(Path(place)), read, executor, on_pair, reduce)


def _collect(
    orders: Sequence[Any],
    read: Callable[[Any], FilmPair | str],
    executor: Executor | None,
    on_pair: OnCount | None,
    reduce: Callable[[FilmPair], FilmPair] | None,
) -> list[FilmPair]:
    def work(order: Any) -> FilmPair | str:
        made = read(order)
        return reduce(made) if reduce and not isinstance(made, str) else made

    pairs = list[FilmPair]()
    for done, made in enumerate(run_in_order(orders, work, executor, ALL_AT_ONCE), start=1):
        if isinstance(made, str):  # a refusal; some executors lose the fields of exceptions
            raise UsageError(made)
        pairs.append(made)
        if on_pair:
            on_pair(done, len(orders))
    return pairs


def _read_pair(files: PairFiles, limits: Limits) -> FilmPair | str:
    try:
        film, bone_free = (_decode(path, files.name, limits) for path in (files.film, files.bone_free))
        return check_pair(files.name, film, bone_free, files.kind)
    except UsageError as error:
        return str(error)


def _decode(path: Path, name: str, limits: Limits) -> np.ndarray:
    try:
        film: DecodedFilm = call_in_child(decode_film, limits, path)
    except Undecodable as error:
        raise UsageError(f"{name}: {path.parent.name}/{path.name}: {error}") from None
    return film.pixels


def check_pair(name: str, film_HW: np.ndarray, bone_free_HW: np.ndarray, kind: PairKind = "folder") -> FilmPair:
    """Check that two pictures are a pair; make bone bright and bring both to one grey scale.

    Raises UsageError for pictures of different size, the same picture twice, a target that is shifted by more than
    `LARGEST_SHIFT`, turned or stretched, the target of another film, or a picture of one grey level.
    """
    if film_HW.shape != bone_free_HW.shape:
        sizes = (f"{p.shape[1]} x {p.shape[0]}" for p in (film_HW, bone_free_HW))
        raise UsageError(f"{name}: the film is {' and its target '.join(sizes)} pixels; a pair has one size")
    for picture_HW, whose in ((film_HW, "film"), (bone_free_HW, "target")):
        if np.ptp(picture_HW[::4, ::4]) == 0:
            raise UsageError(f"{name}: the {whose} is of one grey level; it shows nothing")
    notes = list[str]()
    if np.corrcoef(film_HW[::4, ::4].ravel(), bone_free_HW[::4, ::4].ravel())[0, 1] < 0:
        bone_free_HW = 1 - bone_free_HW
        notes.append("the target was inverted against its film; it was inverted back")
    shift, likeness = measure_registration(film_HW, bone_free_HW)
    if likeness < LEAST_LIKENESS:
        raise UsageError(
            f"{name}: the target seems to be of another film (their edges correlate by {likeness:.2f}, pairs by "
            f"{LEAST_LIKENESS:g} or more)"
        )
    if shift > LARGEST_SHIFT:
        raise UsageError(
            f"{name}: the target is shifted by {shift:.1%} of its side against its film; up to {LARGEST_SHIFT:.0%} "
            "is a pair, so register it first"
        )
    if (bend := measure_bend(film_HW, bone_free_HW)) > LARGEST_QUARTER_SHIFT:
        raise UsageError(
            f"{name}: the target is turned, stretched or bent against its film: a quarter of it lies off by {bend:.1%} "
            f"of the side; up to {LARGEST_QUARTER_SHIFT:.1%} is a pair, so register it first"
        )
    gain, offset = fit_grey_scale(film_HW, bone_free_HW)
    left_HW = cv2.GaussianBlur(np.asarray(film_HW - (gain * bone_free_HW + offset), np.float32), (0, 0), 1.5)
    if float(np.sqrt(np.mean(left_HW**2))) < SAME_RMS:
        raise UsageError(f"{name}: the film and its target are the same picture; a target has no bone")
    if not is_bone_bright(film_HW, gain * bone_free_HW + offset):
        film_HW, bone_free_HW, offset = 1 - film_HW, 1 - bone_free_HW, 1 - gain - offset
        notes.append("bone was dark in both films; both were inverted")
    if abs(gain - 1) > 0.01 or abs(offset) > 0.005:
        bone_free_HW = np.clip(gain * bone_free_HW + offset, 0, 1)
        notes.append(f"the target's grey levels were matched to its film's (times {gain:.3f}, plus {offset:+.3f})")
    found = _JSRT.search(name)
    film_HW, bone_free_HW = (np.ascontiguousarray(p, np.float32) for p in (film_HW, bone_free_HW))
    return FilmPair(name, film_HW, bone_free_HW, found[0].upper() if found else name, kind, tuple(notes))


def is_bone_bright(film_HW: np.ndarray, bone_free_HW: np.ndarray) -> bool:
    """Return whether bone is brighter than what it hides, for a pair on one grey scale.

    The two differ most where there is bone, so the mean of their differences lies on the side of bone of their median.
    """
    small = [
        cv2.resize(np.asarray(p, np.float32), (128, 128), interpolation=cv2.INTER_AREA) for p in (film_HW, bone_free_HW)
    ]
    left = cv2.GaussianBlur(small[0] - small[1], (0, 0), 1.0)
    left = left[(small[0] > 0.03) & (small[0] < 0.97)]  # flat borders are neither
    if not left.size:
        return True
    left -= np.median(left)
    spread = max(1.4826 * float(np.median(np.abs(left))), 1e-6)
    return float(np.mean(np.clip(left / spread, -10, 10))) >= 0


def measure_registration(film_HW: np.ndarray, bone_free_HW: np.ndarray) -> tuple[float, float]:
    """Return the shift of the second picture as a share of the side, and the correlation of edges once it is undone.

    Uses phase correlation (Kuglin & Hines 1975) of edges.  The strongest edges are clipped, so that ribs, which only
    one of the two has, do not outweigh heart and diaphragm.
    """
    edges, other = _draw_edges(film_HW), _draw_edges(bone_free_HW)
    window = cv2.createHanningWindow((_REGISTERED, _REGISTERED), cv2.CV_32F)
    (right, down), _ = cv2.phaseCorrelate(edges, other, window)
    back = np.array([[1, 0, -right], [0, 1, -down]], np.float32)
    aligned = cv2.warpAffine(other, back, edges.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    spread = float(np.sqrt((edges**2).sum() * (aligned**2).sum()))
    likeness = float((edges * aligned).sum()) / spread if spread else 0.0
    return float(np.hypot(right, down)) / _REGISTERED, likeness


def measure_bend(film_HW: np.ndarray, bone_free_HW: np.ndarray) -> float:
    """Return the largest shift of a quarter of the picture, as a share of the side.

    A target that is turned or stretched about its middle is not shifted as a whole, but its quarters are.
    """
    edges, other, half = _draw_edges(film_HW), _draw_edges(bone_free_HW), _REGISTERED // 2
    window = cv2.createHanningWindow((half, half), cv2.CV_32F)
    shifts = [0.0]
    for top in (0, half):
        for left in (0, half):
            here = slice(top, top + half), slice(left, left + half)
            first, second = (np.ascontiguousarray(picture[here]) for picture in (edges, other))
            (right, down), peak = cv2.phaseCorrelate(first, second, window)
            if peak >= LEAST_PEAK:
                shifts.append(float(np.hypot(right, down)) / _REGISTERED)
    return max(shifts)


def _draw_edges(picture_HW: np.ndarray) -> np.ndarray:
    side = (_REGISTERED, _REGISTERED)
    small = cv2.resize(np.ascontiguousarray(picture_HW, np.float32), side, interpolation=cv2.INTER_AREA)
    smooth = cv2.GaussianBlur(small, (0, 0), 1.5)
    strength = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    strength = np.minimum(strength, np.percentile(strength, 97))
    edges: np.ndarray = (strength - strength.mean()).astype(np.float32)
    return edges


def fit_grey_scale(film_HW: np.ndarray, bone_free_HW: np.ndarray) -> tuple[float, float]:
    """Return the gain and offset that match the target's grey levels to the film's outside bone.

    Fits a line by least squares with Tukey's weights (Beaton & Tukey 1974); bone, which only the film has, is an
    outlier.
    """
    small = [cv2.resize(p, (128, 128), interpolation=cv2.INTER_AREA).ravel() for p in (film_HW, bone_free_HW)]
    film, target = (np.asarray(p, np.float64) for p in small)
    inside = (film > 0.02) & (film < 0.98) & (target > 0.02) & (target < 0.98)  # clipped greys fit no line
    if inside.sum() < 100 or np.ptp(target[inside]) < 0.1:
        return 1.0, 0.0
    film, target = film[inside], target[inside]
    weight, line = np.ones_like(film), np.array([1.0, 0.0])
    for _ in range(30):
        line = np.polyfit(target, film, 1, w=np.sqrt(weight))
        left = film - np.polyval(line, target)
        left -= np.median(left)
        scale = max(1.4826 * float(np.median(np.abs(left))), 1e-3)
        weight = np.clip(1 - (left / (3 * scale)) ** 2, 0, None) ** 2 + 1e-9
    return float(line[0]), float(line[1])


# ---------------------------------------------------------------- phantoms


def draw_phantom_pair(patient_seed: int, film_seed: int, size: int, finding: str = "nodule") -> FilmPair:
    """Draw a film of a generated patient with and without bone (SYNTHETIC)."""
    film = render_film(draw_anatomy(patient_seed), draw_exposure(film_seed), finding, size, with_bone_free=True)
    assert film.without_bone is not None
    film_HW, bone_free_HW = ((p / np.float32(MAX_PIXEL)).astype(np.float32) for p in (film.pixels, film.without_bone))
    return FilmPair(
        f"phantom {patient_seed}",
        film_HW,
        bone_free_HW,
        group=f"phantom {patient_seed}",
        kind="phantom",
        lung_HW=film.lung_mask,
        bone_cm_HW=film.bone_cm,
        nodule_HW=film.finding_mask if finding == "nodule" else None,
        spacing_mm=film.spacing_mm,
    )


def _draw_ordered_pair(order: tuple[int, int, int]) -> FilmPair:
    """Draw a pair; every second patient has a nodule."""
    seed, patient, size = order
    patient_seed, film_seed = (int(n) for n in np.random.SeedSequence([seed, patient]).generate_state(2, np.uint32))
    pair = draw_phantom_pair(patient_seed, film_seed, size, "nodule" if patient % 2 else "normal")
    return replace(pair, name=f"phantom {seed}-{patient}")


# ---------------------------------------------------------------- splits


def split_pairs(pairs: Sequence[FilmPair], val: float, test: float, seed: int = 0) -> dict[str, list[FilmPair]]:
    """Split pairs by group, each kind separately, into "train", "val" and "test"."""
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise UsageError("the shares of val and test must be 0 or more and leave something to train on")
    part_of: dict[str, str] = {}
    for groups in _list_groups(pairs, seed).values():
        first, second = round(test * len(groups)), round((test + val) * len(groups))
        part_of |= {g: "test" if n < first else "val" if n < second else "train" for n, g in enumerate(groups)}
    return {part: [pair for pair in pairs if part_of[pair.group] == part] for part in ("train", "val", "test")}


def fold_pairs(pairs: Sequence[FilmPair], folds: int, seed: int = 0) -> list[list[FilmPair]]:
    """Divide pairs into folds by group, each with its share of every kind."""
    place = 0
    fold_of: dict[str, int] = {}
    for groups in _list_groups(pairs, seed).values():
        for group in groups:
            fold_of[group] = place % folds
            place += 1
    dealt: list[list[FilmPair]] = [[] for _ in range(folds)]
    for pair in pairs:
        dealt[fold_of[pair.group]].append(pair)
    return dealt


def _list_groups(pairs: Sequence[FilmPair], seed: int) -> dict[str, list[str]]:
    """List the groups of each kind in random order; a group of two kinds counts to the first."""
    kind_of: dict[str, str] = {}
    for pair in sorted(pairs, key=lambda p: (p.kind, p.group)):
        kind_of.setdefault(pair.group, pair.kind)
    rng = np.random.default_rng([seed, 17])
    return {
        kind: [str(g) for g in rng.permutation([g for g, k in kind_of.items() if k == kind])]
        for kind in sorted(set(kind_of.values()))
    }
