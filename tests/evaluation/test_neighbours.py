import numpy as np
import pytest

from chess_cxr.evaluation.metrics import evaluate_once
from chess_cxr.evaluation.neighbours import (
    COUNTS,
    PRIOR,
    RETRIEVED,
    TEMPERATURE,
    build_precision_statistic,
    fit_neighbours,
    measure_precision,
)
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


def test_val_films_choose_how_many_neighbours_vote() -> None:
    feature, label = make_films(90)
    noise = np.random.default_rng(3).permutation(label)
    far, near = make_films(30, seed=5)[0], feature[:30] + 1e-6
    alone = fit_neighbours(feature, noise, np.arange(90), names=NAMES, counts=[1, 5, 80])
    copies = fit_neighbours(feature, noise, np.arange(90), names=NAMES, counts=[1, 5, 80], val=(near, noise[:30]))
    chance = fit_neighbours(feature, noise, np.arange(90), names=NAMES, counts=[1, 5, 80], val=(far, noise[:30]))
    assert (alone.count, copies.count, chance.count) == (80, 1, 80)
    losses = []
    for count in (1, 5, 80):
        score = vote_slowly(feature, np.eye(3)[noise], near, count)
        losses.append(-np.log(score[np.arange(30), noise[:30]]).mean())
    assert int(np.argmin(losses)) == 0
    assert chance.notes == ("k = 80 lies at the end of its grid, 1 to 80",) and copies.notes == ()
    whole = fit_neighbours(feature, noise, np.arange(90), names=NAMES, counts=[1, 200], val=(far, noise[:30]))
    assert whole.count == 90 and whole.notes == ()  # there is no film more
    unknown = np.full((30, 3), np.nan)
    blind = fit_neighbours(
        feature, np.eye(3)[noise], np.arange(90), names=NAMES, counts=[1, 5, 80], val=(near, unknown)
    )
    assert blind.count == 80  # no val film has a label: the labelled films choose
    assert tuple(sorted(COUNTS)) == COUNTS


def test_precision_is_the_share_of_the_nearest_films_that_have_what_the_query_has() -> None:
    feature, label = make_films(60)
    label_NC = np.eye(3)[label]
    label_NC[::4, 0] = np.nan
    bank = fit_neighbours(feature, label_NC, np.arange(60), names=NAMES)
    query, asked = make_films(12, seed=1)
    asked_NC = np.eye(3)[asked]
    asked_NC[0, 0] = np.nan
    found = measure_precision(bank, query, asked_NC)
    mean = feature.mean(0)
    for row in range(12):
        cosine = [np.dot(query[row] - mean, b - mean) / np.linalg.norm(b - mean) for b in feature]
        for finding in range(3):
            known = [n for n in range(60) if not np.isnan(label_NC[n, finding])]
            near = sorted(known, key=lambda n: -cosine[n])
            for place, count in enumerate(RETRIEVED):
                value = found[row, finding, place]
                if asked_NC[row, finding] == 1:
                    assert value == pytest.approx(np.mean([label_NC[n, finding] for n in near[:count]]))
                else:
                    assert np.isnan(value)
    told = evaluate_once(build_precision_statistic(found, NAMES), 12)
    assert told["precision_at_5/b"] == pytest.approx(np.nanmean(found[:, 1, 1]))
    assert told["precision_at_5"] == pytest.approx(np.mean([np.nanmean(found[:, c, 1]) for c in range(3)]))
    weight = np.random.default_rng(0).integers(0, 3, (1, 12)).astype(float)
    again = build_precision_statistic(found, NAMES)(weight)["precision_at_1/a"][0]
    rows = np.repeat(np.arange(12), weight[0].astype(int))
    assert again == pytest.approx(np.nanmean(found[rows, 0, 0]))


def test_precision_of_classes_is_that_of_the_own_class() -> None:
    feature, label = make_films(60)
    bank = fit_neighbours(feature, label, np.arange(60), names=NAMES)
    query, asked = make_films(6, seed=2)
    found = measure_precision(bank, query, asked)
    assert (~np.isnan(found[..., 0])).sum(1).tolist() == [1] * 6
    assert found[np.arange(6), asked, 0].min() >= 0 and found[np.arange(6), asked, 2].mean() > 1 / 3
