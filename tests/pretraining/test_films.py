"""What a training step sees depends on the stores, the seed and the step; on nothing else."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from chess_cxr.film_jpeg import encode_film
from chess_cxr.pretraining.films import (
    FilmPool,
    Positives,
    build_film_pool,
    build_reader,
    build_siblings,
    read_view_batches,
)
from chess_cxr.records import ImageRecord, UsageError
from chess_cxr.store import Store, StoredFilm, open_store, write_store
from chess_cxr.training.order import compute_batch
from chess_cxr.views import ViewConfig, draw_view_pairs

VIEWS = ViewConfig(size=24, crop_area=(0.5, 1.0), flip_p=0.5, noise=(1.0, 8.0), noise_p=0.5)


@pytest.fixture(scope="module")
def pool(store: Store) -> FilmPool:
    return build_film_pool([store], ["train", ""])


def read_all(pool: FilmPool, batch: int = 8, first_step: int = 0, steps: int = 9, **more: int) -> list[torch.Tensor]:
    return list(read_view_batches(pool, VIEWS, batch=batch, seed=3, first_step=first_step, steps=steps, **more))


def test_a_batch_is_what_the_store_and_the_views_say(pool: FilmPool, store: Store) -> None:
    train = store.get_rows("train")
    for step, batch in enumerate(read_all(pool)):
        film_B, position_B = compute_batch(len(train), 8, step, 3)
        films = store.read_films(train[film_B])
        assert batch.dtype == torch.uint8 and batch.shape == (2, 8, 1, 24, 24)
        np.testing.assert_array_equal(batch, draw_view_pairs(films, position_B.tolist(), 3, VIEWS))


@pytest.mark.parametrize("threads", [2, 5])
def test_the_number_of_threads_changes_nothing(threads: int, pool: FilmPool) -> None:
    for ours, theirs in zip(read_all(pool), read_all(pool, threads=threads), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("world", [2, 4])
def test_the_shares_of_the_ranks_make_up_the_batch_of_one_process(world: int, pool: FilmPool) -> None:
    shares = [read_all(pool, rank=rank, world=world) for rank in range(world)]
    for whole, *parts in zip(read_all(pool), *shares, strict=True):
        assert torch.equal(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("first_step", [1, 5, 9])
def test_starting_at_a_later_step_gives_the_rest(first_step: int, pool: FilmPool) -> None:
    rest = read_all(pool)[first_step:]
    resumed = read_all(pool, first_step=first_step)
    assert len(rest) == len(resumed) == 9 - first_step
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(rest, resumed, strict=True))


def test_every_epoch_visits_every_film_once(pool: FilmPool) -> None:
    seen = np.concatenate([compute_batch(len(pool), 8, step, 3)[0] for step in range(2 * len(pool) // 8)])
    assert len(pool) == 60
    for epoch in np.split(seen, 2):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(60))


def test_no_held_out_film_is_ever_trained_on(pool: FilmPool, store: Store) -> None:
    split_of = dict(zip(store.films["uid"], store.films["split"], strict=True))
    assert {split_of[uid] for uid in pool.get_uids()} == {"train"}
    held_out = set(store.read_jpegs(np.flatnonzero(store.films["split"] != "train")))
    assert not held_out & set(pool.read_jpegs(np.arange(len(pool))))


def test_films_of_several_stores_and_films_without_a_split_are_one_pool(store: Store, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    films = [
        StoredFilm(ImageRecord(uid=f"b{n}", patient=f"b{n}", split=split), *encode_film(rng.random((30, 30)), 30))
        for n, split in enumerate(("", "test", "train", "val", ""))
    ]
    write_store(tmp_path / "b.lance", films, [], "")
    pool = build_film_pool([store, open_store(tmp_path / "b.lance")], ["train", ""])
    assert len(pool) == 63 and pool.get_uids()[-3:] == ["b0", "b2", "b4"]
    order = [61, 0, 62, 59, 60]
    expected = [films[2].jpeg, *store.read_jpegs(store.get_rows("train")[[0]]), films[4].jpeg]
    assert pool.read_jpegs(order)[:3] == expected
    assert pool.read_jpegs(order)[4] == films[0].jpeg


def test_a_batch_that_the_ranks_cannot_share_is_refused_at_once(pool: FilmPool) -> None:
    with pytest.raises(UsageError, match="a batch of 10 films cannot be shared by 4 ranks"):
        read_view_batches(pool, VIEWS, batch=10, seed=3, first_step=0, steps=1, world=4)


def test_a_pool_without_films_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="no film of split 'absent' in the given stores"):
        build_film_pool([store], ["absent"])


def test_giving_up_early_leaves_no_thread_behind(pool: FilmPool) -> None:
    import threading

    batches = read_view_batches(pool, VIEWS, batch=8, seed=3, first_step=0, steps=1000, threads=3)
    next(batches)
    assert any(thread.name.startswith("views") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("views") for thread in threading.enumerate())


# (patient, study) of films whose grey level is their number: patients 1 and 2 both call a study "1"
OWNERS = [
    ("1", "1"), ("2", "1"), ("1", "1"), ("", "9"), ("2", "2"), ("1", "2"), ("3", "1"), ("2", "2"), ("", "9"),
    ("1", "1"), ("4", ""), ("4", ""),
]  # fmt: skip
SIBLINGS_OF = {
    "patient": [{2, 5, 9}, {4, 7}, {0, 5, 9}, {3}, {1, 7}, {0, 2, 9}, {6}, {1, 4}, {8}, {0, 2, 5}, {11}, {10}],
    "study": [{2, 9}, {1}, {0, 9}, {8}, {7}, {5}, {6}, {4}, {3}, {0, 2}, {10}, {11}],
}
STILL = ViewConfig(size=16)


def write_grey_store(path: Path, owners: Sequence[tuple[str, str]], splits: Sequence[str] = ("train",)) -> Store:
    grey = [np.full((32, 32), (10 + 10 * n) / 255, np.float32) for n in range(len(owners))]
    films = [
        StoredFilm(
            ImageRecord(uid=f"{n:032x}", patient=patient, study=study, split=splits[n % len(splits)]),
            *encode_film(grey[n], 32),
        )
        for n, (patient, study) in enumerate(owners)
    ]
    write_store(path, films, [], "")
    return open_store(path)


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> FilmPool:
    """A pool of films that tell their number, of the patients and studies of `OWNERS`."""
    return build_film_pool([write_grey_store(tmp_path_factory.mktemp("owned") / "owned.lance", OWNERS)], ["train"])


def read_numbers(pool: FilmPool, positives: Positives, steps: int = 60, seed: int = 3) -> np.ndarray:
    """The films of which the first and the second views are, [2, steps x batch]."""
    batches = read_view_batches(
        pool, STILL, batch=8, seed=seed, first_step=0, steps=steps, positives=positives, held_bytes=0
    )
    grey = torch.cat([batch.float().mean((2, 3, 4)) for batch in batches], 1)
    return np.rint((grey.numpy() - 10) / 10).astype(int)


@pytest.mark.parametrize("within", ["study", "patient"])
def test_the_second_view_is_of_any_other_film_of_the_group_where_there_is_one(
    within: Positives, owned: FilmPool
) -> None:
    first, second = read_numbers(owned, within)
    np.testing.assert_array_equal(first, np.concatenate([compute_batch(12, 8, step, 3)[0] for step in range(60)]))
    drawn = Counter(zip(first.tolist(), second.tolist(), strict=True))
    for film, siblings in enumerate(SIBLINGS_OF[within]):
        assert {other for one, other in drawn if one == film} == siblings
        expected = 40 / len(siblings)  # every film comes once in each of 40 epochs
        assert all(abs(drawn[film, other] - expected) < 4 * expected**0.5 for other in siblings)
    assert not np.array_equal(second, read_numbers(owned, within, seed=4)[1])


def test_films_alone_give_the_views_they_always_gave(owned: FilmPool) -> None:
    alone = read_view_batches(owned, VIEWS, batch=8, seed=3, first_step=0, steps=6)
    paired = read_view_batches(owned, VIEWS, batch=8, seed=3, first_step=0, steps=6, positives="patient")
    for step, (ours, theirs) in enumerate(zip(alone, paired, strict=True)):
        is_alone = np.isin(compute_batch(12, 8, step, 3)[0], [3, 6, 8])
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1, is_alone], theirs[1, is_alone])
        assert not any(torch.equal(*pair) for pair in zip(ours[1, ~is_alone], theirs[1, ~is_alone], strict=True))


def test_pairs_of_films_depend_on_the_step_alone(owned: FilmPool) -> None:
    def read(first_step: int = 0, **more: int) -> list[torch.Tensor]:
        return list(read_view_batches(owned, VIEWS, batch=8, seed=3, first_step=first_step, steps=7,
                                      positives="patient", **more))  # fmt: skip

    whole = read()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(whole[4:], read(4, threads=3), strict=True))
    shares = [read(rank=rank, world=2) for rank in (0, 1)]
    for step, parts in enumerate(zip(*shares, strict=True)):
        assert torch.equal(torch.cat(parts, 1), whole[step])


def test_a_film_that_a_step_uses_twice_is_read_and_decoded_once(owned: FilmPool) -> None:
    asked: list[list[int]] = []

    class Listening(FilmPool):
        def read_jpegs(self, films: Sequence[int] | np.ndarray) -> list[bytes]:
            asked.append(np.asarray(films).tolist())
            return super().read_jpegs(films)

    pool = Listening(owned.stores, owned.store_of_N, owned.row_of_N)
    first, second = read_numbers(pool, "patient", steps=5)
    del asked[0]  # where the reader sees how large films are
    assert len(asked) == 5
    for step, films in enumerate(asked):
        used = {*first[8 * step : 8 * step + 8].tolist(), *second[8 * step : 8 * step + 8].tolist()}
        assert len(films) == len(used) and set(films) == used


def test_no_pair_crosses_stores_or_reaches_a_held_out_film(owned: FilmPool, tmp_path: Path) -> None:
    twice = [("1", "1"), ("1", "1"), ("2", "2"), ("2", "2"), ("1", "1"), ("5", "5")]
    other = write_grey_store(tmp_path / "other.lance", twice, ["train", "val"])
    pool = build_film_pool([*owned.stores, other], ["train"])
    assert len(pool) == 15
    siblings = build_siblings(pool, "patient")
    positions = np.arange(15 * 40)
    drawn = siblings.draw(np.tile(np.arange(15), 40), positions, 0)
    reached = {film: set(drawn[film::15].tolist()) for film in (0, 12, 13, 14)}
    assert reached == {0: {2, 5, 9}, 12: {14}, 13: {13}, 14: {12}}


def test_positives_that_no_film_has_or_nobody_knows_are_refused_at_once(pool: FilmPool) -> None:
    with pytest.raises(UsageError, match="no study has two films in the given stores; use positives 'view'"):
        read_view_batches(pool, VIEWS, batch=8, seed=3, first_step=0, steps=1, positives="study")
    with pytest.raises(UsageError, match="positives are view, study, patient, not 'twin'"):
        read_view_batches(pool, VIEWS, batch=8, seed=3, first_step=0, steps=1, positives="twin")  # type: ignore[arg-type]


def test_a_small_pool_is_held_in_memory_and_a_large_one_read_from_the_store(small_store: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(small_store, tmp_path / "copy.lance")
    pool = build_film_pool([open_store(copy)], ("train", "val", "test"))
    films = np.array([5, 0, 95, 5])
    expected = pool.read_jpegs(films)
    held, read = build_reader(pool, most_bytes=1e9), build_reader(pool, most_bytes=1000)
    shutil.rmtree(copy)
    assert held(films) == expected
    assert read == pool.read_jpegs
