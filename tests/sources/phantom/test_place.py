"""What a user writes for generated films."""

import pytest

from chess_cxr.records import UsageError
from chess_cxr.sources.phantom.place import PhantomPlace, is_phantom, parse_phantom


def test_size_and_seed_may_be_left_out() -> None:
    assert parse_phantom("phantom:300@512#7") == PhantomPlace(300, 512, 7)
    assert parse_phantom("phantom:3@64", 128) == PhantomPlace(3, 64, 0)
    assert parse_phantom("phantom:3#2", 128) == PhantomPlace(3, 128, 2)
    assert parse_phantom("phantom:3") == PhantomPlace(3, 256, 0)
    assert is_phantom("phantom:x") and not is_phantom("films/phantom:3")


@pytest.mark.parametrize(
    "place", ["phantom:", "phantom:0", "phantom:x", "phantom:-3", "phantom:3@", "phantom:3@64#", "phantom:3#x"]
)
def test_what_is_misspelt_is_explained(place: str) -> None:
    with pytest.raises(UsageError, match=r"is not phantom:PATIENTS\[@SIZE\]\[#SEED\], such as phantom:300@256#7$"):
        parse_phantom(place)


@pytest.mark.parametrize("size", [10, 63, 4097, 99999])
def test_a_size_that_no_film_has_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match=f"^a generated film of {size} pixels is outside 64 to 4096$"):
        parse_phantom(f"phantom:3@{size}")
