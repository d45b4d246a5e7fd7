"""What each step sees."""

from pathlib import Path

import pytest
import torch

from chess_cxr.records import UsageError
from chess_cxr.store import open_store
from chess_cxr.training.batches import FilmPool, build_film_pool, read_view_batches
from chess_cxr.views import ViewConfig

VIEWS = ViewConfig(size=16, crop_area=(0.5, 1.0), noise=(1.0, 4.0), noise_p=0.5)


@pytest.fixture
def pool(small_store: Path) -> FilmPool:
    return build_film_pool([open_store(small_store)], ("train",))


def read(pool: FilmPool, first_step: int = 0, **options: int) -> list[torch.Tensor]:
    return list(read_view_batches(pool, VIEWS, batch=8, seed=1, first_step=first_step, steps=12, **options))


def test_only_films_of_the_chosen_splits_are_trained_on(small_store: Path) -> None:
    store = open_store(small_store)
    pool = build_film_pool([store, store], ("train", ""))
    held_out = set(store.films.loc[store.films["split"].isin(["val", "test"]), "uid"])
    assert len(pool) == 2 * (store.films["split"] == "train").sum()
    assert not held_out & set(pool.get_uids())


def test_batches_do_not_depend_on_the_number_of_threads(pool: FilmPool) -> None:
    for one, four in zip(read(pool), read(pool, threads=4), strict=True):
        assert one.shape == (2, 8, 1, 16, 16)
        assert torch.equal(one, four)


def test_a_resumed_run_sees_what_the_uninterrupted_one_would_have_seen(pool: FilmPool) -> None:
    for resumed, whole in zip(read(pool, first_step=7), read(pool)[7:], strict=True):
        assert torch.equal(resumed, whole)


def test_the_shares_of_the_ranks_make_up_the_batch(pool: FilmPool) -> None:
    for whole, first, second in zip(read(pool), read(pool, rank=0, world=2), read(pool, rank=1, world=2), strict=True):
        assert torch.equal(whole, torch.cat([first, second], 1))


def test_a_batch_that_ranks_cannot_share_is_refused(pool: FilmPool) -> None:
    with pytest.raises(UsageError, match="8 films cannot be shared by 3 ranks"):
        read(pool, world=3)


def test_a_split_without_films_is_refused(small_store: Path) -> None:
    with pytest.raises(UsageError, match="no film of split"):
        build_film_pool([open_store(small_store)], ("",))
