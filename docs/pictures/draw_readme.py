"""Draw docs/pictures/readme.png: generated films, the same without bone, and the label efficiency on real films.

usage: python docs/pictures/draw_readme.py

The bone model is the published one; the curve is read from docs/proof/encoder/summary.csv.
"""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from chess_cxr.report.plots import COLOURS, MARKERS
from chess_cxr.tasks.bones.model import load_bone_suppressor
from chess_cxr.tasks.bones.pairs import draw_phantom_pair

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
PATIENTS = (90_001, 90_007)  # seeds of films that the bone model has not learnt from
NAMES = {
    "cxr-small": "cxr-small, pre-trained without labels",
    "ImageNet": "ImageNet, the same network at 224²",
    "pixels": "bare pixels",
}


def main() -> None:
    """Draw two pairs of films and the curve in a row."""
    suppressor = load_bone_suppressor("bones-small")
    films = [draw_phantom_pair(patient, 4, 512, "normal").film_HW for patient in PATIENTS]
    table = pd.read_csv(HERE.parent / "proof/encoder/summary.csv")
    table = table[(table["task"] == "kermany3") & (table["head"] == "linear") & (table["metric"] == "auroc")]
    figure, axes = plt.subplots(1, 5, figsize=(13, 2.9), layout="constrained", width_ratios=[1, 1, 1, 1, 1.7])
    for place, film_HW in enumerate(films):
        draw_film(axes[2 * place], film_HW, "generated film")
        draw_film(axes[2 * place + 1], suppressor.suppress(film_HW), "without bone")
    draw_curve(axes[4], table)
    figure.savefig(HERE / "readme.png", dpi=100)


def draw_film(axis: plt.Axes, film_HW: np.ndarray, title: str) -> None:
    """Draw one film under its title."""
    axis.imshow(film_HW, cmap="gray", vmin=0, vmax=1)
    axis.set_title(title, fontsize=10)
    axis.axis("off")


def draw_curve(axis: plt.Axes, table: pd.DataFrame) -> None:
    """Draw AUROC against the number of labelled films, with intervals."""
    for place, (encoder, name) in enumerate(NAMES.items()):
        rows = table[table["encoder"] == encoder].sort_values("n_train_films")
        films = rows["n_train_films"] * 1.05 ** (place - 1)
        axis.vlines(films, rows["low"], rows["high"], color=COLOURS[place], alpha=0.5)
        axis.plot(films, rows["value"], color=COLOURS[place], marker=MARKERS[place], markersize=4, label=name)
    axis.set_xscale("log")
    counts = sorted(set(table["n_train_films"]))
    axis.set_xticks(counts, [f"{count:,.0f}" for count in counts])
    axis.minorticks_off()
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title("pneumonia of children, real films: AUROC", fontsize=10)
    axis.set_xlabel("labelled films", fontsize=9)
    axis.legend(frameon=False, fontsize=7.5, loc="lower right")


if __name__ == "__main__":
    main()
