"""Score a bone model on the test pairs of its training, their real nodules, added nodules, and dual-energy films.

Run: python runs/score_bones.py MODEL OUT --pairs bone_jsrt phantom:80@512#1 --jsrt jsrt --ct ct_nodules
     --other bone_pairs
The split is that of `finetune bones` for the same pairs in the same order.  OUT holds films.csv, nodules.csv and a
picture of the best, median and worst film; what stands there is not scored again.  CT bodies are those of a quarter of
the scans; training has seen them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from bone_folds import OURS, add_masks, add_rows, describe, has_rows, score_itself, score_network, tabulate
from bone_recipe import read_ct

from chess_cxr.tasks.bones.model import load_bone_suppressor
from chess_cxr.tasks.bones.pairs import read_pairs, split_pairs
from chess_cxr.tasks.bones.score import score_pair, shrink_pair

TARGET = "target"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--pairs", nargs="+", required=True)
for name in ("jsrt", "ct", "other"):
    parser.add_argument(f"--{name}", default="")
args = parser.parse_args()
torch.set_num_threads(1)
args.out.mkdir(parents=True, exist_ok=True)
model = load_bone_suppressor(args.model)
pairs = [shrink_pair(pair, model.size) for place in args.pairs for pair in read_pairs(place)]
test = [add_masks(pair, args.jsrt) for pair in split_pairs(pairs, 0.1, 0.2, 0)["test"]]
real, drawn = ([pair for pair in test if (pair.kind == "phantom") is it] for it in (False, True))
own = {pair.group for pair in pairs}
foreign = [shrink_pair(pair, model.size) for pair in (read_pairs(args.other) if args.other else [])]
dual = [pair for pair in foreign if pair.name.startswith("bone_suppression") and pair.group not in own]
score_itself(args.out, 0, [*test, *dual])
if not has_rows(args.out / "films.csv", 0, TARGET):
    with_nodule = [pair for pair in real if pair.nodule_HW is not None]
    rows = [describe(pair, 0, TARGET) | score_pair(pair, pair.bone_free_HW) for pair in with_nodule]
    add_rows(args.out / "films.csv", rows)
score_network(args.out, 0, OURS, model, real, [*drawn, *dual], read_ct(args.ct, "test"))
print(tabulate(args.out))
