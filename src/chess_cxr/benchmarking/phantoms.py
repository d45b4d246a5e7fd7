"""Stores of generated films for suites: `store = "phantom:PATIENTS@SIZE#SEED"`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from chess_cxr.benchmarking.suite import Suite
from chess_cxr.files.locations import remove_folder
from chess_cxr.film_jpeg import encode_film
from chess_cxr.records import ChessError, ImageRecord
from chess_cxr.sources.phantom.anatomy import draw_anatomy
from chess_cxr.sources.phantom.film import CLASSES, MAX_PIXEL, draw_exposure, render_film
from chess_cxr.sources.phantom.place import PhantomPlace, is_phantom, parse_phantom
from chess_cxr.store import StoredFilm, is_store, open_store, write_store

FILMS_A_PATIENT = 2
SITES = ("north", "south")  # of which the second has darker films
_SPLITS = ("train", "test", "train", "train", "test", "train", "val", "train", "test", "train")


def write_phantom_stores(suite: Suite, folder: Path) -> Suite:
    """Write the stores of generated films that a suite names to `folder`, once; return the suite with their places."""
    tasks = {}
    for name, task in suite.tasks.items():
        if is_phantom(task.store):
            place = parse_phantom(task.store, 128)
            path = folder / f"phantom-{place.patients}-{place.size}-{place.seed}.lance"
            if not _is_whole(path):
                remove_folder(path)
                write_store(path, draw_films(place), CLASSES, "phantom films (SYNTHETIC)")
            task = replace(task, store=str(path))
        tasks[name] = task
    return replace(suite, tasks=tasks)


def draw_films(place: PhantomPlace) -> Iterator[StoredFilm]:
    """Draw films of generated patients, each with one finding of `CLASSES`: 60 % train, 10 % val, 30 % test."""
    total = place.patients * FILMS_A_PATIENT
    findings = np.random.default_rng([place.seed, 9]).permutation(np.arange(total) % len(CLASSES))
    for number, finding in enumerate(findings.tolist()):
        patient, film = divmod(number, FILMS_A_PATIENT)
        seeds = np.random.SeedSequence([place.seed, patient]).generate_state(1 + FILMS_A_PATIENT)
        anatomy = draw_anatomy(int(seeds[0]))
        drawn = render_film(anatomy, draw_exposure(int(seeds[1 + film])), CLASSES[finding], place.size)
        site = patient % len(SITES)
        pixels = (drawn.pixels / np.float32(MAX_PIXEL)) ** np.float32(1 + 0.4 * site)
        record = ImageRecord(
            uid=_hash(f"phantom film {place.seed} {number}"),
            patient=_hash(f"phantom patient {place.seed} {patient}"),
            view="PA",
            age_years=float(min(anatomy.age_years, 90)),
            sex=anatomy.sex,
            spacing_mm=drawn.spacing_mm,
            site=SITES[site],
            split=_SPLITS[patient // len(SITES) % len(_SPLITS)],
            labels={name: float(place_of == finding) for place_of, name in enumerate(CLASSES)},
        )
        yield StoredFilm(record, *encode_film(pixels.astype(np.float32), place.size))


def _is_whole(path: Path) -> bool:
    """Whether a store stands there in full; a killed writer leaves a part."""
    try:
        return is_store(path) and len(open_store(path)) > 0
    except ChessError:
        return False


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
