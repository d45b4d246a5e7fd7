import math
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from chess_cxr.records import UsageError
from chess_cxr.sources.phantom.film import draw_anatomy, draw_exposure, render_film
from chess_cxr.tasks.classify.pointing import draw_disc
from chess_cxr.tasks.nodules.score import NoduleMeasurement, measure_background, measure_nodule

SIDE, X, Y, RADIUS = 128, 60.0, 66.0, 16.0
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]
# Height over the distance from the centre in radii, and the diameter at half of its height in radii, where the height
# is the mean over the inner half of the radius.
SHAPES = {
    "disc": (lambda t: (t < 1).astype(float), 2.0),
    "cone": (lambda t: np.maximum(1 - t, 0), 2 * (1 - 0.75 / 2)),
    "ball": (lambda t: np.sqrt(np.maximum(1 - t**2, 0)), 2 * math.sqrt(1 - (0.9566 / 2) ** 2)),
}


def draw_film(shape: str = "ball", height: float = 0.2, x: float = X, y: float = Y, level: float = 0.3) -> np.ndarray:
    distance = np.hypot(ROWS - y, COLUMNS - x) / RADIUS
    return (level + height * SHAPES[shape][0](distance)).astype(np.float32)


def draw_mask(x: float = X, y: float = Y, radius: float = RADIUS) -> np.ndarray:
    return draw_disc(SIDE, SIDE, x, y, radius)


def test_contrast_is_the_mask_minus_its_ring() -> None:
    film = draw_film() + np.random.default_rng(0).normal(0, 0.02, (SIDE, SIDE)).astype(np.float32)
    mask, lung = draw_mask(), np.zeros((SIDE, SIDE), bool)
    lung[:, 50:] = True
    found = measure_nodule(film, mask, lung)
    radius = math.sqrt(mask.sum() / math.pi)
    edge = np.argwhere(mask)
    inside, around = [], []
    for row in range(SIDE):
        for column in range(SIDE):
            if mask[row, column]:
                inside.append(float(film[row, column]))
            elif lung[row, column]:
                away = math.sqrt(((edge - (row, column)) ** 2).sum(axis=1).min())
                if 0.25 * radius < away <= radius:
                    around.append(float(film[row, column]))
    assert found.contrast == pytest.approx(np.mean(inside) - np.mean(around))
    assert found.cnr == pytest.approx(found.contrast / np.std(around))
    assert found.lung_share == pytest.approx(lung[mask].mean())
    assert math.isnan(measure_nodule(film, mask).lung_share)
    assert (found.mask_x_px, found.mask_y_px) == pytest.approx((X, Y))


@pytest.mark.parametrize("shape", SHAPES)
def test_size_and_place_of_known_shapes(shape: str) -> None:
    found = measure_nodule(draw_film(shape), draw_mask(), spacing_mm=0.7)
    assert found.diameter_px == pytest.approx(SHAPES[shape][1] * RADIUS, rel=0.03)
    assert found.diameter_mm == pytest.approx(0.7 * found.diameter_px)
    assert (found.x_px, found.y_px) == pytest.approx((X, Y), abs=0.2)
    assert not found.cut_off


@pytest.mark.parametrize("scale", [0.6, 1.4])
def test_a_mask_of_the_wrong_size_changes_little(scale: float) -> None:
    found = measure_nodule(draw_film("disc"), draw_mask(radius=scale * RADIUS))
    assert found.diameter_px == pytest.approx(2 * RADIUS, rel=0.05)
    assert (found.x_px, found.y_px) == pytest.approx((X, Y), abs=0.2)


def test_a_nodule_that_merges_with_what_lies_outside_the_lung_is_only_known_to_be_larger() -> None:
    film, lung = draw_film("disc"), COLUMNS >= X - 4
    film[~lung] = 0.8
    found = measure_nodule(film, draw_mask(), lung)
    assert found.cut_off and found.diameter_px > 3.5 * RADIUS


def test_a_nodule_beside_its_mask_is_found() -> None:
    found = measure_nodule(draw_film(x=X + 8, y=Y - 4), draw_mask())
    assert (found.x_px, found.y_px) == pytest.approx((X + 8, Y - 4), abs=1.0)


def test_neither_a_slope_nor_a_crossing_rib_is_taken_for_size() -> None:
    plain = measure_nodule(draw_film(), draw_mask())
    sloped = measure_nodule(draw_film() + (0.002 * COLUMNS).astype(np.float32), draw_mask())
    assert (sloped.diameter_px, sloped.x_px) == pytest.approx((plain.diameter_px, plain.x_px), rel=0.01)
    rib = 0.12 * (np.abs(ROWS - Y - 0.3 * (COLUMNS - X)) < 5)
    ribbed = measure_nodule((draw_film() + rib).astype(np.float32), draw_mask())
    assert ribbed.diameter_px == pytest.approx(plain.diameter_px, rel=0.2)


def test_what_is_not_there_has_no_size() -> None:
    for film in (np.full((SIDE, SIDE), 0.3, np.float32), draw_film(height=-0.2)):
        found = measure_nodule(film, draw_mask(), spacing_mm=1.0)
        assert math.isnan(found.diameter_px) and math.isnan(found.x_px) and found.contrast <= 0
    flat = measure_nodule(np.full((SIDE, SIDE), 0.25, np.float32), draw_mask())
    assert flat.contrast == 0.0 and math.isnan(flat.cnr)


