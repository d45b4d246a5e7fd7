"""Cut squares of lung with and without a nodule out of JSRT's films, with a table for `chess-cxr ingest`.

usage: python runs/make_jsrt_crops.py DATA OUT

Each film with a nodule gives one square around it, a little off its middle, and one of healthy lung at a random place;
each film without gives two of healthy lung.  A square is 96 pixels wide: 67 mm.  Patients are named as in
make_pool_table.py.  The 6 films of low contrast are left out.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

SIDE = 96  # pixels of films of 512, which are 0.7 mm wide
LUNGS = 1 | 2  # bits of the masks
TRIES = 200


def cut_crops(data: Path, out: Path, seed: int = 0) -> pd.DataFrame:
    """Write the squares as PNG; return one row each: file, patient, nodule."""
    cases = pd.read_csv(data / "jsrt/cases.csv").query("low_contrast == 0")
    rows = []
    (out / "crops").mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(cases.itertuples()):
        rng = np.random.default_rng([seed, number])
        film_HW = cv2.imread(str(data / "jsrt" / str(case.file)), cv2.IMREAD_GRAYSCALE)
        lung_HW = cv2.imread(str(data / "jsrt/masks" / Path(str(case.file)).name), cv2.IMREAD_UNCHANGED) & LUNGS > 0
        places = []
        if case.nodule:
            row, column = np.array([case.y_512, case.x_512]) + rng.integers(-12, 13, 2)
            places.append((_place(row), _place(column), 1))
        places += [(*corner, 0) for corner in _find_healthy(case, lung_HW, rng, 2 - len(places))]
        for at, (top, left, nodule) in enumerate(places):
            name = f"crops/{case.case}_{at}.png"
            cv2.imwrite(str(out / name), film_HW[top : top + SIDE, left : left + SIDE])
            rows.append({"file": name, "patient": f"jsrt/{case.case}", "nodule": nodule})
    return pd.DataFrame(rows)


def _find_healthy(case: object, lung_HW: np.ndarray, rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Choose squares whose middle is lung and which hold nothing of the nodule."""
    spots, found = np.argwhere(lung_HW), []
    for row, column in spots[rng.permutation(len(spots))[:TRIES]]:
        top, left = _place(row), _place(column)
        reach = case.radius_512 if case.nodule else -SIDE  # type: ignore[attr-defined]
        y, x = (case.y_512, case.x_512) if case.nodule else (0, 0)  # type: ignore[attr-defined]
        if not (top - reach < y < top + SIDE + reach and left - reach < x < left + SIDE + reach):
            found.append((top, left))
        if len(found) == count:
            break
    return found


def _place(middle: float) -> int:
    return int(np.clip(middle - SIDE / 2, 0, 512 - SIDE))


if __name__ == "__main__":
    place = Path(sys.argv[2])
    cut_crops(Path(sys.argv[1]), place).to_csv(place / "crops.csv", index=False)
