"""Compare perceptual networks for bone suppression: on phantoms (SYNTHETIC), and on real pairs by cross-validation.

Run: python runs/bone_proof.py phantom weights/cxr-first OUT
     python runs/bone_proof.py real weights/cxr-first OUT --pairs FOLDER [--steps 600 --data "phantom + real"]
Each run's scores are kept in OUT, one row a film; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from perceptual_strength import measure_strength

from chess_cxr.encoders.load import load_encoder
from chess_cxr.tasks.bones.config import BonesConfig
from chess_cxr.tasks.bones.model import BoneSuppressor
from chess_cxr.tasks.bones.pairs import FilmPair, fold_pairs, read_pairs
from chess_cxr.tasks.bones.score import score_pair, score_pairs, shrink_pair
from chess_cxr.tasks.bones.sheet import draw_suppression_sheet
from chess_cxr.tasks.bones.train import train_bone_network
from chess_cxr.tasks.config import PerceptualConfig

Recipe = tuple[str, str, str, float | None]
BALANCED = "balanced"
RECIPES: tuple[Recipe, ...] = (
    # name, perceptual network, how features are compared, weight; None: as strong as the CXR network at weight 1
    ("none", "none", "raw", 0.0),
    ("CXR, published weights", "same", "raw", 1.0),
    ("ImageNet, published weights", "imagenet", "raw", 1.0),
    ("CXR, unit features", "same", "unit", 1.0),
    ("ImageNet, unit features", "imagenet", "unit", 1.0),
    ("ImageNet, as strong as CXR", "imagenet", "raw", None),
    # each stage of any network costs a fifth of L1 on noise, blur, brightness and mottle; bone from a linear head
    ("none, linear head", "none", BALANCED, 0.0),
    ("CXR, balanced", "same", BALANCED, 1.0),
    ("ImageNet, balanced", "imagenet", BALANCED, 1.0),
    ("random, balanced", "random", BALANCED, 1.0),
)
PUBLISHED = range(6)  # recipes that run by default
FOLDS = 3
STEPS = {"phantom": 200, "real": 150}


def main() -> None:
    """Parse the command and run the part that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("phantom", "real"))
    parser.add_argument("encoder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", default="")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="0: 200 for phantoms, 150 for real pairs")
    parser.add_argument("--recipes", type=int, nargs="+", default=None)
    parser.add_argument("--data", nargs="+", default=["phantom + real", "real"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    (args.out / "sheets").mkdir(parents=True, exist_ok=True)
    (run_phantom if args.part == "phantom" else run_real)(args)


def build_config(
    recipe: Recipe,
    size: int,
    args: argparse.Namespace,
    train: Sequence[FilmPair],
    seed: int,
) -> BonesConfig:
    """Build what differs by recipe and seed alone; pictures reach all perceptual networks at their own size."""
    _, network, scale, weight = recipe
    balanced = scale == BALANCED
    compare = PerceptualConfig(resolution="film", scale="raw" if balanced else scale)  # type: ignore[arg-type]
    if weight is None:
        encoder, some = load_encoder(args.encoder), [pair.bone_free_HW[:128, :128] for pair in train[:16]]
        own, theirs = (measure_strength(name, encoder, some, compare) for name in ("same", network))
        weight = own / theirs
    return BonesConfig(
        size=size, crop=128, decoder="tiny", perceptual=network, perceptual_weight=weight, compare=compare,
        balance=balanced and network != "none", keep_nodules=0.0, spread=False,
        head="linear" if balanced else "softplus", steps=args.steps or STEPS[args.part], batch=8, seed=seed,
    )  # fmt: skip


def run_phantom(args: argparse.Namespace) -> None:
    """Train on 300 generated patients, test on 60 others; films of 128 pixels."""
    train, val, test = (read_pairs(f"phantom:{n}@128#{seed}") for n, seed in ((300, 1), (20, 2), (60, 3)))
    table = args.out / "phantom.csv"
    add_film_itself(table, test)
    for seed in range(args.seeds):
        for recipe in [RECIPES[number] for number in args.recipes or PUBLISHED]:
            config = build_config(recipe, 128, args, train, seed)
            run_one(table, args.encoder, train, val, test, config, {"recipe": recipe[0], "seed": seed}, args.out)


def run_real(args: argparse.Namespace) -> None:
    """Cross-validate on real pairs, with and without phantoms among the training pairs; films of up to 256 pixels."""
    real = [shrink_pair(pair, 256) for pair in read_pairs(args.pairs)]
    phantoms = read_pairs("phantom:100@256#1")
    folds = fold_pairs(real, FOLDS)
    table = args.out / "real.csv"
    add_film_itself(table, real)
    for data in args.data:
        for recipe in [RECIPES[number] for number in args.recipes or range(3)]:
            for number, test in enumerate(folds):
                train = [pair for fold in folds if fold is not test for pair in fold]
                # a real pair is seen as often as phantoms are
                train = train * 10 + phantoms if data == "phantom + real" else train
                config = build_config(recipe, 256, args, train, seed=number)
                told = {"recipe": recipe[0], "seed": number, "data": data}
                run_one(table, args.encoder, train, [], test, config, told, args.out)


def add_film_itself(table: Path, test: Sequence[FilmPair]) -> None:
    """Score the films as they are: what doing nothing is worth."""
    if table.exists():
        return
    scores = [score_pair(pair, pair.film_HW) for pair in test]
    rows = [{"recipe": "film as it is", "seed": 0, "film": p.name, **s} for p, s in zip(test, scores, strict=True)]
    pd.DataFrame(rows).to_csv(table, index=False)


def run_one(
    table: Path,
    encoder: str,
    train: Sequence[FilmPair],
    val: Sequence[FilmPair],
    test: Sequence[FilmPair],
    config: BonesConfig,
    told: dict[str, object],
    out: Path,
) -> None:
    """Train one network, unless its scores stand in the table, and add its scores and its pictures."""
    known = pd.read_csv(table)
    same = np.ones(len(known), bool)
    for name, value in told.items():
        same &= (known[name] == value).to_numpy() if name in known else False
    if same.any():
        return
    started = time.perf_counter()
    name = "_".join(str(value) for value in told.values()).replace(" ", "-").replace(",", "")
    folder = out / "runs" / name
    network = train_bone_network(folder, load_encoder(encoder), train, val, config)
    suppressor = BoneSuppressor(network, config.size, config.crop)
    scores = score_pairs(suppressor, test)
    rows = [{**told, "film": pair.name, **score} for pair, score in zip(test, scores, strict=True)]
    pd.concat([known, pd.DataFrame(rows)]).to_csv(table, index=False)
    shown = [(p.name, p.film_HW, suppressor.suppress(p.film_HW), p.bone_free_HW) for p in test[:8]]
    draw_suppression_sheet(shown, out / "sheets" / f"{name}.png", synthetic=test[0].kind == "phantom")
    shutil.rmtree(folder / "checkpoints")
    psnr = np.mean([score["psnr"] for score in scores])
    print(f"{name}: PSNR {psnr:.2f} dB on {len(test)} films, {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
