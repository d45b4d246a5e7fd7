"""Masks that are asked for, and refused."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from chess_cxr.records import UsageError
from chess_cxr.tasks.nodules.masks import (
    build_requests,
    check_request_mask,
    draw_nodule_mask,
    draw_random_request,
    read_request_mask,
)

SHAPE = (90, 120)


def draw_lungs() -> np.ndarray:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    left, right = (((x - c) / 22) ** 2 + ((y - 45) / 38) ** 2 < 1 for c in (32, 88))
    return left | right


def draw_disc(column: float, row: float, radius: float) -> np.ndarray:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return np.hypot(x - column, y - row) <= radius


@pytest.mark.parametrize("irregularity", [0.0, 0.12, 0.25])
@pytest.mark.parametrize("diameter", [0.5, 3, 11.3, 40])
def test_an_outline_has_the_area_of_the_disc_and_is_one_piece(diameter: float, irregularity: float) -> None:
    for seed in range(5):
        mask = draw_nodule_mask(SHAPE, (60.3, 44.8), diameter, np.random.default_rng(seed), irregularity)
        assert mask.sum() == max(1, round(math.pi * diameter**2 / 4))
        assert ndimage.label(mask, np.ones((3, 3)))[1] == 1
        assert np.array_equal(ndimage.binary_fill_holes(mask), mask)
        row, column = ndimage.center_of_mass(mask)
        assert math.dist((column, row), (60.3, 44.8)) < 1 + 0.5 * irregularity * diameter


def test_a_regular_outline_is_a_disc_and_an_irregular_one_is_not() -> None:
    rng = np.random.default_rng(0)
    disc = draw_nodule_mask(SHAPE, (60, 45), 40, rng, 0)
    assert np.array_equal(disc, draw_disc(60, 45, 20.0)) or (disc ^ draw_disc(60, 45, 20.0)).sum() <= 8
    lobed = draw_nodule_mask(SHAPE, (60, 45), 40, rng, 0.2)
    assert (lobed ^ disc).sum() > 60


@pytest.mark.parametrize(
    ("centre", "diameter", "words"),
    [
        ((200, 45), 10, "outside the film"),
        ((60, -3), 10, "outside the film"),
        ((2, 45), 10, "over the edge"),
        ((60, 45), 200, "larger than the film"),
        ((60, 45), 0, "above 0"),
        ((math.nan, 45), 10, "outside the film"),
    ],
)
def test_an_outline_that_does_not_fit_the_film_is_refused(
    centre: tuple[float, float], diameter: float, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        draw_nodule_mask(SHAPE, centre, diameter, np.random.default_rng(0))


def test_random_requests_lie_inside_the_lung_and_keep_their_sizes() -> None:
    lung = draw_lungs()
    sizes = []
    for seed in range(60):
        request = draw_random_request(lung, 2.0, (5, 30), np.random.default_rng(seed))
        check_request_mask(request.mask_HW, lung)
        assert not (request.mask_HW & ~lung).any()
        assert request.mask_HW.sum() == max(1, round(math.pi * (request.diameter_mm / 2) ** 2 / 4))
        assert request.mask_HW[round(request.centre_px[1]), round(request.centre_px[0])]
        sizes.append(request.diameter_mm)
    assert 5 <= min(sizes) < 8 and 27 < max(sizes) <= 30
    again = draw_random_request(lung, 2.0, (5, 30), np.random.default_rng(59))
    assert np.array_equal(again.mask_HW, request.mask_HW)


def test_a_nodule_too_wide_for_the_lung_goes_to_its_widest_place() -> None:
    lung = np.zeros(SHAPE, bool)
    lung[10:80, 50:56] = True
    lung[40:52, 48:62] = True
    request = draw_random_request(lung, 1.0, (14, 14), np.random.default_rng(0), 0.0)
    assert 43 <= request.centre_px[1] <= 48
    assert (request.mask_HW & lung).sum() > 0.8 * request.mask_HW.sum()


@pytest.mark.parametrize(
    ("size_mm", "spacing_mm", "words"),
    [
        ((500, 500), 1.0, "larger than the lung"),
        ((9, 5), 1.0, "not a range"),
        ((0, 5), 1.0, "not a range"),
        ((5, math.inf), 1.0, "not a range"),
        ((5, 6), math.nan, "spacing is unknown"),
    ],
)
def test_a_random_request_that_cannot_be_is_refused(
    size_mm: tuple[float, float], spacing_mm: float, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        draw_random_request(draw_lungs(), spacing_mm, size_mm, np.random.default_rng(0))
    with pytest.raises(UsageError, match="no lung"):
        draw_random_request(np.zeros(SHAPE, bool), 1.0)


def write_mask(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("level", [1, 255])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_mask_file_is_read_whatever_its_level(tmp_path: Path, level: int, ending: str) -> None:
    disc = draw_disc(30, 40, 9)
    path = write_mask(tmp_path / f"m.{ending}", disc.astype(np.uint8) * np.uint8(level))
    assert np.array_equal(read_request_mask(path, SHAPE), disc)
    assert np.array_equal(read_request_mask(write_mask(path, disc), SHAPE), disc)
    assert not read_request_mask(write_mask(path, np.zeros(SHAPE, np.uint8)), SHAPE).any()


def test_mask_files_that_are_none_are_refused_in_one_line(tmp_path: Path) -> None:
    grey = np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE).astype(np.uint8)
    colour = np.random.default_rng(0).integers(0, 255, (*SHAPE, 3)).astype(np.uint8)
    (tmp_path / "text.png").write_text("no image")
    whole = write_mask(tmp_path / "whole.png", grey).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    faults = {
        write_mask(tmp_path / "grey.png", grey): r"not binary: it has 256 levels \(0, 1, 2, 3, ...\)",
        write_mask(tmp_path / "two.png", np.where(grey > 3, 7, 9).astype(np.uint8)): r"2 levels \(7, 9\)",
        write_mask(tmp_path / "colour.png", colour): "in colour",
        write_mask(tmp_path / "turned.png", grey.T > 9): "the mask has 90 x 120 pixels, the film 120 x 90",
        tmp_path / "text.png": "no readable PNG",
        tmp_path / "cut.png": "no readable PNG",
        tmp_path: "no readable PNG",
        tmp_path / "absent.png": "does not exist",
    }
    for path, words in faults.items():
        with pytest.raises(UsageError, match=words) as caught:
            read_request_mask(path, SHAPE)
        assert "\n" not in str(caught.value)


def test_a_mask_bomb_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 8_000)).save(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(UsageError, match="more than 120 megapixels"):
        read_request_mask(path, SHAPE)


def test_a_mask_of_another_size_is_refused_by_its_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (10_000, 10_000)).save(path)
    path.write_bytes(path.read_bytes()[:200])  # its pixels are gone: whoever reads them says that the file is damaged
    with pytest.raises(UsageError, match="the mask has 10000 x 10000 pixels, the film 120 x 90"):
        read_request_mask(path, SHAPE)


def draw_dots(count: int) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    rows, columns = np.unravel_index(np.arange(count), (20, 20))
    mask[2 + 3 * rows, 2 + 3 * columns] = True
    return mask


def test_a_mask_of_more_pieces_than_a_film_has_nodules_is_refused() -> None:
    assert len(build_requests(draw_dots(99), 1.0)) == 99
    with pytest.raises(UsageError, match="the mask has 100 pieces; a film has at most 99 nodules"):
        build_requests(draw_dots(100), 1.0)
    with pytest.raises(UsageError, match="the mask has 300 pieces"):
        check_request_mask(draw_dots(300), None)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros(SHAPE, bool), "empty"),
        (np.zeros((5, 6), bool), "the mask has 6 x 5 pixels, the film 120 x 90"),
        (np.ones(SHAPE, bool), "is larger than the lung"),
        (draw_disc(60, 45, 5), "outside the lung with 100%"),
        (draw_disc(32, 45, 8) | draw_disc(60, 45, 5), "nodule [12] of 2 of the mask lies outside the lung with 100%"),
        (draw_disc(2, 45, 5), "cut off by the edge"),
    ],
)
def test_a_mask_no_nodule_can_be_made_for_is_refused(mask: np.ndarray, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_request_mask(mask, draw_lungs())


def test_masks_of_one_or_more_nodules_pass_also_a_little_outside() -> None:
    lung = draw_lungs()
    check_request_mask(draw_disc(32, 45, 8) | draw_disc(88, 30, 4), lung)
    partly = draw_disc(50, 45, 6)
    assert 0 < (partly & ~lung).sum() / partly.sum() < 0.25
    check_request_mask(partly, lung)
    check_request_mask(draw_disc(60, 45, 5), None)


def test_each_piece_of_a_mask_is_a_request() -> None:
    upper, lower = build_requests(draw_disc(32, 60, 8) | draw_disc(88, 30, 4), 0.5)
    assert upper.centre_px == pytest.approx((88, 30)) and lower.centre_px == pytest.approx((32, 60))
    assert upper.diameter_mm == pytest.approx(4, rel=0.06) and lower.diameter_mm == pytest.approx(8, rel=0.04)
    assert np.array_equal(upper.mask_HW | lower.mask_HW, draw_disc(32, 60, 8) | draw_disc(88, 30, 4))
