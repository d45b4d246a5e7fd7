"""The decoded film, checks of its size and range, and greys stretched between percentiles."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np

from chess_cxr.records import Undecodable

MAX_MEGAPIXELS = 120
MIN_SIDE = 32
MAX_ASPECT = 8
WINDOW_PERCENTILES = (0.5, 99.5)
SPARE = 1.5
MIN_RANGE = 2 / 255  # a film is blank if its middle 99 % span less than two steps of an 8-bit screen
_EIGHT_BITS = np.arange(256, dtype=np.float32) / np.float32(255)


@dataclass(frozen=True)
class FilmHeader:
    """Description of a film in its own file, with ORIGINAL identifiers; empty or NaN if absent.

    study_date: YYYYMMDD of Study Date (0008,0020).  manufacturer: as written in the file.  burned_in: "YES", "NO" or ""
    of Burned In Annotation (0028,0301).  modality, body_part: (0008,0060), (0018,0015).  frames: (0028,0008).
    """

    patient: str = ""
    study: str = ""
    uid: str = ""
    view: str = ""
    age_years: float = math.nan
    sex: str = ""
    study_date: str = ""
    manufacturer: str = ""
    burned_in: str = ""
    modality: str = ""
    body_part: str = ""
    frames: int = 1


@dataclass(frozen=True)
class DecodedFilm:
    """pixels: float32 [H, W] in [0, 1], air 0, bone 1.  spacing_mm: between pixel centres, NaN if unknown.

    full_height, full_width: size in the file; `pixels` is smaller if the decoder reduced it.
    """

    pixels: np.ndarray
    spacing_mm: float = math.nan
    header: FilmHeader = field(default_factory=FilmHeader)
    full_height: int = 0
    full_width: int = 0

    def __post_init__(self) -> None:
        if not self.full_height:
            object.__setattr__(self, "full_height", self.pixels.shape[0])
            object.__setattr__(self, "full_width", self.pixels.shape[1])


def check_size(height: int, width: int, frames: int = 1) -> None:
    """Raise `Undecodable` for a size that is too large, too small or too narrow; call this before allocating memory."""
    if height * width * max(frames, 1) > MAX_MEGAPIXELS * 1_000_000:
        raise Undecodable(f"more than {MAX_MEGAPIXELS} megapixels")
    if min(height, width) < MIN_SIDE:
        raise Undecodable(f"less than {MIN_SIDE} pixels on a side")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise Undecodable(f"more than {MAX_ASPECT} times as long as wide")


def check_range(pixels: np.ndarray) -> None:
    """Raise `Undecodable` for a blank image: the middle 99 % of its pixels span less than two of 255 grey levels."""
    step_y, step_x = (max(1, side // 128) for side in pixels.shape)
    values = pixels[::step_y, ::step_x].ravel()
    first, last = (round(share / 100 * (values.size - 1)) for share in WINDOW_PERCENTILES)
    low, high = np.partition(values, (first, last))[[first, last]]
    if not high - low >= MIN_RANGE:
        raise Undecodable("blank image")


def find_window(values: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Return the 0.5th and 99.5th percentile of grey `values` that occur `counts` times each."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(counts[order])
    if not len(reached) or not reached[-1]:
        raise Undecodable("blank image")
    at = np.searchsorted(reached, np.array(WINDOW_PERCENTILES) / 100 * reached[-1])
    low, high = values[order][at]
    if not high > low:
        raise Undecodable("blank image")
    return float(low), float(high)


def stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map [low, high] to [0, 1] and clip; float32."""
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1).astype(np.float32)


def count_levels(index_HW: np.ndarray) -> np.ndarray:
    """Count each value of a uint8 or uint16 image, int64; five times as fast as `np.bincount`."""
    levels = 1 << (8 * index_HW.dtype.itemsize)
    return cv2.calcHist([index_HW], [0], None, [levels], [0, levels]).ravel().astype(np.int64)


def scale_8_bits(grey_HW: np.ndarray) -> np.ndarray:
    """Return uint8 as value / 255, float32."""
    return np.asarray(cv2.LUT(grey_HW, _EIGHT_BITS))


def stretch_between_percentiles(raw_HW: np.ndarray) -> np.ndarray:
    """Map any grey image between its 0.5th and 99.5th percentile to [0, 1]; NaN becomes air."""
    if raw_HW.dtype in (np.uint8, np.uint16):
        value_N, counts_N = np.arange(1 << (8 * raw_HW.dtype.itemsize)), count_levels(raw_HW)
        seen = counts_N > 0
        table_N = stretch(value_N, *find_window(value_N[seen], counts_N[seen]))
        return np.asarray(cv2.LUT(raw_HW, table_N))
    known = np.isfinite(raw_HW)
    if not known.any():
        raise Undecodable("blank image")
    low, high = np.percentile(raw_HW[known], WINDOW_PERCENTILES, method="inverted_cdf")
    if not high > low:
        raise Undecodable("blank image")
    pixels = stretch(np.where(known, raw_HW, 0), float(low), float(high))
    pixels[~known] = 0
    return pixels


def choose_halvings(height: int, width: int, at_least: int, most: int) -> int:
    """Return how often, at most `most` times, a decoder may halve a film that will be shrunk to `at_least`.

    The longest side stays at least 1.5 times `at_least`: the averaging that follows hides the noise and edges that the
    wavelets of JPEG 2000 leave.
    """
    halvings = 0
    while at_least > 0 and halvings < most and max(height, width) / 2 ** (halvings + 1) >= SPARE * at_least:
        halvings += 1
    return halvings
