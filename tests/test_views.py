"""Augmentations, against slow oracles."""

import hashlib
import itertools
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.interpolate import BSpline
from torchvision.transforms.functional import resize

from chess_cxr.records import UsageError
from chess_cxr.views import FILTERS, FOLD_FREE, ViewConfig, draw_view, draw_view_pairs, resize_film

FILM = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (120, 96), dtype=np.uint8), (0, 0), 3)
STILL = ViewConfig(size=96)
AVX2 = 11  # in OpenCV's list of what a processor can do


def draw(config: ViewConfig, seed: int = 0, film: np.ndarray = FILM) -> np.ndarray:
    return draw_view(film, config, np.random.default_rng(seed))


MILD = ViewConfig(
    crop_area=(0.5, 1.0), crop_aspect=(0.8, 1.25), rotate_deg=10, zoom=0.1, affine_p=0.8,
    contrast=(-0.15, 0.15), brightness=(-0.08, 0.08), tone_p=0.8,
    filters=("gaussian_blur",), filter_p=0.2, noise=(1.0, 8.0), noise_p=0.2,
)  # fmt: skip
FIRST_PAPER = ViewConfig(
    filters=("median_blur", "motion_blur", "sharpen"), filter_p=0.2, brightness=(-0.1, 0.1), contrast=(-0.2, 0.1),
    tone_p=0.6, noise=(3.2, 7.1), grain=0.1, noise_p=0.2, jitter=0.1, jitter_p=0.3,
    shift=0.0625, zoom=0.2, rotate_deg=10, affine_p=0.2, distort=0.05, distort_p=0.06,
)  # fmt: skip
FIRST_ALL = ViewConfig(
    crop_area=(0.3, 1), crop_aspect=(0.7, 1.4), shift=0.1, zoom=0.2, rotate_deg=20, affine_p=0.5, distort=0.2,
    distort_p=0.6, flip_p=0.5, gamma=(0.5, 2), gamma_p=0.5, contrast=(-0.3, 0.3), brightness=(-0.1, 0.1), tone_p=0.5,
    jitter=0.1, jitter_p=0.5, filters=FILTERS, filter_p=0.7, noise=(1, 8), grain=0.1, noise_p=0.5,
)  # fmt: skip


@pytest.mark.skipif(
    not cv2.__version__.startswith("5.0.") or not cv2.checkHardwareSupport(AVX2),
    reason="other versions of OpenCV, and processors without fused multiply-add, round a warp differently",
)
@pytest.mark.parametrize(
    ("config", "size", "of_film", "of_square"),
    [
        (MILD, 64, "4b400c5c9d6e944e", "f51d85c24bc4c503"),
        (MILD, 150, "97c61eadcd406ba9", "6a52ed507ebb23d4"),
        (FIRST_PAPER, 96, "c617f4c881467e24", "56dc73125302972f"),
        (FIRST_PAPER, 150, "c7b492c9b1432416", "fdc389becc9a49fa"),
        (FIRST_ALL, 64, "169aa10f09c2d8f2", "65e3f3232527548b"),
        (FIRST_ALL, 96, "bba425e2dcefa006", "2ef41fe4071780e3"),
        (FIRST_ALL, 150, "7e1bde487d488f3b", "16d0aa93e748242b"),
    ],
)
def test_views_are_to_the_bit_what_they_were_before_the_newer_options(
    config: ViewConfig, size: int, of_film: str, of_square: str
) -> None:
    for film, known in ((FILM, of_film), (FILM[:96], of_square)):
        digest = hashlib.sha256()
        for seed in range(60):
            digest.update(draw_view(film, replace(config, size=size), np.random.Generator(np.random.Philox(seed))))
        assert digest.hexdigest()[:16] == known


def test_without_changes_a_view_is_the_resized_film() -> None:
    square = cv2.resize(FILM, (96, 96), interpolation=cv2.INTER_LINEAR)
    assert np.abs(draw(STILL).astype(int) - square).max() <= 1


def test_a_view_of_the_films_own_size_is_the_film_itself() -> None:
    film = FILM[:96]
    view = draw(STILL, film=film)
    assert np.array_equal(view, film)
    assert not np.shares_memory(view, film)


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


