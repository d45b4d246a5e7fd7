"""What is ordered of a generator."""

from pathlib import Path

import pytest

from chess_cxr.records import UsageError
from chess_cxr.tasks.nodules.orders import MOST_FILMS, MOST_SEED, list_masks, plan_orders


def test_two_masks_of_one_name_and_seeds_and_counts_beyond_reason_are_refused(tmp_path: Path) -> None:
    for name in ("a.png", "A.tif", ".hidden.png"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match="masks for films of the same name"):
        list_masks(tmp_path)
    film = [tmp_path / "a.png"]
    with pytest.raises(UsageError, match="at most"):
        plan_orders(film, None, MOST_FILMS + 1, 0)
    for seed in (-1, MOST_SEED + 1):
        with pytest.raises(UsageError, match="--seed is a whole number"):
            plan_orders(film, None, 1, seed)
