"""Draw the labelled subsets of the training films that the heads learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from chess_cxr.evaluation.label_fractions import IndexArray, draw_label_fraction
from chess_cxr.records import UsageError


@dataclass(frozen=True)
class LabelDraw:
    """One labelled training subset: the column of the table it belongs to, its number there, its films, its seed."""

    subset: str
    draw: int
    film_index: IndexArray
    seed: int


def plan_draws(
    patient_N: NDArray[np.generic],
    label: NDArray[np.generic],
    train: IndexArray,
    fractions: Sequence[float],
    film_counts: Sequence[int] = (),
    draws: int = 10,
    seed: int = 0,
    first_draw: IndexArray | None = None,
) -> list[LabelDraw]:
    """Draw every label subset from the films `train`, `draws` times (all of them once: there is only one such draw).

    label: class index [N], or findings [N, L].  fractions: parts of the training patients, with all their films.
    film_counts: further subsets of that many films, one of each patient.  first_draw: a published subset of `train`,
    sorted, which becomes draw 0 of the subset of its size.
    Draw d has the same seed at every size, so the smaller subset lies inside the larger one.
    Raises UsageError where there is no subset, two have the same name, or the films do not suffice.
    """
    if draws < 1:
        raise UsageError("a comparison needs at least one draw")
    counts = film_counts if first_draw is None else sorted({len(first_draw), *film_counts})
    plan = []
    for fraction in fractions:
        for draw in range(1 if fraction >= 1.0 else draws):
            index = draw_label_fraction(patient_N[train], label[train], fraction=fraction, seed=seed + draw)
            plan.append(LabelDraw(f"{100 * fraction:g} %", draw, train[index], seed + draw))
    for films in counts:
        for draw in range(draws):
            index = draw_label_fraction(
                patient_N[train], label[train], films=films, seed=seed + draw, one_film_per_patient=True
            )
            plan.append(LabelDraw(_count_films(films), draw, train[index], seed + draw))
    if not plan:
        raise UsageError("there is no label subset: name fractions or numbers of films")
    if len({(draw.subset, draw.draw) for draw in plan}) < len(plan):
        raise UsageError("two label subsets have the same name")
    if first_draw is None:
        return plan
    place = _count_films(len(first_draw)), 0
    return [replace(draw, film_index=first_draw) if (draw.subset, draw.draw) == place else draw for draw in plan]


def _count_films(films: int) -> str:
    return f"{films} film{'' if films == 1 else 's'}"
