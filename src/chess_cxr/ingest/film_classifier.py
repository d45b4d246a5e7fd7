"""Classify the polarity and the kind of a film from a thumbnail of grey ranks.

Ranks keep only the order of the greys: windows and gammas do not change them, and the negative of a film has the same
ranks with the opposite sign.  runs/fit_film_classifier.py fits and measures the weights in `film_classifier.npz`;
docs/proof/quality.md gives the error rates.  Neither classifier was trained with disease labels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources

import cv2
import numpy as np
import numpy.typing as npt

# Suffixes: H, W film; Y, X thumbnail; P the pixels of a halved thumbnail; F features of the kind; H hidden units;
# C = len(KINDS).
Floats = npt.NDArray[np.float32]

KINDS = ("frontal", "lateral", "other")
THUMBNAIL_SIDE = 64
_POLARITY_SIDE, _LAYOUT_SIDE = 32, 16
_CELLS, _BINS = 8, 8  # gradient histograms: cells a side, directions of 180 degrees
_SMALL_SIDE = 128  # of the film on which borders and contrast are measured
_FLAT = 0.03  # grey range inside a row or column of a border, as a share of the film's range
_EXTREME = 0.05  # distance of a border from the film's darkest or brightest grey, as a share of its range
_MIN_CONTENT = 0.25  # least share of height and width inside the borders


@dataclass(frozen=True)
class Thumbnail:
    """Features of a film that the classifiers use.

    rank_YX: mid-ranks of the THUMBNAIL_SIDE x THUMBNAIL_SIDE greys inside the borders, from -1 (darkest) to 1, mean 0.
    contrast: distance between the 1st and the 99th percentile of the greys inside the borders.  border: share of the
    film outside its borders.
    """

    rank_YX: Floats
    contrast: float
    border: float


@dataclass(frozen=True)
class FilmClassifier:
    """Weights, float32 (stored as float16).

    Polarity: polarity_P times the ranks halved to 32 x 32 gives the log odds that bone is bright.  Without an offset,
    the negative of a film scores the opposite and neither polarity is preferred.
    Kind: softmax over `KINDS` of kind_CH @ max(0, hidden_HF @ features + hidden_H) + kind_C, on the features of
    `compute_kind_features`; the hidden weights include the scaling of the features.
    """

    polarity_P: Floats
    hidden_HF: Floats
    hidden_H: Floats
    kind_CH: Floats
    kind_C: Floats


@functools.cache
def load_film_classifier() -> FilmClassifier:
    """Load the weights of the package, once a process."""
    with (
        resources.files("chess_cxr.ingest").joinpath("film_classifier.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as stored,
    ):
        return FilmClassifier(**{name: stored[name].astype(np.float32) for name in stored.files})


def compute_thumbnail(pixels_HW: Floats) -> Thumbnail:
    """Crop the borders of a film in [0, 1] of any size and reduce it to ranks."""
    longest = max(pixels_HW.shape)
    if longest > _SMALL_SIDE:
        size = [max(8, round(side * _SMALL_SIDE / longest)) for side in pixels_HW.shape[::-1]]
        pixels_HW = np.asarray(cv2.resize(pixels_HW, size, interpolation=cv2.INTER_AREA), np.float32)
    small_HW = np.ascontiguousarray(pixels_HW, np.float32)
    top, bottom, left, right = find_content(small_HW)
    content_HW = small_HW[top:bottom, left:right]
    low, high = _find_percentiles(content_HW, 0.01, 0.99)
    grey_YX = cv2.resize(content_HW, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
    return Thumbnail(_compute_ranks(np.asarray(grey_YX, np.float32)), high - low, 1 - content_HW.size / small_HW.size)


def find_content(pixels_HW: Floats) -> tuple[int, int, int, int]:
    """Return top, bottom, left and right of the content inside flat black or white borders; the ends are exclusive.

    A row or column belongs to a border if nine tenths of it hardly vary and are close to the film's darkest or
    brightest grey: shutters, padding, but also plain air beyond the patient.
    """
    low, high = _find_percentiles(pixels_HW, 0.002, 0.998)
    span = high - low
    ends = []
    for lines in (pixels_HW, pixels_HW.T):
        ordered = np.sort(lines, axis=1)
        first, last = (ordered[:, round(share * (lines.shape[1] - 1))] for share in (0.05, 0.95))
        extreme = (last <= low + _EXTREME * span) | (first >= high - _EXTREME * span)
        inside = np.flatnonzero(~(extreme & (last - first <= _FLAT * span)))
        start, stop = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, len(lines))
        ends += [start, stop] if stop - start >= _MIN_CONTENT * len(lines) else [0, len(lines)]
    return ends[0], ends[1], ends[2], ends[3]


def compute_polarity_logit(rank_YX: Floats, polarity_P: Floats) -> float:
    """Return the log odds that bone is bright and air dark."""
    return float(polarity_P @ shrink_ranks(rank_YX, _POLARITY_SIDE).ravel())


def compute_kinds(rank_YX: Floats, classifier: FilmClassifier) -> Floats:
    """Return the probability of each of `KINDS` [C], for equally frequent kinds and either polarity."""
    feature_F = compute_kind_features(rank_YX, classifier.polarity_P)
    hidden_H = np.maximum(classifier.hidden_HF @ feature_F + classifier.hidden_H, 0)
    logit_C = classifier.kind_CH @ hidden_H + classifier.kind_C
    odds_C: Floats = np.exp(logit_C - logit_C.max())
    odds_C /= odds_C.sum()
    return odds_C


def compute_kind_features(rank_YX: Floats, polarity_P: Floats) -> Floats:
    """Compute the F features that tell kinds of film apart.

    They are the directions of edges in 8 x 8 cells (Dalal and Triggs 2005, unsigned, square roots of shares); of
    16 x 16 ranks, the ranks with bone bright by the polarity classifier, their squares and their products with the
    mirrored halves (frontal films are symmetric); two amounts of detail, and the shares of plain black and white.  All
    but the ranks are the same for a film and its negative.
    """
    layout_YX = shrink_ranks(rank_YX, _LAYOUT_SIDE)
    half = _LAYOUT_SIDE // 2
    upright_YX = layout_YX if compute_polarity_logit(rank_YX, polarity_P) >= 0 else -layout_YX
    parts = (
        _compute_edges(rank_YX),
        upright_YX,
        layout_YX**2,
        (layout_YX * layout_YX[:, ::-1])[:, :half],
        (layout_YX * layout_YX[::-1])[:half],
        _compute_texture(rank_YX),
    )
    return np.concatenate([part.ravel() for part in parts], dtype=np.float32)


def shrink_ranks(rank_YX: Floats, side: int) -> Floats:
    """Average ranks over blocks to [side, side]."""
    return np.asarray(cv2.resize(rank_YX, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def _compute_edges(rank_YX: Floats) -> Floats:
    smooth = cv2.GaussianBlur(rank_YX, (0, 0), 0.8)
    across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    length = np.sqrt(across * across + down * down)
    turn = np.arctan2(down, across) % np.pi * (_BINS / np.pi)
    first = turn.astype(np.int64)
    to_next = turn - first
    cell = np.arange(THUMBNAIL_SIDE) * _CELLS // THUMBNAIL_SIDE
    start = (cell[:, None] * _CELLS + cell) * _BINS
    bins = np.concatenate([(start + first % _BINS).ravel(), (start + (first + 1) % _BINS).ravel()])
    weights = np.concatenate([(length * (1 - to_next)).ravel(), (length * to_next).ravel()])
    histogram = np.bincount(bins, weights, _CELLS * _CELLS * _BINS)
    share: Floats = np.sqrt(histogram / max(histogram.sum(), 1e-6)).astype(np.float32)
    return share


def _compute_texture(rank_YX: Floats) -> Floats:
    fine, coarse = (cv2.GaussianBlur(rank_YX, (0, 0), sigma) for sigma in (1.0, 3.0))
    details = [float(np.abs(rank_YX - fine).mean()), float(np.abs(fine - coarse).mean())]
    plain = sorted(float((rank_YX == end).mean()) for end in (rank_YX.min(), rank_YX.max()))
    texture: Floats = np.log(np.array([*details, *plain], np.float32) + np.float32(1e-4))
    return texture


def _find_percentiles(values: Floats, low: float, high: float) -> tuple[float, float]:
    """Return two quantiles on 256 levels; a histogram takes a tenth of the time of a sort."""
    level = (np.clip(values, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    reached = np.bincount(level.ravel(), minlength=256).cumsum()
    first, last = np.searchsorted(reached, [low * level.size, high * level.size])
    return float(first) / 255, float(last) / 255


def _compute_ranks(grey_YX: Floats) -> Floats:
    """Return mid-ranks scaled to [-1, 1]; greys within 1/1024 of the range are ties, so a flat area stays flat."""
    low, high = float(grey_YX.min()), float(grey_YX.max())
    level = np.rint((grey_YX - low) * (1023 / max(high - low, 1e-6))).astype(np.int64)
    counts = np.bincount(level.ravel(), minlength=1024)
    rank = ((2 * counts.cumsum() - counts) / grey_YX.size - 1).astype(np.float32)
    ranks_YX: Floats = rank[level]
    return ranks_YX
