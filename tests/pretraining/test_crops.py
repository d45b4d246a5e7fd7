"""Local views, guides, balance and sizes on the way from the store to a batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chess_cxr.film_jpeg import encode_film
from chess_cxr.methods.batch import ViewBatch, take_views
from chess_cxr.pretraining.crops import Crops, check_sizes, find_size
from chess_cxr.pretraining.films import FilmPool, build_film_pool, build_groups, read_view_batches
from chess_cxr.records import ImageRecord, UsageError
from chess_cxr.store import Store, StoredFilm, open_store, write_store
from chess_cxr.training.order import compute_balanced_batch
from chess_cxr.views import ViewConfig, draw_view

VIEWS = ViewConfig(size=24, crop_area=(0.5, 1.0), flip_p=0.5, noise=(1.0, 8.0), noise_p=0.5)
CROPS = Crops(global_views=3, local_views=4, local_size=12, local_area=(0.1, 0.4))


@pytest.fixture(scope="module")
def pool(store: Store) -> FilmPool:
    return build_film_pool([store], ["train", ""])


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> FilmPool:
    """60 films: 40 of site a, 15 of site b, 5 that name none; every third PA, the others AP; ages 5, 15 and unknown."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("sites") / "sites.lance"
    films = []
    for number in range(60):
        pixels = rng.uniform(0.2, 0.8, (40, 40)).astype(np.float32)
        record = ImageRecord(
            uid=f"{number:032x}", patient=f"p{number}", split="train", site="a" if number < 40 else "b" * (number < 55),
            view="PA" if number % 3 == 0 else "AP", age_years=(5.0, 15.0, float("nan"))[number % 3],
        )  # fmt: skip
        films.append(StoredFilm(record, *encode_film(pixels, 40)))
    write_store(path, films, [], "drawn")
    return build_film_pool([open_store(path)], ["train"])


def read(pool: FilmPool, steps: int = 4, batch: int = 8, views: ViewConfig = VIEWS, **more: Any) -> list[ViewBatch]:
    batches = read_view_batches(pool, views, batch=batch, seed=3, first_step=0, steps=steps, **more)
    return [take_views(made) for made in batches]


def test_a_local_view_is_a_small_part_of_the_film_drawn_by_its_own_stream(pool: FilmPool, store: Store) -> None:
    [first, *_] = read(pool, crops=CROPS)
    assert first.global_GB1SS.shape == (3, 8, 1, 24, 24) and first.local_LB1ss is not None
    assert first.local_LB1ss.shape == (4, 8, 1, 12, 12) and first.local_LB1ss.dtype == torch.uint8
    every = [first.local_LB1ss[view, film] for view in range(4) for film in range(8)]
    assert len({view.numpy().tobytes() for view in every}) == 32
    local = CROPS.build_local(VIEWS)
    assert (local.size, local.crop_area, local.noise) == (12, (0.1, 0.4), VIEWS.noise)
    # what it is like: of a film with one bright corner most small parts see nothing, and large ones do
    corner = np.zeros((48, 48), np.uint8)
    corner[:16, :16] = 255
    quiet = replace(VIEWS, noise_p=0.0, flip_p=0.0)
    seen = [draw_view(corner, CROPS.build_local(quiet), np.random.default_rng(n)).any() for n in range(60)]
    assert 0.1 < np.mean(seen) < 0.9
    assert all(
        draw_view(corner, replace(quiet, crop_area=(0.9, 1.0)), np.random.default_rng(n)).any() for n in range(9)
    )


def test_more_views_change_nothing_of_the_first_two(pool: FilmPool) -> None:
    large = replace(VIEWS, size=32)  # both are decoded at their own size
    few = Crops(local_views=2, local_size=8, local_area=(0.5, 0.6))
    for plain, with_local in zip(read(pool, views=large), read(pool, views=large, crops=few), strict=True):
        assert torch.equal(plain.global_GB1SS, with_local.global_GB1SS)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_and_a_later_start_see_the_same(world: int, pool: FilmPool, sites: FilmPool) -> None:
    more: dict[str, Any] = {"crops": CROPS, "balance": "site", "guides": ["view"], "sizes": ((0.5, 16), (1.0, 24))}
    whole = read(sites, **more)
    shares = [read(sites, rank=rank, world=world, **more) for rank in range(world)]
    for made, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([part.global_GB1SS for part in parts], 1), made.global_GB1SS)
        assert torch.equal(torch.cat([part.local_LB1ss for part in parts], 1), made.local_LB1ss)  # type: ignore[misc]
        assert torch.equal(torch.cat([part.guides["view"] for part in parts]), made.guides["view"])
    later = read_view_batches(sites, VIEWS, batch=8, seed=3, first_step=3, steps=4, threads=3, **more)
    [last] = [take_views(made) for made in later]
    assert torch.equal(last.global_GB1SS, whole[3].global_GB1SS) and last.guides.keys() == {"view"}


