"""Draw and list how the encoders of trials became better: kNN and linear AUROC on val films, and effective rank.

usage: python runs/trial_curves.py TRIALS STORE OUT.svg [--seconds 600]

TRIALS: what runs/trials.py wrote.  Films and labels are those of a run's probe; untrained is the network of the first
trial (by name) with random weights.  Every trial took the same CPU seconds, evenly over its steps.
"""

import argparse
import json
from pathlib import Path

import torch
from matplotlib.figure import Figure

from chess_cxr.encoders.encoder import build_encoder
from chess_cxr.pretraining.probe import probe_encoder, read_labelled_films
from chess_cxr.pretraining.runs import read_metrics
from chess_cxr.store import open_store

MEASURES = {"knn_auroc": "kNN AUROC", "linear_auroc": "linear AUROC", "effective_rank": "effective rank"}


def probe_untrained(run: Path, store: Path) -> dict[str, float]:
    """Probe a run's network with random weights, on the films that the run probes."""
    config = json.loads((run / "config.json").read_text())
    films = read_labelled_films([open_store(store)], config["views"]["size"])
    assert films is not None
    torch.manual_seed(config["training"]["seed"])
    encoder = build_encoder(config["method"]["architecture"])
    return probe_encoder(encoder, films, config["pixels"]["mean"], config["pixels"]["std"])


def main() -> None:
    """Read the runs, print the table and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    asked = parser.parse_args()
    runs = sorted(
        path.parent for path in asked.trials.glob("*/run/config.json") if (path.parents[1] / "encoder").exists()
    )
    untrained = probe_untrained(runs[0], asked.store)
    curves = {}
    for run in runs:
        steps = json.loads((run / "config.json").read_text())["training"]["steps"]
        lines = [line for line in read_metrics(run) if "probe/knn_auroc" in line]
        shares = [line["step"] / steps for line in lines]
        curves[run.parent.name] = shares, {name: [line[f"probe/{name}"] for line in lines] for name in MEASURES}
    figure = Figure((11, 3.6), layout="constrained")
    for axes, (measure, title) in zip(figure.subplots(1, 3), MEASURES.items(), strict=True):
        axes.axhline(untrained[measure], color="grey", linestyle=":", label="untrained")
        for index, (name, (shares, values)) in enumerate(curves.items()):
            style = "-" if index < 10 else "--"
            axes.plot([share * asked.seconds for share in shares], values[measure], style, label=name)
        axes.set(title=title, xlabel="CPU seconds")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(asked.out)
    print(f"| trial | steps | {' | '.join(MEASURES.values())} | after half of the time: kNN, linear |\n|{' --- |' * 6}")
    print(f"| untrained | 0 | {' | '.join(f'{untrained[name]:.3f}' for name in MEASURES)} | |")
    for name, (_, values) in curves.items():
        steps = json.loads((asked.trials / name / "run" / "config.json").read_text())["training"]["steps"]
        half = [values[measure][len(values[measure]) // 2 - 1] for measure in ("knn_auroc", "linear_auroc")]
        ends = " | ".join(f"{values[measure][-1]:.3f}" for measure in MEASURES)
        print(f"| {name} | {steps:,} | {ends} | {half[0]:.3f}, {half[1]:.3f} |")


if __name__ == "__main__":
    main()
