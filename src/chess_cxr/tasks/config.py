"""The configuration of the perceptual loss, which tasks share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from chess_cxr.records import UsageError

SAME = "same"  # the encoder that the task begins with
STAGE_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)  # after the stem and after stages 1 to 4, as in CheSS


@dataclass(frozen=True)
class PerceptualConfig:
    """The comparison of features in a perceptual loss.

    Args:
        stages: weights of the features after the stem and after stages 1 to 4; 0 leaves one out.
        resolution: contract resizes images to the network's training size, film keeps their size.
        scale: raw compares the features themselves; unit scales the feature vector of each place to length 1 (like
            LPIPS, Zhang et al. 2018), to make networks of different gain comparable.
    """

    stages: tuple[float, ...] = STAGE_WEIGHTS
    resolution: Literal["contract", "film"] = "contract"
    scale: Literal["raw", "unit"] = "raw"

    def __post_init__(self) -> None:
        if len(self.stages) != 5 or not all(0 <= w < math.inf for w in self.stages) or not sum(self.stages):
            raise UsageError("a perceptual loss needs 5 stage weights of 0 or more, one of them above 0")
