"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from chess_cxr.film_jpeg import encode_film
from chess_cxr.records import ImageRecord
from chess_cxr.store import Store, StoredFilm, open_store, write_store
from tiny_runs import build_tiny_config

if TYPE_CHECKING:
    from chess_cxr.encoders.encoder import Encoder

REAL_FILMS = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_films() -> Path:
    """Folder of real chest X-rays beside the checkout; never part of the repository."""
    if not REAL_FILMS.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{REAL_FILMS} is absent in CI: real-film tests must run there")
        pytest.skip(f"no real films at {REAL_FILMS}")
    return REAL_FILMS


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 96 tiny generated pictures of 48 patients: class "stripes" or "spots", a few labels unknown."""
    path = tmp_path_factory.mktemp("store") / "small.lance"
    write_store(path, _draw_small_films(), ["stripes", "spots"], "small pictures (SYNTHETIC)")
    return path


def _draw_small_films() -> Iterator[StoredFilm]:
    rng = np.random.default_rng(5)
    y, x = np.mgrid[0:48, 0:40] / 40
    for number in range(96):
        patient = number // 2
        striped = patient % 2 == 0
        phase, scale = rng.uniform(0, 6), rng.uniform(14, 20)
        wave = np.sin(scale * x + phase) if striped else np.sin(scale * x + phase) * np.sin(scale * y + phase)
        pixels = np.clip(0.5 + 0.3 * wave + rng.normal(0, 0.03, wave.shape), 0, 1).astype(np.float32)
        labels = {} if number % 17 == 0 else {"stripes": float(striped), "spots": float(not striped)}
        split = ("train", "train", "train", "val", "test")[patient % 5]
        record = ImageRecord(uid=f"{number:032x}", patient=f"p{patient:03d}", split=split, labels=labels)
        yield StoredFilm(record, *encode_film(pixels, 48))


@pytest.fixture(scope="session")
def store(small_store: Path) -> Store:
    """The small store, opened."""
    return open_store(small_store)


@pytest.fixture(scope="session")
def two_sites(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small store, its films all PA and from two sites, a third from b."""
    path = tmp_path_factory.mktemp("sites") / "two.lance"

    def list_films() -> Iterator[StoredFilm]:
        for number, row in enumerate(store.films.itertuples()):
            record = ImageRecord(row.uid, row.patient, split=row.split, site="ab"[number % 3 == 0], view="PA")
            yield StoredFilm(record, store.read_jpegs([number])[0], row.height, row.width)

    write_store(path, list_films(), [], "two sites (SYNTHETIC)")
    return path


@pytest.fixture(scope="session")
def encoder() -> "Encoder":
    """An untrained RegNet for films of 64 pixels."""
    from chess_cxr.encoders.load import load_encoder

    return load_encoder("random:regnetx_002@64")


@pytest.fixture(scope="session")
def tiny_encoder() -> "Encoder":
    """An untrained network of a few thousand weights for films of 32 pixels."""
    from chess_cxr.encoders.contract import PixelContract
    from chess_cxr.encoders.load import build_random_encoder

    return build_random_encoder("test_resnet", PixelContract(32, (0.5,), (0.25,)))


@pytest.fixture(scope="session")
def pretrained(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `build_tiny_config()` on the small store; no test may change it."""
    from chess_cxr.pretraining.pretrain import pretrain

    return pretrain(small_store, tmp_path_factory.mktemp("runs") / "first", build_tiny_config())


@pytest.fixture(scope="session")
def vgg16_file() -> Path:
    """The file of VGG16, which an optional package brings."""
    from chess_cxr.judges.vgg16 import find_vgg16_file
    from chess_cxr.records import UsageError

    try:
        return find_vgg16_file()
    except UsageError as error:
        if os.environ.get("CI"):
            pytest.fail(f"{error}: CI installs it")
        pytest.skip(str(error))