@pytest.mark.parametrize("size", [32, 48, 64])
@pytest.mark.parametrize("seed", range(3))
def test_an_antialiased_crop_matches_what_pillow_and_torchvision_average(size: int, seed: int) -> None:
    """Within 3 of 255 of Pillow's box, and 6 of torchvision's wider triangle, on average; without: above 10."""
    film = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (480, 384), dtype=np.uint8), (0, 0), 1.2)
    film = cv2.normalize(film, film, 0, 255, cv2.NORM_MINMAX)
    config = ViewConfig(size=size, crop_area=(0.3, 1.0), crop_aspect=(0.8, 1.25))
    rng = np.random.default_rng(seed)
    area, aspect = rng.uniform(0.3, 1.0), math.exp(rng.uniform(math.log(0.8), math.log(1.25)))
    width, height = min(1, math.sqrt(area * aspect)), min(1, math.sqrt(area / aspect))
    left, top = rng.uniform(width / 2, 1 - width / 2) - width / 2, rng.uniform(height / 2, 1 - height / 2) - height / 2
    box = (left * 384, top * 480, (left + width) * 384, (top + height) * 480)
    averaged = np.asarray(Image.fromarray(film).resize((size, size), Image.Resampling.BOX, box), float)
    x, y, right, down = (round(edge) for edge in box)
    crop = torch.from_numpy(film[y:down, x:right][None])
    filtered = resize(crop, [size, size], antialias=True)[0].numpy().astype(float)
    plain, view = (draw(replace(config, antialias=on), seed, film).astype(float) for on in (False, True))
    assert np.abs(view - averaged).mean() < 3 and np.abs(view - filtered).mean() < 6
    assert min(np.abs(plain - averaged).mean(), np.abs(plain - filtered).mean()) > 10


def test_an_antialiased_view_of_a_whole_film_is_the_film_as_encoders_get_it() -> None:
    film = np.random.default_rng(0).integers(0, 256, (384, 384), dtype=np.uint8)
    still = ViewConfig(size=96, antialias=True)
    assert np.array_equal(draw(still, film=film), resize_film(film, 96))
    larger = ViewConfig(size=500, crop_area=(0.5, 1.0), affine_p=0.5, rotate_deg=10)
    for seed in range(5):  # nothing shrinks
        assert np.array_equal(draw(replace(larger, antialias=True), seed, film), draw(larger, seed, film))


@pytest.mark.parametrize("more", [{}, {"rotate_deg": 10, "affine_p": 1.0}, {"elastic": 0.03, "elastic_p": 1.0}])
def test_a_fine_grid_becomes_grey_and_no_false_pattern_where_views_are_antialiased(more: dict[str, float]) -> None:
    at = np.arange(512) % 3 == 0
    grid = np.where(at[None] | at[:, None], 255, 0).astype(np.uint8)
    config = ViewConfig(size=64, crop_area=(0.5, 1.0), **more)
    inner = (slice(12, -12),) * 2
    plain, smooth = (
        np.mean([draw(replace(config, antialias=on), seed, grid)[inner].std() for seed in range(5)])
        for on in (False, True)
    )
    assert plain > 60 and smooth < 15
    assert draw(replace(config, antialias=True), 0, grid)[inner].mean() == pytest.approx(255 * 5 / 9, abs=5)


def test_rotation_and_shift_bring_in_air_not_copies() -> None:
    white = np.full((64, 64), 255, np.uint8)
    view = draw(ViewConfig(size=64, rotate_deg=20, shift=0.2, affine_p=1), 1, white)
    assert (view == 0).any()
    assert (view == 255).mean() > 0.4


def test_with_a_mirror_border_the_film_goes_on_beyond_its_edge() -> None:
    film = FILM[:96]
    config = ViewConfig(size=96, shift=0.25, affine_p=1, border="mirror")
    rng = np.random.default_rng(2)
    rng.uniform(size=4), rng.random(), rng.uniform(size=2)
    right, down = (round(share * 96) for share in rng.uniform(-0.25, 0.25, 2))
    around = np.pad(film, 24, mode="reflect")[24 + down :, 24 + right :][:96, :96].astype(float)
    view = draw(config, 2, film).astype(float)  # up to half a pixel from it
    assert np.abs(view - around).mean() < 1.5
    assert np.abs(draw(replace(config, border="air"), 2, film) - around).mean() > 5


def find_grey(view: np.ndarray, grey: int) -> bool:
    return bool((np.abs(view.astype(int) - grey) <= 2).any())


