"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

REAL_FILMS = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_films() -> Path:
    """Folder of real chest X-rays beside the checkout; never part of the repository."""
    if not REAL_FILMS.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{REAL_FILMS} is absent in CI: real-film tests must run there")
        pytest.skip(f"no real films at {REAL_FILMS}")
    return REAL_FILMS
