"""Decide by pixels whether two films show the same picture, even if turned, mirrored, inverted or cropped.

A small hash confuses two chests.  Here points must correspond (SIFT, Lowe 2004; RANSAC, Fischler and Bolles 1981), and
the fine detail of the aligned films must agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from chess_cxr.records import OnCount

SIDE = 256  # pixels, longest side of the compared pictures
POINTS = 200
VOTERS = 48  # the strongest points of each film that vote for other films
NEIGHBOURS = 4
MIN_VOTES = 3
MIN_COSINE = 0.85  # between descriptors of one point
RANSAC_PIXELS = 3.0
RANSAC_TRIALS = 500
MIN_COMMON_PIXELS = 4000
BINS = 8


@dataclass(frozen=True)
class FilmDetail:
    """Features of a film for comparison.

    grey_HW: uint8, stretched, longest side `SIDE`.  place_K2: x, y of its points in pixels.  descriptor_KD: uint8
    [K, 128], square roots of SIFT's histograms (Arandjelovic and Zisserman 2012), strongest point first.
    """

    grey_HW: np.ndarray
    place_K2: np.ndarray
    descriptor_KD: np.ndarray


@dataclass(frozen=True)
class FilmMatch:
    """Alignment of a first film with a second.

    matrix_23: affine map of x, y from the first film's `grey_HW` to the second's.  points: number that agree with it.
    similarity: correlation of local detail in the overlap, in [-1, 1].  overlap: part of the second film that the first
    covers, in [0, 1].
    """

    matrix_23: np.ndarray
    mirrored: bool
    inverted: bool
    points: int
    similarity: float
    overlap: float

    @property
    def turned_degrees(self) -> float:
        """Turn from the first film to the second, clockwise in (-180, 180], after mirroring left to right."""
        x_axis = -self.matrix_23[:, 0] if self.mirrored else self.matrix_23[:, 0]
        return math.degrees(math.atan2(x_axis[1] - self.matrix_23[0, 1], x_axis[0] + self.matrix_23[1, 1]))

    def describe(self) -> str:
        """Describe the transform, as "mirrored, turned 17°, inverted" or "upright" (none)."""
        turned = round(self.turned_degrees)
        words = ["mirrored"] * self.mirrored
        words += [f"turned {turned}°".replace("-", "−")] * (turned != 0)
        words += ["inverted"] * self.inverted
        return ", ".join(words) or "upright"


def compute_detail(film_HW: np.ndarray) -> FilmDetail:
    """Shrink a film, uint8 [H, W], and find its points."""
    shrink = SIDE / max(film_HW.shape)
    size = [max(8, round(side * shrink)) for side in film_HW.shape[::-1]]
    method = cv2.INTER_AREA if shrink < 1 else cv2.INTER_LINEAR
    grey_HW = _stretch(np.asarray(cv2.resize(film_HW, size, interpolation=method), np.uint8))
    even = cv2.createCLAHE(3.0, (8, 8)).apply(grey_HW)
    points, descriptor = cv2.SIFT_create(nfeatures=POINTS, contrastThreshold=0.01).detectAndCompute(even, None)  # type: ignore[attr-defined]
    if descriptor is None:
        return FilmDetail(grey_HW, np.empty((0, 2), np.float32), np.empty((0, 16 * BINS), np.uint8))
    strongest = np.argsort([-point.response for point in points], kind="stable")[:POINTS]
    place_K2 = np.array([point.pt for point in points], np.float32)[strongest]
    descriptor = descriptor[strongest]
    root = np.sqrt(descriptor / np.maximum(descriptor.sum(axis=1, keepdims=True), 1e-9))
    return FilmDetail(grey_HW, place_K2, np.rint(root * 255).astype(np.uint8))


def _stretch(grey_HW: np.ndarray) -> np.ndarray:
    """Stretch the greys of a film to the full range, since points are found by contrast."""
    low, high = np.percentile(grey_HW, (1, 99))
    stretched = (grey_HW.astype(np.float32) - low) * (255 / max(float(high - low), 1))
    return np.asarray(np.rint(np.clip(stretched, 0, 255)), np.uint8)


def reflect_descriptors(descriptor_KD: np.ndarray, mirrored: bool, inverted: bool) -> np.ndarray:
    """Return the descriptors of the same points in the mirrored or inverted film.

    Inversion turns the direction of a point half round, so its 4 x 4 cells change places and its bins stay; mirroring
    reverses one axis of the cells and the order of the bins.
    """
    cell = descriptor_KD.reshape(-1, 4, 4, BINS)
    if mirrored:
        cell = cell[:, ::-1][..., -np.arange(BINS) % BINS]
    if inverted:
        cell = cell[:, ::-1, ::-1]
    return cell.reshape(-1, 16 * BINS)


def match_films(
    first: FilmDetail, second: FilmDetail, mirrored: bool, inverted: bool, least_points: int = 12
) -> FilmMatch | None:
    """Align the first film with the second by any turn, shift and scale; None if fewer than `least_points` agree.

    mirrored, inverted: whether to mirror or invert the first film.
    """
    ours = _normalise(reflect_descriptors(first.descriptor_KD, mirrored, inverted))
    theirs = _normalise(second.descriptor_KD)
    if min(len(ours), len(theirs)) < least_points:
        return None
    cosine = ours @ theirs.T
    there, back = cosine.argmax(axis=1), cosine.argmax(axis=0)
    mutual = np.flatnonzero((back[there] == np.arange(len(ours))) & (cosine.max(axis=1) > MIN_COSINE))
    if len(mutual) < least_points:
        return None
    source, target = first.place_K2[mutual], second.place_K2[there[mutual]]
    if mirrored:
        source = source * np.array([-1, 1], np.float32)
    cv2.setRNGSeed(0)
    matrix, agreeing = cv2.estimateAffinePartial2D(
        source, target, ransacReprojThreshold=RANSAC_PIXELS, maxIters=RANSAC_TRIALS
    )
    if agreeing is None or agreeing.sum() < least_points:
        return None
    matrix = _refine(source, target, agreeing[:, 0] > 0, matrix)
    if mirrored:
        matrix[:, 0] *= -1
    similarity, overlap = _compare_detail(first.grey_HW, second.grey_HW, matrix, inverted)
    return FilmMatch(matrix, mirrored, inverted, int(agreeing.sum()), similarity, overlap)


def _normalise(descriptor_KD: np.ndarray) -> np.ndarray:
    as_float = descriptor_KD.astype(np.float32)
    return np.asarray(as_float / np.maximum(np.linalg.norm(as_float, axis=1, keepdims=True), 1e-6))


def _refine(source: np.ndarray, target: np.ndarray, agreeing: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Fit all six numbers of the map if there are enough points; some films are squeezed to a square."""
    if agreeing.sum() < 12:
        return matrix
    for _ in range(2):
        homogeneous = np.column_stack([source, np.ones(len(source))])
        fitted = np.linalg.lstsq(homogeneous[agreeing], target[agreeing], rcond=None)[0]
        agreeing = np.linalg.norm(homogeneous @ fitted - target, axis=1) < RANSAC_PIXELS
        if agreeing.sum() < 12:
            return matrix
    return np.ascontiguousarray(fitted.T)