def test_sizes_follow_the_run(pool: FilmPool) -> None:
    sizes = ((0.5, 12), (0.75, 18), (1.0, 24))
    assert [find_size(sizes, step, 8) for step in range(8)] == [12, 12, 12, 12, 18, 18, 24, 24]
    assert [made.global_GB1SS.shape[-1] for made in read(pool, 8, sizes=sizes)] == [12] * 4 + [18] * 2 + [24] * 2


def test_guides_bring_the_columns_of_their_films(sites: FilmPool) -> None:
    films, counts = sites.stores[0].films, np.zeros(3, int)
    for made in read(sites, 15, guides=["site", "view"]):
        counts += np.bincount(made.guides["site"].numpy() + 1, minlength=3)
        assert set(made.guides["view"].tolist()) <= {0, 1}
    assert counts.sum() == 120
    assert counts.tolist() == [10, 80, 30]  # two epochs of 5 without a site, 40 of a, 15 of b
    assert set(films["site"]) == {"", "a", "b"}


def test_a_balanced_run_has_as_many_films_of_every_group_and_leaves_out_none() -> None:
    groups = [np.arange(0, 40), np.arange(40, 55), np.arange(55, 60)]
    seen = np.concatenate([compute_balanced_batch(groups, 8, step, 3)[0] for step in range(15)])
    again = np.concatenate([compute_balanced_batch(groups, 24, step, 3)[0] for step in range(5)])
    np.testing.assert_array_equal(seen, again)
    counts = np.bincount(seen, minlength=60)
    assert counts[:40].tolist() == [1] * 40 and counts[55:].tolist() == [8] * 5
    assert counts[40:55].sum() == 40 and set(counts[40:55]) == {2, 3}
    for block in seen.reshape(-1, 3):
        assert sorted(int(film >= 40) + int(film >= 55) for film in block) == [0, 1, 2]
    other = np.concatenate([compute_balanced_batch(groups, 8, step, 4)[0] for step in range(15)])
    assert not np.array_equal(seen, other)


def test_groups_are_of_a_column_a_store_or_ages(sites: FilmPool, small_store: Path) -> None:
    assert [len(group) for group in build_groups(sites, "site")] == [5, 40, 15]
    assert [len(group) for group in build_groups(sites, "age")] == [20, 20, 20]
    both = build_film_pool([*sites.stores, open_store(small_store)], ["train"])
    sizes = [len(group) for group in build_groups(both, "store")]
    assert sizes[0] == 60 and sum(sizes) == len(both)
    with pytest.raises(UsageError, match="the same store: there is nothing to balance"):
        build_groups(sites, "store")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"crops": Crops(local_views=2, local_size=32)},
            "local views of 32 pixels are larger than the global ones of 24",
        ),
        ({"guides": ["hospital"]}, "no column 'hospital' can guide"),
        ({"balance": "weather"}, "no column 'weather' can guide or balance"),
    ],
)
def test_what_cannot_be_read_is_refused_at_once(more: dict[str, Any], said: str, pool: FilmPool) -> None:
    with pytest.raises(UsageError, match=said):
        read_view_batches(pool, VIEWS, batch=8, seed=3, first_step=0, steps=1, **more)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [(((0.5, 24),), "rise to share 1"), (((0.5, 16), (0.4, 20), (1.0, 24)), "rise to share 1"),
     (((0.5, 16), (1.0, 20)), "the last size must be that of the views, 24, not 20")],
)  # fmt: skip
def test_a_schedule_that_does_not_reach_the_end_is_refused(sizes: tuple[tuple[float, int], ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_sizes(sizes, 24)


@pytest.mark.parametrize("wrong", [{"global_views": 1}, {"local_views": 99}, {"local_area": (0.5, 0.2)}])
def test_crops_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="crops:"):
        Crops(**wrong)
