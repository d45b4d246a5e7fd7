"""Intervals over the runs of a recipe."""

import math

import numpy as np
import pytest
from scipy import stats

from chess_cxr.evaluation.intervals import DrawReplicates, average_draws, subtract_draws
from chess_cxr.evaluation.seed_spread import average_runs, compute_spread, subtract_runs
from chess_cxr.records import UsageError


def make_runs(
    rng: np.random.Generator, runs: int, seeds: float, patients: float, replicates: int = 400, mean: float = 0.8
) -> list[DrawReplicates]:
    """Runs of one recipe: a deviation each, and one error of the test set that all of them share."""
    shared = rng.normal(0, patients)
    error_R = rng.normal(0, patients, replicates)
    values = mean + shared + rng.normal(0, seeds, runs)
    return [DrawReplicates(np.array([value]), value + error_R[None]) for value in values]


def test_where_seeds_vary_alone_the_interval_is_students() -> None:
    runs = make_runs(np.random.default_rng(0), 4, seeds=0.02, patients=0.0, replicates=200_000)
    values = np.array([run.value_D[0] for run in runs])
    wanted = stats.t.interval(0.95, 3, values.mean(), values.std(ddof=1) / 2)
    found = average_runs(runs)
    assert (found.low, found.high) == pytest.approx(wanted, abs=6e-4)
    assert found.value == pytest.approx(values.mean()) and compute_spread(runs) == pytest.approx(values.std(ddof=1))


def test_one_run_has_the_interval_of_its_draws_and_patients() -> None:
    rng = np.random.default_rng(1)
    one, other = (DrawReplicates(rng.random(3), rng.random((3, 500))) for _ in range(2))
    assert average_runs([one], 5) == average_draws(one, 5)
    found, wanted = subtract_runs([one], [other], 5), subtract_draws(one, other, 5)
    assert found.value == pytest.approx(wanted.value) and (found.low, found.high, found.p) == pytest.approx(
        (wanted.low, wanted.high, wanted.p)
    )
    assert math.isnan(compute_spread([one]))


@pytest.mark.parametrize(("seeds", "patients"), [(0.02, 0.0), (0.02, 0.02), (0.0, 0.02)])
def test_intervals_of_recipes_cover_what_they_say(seeds: float, patients: float) -> None:
    rng = np.random.default_rng(2)
    trials, covered, false = 400, 0, 0
    for trial in range(trials):
        first = make_runs(rng, 3, seeds, patients)
        found = average_runs(first, seed=trial)
        covered += found.low <= 0.8 <= found.high
        # another recipe of the same worth, on the same patients
        shift = first[0].value_DR[0] - first[0].value_D[0]
        base = np.mean([run.value_D[0] for run in first]) if not seeds else 0.8
        second = [DrawReplicates(np.array([v]), v + shift[None]) for v in base + rng.normal(0, seeds, 3)]
        if seeds and not patients:
            false += subtract_runs(first, second, seed=trial).p < 0.05
    assert 0.92 <= covered / trials <= 1.0
    assert false / trials <= 0.08


def test_a_difference_of_recipes_is_paired_by_patient_and_not_by_seed() -> None:
    rng = np.random.default_rng(3)
    error = rng.normal(0, 0.1, 2000)
    mine = [DrawReplicates(np.array([v]), v + error[None]) for v in (0.80, 0.81, 0.82)]
    theirs = [DrawReplicates(np.array([v]), v + error[None]) for v in (0.70, 0.71, 0.72)]
    gap = subtract_runs(mine, theirs)
    assert gap.value == pytest.approx(0.1) and gap.p < 0.02 and gap.high - gap.low < 0.1
    again = subtract_runs(mine, list(reversed(theirs)))
    assert (again.low, again.high) == pytest.approx((gap.low, gap.high), abs=1e-9)
    two = subtract_runs(mine[:2], theirs[:2])
    assert two.high - two.low > 2 * (gap.high - gap.low)  # two runs say little of seeds
    with pytest.raises(UsageError, match="same draws"):
        average_runs([mine[0], DrawReplicates(np.zeros(2), np.zeros((2, 5)))])
