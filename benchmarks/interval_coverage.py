"""How often 95 % intervals hold the truth, and how often p < 0.05 where there is nothing to find: simulated test sets.

Each trial draws one to four films a patient; labels and scores of a patient go together (a score is gain * label + an
effect of the patient + noise; a tenth of the labels differ from the patient's).  Two sets of scores share half of that
effect and have the same true AUROC.  For each setting the table says how many of the trials held the truth, with the
95 % interval of that share (Clopper-Pearson); "by film" takes films for independent, which is wrong here and shows what
the patient is for.  Trials in which a method gives no interval (no variance) count as misses and are told.

usage: OMP_NUM_THREADS=1 python benchmarks/interval_coverage.py [--trials 1000] [--replicates 500] [--settings 0 1]
"""

import argparse
import math
from collections import Counter

import numpy as np
from scipy import stats

from chess_cxr.evaluation.delong import compare_areas, estimate_area_interval
from chess_cxr.evaluation.intervals import (
    average_draws,
    bootstrap_draws_by_patient,
    interval_of_rate,
    replicate_draws,
    subtract_draws,
)
from chess_cxr.evaluation.metrics import build_binary_statistic

# patients, true AUROC, share of patients with the finding
SETTINGS = ((40, 0.8, 0.5), (120, 0.8, 0.4), (120, 0.95, 0.4), (120, 0.8, 0.1), (400, 0.8, 0.1), (400, 0.8, 0.4))
SPREAD = 1.25  # variance of a score: 1 of the patient, 0.25 of the film


def draw_films(generator: np.random.Generator, patients: int, area: float, share: float) -> tuple[np.ndarray, ...]:
    """Return patient_N, label_N and two scores [2, N]."""
    patient = np.repeat(np.arange(patients), generator.integers(1, 5, patients))
    label = (generator.random(patients) < share)[patient] ^ (generator.random(len(patient)) < 0.1 * 2 * share)
    effect = generator.normal(0, math.sqrt(0.5), patients) + generator.normal(0, math.sqrt(0.5), (2, patients))
    gain = stats.norm.ppf(area) * math.sqrt(2 * SPREAD)
    score = gain * label + effect[:, patient] + generator.normal(0, 0.5, (2, len(patient)))
    return patient, label.astype(float), score


def simulate(setting: tuple[int, float, float], trials: int, replicates: int, seed: int) -> Counter:
    """Return by method how many trials held the truth, or found nothing, and how many gave nothing."""
    patients, area, share = setting
    held: Counter = Counter()
    for trial in range(trials):
        generator = np.random.default_rng((seed, trial, patients))
        patient, label, score = draw_films(generator, patients, area, share)
        statistics = [build_binary_statistic(label, one) for one in score]
        first, second = (replicate_draws(patient, [one], replicates, trial)["auroc"] for one in statistics)
        film = np.arange(len(patient))
        by_film = bootstrap_draws_by_patient(film, [statistics[0]], replicates, trial)["auroc"]
        gap = subtract_draws(first, second, trial)
        tested, tested_by_film = compare_areas(label, *score, patient), compare_areas(label, *score)
        areas = {
            "area, bootstrap by patient": average_draws(first, trial),
            "area, bootstrap by film": by_film,
            "area, DeLong by patient": estimate_area_interval(label, score[0], patient),
            "area, DeLong by film": estimate_area_interval(label, score[0]),
        }
        for method, found in areas.items():
            held[method] += found.low <= area <= found.high
            held[f"{method}: none"] += math.isnan(found.low)
        gaps = {"difference, bootstrap by patient": gap, "difference, DeLong by patient": tested}
        for method, found in gaps.items():
            held[method] += found.low <= 0.0 <= found.high
            held[f"{method}: none"] += math.isnan(found.low)
        tests = {"bootstrap by patient": gap.p, "DeLong by patient": tested.p, "DeLong by film": tested_by_film.p}
        for method, p in tests.items():
            held[f"p >= 0.05, {method}"] += not p < 0.05
    return held


def simulate_rates(patients: int, rate: float, trials: int, seed: int) -> int:
    """Return how many Wilson intervals held the rate; patients differ (beta, 10 films of one say as much as 1.9)."""
    held = 0
    for trial in range(trials):
        generator = np.random.default_rng((seed, trial, patients))
        patient = np.repeat(np.arange(patients), generator.integers(1, 5, patients))
        own = generator.beta(10 * rate, 10 * (1 - rate), patients)
        found = interval_of_rate(generator.random(len(patient)) < own[patient], patient)
        held += found.low <= rate <= found.high
    return held


def describe(held: int, trials: int) -> str:
    low, high = stats.binomtest(held, trials).proportion_ci()
    return f"{held / trials:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", type=int, nargs="*", default=list(range(len(SETTINGS))), help="which of them")
    arguments = parser.parse_args()
    print(f"{arguments.trials} trials a setting, {arguments.replicates} replicates, seed {arguments.seed}; simulated")
    for setting in (SETTINGS[number] for number in arguments.settings):
        patients, area, share = setting
        print(f"\n{patients} patients, true AUROC {area}, {share:.0%} of patients positive", flush=True)
        held = simulate(setting, arguments.trials, arguments.replicates, arguments.seed)
        for method in [name for name in held if not name.endswith(": none")]:
            without = held[f"{method}: none"]
            note = f"  ({without} without an interval)" if without else ""
            print(f"  {method:36s} {describe(held[method], arguments.trials)}{note}", flush=True)
    print("\nshare of films, interval_of_rate")
    for patients, rate in ((15, 0.9), (40, 0.8), (40, 0.95), (200, 0.9)):
        held_rates = simulate_rates(patients, rate, arguments.trials, arguments.seed)
        print(f"  {patients} patients, true share {rate:<21} {describe(held_rates, arguments.trials)}")


if __name__ == "__main__":
    main()
