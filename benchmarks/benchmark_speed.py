"""Time the evaluation of one encoder with cached features against a loop over scikit-learn with the same protocol.

usage: OMP_NUM_THREADS=1 python benchmarks/benchmark_speed.py [--films 3000] [--features 512] [--draws 10]
The protocol: six label fractions, draws of each, a penalty chosen by 5-fold cross-validation by patient from the same
grid, AUROC with a bootstrap.  The loop runs one draw of each fraction and is scaled to all of them.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from chess_cxr.benchmarking.draws import LabelDraw, plan_draws
from chess_cxr.benchmarking.suite import FRACTIONS
from chess_cxr.benchmarking.tables import build_statistic
from chess_cxr.evaluation.intervals import average_draws, replicate_draws
from chess_cxr.evaluation.linear_probe import STRENGTHS, fit_linear_probe
from peers import import_peer

LogisticRegression = import_peer("sklearn.linear_model").LogisticRegression
roc_auc_score = import_peer("sklearn.metrics").roc_auc_score
GroupKFold = import_peer("sklearn.model_selection").GroupKFold
StandardScaler = import_peer("sklearn.preprocessing").StandardScaler

NAMES = ("bacteria", "normal", "virus")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("films", 3000), ("features", 512), ("draws", 10), ("replicates", 2000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    label, patient = rng.integers(3, size=args.films), np.arange(args.films)
    signal = np.eye(3)[label] @ rng.normal(size=(3, args.features)) / 10
    feature = (rng.normal(size=(args.films, args.features)) + signal).astype(np.float32)
    train, test = np.flatnonzero(patient % 5), np.flatnonzero(patient % 5 == 0)
    plan = plan_draws(patient, label, train, FRACTIONS, draws=args.draws)
    mine = theirs = 0.0
    for subset in dict.fromkeys(draw.subset for draw in plan):
        draws = [draw for draw in plan if draw.subset == subset]
        started = time.process_time()
        statistics = [
            build_statistic("multiclass", label[test], fit(feature, label, patient, draw, test), NAMES)
            for draw in draws
        ]
        parts = replicate_draws(patient[test], statistics, args.replicates)
        ours = time.process_time() - started
        started = time.process_time()
        auroc = loop(feature, label, patient, draws[0], test, args.replicates)
        looped = (time.process_time() - started) * len(draws)
        value = average_draws(parts["auroc"]).value
        print(
            f"{subset:>6}: {ours:6.1f} s, loop {looped:7.1f} s; AUROC {value:.3f}, first draw of the loop {auroc:.3f}"
        )
        mine, theirs = mine + ours, theirs + looped
    print(f"   all: {mine:6.1f} s of CPU, loop {theirs:7.1f} s, {theirs / mine:.0f} times")


def fit(feature: np.ndarray, label: np.ndarray, patient: np.ndarray, draw: LabelDraw, test: np.ndarray) -> np.ndarray:
    """Fit the probe of a benchmark."""
    rows = draw.film_index
    probe = fit_linear_probe(feature[rows], label[rows], patient[rows], names=NAMES, seed=draw.seed)
    return probe.predict_scores(feature[test])


def loop(
    feature: np.ndarray, label: np.ndarray, patient: np.ndarray, draw: LabelDraw, test: np.ndarray, replicates: int
) -> float:
    """Do the same with scikit-learn: grid, folds by patient, bootstrap of AUROC, Brier score and accuracy."""
    rows = draw.film_index
    scaler = StandardScaler().fit(feature[rows])
    x, y = scaler.transform(feature[rows]), label[rows]
    losses = []
    for strength in STRENGTHS:
        loss = 0.0
        for inside, outside in GroupKFold(min(5, len(rows))).split(x, y, patient[rows]):
            if len(np.unique(y[inside])) == 3:
                model = LogisticRegression(C=1 / (strength * len(inside) * x.shape[1]), max_iter=1000)
                chance = model.fit(x[inside], y[inside]).predict_log_proba(x[outside])
                loss -= chance[np.arange(len(outside)), y[outside]].sum()
        losses.append(loss)
    best = STRENGTHS[int(np.argmin(losses))]
    model = LogisticRegression(C=1 / (best * len(rows) * x.shape[1]), max_iter=1000).fit(x, y)
    score, truth, rng = model.predict_proba(scaler.transform(feature[test])), label[test], np.random.default_rng(0)
    for _ in range(replicates):
        taken = rng.integers(len(truth), size=len(truth))
        roc_auc_score(truth[taken], score[taken], multi_class="ovr")
    return float(roc_auc_score(truth, score, multi_class="ovr"))


if __name__ == "__main__":
    main()
