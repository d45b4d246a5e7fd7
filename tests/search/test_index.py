"""The index beside a store: it finds what exact search finds, says how much of it, and is told when it is missing."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from chess_cxr.encoders.embed import open_encoder
from chess_cxr.search import index
from chess_cxr.search.archive import read_archive
from chess_cxr.search.index import choose_archive, measure_recall, open_index, write_index
from chess_cxr.store import Store, open_store
from command_line import run


@pytest.fixture
def own(embedded: Store, tmp_path: Path) -> Store:
    return open_store(shutil.copytree(embedded.path, tmp_path / "films.lance"))


def test_the_index_finds_the_exact_neighbours_and_measures_it(own: Store) -> None:
    encoder = open_encoder("pixels:8")
    archive = read_archive(own, encoder, "pixels:8")
    written = write_index(archive, encoder.key)
    assert written.recall > 0.95 and written.queries == 96
    feature_D = own.read_embedding(encoder.key)[11]
    rows, cosines = open_index(own, encoder.key).find_nearest(feature_D, 5)
    exact_rows, exact = archive.find_nearest(feature_D, 5)
    assert rows.tolist() == exact_rows.tolist()
    np.testing.assert_allclose(cosines, exact, atol=1e-4)
    others = np.roll(archive.unit_ND, 1, axis=0)
    assert measure_recall(written.table, written.location, others, 0)[0] < 0.5  # of other vectors


def test_an_index_is_taken_by_itself_only_among_many_films(own: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = open_encoder("pixels:8")
    archive = read_archive(own, encoder, "pixels:8")
    monkeypatch.setattr(index, "INDEX_FROM", 50)
    assert type(choose_archive(own, encoder, "pixels:8", False, False)) is type(archive)
    write_index(archive, encoder.key)
    assert type(choose_archive(own, encoder, "pixels:8", False, False)) is index.Index
    assert type(choose_archive(own, encoder, "pixels:8", False, True)) is type(archive)
    monkeypatch.undo()
    assert type(choose_archive(own, encoder, "pixels:8", False, False)) is type(archive)


def test_the_commands_write_and_use_it(own: Store) -> None:
    uid = own.films["uid"][3]
    words = ("search", own.path, uid, "--encoder", "pixels:8", "--k", 4)
    missing = run(*words, "--index")
    assert missing.code == 2 and "--index" in missing.err and missing.err.count("\n") == 1
    written = run("embed", "pixels:8", own.path, "--quiet", "--index")
    assert written.code == 0 and "recall@10" in written.out, written.err
    exact, near = run(*words), run(*words, "--index")
    assert near.code == 0 and near.out == exact.out and "recall@10" in near.err
    assert run(*words, "--index", "--where", "stripes = 1").code == 2
