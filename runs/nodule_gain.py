"""Do made nodules help to find nodules?  A classifier of squares and a detector on films of patients left out.

Run: python runs/nodule_gain.py weights/cxr-first JSRT CT_NODULES OUT [--begin-from FLOW] [--steps 500]
(hours; in place of JSRT also phantom:200@256#7, SYNTHETIC, whose truth is exact), or with --quick to see that it runs.
Three folds by patient.  Of each fold's training patients 10, 30 or all keep their nodule; generators learn from these
alone, and made nodules, 0.5 to 16 times as many, go into healthy films of the training patients, never into others'.
Writes gain.csv and gain.txt; scores of finished parts are kept, so the same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from nodule_crops import (
    FOLDS,
    Crops,
    Statistic,
    build_measures,
    compare_arms,
    cut_crops,
    detect,
    embed_crops,
    fit_and_score,
    place_crops,
    place_grid,
    read_folds,
)

from chess_cxr.encoders.encoder import Encoder
from chess_cxr.encoders.load import load_encoder
from chess_cxr.records import UsageError
from chess_cxr.tasks.ct_nodules import choose_ct_nodule, read_ct_nodules
from chess_cxr.tasks.nodules.config import NodulesConfig
from chess_cxr.tasks.nodules.films import NoduleFilm
from chess_cxr.tasks.nodules.insertion import draw_contrast, insert_ct_nodule
from chess_cxr.tasks.nodules.masks import NoduleRequest, draw_random_request
from chess_cxr.tasks.nodules.model import NoduleGenerator, load_nodule_generator
from chess_cxr.tasks.nodules.plan import plan_windows
from chess_cxr.tasks.nodules.sheet import draw_films
from chess_cxr.tasks.nodules.train import train_nodule_generator
from chess_cxr.tasks.nodules.windows import take_example

KINDS = ("CT insertion", "SPADE", "flow")
QUICK = {"steps": 2, "real": [4], "times": [1.0]}
Scores = dict[str, np.ndarray]  # by "encoder|squares or grid|kind|times"


def main() -> None:
    """Score all folds and numbers of real nodules, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("encoder", "jsrt", "ct_nodules"):
        parser.add_argument(name)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--real", type=int, nargs="+", default=[10, 30, 1000], help="real nodules of a fold, at most")
    parser.add_argument(
        "--times", type=float, nargs="+", default=[0.5, 1, 4, 16], help="made nodules for each real one"
    )
    parser.add_argument("--begin-from", default="", help="a flow to begin from, such as one of CT nodules")
    parser.add_argument("--judges", nargs="+", help="encoders of the squares; ENCODER and ImageNet's by default")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    vars(args).update(QUICK if args.quick else {})
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    films, fold_N = read_folds(args.jsrt)
    judges = {spec: load_encoder(spec) for spec in args.judges or (args.encoder, "imagenet:tf_efficientnet_lite0")}
    rows, lines = (
        [],
        [f"{args.jsrt}: {len(films)} films, {sum(f.has_nodule for f in films)} with a nodule, {FOLDS} folds"],
    )
    for real in args.real:
        parts = []
        for fold in range(FOLDS):
            file = args.out / f"scores_{real}_{fold}.npz"
            if not file.exists():
                train, test = (
                    [f for f, n in zip(films, fold_N, strict=True) if (n == fold) == is_test] for is_test in (0, 1)
                )
                np.savez(file, **score_fold(args, train, test, real, fold, judges))
            parts.append(dict(np.load(file)))
        for spec in judges:
            found, told = compare(spec, films, fold_N, parts, real)
            rows += found
            lines += told
    pd.DataFrame(rows).to_csv(args.out / "gain.csv", index=False)
    (args.out / "gain.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def score_fold(
    args: argparse.Namespace,
    train: Sequence[NoduleFilm],
    test: Sequence[NoduleFilm],
    real: int,
    fold: int,
    judges: dict[str, Encoder],
) -> Scores:
    """Score the test films of a fold, without made nodules and with each number of each kind."""
    rng = np.random.default_rng([fold, 41])
    sick = [film for film in train if film.has_nodule]
    kept = [sick[number] for number in rng.permutation(len(sick))[:real]]
    healthy = [film for film in train if not film.has_nodule]
    made = make_films(args, kept, healthy, round(max(args.times) * len(kept)), fold, real, rng)
    squares, tests = cut([*kept, *healthy], fold), {"squares": cut(test, 100 + fold)}
    tests["grid"] = cut_crops(test, [f.film_HW for f in test], place_grid(test))
    scores: Scores = {}
    for spec, encoder in judges.items():
        feature_ND = embed_crops(encoder, squares)
        test_D = {part: embed_crops(encoder, crops) for part, crops in tests.items()}
        more_D = {kind: embed_crops(encoder, cut_made(pictures, fold)) for kind, pictures in made.items()}
        arms = [("none", 0.0), *((kind, times) for kind in KINDS for times in args.times)]
        for kind, times in arms:
            more_MD = more_D[kind][: round(times * len(kept))] if times else feature_ND[:0]
            label = np.concatenate([squares.label, np.ones(len(more_MD), int)])
            for part, part_MD in test_D.items():
                scores[f"{spec}|{part}|{kind}|{times:g}"] = fit_and_score(
                    np.vstack([feature_ND, more_MD]), label, part_MD
                )
    return scores


