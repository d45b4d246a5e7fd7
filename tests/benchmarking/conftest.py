"""A small store of real films with labels, and suites on it."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from chess_cxr.benchmarking.suite import Suite, TaskSpec
from chess_cxr.film_jpeg import encode_film
from chess_cxr.records import ImageRecord
from chess_cxr.store import StoredFilm, write_store

CLASSES = ("bacteria", "normal", "virus")
FILMS = {"train": 90, "val": 24, "test": 48}


@pytest.fixture(scope="session")
def film_store(real_films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 162 real films of children, three classes, the published split."""
    table = pd.read_csv(real_films / "kermany3" / "labels.csv")
    path = tmp_path_factory.mktemp("films") / "films.lance"
    write_store(path, _read_films(table, real_films / "kermany3"), [*CLASSES, "first", "normal_only"], "kermany3")
    return path


def _read_films(table: pd.DataFrame, folder: Path) -> Iterator[StoredFilm]:
    for split, count in FILMS.items():
        part = table[table["split"] == split]
        each = part.groupby("label").head(count // 3)
        for number, row in enumerate(each.itertuples()):
            pixels = cv2.imread(str(folder / row.file), cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
            labels = {name: float(row.label == name) for name in CLASSES}
            labels |= {"first": float(split == "train" and number % 10 == 0)}
            labels |= {"normal_only": labels["normal"]} if number % 7 else {}
            record = ImageRecord(
                uid=hash_text(row.file),
                patient=hash_text(str(row.patient)),
                split=split,
                labels=labels,
                sex="F" if number % 2 else "M",
                age_years=float(number % 90) if number % 5 else float("nan"),
            )
            yield StoredFilm(record, *encode_film(pixels, 96))


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@pytest.fixture
def make_suite(film_store: Path) -> Callable[..., Suite]:
    """Suites of two small encoders on three classes, one fast setting changed at a time."""

    def make(**changed: object) -> Suite:
        settings: dict[str, object] = {
            "encoders": {"random": "random:test_resnet@64", "pixels": "pixels:16"},
            "tasks": {"kinds": TaskSpec(str(film_store), CLASSES)},
            "fractions": (0.2, 1.0),
            "draws": 2,
            "replicates": 100,
            "reference": "random",
        }
        return Suite(**(settings | changed))

    return make
