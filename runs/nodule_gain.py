"""Do made nodules help a nodule classifier?  Real JSRT squares of patients left out, three folds.

Run: python runs/nodule_gain.py weights/cxr-small JSRT CT_NODULES OUT
For each fold a generator learns from its training patients alone; made nodules go into their films, never into others'.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from nodule_crops import (
    FOLDS,
    SIDE,
    Crops,
    compare_auroc,
    cut_crops,
    embed_crops,
    fit_and_score,
    measure_auroc,
    place_crops,
    read_folds,
    say,
)

from chess_cxr.encoders.load import load_encoder
from chess_cxr.records import UsageError
from chess_cxr.tasks.ct_nodules import choose_ct_nodule, read_ct_nodules
from chess_cxr.tasks.nodules.config import NodulesConfig
from chess_cxr.tasks.nodules.films import NoduleFilm
from chess_cxr.tasks.nodules.insertion import draw_contrast, insert_ct_nodule
from chess_cxr.tasks.nodules.masks import NoduleRequest, draw_random_request
from chess_cxr.tasks.nodules.model import NoduleGenerator
from chess_cxr.tasks.nodules.plan import plan_windows
from chess_cxr.tasks.nodules.score import measure_nodule
from chess_cxr.tasks.nodules.sheet import draw_films
from chess_cxr.tasks.nodules.train import train_nodule_generator
from chess_cxr.tasks.nodules.windows import take_example

MADE_PER_FILM = 2


def main() -> None:
    """Run all folds and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("encoder", "jsrt", "ct_nodules"):
        parser.add_argument(name)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    torch.set_num_threads(1)
    films, fold_N = read_folds(args.jsrt)
    judges = {spec: load_encoder(spec) for spec in (args.encoder, "imagenet:tf_efficientnet_lite0")}
    kinds = ("none", "CT insertion", "SPADE")
    scores: dict[tuple[str, str], list[np.ndarray]] = {(s, k): [] for s in judges for k in kinds}
    tests = list[Crops]()
    contrast: dict[str, list[float]] = {"real": [], "CT insertion": [], "SPADE": []}
    for fold in range(FOLDS):
        train = [f for f, n in zip(films, fold_N, strict=True) if n != fold]
        test = [f for f, n in zip(films, fold_N, strict=True) if n == fold]
        real, left_out = cut(train, fold), cut(test, 100 + fold)
        tests.append(left_out)
        made = make_films(args, train, fold)
        contrast["real"] += [measure_nodule(f.film_HW, f.mask_HW, f.lung_HW).contrast for f in train if f.mask_HW.any()]
        for kind, pictures in made.items():
            contrast[kind] += [measure_nodule(f.film_HW, f.mask_HW, f.lung_HW).contrast for f in pictures]
        for spec, encoder in judges.items():
            feature_ND, test_MD = embed_crops(encoder, real), embed_crops(encoder, left_out)
            for kind in kinds:
                label, feature = real.label, feature_ND
                if kind != "none":
                    more = cut_made(made[kind], fold)
                    feature = np.vstack([feature, embed_crops(encoder, more)])
                    label = np.concatenate([label, more.label])
                found = fit_and_score(feature, label, test_MD)
                scores[spec, kind].append((found - found.mean()) / found.std())
        (args.out / f"made_{fold}.png").write_bytes(draw_films([(f, f.film_HW) for f in made["SPADE"][:8]]))
    whole = Crops(
        [p for t in tests for p in t.pixels],
        np.concatenate([t.label for t in tests]),
        np.concatenate([t.group for t in tests]),
    )
    lines = [
        f"{len(films)} JSRT films, {whole.label.sum()} squares with a nodule and {(1 - whole.label).sum()} without, "
        f"{FOLDS} folds by patient"
    ]
    lines += [
        f"contrast, {kind}: mean {np.mean(v):.4f}, sd {np.std(v):.4f}, n {len(v)}" for kind, v in contrast.items()
    ]
    for spec in judges:
        joined = {kind: np.concatenate(scores[spec, kind]) for kind in kinds}
        lines += [f"{spec}, {kind}: AUROC {say(measure_auroc(whole, score))}" for kind, score in joined.items()]
        lines += [f"  {k} - none: {say(compare_auroc(whole, joined[k], joined['none']))}" for k in kinds[1:]]
    (args.out / "gain.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def cut(films: Sequence[NoduleFilm], seed: int) -> Crops:
    """Cut real squares."""
    return cut_crops(films, [f.film_HW for f in films], place_crops(films, seed))


def make_films(args: argparse.Namespace, train: Sequence[NoduleFilm], fold: int) -> dict[str, list[NoduleFilm]]:
    """Make the same requests come true by both generators, in films of the training patients."""
    config = NodulesConfig(width=8, steps=args.steps, batch=8, seed=fold)
    examples = [take_example(film, plan_windows(config)) for film in train]
    method = train_nodule_generator(args.out / f"run_{fold}", load_encoder(args.encoder), examples, [], config)
    generator = NoduleGenerator(method, config.film_size)
    nodules = read_ct_nodules(Path(args.ct_nodules))
    rng = np.random.default_rng([fold, 41])
    made: dict[str, list[NoduleFilm]] = {"CT insertion": [], "SPADE": []}
    for number, film in enumerate(f for f in train if not f.mask_HW.any() for _ in range(MADE_PER_FILM)):
        assert film.lung_HW is not None and film.spacing_mm is not None
        request = draw_random_request(film.lung_HW, film.spacing_mm, (8, 30), rng)
        try:
            painted = generator.paint(film.film_HW, request.mask_HW, number, film.lung_HW)
        except UsageError:  # does not fit the generator's window: left out of both
            continue
        made["SPADE"].append(replace(film, film_HW=painted, mask_HW=request.mask_HW))
        made["CT insertion"].append(insert(film, request, nodules, rng))
    return made


def insert(film: NoduleFilm, request: NoduleRequest, nodules: Sequence, rng: np.random.Generator) -> NoduleFilm:
    """Insert a CT nodule of the request's size and place."""
    contrast = draw_contrast(film.film_HW, film.lung_HW, request.diameter_mm, rng)
    nodule = choose_ct_nodule(nodules, request.diameter_mm, rng)
    picture, mask = insert_ct_nodule(
        film.film_HW, nodule, request.centre_px, request.diameter_mm, request.spacing_mm, contrast
    )
    return replace(film, film_HW=picture, mask_HW=mask)


def cut_made(films: Sequence[NoduleFilm], seed: int) -> Crops:
    """Cut the squares with the nodule alone out of made films."""
    places = [place for place in place_crops(films, seed) if place[3] == 1]
    assert SIDE and len(places) == len(films)
    return cut_crops(films, [f.film_HW for f in films], places)


if __name__ == "__main__":
    main()
