"""The whole path on generated films, in a few minutes; `chess-cxr demo`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from chess_cxr.api import build_comparison_sections, evaluate, export, pretrain, read_metrics
from chess_cxr.cli import build_step_note
from chess_cxr.evaluation.compare import Comparison
from chess_cxr.ingest.pipeline import IngestOptions, IngestSummary, ingest_films
from chess_cxr.ingest.workers import build_pool
from chess_cxr.presets import PretrainConfig
from chess_cxr.presets import demo as demo_preset
from chess_cxr.progress import ProgressBar
from chess_cxr.report.page import Section, render_page, write_page
from chess_cxr.report.plots import draw_film_sheet, draw_training_curves
from chess_cxr.sources.folder import read_folder
from chess_cxr.sources.phantom import CLASSES, write_phantom_films
from chess_cxr.store import Store, open_store
from chess_cxr.views import draw_view_pairs, resize_film

PATIENTS, FILMS_PER_PATIENT, FILM_SIZE = 300, 3, 256
SEED = 0
DEMO_KEY = b"chess-cxr demo: generated films, nothing to hide"


def run_demo(out: Path, quiet: bool = False) -> Path:
    """Walk from generated DICOM films to a report; each station that is there already is not made again.

    Returns the path of `report.html`.
    """
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    with build_pool() as pool:
        table = _write_films(out / "films", pool, quiet)
        store, summary = _ingest(out / "films", table, out / "films.lance", pool, quiet)
    config = demo_preset()
    run = out / "run"
    with ProgressBar("3/5 pretrain", config.training.steps, "steps", quiet) as bar:
        pretrain(store, run, config, build_step_note(bar))
    encoder = out / "encoder"
    if not encoder.exists():
        export(run, encoder, licence="Apache-2.0", data="Generated films of chess-cxr's phantom. SYNTHETIC.")
    _say("4/5 export: encoder folder written", quiet)
    untrained = f"random:{config.method.architecture}@{config.views.size}"
    with ProgressBar("5/5 evaluate", 2, "encoders", quiet) as bar:
        comparison = evaluate(
            store,
            {"pre-trained": encoder, "untrained": untrained},
            CLASSES,
            fractions=(0.05, 0.25, 1.0),
            draws=3,
            seed=SEED,
            replicates=300,
            on_encoder=lambda name: bar.advance(note=name),
        )
    sections = _build_sections(store, summary, config, run, comparison)
    page = render_page("chess-cxr demo", sections, subtitle=_describe(time.monotonic() - started), synthetic=True)
    return write_page(out / "report.html", page).resolve()


def _write_films(folder: Path, pool: Executor, quiet: bool) -> Path:
    table = folder / "labels.csv"
    if table.exists():
        return table
    total = PATIENTS * FILMS_PER_PATIENT
    with ProgressBar("1/5 generate DICOM films", total, "films", quiet) as bar:
        return write_phantom_films(folder, PATIENTS, FILMS_PER_PATIENT, SEED, FILM_SIZE, pool, bar.advance)


def _ingest(folder: Path, table: Path, out: Path, pool: Executor, quiet: bool) -> tuple[Store, str]:
    note = out.with_suffix(".summary.txt")
    if not out.exists():
        columns = {"path": "file", "patient": "patient", "class": "label"}
        films = read_folder([folder], table, columns)
        with ProgressBar("2/5 ingest", len(films), "films", quiet) as bar:
            summary: IngestSummary = ingest_films(
                films, out, IngestOptions(DEMO_KEY, dataset="phantom (SYNTHETIC)", seed=SEED), pool, bar.advance
            )
        note.write_text(summary.as_text())
    return open_store(out), note.read_text()


def _build_sections(
    store: Store, summary: str, config: PretrainConfig, run: Path, comparison: Comparison
) -> Sequence[Section]:
    metrics = read_metrics(run)
    rows = [int(np.flatnonzero(store.films[name].to_numpy() == 1)[0]) for name in CLASSES]
    films = store.read_films(rows)
    size = config.views.size
    pairs = draw_view_pairs(films, list(range(len(films))), SEED, config.views)[:, :, 0]
    shown = [resize_film(film, 2 * size) for film in films]
    titles = [name.replace("_", " ") for name in CLASSES]
    return [
        Section(
            "Generated films",
            f"{summary}.\n\nFilms were written as DICOM, read back, split by patient and stored.",
            draw_film_sheet(shown, titles, len(films)),
            "One generated film of each class. SYNTHETIC.",
        ),
        Section(
            "What the encoder learned from",
            "Pre-training sees no label. It learns to recognise two random views of one film among many others.",
            draw_film_sheet([*pairs[0], *pairs[1]], ["view 1"] * len(films) + ["view 2"] * len(films), len(films)),
            f"Two views of each film above, {size} pixels.",
        ),
        Section(
            "Pre-training",
            f"MoCo v2 with {config.method.architecture}, {config.training.steps} steps of "
            f"{config.training.batch} films, on the train split only.",
            draw_training_curves(metrics, math.log(1 + config.method.queue)),
            "Left: loss. Middle: a k-nearest-neighbour probe. Right: signs of collapse would drop towards 0.",
        ),
        *build_comparison_sections(comparison, ["accuracy", "auroc"]),
    ]


def _describe(seconds: float) -> str:
    return f"Generated films to report in {seconds / 60:.1f} minutes."


def _say(line: str, quiet: bool) -> None:
    if not quiet:
        print(line, file=sys.stderr)
