"""Compare perceptual networks for nodule generation: whole phantom films (SYNTHETIC) of 64 pixels.

Run: python runs/nodule_proof.py weights/cxr-first OUT [--seeds 0 1 2] [--recipes 0 1 2 3] [--steps 500]
Each run's distances are kept in OUT, one row a judge; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from perceptual_strength import measure_strength

from chess_cxr.encoders.load import load_encoder
from chess_cxr.judges.crops import crop_around
from chess_cxr.judges.frechet import measure_feature_distance
from chess_cxr.judges.memorisation import measure_memorisation
from chess_cxr.judges.networks import FeatureNetwork, load_feature_network
from chess_cxr.tasks.config import PerceptualConfig
from chess_cxr.tasks.nodules.canvas import NoduleBatch
from chess_cxr.tasks.nodules.config import NodulesConfig
from chess_cxr.tasks.nodules.films import NoduleFilm, read_nodule_films, square_film
from chess_cxr.tasks.nodules.objective import GenerateNodules
from chess_cxr.tasks.nodules.plan import plan_windows
from chess_cxr.tasks.nodules.score import measure_nodule
from chess_cxr.tasks.nodules.train import train_nodule_generator
from chess_cxr.tasks.nodules.windows import take_example

WEAK, STRONG = 0.8, 44.0  # strength of the CXR and of the ImageNet network at the weight 10 of CheSS
BALANCED = 0.0  # all stages, and so all networks, equally strong on noise, blur, brightness and mottle
RECIPES = (
    # name, perceptual network, strength (see perceptual_strength; None: at the weight 10 of CheSS)
    ("none", "none", None),
    ("random", "random", None),
    ("CXR", "same", None),
    ("ImageNet", "imagenet", None),
    ("CXR, strong", "same", STRONG),
    ("ImageNet, weak", "imagenet", WEAK),
    ("random, strong", "random", STRONG),
    ("CXR, balanced", "same", BALANCED),
    ("ImageNet, balanced", "imagenet", BALANCED),
    ("random, balanced", "random", BALANCED),
)
JUDGES = ("vgg16@64", "imagenet:tf_efficientnet_lite0", "random:resnet18@64#7")
SIDE = 64


def main() -> None:
    """Train, generate on held-out masks and styles, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--recipes", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--test", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    train = read_nodule_films("phantom:250@128#11")
    # styles and masks of one half of the held-out patients, judged against the films of the other half
    asked = squares(f"phantom:{args.test}@128#12")
    real = squares(f"phantom:{args.test}@128#13")
    judges = [load_feature_network(name) for name in JUDGES]
    features = {judge.name: embed(judge, real) for judge in judges}
    for seed in args.seeds:
        for number in args.recipes:
            run_one(args, RECIPES[number], seed, train, asked, real, judges, features)


def squares(place: str) -> list[NoduleFilm]:
    """Read films and bring them to the proof's size."""
    return [square_film(film, SIDE) for film in read_nodule_films(place)]


def embed(judge: FeatureNetwork, films: Sequence[NoduleFilm]) -> dict[str, np.ndarray]:
    """Embed whole films, and squares around the nodules of those that have one."""
    sick = [film for film in films if film.mask_HW.any()]
    return {
        "whole": judge.embed([film.film_HW for film in films]),
        "crop": judge.embed([film.film_HW for film in sick], [crop_around(film.mask_HW) for film in sick]),
    }


