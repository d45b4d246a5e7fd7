"""Floors: what a number is worth without an encoder, from metadata, shuffled labels, bare pixels, untrained weights.

A floor stands in every table like an encoder, but is no hypothesis of its own: Holm's correction of the encoders does
not count it.  Floors are for heads on cached features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chess_cxr.benchmarking.draws import LabelDraw
from chess_cxr.benchmarking.suite import FLOORS, Suite

NAMES: Mapping[str, str] = {floor: f"floor: {floor}" for floor in FLOORS}
ABOUT: Mapping[str, str] = {
    "metadata": "age, sex, view, site and size of the picture, without its pixels",
    "shuffled": "features of {reference}, fitted to the labels of other training films",
    "pixels": "bare pixels (pixels:32)",
    "untrained": "an untrained network like that of {reference}",
}
SPECS: Mapping[str, str] = {"pixels": "pixels:32", "untrained": "random"}
_SHUFFLE = 11  # stream of the random generator


def list_floors(suite: Suite) -> tuple[str, ...]:
    """Return the floors of a suite: those that it asks for, without what it compares already or cannot have."""
    specs, like = set(suite.encoders.values()), suite.encoders[suite.reference]
    left_out = set[str]()
    if any(spec.startswith("pixels:") for spec in specs):
        left_out.add("pixels")
    if "random" in specs or like == "random" or like.startswith("pixels:") or "random:" in like:
        left_out.add("untrained")
    return tuple(floor for floor in suite.floors if floor not in left_out)


def compute_metadata(films: pd.DataFrame) -> NDArray[np.float32]:
    """Return what a store tells of its films beside their pixels and labels, [N, D]; each column lies in 0 … 1.

    Age with its decade and whether it is known; sex, view and site, one column a value; height, width and shape.
    """
    age_N = films["age_years"].to_numpy(np.float64)
    decade_N = np.where(np.isnan(age_N), -1, np.clip(np.nan_to_num(age_N), 0, 99) // 10)
    columns = [np.nan_to_num(age_N) / 100, np.isnan(age_N)]
    columns += [decade_N == decade for decade in range(10)]
    for name in ("sex", "view", "site"):
        text_N = films[name].to_numpy(str)
        columns += [text_N == text for text in np.unique(text_N)]
    height_N, width_N = (films[name].to_numpy(np.float64) for name in ("height", "width"))
    columns += [_scale(np.log(height_N)), _scale(np.log(width_N)), _scale(np.log(height_N / width_N))]
    return np.stack(columns, axis=1).astype(np.float32)


def shuffle_labels(label: NDArray[np.generic], films: NDArray[np.intp], seed: int) -> NDArray[np.generic]:
    """Return the labels with those of the films of one draw dealt anew among these films."""
    shuffled = label.copy()
    shuffled[films] = label[np.random.default_rng((seed, _SHUFFLE)).permutation(films)]
    return shuffled


def shuffle_plan(plan: Sequence[LabelDraw]) -> tuple[LabelDraw, ...]:
    """Return the draws of shuffled labels: a subset that is drawn once is shuffled as often as the others.

    A single shuffle can point the right way or the wrong way by chance; the mean over many is the floor.
    """
    seeds = sorted({draw.seed for draw in plan})
    alone = {draw.subset: draw for draw in plan if sum(one.subset == draw.subset for one in plan) == 1}
    more = [replace(draw, draw=place, seed=seed) for draw in alone.values() for place, seed in enumerate(seeds)]
    return (*(draw for draw in plan if draw.subset not in alone), *more)


def _scale(value_N: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = float(value_N.min()), float(value_N.max())
    scaled: NDArray[np.float64] = (value_N - low) / max(high - low, 1e-12)
    return scaled
