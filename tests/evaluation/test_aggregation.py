import math

import numpy as np
import pytest

from chess_cxr.evaluation.aggregation import aggregate_studies
from chess_cxr.records import UsageError

SCORE = np.array([[0.2, 0.9], [0.6, 0.1], [0.4, 0.5], [0.8, 0.3], [0.1, 0.2]])
STUDY = np.array(["s1", "s2", "s1", "s1", ""])
PATIENT = np.array(["a", "a", "a", "b", "b"])
FINDINGS = np.array([[1, 0], [0, 0], [0, math.nan], [math.nan, math.nan], [0, 1]])


def test_films_of_one_study_of_one_patient_become_one() -> None:
    found = aggregate_studies(SCORE, FINDINGS, STUDY, PATIENT)
    assert found.study_S.tolist() == ["s1", "s2", "s1", ""] and found.patient_S.tolist() == ["a", "a", "b", "b"]
    assert found.film_count_S.tolist() == [2, 1, 1, 1] and found.first_film_S.tolist() == [0, 1, 3, 4]
    assert found.score_SC == pytest.approx(np.array([[0.4, 0.9], [0.6, 0.1], [0.8, 0.3], [0.1, 0.2]]))


def test_the_mean_is_the_mean() -> None:
    found = aggregate_studies(SCORE, FINDINGS, STUDY, PATIENT, "mean")
    assert found.score_SC[0] == pytest.approx([0.3, 0.7]) and found.score_SC[1] == pytest.approx([0.6, 0.1])


def test_a_finding_of_any_film_is_one_of_the_study_and_unknown_only_if_no_film_knows() -> None:
    found = aggregate_studies(SCORE, FINDINGS, STUDY, PATIENT).label
    assert found[0].tolist() == [1.0, 0.0]
    assert np.isnan(found[2]).all()
    assert found[3].tolist() == [0.0, 1.0]


def test_films_of_unknown_study_stay_alone() -> None:
    found = aggregate_studies(SCORE, FINDINGS, np.full(5, ""), np.full(5, "a"))
    assert len(found.score_SC) == 5


def test_the_largest_probabilities_of_classes_sum_to_one_again() -> None:
    probability = np.array([[0.9, 0.1], [0.5, 0.5]])
    found = aggregate_studies(probability, np.array([0, 0]), ["s", "s"], ["a", "a"])
    assert found.score_SC == pytest.approx(np.array([[0.9 / 1.4, 0.5 / 1.4]])) and found.label.tolist() == [0]
    scores = aggregate_studies(probability * 3 - 2, np.array([0, 0]), ["s", "s"], ["a", "a"])
    assert scores.score_SC == pytest.approx(np.array([[0.7, -0.5]]))


def test_random_studies_agree_with_a_loop() -> None:
    generator = np.random.default_rng(0)
    score, label = generator.random((60, 3)), generator.choice([0.0, 1.0, math.nan], (60, 3))
    study, patient = generator.integers(0, 4, 60).astype(str), generator.integers(0, 9, 60)
    for how in ("max", "mean"):
        found = aggregate_studies(score, label, study, patient, how)
        for row in range(len(found.score_SC)):
            films = (study == found.study_S[row]) & (patient == found.patient_S[row])
            assert found.score_SC[row] == pytest.approx(getattr(score[films], how)(axis=0))
            for j in range(3):
                known = label[films, j][~np.isnan(label[films, j])]
                assert found.label[row, j] == pytest.approx(known.max() if len(known) else math.nan, nan_ok=True)


def test_wrong_use_is_refused_without_a_name() -> None:
    with pytest.raises(UsageError, match="1 studies hold films of different classes") as caught:
        aggregate_studies(SCORE, np.array([0, 1, 1, 0, 0]), STUDY, PATIENT)
    assert "s1" not in str(caught.value)
    with pytest.raises(UsageError, match="max or mean"):
        aggregate_studies(SCORE, FINDINGS, STUDY, PATIENT, "median")
    with pytest.raises(UsageError, match="do not fit"):
        aggregate_studies(SCORE, FINDINGS, STUDY[:3], PATIENT)
