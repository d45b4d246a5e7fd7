"""What heads are worth with few labels, on val films: how the defaults of `finetune classify` were chosen.

usage: OMP_NUM_THREADS=1 python runs/head_trials.py STORE ENCODER [--draws 3]

STORE: what runs/real_films.sh ingests.  Heads learn kermany3's three classes from 31 films (the column one_percent,
then random ones of as many patients) and from a tenth of the training patients, and are scored on the val films: no
test film is read.  Where a head needs films to choose its moment by, it holds out a fifth of its own patients.
Prints macro AUROC, the mean over draws and their range.
"""

import argparse
import statistics
from dataclasses import replace

import numpy as np

from chess_cxr.encoders.load import load_encoder
from chess_cxr.evaluation.label_fractions import draw_label_fraction
from chess_cxr.evaluation.metrics import compute_multiclass
from chess_cxr.store import Store, get_store
from chess_cxr.tasks.classify.config import FinetuneConfig
from chess_cxr.tasks.classify.labels import LabelledRows, select_labelled
from chess_cxr.tasks.classify.train import fit_classifier

CLASSES = ("bacteria", "normal", "virus")
TRIALS = {
    "linear": FinetuneConfig(),
    "mlp": FinetuneConfig("mlp"),
    "attentive": FinetuneConfig("attentive"),
    "full": FinetuneConfig("full"),
    "full, layer_decay 0.75": FinetuneConfig("full", layer_decay=0.75),
    "full, layer_decay 1": FinetuneConfig("full", layer_decay=1.0),
}


def draw_films(store: Store, chosen: LabelledRows, share: str, draw: int) -> np.ndarray:
    """Return the places of the training films of one draw."""
    train = np.flatnonzero(chosen.split == "train")
    if share == "31 films" and draw == 0:
        return train[store.films["one_percent"].to_numpy()[chosen.rows[train]] == 1]
    how = {"films": 31, "one_film_per_patient": True} if share == "31 films" else {"fraction": 0.1}
    return train[draw_label_fraction(chosen.patient[train], chosen.label[train], seed=draw, **how)]


def keep(chosen: LabelledRows, train: np.ndarray) -> LabelledRows:
    """Keep these training films, and the val films as those that are scored."""
    val = np.flatnonzero(chosen.split == "val")
    places = np.concatenate([train, val])
    split = np.array(["train"] * len(train) + ["test"] * len(val))
    return replace(
        chosen, rows=chosen.rows[places], label=chosen.label[places], patient=chosen.patient[places], split=split,
        study=chosen.study[places], target_NL=chosen.target_NL[places],
    )  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("encoder")
    parser.add_argument("--draws", type=int, default=3)
    options = parser.parse_args()
    store, encoder = get_store(options.store), load_encoder(options.encoder)
    chosen = select_labelled(store, CLASSES)
    print(f"{(chosen.split == 'val').sum()} val films, {options.draws} draws, {encoder.name}")
    for share in ("31 films", "10 %"):
        for name, config in TRIALS.items():
            values = []
            for draw in range(options.draws):
                part = keep(chosen, draw_films(store, chosen, share, draw))
                fitted = fit_classifier(encoder, store, part, replace(config, seed=draw), lambda *_: None)
                scored = part.label[part.split == "test"]
                values.append(compute_multiclass(scored, fitted.scores["test"], CLASSES)["auroc"])
            print(
                f"{share:10} {name:24} {statistics.mean(values):.3f}  {min(values):.3f} … {max(values):.3f}", flush=True
            )


if __name__ == "__main__":
    main()
