"""Compare perceptual networks for painting nodules into real JSRT films of patients left out, three folds.

Run: python runs/nodule_jsrt.py weights/cxr-first JSRT CT_NODULES OUT [--steps 500] [--recipes 0 7 8 9] [--seed 0]
A generator for each fold learns from its training patients; made nodules lie in films of the others and are judged
against the others' real nodules: by networks (--judges adds some, such as a CXR encoder of another seed and method; a
network that was in a loss judges nothing, and a random one is a floor), and by a linear classifier that tells made from
real on the features of VGG16.  The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from nodule_crops import FOLDS, build_classifier, read_folds
from nodule_gain import insert
from nodule_proof import BALANCED, JUDGES, RECIPES
from perceptual_strength import measure_strength
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict

from chess_cxr.encoders.load import load_encoder
from chess_cxr.judges.crops import crop_around
from chess_cxr.judges.frechet import measure_feature_distance
from chess_cxr.judges.networks import FeatureNetwork, load_feature_network
from chess_cxr.records import UsageError
from chess_cxr.tasks.config import PerceptualConfig
from chess_cxr.tasks.ct_nodules import read_ct_nodules
from chess_cxr.tasks.nodules.config import NodulesConfig
from chess_cxr.tasks.nodules.films import NoduleFilm
from chess_cxr.tasks.nodules.masks import NoduleRequest, draw_random_request
from chess_cxr.tasks.nodules.model import NoduleGenerator
from chess_cxr.tasks.nodules.plan import plan_windows
from chess_cxr.tasks.nodules.score import measure_nodule
from chess_cxr.tasks.nodules.sheet import draw_films
from chess_cxr.tasks.nodules.train import train_nodule_generator
from chess_cxr.tasks.nodules.windows import take_example

PER_FILM = 2
Order = tuple[NoduleFilm, NoduleRequest]


def main() -> None:
    """Score real nodules, no nodules and inserted ones, then each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("encoder", "jsrt", "ct_nodules"):
        parser.add_argument(name)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--recipes", type=int, nargs="*", default=range(6), help="none: baselines alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--judges", nargs="*", default=[], help="more of them")
    parser.add_argument("--width", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    films, fold_N = read_folds(args.jsrt)
    folds = [[f for f, n in zip(films, fold_N, strict=True) if n == fold] for fold in range(FOLDS)]
    orders = [draw_orders(fold, seed) for seed, fold in enumerate(folds)]
    judges = [load_feature_network(name) for name in (*JUDGES, *args.judges)]
    real, before = [f for f in films if f.mask_HW.any()], {f.name: f.film_HW for f in films}
    score(args.out, "real, half against half", real[::2], real[1::2], judges, before)
    score(args.out, "healthy lung", [mark(*order) for part in orders for order in part], real, judges, before)
    nodules, rng = read_ct_nodules(Path(args.ct_nodules)), np.random.default_rng(47)
    inserted = [insert(film, request, nodules, rng) for part in orders for film, request in part]
    score(args.out, "CT insertion", inserted, real, judges, before)
    for number in args.recipes:
        if not (args.out / f"{name_file(RECIPES[number][0])}.csv").exists():
            made = [f for fold in range(FOLDS) for f in make_fold(args, RECIPES[number], folds, orders[fold], fold)]
            score(args.out, RECIPES[number][0], made, real, judges, before)


def draw_orders(films: Sequence[NoduleFilm], seed: int) -> list[Order]:
    """Ask for nodules of 8 to 30 mm anywhere in the lungs of films; those that no window of 64 pixels holds go."""
    rng = np.random.default_rng([seed, 43])
    orders = []
    for film in (film for film in films for _ in range(PER_FILM)):
        assert film.lung_HW is not None and film.spacing_mm is not None
        request = draw_random_request(film.lung_HW, film.spacing_mm, (8, 30), rng)
        if max(np.ptp(np.argwhere(request.mask_HW), axis=0)) < 30 and not (request.mask_HW & film.mask_HW).any():
            orders.append((film, request))
    return orders


def mark(film: NoduleFilm, request: NoduleRequest) -> NoduleFilm:
    """Mark the place without making anything."""
    return replace(film, mask_HW=request.mask_HW)


def make_fold(
    args: argparse.Namespace,
    recipe: tuple[str, str, float | None],
    folds: Sequence[Sequence[NoduleFilm]],
    orders: Sequence[Order],
    fold: int,
) -> list[NoduleFilm]:
    """Train on the other folds and paint this fold's orders."""
    name, network, strength = recipe
    train = [film for number, part in enumerate(folds) if number != fold for film in part]
    encoder, compare, weight = load_encoder(args.encoder), PerceptualConfig(resolution="film"), 10.0
    if strength:
        some = [film.film_HW[96:160, 64:128] for film in train[:16]]
        weight = strength / measure_strength(network, encoder, some, compare)
    config = NodulesConfig(
        width=args.width, latent=16, perceptual=network, perceptual_weight=weight, compare=compare,
        balance=strength == BALANCED, steps=args.steps, batch=8, seed=FOLDS * args.seed + fold,
    )  # fmt: skip
    examples = [take_example(film, plan_windows(config)) for film in train]
    method = train_nodule_generator(args.out / f"run_{name_file(name)}_{fold}", encoder, examples, [], config)
    generator, made = NoduleGenerator(method, config.film_size), []
    for number, (film, request) in enumerate(orders):
        try:
            picture_HW = generator.paint(film.film_HW, request.mask_HW, number, film.lung_HW)
        except UsageError:  # too near the film's edge for the window
            continue
        made.append(replace(film, film_HW=picture_HW, mask_HW=request.mask_HW))
    return made


def score(
    out: Path,
    name: str,
    made: Sequence[NoduleFilm],
    real: Sequence[NoduleFilm],
    judges: Sequence[FeatureNetwork],
    before: Mapping[str, np.ndarray],
) -> None:
    """Write distances of made nodules to real ones of the same patients' films, and draw some of the made."""
    rows = []
    for judge in judges:
        distance = measure_feature_distance(
            embed(judge, made), embed(judge, real), judge.name, judge.layer,
            group_N=[f.group for f in made], group_M=[f.group for f in real], replicates=100,
        )  # fmt: skip
        kid, frechet = distance.kid, distance.frechet
        rows.append(
            {
                "recipe": name, "judge": judge.name, "n": distance.count, "m": distance.other_count,
                "frechet": frechet.value, "low": frechet.low, "high": frechet.high,
                "fid_infinity": distance.extrapolated.value, "kid": kid.mean, "kid_std": kid.std,
                "told_apart": tell_apart(embed(judge, made), embed(judge, real), made, real),
            }
        )  # fmt: skip
    contrast = [
        np.median([measure_nodule(f.film_HW, f.mask_HW, f.lung_HW).contrast for f in films]) for films in (made, real)
    ]
    frame = pd.DataFrame(rows).assign(contrast_made=contrast[0], contrast_real=contrast[1])
    frame.to_csv(out / f"{name_file(name)}.csv", index=False)
    (out / f"{name_file(name)}.png").write_bytes(
        draw_films([(replace(f, film_HW=before[f.name]), f.film_HW) for f in made[:8]])
    )
    print(frame.round(4).to_string(index=False), flush=True)


def tell_apart(
    made_ND: np.ndarray, real_MD: np.ndarray, made: Sequence[NoduleFilm], real: Sequence[NoduleFilm]
) -> float:
    """Return the AUROC of a linear classifier that tells made from real nodules of patients left out; 0.5 is best."""
    feature, label = np.vstack([made_ND, real_MD]), np.repeat([1, 0], [len(made), len(real)])
    group = np.array([film.group for film in (*made, *real)])
    folds = GroupKFold(5)
    score = cross_val_predict(build_classifier(), feature, label, groups=group, cv=folds, method="decision_function")
    return float(roc_auc_score(label, score))


def embed(judge: FeatureNetwork, films: Sequence[NoduleFilm]) -> np.ndarray:
    """Embed the squares around the nodules."""
    return judge.embed([film.film_HW for film in films], [crop_around(film.mask_HW) for film in films])


def name_file(recipe: str) -> str:
    """Name a recipe's files."""
    return recipe.replace(", ", "-").replace(" ", "-")


if __name__ == "__main__":
    main()
