"""Does a nodule classifier do better on bone-suppressed films?  Real JSRT squares, cross-validated by patient.

Run: python runs/bone_downstream.py weights/cxr-small PAIRS JSRT OUT
The bone network learns from 100 phantoms (SYNTHETIC) and all real pairs, 7 or more of which are JSRT films; no nodule
label is used for that.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from nodule_crops import compare_auroc, cut_crops, embed_crops, fit_and_score, measure_auroc, place_crops, say

from chess_cxr.encoders.load import load_encoder
from chess_cxr.evaluation.label_fractions import assign_folds
from chess_cxr.tasks.bones.config import BonesConfig
from chess_cxr.tasks.bones.model import BoneSuppressor
from chess_cxr.tasks.bones.pairs import read_pairs
from chess_cxr.tasks.bones.score import shrink_pair
from chess_cxr.tasks.bones.sheet import draw_suppression_sheet
from chess_cxr.tasks.bones.train import train_bone_network
from chess_cxr.tasks.nodules.films import read_nodule_films
from chess_cxr.tasks.nodules.score import measure_nodule


def main() -> None:
    """Train, suppress, classify both, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("encoder", "pairs", "jsrt"):
        parser.add_argument(name)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    real = [shrink_pair(pair, 256) for pair in read_pairs(args.pairs)]
    config = BonesConfig(
        size=256, crop=128, decoder="tiny", keep_nodules=0.0, spread=False, head="softplus", steps=300, batch=8
    )
    network = train_bone_network(
        args.out / "run", load_encoder(args.encoder), real * 10 + read_pairs("phantom:100@256#1"), [], config
    )
    suppressor = BoneSuppressor(network, 256, 128)
    films = read_nodule_films(args.jsrt, 256)
    pictures = {"film": [f.film_HW for f in films], "suppressed": [suppressor.suppress(f.film_HW) for f in films]}
    draw_suppression_sheet(
        [(f.name, f.film_HW, s, None) for f, s in zip(films[:6], pictures["suppressed"], strict=False)],
        args.out / "jsrt.png", synthetic=False,
    )  # fmt: skip
    lines = [f"{len(films)} JSRT films of {len({f.group for f in films})} patients, 256 pixels"]
    for name, shown in pictures.items():
        cnr = [
            measure_nodule(s, f.mask_HW, f.lung_HW).cnr for f, s in zip(films, shown, strict=True) if f.mask_HW.any()
        ]
        contrast = [
            measure_nodule(s, f.mask_HW, f.lung_HW).contrast
            for f, s in zip(films, shown, strict=True)
            if f.mask_HW.any()
        ]
        lines.append(f"{name}: nodules' mean CNR {np.mean(cnr):.3f}, contrast {np.mean(contrast):.4f} (n {len(cnr)})")
    places = place_crops(films, seed=0)
    for spec in (args.encoder, "imagenet:tf_efficientnet_lite0"):
        encoder = load_encoder(spec)
        crops = {name: cut_crops(films, shown, places) for name, shown in pictures.items()}
        feature = {name: embed_crops(encoder, found) for name, found in crops.items()}
        feature["both"] = np.hstack([feature["film"], feature["suppressed"]])
        base = crops["film"]
        scores = {}
        for name, feature_ND in feature.items():
            score = np.zeros(len(base.label))
            for repeat in range(5):
                fold_N = assign_folds(base.group, base.label, 5, repeat)
                for fold in range(5):
                    test = fold_N == fold
                    found = fit_and_score(feature_ND[~test], base.label[~test], feature_ND[test])
                    score[test] += (found - found.mean()) / found.std()
            scores[name] = score
        lines.append(f"{encoder.name}: {base.label.sum()} squares with a nodule, {(1 - base.label).sum()} without")
        lines += [f"  {name}: AUROC {say(measure_auroc(base, score))}" for name, score in scores.items()]
        for name in ("suppressed", "both"):
            lines.append(f"  {name} - film: {say(compare_auroc(base, scores[name], scores['film']))}")
    (args.out / "downstream.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
