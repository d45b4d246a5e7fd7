"""How much do made nodules differ from each other?  Settings side by side on real films.

Run: python runs/nodule_spread.py JSRT OUT [--steps 500] [--arms old free vary flow] [--begin-from FLOW]
Of a SPADE generator that is told a contrast, also the spread at one contrast.  Writes a model folder for each setting,
with its result.json and test_seeds.png, and spread.csv.  The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from chess_cxr.tasks.nodules.config import NodulesConfig
from chess_cxr.tasks.nodules.films import NoduleFilm, read_nodule_films, split_nodule_films
from chess_cxr.tasks.nodules.model import load_nodule_generator
from chess_cxr.tasks.nodules.plan import plan_windows
from chess_cxr.tasks.nodules.spread import NoduleSpread, measure_spread
from chess_cxr.tasks.nodules.train import draw_nodule_batch, finetune_nodules
from chess_cxr.tasks.nodules.windows import take_example

PLAIN = NodulesConfig(width=8, latent=16, perceptual="none", batch=8, vary=False)
ARMS = {
    "old": PLAIN,  # version 0.1
    "free": replace(PLAIN, kld=0.001),
    "vary": replace(PLAIN, vary=True),
    "flow": NodulesConfig(network="flow", width=8, perceptual="none", batch=8, learning_rate=1e-3),
}


def main() -> None:
    """Train each setting and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jsrt")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--begin-from", default="", help="a flow for the arm flow to begin from")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    films, rows = read_nodule_films(args.jsrt, 256), []
    for arm in args.arms:
        started, config = time.process_time(), replace(ARMS[arm], width=args.width, steps=args.steps, seed=args.seed)
        if arm == "flow":
            config = replace(config, begin_from=args.begin_from)
        out = args.out / arm
        if not (out / "config.json").exists():
            finetune_nodules("random:regnetx_002@64", films, out, config, device="cpu")
        result = json.loads((out / "result.json").read_text())
        spread, metrics, distance = result["spread"], result["metrics"], result["judged"]["distance"]
        rows += [
            {"arm": arm, "trait": trait, **{kind: spread[kind][trait] for kind in ("made", "real", "share")}}
            for trait in spread["share"]
        ]
        print(
            f"{arm}: {NoduleSpread(**spread).as_text()}; contrast made {metrics['contrast_made']['value']:.4f}, real "
            f"{metrics['contrast_real']['value']:.4f}; Fréchet distance "
            f"{distance['frechet']['value'] if distance else np.nan:.2f}; {time.process_time() - started:.0f} s of CPU",
            flush=True,
        )
        if arm == "vary":
            print(f"{arm}, at one contrast: {measure_at_one_contrast(out, films, config).as_text()}", flush=True)
    pd.DataFrame(rows).to_csv(args.out / "spread.csv", index=False)


def measure_at_one_contrast(model: Path, films: Sequence[NoduleFilm], config: NodulesConfig) -> NoduleSpread:
    """Measure the spread at the places of test nodules if only the latent differs, not the contrast that is told."""
    task = load_nodule_generator(model).task
    task.averaged.table.spread_Q.zero_()
    parts = split_nodule_films([take_example(film, plan_windows(config)) for film in films], config.seed, 0.1, 0.2)
    squares = {
        name: [draw_nodule_batch([w], None, config) for film in part for w in film.windows]
        for name, part in parts.items()
    }
    return measure_spread(task, [square for part in squares.values() for square in part], squares["test"])


if __name__ == "__main__":
    main()
