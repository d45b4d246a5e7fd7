"""Embeddings in the store: one column for an encoder, whole or not there, continued where it stopped."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from chess_cxr.encoders.embed import embed, open_encoder
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.encoders.film_features import FilmEncoder
from chess_cxr.records import ChessError
from chess_cxr.search import column
from chess_cxr.search.column import count_embedded, write_embedding
from chess_cxr.store import Store, open_store
from command_line import run
from object_store import run_object_store


@pytest.fixture
def own(store: Store, tmp_path: Path) -> Store:
    """The small store, to be written to."""
    return open_store(shutil.copytree(store.path, tmp_path / "own.lance"))


def test_the_column_holds_what_embed_returns_and_nothing_else_changes(own: Store, tiny_encoder: Encoder) -> None:
    films, jpegs = own.films, own.read_jpegs(range(len(own)))
    opened = open_encoder(tiny_encoder)
    written = write_embedding("tiny", opened, own)
    np.testing.assert_array_equal(written.read_embedding(opened.key), embed(tiny_encoder, own))
    assert written.embeddings == {opened.key: "tiny"} and own.embeddings == {}
    again = open_store(own.path)
    assert again.films.equals(films) and again.read_jpegs(range(len(own))) == jpegs
    assert open_store(own.path, own.version).films.equals(films)  # a run that has pinned the version reads on
    assert [path.name for path in own.path.parent.iterdir()] == [own.path.name]


def test_two_encoders_have_two_columns_and_one_encoder_one(own: Store) -> None:
    first, second = open_encoder("pixels:4"), open_encoder("pixels:8")
    store = write_embedding("b", second, write_embedding("a", first, own))
    assert store.embeddings == {first.key: "a", second.key: "b"}
    assert write_embedding("b again", second, store).version == store.version


def test_the_key_tells_weights_and_contracts_apart(tiny_encoder: Encoder) -> None:
    from dataclasses import replace

    key = open_encoder(tiny_encoder).key
    other = replace(tiny_encoder, contract=replace(tiny_encoder.contract, mean=(0.4,)))
    assert len(key) == 16 and key == open_encoder(replace(tiny_encoder, name="renamed")).key
    assert key != open_encoder(other).key != open_encoder("pixels:32").key != open_encoder("pixels:16").key


def test_an_interrupted_embedding_continues(own: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column, "ROWS_A_PART", 20)
    whole, calls = open_encoder("pixels:4"), list[int]()

    def stop_late(pixels_ND: np.ndarray) -> np.ndarray:
        calls.append(len(pixels_ND))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return pixels_ND

    failing = FilmEncoder(whole.name, whole.key, whole.prepare, stop_late)
    with pytest.raises(KeyboardInterrupt):
        write_embedding("pixels:4", failing, own)
    assert count_embedded(own, whole.key) == 60 and open_store(own.path).embeddings == {}
    (own.path.parent / f"own.lance.{whole.key}.partial" / "000002.npy").write_bytes(b"half")
    seen = list[int]()
    written = write_embedding("pixels:4", whole, own, lambda done, _: seen.append(done))
    assert seen == [60, 80, 96]
    np.testing.assert_array_equal(written.read_embedding(whole.key), embed("pixels:4", own))


def test_features_that_are_no_numbers_are_refused(own: Store) -> None:
    whole = open_encoder("pixels:4")
    broken = FilmEncoder("broken", "0" * 16, whole.prepare, lambda pixels_ND: pixels_ND * np.nan)
    with pytest.raises(ChessError, match="NaN"):
        write_embedding("broken", broken, own)
    assert open_store(own.path).embeddings == {}


def test_the_command_writes_the_column_or_parquet(own: Store, tmp_path: Path) -> None:
    key = open_encoder("pixels:4").key
    told = f"{own.path}: 96 films embedded by pixels:4, key {key}\n"
    for _ in range(2):
        answer = run("embed", "pixels:4", own.path, "--quiet")
        assert (answer.code, answer.out, answer.err) == (0, told, "")
    assert run("embed", "pixels:4", own.path, "--out", tmp_path / "f.parquet", "--quiet").code == 0
    feature = pyarrow.parquet.read_table(tmp_path / "f.parquet")["feature"].to_pylist()
    np.testing.assert_array_equal(open_store(own.path).read_embedding(key), np.array(feature, np.float32))


def test_a_cluster_embeds(own: Store) -> None:
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "protocol": "tcp://"}
    with distributed.LocalCluster(dashboard_address=None, **options) as there:
        answer = run("embed", "pixels:4", own.path, "--quiet", "--cluster", there.scheduler_address)
    assert answer.code == 0, answer.err
    [key] = open_store(own.path).embeddings
    np.testing.assert_array_equal(open_store(own.path).read_embedding(key), embed("pixels:4", own))


def test_a_store_in_a_bucket_gets_its_column_there(own: Store) -> None:
    with run_object_store() as bucket:
        bucket.make_bucket("films")
        for file in own.path.rglob("*"):
            if file.is_file():
                bucket.upload(file, f"films/own.lance/{file.relative_to(own.path)}")
        address = "s3://films/own.lance"
        answer = run("embed", "pixels:4", address, "--quiet", **bucket.environment)
        assert answer.code == 0, answer.err
        assert not [key for key in bucket.list_keys("films") if "partial" in key]
        again = run("embed", "pixels:4", address, "--quiet", **bucket.environment)
    assert (again.code, again.out) == (0, answer.out) and "96 films" in again.out
