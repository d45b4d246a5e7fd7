"""Time the judgement of one generated film of 512 x 512 pixels, this checkout and others in turn.

usage: OMP_NUM_THREADS=1 python benchmarks/judging.py [OTHER_CHECKOUT ...]
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

ROUNDS = 3
TIMED = """
import time, cv2, numpy as np
from chess_cxr.decode.decoded import FilmHeader
from chess_cxr.ingest.options import QualityOptions
from chess_cxr.ingest.quality import judge_film
from chess_cxr.sources.phantom.film import draw_anatomy, draw_exposure, render_film
cv2.setNumThreads(1)
film = (render_film(draw_anatomy(3), draw_exposure(3), size=512).pixels / 4095).astype(np.float32)
milliseconds = []
for _ in range(300):
    started = time.perf_counter()
    judge_film(film, FilmHeader(), 512, 512, QualityOptions())
    milliseconds.append(1000 * (time.perf_counter() - started))
print(min(milliseconds))
"""


def main() -> None:
    """Print the least time of each round and checkout, then the median of each checkout."""
    checkouts = [Path(__file__).parent.parent, *map(Path, sys.argv[1:])]
    least: dict[Path, list[float]] = {checkout: [] for checkout in checkouts}
    for _ in range(ROUNDS):
        for checkout in checkouts:
            environment = {**os.environ, "PYTHONPATH": str(checkout.resolve() / "src")}
            answer = subprocess.run(
                [sys.executable, "-c", TIMED], env=environment, check=True, capture_output=True, text=True
            )
            least[checkout].append(float(answer.stdout))
            print(checkout, f"{least[checkout][-1]:.3f} ms", flush=True)
    for checkout, times in least.items():
        print(f"{checkout}: {statistics.median(times):.3f} ms, the median of {ROUNDS} rounds (least of 300 films each)")


if __name__ == "__main__":
    main()
