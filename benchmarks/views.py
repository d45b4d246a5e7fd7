"""Views a second and core of two 512 x 512 views of real films, against albumentations doing the same operations.

usage: OMP_NUM_THREADS=1 python benchmarks/views.py DATA [--films 64] [--rounds 7] [--picture FILE.png]

DATA holds jsrt/images.  Needs albumentations: the extra `bench` brings 2.x; the reference code's list was written for
1.0.3 (2021), which has other names for the same operations, is much slower, and is known to this script too.
Both sides get the same 8-bit films of 512 x 512 pixels, run in one process on one thread, in turn in every round;
medians of the rounds, by the processor's clock and by the wall's.  Neither side decodes or normalises.  The last lines
time every operation alone, always drawn.

--picture writes every operation at the upper end of its range, ours above albumentations, on one SYNTHETIC film.
"""

import argparse
import random
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure

warnings.filterwarnings("ignore")  # of albumentations, about its age
from chess_cxr.pretraining.presets import chess_paper  # noqa: E402
from chess_cxr.sources.phantom.film import MAX_PIXEL, draw_anatomy, draw_exposure, render_film  # noqa: E402
from chess_cxr.views import BORDERS, ViewConfig, draw_view  # noqa: E402
from peers import import_peer  # noqa: E402

A: Any = import_peer("albumentations")

MODERN = int(A.__version__.split(".")[0]) >= 2
STILL = ViewConfig(size=512)
# The reference code's own list as albumentations understands it on 8-bit films.
REFERENCE = replace(
    STILL,
    filters=("median_blur", "motion_blur", "sharpen"),
    filter_p=0.2,
    brightness=(-0.1, 0.1),
    contrast=(-0.2, 0.1),
    contrast_about="black",
    tone_p=0.6,
    noise=(3.2, 7.1),
    gain=0.1,
    quick_noise=True,
    noise_p=0.2,
    lift=0.1,
    jitter_p=0.3,
    shift=0.0625,
    zoom=0.2,
    rotate_deg=10,
    affine_p=0.2,
    distort=0.0375,
    distort_p=0.06,
    border="mirror",
)
EACH = {
    "median blur": replace(STILL, filters=("median_blur",), filter_p=1),
    "motion blur": replace(STILL, filters=("motion_blur",), filter_p=1),
    "sharpen": replace(STILL, filters=("sharpen",), filter_p=1),
    "tone": replace(STILL, brightness=(-0.1, 0.1), contrast=(-0.2, 0.1), contrast_about="black", tone_p=1),
    "noise": replace(STILL, noise=(3.2, 7.1), quick_noise=True, noise_p=1),
    "noise, exact": replace(STILL, noise=(3.2, 7.1), noise_p=1),
    "grain": replace(STILL, grain=0.1, quick_noise=True, noise_p=1),
    "gain": replace(STILL, gain=0.1, noise_p=1),
    "value lift": replace(STILL, lift=0.1, jitter_p=1),
    "affine": replace(STILL, shift=0.0625, zoom=0.2, rotate_deg=10, affine_p=1, border="mirror"),
    "distortion": replace(STILL, distort=0.0375, distort_p=1, border="mirror"),
}


