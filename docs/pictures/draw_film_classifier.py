"""Draw docs/pictures/film_classifier.png: a generated film, its negative, their ranks, and the weights of the polarity.

usage: python docs/pictures/draw_film_classifier.py
"""

from pathlib import Path

import matplotlib
import numpy as np

from chess_cxr.ingest.film_classifier import compute_polarity_logit, compute_thumbnail, load_film_classifier
from chess_cxr.sources.phantom.film import draw_anatomy, draw_exposure, render_film

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


def main() -> None:
    """Draw five panels in a row."""
    film = (render_film(draw_anatomy(3), draw_exposure(3), size=256).pixels / 4095).astype(np.float32)
    polarity_P = load_film_classifier().polarity_P
    panels = [(film, "film (SYNTHETIC)", "gray"), (1 - film, "its negative", "gray")]
    for pixels, name in ((film, "ranks of the film"), (1 - film, "ranks of the negative")):
        rank_YX = compute_thumbnail(pixels).rank_YX
        panels.append((rank_YX, f"{name}\nlog odds {compute_polarity_logit(rank_YX, polarity_P):+.1f}", "RdBu"))
    panels.append((polarity_P.reshape(32, 32), "weights: blue where a film\nis brighter than elsewhere", "RdBu"))
    figure, axes = plt.subplots(1, 5, figsize=(11, 2.6), layout="constrained")
    for axis, (picture, title, colours) in zip(axes, panels, strict=True):
        reach = float(np.abs(picture).max())
        axis.imshow(picture, cmap=colours, vmin=0 if colours == "gray" else -reach, vmax=reach)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.savefig(Path(__file__).with_name("film_classifier.png"), dpi=80)


if __name__ == "__main__":
    main()
