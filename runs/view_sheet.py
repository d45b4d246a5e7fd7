"""Draw pairs of views of SYNTHETIC films, and tell how much of the lungs crops keep on real ones.

usage: python view_sheet.py SHEET.png [DATA]     DATA: holds jsrt/masks, lung masks of real films

The sheet: a row a film, the film and then three pairs of views, drawn as in training with the preset `chess_strong`.
The table: the share of each film's lungs that a view of it shows, over all films and `DRAWS` views of each, by `keep`
and smallest crop.
"""

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure

from chess_cxr.pretraining.presets import chess_strong
from chess_cxr.sources.phantom.film import CLASSES, MAX_PIXEL, draw_anatomy, draw_exposure, render_film
from chess_cxr.views import ViewConfig, draw_view, draw_view_pairs, resize_film

STRONG = replace(chess_strong().views, size=224)
FILMS, PAIRS = 4, 3
KEPT = ((0.0, 0.0), (0.6, 0.5), (0.7, 0.6), (0.8, 0.7))
CROPS = (0.3, 0.5)
DRAWS, SEED = 8, 0


def draw_sheet(path: Path) -> None:
    """Write the sheet as an 8-bit grey PNG."""
    figure = Figure(figsize=(1.5 * (1 + 2 * PAIRS), 1.5 * FILMS + 0.45), facecolor="black")
    axes = figure.subplots(FILMS, 1 + 2 * PAIRS)
    for number, row in enumerate(axes):
        finding = CLASSES[number % len(CLASSES)]
        pixels = render_film(draw_anatomy(30 + number), draw_exposure(number), finding, 512).pixels
        film = np.rint(pixels.astype(np.float32) / MAX_PIXEL * 255).astype(np.uint8)
        pairs = draw_view_pairs([film] * PAIRS, range(number * PAIRS, (number + 1) * PAIRS), SEED, STRONG)[:, :, 0]
        views = [view for pair in range(PAIRS) for view in pairs[:, pair]]
        names = [f"pair {pair + 1}, {which}" for pair in range(PAIRS) for which in ("first view", "second view")]
        for axis, view, name in zip(row, [resize_film(film, STRONG.size), *views], ["film", *names], strict=True):
            axis.imshow(view, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
            axis.set_axis_off()
            if number == 0:
                axis.set_title(name, color="white", fontsize=7, pad=2)
    figure.suptitle("SYNTHETIC films and pairs of stronger views", color="white", fontsize=9, y=0.995)
    figure.subplots_adjust(left=0.003, right=0.997, bottom=0.004, top=0.92, wspace=0.02, hspace=0.02)
    figure.savefig(path, dpi=100)
    cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), [cv2.IMWRITE_PNG_COMPRESSION, 9])


def compute_lung_shares(mask_HW: np.ndarray, config: ViewConfig, film: int) -> list[float]:
    """Return the share of a film's lungs that each of `DRAWS` views shows.

    A picture of the columns' and one of the rows' numbers go through the same geometry: they tell where pixels went.
    """
    side = config.size // 2  # so fine that no place falls between two pixels of the view
    small = cv2.resize(mask_HW, (side, side), interpolation=cv2.INTER_NEAREST) > 0
    across, down = np.meshgrid(np.arange(side) + 1, np.arange(side) + 1)
    shares = []
    for draw in range(DRAWS):
        seen = []
        for places in (across, down):
            film_HW = cv2.resize(places.astype(np.uint8), mask_HW.shape[::-1], interpolation=cv2.INTER_NEAREST)
            rng = np.random.Generator(np.random.Philox(key=[SEED, film * DRAWS + draw]))
            seen.append(draw_view(film_HW, config, rng).astype(int) - 1)
        inside = (seen[0] >= 0) & (seen[1] >= 0) & (seen[0] < side) & (seen[1] < side)
        shown = np.zeros((side, side), np.uint8)
        shown[seen[1][inside], seen[0][inside]] = 1
        shares.append(float((shown > 0)[small].mean()))
    return shares


def print_lung_shares(data: Path) -> None:
    """Print the table of lung shares."""
    masks = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) & 3 for path in sorted((data / "jsrt/masks").glob("*.png"))]
    still = replace(STRONG, size=256, gamma_p=0, tone_p=0, filter_p=0, noise_p=0, elastic_p=0)
    print(f"{len(masks)} real films (JSRT), {DRAWS} views each: share of the lungs in the view")
    print(f"{'keep':>12}{'crop area':>12}{'mean':>8}{'5 %':>8}{'least':>8}{'views that show less than 80 %':>33}")
    for keep in KEPT:
        for crop in CROPS:
            config = replace(still, keep=keep, crop_area=(crop, 1.0))
            share = np.concatenate([compute_lung_shares(mask, config, film) for film, mask in enumerate(masks)])
            few = f"{(share < 0.8).mean():.1%}"
            fifth = np.percentile(share, 5)
            print(f"{keep!s:>12}{crop:>8} to 1{share.mean():8.3f}{fifth:8.3f}{share.min():8.3f}{few:>33}", flush=True)


if __name__ == "__main__":
    draw_sheet(Path(sys.argv[1]))
    if len(sys.argv) > 2:
        print_lung_shares(Path(sys.argv[2]))
