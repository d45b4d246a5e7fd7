"""A store of small generated films, three a patient, whose classes differ in their pixels, not in brightness."""

from pathlib import Path

import numpy as np

from chess_cxr.film_jpeg import encode_film
from chess_cxr.records import ImageRecord
from chess_cxr.store import Store, StoredFilm, open_store, write_store

KINDS = ("bacteria", "normal", "virus")
FILMS = 360
ENCODERS = {"good": "pixels:8", "bad": "pixels:1"}


def draw_classes() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, FILMS // 3)[np.arange(FILMS) // 3]


def list_splits() -> np.ndarray:
    """90 test films of 30 patients, as many val films, 180 training films of 60 patients."""
    return np.array(["test", "val", "train", "train"])[np.arange(FILMS) // 3 % 4]


def write_study(
    path: Path,
    label_NL: np.ndarray | None = None,
    split_N: np.ndarray | None = None,
    patient_N: np.ndarray | None = None,
    marked: tuple[int, ...] | range = (),
) -> Store:
    """Write the store with these labels, splits, patients and films marked in a column, by default as above."""
    kind_N, rng = draw_classes(), np.random.default_rng(1)
    label_NL = np.eye(3)[kind_N] if label_NL is None else label_NL
    split_N = list_splits() if split_N is None else split_N
    patient_N = np.arange(FILMS) // 3 if patient_N is None else patient_N
    pattern_K16 = rng.normal(0, 0.08, (3, 16, 16))
    pattern_K16 -= pattern_K16.mean(axis=(1, 2), keepdims=True)
    films = []
    for number, kind in enumerate(kind_N):
        film_HW = np.clip(0.5 + pattern_K16[kind] + rng.normal(0, 0.25, (16, 16)), 0, 1).astype(np.float32)
        known = zip(KINDS, label_NL[number], strict=True)
        labels = {name: float(value) for name, value in known if not np.isnan(value)}
        record = ImageRecord(
            f"{number:032x}",
            f"p{patient_N[number]:03d}",
            split=str(split_N[number]),
            labels=labels | {"marked": float(number in marked)},
        )
        films.append(StoredFilm(record, *encode_film(film_HW, 16)))
    write_store(path, films, [*KINDS, "marked"], "made-up films")
    return open_store(path)
