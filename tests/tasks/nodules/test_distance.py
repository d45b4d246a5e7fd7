"""Made nodules against real ones and those that were learned from."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from chess_cxr.records import UsageError
from chess_cxr.tasks.nodules.distance import Squares, check_groups, cut_squares, judge_nodules
from chess_cxr.tasks.nodules.films import list_sources
from chess_cxr.tasks.result import blank_unknown


@pytest.fixture(scope="module")
def parts() -> list[Squares]:
    """Squares around generated nodules of three sets of patients: held out, learned from, and others."""
    return [cut_squares(list_sources(f"phantom:{count}@128#{seed}")) for count, seed in ((30, 1), (40, 2), (30, 3))]


def rename(squares: Squares, word: str) -> Squares:
    return Squares(squares.pictures, [f"{word} {name}" for name in squares.groups])


@pytest.mark.usefixtures("vgg16_file")
def test_noise_lies_farther_than_nodules_and_copies_are_seen(parts: list[Squares]) -> None:
    real, learned, others = (rename(squares, word) for squares, word in zip(parts, "abc", strict=True))
    noise = Squares([np.random.default_rng(n).random((40, 40)).astype(np.float32) for n in range(30)], real.groups)
    good, bad = (judge_nodules(Squares(made.pictures, real.groups), real, learned) for made in (others, noise))
    copied = judge_nodules(Squares(learned.pictures[:30], real.groups), real, learned)
    assert good.distance and bad.distance and good.memorisation and copied.memorisation
    assert (good.distance.count, good.distance.other_count, good.notes) == (30, 30, ())
    assert (
        bad.distance.frechet.value > 5 * good.distance.frechet.value and bad.distance.kid.mean > good.distance.kid.mean
    )
    assert copied.memorisation.ratio.value < 0.01 < 0.7 < good.memorisation.ratio.value
    lines = good.list_lines()
    assert "vgg16@64" in lines[0] and "30 against 30 films" in lines[0] and "40 training films" in lines[1]
    json.dumps(blank_unknown(asdict(good)), allow_nan=False)


def test_too_few_films_or_patients_are_not_judged_and_the_reason_is_said(parts: list[Squares]) -> None:
    few = Squares(parts[0].pictures[:23], parts[0].groups[:23])
    assert judge_nodules(few, few, parts[1]).list_lines() == [
        "not judged: a distance between made and real nodules takes 24 films of 4 patients on each side; "
        "23 made of 23 are too few"
    ]
    with pytest.raises(UsageError, match="60 real of 3 are too few"):
        check_groups(["a", "b", "c"] * 20, "real")


def test_films_without_a_nodule_give_no_square() -> None:
    squares = cut_squares(list_sources("phantom:3@96#4"))
    assert squares.groups == [f"PHANTOM{n:04d}" for n in range(3)]
    assert all(min(picture.shape) >= 16 and picture.dtype == np.float32 for picture in squares.pictures)
