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
            "floors": (),
        }
        return Suite(**(settings | changed))

    return make


@pytest.fixture(scope="session")
def quadrant_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose films show a finding, the site and the sex in a quadrant each (SYNTHETIC).

    "seen" has a quadrant of its own; "shortcut" has none, and is nine times out of ten where the site is b.
    """
    path = tmp_path_factory.mktemp("quadrants") / "quadrants.lance"
    write_store(path, _draw_quadrants(), ["seen", "shortcut"], "quadrants (SYNTHETIC)")
    return path


def _draw_quadrants() -> Iterator[StoredFilm]:
    rng = np.random.default_rng(7)
    for number in range(420):
        seen, at_b, female = rng.random(3) < 0.5
        shortcut = at_b if rng.random() < 0.9 else not at_b
        grey = 0.5 + np.array([[0.08 * seen, 0.15 * at_b], [0.15 * female, 0.0]])
        pixels = np.kron(grey, np.ones((16, 16))) + rng.normal(0, 0.05, (2, 2)).repeat(16, 0).repeat(16, 1)
        record = ImageRecord(
            uid=hash_text(f"film {number}"),
            patient=hash_text(f"patient {number}"),
            split=("train", "val", "test")[0 if number < 220 else 1 if number < 280 else 2],
            labels={"seen": float(seen), "shortcut": float(shortcut)},
            sex="F" if female else "M",
            site="b" if at_b else "a",
            age_years=float(rng.integers(20, 90)) if number % 9 else float("nan"),
            view="PA",
        )
        yield StoredFilm(record, *encode_film(np.clip(pixels, 0, 1).astype(np.float32), 32))


@pytest.fixture
def make_quadrants(quadrant_store: Path) -> Callable[..., Suite]:
    """Suites of bare pixels on the quadrants: one task a finding."""

    def make(**changed: object) -> Suite:
        settings: dict[str, object] = {
            "encoders": {"pixels": "pixels:4", "coarse": "pixels:1"},
            "tasks": {name: TaskSpec(str(quadrant_store), (name,), kind="multilabel") for name in ("seen", "shortcut")},
            "fractions": (0.2, 1.0),
            "draws": 2,
            "replicates": 200,
            "reference": "pixels",
        }
        return Suite(**(settings | changed))

    return make
