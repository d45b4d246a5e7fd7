import numpy as np
import pytest

from chess_cxr.evaluation.neighbours import PRIOR, TEMPERATURE, fit_neighbours
from chess_cxr.records import UsageError

NAMES = ("a", "b", "c")


def make_films(films: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    label = np.arange(films) % 3
    return generator.normal(size=(films, 6)) + 2 * np.eye(6)[label] + 5, label


def vote_slowly(bank: np.ndarray, label_NC: np.ndarray, query: np.ndarray, count: int) -> np.ndarray:
    """One query and one finding at a time."""
    mean = bank.mean(0)
    scores = np.empty((len(query), label_NC.shape[1]))
    for row, one in enumerate(query):
        cosine = [np.dot(one - mean, b - mean) / np.linalg.norm(one - mean) / np.linalg.norm(b - mean) for b in bank]
        for finding in range(label_NC.shape[1]):
            known = [n for n in range(len(bank)) if not np.isnan(label_NC[n, finding])]
            near = sorted(known, key=lambda n: -cosine[n])[:count]
            weight = {n: np.exp(cosine[n] / TEMPERATURE) for n in near}
            share = np.mean([label_NC[n, finding] for n in known])
            votes = sum(weight[n] * label_NC[n, finding] for n in near) + PRIOR * share
            scores[row, finding] = votes / (sum(weight.values()) + PRIOR)
    return scores


def test_classes_are_voted_for_as_in_a_slow_count() -> None:
    feature, label = make_films(60)
    found = fit_neighbours(feature, label, np.arange(60), names=NAMES, counts=[7])
    query = make_films(9, seed=1)[0]
    scores = found.predict_scores(query)
    np.testing.assert_allclose(scores, vote_slowly(feature, np.eye(3)[label], query, 7), rtol=1e-10)
    np.testing.assert_allclose(scores.sum(1), 1)


def test_findings_are_voted_for_by_the_films_that_know_them() -> None:
    feature, label = make_films(60)
    label_NC = np.eye(3)[label]
    label_NC[::4, 0] = np.nan
    label_NC[1::5, 2] = np.nan
    found = fit_neighbours(feature, label_NC, np.arange(60), names=NAMES, counts=[7])
    query = make_films(9, seed=1)[0]
    np.testing.assert_allclose(found.predict_scores(query), vote_slowly(feature, label_NC, query, 7), rtol=1e-10)


def test_a_film_does_not_choose_by_its_own_patient() -> None:
    feature, label = make_films(30)
    twice, patient = np.concatenate([feature, feature]), np.tile(np.arange(30), 2)
    noise = np.random.default_rng(3).permutation(label)
    found = fit_neighbours(twice, np.tile(noise, 2), patient, names=NAMES, counts=[1, 40])
    assert found.count == 40  # its copy would have made one neighbour perfect


def test_more_neighbours_than_films_are_all_films() -> None:
    feature, label = make_films(6)
    assert fit_neighbours(feature, label, np.arange(6), names=NAMES, counts=[100]).count == 6


def test_broken_features_are_refused() -> None:
    feature, label = make_films(6)
    feature[2, 1] = np.nan
    with pytest.raises(UsageError, match="NaN"):
        fit_neighbours(feature, label, np.arange(6), names=NAMES)
