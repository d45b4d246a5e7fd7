from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet
import pytest

from chess_cxr.encoders.embed import embed, write_features
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.encoders.film_features import FILMS_AT_ONCE
from chess_cxr.records import UsageError
from chess_cxr.store import Store


def test_pixels_are_an_encoder_like_any_other(store: Store) -> None:
    feature_ND = embed("pixels:8", store, [5, 0])
    film = cv2.resize(store.read_films([5])[0], (8, 8), interpolation=cv2.INTER_AREA)
    assert feature_ND.dtype == np.float32 and feature_ND.shape == (2, 64)
    np.testing.assert_allclose(feature_ND[0], film.ravel() / 255, atol=1e-6)


def test_embedding_keeps_the_order_of_the_rows(store: Store, tiny_encoder: Encoder) -> None:
    whole = embed(tiny_encoder, store.path)
    assert whole.shape == (96, tiny_encoder.feature_count)
    np.testing.assert_allclose(embed(tiny_encoder, store, [7, 3, 7]), whole[[7, 3, 7]], atol=1e-5)
    expected = tiny_encoder.embed([film.astype(np.float32) / 255 for film in store.read_films([3])])
    np.testing.assert_allclose(whole[3], expected[0], atol=1e-5)


def test_embedding_reports_each_part(store: Store) -> None:
    seen: list[tuple[int, int]] = []
    rows = np.arange(FILMS_AT_ONCE + 3) % 96
    assert len(embed("pixels:4", store, rows, lambda done, total: seen.append((done, total)))) == len(rows)
    assert seen == [(FILMS_AT_ONCE, len(rows)), (len(rows), len(rows))]


def test_features_are_written_beside_their_uids(store: Store, tmp_path: Path) -> None:
    path = write_features("pixels:4", store, tmp_path / "new" / "features.parquet")
    table = pyarrow.parquet.read_table(path)
    assert table["uid"].to_pylist() == store.films["uid"].tolist()
    np.testing.assert_array_equal(np.stack(table["feature"].to_pylist()), embed("pixels:4", store))
    with pytest.raises(UsageError, match="exists already"):
        write_features("pixels:4", store, path)


@pytest.mark.parametrize("name", ["pixels:", "pixels:0", "pixels:513", "pixels:4x4"])
def test_a_wrong_side_is_refused(name: str, store: Store) -> None:
    with pytest.raises(UsageError, match="pixels:SIDE"):
        embed(name, store)