def run_one(
    args: argparse.Namespace,
    recipe: tuple[str, str, float | None],
    seed: int,
    train: Sequence[NoduleFilm],
    asked: Sequence[NoduleFilm],
    real: Sequence[NoduleFilm],
    judges: Sequence[FeatureNetwork],
    features: dict[str, dict[str, np.ndarray]],
) -> None:
    """Train one generator, unless its distances are there, and write them with a sheet of what it made."""
    name = f"{recipe[0]}_{seed}".replace(" ", "-").replace(",", "")
    table = args.out / f"{name}.csv"
    if table.exists():
        return
    started = time.perf_counter()
    encoder, compare = load_encoder(args.encoder), PerceptualConfig(resolution="film")
    weight = 10.0
    if recipe[2]:
        some = [square_film(film, SIDE).film_HW for film in train[:16]]
        weight = recipe[2] / measure_strength(recipe[1], encoder, some, compare)
    config = NodulesConfig(
        mode="film", size=SIDE, width=8, latent=64, perceptual=recipe[1], perceptual_weight=weight, compare=compare,
        balance=recipe[2] == BALANCED, steps=args.steps, batch=8, seed=seed,
    )  # fmt: skip
    examples = [take_example(film, plan_windows(config)) for film in train]
    method = train_nodule_generator(args.out / "runs" / name, encoder, examples, [], config)
    trained = time.perf_counter() - started
    made = generate_films(method, asked)
    rows = [{"recipe": recipe[0], "seed": seed, **row} for row in measure_distances(made, judges, features)]
    contrast = {
        key: np.mean([measure_nodule(f.film_HW, f.mask_HW).contrast for f in films if f.mask_HW.any()])
        for key, films in (("contrast_made", made), ("contrast_real", asked))
    }
    trained_films = [square_film(film, SIDE) for film in train]
    vgg = judges[0]
    memory = measure_memorisation(
        vgg.embed([f.film_HW for f in made]), features[vgg.name]["whole"], vgg.embed([f.film_HW for f in trained_films])
    )
    frame = pd.DataFrame(rows).assign(**contrast, weight=weight, seconds=round(trained))
    frame.to_csv(table, index=False)
    (args.out / f"{name}_memory.txt").write_text(f"{memory}\n"[:4000])
    write_sheet(asked[:12], made[:12], args.out / f"{name}.png")
    print(
        f"{name}: {frame[frame.part == 'whole'][['judge', 'frechet']].to_string(index=False, header=False)}", flush=True
    )
    print(f"   {trained:.0f} s of training, {time.perf_counter() - started:.0f} s in all", flush=True)


def measure_distances(
    made: Sequence[NoduleFilm], judges: Sequence[FeatureNetwork], features: dict[str, dict[str, np.ndarray]]
) -> list[dict[str, object]]:
    """Measure how far made films, and squares of their nodules, are from the real ones by each judge."""
    rows = list[dict[str, object]]()
    for judge in judges:
        found = embed(judge, made)
        for part in ("whole", "crop"):
            distance = measure_feature_distance(
                found[part], features[judge.name][part], judge.name, judge.layer, replicates=40, seed=0
            )
            rows.append(
                {
                    "judge": judge.name, "part": part, "n": distance.count, "m": distance.other_count,
                    "dimension": distance.dimension, "frechet": distance.frechet.value, "low": distance.frechet.low,
                    "high": distance.frechet.high, "kid": distance.kid.mean,
                    "fid_infinity": distance.extrapolated.value,
                }
            )  # fmt: skip
    return rows


def generate_films(method: GenerateNodules, asked: Sequence[NoduleFilm]) -> list[NoduleFilm]:
    """Make one film for each asked mask, in the style of the film it is from."""
    made = []
    for number, film in enumerate(asked):
        parts = [
            torch.from_numpy(np.asarray(part, np.float32))[None, None]
            for part in (film.film_HW, film.mask_HW, film.lung_HW)
        ]
        film_HW = method.make(NoduleBatch(*parts), [number])[0, 0].numpy()
        made.append(NoduleFilm(film.name, film_HW, film.mask_HW, film.lung_HW, film.group, None, film.kind))
    return made


def write_sheet(asked: Sequence[NoduleFilm], made: Sequence[NoduleFilm], path: Path) -> None:
    """Write films, masks and what was made of them below each other."""
    rows = [np.hstack([pick(film) for film in films]) for films, pick in (
        (asked, lambda f: f.film_HW), (asked, lambda f: 0.4 * f.lung_HW + 0.6 * f.mask_HW), (made, lambda f: f.film_HW)
    )]  # fmt: skip
    grey = np.clip(255 * np.vstack(rows), 0, 255).astype(np.uint8)
    cv2.imwrite(str(path), cv2.resize(grey, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST))


if __name__ == "__main__":
    main()
