"""The detector of runs/nodule_gain.py, and how it is scored."""

import numpy as np
import pytest
from nodule_crops import (
    FALSE_POSITIVES,
    SIDE,
    STRIDE,
    build_measures,
    compare_arms,
    detect,
    measure_froc,
    place_grid,
)

from chess_cxr.tasks.nodules.films import NoduleFilm


def draw_film(centre: tuple[int, int] | None) -> NoduleFilm:
    y, x = np.mgrid[:144, :144]
    mask = np.hypot(y - centre[0], x - centre[1]) < 6 if centre else np.zeros((144, 144), bool)
    return NoduleFilm("film", mask.astype(np.float32), mask, np.ones((144, 144), bool), "film", 1.0, "folder")


def score_places(films: list[NoduleFilm], places: list[tuple[int, int, int, int]]) -> np.ndarray:
    """A perfect classifier: minus the distance of a square's middle from the nodule."""
    scores = []
    for number, top, left, _ in places:
        middle = np.array([top, left]) + SIDE // 2
        marked = np.argwhere(films[number].mask_HW)
        scores.append(-float(np.hypot(*(marked.mean(0) - middle))) if len(marked) else -500.0)
    return np.array(scores)


def test_a_perfect_classifier_finds_every_nodule_first_and_once() -> None:
    films = [draw_film((60, 72)), draw_film((96, 84)), draw_film(None)]
    places = place_grid(films)
    assert len(places) == 3 * ((144 - SIDE) // STRIDE + 1) ** 2
    found = detect(films, places, score_places(films, places))
    for marks, sick in zip(found, (True, True, False), strict=True):
        scores = [score for score, _ in marks]
        assert scores == sorted(scores, reverse=True)
        assert [is_hit for _, is_hit in marks] == [sick] + [False] * (len(marks) - 1)
    assert measure_froc(films, found) == 1


def test_froc_is_the_mean_sensitivity_at_the_rates_counted_one_by_one() -> None:
    films = [draw_film((60, 72)), draw_film((60, 72)), draw_film(None), draw_film(None)]
    found = [[(0.9, True), (0.8, False)], [(0.85, False), (0.3, True)], [(0.95, False), (0.5, False)], [(0.7, False)]]
    expected = []
    for rate in FALSE_POSITIVES:
        best = 0.0
        for threshold in [score for marks in found for score, _ in marks]:
            kept = [hit for marks in found for score, hit in marks if score >= threshold]
            if kept.count(False) <= rate * len(films):
                best = max(best, kept.count(True) / 2)
        expected.append(best)
    assert measure_froc(films, found) == pytest.approx(np.mean(expected))
    assert np.isnan(measure_froc(films[2:], found[2:]))


def test_arms_are_compared_with_the_reference_alone() -> None:
    films = [draw_film((60, 72))] * 4 + [draw_film(None)] * 4
    places = place_grid(films)
    label = np.array([1] * 4 + [0] * 4)
    perfect, blind = score_places(films, places), np.zeros(len(places))
    measures = {
        "blind": build_measures(label, np.zeros(8), films, detect(films, places, blind)),
        "perfect": build_measures(label, label.astype(float), films, detect(films, places, perfect)),
    }
    patient = np.arange(8).astype(str)
    told = list(compare_arms(measures, {"auroc": patient, "froc": patient}, "blind", 50))
    assert [(arm, row["measure"]) for arm, row, _ in told] == [
        (arm, name) for arm in ("blind", "perfect") for name in ("auroc", "froc")
    ]
    assert [row.get("gain") for arm, row, _ in told if arm == "blind"] == [None, None]
    auroc, froc = (row for arm, row, _ in told if arm == "perfect")
    assert (auroc["value"], auroc["gain"]) == (1, 0.5) and froc["value"] == 1
    assert told[2][2].startswith("auroc +1.000 [+1.000, +1.000]; gain +0.500 [+0.500, +0.500]")
