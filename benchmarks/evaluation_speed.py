"""CPU seconds of a linear probe, of the bootstrap and of reading a table of 100,000 films.

usage: OMP_NUM_THREADS=1 python benchmarks/evaluation_speed.py
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from chess_cxr.evaluation.intervals import bootstrap_draws_by_patient
from chess_cxr.evaluation.linear_probe import fit_linear_probe
from chess_cxr.evaluation.metrics import build_multiclass_statistic
from chess_cxr.sources.folder import read_folder

NAMES = ("a", "b", "c")
ROUNDS = 3


def measure(what: str, act: Callable[[], object]) -> None:
    """Print the median CPU seconds of a few rounds."""
    seconds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        act()
        seconds.append(time.process_time() - started)
    print(f"{what:60s} {statistics.median(seconds):7.2f} s (median of {ROUNDS})")


def main() -> None:
    generator = np.random.default_rng(11)
    label, feature = generator.integers(0, 3, 3095), generator.normal(size=(3095, 1280))
    measure("probe: 3,095 films, 1,280 features", lambda: fit_linear_probe(feature, label, range(3095), names=NAMES))
    tested, patient = generator.integers(0, 3, 519), generator.integers(0, 285, 519)
    statistic = build_multiclass_statistic(tested, generator.normal(size=(519, 3)), NAMES)
    measure("bootstrap: 1,000 x 519 films", lambda: bootstrap_draws_by_patient(patient, [statistic]))
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "labels.csv"
        rows = "".join(f"images/{i}.png,{i // 3},{i % 90}Y,{i % 2},\n" for i in range(100_000))
        table.write_text("file,patient,age,Edema,Mass\n" + rows)
        measure("table: 100,000 films", lambda: list(read_folder([Path(folder)], table, {"labels": "Edema,Mass"})))


if __name__ == "__main__":
    main()
