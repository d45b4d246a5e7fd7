"""Films and store on a real S3 server."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from chess_cxr.deidentify.identity import hash_id
from chess_cxr.ingest.options import IngestOptions, QualityOptions
from chess_cxr.ingest.pipeline import ingest_films
from chess_cxr.records import ChessError, UsageError
from chess_cxr.sources.folder import read_folder
from chess_cxr.store import begin_store, is_store, open_store
from chess_cxr.workers.pool import build_ingest_pool
from command_line import run
from object_store import ObjectStore, run_object_store

KEY = b"a key of more than sixteen bytes"
# The films below are no chest films, and are to be stored all the same.
KEEP_ALL = QualityOptions(quarantine_not_chest=False)
OPTIONS = IngestOptions(id_key=KEY, longest_side=64, films_a_commit=2, quality=KEEP_ALL)
NAMES = [f"JPCLN{number:03d}.png" for number in (2, 4, 6, 7, 8)]


@pytest.fixture(scope="module")
def server(real_films: Path) -> Iterator[ObjectStore]:
    with run_object_store() as started:
        started.make_bucket("archive")
        for path in sorted((real_films / "jsrt" / "images").glob("*.png"))[:5]:
            started.upload(path, f"archive/films/{path.name}")
        yield started


@pytest.fixture
def store(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


def test_films_are_read_from_and_stored_into_a_bucket(store: ObjectStore) -> None:
    films = read_folder(["s3://archive/films"])
    with build_ingest_pool(1) as pool:
        summary = ingest_films(films, "s3://archive/out/a.lance", OPTIONS, pool)
    assert summary.films == 5
    opened = open_store("s3://archive/out/a.lance")
    assert list(opened.films["uid"]) == [hash_id(KEY, "uid", film.uid) for film in films]
    assert [film.shape for film in opened.read_films(range(5))] == [(64, 64)] * 5
    assert "archive/out/a.lance.quarantine.csv" in store.list_keys("archive/out")
    with pytest.raises(UsageError, match="exists already"):
        ingest_films(films, "s3://archive/out/a.lance", OPTIONS)


def test_an_ingest_into_a_bucket_goes_on_where_it_was_stopped(store: ObjectStore) -> None:
    films = read_folder(["s3://archive/films"])
    seen: list[int] = []

    def stop() -> None:
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest_films(films, "s3://archive/out/b.lance", replace(OPTIONS, in_flight=1), on_film=stop)
    with pytest.raises(UsageError, match="is not complete"):
        open_store("s3://archive/out/b.lance")
    assert ingest_films(films, "s3://archive/out/b.lance", OPTIONS).resumed == 2
    assert open_store("s3://archive/out/b.lance").films["uid"].is_unique


def test_of_two_ingests_into_one_place_of_a_bucket_the_last_one_goes_on(store: ObjectStore) -> None:
    films = list(read_folder(["s3://archive/films"]))
    seen: list[int] = []

    def begin_another() -> None:
        seen.append(1)
        if len(seen) == 4:
            assert ingest_films(films, "s3://archive/out/e.lance", OPTIONS).resumed == 2

    with pytest.raises(ChessError, match="another ingest has taken over"):
        ingest_films(films, "s3://archive/out/e.lance", replace(OPTIONS, in_flight=1), on_film=begin_another)
    assert open_store("s3://archive/out/e.lance").films["uid"].nunique() == 5
    assert len(open_store("s3://archive/out/e.lance").read_films(range(5))) == 5


def test_what_is_taken_back_leaves_no_object(store: ObjectStore) -> None:
    begin_store("s3://archive/out/c.lance", [], "").remove()
    assert not [key for key in store.list_keys("archive/out") if "/c.lance/" in key]
    assert not is_store("s3://archive/out/c.lance")


def test_the_command_takes_urls(store: ObjectStore) -> None:
    done = run("ingest", "s3://archive/films", "--out", "s3://archive/out/d.lance", "--workers", "1")
    assert (done.code, done.out.splitlines()[0][:29]) == (0, "5 films of 5 patients stored ")
    assert len(open_store("s3://archive/out/d.lance")) == 5


@pytest.mark.parametrize("out", ["s3://nowhere/a.lance", "s3:///a.lance"])
def test_a_bucket_that_is_not_there_is_one_line(store: ObjectStore, out: str) -> None:
    done = run("ingest", "s3://archive/films", "--out", out)
    assert done.code in (1, 2)
    assert done.err.splitlines()[-1].startswith("chess-cxr: ")
    assert "unexpected" not in done.err


def test_a_store_that_stops_answering_ends_the_work_and_quarantines_nothing(
    real_films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_object_store() as dying:
        for name, value in dying.environment.items():
            monkeypatch.setenv(name, value)
        dying.make_bucket("archive")
        for number, path in enumerate(sorted((real_films / "jsrt" / "images").glob("*.png"))[:4]):
            dying.upload(path, f"archive/films/{number}.png")
        films = list(read_folder(["s3://archive/films"]))
    with build_ingest_pool(1) as pool, pytest.raises(ChessError, match="cannot be reached or refuses to answer"):
        ingest_films(films, tmp_path / "a.lance", OPTIONS, pool)
    assert list(tmp_path.iterdir()) == []
