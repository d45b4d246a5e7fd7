"""Contrast of real nodules of JSRT, on films and on their BSE-JSRT targets: what added nodules should look like.

Run: python runs/jsrt_contrast.py JSRT BONE_JSRT
Nodules are discs of the published centre and size; contrast is the mean of the disc minus that of its ring in the
lungs, as a share of the 8-bit range.  Films whose conversion crushed the greys are left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from chess_cxr.tasks.nodule_contrast import compute_contrast, draw_ring

BINS_MM = (0, 10, 15, 20, 30, 61)


def main() -> None:
    """Print contrasts by size."""
    jsrt, pairs = (Path(folder) for folder in sys.argv[1:3])
    cases = pd.read_csv(jsrt / "cases.csv")
    rows = []
    for case in cases[(cases["nodule"] == 1) & (cases["low_contrast"] == 0)].itertuples():
        film_HW = cv2.imread(str(jsrt / str(case.file)), cv2.IMREAD_GRAYSCALE) / 255
        y_HW, x_HW = np.mgrid[: film_HW.shape[0], : film_HW.shape[1]]
        mask_HW = np.hypot(y_HW - case.y_512, x_HW - case.x_512) <= max(case.radius_512, 2)
        organs_HW = cv2.imread(str(jsrt / "masks" / f"{case.case}.png"), cv2.IMREAD_UNCHANGED)
        ring_HW = draw_ring(mask_HW, (organs_HW & 3) > 0)
        row = {"size": case.size_mm, "film": compute_contrast(film_HW, mask_HW, ring_HW)[0]}
        target = pairs / "BSE_JSRT" / f"{case.case}.png"
        if target.exists():
            for name, path in (("pair_film", pairs / "JSRT" / target.name), ("pair_target", target)):
                picture_HW = 1 - cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) / 255
                row[name] = compute_contrast(picture_HW, mask_HW, ring_HW)[0]
        rows.append(row)
    found = pd.DataFrame(rows)
    for title, part in (("all", found), *found.groupby(pd.cut(found["size"], BINS_MM), observed=True)):
        numbers = part["film"].quantile((0.1, 0.5, 0.9)).round(4).tolist()
        both = part.dropna(subset=["pair_target"]) if "pair_target" in part else part[:0]
        line = f"{title} mm: {len(part)} nodules, contrast at the 10th, 50th, 90th percentile {numbers}"
        if len(both):
            film, target = both["pair_film"], both["pair_target"]
            line += f"; {len(both)} pairs, medians {film.median():.4f} on films, {target.median():.4f} on targets"
            line += f", sum on targets over that on films {target.sum() / film.sum():.3f}"
        print(line)


if __name__ == "__main__":
    main()
