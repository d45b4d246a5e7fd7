"""Measure how bright real nodules are by their size, and whether inserted ones are alike.

usage: python runs/fit_nodule_contrast.py JSRT CT_NODULES

The constants of chess_cxr.tasks.nodules.insertion are read off the nodules of the train films (seed 0, 15 % val, 25 %
test by patient); nothing is fitted on the others. Contrast: median inside half of the radius less the mean of the lung
between 1.2 and 1.7 radii, as a share of the 5th to 95th percentile of the lung's greys.
"""

import itertools
import sys
from pathlib import Path

import numpy as np

from chess_cxr.tasks.ct_nodules import CtNodule, choose_ct_nodule, read_ct_nodules
from chess_cxr.tasks.nodules.films import NoduleFilm, read_nodule_films, split_nodule_films
from chess_cxr.tasks.nodules.insertion import draw_contrast, insert_ct_nodule, split_ct_nodules
from chess_cxr.tasks.nodules.masks import draw_random_request

SPLIT = {"seed": 0, "val": 0.15, "test": 0.25}
INSERTIONS = 400
QUARTERS = (0.25, 0.5, 0.75)
BINS_MM = ((5, 10), (10, 15), (15, 20), (20, 30))


def measure(film_HW: np.ndarray, mask_HW: np.ndarray, lung_HW: np.ndarray) -> float:
    """Return the contrast of a nodule."""
    row, column = (axis.mean() for axis in np.nonzero(mask_HW))
    y, x = np.mgrid[: mask_HW.shape[0], : mask_HW.shape[1]]
    reach = np.hypot(x - column, y - row) / np.sqrt(mask_HW.sum() / np.pi)
    ring = (reach > 1.2) & (reach < 1.7)
    ring = ring & lung_HW if (ring & lung_HW).sum() > 0.3 * ring.sum() else ring
    low, high = np.percentile(film_HW[lung_HW], (5, 95))
    return float((np.median(film_HW[reach < 0.5]) - film_HW[ring].mean()) / (high - low))


def compute_size(film: NoduleFilm) -> float:
    """Return the diameter of a film's nodule in mm."""
    return float(2 * np.sqrt(film.mask_HW.sum() / np.pi) * (film.spacing_mm or np.nan))


def measure_films(films: list[NoduleFilm]) -> tuple[np.ndarray, np.ndarray]:
    """Measure sizes in mm and contrasts of the nodules that lie in the lung."""
    marked = [f for f in films if (f.mask_HW & f.lung_HW).sum() > 0.5 * f.mask_HW.sum() > 0]
    contrasts = [measure(film.film_HW, film.mask_HW, film.lung_HW) for film in marked]
    return np.array([compute_size(film) for film in marked]), np.array(contrasts)


def fit(size_N: np.ndarray, contrast_N: np.ndarray, bare_M: np.ndarray, gain_M: np.ndarray, size_M: np.ndarray) -> None:
    """Print what makes inserted nodules have the quartiles of real ones.

    bare_M: what is measured where nothing is inserted.  gain_M: what one unit of contrast adds to that.
    """
    normal_M = np.clip(np.random.default_rng(1).normal(size=len(size_M)), -2, 2)

    def compute_error(parameters: np.ndarray) -> float:
        at_15, spread, ceiling = parameters
        drawn_M = bare_M + gain_M * at_15 * np.minimum(size_M, ceiling) / 15 * np.exp(spread * normal_M)
        error = 0.0
        for low, high in BINS_MM[1:]:
            real, made = (c[(s >= low) & (s < high)] for c, s in ((contrast_N, size_N), (drawn_M, size_M)))
            error += len(real) * float(np.abs(np.quantile(real, QUARTERS) - np.quantile(made, QUARTERS)).sum())
        return error

    grid = itertools.product(np.arange(0.08, 0.26, 0.01), np.arange(0.1, 1.01, 0.1), (15, 17.5, 20, 25, 30))
    best = sorted((compute_error(np.array(p)), p) for p in grid)[:5]
    for error, (at_15, spread, ceiling) in best:
        found = f"contrast at 15 mm {at_15:.2f}, spread {spread:.1f}, ceiling {ceiling:g} mm"
        print(f"{found}: error {error / len(size_N):.4f}")


def describe(name: str, size_N: np.ndarray, contrast_N: np.ndarray) -> None:
    """Print the quartiles in each range of sizes."""
    for low, high in BINS_MM:
        inside = contrast_N[(size_N >= low) & (size_N < high)]
        quarters = ", ".join(f"{value:.3f}" for value in np.quantile(inside, QUARTERS)) if len(inside) else "-"
        print(f"{name} {low}-{high} mm: n {len(inside)}, quartiles {quarters}")


def insert(films: list[NoduleFilm], nodules: list[CtNodule], size_N: np.ndarray) -> np.ndarray:
    """Insert nodules; return sizes, contrasts without them, what a unit of contrast adds, and contrasts: [4, M]."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(INSERTIONS):
        film, size = films[number % len(films)], float(rng.choice(size_N))
        request = draw_random_request(film.lung_HW, film.spacing_mm, (size, size), rng)
        place = choose_ct_nodule(nodules, size, rng), request.centre_px, size, film.spacing_mm
        contrast = draw_contrast(film.film_HW, film.lung_HW, size, rng)
        low, high = np.percentile(film.film_HW[film.lung_HW], (5, 95))
        made_HW, mask_HW = insert_ct_nodule(film.film_HW, *place, contrast)
        bare, made = (measure(grey, mask_HW, film.lung_HW) for grey in (film.film_HW, made_HW))
        rows.append((size, bare, (made - bare) / contrast * (high - low), made))
    return np.array(rows).T


def main() -> None:
    """Measure, fit, compare."""
    parts = split_nodule_films(read_nodule_films(sys.argv[1]), **SPLIT)
    films = parts["train"]
    size_N, contrast_N = measure_films(films)
    nodules = split_ct_nodules(read_ct_nodules(Path(sys.argv[2])), **SPLIT)["train"]
    size_M, bare_M, gain_M, made_M = insert([film for film in films if not film.mask_HW.any()], nodules, size_N)
    fit(size_N, contrast_N, bare_M, gain_M, size_M)
    describe("real", size_N, contrast_N)
    describe("real, of the test films", *measure_films(parts["test"]))
    describe("no nodule", size_M, bare_M)
    describe("inserted (SYNTHETIC)", size_M, made_M)
    print(f"a unit of contrast adds {np.median(gain_M):.2f} (median)")


if __name__ == "__main__":
    main()
