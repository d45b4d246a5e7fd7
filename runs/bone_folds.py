"""Cross-validate bone suppression on real pairs, five folds by case, against peers trained for the same CPU seconds.

Run: python runs/bone_folds.py ENCODER OUT --pairs bone_jsrt --jsrt jsrt --ct ct_nodules [--other bone_pairs] …
     python runs/bone_folds.py ENCODER OUT --jsrt jsrt --table
Each network of each fold is trained once and continues where it was stopped.  OUT holds films.csv (a row a film and
network, the film as it is among them), nodules.csv (a row an added nodule; CT bodies of unseen scans) and a
picture of each fold's best, median and worst film.  Real nodules are those of JSRT, inside the lungs of JSRT.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from bone_recipe import read_ct, read_once

from bone_peers import PEERS, PeerSuppressor, train_peer
from chess_cxr.encoders.load import load_encoder
from chess_cxr.evaluation.film_means import summarise_films
from chess_cxr.tasks.bones.config import BonesConfig
from chess_cxr.tasks.bones.model import BoneSuppressor
from chess_cxr.tasks.bones.pairs import FilmPair, find_spacing, fold_pairs
from chess_cxr.tasks.bones.score import find_spread_scale, measure_added_nodules, score_pair, score_spread
from chess_cxr.tasks.bones.sheet import draw_suppression_sheet
from chess_cxr.tasks.bones.train import train_bone_network
from chess_cxr.tasks.bones.views import TrainingPair
from chess_cxr.tasks.ct_nodules import CtNodule

OURS, ITSELF = "ours", "film as it is"
SHOWN = ("psnr", "ssim", "ms_ssim", "rmse", "bsr", "lpips", "rib_residual_from_truth", "nodule_contrast_ratio",
         "nodule_contrast_of_truth", "spread_of_error", "unsure_error")  # fmt: skip


def main() -> None:
    """Train, score and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder")
    parser.add_argument("out", type=Path)
    for name in ("pairs", "jsrt", "ct", "other"):
        parser.add_argument(f"--{name}", default="")
    for name, default in (("size", 512), ("crop", 256), ("batch", 4), ("steps", 3000), ("phantoms", 100), ("folds", 5),
                          ("seed", 0), ("val", 8)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep", type=float, default=BonesConfig.keep_nodules)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of folds")
    parser.add_argument("--networks", nargs="+", default=[OURS, *PEERS])
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.table:
        args.out.mkdir(parents=True, exist_ok=True)
        run_folds(args)
    print(tabulate(args.out, args.jsrt))


def run_folds(args: argparse.Namespace) -> None:
    """Train and score every network on every fold."""
    real = [add_masks(pair, args.jsrt) for pair in read_once(args.pairs, args)]
    phantoms = read_once(f"phantom:{args.phantoms}@{args.size}#1", args) if args.phantoms else []
    other = read_once(args.other, args) if args.other else []
    ct = {part: read_ct(args.ct, part) for part in ("train", "test")}
    for number, test in enumerate(fold_pairs(real, args.folds)):
        if args.only and number not in args.only:
            continue
        names = {pair.group for pair in test}
        train = [pair for pair in real if pair.group not in names]
        # cases of the other site's pairs that are in this set would leak
        foreign = [pair for pair in other if pair.group not in {p.group for p in real}]
        score_itself(args.out, number, test + foreign)
        val, train = train[: args.val], train[args.val :]
        seconds = None
        for network in args.networks:
            if network == OURS:
                model, seconds = train_ours(args, number, train + phantoms, val, ct["train"])
            else:
                assert seconds, "our network says for how long its peers are trained"
                training = [TrainingPair(p.film_HW, p.bone_free_HW, find_spacing(p)) for p in train + phantoms]
                file = args.out / f"fold{number}_{network}.pt"
                model = PeerSuppressor(
                    train_peer(network, training, seconds, args.crop, args.batch, args.seed, file), args.size, args.crop
                )
            score_network(args.out, number, network, model, test, foreign, ct["test"])


def add_masks(pair: FilmPair, jsrt: str) -> FilmPair:
    """Add the lungs and the nodule of a JSRT case."""
    lung, nodule = (Path(jsrt) / folder / f"{pair.group}.png" for folder in ("masks", "nodule_masks"))
    if not jsrt or not lung.is_file():
        return pair
    side = pair.film_HW.shape[::-1]
    organ_HW = cv2.resize(cv2.imread(str(lung), cv2.IMREAD_UNCHANGED), side, interpolation=cv2.INTER_NEAREST)
    nodule_HW = None
    if nodule.is_file():
        drawn_HW = cv2.imread(str(nodule), cv2.IMREAD_UNCHANGED)
        nodule_HW = cv2.resize(drawn_HW, side, interpolation=cv2.INTER_NEAREST) > 0
    found = nodule_HW if nodule_HW is not None and nodule_HW.any() else None
    return replace(pair, lung_HW=(organ_HW & 3) > 0, nodule_HW=found, spacing_mm=358.4 / max(side))


