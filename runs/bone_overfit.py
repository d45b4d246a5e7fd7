"""Fit four squares of four pairs again and again: a network that cannot do it has a fault in its head or its loss.

Run: python runs/bone_overfit.py cxr-first bone_jsrt --head softplus
     python runs/bone_overfit.py cxr-first bone_jsrt
Prints the share of the bone that is left (1 − <found, true> / <true, true>), its absolute error as a share of the bone,
found and true bone, and the norm of the gradients.
"""

from __future__ import annotations

import argparse

import torch

from chess_cxr.encoders.load import load_encoder
from chess_cxr.tasks.bones.network import build_bone_network
from chess_cxr.tasks.bones.objective import SuppressBones
from chess_cxr.tasks.bones.pairs import find_spacing, read_pairs
from chess_cxr.tasks.bones.score import shrink_pair
from chess_cxr.tasks.bones.train import measure_bone_grey, weigh_pairs
from chess_cxr.tasks.bones.views import PairViews, TrainingPair, draw_pair_batch

SQUARES = 4


def main() -> None:
    """Fit, and print every 20 steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder")
    parser.add_argument("pairs", help="a folder of pairs, or phantom:4@256")
    parser.add_argument("--head", choices=("linear", "softplus"), default="linear")
    for name, default in (("size", 256), ("crop", 128), ("steps", 80), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=1e-3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    shrunk = [shrink_pair(pair, args.size) for pair in read_pairs(args.pairs)[:SQUARES]]
    pairs = [TrainingPair(pair.film_HW, pair.bone_free_HW, find_spacing(pair)) for pair in shrunk]
    score_grey = 0.0
    if args.head == "linear":
        pairs, score_grey = weigh_pairs(pairs), measure_bone_grey(pairs)
    batch = draw_pair_batch(pairs, range(len(pairs)), args.seed, PairViews(args.crop))
    task = SuppressBones(build_bone_network(load_encoder(args.encoder), "tiny", args.seed, score_grey=score_grey))
    optimizer = torch.optim.AdamW(task.parameters(), args.rate, weight_decay=1e-4)
    bone = batch.film_B1HW - batch.bone_free_B1HW
    for step in range(args.steps + 1):
        [(_, loss)] = task.losses(batch)
        optimizer.zero_grad()
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0))
        if step % 20 == 0:
            with torch.no_grad():
                found = task.network(batch.film_B1HW)
            left = 1 - float((found * bone).sum() / (bone**2).sum())
            error = float((found - bone).abs().sum() / bone.abs().sum())
            print(f"step {step}: left {left:.3f}, error {error:.3f}, found {found.mean():.4f} ± {found.std():.4f}, "
                  f"true {bone.mean():.4f} ± {bone.std():.4f}, gradients {norm:.4f}", flush=True)  # fmt: skip
        optimizer.step()


if __name__ == "__main__":
    main()
