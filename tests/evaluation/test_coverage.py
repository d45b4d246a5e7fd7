"""How often intervals hold what they are meant to hold, over simulated data sets whose truth is known."""

import math

import numpy as np
from scipy import stats

from chess_cxr.evaluation.delong import estimate_area_interval
from chess_cxr.evaluation.intervals import (
    bootstrap_draws_by_patient,
    interval_of_rate,
    paired_bootstrap_draws_by_patient,
)
from chess_cxr.evaluation.metrics import build_binary_statistic


def draw_clustered_films(trial: int, patients: int, gain: float = 1.5) -> tuple[np.ndarray, ...]:
    """One to four films a patient, whose labels and scores go together; the true AUROC of two scores is the same.

    A score is gain * label + effect of the patient (variance 1, half of it shared by both scores) + noise (0.25).
    """
    generator = np.random.default_rng((trial, patients))
    patient = np.repeat(np.arange(patients), generator.integers(1, 5, patients))
    label = (generator.random(patients) < 0.4)[patient] ^ (generator.random(len(patient)) < 0.1)
    shared = generator.normal(0, math.sqrt(0.5), patients)
    own = shared + generator.normal(0, math.sqrt(0.5), (2, patients))
    score = gain * label + own[:, patient] + generator.normal(0, 0.5, (2, len(patient)))
    return patient, label.astype(float), score


TRIALS = 200
# 95 % of 200 trials is 190; three standard deviations are 9.2.  benchmarks/interval_coverage.py runs more.
EXPECTED = range(181, 200)


def test_intervals_of_an_area_cover_the_truth_as_often_as_they_say_when_films_come_in_clusters() -> None:
    truth = stats.norm.cdf(1.5 / math.sqrt(2 * 1.25))
    bootstrap = delong = independent = 0
    for trial in range(TRIALS):
        patient, label, score = draw_clustered_films(trial, patients=120)
        statistic = [build_binary_statistic(label, score[0])]
        by_patient = bootstrap_draws_by_patient(patient, statistic, 300, seed=trial)["auroc"]
        by_film = bootstrap_draws_by_patient(np.arange(len(label)), statistic, 300, seed=trial)["auroc"]
        by_formula = estimate_area_interval(label, score[0], patient)
        bootstrap += by_patient.low <= truth <= by_patient.high
        delong += by_formula.low <= truth <= by_formula.high
        independent += by_film.low <= truth <= by_film.high
    assert bootstrap in EXPECTED and delong in EXPECTED
    assert independent < EXPECTED[0]


def test_the_interval_and_p_of_a_paired_difference_are_right_as_often_as_they_say() -> None:
    covered = significant = 0
    for trial in range(TRIALS):
        patient, label, score = draw_clustered_films(trial, patients=120)
        first, second = ([build_binary_statistic(label, one)] for one in score)
        found = paired_bootstrap_draws_by_patient(patient, first, second, 300, seed=trial)["auroc"]
        covered += found.low <= 0.0 <= found.high
        significant += found.p < 0.05
    assert covered in EXPECTED and TRIALS - significant in EXPECTED


def test_the_interval_of_a_rate_covers_the_truth_where_films_come_in_clusters() -> None:
    covered = 0
    for trial in range(TRIALS):
        generator = np.random.default_rng(trial)
        patient = np.repeat(np.arange(40), generator.integers(1, 5, 40))
        # A patient's own rate is Beta(8, 2) distributed: 0.8 on average.
        hit = generator.random(len(patient)) < generator.beta(8, 2, 40)[patient]
        found = interval_of_rate(hit, patient)
        covered += found.low <= 0.8 <= found.high
    assert covered in EXPECTED
