"""The configuration of what tasks share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from chess_cxr.records import UsageError

SAME = "same"  # the encoder that the task begins with
STAGE_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)  # after the stem and after stages 1 to 4, as CheSS weighs them


@dataclass(frozen=True)
class PerceptualConfig:
    """How features are compared.

    Args:
        stages: weights of the features after the stem and after stages 1 to 4; 0 leaves one out.
        resolution: contract resizes pictures to the size the network was trained at, film leaves them as they are.
        scale: raw compares features as they are; unit scales the feature vector of each place to length 1 (as LPIPS
            does, Zhang et al. 2018), which makes networks of different gain comparable.
    """

    stages: tuple[float, ...] = STAGE_WEIGHTS
    resolution: Literal["contract", "film"] = "contract"
    scale: Literal["raw", "unit"] = "raw"

    def __post_init__(self) -> None:
        if len(self.stages) != 5 or not all(0 <= w < math.inf for w in self.stages) or not sum(self.stages):
            raise UsageError("a perceptual loss needs 5 stage weights of 0 or more, one of them above 0")