def test_a_nodule_of_a_few_pixels_at_the_edge_is_measured() -> None:
    film = np.full((32, 32), 0.2, np.float32)
    film[0:3, 0:3] = 0.6
    mask = film > 0.5
    found = measure_nodule(film, mask)
    assert found.contrast == pytest.approx(0.4)
    assert 1.5 < found.diameter_px < 6


def test_the_background_is_compared_bit_by_bit() -> None:
    rng = np.random.default_rng(0)
    before = rng.random((30, 40)).astype(np.float32)
    region = np.zeros((30, 40), bool)
    region[10:20, 10:20] = True
    after = before.copy()
    after[region] = 0.0
    same = measure_background(before, after, region)
    assert (same.largest, same.mean, same.equal_share, same.pixels) == (0.0, 0.0, 1.0, 1100)
    after[0, 0] = np.nextafter(before[0, 0], np.float32(2))
    before[1, 1], after[1, 1] = 0.0, -0.0
    after[29, 39] += 0.25
    found = measure_background(before, after, region)
    changes = [abs(float(after[r, c]) - float(before[r, c])) for r in range(30) for c in range(40) if not region[r, c]]
    assert found.largest == max(changes) == pytest.approx(0.25)
    assert found.mean == pytest.approx(sum(changes) / 1100)
    assert found.equal_share == pytest.approx(1 - 3 / 1100)


def test_phantom_nodules_are_measured_as_large_as_they_are() -> None:
    """SYNTHETIC: 24 nodules of 6 to 30 mm whose size and place are known."""
    ratios, places, sizes = [], [], []
    for seed in range(24):
        film = render_film(draw_anatomy(seed), draw_exposure(seed), "nodule", 256)
        assert film.nodule_centre_px is not None and film.diameter_mm is not None
        pixels = (film.pixels / np.float32(4095)).astype(np.float32)
        found = measure_nodule(pixels, film.finding_mask, film.lung_mask, film.spacing_mm)
        ratios.append(found.diameter_mm / film.diameter_mm)
        places.append(film.spacing_mm * math.dist((found.x_px, found.y_px), film.nodule_centre_px) / film.diameter_mm)
        sizes.append((film.diameter_mm, found.diameter_mm))
        assert found.contrast > 0 and found.lung_share > 0.95
    assert np.isnan(ratios).sum() <= 1
    assert 0.78 < np.nanmedian(ratios) < 0.95
    assert np.nanmedian(places) < 0.12
    assert stats.spearmanr(*zip(*sizes, strict=True), nan_policy="omit").statistic > 0.9


@pytest.mark.real_films
def test_real_nodules_show_and_have_about_the_size_a_reader_states(real_films: Path) -> None:
    folder = real_films / "jsrt"
    table = pd.read_csv(folder / "cases.csv").query("nodule == 1 and low_contrast == 0")
    own = [_measure_real(folder, row, row.size_mm / 2) for row in table.itertuples()]
    assert len(own) == 118
    assert np.mean([found.contrast > 0 for found in own]) > 0.85
    assert 0.015 < np.mean([found.contrast for found in own]) < 0.025
    ratio = np.array([found.diameter_mm for found in own]) / table["size_mm"].to_numpy()
    assert np.isnan(ratio).sum() <= 8
    assert 0.75 < np.nanmedian(ratio) < 0.95
    low, high = np.nanquantile(ratio, [0.25, 0.75])
    assert low > 0.6 and high < 1.1
    # Told nothing of the size: every mask is a disc of 20 mm.
    blind = [_measure_real(folder, row, 10.0).diameter_mm for row in table[::2].itertuples()]
    assert stats.spearmanr(blind, table["size_mm"][::2], nan_policy="omit").statistic > 0.35


def _measure_real(folder: Path, row: object, radius_mm: float) -> NoduleMeasurement:
    """Measure on a window around the nodule of a 512-pixel film, 0.7 mm a pixel."""
    film = cv2.imread(str(folder / row.file), 0) / np.float32(255)  # type: ignore[attr-defined]
    top, left = (max(0, int(place) - 100) for place in (row.y_512, row.x_512))  # type: ignore[attr-defined]
    part = film[top : top + 200, left : left + 200]
    mask = draw_disc(*part.shape, row.x_512 - left, row.y_512 - top, radius_mm / 0.7)  # type: ignore[attr-defined]
    return measure_nodule(part, mask, spacing_mm=0.7)


def test_wrong_use_is_refused() -> None:
    film, mask = draw_film(), draw_mask()
    with pytest.raises(UsageError, match="not bool"):
        measure_nodule(film, mask.astype(np.uint8))
    with pytest.raises(UsageError, match="lung is bool"):
        measure_nodule(film, mask, mask[:-1])
    with pytest.raises(UsageError, match="empty mask"):
        measure_nodule(film, np.zeros_like(mask))
    with pytest.raises(UsageError, match="finite float"):
        measure_nodule(np.full_like(film, np.nan), mask)
    with pytest.raises(UsageError, match="finite float"):
        measure_nodule((film * 255).astype(np.uint8), mask)
    with pytest.raises(UsageError, match="no film around"):
        measure_nodule(film, np.ones_like(mask))
    with pytest.raises(UsageError, match="bit by bit"):
        measure_background(film, film.astype(np.float64), mask)
    with pytest.raises(UsageError, match="whole film"):
        measure_background(film, film, np.ones_like(mask))
