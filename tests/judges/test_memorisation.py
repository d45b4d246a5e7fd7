from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from chess_cxr.judges.memorisation import measure_memorisation, shrink_films
from chess_cxr.records import UsageError


def draw_rows(count: int, seed: int, dimension: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dimension)) * np.arange(1, dimension + 1)


def test_distances_are_those_of_a_loop() -> None:
    generated, heldout, train = draw_rows(7, 0), draw_rows(25, 1), draw_rows(30, 2)
    found = measure_memorisation(generated, heldout, train, closest=7, replicates=2)
    spread = train.std(axis=0)
    slow = {}
    for place, row in enumerate(generated):
        distances = [np.sqrt((((row - other) / spread) ** 2).sum()) for other in train]
        slow[place] = (int(np.argmin(distances)), min(distances))
    nearest = [min(np.sqrt((((row - other) / spread) ** 2).sum()) for other in train) for row in heldout]
    in_order = sorted(distance for _, distance in slow.values())
    assert [pair.distance for pair in found.pairs] == pytest.approx(in_order)
    for pair in found.pairs:
        assert (pair.train, pair.distance) == (slow[pair.generated][0], pytest.approx(slow[pair.generated][1]))
        assert pair.heldout_share == np.mean([value <= pair.distance for value in nearest])
    assert found.distance.value == pytest.approx(np.median([distance for _, distance in slow.values()]))
    assert found.heldout_closest == pytest.approx(min(nearest))
    limit = np.quantile(nearest, 0.05)
    assert found.close.value == np.mean([distance < limit for _, distance in slow.values()])


def test_pixel_distance_is_one_minus_the_correlation() -> None:
    generated, heldout, train = (np.random.default_rng(seed).random((25, 64)) for seed in range(3))
    found = measure_memorisation(generated, heldout, train, "pixels", replicates=2)
    for pair in found.pairs:
        correlations = [np.corrcoef(generated[pair.generated], other)[0, 1] for other in train]
        assert pair.train == int(np.argmax(correlations))
        assert pair.distance == pytest.approx(1 - max(correlations))
    dimmed = measure_memorisation(0.5 * generated + 0.2, heldout, train, "pixels", replicates=2)
    assert dimmed.distance.value == pytest.approx(found.distance.value)


def test_honest_films_are_close_as_often_as_held_out_ones() -> None:
    shares = []
    for seed in range(20):
        found = measure_memorisation(
            draw_rows(200, 3 * seed), draw_rows(200, 3 * seed + 1), draw_rows(150, 3 * seed + 2), replicates=50
        )
        shares.append(found.close.value)
        assert found.ratio.low < 1 < found.ratio.high or abs(found.ratio.value - 1) < 0.1
    assert np.mean(shares) == pytest.approx(0.05, abs=0.015)


def test_a_generator_that_copies_is_told_by_its_share() -> None:
    train = draw_rows(100, 0)
    generated = np.concatenate([draw_rows(40, 1), train[:20] + 0.05 * draw_rows(20, 2)])
    found = measure_memorisation(generated, draw_rows(60, 3), train, closest=20)
    assert found.close.low > 0.2 and found.close_relative.low > 0.2
    assert {(pair.generated, pair.train) for pair in found.pairs} == {(40 + n, n) for n in range(20)}
    assert "60 generated films" in found.as_text() and "60 held-out" in found.as_text()


def test_exact_copies_are_at_no_distance() -> None:
    train = 1e4 + draw_rows(30, 0)
    for space in ("features", "pixels"):
        found = measure_memorisation(train[5:6], draw_rows(20, 1) + 1e4, train, space, replicates=5)
        assert (found.pairs[0].train, found.pairs[0].distance, found.pairs[0].heldout_share) == (5, 0.0, 0.0)


def test_blur_looks_like_copying_and_less_so_against_its_own_spread() -> None:
    train, heldout = draw_rows(100, 0), draw_rows(60, 1)
    blurred = 0.5 * draw_rows(60, 2)  # nearer to the middle of everything
    found = measure_memorisation(blurred, heldout, train)
    assert found.ratio.high < 0.85 and found.close.low > 0.1
    assert found.close_relative.value < 0.4 * found.close.value and found.close_relative.low < 0.05


@pytest.mark.real_films
def test_a_planted_copy_of_a_real_film_is_the_closest_pair(real_films: Path) -> None:
    files = (
        pd.read_csv(real_films / "jsrt" / "cases.csv").query("low_contrast == 0")["file"].sample(160, random_state=0)
    )
    films = [cv2.imread(str(real_films / "jsrt" / file), 0)[::2, ::2] / np.float32(255) for file in files]
    train, heldout, others = films[:80], films[80:130], films[130:]
    noise = np.random.default_rng(0).normal(0, 0.03, train[17].shape)
    copy = np.clip(0.9 * cv2.GaussianBlur(train[17], (0, 0), 1) + noise + 0.05, 0, 1).astype(np.float32)
    small = [shrink_films(part) for part in ([*others, copy], heldout, train)]
    found = measure_memorisation(*small, "pixels", replicates=200)
    first, second = found.pairs[:2]
    assert (first.generated, first.train, first.heldout_share) == (30, 17, 0.0)
    assert first.distance < 0.2 * min(second.distance, found.heldout_closest)
    assert found.close.low <= 0.05  # one copy in 31 is found by the list, not by the share
    assert found.ratio.low < 1 < found.ratio.high


def test_small_films_hold_the_mean_of_what_they_cover() -> None:
    film = np.random.default_rng(0).random((64, 96)).astype(np.float32)
    want = film.reshape(8, 8, 8, 12).mean(axis=(1, 3))
    assert shrink_films([film], 8)[0] == pytest.approx(want.ravel(), rel=1e-5)
    odd = np.random.default_rng(1).random((13, 7))
    fine = np.repeat(np.repeat(odd, 5, axis=0), 5, axis=1)  # 65 x 35: 5 divides both
    assert shrink_films([odd], 5)[0] == pytest.approx(fine.reshape(5, 13, 5, 7).mean(axis=(1, 3)).ravel(), rel=1e-6)
    assert shrink_films([odd, film], 5).shape == (2, 25)


def test_patients_are_drawn_whole_and_never_from_training() -> None:
    generated, heldout, train = draw_rows(60, 0), draw_rows(60, 1), draw_rows(50, 2)
    repeated = np.repeat(heldout[:12], 5, axis=0)
    groups = np.repeat(np.arange(12), 5)
    wide = measure_memorisation(generated, repeated, train, group_M=groups).heldout_distance
    narrow = measure_memorisation(generated, repeated, train).heldout_distance
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)
    with pytest.raises(UsageError, match="among the training patients"):
        measure_memorisation(generated, repeated, train, group_M=groups, group_T=np.arange(11, 61))


def test_wrong_use_is_refused() -> None:
    rows = draw_rows(30, 0)
    with pytest.raises(UsageError, match="of one kind"):
        measure_memorisation(rows, rows, rows[:, :5])
    with pytest.raises(UsageError, match="20 held-out"):
        measure_memorisation(rows, rows[:19], rows)
    with pytest.raises(UsageError, match="NaN"):
        measure_memorisation(rows, rows, np.full_like(rows, np.nan))
    with pytest.raises(UsageError, match="one grey level"):
        measure_memorisation(np.ones((3, 12)), rows, rows, "pixels")
    with pytest.raises(UsageError, match="do not fit 30 held-out"):
        measure_memorisation(rows, rows, rows, group_M=["a"])
