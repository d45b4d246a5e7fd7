"""Selection: spread, balanced, without near duplicates, and taken by pretrain and ingest."""

from pathlib import Path

import numpy as np
import pytest

from chess_cxr.encoders.embed import open_encoder
from chess_cxr.files.uid_list import read_uid_list
from chess_cxr.pretraining.films import build_film_pool
from chess_cxr.records import UsageError
from chess_cxr.search.archive import Archive, build_archive, read_archive
from chess_cxr.search.select import select_films, share_quota
from chess_cxr.store import Store, open_store
from command_line import run


@pytest.fixture(scope="module")
def archive(embedded: Store) -> Archive:
    return read_archive(embedded, open_encoder("pixels:8"), "pixels:8")


def test_a_core_set_takes_the_farthest_film_each_time(archive: Archive) -> None:
    rows = np.arange(0, 96, 2)
    chosen = select_films(archive, 6, rows, "core-set", duplicates=2)
    unit = archive.unit_ND[rows].astype(np.float64)
    first = int(np.random.default_rng(0).integers(len(rows)))
    expected = [first]
    while len(expected) < 6:
        gap = np.min([((unit - unit[film]) ** 2).sum(1) for film in expected], axis=0)
        expected.append(int(gap.argmax()))
    assert chosen.tolist() == sorted(rows[expected].tolist())


def test_near_duplicates_are_left_out(store: Store) -> None:
    rng = np.random.default_rng(3)
    feature_ND = rng.normal(size=(96, 20)).astype(np.float32)
    feature_ND[40:60] = feature_ND[0] + rng.normal(0, 0.01, (20, 20))
    chosen = select_films(build_archive(store, feature_ND), 76, np.arange(96))
    assert chosen.tolist() == [*range(40), *range(60, 96)]
    with pytest.raises(UsageError, match="76 of the 96 films are left"):
        select_films(build_archive(store, feature_ND), 77, np.arange(96))


def test_groups_are_balanced_as_far_as_they_reach(archive: Archive) -> None:
    chosen = select_films(archive, 50, np.arange(96), balance="split", duplicates=2)
    counts = archive.store.films["split"].iloc[chosen].value_counts().to_dict()
    assert counts == {"train": 16, "val": 17, "test": 17} or sorted(counts.values()) == [16, 17, 17]
    assert share_quota([3, 100, 10], 30) == [3, 17, 10]


def test_selection_is_spread_and_seeded(archive: Archive) -> None:
    rows = np.arange(96)
    first, again, other = (select_films(archive, 20, rows, seed=seed, duplicates=2) for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()

    def reach(chosen: np.ndarray) -> float:
        return float((archive.unit_ND @ archive.unit_ND[chosen].T).max(1).mean())

    evenly = [select_films(archive, 20, rows, "random", seed=seed, duplicates=2) for seed in range(5)]
    assert reach(first) > np.mean([reach(chosen) for chosen in evenly])


def test_the_list_is_taken_by_pretrain_and_audit(embedded: Store, tmp_path: Path) -> None:
    out = tmp_path / "chosen.csv"
    words = ("--encoder", "pixels:8", "--films", 30, "--duplicates", 2, "--quiet", "--out", out)
    answer = run("select", embedded.path, *words)
    assert (answer.code, answer.out) == (0, f"{out}\n"), answer.err
    uids = read_uid_list(out)
    pool = build_film_pool([open_store(embedded.path)], ("train", ""), str(out))
    assert len(uids) == 30 and set(pool.get_uids()) == uids
    with pytest.raises(UsageError, match="no film of"):
        build_film_pool([open_store(embedded.path)], ("",), str(out))
    assert run("select", embedded.path, *words).code == 2  # it exists


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--films", 5, "--balance", "splits"), "no column splits; there are uid"),
        (("--films", 500), "cannot be selected"),
        (("--films", 5, "--where", "split = 'no'"), "no film of films.lance meets the condition"),
        (("--films", 5, "--encoder", "pixels:4"), "chess-cxr embed pixels:4"),
    ],
)
def test_wrong_use_is_told_in_one_line(embedded: Store, tmp_path: Path, words: tuple[object, ...], told: str) -> None:
    encoder = () if "--encoder" in words else ("--encoder", "pixels:8")
    answer = run("select", embedded.path, *words, *encoder, "--quiet", "--out", tmp_path / "no.csv")
    assert answer.code == 2 and told in answer.err and answer.err.count("\n") == 1, answer
    assert not (tmp_path / "no.csv").exists()


def test_ingest_takes_the_films_of_a_list(tmp_path: Path) -> None:
    from chess_cxr.sources.phantom.film import write_phantom_films

    write_phantom_films(tmp_path / "films", 3, 2, seed=0, size=96)
    words = ("ingest", tmp_path / "films", "--quiet", "--workers", 1, "--out")
    assert run(*words, tmp_path / "all.lance").code == 0
    uids = open_store(tmp_path / "all.lance").films["uid"].tolist()
    (tmp_path / "some.csv").write_text("uid\n" + "\n".join(uids[1:4]))
    answer = run(*words, tmp_path / "some.lance", "--films", tmp_path / "some.csv")
    assert answer.code == 0, answer.err
    assert sorted(open_store(tmp_path / "some.lance").films["uid"]) == sorted(uids[1:4])
    (tmp_path / "none.csv").write_text("uid\nabc\n")
    answer = run(*words, tmp_path / "none.lance", "--films", tmp_path / "none.csv")
    assert answer.code == 2 and "no film of" in answer.err and not (tmp_path / "none.lance").exists()
