from dataclasses import replace

import numpy as np

from chess_cxr.benchmarking.errors import find_worst_errors, select_largest_subset
from chess_cxr.benchmarking.predictions import BenchmarkResults, EvaluatedFilms, PredictionSet, TaskFilms


def make_results(label: np.ndarray, kind: str, *draws: list[list[float]]) -> BenchmarkResults:
    names = ("normal", "ill", "worse")[: len(draws[0][0])]
    uid = np.array([f"uid{place}" for place in range(len(label))])
    films = EvaluatedFilms(uid, uid, label, {})
    task = TaskFilms("t", "d", kind, names, films, films, 9)  # type: ignore[arg-type]
    sets = tuple(
        PredictionSet(
            "t", "ours", "linear", "100 %", 1.0, draw, 0, 9, 9, np.empty((0, 2)), np.array(scores, np.float32)
        )
        for draw, scores in enumerate(draws)
    )
    return BenchmarkResults({"t": task}, sets, (), {"ours": "", "other": ""}, "ours")


def test_wrong_films_come_by_the_probability_of_the_wrong_class_and_right_ones_never() -> None:
    results = make_results(np.array([0, 0, 1, 1]), "multiclass", [[0.9, 0.1], [0.3, 0.7], [0.95, 0.05], [0.2, 0.8]])
    worst = find_worst_errors(results, "t")
    assert [(one.uid, one.place, one.name, one.truth) for one in worst] == [
        ("uid2", 2, "normal", "ill"),
        ("uid1", 1, "ill", "normal"),
    ]
    assert np.isclose(worst[0].probability, 0.95)
    assert len(find_worst_errors(results, "t", 1)) == 1


def test_the_mean_over_draws_decides() -> None:
    results = make_results(np.array([0, 1]), "multiclass", [[0.4, 0.6], [0.9, 0.1]], [[0.8, 0.2], [0.7, 0.3]])
    worst = find_worst_errors(results, "t")
    assert [one.uid for one in worst] == ["uid1"] and np.isclose(worst[0].probability, 0.8)


def test_a_film_appears_once_with_its_worst_finding_and_unknown_ones_do_not_count() -> None:
    label = np.array([[1.0, 0.0], [np.nan, 0.0], [1.0, 1.0]])
    results = make_results(label, "multilabel", [[0.4, 0.95], [0.99, 0.4], [0.1, 0.6]])
    worst = find_worst_errors(results, "t")
    assert [(one.uid, one.name, one.truth) for one in worst] == [
        ("uid0", "ill", "absent"),
        ("uid2", "normal", "present"),
    ]


def test_only_the_reference_with_the_most_labels_is_looked_at() -> None:
    results = make_results(np.array([0, 1]), "multiclass", [[0.4, 0.6], [0.1, 0.9]])
    large = results.sets[0]
    small = replace(large, subset="1 %", n_train_films=1, test_MC=1 - large.test_MC)
    other = replace(large, encoder="other", subset="200 %", n_train_films=99, test_MC=1 - large.test_MC)
    more = replace(results, sets=(small, large, other))
    assert select_largest_subset(more, "t", "ours") == (large,)
    assert [one.uid for one in find_worst_errors(more, "t")] == ["uid0"]
    assert find_worst_errors(replace(results, sets=()), "t") == ()