def build_reference(config: ViewConfig, at_end: bool = False) -> A.Compose:
    """Build albumentations' list of the operations of `config`, in the reference's order.

    at_end: every range shrinks to its upper end, with the signs that `draw_view` gives shift and rotation.
    """

    def about(middle: float, reach: float, sign: int = 1) -> tuple[float, float]:
        end = middle + sign * reach
        return (end, end) if at_end else (middle - reach, middle + reach)

    def within(ends: tuple[float, float]) -> tuple[float, float]:
        return (ends[1], ends[1]) if at_end else ends

    border = {"border_mode": BORDERS[config.border]}
    filters = [build_filter(name, within) for name in config.filters]
    noises: list[Any] = []
    if config.noise[1]:
        low, high = within(config.noise)
        noises.append(
            A.GaussNoise(std_range=(low / 255, high / 255), p=1) if MODERN else A.GaussNoise((low**2, high**2), p=1)
        )
    noises += (
        [A.MultiplicativeNoise((1 - config.grain, 1 + config.grain), elementwise=True, p=1)] if config.grain else []
    )
    noises += [A.MultiplicativeNoise(about(1, config.gain), p=1)] if config.gain else []
    changes: list[Any] = [A.Resize(config.size, config.size)]
    changes += [A.OneOf(filters, p=config.filter_p)] if config.filter_p else []
    if config.tone_p:
        tone = {"brightness_limit": within(config.brightness), "contrast_limit": within(config.contrast)}
        changes.append(A.RandomBrightnessContrast(**tone, p=config.tone_p))
    changes += [A.OneOf(noises, p=config.noise_p)] if config.noise_p else []
    if config.jitter:
        jitter = about(1, config.jitter)
        changes.append(A.ColorJitter(jitter, jitter, (1, 1), (0, 0), p=config.jitter_p))
    if config.lift:  # the newer one shifts the values of colours only
        changes.append(
            A.RandomBrightnessContrast(about(0, config.lift), (0, 0), p=config.jitter_p)
            if MODERN
            else A.HueSaturationValue((0, 0), (0, 0), about(0, 255 * config.lift), p=config.jitter_p)
        )
    if config.affine_p:
        shift, zoom = about(0, config.shift, -1), about(0, config.zoom)
        rotate = about(0, config.rotate_deg)
        changes.append(A.ShiftScaleRotate(shift, zoom, rotate, p=config.affine_p, **border))
    if config.distort_p:
        bend = about(0, config.distort / 0.75)  # albumentations': 0.75 times its `k` at the corner
        still = {} if MODERN else {"shift_limit": 0}
        changes.append(A.OpticalDistortion(bend, p=config.distort_p, **still, **border))
    return A.Compose(changes)


def build_filter(name: str, within: Callable[[tuple[float, float]], tuple[float, float]]) -> Any:
    if name == "median_blur":
        return A.MedianBlur((3, 3), p=1)
    if name == "motion_blur":
        return A.MotionBlur((3, 7), p=1)
    return A.Sharpen(within((0.2, 0.5)), within((0.5, 1.0)), p=1)


def read_films(data: Path, count: int) -> list[np.ndarray]:
    """Read films of 512 x 512 pixels, uint8."""
    paths = sorted((data / "jsrt" / "images").glob("*.png"))[:count]
    films = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths]
    return [cv2.resize(film, (512, 512), interpolation=cv2.INTER_AREA) for film in films if film is not None]


def draw_ours(films: list[np.ndarray], config: ViewConfig, first: int) -> None:
    """Draw two views of each film, seeded by its position as in training."""
    for index, film in enumerate(films):
        for which in (0, 1):
            draw_view(film, config, np.random.Generator(np.random.Philox(key=[7, 2 * (first + index) + which])))


def draw_theirs(films: list[np.ndarray], changes: A.Compose) -> None:
    """Draw two views of each film."""
    for film in films:
        for _ in (0, 1):
            changes(image=film)


def compare(name: str, films: list[np.ndarray], config: ViewConfig, rounds: int) -> None:
    """Time both sides in alternating rounds and print the medians."""
    theirs, views = build_reference(config), 2 * len(films)
    their_films = [film[..., None] if MODERN else film for film in films]
    sides: dict[str, Callable[[int], object]] = {
        "ours": lambda number: draw_ours(films, config, number * len(films)),
        "theirs": lambda number: draw_theirs(their_films, theirs),
    }
    cpu_ms: dict[str, list[float]] = {side: [] for side in sides}
    wall_ms: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(-1, rounds):  # the first warms up
        random.seed(number)
        np.random.seed(number + 1)
        for side, draw in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            draw(abs(number))
            if number >= 0:
                cpu_ms[side].append((time.process_time() - cpu) / views * 1000)
                wall_ms[side].append((time.perf_counter() - wall) / views * 1000)
    cpu_of, wall_of = ({side: statistics.median(ms) for side, ms in taken.items()} for taken in (cpu_ms, wall_ms))
    print(
        f"{name:28s}{cpu_of['ours']:9.3f}{cpu_of['theirs']:9.3f}{1000 / cpu_of['ours']:10.0f}"
        f"{1000 / cpu_of['theirs']:9.0f}{cpu_of['theirs'] / cpu_of['ours']:9.2f} x"
        f"{wall_of['theirs'] / wall_of['ours']:8.2f} x",
        flush=True,
    )


