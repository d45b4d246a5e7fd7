"""Signals of a batch against slow manual oracles."""

import math
from itertools import combinations
from statistics import fmean, stdev

import pytest
import torch

from chess_cxr.methods.signals import FILMS, measure_pairs, read_signals


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def scale(vector: list[float]) -> list[float]:
    return [value / math.hypot(*vector) for value in vector]


def test_the_signals_equal_the_sums_written_out() -> None:
    generator = torch.Generator().manual_seed(1)
    views = torch.randn(6, 4, generator=generator)
    pair = torch.stack([views, views + 0.5 * torch.randn(6, 4, generator=generator)]) * 3
    first, second = ([scale(vector) for vector in view.tolist()] for view in pair)
    numbers = range(6)
    apart = [math.dist(first[i], first[j]) for i, j in combinations(numbers, 2)]
    expected = {
        "positive_similarity": fmean(dot(first[i], second[i]) for i in numbers),
        "negative_similarity": fmean(dot(first[i], second[j]) for i in numbers for j in numbers if i != j),
        "embedding_std": fmean(stdev(column) for column in zip(*first, strict=True)) * 2,
        "alignment": fmean(math.dist(first[i], second[i]) ** 2 for i in numbers),
        "uniformity": math.log(fmean(math.exp(-2 * distance**2) for distance in apart)),
    }
    assert read_signals(measure_pairs(*pair)) == pytest.approx(expected, rel=1e-4)


def test_collapse_and_health_look_as_the_docstring_says() -> None:
    one = torch.ones(200, 16)
    collapsed = read_signals(measure_pairs(one, one))
    spread = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    healthy = read_signals(measure_pairs(spread, spread))
    for name, value in {"positive_similarity": 1, "negative_similarity": 1, "embedding_std": 0}.items():
        assert collapsed[name] == pytest.approx(value, abs=1e-3)
    assert collapsed["uniformity"] == pytest.approx(0, abs=1e-3)
    assert healthy["embedding_std"] == pytest.approx(1, abs=0.05)
    assert -4.1 < healthy["uniformity"] < -3.8
    assert healthy["alignment"] == pytest.approx(0, abs=1e-5)


def test_no_more_than_the_first_films_are_looked_at_and_no_gradient_is_kept() -> None:
    views = torch.randn(2, FILMS + 50, 8, generator=torch.Generator().manual_seed(2), requires_grad=True)
    measured = measure_pairs(*views)
    assert read_signals(measured) == read_signals(measure_pairs(*views[:, :FILMS]))
    assert not any(value.requires_grad for value in measured.values())


def test_a_single_film_tells_of_its_own_views_only() -> None:
    measured = read_signals(measure_pairs(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])))
    assert measured == pytest.approx({"positive_similarity": 0.6, "alignment": 0.8})