def compare(
    spec: str, films: Sequence[NoduleFilm], fold_N: np.ndarray, parts: Sequence[Scores], real: int
) -> tuple[list[dict[str, object]], list[str]]:
    """Compare each arm with none, over all folds together, with 95 % intervals by patient."""
    tests = [[f for f, n in zip(films, fold_N, strict=True) if n == fold] for fold in range(FOLDS)]
    crops = [cut(test, 100 + fold) for fold, test in enumerate(tests)]
    label, group = (np.concatenate([getattr(one, name) for one in crops]) for name in ("label", "group"))
    flat = [film for test in tests for film in test]
    patient = np.array([film.group for film in flat])
    arms = [key.split("|")[2:] for key in parts[0] if key.startswith(f"{spec}|squares|")]
    measures: dict[tuple[str, str], dict[str, Statistic]] = {}
    for kind, times in arms:
        score = np.concatenate([standardise(part[f"{spec}|squares|{kind}|{times}"]) for part in parts])
        marks = [
            found
            for test, part in zip(tests, parts, strict=True)
            for found in detect(test, place_grid(test), standardise(part[f"{spec}|grid|{kind}|{times}"]))
        ]
        measures[kind, times] = build_measures(label, score, flat, marks)
    rows, lines = list[dict[str, object]](), list[str]()
    for (kind, times), row, line in compare_arms(measures, {"auroc": group, "froc": patient}, ("none", "0"), 1000):
        rows.append({"encoder": spec, "real": real, "kind": kind, "times": times, **row})
        lines.append(f"{spec}, {real} real, {kind} x {times}: {line}")
    return rows, lines


def standardise(score: np.ndarray) -> np.ndarray:
    """Bring the scores of a fold to mean 0 and standard deviation 1, so that folds can be joined."""
    return (score - score.mean()) / max(float(score.std()), 1e-9)


def cut(films: Sequence[NoduleFilm], seed: int) -> Crops:
    """Cut real squares."""
    return cut_crops(films, [f.film_HW for f in films], place_crops(films, seed))


def make_films(
    args: argparse.Namespace,
    sick: Sequence[NoduleFilm],
    healthy: Sequence[NoduleFilm],
    count: int,
    fold: int,
    real: int,
    rng: np.random.Generator,
) -> dict[str, list[NoduleFilm]]:
    """Make the same requests come true by all generators, in healthy films of the training patients."""
    encoder, nodules = load_encoder(args.encoder), read_ct_nodules(Path(args.ct_nodules))
    begun = load_nodule_generator(args.begin_from) if args.begin_from else None
    spade = NodulesConfig(width=8, latent=16, steps=args.steps, seed=fold)
    width = begun.task.config.width if begun else 8
    flow = NodulesConfig(
        network="flow", width=width, perceptual="none", learning_rate=1e-3, steps=args.steps, seed=fold
    )
    generators = {}
    for kind, config, start in (("SPADE", spade, None), ("flow", flow, begun)):
        examples = [take_example(film, plan_windows(config)) for film in sick]
        method = train_nodule_generator(args.out / f"{kind}_{real}_{fold}", encoder, examples, [], config, begun=start)
        generators[kind] = NoduleGenerator(method, config.film_size)
    made: dict[str, list[NoduleFilm]] = {kind: [] for kind in KINDS}
    for number in range(2 * count):  # some do not fit, and are left out of all kinds
        if len(made["SPADE"]) == count:
            break
        film = healthy[number % len(healthy)]
        assert film.lung_HW is not None and film.spacing_mm is not None
        request = draw_random_request(film.lung_HW, film.spacing_mm, (8, 30), rng)
        try:
            painted = {k: g.paint(film.film_HW, request.mask_HW, number, film.lung_HW) for k, g in generators.items()}
        except UsageError:
            continue
        for kind, painted_HW in painted.items():
            made[kind].append(replace(film, film_HW=painted_HW, mask_HW=request.mask_HW))
        made["CT insertion"].append(insert(film, request, nodules, rng))
    for kind, pictures in made.items():
        (args.out / f"{kind}_{real}_{fold}.png").write_bytes(draw_films([(f, f.film_HW) for f in pictures[:8]]))
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
    assert len(places) == len(films)
    return cut_crops(films, [f.film_HW for f in films], places)


if __name__ == "__main__":
    main()
