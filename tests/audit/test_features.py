"""An audit by an encoder's features: crops of real films that the hashes miss, verified by pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chess_cxr.audit.audit import audit_stores
from chess_cxr.audit.options import AuditOptions
from chess_cxr.encoders.embed import embed
from chess_cxr.film_jpeg import encode_film
from chess_cxr.ingest.hashes import compute_hashes
from chess_cxr.records import ImageRecord
from chess_cxr.search.column import write_embedding
from chess_cxr.store import Store, StoredFilm, open_store, write_store
from command_line import run

QUICK = AuditOptions(thorough=False, threads=1)
FILMS = 16


def read_film(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("L").resize((512, 512)), np.float32) / 255


@pytest.fixture(scope="module")
def cropped(real_films: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """16 real films of 16 patients, and a crop of each under another patient's id, in another split."""
    paths = sorted((real_films / "nih_adult" / "images").iterdir())[:: 362 // FILMS][:FILMS]
    films = [read_film(path) for path in paths]
    films += [film[30:420, 50:440] for film in films]
    place = tmp_path_factory.mktemp("cropped") / "films.lance"

    def encode(number: int, film: np.ndarray) -> StoredFilm:
        hashes = compute_hashes(film)
        record = ImageRecord(f"{number:024x}", f"p{number}", split="train" if number < FILMS else "test")
        return StoredFilm(record, *encode_film(film, 512), hashes.pixel, hashes.perceptual)

    write_store(place, (encode(*film) for film in enumerate(films)), [], "cropped")
    return open_store(place)


def find_pairs(store: Store, features: list[np.ndarray]) -> set[tuple[int, int]]:
    pairs = audit_stores([store], options=QUICK, features=features).pairs
    pairs = pairs[pairs["kind"] == "near duplicate"]
    return set(zip(pairs["first"].tolist(), pairs["second"].tolist(), strict=True))


@pytest.mark.real_films
def test_features_find_crops_that_hashes_miss_and_pixels_decide(cropped: Store) -> None:
    true = {(film, film + FILMS) for film in range(FILMS)}
    by_hash = find_pairs(cropped, [])
    by_features = find_pairs(cropped, [embed("cxr-small", cropped)])
    assert len(by_hash & true) <= 2
    assert len(by_features & true) >= FILMS // 2 and by_features >= by_hash
    assert by_features <= true  # films that are near but show other pictures are not reported
    alike = np.ones((len(cropped), 4), np.float32) + np.random.default_rng(0).normal(0, 1e-3, (len(cropped), 4))
    assert find_pairs(cropped, [alike.astype(np.float32)]) <= true


@pytest.mark.real_films
def test_the_command_takes_the_features_of_the_store(cropped: Store, tmp_path: Path) -> None:
    missing = run("audit", cropped.path, "--encoder", "pixels:16", "--quiet")
    assert missing.code == 2 and "chess-cxr embed pixels:16" in missing.err and missing.err.count("\n") == 1
    from chess_cxr.encoders.embed import open_encoder

    write_embedding("pixels:16", open_encoder("pixels:16"), cropped)
    told = run("audit", cropped.path, "--encoder", "pixels:16", "--quiet")
    assert "films near in the features of an encoder compared" in told.out, told.err
