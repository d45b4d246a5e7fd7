"""Count what the installed judge of films flags and leaves out, to compare two versions of it.

usage: PYTHONPATH=CHECKOUT/src python runs/count_judged.py DATA PHOTOGRAPHS [SET ...]

Judges screenshots, blank films, PHOTOGRAPHS, pydicom's pictures, pieces of projected CT, and the films of the named
sets of pool_wide.csv, as the ingest does: by `judge_film` with its default options.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from film_pictures import read_film
from screen_pictures import read_unseen

from chess_cxr.decode.decoded import FilmHeader
from chess_cxr.ingest.options import QualityOptions
from chess_cxr.ingest.quality import judge_film


def read_pictures(data: Path, photographs: Path, sets: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the kind of each picture and its pixels."""
    yield from read_unseen(data, photographs)
    with (data / "pool_wide.csv").open(encoding="utf-8", newline="") as file:
        yield from ((r["set"], read_film(data / r["file"])) for r in csv.DictReader(file) if r["set"] in sets)


def main() -> None:
    """Print a line a kind: how many, how many flagged as not_chest, how many left out."""
    counts: dict[str, list[int]] = {}
    for kind, pixels in read_pictures(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]):
        judged = judge_film(pixels, FilmHeader(), *pixels.shape, QualityOptions())
        count = counts.setdefault(kind, [0, 0, 0])
        for at, held in enumerate((True, "not_chest" in judged.flags, bool(judged.reject))):
            count[at] += held
    for kind, (total, flagged, left_out) in counts.items():
        print(f"{kind}: {total}, flagged {flagged}, left out {left_out}")


if __name__ == "__main__":
    main()
