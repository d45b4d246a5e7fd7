"""Lung fields of real and generated films, found by a network that has seen generated ones only."""

import hashlib
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

from chess_cxr.decode.film import decode_film
from chess_cxr.records import UsageError
from chess_cxr.sources.phantom.film import MAX_PIXEL, draw_anatomy, draw_exposure, render_film
from chess_cxr.tasks.nodules.lungs import SIDE, WEIGHTS, LungNet, compute_grey_ranks, find_lung_fields, load_lung_net

SHA256 = "3d02f2d2c66966c90e1f055d98fe99432f6157536643eda6713ba15cd7d006ef"


def compute_dice(found: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


@pytest.fixture(scope="module")
def real_pairs(real_films: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every eighth JSRT film with the lung fields that readers outlined."""
    pairs = []
    for path in sorted((real_films / "jsrt" / "images").iterdir())[::8]:
        organ_HW = cv2.imread(str(real_films / "jsrt" / "masks" / path.name), cv2.IMREAD_UNCHANGED)
        pairs.append((decode_film(path).pixels, (organ_HW & 3) > 0))
    return pairs


def test_the_weights_are_those_that_were_measured_and_small() -> None:
    content = resources.files("chess_cxr.tasks.nodules").joinpath(WEIGHTS).read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256
    assert len(content) <= 300_000


@pytest.mark.real_films
def test_lung_fields_of_real_films_agree_with_readers(real_pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    dice = [compute_dice(find_lung_fields(film), truth) for film, truth in real_pairs]
    assert np.mean(dice) > 0.90 and min(dice) > 0.6


@pytest.mark.real_films
def test_neither_window_nor_gamma_nor_size_changes_them_much(real_pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    film, _ = real_pairs[3]
    field = find_lung_fields(film)
    assert compute_dice(find_lung_fields(0.2 + 0.5 * film**3), field) > 0.99
    small = cv2.resize(film, (200, 256), interpolation=cv2.INTER_AREA)
    found = find_lung_fields(small)
    assert found.shape == (256, 200)
    assert compute_dice(cv2.resize(found.astype(np.uint8), field.shape[::-1]) > 0, field) > 0.97


def test_lung_fields_of_generated_films_are_two_pieces_without_holes() -> None:
    for seed in (901, 902, 903):
        film = render_film(draw_anatomy(seed), draw_exposure(seed), "normal", 160)
        found = find_lung_fields((film.pixels / MAX_PIXEL).astype(np.float32))
        assert compute_dice(found, film.lung_mask) > 0.9
        assert ndimage.label(found, np.ones((3, 3)))[1] <= 2
        assert np.array_equal(ndimage.binary_fill_holes(found), found)


def test_a_blank_film_is_refused() -> None:
    with pytest.raises(UsageError, match="no lung is found"):
        find_lung_fields(np.full((100, 100), 0.5, np.float32))


def test_grey_ranks_equal_those_computed_pixel_by_pixel() -> None:
    film = np.random.default_rng(0).permutation(SIDE * SIDE).reshape(SIDE, SIDE).astype(np.float32)
    film = np.floor(film / 64) / 255  # 256 levels, each 64 times
    rank = compute_grey_ranks(film)
    for row, column in np.random.default_rng(1).integers(0, SIDE, (50, 2)):
        below, equal = (film < film[row, column]).sum(), (film == film[row, column]).sum()
        assert rank[row, column] == pytest.approx((2 * below + equal) / film.size - 1, abs=1e-6)


def test_the_network_keeps_the_size_of_its_input_and_is_loaded_once() -> None:
    assert LungNet()(torch.zeros(2, 1, SIDE, SIDE)).shape == (2, 1, SIDE, SIDE)
    assert load_lung_net() is load_lung_net() and not load_lung_net().training
