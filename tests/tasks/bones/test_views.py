"""Views of a pair: one geometry and one curve for both films."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from chess_cxr.tasks.bones.pairs import draw_phantom_pair
from chess_cxr.tasks.bones.views import PairViews, TrainingPair, draw_pair, draw_pair_batch

VIEWS = PairViews(48)
STILL = PairViews(48, flip=0, rotate_deg=0, scale=0, gamma=0, contrast=0, brightness=0)


def draw_films(seed: int, height: int = 80, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    pair = draw_phantom_pair(seed, seed, 80)
    return pair.film_HW[:height, :width], pair.bone_free_HW[:height, :width]


def generate(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_both_films_of_a_pair_are_varied_alike() -> None:
    film, bone_free = draw_films(1)
    for seed in range(20):
        one, same = draw_pair(film, film.copy(), VIEWS, generate(seed))
        assert np.array_equal(one, same)
        varied, target = draw_pair(film, bone_free, VIEWS, generate(seed))
        assert np.array_equal(varied, one)
        # where there is no bone both stay equal; where there is, it stays bright
        assert (varied - target).min() >= (film - bone_free).min() * 1.5 - 1e-6
        for picture in (varied, target):
            assert picture.shape == (48, 48) and picture.dtype == np.float32
            assert picture.min() >= 0 and picture.max() <= 1


def test_bone_is_strengthened_and_all_else_stays() -> None:
    film, bone_free = draw_films(1, 48, 48)
    film, bone_free = 0.5 * film, 0.5 * bone_free  # nothing reaches white
    shares = []
    for seed in range(20):
        strong, target = draw_pair(film, bone_free, replace(STILL, strengthen_bone=2.0), generate(seed))
        np.testing.assert_allclose(target, bone_free, atol=1e-6)
        shares.append((strong - target).mean() / (film - bone_free).mean())
        np.testing.assert_allclose(strong - target, shares[-1] * (film - bone_free), atol=1e-5)
    assert 1 <= min(shares) < 1.2 and 1.8 < max(shares) <= 2


def test_views_differ() -> None:
    film, bone_free = draw_films(1)
    drawn = [draw_pair(film, bone_free, VIEWS, generate(seed))[0] for seed in range(6)]
    assert all(np.abs(a - b).mean() > 0.01 for n, a in enumerate(drawn) for b in drawn[:n])


def test_without_variation_a_view_is_a_square_of_the_film() -> None:
    film, bone_free = draw_films(1, 48, 48)
    for seed in range(3):
        cut, target = draw_pair(film, bone_free, STILL, generate(seed))
        np.testing.assert_allclose(cut, film, atol=1e-6)
        np.testing.assert_allclose(target, bone_free, atol=1e-6)


def test_a_flip_changes_left_and_right() -> None:
    film, bone_free = draw_films(1, 48, 48)
    cut, target = draw_pair(film, bone_free, replace(STILL, flip=1.0), generate(0))
    np.testing.assert_allclose(cut, film[:, ::-1], atol=1e-6)
    np.testing.assert_allclose(target, bone_free[:, ::-1], atol=1e-6)


def test_squares_are_cut_from_everywhere_but_not_beyond_the_film() -> None:
    y, x = np.mgrid[:80, :64].astype(np.float32) / 100
    corners = np.array(
        [[draw_pair(it, it, STILL, generate(seed))[0][0, 0] * 100 for it in (y, x)] for seed in range(200)]
    )
    for axis, slack in ((0, 80 - 48), (1, 64 - 48)):
        assert -0.01 <= corners[:, axis].min() < 0.1 * slack and 0.9 * slack < corners[:, axis].max() <= slack + 0.01


@pytest.mark.parametrize("shape", [(20, 20), (1, 60), (100, 7)], ids=str)
def test_a_film_smaller_than_the_square_is_continued_at_its_edge(shape: tuple[int, int]) -> None:
    film = generate(0).random(shape, np.float32)
    cut, target = draw_pair(film, 0.5 * film, STILL, generate(0))
    assert cut.shape == (48, 48) and film.min() <= cut.min() and cut.max() <= film.max()
    np.testing.assert_allclose(target, 0.5 * cut, atol=1e-6)


def test_a_curve_leaves_the_order_of_grey_levels() -> None:
    ramp = np.linspace(0, 1, 48 * 48, dtype=np.float32).reshape(48, 48)
    curved = replace(VIEWS, flip=0, rotate_deg=0, scale=0)
    seen = []
    for seed in range(20):
        cut, _ = draw_pair(ramp, ramp, curved, generate(seed))
        assert (np.diff(cut.ravel()) >= -1e-6).all()
        seen.append(float(cut[24, 0]))
    assert np.ptp(seen) > 0.05


def test_a_batch_is_a_function_of_seed_and_position_alone() -> None:
    pairs = [TrainingPair(*draw_films(seed), 2.0) for seed in (1, 2, 1)]
    batch = draw_pair_batch(pairs, [10, 11, 12], 7, VIEWS)
    assert batch.film_B1HW.shape == batch.bone_free_B1HW.shape == (3, 1, 48, 48)
    assert batch.film_B1HW.dtype == torch.float32
    alone = draw_pair_batch(pairs[1:2], [11], 7, VIEWS)
    assert torch.equal(alone.film_B1HW[0], batch.film_B1HW[1])
    assert torch.equal(alone.bone_free_B1HW[0], batch.bone_free_B1HW[1])
    assert not torch.equal(batch.film_B1HW[0], batch.film_B1HW[2])
    assert not torch.equal(draw_pair_batch(pairs[1:2], [11], 8, VIEWS).film_B1HW, alone.film_B1HW)
