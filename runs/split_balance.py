"""How evenly the splits share the labels of real films: the figures of the splits in docs/log.md.

usage: OMP_NUM_THREADS=1 python runs/split_balance.py DATA [SEEDS]    DATA: the folder that holds kermany3 and nih_covid

Printed is how far each label's prevalence in val (0.1 of the patients) and test (0.2) is from that in all films, as a
share of it: mean over labels, both splits and 20 seeds, with the standard deviation over the seeds, and the largest.

hash:          each patient by its id alone (`assign_split`)
stratified:    `assign_stratified_splits`: patients with the rarest label first, of those the ones with most films
random order:  the same, with the patients in the order of the draw
rarest first:  the same, with the patients of equally rare labels in the order of the draw, whatever films they have
rounding:      what is left with the best whole number of films of every label, in splits of the stratified sizes
"""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from chess_cxr.ingest import split
from chess_cxr.records import SourceFilm
from chess_cxr.sources.folder import read_folder

VAL, TEST = 0.1, 0.2
NIH_LABELS = "Atelectasis,Consolidation,Edema,Effusion,Infiltration,Pleural_Thickening,Pneumonia"  # 21 films or more
SETS: dict[str, dict[str, str]] = {"kermany3": {"class": "label"}, "nih_covid": {"labels": NIH_LABELS}}


def read_labelled(folder: Path, columns: Mapping[str, str]) -> list[SourceFilm]:
    """Read the films with a patient and all labels, without the splits that the table gives."""
    films = read_folder([folder], folder / "labels.csv", {**columns, "split": ""})
    return [film for film in films if film.patient and not any(map(math.isnan, film.labels.values()))]


def compute_deviations(films: Sequence[SourceFilm], split_of: Mapping[str, str]) -> tuple[float, float]:
    """Return the mean relative deviation of the labels' prevalence, and what rounding alone would leave."""
    label_NL = np.array([list(film.labels.values()) for film in films])
    split_N = np.array([split_of[film.patient] for film in films])
    whole = label_NL.mean(0)
    found, best = [], []
    for name in ("val", "test"):
        own = label_NL[split_N == name]
        found.append(abs(own.mean(0) - whole) / whole)
        best.append(abs(np.rint(whole * len(own)) / len(own) - whole) / whole)
    return float(np.mean(found)), float(np.mean(best))


def take_as_drawn(shown: split._Shown) -> np.ndarray:
    """Return the places of the patients in the order of the draw."""
    return np.arange(len(shown.starts) - 1)


def take_rarest_first(shown: split._Shown) -> np.ndarray:
    """Return the places of the patients by their rarest label alone."""
    holders = np.bincount(shown.trait, minlength=len(shown.traits))
    is_label = np.array([kind == "label" for kind, _ in shown.traits])
    rarity = np.where(is_label, holders, len(shown.starts))[shown.trait]
    return np.argsort(np.minimum.reduceat(rarity, shown.starts[:-1]), kind="stable")


ORDERS = {"random order": take_as_drawn, "rarest first": take_rarest_first}


def divide(films: Sequence[SourceFilm], seed: int, rule: str) -> dict[str, str]:
    """Split the patients by one of the rules."""
    if rule == "hash":
        return {film.patient: split.assign_split(film.patient, seed, VAL, TEST) for film in films}
    ranked = split._Shown.rank
    split._Shown.rank = ORDERS.get(rule, ranked)
    try:
        return split.assign_stratified_splits(films, seed, VAL, TEST)
    finally:
        split._Shown.rank = ranked


def main(data: Path, seeds: int) -> None:
    """Print a table a data set."""
    for name, columns in SETS.items():
        films = read_labelled(data / name, columns)
        patients = len({film.patient for film in films})
        print(f"{name}: {len(films):,} films of {patients:,} patients, {len(films[0].labels)} labels, {seeds} seeds")
        for rule in ("hash", *ORDERS, "stratified"):
            both = [compute_deviations(films, divide(films, seed, rule)) for seed in range(seeds)]
            found, best = np.transpose(both)
            print(f"  {rule:14}{found.mean():.3f} ± {found.std(ddof=1):.3f}, at most {found.max():.3f}")
        print(f"  {'rounding':14}{best.mean():.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20)
