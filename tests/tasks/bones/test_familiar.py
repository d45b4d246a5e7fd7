"""Films that a bone network knows, and others."""

import json

import numpy as np
import pytest

from chess_cxr.records import ChessError
from chess_cxr.tasks.bones.familiar import BONE_DARK, UNLIKE, FamiliarFilms, describe_familiar, read_familiar
from chess_cxr.tasks.bones.pairs import draw_phantom_pair


@pytest.fixture(scope="module")
def familiar() -> FamiliarFilms:
    return describe_familiar([draw_phantom_pair(n, n, 128).film_HW for n in range(24)])


def test_films_of_other_patients_are_familiar_inverted_ones_and_pictures_are_not(
    familiar: FamiliarFilms,
) -> None:
    others = [draw_phantom_pair(n, n, 128).film_HW for n in range(100, 112)]
    assert sum(bool(familiar.doubt(film)) for film in others) <= 1
    assert [familiar.doubt(1 - film) for film in others].count((BONE_DARK,)) >= 11
    noise = np.random.default_rng(0).random((128, 128), np.float32)
    stripes = np.tile(np.linspace(0, 1, 16, dtype=np.float32), (128, 8))
    for picture in (noise, stripes, np.full((128, 128), 0.5, np.float32)):
        assert familiar.doubt(picture)[0].startswith(UNLIKE)


def test_the_description_is_read_as_it_was_written_and_a_damaged_one_is_told(
    familiar: FamiliarFilms,
) -> None:
    described = json.loads(json.dumps(familiar.as_json()))
    again = read_familiar(described, "model")
    assert again is not None and read_familiar(None, "model") is None
    np.testing.assert_allclose(again.mean_D, familiar.mean_D, rtol=1e-5)
    for change in (
        {"limit": 0},
        {"mean": []},
        {"mean": "a"},
        {"spread": [0.0] * len(described["spread"])},
        {"limit": "x"},
    ):
        with pytest.raises(ChessError, match="have features and a limit"):
            read_familiar(described | change, "model")
    with pytest.raises(ChessError):
        read_familiar([1], "model")


def test_one_film_is_described_too() -> None:
    film = draw_phantom_pair(1, 1, 128).film_HW
    assert describe_familiar([film]).doubt(film) == ()
