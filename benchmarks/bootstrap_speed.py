"""CPU seconds of 1,000 paired patient-bootstrap replicates: 14 AUROCs of two encoders on 25,000 films.

Beside it scikit-learn, in the loop people write: draw patients, gather their films, roc_auc_score of each finding for
both sets of predictions.  Both see the same films, labels (findings of 2 % to 50 %, a tenth unknown) and scores; the
loop runs fewer replicates and its seconds are scaled by their number.  Rounds alternate; the median is printed.
Generated data.

usage: OMP_NUM_THREADS=1 python benchmarks/bootstrap_speed.py [--rounds 3] [--loop-replicates 5]
"""

import argparse
import statistics
import time

import numpy as np

from chess_cxr.evaluation.intervals import paired_bootstrap_draws_by_patient
from chess_cxr.evaluation.metrics import build_multilabel_statistic
from peers import import_peer

roc_auc_score = import_peer("sklearn.metrics").roc_auc_score

FILMS, PATIENTS, FINDINGS, REPLICATES = 25_000, 10_000, 14, 1000
NAMES = tuple(f"finding {number}" for number in range(FINDINGS))


def draw_films(seed: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Return patient_N, label_NL and the float32 scores of two encoders."""
    generator = np.random.default_rng(seed)
    patient = generator.integers(0, PATIENTS, FILMS)
    label = (generator.random((FILMS, FINDINGS)) < np.linspace(0.02, 0.5, FINDINGS)).astype(float)
    noise = generator.normal(size=(FILMS, FINDINGS))
    scores = [(label * gain + noise + generator.normal(0, 0.5, noise.shape)).astype(np.float32) for gain in (1.0, 1.1)]
    label[generator.random(label.shape) < 0.1] = np.nan
    return patient, label, scores


def run_package(patient: np.ndarray, label: np.ndarray, scores: list[np.ndarray]) -> float:
    started = time.process_time()
    first, second = ([build_multilabel_statistic(label, score, NAMES)] for score in scores)
    found = paired_bootstrap_draws_by_patient(patient, first, second, REPLICATES, seed=1)
    assert found["auroc"].undefined == 0
    return time.process_time() - started


def run_loop(patient: np.ndarray, label: np.ndarray, scores: list[np.ndarray], replicates: int) -> float:
    """Return seconds for all REPLICATES, from `replicates` of them."""
    generator = np.random.default_rng(1)
    started = time.process_time()
    order = np.argsort(patient, kind="stable")
    names, first = np.unique(patient[order], return_index=True)
    films_of = np.split(order, first[1:])
    for _ in range(replicates):
        film = np.concatenate([films_of[place] for place in generator.integers(len(names), size=len(names))])
        for column in range(FINDINGS):
            truth = label[film, column]
            known = ~np.isnan(truth)
            for score in scores:
                roc_auc_score(truth[known], score[film, column][known])
    return (time.process_time() - started) * REPLICATES / replicates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loop-replicates", type=int, default=5)
    arguments = parser.parse_args()
    films = draw_films(0)
    package, loop = [], []
    for _ in range(arguments.rounds):
        package.append(run_package(*films))
        loop.append(run_loop(*films, arguments.loop_replicates))
    fast, slow = statistics.median(package), statistics.median(loop)
    print(f"chess_cxr, auroc and auprc: {fast:8.2f} s  (rounds: {', '.join(f'{one:.2f}' for one in package)})")
    print(f"scikit-learn loop, auroc:   {slow:8.1f} s  (scaled from {arguments.loop_replicates} replicates)")
    print(f"ratio {slow / fast:.0f}")


if __name__ == "__main__":
    main()
