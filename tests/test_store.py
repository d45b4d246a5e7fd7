"""The on-disk data set."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

from chess_cxr.film_jpeg import decode_stored, encode_film
from chess_cxr.records import ChessError, ImageRecord, UsageError
from chess_cxr.store import StoredFilm, begin_store, open_store, write_store
from chess_cxr.training.order import compute_batch, compute_epoch_order


def test_films_and_fields_come_back_as_they_were_written(tmp_path: Path) -> None:
    pixels = np.linspace(0, 1, 64 * 48, dtype=np.float32).reshape(64, 48)
    record = ImageRecord("u1", "p1", "s1", "PA", 61.0, "F", 0.7, "here", "train", labels={"nodule": 1.0})
    film = StoredFilm(record, *encode_film(pixels, 512))
    assert write_store(tmp_path / "a.lance", iter([film]), ["nodule", "effusion"], "set") == 1
    store = open_store(tmp_path / "a.lance")
    row = store.films.iloc[0]
    assert (row["uid"], row["patient"], row["view"], row["age_years"], row["split"]) == (
        "u1",
        "p1",
        "PA",
        61.0,
        "train",
    )
    assert row["nodule"] == 1.0
    assert np.isnan(row["effusion"])
    assert np.abs(store.read_films([0])[0] / 255 - pixels).max() < 0.02


def test_a_writer_that_was_displaced_leaves_the_store_of_the_other_alone(tmp_path: Path) -> None:
    displaced = begin_store(tmp_path / "a.lance", [], "set")
    other = begin_store(tmp_path / "a.lance", [], "set")
    other.append(draw_films(0, 2), dict)
    displaced.remove()
    other.finish()
    displaced.remove()
    assert len(open_store(tmp_path / "a.lance")) == 2


def test_what_a_writer_left_that_was_killed_before_its_first_version_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "a.lance" / "_versions").mkdir(parents=True)
    assert write_store(tmp_path / "a.lance", draw_films(0, 1), [], "set") == 1
    (tmp_path / "b.lance").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        write_store(tmp_path / "b.lance", draw_films(0, 1), [], "set")


def test_a_label_may_have_any_name_that_is_no_column(tmp_path: Path) -> None:
    names = ["Pl. Effusion", "Pl%2E Effusion", "50%", "label", "a/b", 'Ä `x` "y"', "a\nb"]
    jpeg = encode_film(np.zeros((32, 32), np.float32), 32)
    labels = {name: float(number % 2) for number, name in enumerate(names)}
    write_store(tmp_path / "a.lance", iter([StoredFilm(ImageRecord("u", "p", labels=labels), *jpeg)]), names, "")
    store = open_store(tmp_path / "a.lance")
    assert store.label_names == names
    assert store.films.iloc[0][names].to_dict() == labels


def test_encoding_shrinks_to_the_longest_side_and_never_enlarges() -> None:
    assert encode_film(np.full((400, 200), 0.5, np.float32), 100)[1:] == (100, 50)
    assert encode_film(np.full((40, 20), 0.5, np.float32), 100)[1:] == (40, 20)


def test_reduced_decoding_keeps_every_side_long_enough() -> None:
    jpeg, _, _ = encode_film(np.random.default_rng(0).random((400, 300), dtype=np.float32), 512)
    reduced = decode_stored(jpeg, 70)
    assert 70 <= min(reduced.shape) < 300
    assert decode_stored(jpeg).shape == (400, 300)


def test_rows_come_back_in_the_order_asked_for(small_store: Path) -> None:
    store = open_store(small_store)
    films = store.read_films([9, 3, 9])
    assert np.array_equal(films[0], films[2])
    assert np.array_equal(films[1], store.read_films([3])[0])
    assert not np.array_equal(films[0], films[1])


def test_a_writer_that_fails_leaves_nothing_behind_and_tells_its_own_error(tmp_path: Path) -> None:
    def films():
        yield StoredFilm(ImageRecord("u", "p"), *encode_film(np.zeros((32, 32), np.float32), 32))
        raise ChessError("the disk of the source went away")

    with pytest.raises(ChessError, match="the disk of the source went away"):
        write_store(tmp_path / "a.lance", films(), [], "set")
    assert list(tmp_path.iterdir()) == []


def draw_films(first: int, count: int) -> Iterator[StoredFilm]:
    for number in range(first, first + count):
        jpeg = encode_film(np.full((32, 32), number / 99, np.float32), 32)
        yield StoredFilm(ImageRecord(f"u{number}", "p", flags=frozenset({"small"}), scores={"border": 0.5}), *jpeg)


def test_a_store_grows_by_commits_that_carry_their_ledger(tmp_path: Path) -> None:
    path = tmp_path / "a.lance"
    writer = begin_store(path, ["nodule"], "set", {"longest_side": 32})
    assert writer.append(draw_films(0, 3), lambda: {"left_out": 1}) == 3
    assert writer.append(iter(()), lambda: {"left_out": 2}) == 0
    with pytest.raises(UsageError, match=r"not complete; run its ingest again"):
        open_store(path)
    again = begin_store(path, ["nodule"], "set", {"longest_side": 32})
    assert list(again.read_ledgers()) == [{"left_out": 1}, {"left_out": 2}]
    assert [uid for batch in again.read_columns("uid") for uid in batch["uid"].to_pylist()] == ["u0", "u1", "u2"]
    again.append(draw_films(3, 2), lambda: {})
    again.finish()
    films = open_store(path).films
    assert list(films["uid"]) == ["u0", "u1", "u2", "u3", "u4"]
    assert films["flag:small"].all() and not films["flag:inverted"].any()
    assert set(films["score:border"]) == {0.5}


def test_the_ledger_is_asked_for_after_the_last_film_of_its_commit(tmp_path: Path) -> None:
    writer = begin_store(tmp_path / "a.lance", [], "set")
    seen: list[str] = []

    def films() -> Iterator[StoredFilm]:
        for film in draw_films(0, 4):
            seen.append(film.record.uid)
            yield film

    writer.append(films(), lambda: list(seen))
    assert list(writer.read_ledgers()) == [["u0", "u1", "u2", "u3"]]


def test_a_commit_that_fails_leaves_those_before_it_and_its_remains_are_swept_up(tmp_path: Path) -> None:
    path = tmp_path / "a.lance"
    writer = begin_store(path, [], "set")
    writer.append(draw_films(0, 2), dict)

    def broken() -> Iterator[StoredFilm]:
        yield from draw_films(2, 600)
        raise ChessError("the source went away")

    with pytest.raises(ChessError, match="the source went away"):
        writer.append(broken(), dict)
    again = begin_store(path, [], "set")
    assert len(again) == 2
    again.finish()
    assert len(open_store(path)) == 2
    assert len(list((path / "data").iterdir())) == 1


@pytest.mark.parametrize(
    "changed", [{"label_names": ["other"]}, {"dataset": "other"}, {"options": {"longest_side": 64}}], ids=str
)
def test_a_store_begun_with_other_labels_or_options_is_not_gone_on_with(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    begun: dict[str, Any] = {"label_names": ["nodule"], "dataset": "set", "options": {"longest_side": 32}}
    begin_store(tmp_path / "a.lance", **begun)
    with pytest.raises(UsageError, match="begun with other labels or options"):
        begin_store(tmp_path / "a.lance", **(begun | changed))


def test_hashes_come_back_apart_from_the_other_columns(tmp_path: Path) -> None:
    film = replace(next(draw_films(0, 1)), pixel_hash="ab", perceptual_hash=b"\x00\xff")
    write_store(tmp_path / "a.lance", [film], [], "set")
    store = open_store(tmp_path / "a.lance")
    assert store.read_hashes().to_dict("records") == [{"pixel_hash": "ab", "perceptual_hash": b"\x00\xff"}]
    assert "pixel_hash" not in store.films


def test_an_existing_store_is_never_overwritten(small_store: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        write_store(small_store, iter([]), [], "set")


def test_a_store_of_another_format_version_is_refused_in_one_line(tmp_path: Path) -> None:
    described = {"version": 99, "labels": [], "dataset": "x"}
    schema = pa.schema([pa.field("uid", pa.string())], metadata={"chess_cxr": json.dumps(described)})
    lance.write_dataset(pa.table({"uid": ["a"]}, schema=schema), str(tmp_path / "new.lance"))
    with pytest.raises(UsageError, match="store format 99, this program reads 3") as error:
        open_store(tmp_path / "new.lance")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["missing.lance", "folder"])
def test_what_is_no_store_is_refused_with_the_command_that_makes_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="chess-cxr ingest"):
        open_store(tmp_path / name)


def test_a_lance_table_of_somebody_else_is_refused(tmp_path: Path) -> None:
    lance.write_dataset(pa.table({"a": [1]}), str(tmp_path / "other.lance"))
    with pytest.raises(UsageError, match="not a readable store"):
        open_store(tmp_path / "other.lance")


def test_every_epoch_visits_every_film_once_in_another_order() -> None:
    first, second = compute_epoch_order(100, 7, 0), compute_epoch_order(100, 7, 1)
    assert sorted(first) == list(range(100)) == sorted(second)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, compute_epoch_order(100, 7, 0))


@pytest.mark.parametrize("batch", [1, 7, 10, 23])
def test_batches_cut_the_endless_row_of_epochs_without_dropping_a_film(batch: int) -> None:
    films = 10
    parts = [compute_batch(films, batch, step, seed=3) for step in range(12)]
    visited = np.concatenate([film for film, _ in parts])
    position = np.concatenate([position for _, position in parts])
    assert np.array_equal(position, np.arange(12 * batch))
    for epoch in range(len(visited) // films):
        assert sorted(visited[epoch * films : (epoch + 1) * films]) == list(range(films))
