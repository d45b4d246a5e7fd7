"""The pixel contract: how a film becomes a network's input, and the fixed film that checks it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

import cv2
import numpy as np

from chess_cxr.records import ChessError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

Polarity = Literal["bone_bright", "bone_dark"]
Interpolation = Literal["area", "bilinear"]
Fit = Literal["squash", "pad", "crop"]

SIZES = range(16, 2049)


@dataclass(frozen=True)
class PixelContract:
    """How a network expects its pixels; raises UsageError for an invalid value.

    size: side of the square input, 16 … 2048 pixels.  mean, std: one value per channel, on the [0, 1] scale.
    percentiles: clip the film to this window of its own grey levels, in percent, and stretch it to [0, 1];
    None keeps the decoded grey levels.  polarity: "bone_bright", or "bone_dark" to invert first.
    interpolation: "area" averages when shrinking (and is bilinear when enlarging), "bilinear" samples.
    fit: "squash" ignores the aspect ratio, "pad" adds air to the short side, "crop" keeps the central square.
    channels: how often the grey film is repeated (3 for ImageNet networks).
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    percentiles: tuple[float, float] | None = None
    polarity: Polarity = "bone_bright"
    interpolation: Interpolation = "area"
    fit: Fit = "squash"
    channels: int = 1

    def __post_init__(self) -> None:
        problem = _find_problem(self)
        if problem:
            raise UsageError(f"pixel contract: {problem}")

    def prepare(self, pixels_HW: np.ndarray) -> Tensor:
        """Return what `prepare_array` does, as a tensor."""
        import torch  # here, as who runs ONNX files has no need of it

        return torch.from_numpy(self.prepare_array(pixels_HW))

    def prepare_array(self, pixels_HW: np.ndarray) -> np.ndarray:
        """Turn one film, float [H, W] in [0, 1] with bone bright, into the network's input.

        Returns float32 [channels, size, size].  A blank film gives a constant input, never NaN.
        Raises ChessError for any other array.
        """
        film_HW = _check_film(pixels_HW)
        if self.polarity == "bone_dark":
            film_HW = 1 - film_HW
        if self.percentiles is not None:
            film_HW = _stretch(film_HW, self.percentiles)
        film_SS = self._resize(film_HW)
        mean_C11, std_C11 = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        prepared_CSS: np.ndarray = (film_SS[None] - mean_C11) / std_C11
        return prepared_CSS

    def _resize(self, film_HW: np.ndarray) -> np.ndarray:
        height, width = film_HW.shape
        short, long = min(height, width), max(height, width)
        if self.fit == "crop":
            top, left = (height - short) // 2, (width - short) // 2
            film_HW = film_HW[top : top + short, left : left + short]
        elif self.fit == "pad":
            top, left = (long - height) // 2, (long - width) // 2
            margins = (top, long - height - top), (left, long - width - left)
            film_HW = np.pad(film_HW, margins, constant_values=0.0 if self.polarity == "bone_bright" else 1.0)
        averages = self.interpolation == "area" and min(film_HW.shape) >= self.size
        method = cv2.INTER_AREA if averages else cv2.INTER_LINEAR
        film_SS: np.ndarray = cv2.resize(np.ascontiguousarray(film_HW), (self.size, self.size), interpolation=method)
        return film_SS


def parse_contract(block: object) -> PixelContract:
    """Build a contract from JSON values; raises UsageError that names the first invalid one."""
    names = {item.name for item in fields(PixelContract)}
    if not isinstance(block, Mapping) or not {"size", "mean", "std"} <= set(block) <= names:
        raise UsageError(f"pixel contract: needs size, mean and std, and knows only {', '.join(sorted(names))}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in block.items()}
    return PixelContract(**values)


def compute_contract_sha256(contract: PixelContract) -> str:
    """Return the SHA-256 of a contract's values as JSON with sorted keys and no spaces."""
    return hashlib.sha256(json.dumps(asdict(contract), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def draw_golden_film(size: int) -> np.ndarray:
    """Draw the fixed film whose embedding travels with the weights: float32 [5/4 size, 9/8 size] in [0, 1].

    A closed formula without random numbers: waves from coarse to near the pixel grid, blobs and one small bright
    spot, so that size, fit, interpolation, window, polarity, mean and std all change the embedding.
    """
    rows, columns = size * 5 // 4, size * 9 // 8
    y_H1, x_1W = np.arange(rows)[:, None] / rows, np.arange(columns)[None] / columns
    film_HW = 0.42 + 0.14 * np.sin(2 * np.pi * (3 * x_1W + y_H1)) + 0.07 * np.sin(2 * np.pi * (7 * y_H1 - 2 * x_1W))
    film_HW += 0.12 * np.sin(2 * np.pi * 0.31 * np.arange(columns))[None] * y_H1
    for y, x, radius, height in ((0.3, 0.25, 0.12, -0.15), (0.6, 0.55, 0.15, 0.12), (0.1, 0.8, 0.03, 0.5)):
        film_HW += height * np.exp(-((y_H1 - y) ** 2 + (x_1W - x) ** 2) / radius**2)
    return np.clip(film_HW, 0, 1).astype(np.float32)


def _check_film(pixels_HW: np.ndarray) -> np.ndarray:
    if not isinstance(pixels_HW, np.ndarray) or pixels_HW.ndim != 2 or 0 in pixels_HW.shape:
        raise ChessError(f"a film is an array [H, W], not {getattr(pixels_HW, 'shape', type(pixels_HW).__name__)}")
    if not np.issubdtype(pixels_HW.dtype, np.floating):
        raise ChessError(f"a film is float in [0, 1], not {pixels_HW.dtype}: divide by its full scale first")
    low, high = float(pixels_HW.min()), float(pixels_HW.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ChessError(f"a film lies in [0, 1], this one in [{low:g}, {high:g}]")
    return pixels_HW.astype(np.float32, copy=False)


def _stretch(film_HW: np.ndarray, percentiles: tuple[float, float]) -> np.ndarray:
    """Clip to the window and stretch it to [0, 1]; a film of one grey level becomes 0."""
    low, high = (np.float32(value) for value in np.percentile(film_HW, percentiles))
    if high <= low:
        return np.zeros_like(film_HW)
    stretched: np.ndarray = (np.clip(film_HW, low, high) - low) / (high - low)
    return stretched


def _find_problem(contract: PixelContract) -> str:
    """Name the first invalid value, "" if there is none.  Checks types too: values may come from a foreign file."""
    if type(contract.size) is not int or contract.size not in SIZES:
        return f"size must be a whole number from {SIZES.start} to {SIZES.stop - 1}"
    if type(contract.channels) is not int or contract.channels not in (1, 3):
        return "channels must be 1 or 3"
    for name, values, low in (("mean", contract.mean, -100.0), ("std", contract.std, 1e-4)):
        if not _are_numbers(values, contract.channels, low, 100.0):
            return f"{name} must be a tuple of {contract.channels} numbers from {low:g} to 100"
    window = contract.percentiles
    if window is not None and not (_are_numbers(window, 2, 0.0, 100.0) and window[0] < window[1]):
        return "percentiles must be two rising numbers from 0 to 100, or None"
    for name, choices in (("polarity", Polarity), ("interpolation", Interpolation), ("fit", Fit)):
        if getattr(contract, name) not in get_args(choices):
            return f"{name} must be one of {', '.join(get_args(choices))}"
    return ""


def _are_numbers(values: object, count: int, low: float, high: float) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) == count
        and all(type(value) in (int, float) and low <= value <= high for value in values)
    )
