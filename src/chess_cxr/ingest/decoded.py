"""What a decoded film is, and what is refused as none."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from chess_cxr.records import ChessError

MAX_MEGAPIXELS = 120
MIN_SIDE = 32
MAX_ASPECT = 8
WINDOW_PERCENTILES = (0.5, 99.5)
# A film whose middle 99 % span less than this is blank: two steps of an 8-bit screen.
MIN_RANGE = 2 / 255


class Undecodable(ChessError):
    """A film that cannot be used; its text is a short reason that holds no path and no identifier."""


@dataclass(frozen=True)
class FilmHeader:
    """What the file itself says about the film: the ORIGINAL identifiers, empty or NaN where it says nothing.

    study_date: YYYYMMDD of Study Date (0008,0020).  manufacturer: as the file has it.  burned_in: "YES", "NO" or "" of
    Burned In Annotation (0028,0301).  modality, body_part: (0008,0060), (0018,0015).  frames: (0028,0008).
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
    """pixels: float32 [H, W] in [0, 1], air 0, bone 1.  spacing_mm: between pixel centres, NaN where unknown."""

    pixels: np.ndarray
    spacing_mm: float = math.nan
    header: FilmHeader = field(default_factory=FilmHeader)


def check_size(height: int, width: int, frames: int = 1) -> None:
    """Refuse what is too large, too small or too narrow, before any memory is taken for it."""
    if height * width * max(frames, 1) > MAX_MEGAPIXELS * 1_000_000:
        raise Undecodable(f"more than {MAX_MEGAPIXELS} megapixels")
    if min(height, width) < MIN_SIDE:
        raise Undecodable(f"less than {MIN_SIDE} pixels on a side")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise Undecodable(f"more than {MAX_ASPECT} times as long as wide")


def check_range(pixels: np.ndarray) -> None:
    """Refuse a blank image: one whose middle 99 % of pixels span less than two of 255 grey levels."""
    step_y, step_x = (max(1, side // 512) for side in pixels.shape)
    low, high = np.percentile(pixels[::step_y, ::step_x], WINDOW_PERCENTILES)
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