def test_crops_never_lose_what_is_to_be_kept() -> None:
    film = np.zeros((240, 200), np.uint8)
    corners = dict(zip((60, 120, 180, 240), itertools.product((60, 174), (40, 154)), strict=True))
    for grey, (top, left) in corners.items():  # inside a box of 60 % of the width and half the height
        film[top : top + 6, left : left + 6] = grey
    free = ViewConfig(200, crop_area=(0.1, 1), crop_aspect=(0.6, 1.6), shift=0.3, zoom=0.4, affine_p=0.7, flip_p=0.5)
    kept = replace(free, keep=(0.6, 0.5))
    assert all(find_grey(draw(kept, seed, film), grey) for seed in range(60) for grey in corners)
    assert not all(find_grey(draw(free, seed, film), grey) for seed in range(60) for grey in corners)
    assert len({draw(kept, seed, film).tobytes() for seed in range(60)}) > 50


@pytest.mark.real_films
def test_crops_that_keep_the_lungs_keep_them_on_real_films(real_films: Path) -> None:
    free = ViewConfig(128, crop_area=(0.64, 0.64))
    worst = {}
    for name, config in {"free": free, "kept": replace(free, keep=(0.8, 0.7))}.items():
        shares = []
        for path in sorted((real_films / "jsrt" / "masks").glob("*.png"))[::10]:
            lungs = ((cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) & 3) > 0).astype(np.uint8) * 255
            whole = draw(ViewConfig(128), film=lungs).astype(float).sum()
            shares += [draw(config, seed, lungs).astype(float).sum() * 0.64 / whole for seed in range(8)]
        worst[name] = min(shares)
    assert worst["kept"] > 0.75
    assert worst["free"] < 0.65


@pytest.mark.parametrize("seed", range(4))
def test_elastic_deformation_matches_a_spline_by_hand(seed: int) -> None:
    film, cells, reach = FILM[:96], 3, 0.05
    config = ViewConfig(size=96, elastic=reach, elastic_cells=cells, elastic_p=1)
    view = draw(config, seed, film).astype(float)
    rng = np.random.default_rng(seed)
    rng.uniform(size=4), rng.random(size=3)
    control = rng.uniform(-reach, reach, (2, cells + 3, cells + 3)) * 96
    knots = np.arange(-3, cells + 4)
    moved = 0.0
    for row, column in ((20, 30), (48, 11), (70, 75), (33, 60)):
        at_row, at_column = (row + 0.5) / 96 * cells, (column + 0.5) / 96 * cells
        across, down = (float(BSpline(knots, BSpline(knots, c, 3)(at_row), 3)(at_column)) for c in control)
        x, y = column + across, row + down
        left, top = math.floor(x), math.floor(y)
        part = film[top : top + 2, left : left + 2].astype(float)
        mixed = part[:, 0] * (1 - (x - left)) + part[:, 1] * (x - left)
        assert abs(mixed[0] * (1 - (y - top)) + mixed[1] * (y - top) - view[row, column]) <= 2
        moved = max(moved, math.hypot(across, down))
    assert moved > 1


def test_elastic_deformation_never_folds_the_film() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    config = ViewConfig(256, elastic=FOLD_FREE / 4, elastic_cells=4, elastic_p=1, border="mirror")
    for seed in range(20):
        inside = draw(config, seed, ramp)[64:-64, 64:-64].astype(int)  # where the mirrored border does not reach
        assert np.diff(inside, axis=1).min() >= 0


def test_elastic_deformation_and_distortion_share_one_resampling_with_the_crop() -> None:
    still = ViewConfig(96, crop_area=(0.5, 0.5), rotate_deg=20, affine_p=1)
    film = FILM[:96]
    nearly = replace(still, elastic=1e-6, elastic_p=1)
    assert np.abs(draw(nearly, film=film).astype(int) - draw(still, film=film)).max() <= 1
    bent = replace(nearly, elastic=0.05, distort=0.2, distort_p=1)
    assert np.abs(draw(bent, film=film).astype(int) - draw(still, film=film)).mean() > 1


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


def test_contrast_about_black_leaves_black_black() -> None:
    film = FILM[:96] // 2
    stretched = draw(ViewConfig(96, contrast=(0.3, 0.3), contrast_about="black", tone_p=1), film=film)
    assert np.abs(stretched - film * 1.3).max() <= 0.5 + 1e-3


