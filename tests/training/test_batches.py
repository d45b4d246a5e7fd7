"""What a training step sees depends on the stores, the seed and the step; on nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch

from chess_cxr.film_jpeg import encode_film
from chess_cxr.records import ImageRecord, UsageError
from chess_cxr.store import Store, StoredFilm, compute_batch, open_store, write_store
from chess_cxr.training.batches import FilmPool, build_film_pool, read_view_batches
from chess_cxr.views import ViewConfig, draw_view_pairs

VIEWS = ViewConfig(size=24, crop_area=(0.5, 1.0), flip_p=0.5, noise=(1.0, 8.0), noise_p=0.5)


@pytest.fixture(scope="module")
def store(small_store: Path) -> Store:
    return open_store(small_store)


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
