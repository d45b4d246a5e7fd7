"""Does a machine find nodules better on bone-suppressed films?  A classifier of squares and a small detector.

Run: python runs/bone_downstream.py MODEL JSRT OUT --judges cxr-small imagenet:tf_efficientnet_lite0 [--pairs bone_jsrt]
Both learn from films, from suppressed films, and from both together, five folds by patient, five times, on JSRT's films
at 256 pixels (suppressed at the model's own size, no nodule is told to it).  Writes downstream.csv, downstream.txt and
a picture.  With --pairs the same is also told of the films alone that MODEL was not trained on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from nodule_crops import (
    Crops,
    build_measures,
    compare_arms,
    cut_crops,
    detect,
    embed_crops,
    fit_and_score,
    place_crops,
    place_grid,
)

from chess_cxr.encoders.encoder import Encoder
from chess_cxr.encoders.load import load_encoder
from chess_cxr.evaluation.label_fractions import assign_folds
from chess_cxr.tasks.bones.model import load_bone_suppressor
from chess_cxr.tasks.bones.pairs import read_pairs, split_pairs
from chess_cxr.tasks.bones.sheet import draw_suppression_sheet
from chess_cxr.tasks.nodules.films import NoduleFilm, read_nodule_films
from chess_cxr.tasks.nodules.score import measure_nodule

SIDE, FOLDS, REPEATS = 256, 5, 5
FILM, SUPPRESSED, BOTH = "film", "suppressed", "both"


@dataclass(frozen=True)
class Scores:
    """What a classifier gives to the squares and to a grid over the lungs, as means over repeated folds."""

    squares: np.ndarray
    grid: np.ndarray


def main() -> None:
    """Suppress, learn from both kinds of films, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "jsrt"):
        parser.add_argument(name)
    parser.add_argument("out", type=Path)
    parser.add_argument("--judges", nargs="+", required=True, help="encoders of the squares")
    parser.add_argument("--pairs", default="", help="the pairs that MODEL was trained on, split as by `finetune bones`")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    films = read_nodule_films(args.jsrt, SIDE)
    pictures = {FILM: [film.film_HW for film in films], SUPPRESSED: suppress(args.model, args.jsrt)}
    draw_suppression_sheet(
        [(f.name, f.film_HW, s, None) for f, s in zip(films[:6], pictures[SUPPRESSED], strict=False)],
        args.out / "jsrt.png", synthetic=False,
    )  # fmt: skip
    lines = [f"{len(films)} JSRT films of {len({f.group for f in films})} patients, {SIDE} pixels"]
    lines += [describe_nodules(name, films, shown) for name, shown in pictures.items()]
    subsets = {"all films": np.ones(len(films), bool)}
    if args.pairs:
        parts = split_pairs(read_pairs(args.pairs), 0.1, 0.2, 0)
        learnt = {pair.group for part in ("train", "val") for pair in parts[part]}
        subsets["films that the model has not seen"] = np.array([film.name not in learnt for film in films])
    rows = []
    for spec in args.judges:
        scores, squares, places = score(load_encoder(spec), films, pictures)
        for subset, is_in in subsets.items():
            found, told = compare(f"{spec}, {subset}", films, is_in, scores, squares, places)
            rows += found
            lines += told
    pd.DataFrame(rows).to_csv(args.out / "downstream.csv", index=False)
    (args.out / "downstream.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def suppress(model: str, jsrt: str) -> list[np.ndarray]:
    """Suppress bone at the model's own size, and shrink the results."""
    suppressor = load_bone_suppressor(model)
    results = []
    for film in read_nodule_films(jsrt, suppressor.size):
        side = [round(length * SIDE / max(film.film_HW.shape)) for length in film.film_HW.shape[::-1]]
        results.append(cv2.resize(suppressor.suppress(film.film_HW), side, interpolation=cv2.INTER_AREA))
    return results


def describe_nodules(name: str, films: Sequence[NoduleFilm], shown: Sequence[np.ndarray]) -> str:
    """Tell the mean contrast of the real nodules, and against the noise around them."""
    sick = [(film, picture) for film, picture in zip(films, shown, strict=True) if film.mask_HW.any()]
    measured = [measure_nodule(picture, film.mask_HW, film.lung_HW) for film, picture in sick]
    ratio, contrast = (np.mean([getattr(one, key) for one in measured]) for key in ("cnr", "contrast"))
    return f"{name}: nodules' mean CNR {ratio:.3f}, contrast {contrast:.4f} (n {len(sick)})"


def score(
    encoder: Encoder, films: Sequence[NoduleFilm], pictures: dict[str, list[np.ndarray]]
) -> tuple[dict[str, Scores], Crops, list[tuple[int, int, int, int]]]:
    """Score squares and grid by classifiers of each kind, each patient by those that have not seen it."""
    places, grid = place_crops(films, seed=0), place_grid(films)
    squares = cut_crops(films, pictures[FILM], places)
    group_G = np.array([films[number].group for number, *_ in grid])
    feature, grid_feature = (
        {name: embed_crops(encoder, cut_crops(films, shown, where)) for name, shown in pictures.items()}
        for where in (places, grid)
    )
    for one in (feature, grid_feature):
        one[BOTH] = np.hstack([one[FILM], one[SUPPRESSED]])
    scores = {name: Scores(np.zeros(len(places)), np.zeros(len(grid))) for name in feature}
    for repeat in range(REPEATS):
        fold_N = assign_folds(squares.group, squares.label, FOLDS, repeat)
        for fold in range(FOLDS):
            test_N = fold_N == fold
            test_G = np.isin(group_G, squares.group[test_N])
            for name, sums in scores.items():
                train_ND, label_N = feature[name][~test_N], squares.label[~test_N]
                tested = np.vstack([feature[name][test_N], grid_feature[name][test_G]])
                found = fit_and_score(train_ND, label_N, tested)
                found = (found - found.mean()) / found.std()
                sums.squares[test_N] += found[: test_N.sum()] / REPEATS
                sums.grid[test_G] += found[test_N.sum() :] / REPEATS
    return scores, squares, grid


def compare(
    title: str,
    films: Sequence[NoduleFilm],
    is_in_F: np.ndarray,
    scores: dict[str, Scores],
    squares: Crops,
    grid: list[tuple[int, int, int, int]],
) -> tuple[list[dict[str, object]], list[str]]:
    """Compare suppressed films, and both together, with the films as they are; 95 % intervals by patient."""
    names = {film.group for film, is_in in zip(films, is_in_F, strict=True) if is_in}
    of_squares = np.flatnonzero(np.isin(squares.group, list(names)))
    of_films = np.flatnonzero(is_in_F)
    group_F = np.array([film.group for film in films])
    sick = int(squares.label[of_squares].sum())
    lines = [f"{title}: {len(of_films)} films, {sick} squares with a nodule, {len(of_squares) - sick} without"]
    measures = {}
    for name, one in scores.items():
        marks = detect(films, grid, one.grid)
        measures[name] = build_measures(
            squares.label[of_squares],
            one.squares[of_squares],
            [films[number] for number in of_films],
            [marks[number] for number in of_films],
        )
    rows = []
    patients = {"auroc": squares.group[of_squares], "froc": group_F[of_films]}
    for name, row, line in compare_arms(measures, patients, FILM, 2000):
        rows.append({"what": title, "learnt from": name, **row})
        lines.append(f"  {name}: {line}")
    return rows, lines


if __name__ == "__main__":
    main()
