"""Draw ribs left against nodules kept, from the scores that runs/keep_curve.sh wrote, and print the table.

Run: python runs/keep_curve.py OUT
Ribs: mean over films of their contrast, beyond the target's.  Nodules: median contrast of those added to the films.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from bone_folds import OURS
from matplotlib.figure import Figure

KINDS = {"bse-jsrt": "real films", "phantom": "phantoms (SYNTHETIC)"}


def read_point(folder: Path, kind: str) -> tuple[float, float, float, float]:
    """Return PSNR in dB, ribs left, median of nodules kept and the share of them below 0.8."""
    films, nodules = (pd.read_csv(folder / f"{name}.csv") for name in ("films", "nodules"))
    films, nodules = (rows[(rows["network"] == OURS) & (rows["kind"] == kind)] for rows in (films, nodules))
    ribs = films["rib_residual_from_truth"].replace([np.inf, -np.inf], np.nan)
    return films["psnr"].mean(), ribs.mean(), nodules["kept"].median(), (nodules["kept"] < 0.8).mean()


def main() -> None:
    """Print one row a weight, and draw one panel a kind of film."""
    out = Path(sys.argv[1])
    folders = sorted(out.glob("score*"), key=lambda path: float(path.name.removeprefix("score")))
    figure = Figure((8, 3.4), layout="constrained")
    print("| `--keep-nodules` | films | PSNR, dB | ribs left | nodules kept, median | below 0.8 |")
    print("| --- " * 6 + "|")
    for axes, (kind, title) in zip(figure.subplots(1, 2), KINDS.items(), strict=True):
        points = [read_point(folder, kind) for folder in folders]
        axes.plot([point[1] for point in points], [point[2] for point in points], "o-", color="C0")
        for folder, (psnr, ribs, kept, below) in zip(folders, points, strict=True):
            weight = folder.name.removeprefix("score")
            axes.annotate(weight, (ribs, kept), xytext=(6, -10), textcoords="offset points")
            print(f"| {weight} | {title} | {psnr:.2f} | {ribs:.3f} | {kept:.3f} | {below:.3f} |")
        axes.set(title=title, xlabel="ribs left (contrast, 0: gone)", ylabel="added nodules kept (1: all)")
        axes.grid(alpha=0.3)
    figure.savefig(out / "keep_curve.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