def test_lift_moves_all_levels_alike() -> None:
    film = FILM[:96] // 2 + 64
    shifts = [draw(ViewConfig(96, lift=0.1, jitter_p=1), seed, film).astype(int) - film for seed in range(20)]
    assert all(np.ptp(shift) <= 1 for shift in shifts)
    assert min(shift.mean() for shift in shifts) < -10
    assert max(shift.mean() for shift in shifts) > 10


def test_a_filter_named_twice_is_drawn_twice_as_often() -> None:
    film = np.random.default_rng(1).integers(60, 190, (24, 24), dtype=np.uint8)
    config = ViewConfig(24, filters=("median_blur", "sharpen", "sharpen"), filter_p=1)
    sharp = sum(draw(config, seed, film).std() > film.std() for seed in range(600))
    assert 360 < sharp < 440


def test_gain_is_one_factor_for_all_pixels() -> None:
    film = FILM[:96]
    factors = set()
    for seed in range(20):
        view = draw(ViewConfig(96, gain=0.1, noise_p=1), seed, film)
        factor = view.astype(float).sum() / film.astype(float).sum()
        assert np.abs(view - np.clip(film * factor, 0, 255)).max() <= 1
        factors.add(round(factor, 2))
    assert 0.9 <= min(factors) < 0.94
    assert 1.06 < max(factors) <= 1.1


def test_noise_grain_and_gain_are_equally_likely() -> None:
    config = ViewConfig(32, noise=(6, 6), grain=0.2, gain=0.1, noise_p=1)
    black, grey = np.zeros((32, 32), np.uint8), np.full((32, 32), 128, np.uint8)
    noisy = {seed for seed in range(600) if draw(config, seed, black).any()}
    uneven = {seed for seed in range(600) if np.ptp(draw(config, seed, grey))}
    assert noisy < uneven
    for count in (len(noisy), len(uneven) - len(noisy), 600 - len(uneven)):
        assert 160 < count < 240


def test_quick_noise_has_the_spread_of_exact_noise() -> None:
    grey = np.full((256, 256), 128, np.uint8)
    for spread in (3.0, 6.0):
        noisy = draw(ViewConfig(256, noise=(spread, spread), noise_p=1, quick_noise=True), film=grey) - 128.0
        assert noisy.std() == pytest.approx(spread, rel=0.02)
        assert abs(noisy.mean()) < 0.05
        assert 0.66 < (np.abs(noisy) <= spread).mean() < 0.78  # 0.68 of a normal distribution, in whole steps
        assert abs(np.corrcoef(noisy[:, :-1].ravel(), noisy[:, 1:].ravel())[0, 1]) < 0.02
    grainy = draw(ViewConfig(256, grain=0.1, noise_p=1, quick_noise=True), film=grey).astype(float)
    assert grainy.std() == pytest.approx(12.8 / math.sqrt(3), rel=0.02)
    assert (grainy.min(), grainy.max()) == (115, 141)


def test_quick_noise_stops_at_black_and_white() -> None:
    for grey in (1, 254):
        noisy = draw(ViewConfig(64, noise=(9, 9), noise_p=1, quick_noise=True), film=np.full((64, 64), grey, np.uint8))
        assert (np.abs(noisy.astype(int) - grey) < 40).all()


def test_quick_noise_is_looked_up_by_the_generators_raw_bytes() -> None:
    grey = np.full((9, 9), 100, np.uint8)
    view = draw_view(
        grey, ViewConfig(9, noise=(5, 5), noise_p=1, quick_noise=True), np.random.Generator(np.random.Philox(3))
    )
    rng = np.random.Generator(np.random.Philox(3))
    rng.uniform(size=4), rng.random(size=7), rng.uniform()  # crop; affine, flip and what follows; spread
    raw = b"".join(int(word).to_bytes(8, "little") for word in rng.bit_generator.random_raw(11))
    order = np.argsort(np.frombuffer(raw, np.uint8)[:81], kind="stable")
    assert (np.diff(view.ravel().astype(int)[order]) >= 0).all()
    assert len(np.unique(view)) > 10


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


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"filters": ("blurr",)}, "'blurr'"),
        ({"filter_p": 0.5}, "filter_p"),
        ({"keep": (0.5, 1.1)}, "keep"),
        ({"elastic": 0.15, "elastic_cells": 4}, "elastic"),
        ({"elastic_cells": 0}, "elastic_cells"),
    ],
)
def test_views_that_cannot_be_drawn_are_refused(wrong: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        ViewConfig(**wrong)