class UpperEnd(np.random.Generator):
    """Draws the upper end of every range, so that both sides can be laid side by side; noise stays random."""

    def random(self, *_: Any, **__: Any) -> Any:
        """Let everything be drawn."""
        return 0.0

    def uniform(self, low: float = 0.0, high: float = 1.0, size: Any = None) -> Any:
        """Draw `high`; whole arrays stay random."""
        return float(high) if size is None else super().uniform(low, high, size)


def write_picture(path: Path) -> None:
    """Write one SYNTHETIC film under every operation, ours above albumentations; print how far they are apart."""
    pixels = render_film(draw_anatomy(26), draw_exposure(26_000), "nodule", 512).pixels
    film = np.rint(pixels.astype(np.float32) / MAX_PIXEL * 255).astype(np.uint8)
    every = {name: config for name, config in EACH.items() if name != "noise, exact"}
    columns = (len(every) + 2) // 2
    figure = Figure(figsize=(2 * columns, 8.9), facecolor="black")
    axes = figure.subplots(4, columns)
    random.seed(0)
    np.random.seed(0)
    for place, (name, config) in enumerate({"the film": STILL, **every}.items()):
        ours = draw_view(film, config, UpperEnd(np.random.Philox(1)))
        theirs = build_reference(config, at_end=True)(image=film[..., None] if MODERN else film)["image"]
        apart = np.abs(ours.astype(float) - theirs.reshape(512, 512)).mean()
        print(f"{name:16s} {apart:6.2f} of 255 apart on average")
        top = place // columns * 2
        for row, (view, side) in enumerate(((ours, "chess-cxr"), (theirs, "albumentations"))):
            axis = axes[top + row, place % columns]
            axis.imshow(view.reshape(512, 512), cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
            axis.set_title(f"{side}: {name}", color="white", fontsize=9, pad=3)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle("SYNTHETIC film, each operation at the upper end of its range", color="white", fontsize=11)
    figure.subplots_adjust(left=0.003, right=0.997, bottom=0.004, top=0.935, wspace=0.02, hspace=0.1)
    figure.savefig(path, dpi=90)
    cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), [cv2.IMWRITE_PNG_COMPRESSION, 9])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--films", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    films = read_films(options.data, options.films)
    if not films:
        parser.error(f"no film in {options.data}/jsrt/images")
    print(
        f"{len(films)} real films (JSRT) of 512 x 512, two views each, {options.rounds} rounds, medians; "
        f"albumentations {A.__version__}, OpenCV {cv2.__version__}, one thread"
    )
    print(f"{'':28s}{'CPU ms a view':>18s}{'views a CPU s':>19s}{'ratio by CPU':>15s}{'wall':>6s}")
    print(f"{'':28s}{'ours':>9s}{'theirs':>9s}{'ours':>10s}{'theirs':>9s}")
    preset = chess_paper().views
    compare("the reference's list", films, REFERENCE, options.rounds)
    if preset != REFERENCE:
        compare("preset chess_paper", films, preset, options.rounds)
    compare("the same, exact noise", films, replace(REFERENCE, quick_noise=False), options.rounds)
    print("each operation alone, drawn for every view:")
    for name, config in EACH.items():
        compare(name, films[:16], config, options.rounds)
    if options.picture:
        write_picture(options.picture)


if __name__ == "__main__":
    main()
