"""A store with features, to be searched."""

import shutil
from pathlib import Path

import pytest

from chess_cxr.encoders.embed import open_encoder
from chess_cxr.search.column import write_embedding
from chess_cxr.store import Store, open_store


@pytest.fixture(scope="session")
def embedded(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The small store, embedded by pixels:8; no test may change it."""
    copy = shutil.copytree(store.path, tmp_path_factory.mktemp("embedded") / "films.lance")
    return write_embedding("pixels:8", open_encoder("pixels:8"), open_store(copy))


@pytest.fixture(scope="session")
def film_file(embedded: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Film 7 of the store, as a file whose name is that of a patient."""
    path = tmp_path_factory.mktemp("files") / "Quentin_Canary_1955.jpg"
    path.write_bytes(embedded.read_jpegs([7])[0])
    return path
