"""Play the pointing game on films whose findings have known places, and draw a sheet of maps.

usage: python runs/saliency_sheet.py phantom:FINDING ENCODER SHEET.png   SYNTHETIC films: that finding or normal
       python runs/saliency_sheet.py DATA/jsrt ENCODER SHEET.png         JSRT, nodule or not: cases.csv, images/, masks/

A linear probe is fitted on one half of the films (by patient, seed 0) and looked through, by Grad-CAM and by occlusion,
on the other half's films with the finding.  A hit: the brightest point lies in the finding, or within 10 mm of it.
Chance: a point anywhere on the film; and, for points looked for in the lungs only, anywhere in the lungs.
Do not publish a sheet of films whose licence does not allow it.
"""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from chess_cxr.encoders.load import load_encoder
from chess_cxr.evaluation.intervals import bootstrap_draws_by_patient
from chess_cxr.evaluation.linear_probe import fit_linear_probe
from chess_cxr.evaluation.metrics import build_binary_statistic
from chess_cxr.sources.phantom.film import MAX_PIXEL, draw_anatomy, draw_exposure, render_film
from chess_cxr.tasks.classify.pointing import compute_pointing_score, draw_disc
from chess_cxr.tasks.classify.saliency import HowToLook, build_probe_network, compute_saliency
from chess_cxr.tasks.classify.saliency_sheet import SaliencyRow, draw_saliency_sheet

TOLERANCE_MM = 10.0
PHANTOM_FILMS, PHANTOM_SIZE = 240, 256
SEED, ROWS = 0, 4
WAYS: dict[str, HowToLook] = {"Grad-CAM": "grad_cam", "occlusion": "occlusion"}
LUNG_BITS = 1 | 2


@dataclass(frozen=True)
class KnownFilm:
    """A film, float [H, W] in [0, 1], its lungs, and where its finding is (None: it has none)."""

    film_HW: np.ndarray
    lungs_HW: np.ndarray
    finding_HW: np.ndarray | None
    spacing_mm: float


def draw_phantoms(finding: str) -> list[KnownFilm]:
    """Draw generated films of as many patients, every second one with the finding."""
    films = []
    for number in range(PHANTOM_FILMS):
        shown = (finding, "normal")[number % 2]
        made = render_film(draw_anatomy(9000 + number), draw_exposure(9000 + number), shown, PHANTOM_SIZE)
        film = made.pixels.astype(np.float32) / MAX_PIXEL
        films.append(KnownFilm(film, made.lung_mask, made.finding_mask if number % 2 == 0 else None, made.spacing_mm))
    return films


def read_jsrt(folder: Path) -> list[KnownFilm]:
    """Read the JSRT films that are not crushed to a few grey levels; one film a patient."""
    films = []
    with (folder / "cases.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["low_contrast"] != "0":
                continue
            film = cv2.imread(str(folder / row["file"]), cv2.IMREAD_GRAYSCALE)
            bits = cv2.imread(str(folder / "masks" / Path(row["file"]).name), cv2.IMREAD_GRAYSCALE)
            nodule = None
            if row["nodule"] == "1":
                nodule = draw_disc(*film.shape, *(float(row[name]) for name in ("x_512", "y_512", "radius_512")))
            films.append(KnownFilm(film.astype(np.float32) / 255, (bits & LUNG_BITS) > 0, nodule, 0.175 * 4))
    return films


def main() -> None:
    """Fit, look, score, draw."""
    source, name, sheet = sys.argv[1:]
    kind, _, finding = source.partition(":")
    films = draw_phantoms(finding) if kind == "phantom" else read_jsrt(Path(source))
    encoder = load_encoder(name)
    label = np.array([film.finding_HW is not None for film in films]).astype(np.float64)
    order = np.random.default_rng(SEED).permutation(len(films))
    train, test = order[: len(films) // 2], order[len(films) // 2 :]
    feature = encoder.embed([film.film_HW for film in films])
    probe = fit_linear_probe(feature[train], label[train, None], train, names=("finding",), seed=SEED)
    score = probe.predict_scores(feature[test])[:, 0]
    area = bootstrap_draws_by_patient(test, [build_binary_statistic(label[test], score)], seed=SEED)["auroc"]
    print(f"{source}, {name}: probe on {len(train)} films, AUROC {area.value:.3f} [{area.low:.3f}, {area.high:.3f}]")
    print(f"on {len(test)} others, {int(label[test].sum())} with the finding; 95 % intervals by patient, seed {SEED}")
    shown = [place for place in test.tolist() if label[place]]
    network = build_probe_network(encoder, probe)
    pixels = [films[place].film_HW for place in shown]
    maps = {way: compute_saliency(network, encoder.contract, pixels, 0, how) for way, how in WAYS.items()}
    regions = [films[place].finding_HW for place in shown]
    reach = TOLERANCE_MM / films[0].spacing_mm
    for way, found in maps.items():
        blank = sum(not one.any() for one in found)
        for where, within in (("film", None), ("lungs", [films[place].lungs_HW for place in shown])):
            told = compute_pointing_score(found, regions, shown, tolerance_px=reach, within=within)
            print(f"{way}, brightest point of the {where}: {told.as_text()}; {blank} maps are 0 everywhere")
    rows = [
        SaliencyRow(
            np.rint(pixels[number] * 255).astype(np.uint8),
            {way: found[number] for way, found in maps.items()},
            regions[number],
            "film, finding outlined",
        )
        for number in range(ROWS)
    ]
    title = "SYNTHETIC films" if kind == "phantom" else "Real films"
    Path(sheet).write_bytes(draw_saliency_sheet(rows, f"{title}; cross: brightest point"))


if __name__ == "__main__":
    main()