def _compare_detail(
    first_HW: np.ndarray, second_HW: np.ndarray, matrix: np.ndarray, inverted: bool
) -> tuple[float, float]:
    laid, covered = lay_film(first_HW, matrix, second_HW.shape)
    common = cv2.erode(covered, np.ones((9, 9), np.uint8))
    if common.sum() < MIN_COMMON_PIXELS:
        return 0.0, 0.0
    ours, theirs = (_filter_detail(film, common)[common > 0] for film in (laid, second_HW))
    ours, theirs = ours - ours.mean(), theirs - theirs.mean()
    norm = math.sqrt(float(ours @ ours) * float(theirs @ theirs))
    similarity = float(ours @ theirs) / norm if norm else 0.0
    return -similarity if inverted else similarity, float(covered.mean())


def lay_film(first_HW: np.ndarray, matrix: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Warp the first film into the frame of the second; return it and the mask that it covers (uint8, 0 or 1)."""
    size = (shape[1], shape[0])
    laid = cv2.warpAffine(first_HW, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    covered = cv2.warpAffine(np.ones(first_HW.shape, np.uint8), matrix, size, flags=cv2.INTER_NEAREST)
    return np.asarray(laid, np.uint8), np.asarray(covered, np.uint8)


def _filter_detail(grey_HW: np.ndarray, within_HW: np.ndarray) -> np.ndarray:
    """Keep structures of 2 to 10 pixels with uniform contrast, so that windows and gammas do not matter.

    Pixels outside `within_HW` are ignored: the black around a turned film would affect its rim.
    """
    film, weight = grey_HW.astype(np.float32), within_HW.astype(np.float32)
    band = _blur(film, weight, 1.5) - _blur(film, weight, 6)
    return np.asarray(band / (np.sqrt(_blur(band * band, weight, 12)) + 2), np.float32)


def _blur(film: np.ndarray, weight: np.ndarray, sigma: float) -> np.ndarray:
    blurred = cv2.GaussianBlur(film * weight, (0, 0), sigma)
    return np.asarray(blurred / np.maximum(cv2.GaussianBlur(weight, (0, 0), sigma), 1e-3), np.float32)


def find_by_points(
    details: Sequence[FilmDetail], on_progress: OnCount | None = None
) -> list[tuple[int, int, bool, bool]]:
    """Find pairs of films that share points in any turn, scale, crop, mirroring and polarity.

    Each of a film's `VOTERS` strongest points votes for the films of its nearest neighbours among all points, found by
    a randomised kd forest (FLANN, Muja and Lowe 2009).  Returns (first, second, mirrored, inverted), first < second, of
    pairs with at least `MIN_VOTES` as candidates for `match_films`.
    """
    chosen = [_normalise(detail.descriptor_KD[:VOTERS]) for detail in details]
    owner = np.repeat(np.arange(len(details)), [len(points) for points in chosen])
    if len(np.unique(owner)) < 2:
        return []
    point_PD = np.ascontiguousarray(np.concatenate(chosen))
    cv2.setRNGSeed(0)
    index = cv2.flann_Index(point_PD, {"algorithm": 1, "trees": 4, "random_seed": 0})  # type: ignore[attr-defined]
    found = []
    for step, (mirrored, inverted) in enumerate(((False, False), (False, True), (True, False), (True, True))):
        query = np.ascontiguousarray(reflect_descriptors(point_PD, mirrored, inverted))
        neighbour, squared = index.knnSearch(query, min(NEIGHBOURS, len(point_PD)), params={"checks": 48})
        voter, elected = np.repeat(owner, neighbour.shape[1]), owner[neighbour.ravel()]
        valid = (elected != voter) & (squared.ravel() < 2 - 2 * MIN_COSINE)
        low, high = np.minimum(voter, elected)[valid], np.maximum(voter, elected)[valid]
        pair, votes = np.unique(low.astype(np.int64) * len(details) + high, return_counts=True)
        pairs = pair[votes >= MIN_VOTES]
        found += [(int(p // len(details)), int(p % len(details)), mirrored, inverted) for p in pairs]
        if on_progress:
            on_progress(step + 1, 4)
    return found
