"""Find the recipe of a bone network: ribs left against nodules kept, on phantoms (SYNTHETIC) and real pairs.

Run: python runs/bone_recipe.py ENCODER OUT --name NAME --real bone_jsrt --ct ct_nodules --keep 0.1 --steps 300 …
Trains on phantoms and on the train share of the real pairs, scores on phantoms rendered with and without their nodule,
and on held-out real pairs with added nodules (CT nodules of other scans, and drawn ones).  One row a film in
OUT/NAME.csv, one a nodule in OUT/NAME_nodules.csv; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import pickle
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from chess_cxr.encoders.load import load_encoder
from chess_cxr.evaluation.image_metrics import compute_bone_suppression_ratio, compute_psnr
from chess_cxr.ingest.split import assign_split
from chess_cxr.tasks.bones.config import BonesConfig
from chess_cxr.tasks.bones.metrics import find_bone, measure_bone_contrast
from chess_cxr.tasks.bones.model import BoneSuppressor
from chess_cxr.tasks.bones.pairs import FilmPair, draw_phantom_pair, read_pairs, split_pairs
from chess_cxr.tasks.bones.score import measure_added_nodules, score_spread, shrink_pair
from chess_cxr.tasks.bones.sheet import draw_suppression_sheet
from chess_cxr.tasks.bones.train import train_bone_network
from chess_cxr.tasks.ct_nodules import CtNodule, read_ct_nodules
from chess_cxr.tasks.nodule_contrast import compute_contrast, draw_ring

SHOWN = 4


def main() -> None:
    """Train one recipe and score it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--real", default="")
    parser.add_argument("--ct", default="")
    parser.add_argument("--phantoms", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=2, help="how often a real pair is seen, of once for a phantom")
    parser.add_argument("--overfit", action="store_true", help="score the training phantoms")
    for name, default in (("size", 256), ("crop", 128), ("batch", 4), ("steps", 300), ("seed", 0), ("films", 30)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, standard in (("keep", 0.1), ("rate", 1e-3), ("encoder-rate", 1.0), ("perceptual-weight", 1.0)):
        parser.add_argument(f"--{name}", type=float, default=standard)
    parser.add_argument("--decoder", default="tiny")
    parser.add_argument("--head", default=BonesConfig.head)
    parser.add_argument("--no-spread", action="store_true")
    parser.add_argument("--perceptual", default="none")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    ct = {part: read_ct(args.ct, part) for part in ("train", "test")}
    phantoms = read_once(f"phantom:{args.phantoms}@{args.size}#1", args)
    split = {part: list[FilmPair]() for part in ("train", "val", "test")}
    if args.real:
        split = split_pairs(read_once(args.real, args), 0.05, 0.25)
    config = BonesConfig(
        size=args.size, crop=args.crop, decoder=args.decoder, perceptual=args.perceptual, keep_nodules=args.keep,
        perceptual_weight=args.perceptual_weight, steps=args.steps, batch=args.batch, learning_rate=args.rate,
        encoder_rate=args.encoder_rate, seed=args.seed, checkpoint_every=50, head=args.head, spread=not args.no_spread,
    )  # fmt: skip
    started = time.process_time()
    network = train_bone_network(
        args.out / "runs" / args.name, load_encoder(args.encoder), phantoms + split["train"] * args.repeat,
        [], config, ct_nodules=ct["train"],
    )  # fmt: skip
    seconds = time.process_time() - started
    model = BoneSuppressor(network, args.size, args.crop)
    score(model, args, split["test"][: args.films], ct["test"], seconds)


def read_once(place: str, args: argparse.Namespace) -> list[FilmPair]:
    """Read or draw pairs, and keep them in OUT for the next recipe."""
    kept = args.out / f"{Path(place).name}@{args.size}.pickle"
    if not kept.exists():
        kept.write_bytes(pickle.dumps([shrink_pair(pair, args.size) for pair in read_pairs(place)]))
    found: list[FilmPair] = pickle.loads(kept.read_bytes())
    return found


def read_ct(folder: str, part: str) -> list[CtNodule]:
    """Read the CT nodules of one part, by scan."""
    nodules = read_ct_nodules(Path(folder)) if folder else []
    return [nodule for nodule in nodules if assign_split(nodule.series_uid, 0, 0.0, 0.25) == part]


def draw_twins(patient: int, size: int, seed: int) -> tuple[FilmPair, FilmPair]:
    """Render a phantom with its nodule and without."""
    patient_seed, film_seed = (int(n) for n in np.random.SeedSequence([seed, patient]).generate_state(2, np.uint32))
    with_nodule, without = (draw_phantom_pair(patient_seed, film_seed, size, it) for it in ("nodule", "normal"))
    return with_nodule, without


def score(
    model: BoneSuppressor, args: argparse.Namespace, real: list[FilmPair], ct: list[CtNodule], seconds: float
) -> None:
    """Write the scores of films and nodules, a picture, and print a summary."""
    films, nodules, shown = list[dict[str, object]](), list[dict[str, object]](), []
    for patient in range(args.films):
        twin, healthy = draw_twins(patient, args.size, 1 if args.overfit else 3)
        result, scores = score_model(model, twin)
        results = result, model.suppress(healthy.film_HW)
        films.append({"kind": "phantom", "film": twin.name, **scores})
        assert twin.nodule_HW is not None
        ring = draw_ring(twin.nodule_HW, twin.lung_HW)
        true, left, film = (
            compute_contrast((a - b).astype(np.float64), twin.nodule_HW, ring)[0]
            for a, b in ((twin.bone_free_HW, healthy.bone_free_HW), results, (twin.film_HW, healthy.film_HW))
        )
        diameter = 2 * np.sqrt(twin.nodule_HW.sum() / np.pi) * (twin.spacing_mm or 0)
        if true > 1 / 255:
            nodules.append({"kind": "rendered", "diameter_mm": diameter, "added": true, "kept": left / true,
                            "film": film / true})  # fmt: skip
        for one in measure_added_nodules(model, healthy, 5, ct):
            nodules.append({"kind": "phantom, added", **asdict(one)})
        if patient < SHOWN:
            shown.append((f"phantom {patient}", twin.film_HW, result, twin.bone_free_HW))
    for pair in real:
        result, scores = score_model(model, pair)
        films.append({"kind": "real", "film": pair.name, **scores})
        itself = score_briefly(pair, pair.film_HW)
        films.append({"kind": "real, film as it is", "film": pair.name, **itself})
        nodules += [{"kind": "real, added", **asdict(one)} for one in measure_added_nodules(model, pair, 5, ct)]
        if len(shown) < 2 * SHOWN:
            shown.append((pair.name, pair.film_HW, result, pair.bone_free_HW))
    films_frame, nodules_frame = pd.DataFrame(films), pd.DataFrame(nodules)
    films_frame.to_csv(args.out / f"{args.name}.csv", index=False)
    nodules_frame.to_csv(args.out / f"{args.name}_nodules.csv", index=False)
    draw_suppression_sheet(shown, args.out / f"{args.name}.png", synthetic=None)
    print(f"{args.name}: {seconds:.0f} CPU seconds, {args.steps} steps of {args.batch} pairs of {args.crop}²")
    for kind, rows in films_frame.groupby("kind"):
        print(f"  {kind}, {len(rows)} films:", ", ".join(
            f"{name} {rows[name].mean():.3f}" for name in (
                "psnr", "bsr", "rib_residual_from_truth", "spread_of_error", "unsure_error",
            ) if name in rows and rows[name].notna().any()
        ))  # fmt: skip
    for kind, rows in nodules_frame.groupby("kind"):
        small = rows[rows["diameter_mm"] < 10]
        print(
            f"  {kind}, {len(rows)} nodules: kept {rows['kept'].median():.3f}, below 0.8: "
            f"{(rows['kept'] < 0.8).mean():.2f}, {len(small)} below 10 mm: {small['kept'].median():.3f}", flush=True,
        )  # fmt: skip


def score_model(model: BoneSuppressor, pair: FilmPair) -> tuple[np.ndarray, dict[str, float]]:
    """Return the result of a film, and its scores."""
    map_CHW = model.predict_maps(pair.film_HW)
    result_HW = pair.film_HW - map_CHW[0]
    return result_HW, score_briefly(pair, result_HW) | score_spread(pair, map_CHW)


def score_briefly(pair: FilmPair, result_HW: np.ndarray) -> dict[str, float]:
    """Score a result by what takes little time."""
    bone = find_bone(pair.film_HW, pair.bone_free_HW) if pair.bone_cm_HW is None else pair.bone_cm_HW
    ribs = measure_bone_contrast(pair.film_HW, result_HW, bone, pair.lung_HW, pair.bone_free_HW)
    return {
        "psnr": compute_psnr(result_HW.clip(0, 1), pair.bone_free_HW),
        "bsr": compute_bone_suppression_ratio(pair.film_HW, result_HW, pair.bone_free_HW),
        "rib_residual_from_truth": ribs["residual_from_truth"],
    }


if __name__ == "__main__":
    main()
