"""Augmentations, against slow oracles."""

import math

import cv2
import numpy as np
import pytest

from chess_cxr.records import UsageError
from chess_cxr.views import ViewConfig, draw_view, draw_view_pairs, resize_film

FILM = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (120, 96), dtype=np.uint8), (0, 0), 3)
STILL = ViewConfig(size=96)


def draw(config: ViewConfig, seed: int = 0, film: np.ndarray = FILM) -> np.ndarray:
    return draw_view(film, config, np.random.default_rng(seed))


def test_without_changes_a_view_is_the_resized_film() -> None:
    square = cv2.resize(FILM, (96, 96), interpolation=cv2.INTER_LINEAR)
    assert np.abs(draw(STILL).astype(int) - square).max() <= 1


def test_a_view_of_the_films_own_size_is_the_film_itself() -> None:
    film = FILM[:96]
    assert np.array_equal(draw(STILL, film=film), film)


def test_views_depend_on_seed_and_position_alone() -> None:
    config = ViewConfig(size=32, crop_area=(0.3, 1), noise=(1, 5), noise_p=1)
    alone = draw_view_pairs([FILM], [12], 3, config)
    in_company = draw_view_pairs([FILM[:60], FILM], [11, 12], 3, config)
    assert np.array_equal(alone[:, 0], in_company[:, 1])
    assert not np.array_equal(alone[0], alone[1])
    assert not np.array_equal(alone, draw_view_pairs([FILM], [12], 4, config))


@pytest.mark.parametrize("seed", range(5))
def test_a_crop_matches_bilinear_sampling_by_hand(seed: int) -> None:
    config = ViewConfig(size=24, crop_area=(0.3, 0.6), crop_aspect=(0.8, 1.25))
    rng = np.random.default_rng(seed)
    area, aspect = rng.uniform(0.3, 0.6), math.exp(rng.uniform(math.log(0.8), math.log(1.25)))
    width, height = math.sqrt(area * aspect), math.sqrt(area / aspect)
    centre_x, centre_y = rng.uniform(width / 2, 1 - width / 2), rng.uniform(height / 2, 1 - height / 2)
    view = draw(config, seed).astype(float)
    for row, column in ((3, 4), (12, 20), (20, 1)):
        x = (centre_x + ((column + 0.5) / 24 - 0.5) * width) * 96 - 0.5
        y = (centre_y + ((row + 0.5) / 24 - 0.5) * height) * 120 - 0.5
        left, top = math.floor(x), math.floor(y)
        part = FILM[top : top + 2, left : left + 2].astype(float)
        across = part[:, 0] * (1 - (x - left)) + part[:, 1] * (x - left)
        assert abs(across[0] * (1 - (y - top)) + across[1] * (y - top) - view[row, column]) <= 4


def test_rotation_and_shift_bring_in_air_not_copies() -> None:
    white = np.full((64, 64), 255, np.uint8)
    view = draw(ViewConfig(size=64, rotate_deg=20, shift=0.2, affine_p=1), 1, white)
    assert (view == 0).any()
    assert (view == 255).mean() > 0.4


def test_flip_mirrors_left_and_right() -> None:
    film = FILM[:96]
    assert np.array_equal(draw(ViewConfig(size=96, flip_p=1), film=film), film[:, ::-1])


def test_gamma_contrast_and_brightness_are_one_monotone_table() -> None:
    ramp = np.tile(np.arange(96, dtype=np.uint8) * 2, (96, 1))
    tone = ViewConfig(96, gamma=(0.5, 2), gamma_p=1, contrast=(-0.5, 0.5), brightness=(-0.2, 0.2), tone_p=1)
    for seed in range(20):
        row = draw(tone, seed, ramp)[0].astype(int)
        assert (np.diff(row) >= 0).all()
        assert np.array_equal(draw(tone, seed, ramp), np.tile(row, (96, 1)))


def test_contrast_keeps_the_mean_and_brightness_moves_it() -> None:
    film = FILM[:96] // 2 + 64
    stretched = draw(ViewConfig(96, contrast=(0.3, 0.3), tone_p=1), film=film).astype(float)
    assert abs(stretched.mean() - film.mean()) < 1
    assert stretched.std() == pytest.approx(1.3 * film.std(), rel=0.02)
    brighter = draw(ViewConfig(96, brightness=(0.1, 0.1), tone_p=1), film=film).astype(float)
    assert brighter.mean() == pytest.approx(film.mean() + 25.5, abs=0.6)


def test_noise_has_the_spread_that_was_asked_for() -> None:
    grey = np.full((128, 128), 128, np.uint8)
    noisy = draw(ViewConfig(128, noise=(6, 6), noise_p=1), film=grey).astype(float)
    assert noisy.std() == pytest.approx(6, rel=0.05)
    grainy = draw(ViewConfig(128, grain=0.1, noise_p=1), film=grey).astype(float)
    assert grainy.std() == pytest.approx(12.8 / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("name", ["gaussian_blur", "median_blur", "motion_blur", "sharpen"])
def test_filters_do_what_their_names_say(name: str) -> None:
    film = np.random.default_rng(1).integers(60, 190, (96, 96), dtype=np.uint8)
    film = cv2.GaussianBlur(film, (0, 0), 0.8)
    detail = np.abs(np.diff(draw(ViewConfig(96, filters=(name,), filter_p=1), film=film).astype(float))).mean()
    before = np.abs(np.diff(film.astype(float))).mean()
    assert detail > before if name == "sharpen" else detail < before


def test_distortion_bends_the_corner_and_not_the_centre() -> None:
    film = FILM[:96]
    bent = draw(ViewConfig(96, distort=0.3, distort_p=1), 4, film).astype(int)
    assert np.abs(bent - film)[44:52, 44:52].max() <= 4
    assert np.abs(bent - film)[:10, :10].mean() > 1


def test_resizing_averages_when_it_shrinks() -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    assert set(np.unique(resize_film(board, 32))) <= {127, 128}


@pytest.mark.parametrize(("wrong", "named"), [({"filters": ("blurr",)}, "'blurr'"), ({"filter_p": 0.5}, "filter_p")])
def test_filters_that_cannot_be_drawn_are_refused(wrong: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        ViewConfig(**wrong)
