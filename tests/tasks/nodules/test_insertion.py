"""Nodules added to healthy films."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from chess_cxr.records import UsageError
from chess_cxr.tasks.ct_nodules import CtNodule, choose_ct_nodule, read_ct_nodules
from chess_cxr.tasks.nodules.insertion import (
    CtInsertion,
    build_nodule,
    draw_analytic_nodule,
    draw_contrast,
    insert_ct_nodule,
    split_ct_nodules,
)
from chess_cxr.tasks.nodules.masks import build_requests

SHAPE = (120, 140)
CENTRE = (70.3, 55.6)


def draw_grey(level: float = 0.3) -> np.ndarray:
    noise = np.random.default_rng(3).normal(0, 0.01, SHAPE)
    return np.clip(level + noise, 0, 1).astype(np.float32)


def build_ball(diameter_mm: float = 12.0) -> CtNodule:
    return draw_analytic_nodule(diameter_mm, np.random.default_rng(0), 0.0)


@pytest.fixture(scope="module")
def ct_nodules(real_films: Path) -> list[CtNodule]:
    return read_ct_nodules(real_films / "ct_nodules")


@pytest.mark.real_films
def test_ct_nodules_are_densities_inside_their_masks(ct_nodules: list[CtNodule]) -> None:
    assert len(ct_nodules) == 855 and len({nodule.series_uid for nodule in ct_nodules}) == 427
    for nodule in ct_nodules[::20]:
        assert nodule.density_YX.max() == 1 and not nodule.density_YX[~nodule.mask_YX].any()
        assert nodule.diameter_mm == pytest.approx(2 * math.sqrt(nodule.mask_YX.sum() / math.pi))
        assert nodule.spacing_mm == 1


@pytest.mark.real_films
def test_no_scan_gives_nodules_to_two_splits(ct_nodules: list[CtNodule]) -> None:
    parts = split_ct_nodules(ct_nodules, 0, 0.2, 0.3)
    scans = {name: {nodule.series_uid for nodule in part} for name, part in parts.items()}
    assert sum(map(len, parts.values())) == 855 and sum(map(len, scans.values())) == 427
    assert 0.2 < len(scans["test"]) / 427 < 0.4 and 0.12 < len(scans["val"]) / 427 < 0.28


@pytest.mark.real_films
def test_a_chosen_nodule_is_of_like_size_and_round_and_may_be_turned(ct_nodules: list[CtNodule]) -> None:
    rng = np.random.default_rng(0)
    by_name = {nodule.name: nodule for nodule in ct_nodules}
    turned = 0
    for diameter in np.tile((7.0, 12.0, 20.0), 10):
        chosen = choose_ct_nodule(ct_nodules, float(diameter), rng)
        assert 1 / 1.6 <= chosen.diameter_mm / diameter <= 1.6
        original = by_name[chosen.name]
        turned += not np.array_equal(chosen.mask_YX, original.mask_YX)
        assert chosen.density_YX.sum() == pytest.approx(original.density_YX.sum(), rel=1e-5)
        assert np.array_equal(chosen.density_YX > 0, chosen.mask_YX & (chosen.density_YX > 0))
    assert turned > 10
    largest = choose_ct_nodule(ct_nodules, 200.0, rng)
    assert largest.diameter_mm > 20


def test_a_long_or_tiny_nodule_is_not_chosen() -> None:
    mask = np.zeros((30, 30), bool)
    mask[15, 2:28] = True
    vessel = CtNodule("vessel", mask.astype(np.float32), mask, 6.0, "a")
    with pytest.raises(UsageError, match="large and round enough"):
        choose_ct_nodule([vessel], 6.0, np.random.default_rng(0))
    assert choose_ct_nodule([vessel, build_ball(6.0)], 6.0, np.random.default_rng(0)).name == "drawn-6mm"


@pytest.mark.parametrize("spacing_mm", [0.35, 0.7, 1.4, 2.8])
@pytest.mark.parametrize("diameter_mm", [8.0, 15.0, 25.0])
def test_an_inserted_nodule_has_the_size_and_the_place_that_were_asked(spacing_mm: float, diameter_mm: float) -> None:
    film, mask = insert_ct_nodule(draw_grey(), build_ball(), CENTRE, diameter_mm, spacing_mm, 0.1)
    assert mask.sum() == round(math.pi * (diameter_mm / spacing_mm) ** 2 / 4)
    row, column = ndimage.center_of_mass(mask)
    assert (column, row) == pytest.approx(CENTRE, abs=0.5)
    row, column = ndimage.center_of_mass(film - draw_grey())
    assert (column, row) == pytest.approx(CENTRE, abs=0.5)


def test_pixels_away_from_the_nodule_keep_their_bits() -> None:
    before = draw_grey()
    film, mask = insert_ct_nodule(before, build_ball(), CENTRE, 14.0, 1.0, 0.1)
    assert film.dtype == np.float32 and film.shape == SHAPE
    far = ~ndimage.binary_dilation(mask, iterations=4)
    assert np.array_equal(film[far].view(np.uint32), before[far].view(np.uint32))
    assert (film[mask] > before[mask]).mean() > 0.98
    assert (film >= before).all()


def test_the_middle_of_a_nodule_over_dark_lung_gains_the_contrast() -> None:
    dark = np.zeros(SHAPE, np.float32)
    film, mask = insert_ct_nodule(dark, build_ball(20.0), CENTRE, 20.0, 0.7, 0.08)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    core = np.hypot(x - CENTRE[0], y - CENTRE[1]) < 5 / 0.7
    assert np.median(film[core]) == pytest.approx(0.08, rel=0.05)
    twice, _ = insert_ct_nodule(dark, build_ball(20.0), CENTRE, 20.0, 0.7, 0.16)
    assert np.allclose(twice, 2 * film, atol=1e-6)


def test_a_ball_is_as_thick_as_a_ball() -> None:
    film, _ = insert_ct_nodule(np.zeros(SHAPE, np.float32), build_ball(40.0), (70.0, 60.0), 40.0, 0.5, 0.1)
    profile = film[60, 70:112] / film[60, 70]
    chord = np.sqrt(np.maximum(1 - (np.arange(42) / 40) ** 2, 0))
    assert np.abs(profile - chord)[:36].max() < 0.06


def test_a_nodule_over_bright_tissue_gains_less_and_never_exceeds_white() -> None:
    gains = []
    for level in (0.2, 0.6, 0.9):
        before = np.full(SHAPE, level, np.float32)
        film, mask = insert_ct_nodule(before, build_ball(), CENTRE, 16.0, 1.0, 0.1)
        gains.append(float((film - before)[mask].mean()))
    assert gains[0] > gains[1] > gains[2] > 0
    white, _ = insert_ct_nodule(np.full(SHAPE, 0.97, np.float32), build_ball(), CENTRE, 16.0, 1.0, 0.9)
    assert white.max() <= 1


def test_a_nodule_at_the_edge_is_cut_and_not_wrapped() -> None:
    film, mask = insert_ct_nodule(draw_grey(), build_ball(), (0.0, 60.0), 16.0, 1.0, 0.1)
    assert mask[60, 0] and not mask[:, 70:].any()
    assert np.array_equal(film[:, 70:], draw_grey()[:, 70:])


def test_an_insertion_has_place_and_area_of_each_piece_of_the_mask_and_is_drawn_by_its_seed() -> None:
    insertion = CtInsertion([replace(build_ball(size), name=str(size)) for size in (9.0, 11.0, 13.0)], "")
    lung, asked = np.ones(SHAPE, bool), np.zeros(SHAPE, bool)
    asked[20:31, 20:31] = asked[70:80, 90:104] = True
    film, mask = insertion.make(draw_grey(), asked, 5, lung, 1.0)
    pieces, wanted = build_requests(mask, 1.0), build_requests(asked, 1.0)
    for made, piece in zip(pieces, wanted, strict=True):
        assert made.centre_px == pytest.approx(piece.centre_px, abs=0.5)
        assert made.mask_HW.sum() == pytest.approx(piece.mask_HW.sum(), rel=0.02)
    added = film - draw_grey()
    assert added[mask].mean() > 0.002 and not added[~ndimage.binary_dilation(mask, iterations=6)].any()
    again, other = (insertion.make(draw_grey(), asked, seed, lung, 1.0)[0] for seed in (5, 6))
    assert np.array_equal(film, again) and not np.array_equal(film, other)
    with pytest.raises(UsageError, match="does not say its pixel spacing; give it with --spacing-mm"):
        insertion.make(draw_grey(), asked, 5, lung, math.nan)


def test_drawn_nodules_differ_by_seed_and_have_their_diameter() -> None:
    first, again, other = (draw_analytic_nodule(17.0, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.density_YX, again.density_YX)
    assert not np.array_equal(first.density_YX, other.density_YX)
    assert first.diameter_mm == pytest.approx(17, rel=0.01)
    assert first.density_YX.max() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("sides", [(1, 1), (2, 3)])
def test_a_body_is_built_for_a_mask_of_few_pixels(sides: tuple[int, int]) -> None:
    nodule = build_nodule(np.ones(sides, bool), 0.5)
    assert (nodule.density_YX > 0.3).all() and nodule.density_YX.max() <= 1


def test_contrast_follows_size_and_the_films_own_range() -> None:
    lung = np.ones(SHAPE, bool)
    ramp = np.linspace(0, 1, SHAPE[0] * SHAPE[1], dtype=np.float32).reshape(SHAPE)

    def typical(film: np.ndarray, diameter_mm: float) -> float:
        rng = np.random.default_rng(0)
        return float(np.median([draw_contrast(film, lung, diameter_mm, rng) for _ in range(300)]))

    assert typical(ramp, 15.0) == pytest.approx(0.9 * 0.17, rel=0.05)
    assert typical(ramp, 15.0) == pytest.approx(2 * typical(ramp, 7.5), rel=0.01)
    assert typical(ramp, 40.0) == typical(ramp, 20.0)
    assert typical(ramp / 2, 15.0) == pytest.approx(typical(ramp, 15.0) / 2, rel=0.01)
    with pytest.raises(UsageError, match="no lung"):
        draw_contrast(ramp, ~lung, 10.0, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("centre", "numbers", "words"),
    [
        ((140.0, 5.0), (10.0, 1.0, 0.1), "outside the film of 140 x 120"),
        ((math.nan, 5.0), (10.0, 1.0, 0.1), "outside the film"),
        (CENTRE, (0.0, 1.0, 0.1), "diameter is 0"),
        (CENTRE, (10.0, math.nan, 0.1), "pixel spacing is nan"),
        (CENTRE, (10.0, 1.0, -0.1), "contrast is -0.1"),
    ],
)
def test_an_insertion_that_cannot_be_is_refused(
    centre: tuple[float, float], numbers: tuple[float, float, float], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        insert_ct_nodule(draw_grey(), build_ball(), centre, *numbers)


def write_ct(folder: Path, row: dict[str, str], density: np.ndarray | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    disc = np.zeros((20, 20), np.uint8)
    disc[5:14, 5:14] = 200
    Image.fromarray(disc if density is None else density).save(folder / "n.png")
    Image.fromarray(disc).save(folder / "m.png")
    with (folder / "nodules.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([row.keys(), row.values()])
    return folder


def test_damaged_ct_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    good = {"nodule": "n.png", "mask": "m.png", "series_uid": "s", "spacing": "2 2 2"}
    nodule = read_ct_nodules(write_ct(tmp_path / "good", good))[0]
    assert nodule.diameter_mm == pytest.approx(2 * 9 * 2 / math.sqrt(math.pi)) and nodule.density_YX.max() == 1
    Image.fromarray(np.ones((4, 4), np.uint8)).save(tmp_path / "out.png")
    faults = {
        "leads out": good | {"nodule": "../out.png"},
        "row 2 of nodules.csv: the mask file does not exist": good | {"mask": "x.png"},
        "row 2 of nodules.csv: could not convert": good | {"spacing": "wide"},
        "equal sizes": good | {"spacing": "-1"},
        "lacks series_uid": {"nodule": "n.png", "mask": "m.png"},
    }
    for words, row in faults.items():
        with pytest.raises(UsageError, match=words):
            read_ct_nodules(write_ct(tmp_path / "bad", row))
    with pytest.raises(UsageError, match="is empty"):
        read_ct_nodules(write_ct(tmp_path / "bad", good, np.zeros((20, 20), np.uint8)))
    with pytest.raises(UsageError, match="equal sizes"):
        read_ct_nodules(write_ct(tmp_path / "bad", good, np.full((21, 20), 9, np.uint8)))
