"""The whole path on generated films, in a few minutes; `chess-cxr demo`."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chess_cxr.api import evaluate, export, pretrain, read_metrics
from chess_cxr.evaluation.compare import Comparison
from chess_cxr.ingest.pipeline import IngestOptions, ingest_films
from chess_cxr.ingest.workers import build_ingest_pool, build_pool
from chess_cxr.methods import METHOD_TITLES, compute_chance_loss
from chess_cxr.presets import PretrainConfig
from chess_cxr.presets import demo as demo_preset
from chess_cxr.progress import ProgressBar, StageBars, build_step_note
from chess_cxr.records import SPLITS
from chess_cxr.report.comparison import build_comparison_sections
from chess_cxr.report.page import Section, render_page, write_page
from chess_cxr.report.plots import draw_film, draw_training_curves
from chess_cxr.sources.folder import read_folder
from chess_cxr.sources.phantom import CLASSES, write_phantom_films
from chess_cxr.store import Store, open_store
from chess_cxr.views import draw_view_pairs, resize_film

SEED = 0
DEMO_KEY = b"chess-cxr demo: generated films, nothing to hide"
FILM_WIDTH = 9  # of a drawn film on the page, in letters


@dataclass(frozen=True)
class DemoSize:
    """How much the demo does.

    film_size: side of the generated films in pixels.  fractions: parts of the training patients that are labelled.
    draws: label draws a fraction.  replicates: of the bootstrap.
    """

    patients: int = 250
    films_per_patient: int = 3
    film_size: int = 256
    fractions: tuple[float, ...] = (0.05, 0.25, 1.0)
    draws: int = 3
    replicates: int = 300


def run_demo(
    out: Path, quiet: bool = False, size: DemoSize | None = None, config: PretrainConfig | None = None
) -> Path:
    """Walk from generated DICOM films to a report; each station that is there already is not made again.

    size, config: how much of everything, by default a few minutes' worth.  Returns the path of `report.html`.
    """
    started = time.monotonic()
    size, config = size or DemoSize(), config or demo_preset()
    out.mkdir(parents=True, exist_ok=True)
    store_path, run, encoder = out / "films.lance", out / "run", out / "encoder"
    is_new = not any(out.iterdir())
    if not store_path.exists():
        with build_pool() as pool:
            table = _write_films(out / "films", size, pool, quiet)
        with build_ingest_pool() as pool:
            _ingest(out / "films", table, store_path, pool, quiet)
    store = open_store(store_path)
    with ProgressBar("3/5 pretrain", config.training.steps, "steps", quiet) as bar:
        pretrain(store, run, config, build_step_note(bar))
    if not encoder.exists():
        export(run, encoder, licence="Apache-2.0", data="Generated films of chess-cxr's phantom. SYNTHETIC.")
    if not quiet:
        print(f"4/5 export: encoder folder {encoder}", file=sys.stderr)
    with StageBars(quiet) as bars:
        comparison = evaluate(
            store,
            {"pre-trained": encoder, "untrained": f"random:{config.method.architecture}@{config.views.size}"},
            CLASSES,
            fractions=size.fractions,
            draws=size.draws,
            seed=SEED,
            replicates=size.replicates,
            on_progress=lambda stage, done, total: bars.show(f"5/5 {stage}", done, total),
        )
    sections = _build_sections(out, store, config, comparison)
    minutes = (time.monotonic() - started) / 60
    subtitle = f"From generated films to this page in {minutes:.1f} minutes." if is_new else ""
    page = render_page("chess-cxr demo", sections, subtitle=subtitle, synthetic=True)
    return write_page(out / "report.html", page).resolve()


def _write_films(folder: Path, size: DemoSize, pool: Executor, quiet: bool) -> Path:
    table = folder / "labels.csv"
    if table.exists():
        return table
    total = size.patients * size.films_per_patient
    with ProgressBar("1/5 generate DICOM films", total, "films", quiet) as bar:
        return write_phantom_films(
            folder, size.patients, size.films_per_patient, SEED, size.film_size, pool, bar.advance
        )


def _ingest(folder: Path, table: Path, out: Path, pool: Executor, quiet: bool) -> None:
    films = read_folder([folder], table, {"path": "file", "patient": "patient", "class": "label"})
    options = IngestOptions(DEMO_KEY, dataset="phantom films (SYNTHETIC)", seed=SEED)
    with ProgressBar("2/5 ingest", films.count(), "films", quiet) as bar:
        ingest_films(films, out, options, pool, bar.advance)


def _build_sections(out: Path, store: Store, config: PretrainConfig, comparison: Comparison) -> Sequence[Section]:
    rows = [int(np.flatnonzero(store.films[name].to_numpy() == 1)[0]) for name in CLASSES]
    films = store.read_films(rows)
    side, titles = config.views.size, [name.replace("_", " ") for name in CLASSES]
    pairs = draw_view_pairs(films, list(range(len(films))), SEED, config.views)[:, :, 0]
    views = [draw_film(view, f"view {1 + which}") for which in (0, 1) for view in pairs[which]]
    return [
        Section(
            "Generated films",
            f"{_describe_store(out, store)}\n\nFilms were written as DICOM, read back, split by patient and stored.",
            tuple(draw_film(resize_film(film, 192), title) for film, title in zip(films, titles, strict=True)),
            FILM_WIDTH,
            "One generated film of each class. SYNTHETIC.",
        ),
        Section(
            "What the encoder learned from",
            "Pre-training sees no label. It learns to recognise two random views of one film among many others.",
            tuple(views),
            FILM_WIDTH,
            f"Two views of each film above, {side} × {side} pixels. SYNTHETIC.",
        ),
        Section(
            "Pre-training",
            f"{METHOD_TITLES[config.method.name]} with {config.method.architecture}, {config.training.steps} steps of "
            f"{config.training.batch} films, on the train split only.",
            draw_training_curves(read_metrics(out / "run"), compute_chance_loss(config.method)),
            20,
            "First: the loss, and that of a network that knows nothing. Second: a nearest-neighbour probe. Third: all "
            "lines would fall towards 0 if the encoder forgot to tell films apart. SYNTHETIC films.",
        ),
        *build_comparison_sections(comparison, ["accuracy", "auroc"]),
    ]


def _describe_store(out: Path, store: Store) -> str:
    splits = ", ".join(f"{split} {len(store.get_rows(split))}" for split in SPLITS)
    with (out / "films.lance.quarantine.csv").open(newline="") as file:
        left_out = sum(1 for _ in csv.reader(file)) - 1
    patients = store.films["patient"].nunique()
    return f"{len(store)} films of {patients} patients ({splits}); {left_out} could not be read."