def train_ours(
    args: argparse.Namespace, fold: int, train: list[FilmPair], val: list[FilmPair], ct: list[CtNodule]
) -> tuple[Any, float]:
    """Train our network on a fold; return it with the CPU seconds of its training."""
    config = BonesConfig(
        size=args.size, crop=args.crop, decoder="tiny", perceptual="none", keep_nodules=args.keep, steps=args.steps,
        batch=args.batch, learning_rate=args.rate, encoder_rate=1.0, seed=args.seed, checkpoint_every=100,
    )  # fmt: skip
    clock = args.out / f"fold{fold}_{OURS}.json"
    used = json.loads(clock.read_text())["seconds"] if clock.exists() else 0.0
    started = time.process_time()

    def keep_time(report: Any, _: Any) -> None:
        if report.step % config.checkpoint_every == 0 or report.step == config.steps:
            clock.write_text(json.dumps({"seconds": used + time.process_time() - started}))

    network = train_bone_network(
        args.out / f"fold{fold}_{OURS}", load_encoder(args.encoder), train, [], config, keep_time, ct_nodules=ct
    )
    model = BoneSuppressor(network, args.size, args.crop)
    scale = find_spread_scale(model, val)
    return replace(model, spread_scale=scale), json.loads(clock.read_text())["seconds"]


def score_itself(out: Path, fold: int, test: list[FilmPair]) -> None:
    """Score the films as they are."""
    if not has_rows(out / "films.csv", fold, ITSELF):
        add_rows(out / "films.csv", [describe(pair, fold, ITSELF) | score_pair(pair, pair.film_HW) for pair in test])


