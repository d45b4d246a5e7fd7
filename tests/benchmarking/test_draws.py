"""Label draws: the sizes and numbers asked for, and the published subset in its place."""

import numpy as np
import pytest

from chess_cxr.benchmarking.draws import LabelDraw, plan_draws
from chess_cxr.records import UsageError

PATIENT = np.array([f"p{number // 3:03d}" for number in range(360)])
LABEL = np.random.default_rng(0).integers(0, 3, 120)[np.arange(360) // 3]
TRAIN = np.flatnonzero(np.arange(360) // 3 % 4 > 1)  # 180 films of 60 patients
PUBLISHED = TRAIN[:30]  # of ten patients, unlike the random draws of 30 films of 30 patients


def plan(fractions: tuple[float, ...] = (0.1, 1.0), **options: object) -> list[LabelDraw]:
    settings: dict[str, object] = {"film_counts": (20, 30), "draws": 3}
    return plan_draws(PATIENT, LABEL, TRAIN, fractions, **(settings | options))  # type: ignore[arg-type]


def test_subsets_have_the_films_patients_and_seeds_asked_for() -> None:
    drawn = plan(seed=7)
    patients = [len(np.unique(PATIENT[one.film_index])) for one in drawn]
    found = [(one.subset, one.draw, one.seed, len(one.film_index)) for one in drawn]
    assert list(zip(*zip(*found, strict=True), patients, strict=True)) == [
        *(("10 %", draw, 7 + draw, 18, 6) for draw in range(3)),
        ("100 %", 0, 7, 180, 60),
        *(("20 films", draw, 7 + draw, 20, 20) for draw in range(3)),
        *(("30 films", draw, 7 + draw, 30, 30) for draw in range(3)),
    ]
    assert all(set(one.film_index) <= set(TRAIN) for one in drawn)
    first, second, *_ = drawn
    assert first.film_index.tolist() != second.film_index.tolist()


@pytest.mark.parametrize("film_counts", [(20, 30), (20,)])
def test_a_published_subset_is_the_first_draw_of_its_size_and_of_no_other(film_counts: tuple[int, ...]) -> None:
    changed = []
    for one, other in zip(plan(first_draw=PUBLISHED, film_counts=film_counts), plan(), strict=True):
        assert (one.subset, one.draw, one.seed) == (other.subset, other.draw, other.seed)
        if one.film_index.tolist() != other.film_index.tolist():
            changed.append((one.subset, one.draw, one.film_index.tolist()))
    assert changed == [("30 films", 0, PUBLISHED.tolist())]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "at least one draw"),
        ({"film_counts": (20, 20)}, "same name"),
        ({"fractions": (0.1, 0.1)}, "same name"),
        ({"fractions": (), "film_counts": ()}, "there is no label subset"),
    ],
)
def test_impossible_plans_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(**options)  # type: ignore[arg-type]