def score_network(
    out: Path, fold: int, name: str, model: Any, test: list[FilmPair], other: list[FilmPair], ct: list[CtNodule]
) -> None:
    """Score a network on the films and added nodules of a fold, and draw its best, median and worst film."""
    if has_rows(out / "films.csv", fold, name):
        return
    films, nodules, results = list[dict[str, Any]](), list[dict[str, Any]](), []
    for pair in test + other:
        map_CHW = model.predict_maps(pair.film_HW)
        results.append((pair.film_HW - map_CHW[0]).clip(0, 1))  # a peer may leave the range
        films.append(describe(pair, fold, name) | score_pair(pair, results[-1]) | score_spread(pair, map_CHW))
        nodules += [describe(pair, fold, name) | asdict(one) for one in measure_added_nodules(model, pair, 5, ct)]
    order = np.argsort([-film["psnr"] for film in films[: len(test)]])
    rows = [
        (f"{title}: {test[at].name}", test[at].film_HW, results[at].clip(0, 1), test[at].bone_free_HW)
        for title, at in zip(("best", "median", "worst"), order[[0, len(order) // 2, -1]], strict=True)
    ]
    draw_suppression_sheet(rows, out / f"fold{fold}_{name}.png", synthetic=False)
    add_rows(out / "nodules.csv", nodules)
    add_rows(out / "films.csv", films)  # last: its rows say that all is done


def describe(pair: FilmPair, fold: int, name: str) -> dict[str, Any]:
    """Return what a row begins with."""
    return {"network": name, "fold": fold, "film": pair.name, "group": pair.group, "kind": pair.kind}


def has_rows(table: Path, fold: int, name: str) -> bool:
    """Whether a table has rows of a network and fold."""
    if not table.exists():
        return False
    known = pd.read_csv(table)
    return bool(((known["fold"] == fold) & (known["network"] == name)).any())


def add_rows(table: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a table."""
    known = [pd.read_csv(table)] if table.exists() else []
    pd.concat([*known, pd.DataFrame(rows)]).to_csv(table, index=False)


def tabulate(out: Path, jsrt: str = "") -> str:
    """Return Markdown: means over films with 95 % intervals by case, differences, added nodules and those of JSRT."""
    films, lines = pd.read_csv(out / "films.csv"), list[str]()
    for kind, part in films.groupby("kind"):
        lines += [f"### {kind}, {part['film'].nunique()} films", ""]
        shown = [name for name in SHOWN if name in part and part[name].notna().any()]
        lines += ["| network | " + " | ".join(shown) + " |", "| --- |" + " --- |" * len(shown)]
        for network, rows in part.groupby("network", sort=False):
            scores = rows[shown].replace([np.inf, -np.inf], np.nan).to_dict("records")
            found = summarise_films(scores, rows["group"].to_numpy())  # type: ignore[arg-type]
            cells = [f"{found[n].value:.3f} [{found[n].low:.3f}, {found[n].high:.3f}]" for n in shown]
            lines.append(f"| {network} | " + " | ".join(cell.replace("nan [nan, nan]", "") for cell in cells) + " |")
        lines += ["", *compare(part), ""]
    if (out / "nodules.csv").exists():
        lines += list_nodules(pd.read_csv(out / "nodules.csv"))
    if jsrt:
        lines += ["", *list_real_nodules(films, pd.read_csv(Path(jsrt) / "cases.csv"))]
    return "\n".join(lines)


def compare(part: pd.DataFrame) -> list[str]:
    """Return PSNR of our network minus that of each other, paired by film."""
    lines = []
    for other in part["network"].unique():
        wide = part[part["network"].isin([OURS, other])].pivot_table(index=["film", "group"], columns="network",
                                                                      values="psnr")  # fmt: skip
        if other != OURS and OURS in wide and other in wide:
            wide = wide.dropna()
            rows = [{"psnr": gap} for gap in wide[OURS] - wide[other]]
            found = summarise_films(rows, wide.index.get_level_values("group").to_numpy())["psnr"]
            lines.append(f"PSNR, ours − {other}: {found.value:+.2f} dB [{found.low:+.2f}, {found.high:+.2f}]")
    return lines


def list_real_nodules(films: pd.DataFrame, cases: pd.DataFrame) -> list[str]:
    """Return a table of the contrast of JSRT's nodules over that in the film, by size and subtlety."""
    found = films.merge(cases, left_on="group", right_on="case").dropna(subset=["nodule_contrast_ratio"])
    itself = found[found["network"] == ITSELF]
    target = itself.assign(network="target", nodule_contrast_ratio=1 / itself["nodule_contrast_of_truth"])
    found = pd.concat([target, found[found["network"] != ITSELF]])
    size, subtlety = found["size_mm"], found["subtlety"]
    groups = {
        "all": size > 0, "< 15 mm": size < 15, "15 to 20 mm": (size >= 15) & (size < 20), "20 mm and more": size >= 20,
        "subtlety 1, 2 (faint)": subtlety <= 2, "subtlety 3": subtlety == 3, "subtlety 4, 5": subtlety >= 4,
    }  # fmt: skip
    lines = ["### Nodules of JSRT: contrast over that in the film", ""]
    lines += ["| network | nodules | number | median | 10th to 90th percentile | below 0.8 |", "| --- " * 6 + "|"]
    for network in dict.fromkeys(found["network"]):
        for title, inside in groups.items():
            ratio = found.loc[inside & (found["network"] == network), "nodule_contrast_ratio"]
            if len(ratio):
                ends = np.percentile(ratio, (10, 90))
                lines.append(f"| {network} | {title} | {len(ratio)} | {ratio.median():.3f} | {ends[0]:.3f} to "
                             f"{ends[1]:.3f} | {(ratio < 0.8).mean():.3f} |")  # fmt: skip
    return lines


def list_nodules(nodules: pd.DataFrame) -> list[str]:
    """Return a table of the contrast that is left of added nodules, by size."""
    lines = ["### Added nodules (SYNTHETIC, CT bodies and drawn ones)", ""]
    lines += ["| network | diameter | nodules | contrast / true, median | 10th to 90th percentile | below 0.8 |"]
    lines += ["| --- " * 6 + "|"]
    for network, rows in nodules.groupby("network", sort=False):
        for title, low, high in (("all", 0, 99), ("< 10 mm", 0, 10), ("10 to 20 mm", 10, 20), ("> 20 mm", 20, 99)):
            kept = rows.loc[(rows["diameter_mm"] >= low) & (rows["diameter_mm"] < high), "kept"]
            if len(kept):
                ends = np.percentile(kept, (10, 90))
                lines.append(f"| {network} | {title} | {len(kept)} | {kept.median():.3f} | {ends[0]:.3f} to "
                             f"{ends[1]:.3f} | {(kept < 0.8).mean():.3f} |")  # fmt: skip
    return lines


if __name__ == "__main__":
    main()
