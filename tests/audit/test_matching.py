from pathlib import Path

import cv2
import numpy as np
import pytest

from chess_cxr.audit.matching import FilmDetail, compute_detail, find_by_points, match_films, reflect_descriptors

pytestmark = pytest.mark.real_films


@pytest.fixture(scope="module")
def films(real_films: Path) -> list[np.ndarray]:
    paths = sorted((real_films / "jsrt" / "images").glob("JPCLN00*.png"))[:6]
    return [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths]


def turn(film: np.ndarray, degrees: float, scale: float = 1.0, tall: float = 1.0) -> np.ndarray:
    """Turn clockwise about the middle and squeeze the height."""
    height, width = film.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), -degrees, scale)
    return cv2.resize(cv2.warpAffine(film, matrix, (width, height)), (width, round(height * tall)))


def match_best(first: np.ndarray, second: np.ndarray, mirrored: bool = False, inverted: bool = False) -> float:
    match = match_films(compute_detail(first), compute_detail(second), mirrored, inverted)
    return match.similarity if match else 0.0


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("inverted", [False, True])
def test_reflected_descriptors_are_those_of_the_reflected_film(
    films: list[np.ndarray], mirrored: bool, inverted: bool
) -> None:
    film = films[0][:, ::-1] if mirrored else films[0]
    film = np.ascontiguousarray(255 - film if inverted else film)
    ours, theirs = compute_detail(films[0]), compute_detail(film)
    width = ours.grey_HW.shape[1]
    places = ours.place_K2 * [-1, 1] + [width - 1, 0] if mirrored else ours.place_K2
    apart = np.linalg.norm(places[:, None] - theirs.place_K2[None], axis=2)
    near = np.flatnonzero(apart.min(axis=1) < 0.7)
    assert len(near) > 100
    mine = reflect_descriptors(ours.descriptor_KD, mirrored, inverted)[near].astype(float)
    # Points of two directions have two descriptors in one place: the best of those in the place counts.
    best = [
        max(
            float(one @ other) / np.linalg.norm(one) / np.linalg.norm(other)
            for other in theirs.descriptor_KD[row < 0.7].astype(float)
        )
        for one, row in zip(mine, apart[near], strict=True)
    ]
    assert np.median(best) > 0.98


@pytest.mark.parametrize("degrees", [0, 17, -90, 180])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("inverted", [False, True])
def test_a_film_is_found_in_any_turn_and_told_how(
    films: list[np.ndarray], degrees: float, mirrored: bool, inverted: bool
) -> None:
    copy = turn(films[0][:, ::-1] if mirrored else films[0], degrees, scale=0.9)
    copy = 255 - copy if inverted else copy
    match = match_films(compute_detail(films[0]), compute_detail(copy), mirrored, inverted)
    assert match is not None and match.similarity > 0.95
    assert abs((match.turned_degrees - degrees + 180) % 360 - 180) < 1.5
    assert ("mirrored" in match.describe()) == mirrored and ("inverted" in match.describe()) == inverted


def test_crops_squeezed_films_and_other_grey_levels_are_still_one_film(films: list[np.ndarray]) -> None:
    film = films[1]
    assert match_best(film, film[40:-60, 80:-30]) > 0.9
    assert match_best(film, turn(film, 0, tall=0.75)) > 0.9
    assert match_best(film, ((film / 255.0) ** 1.8 * 255).astype(np.uint8)) > 0.9


def test_different_chests_do_not_match(films: list[np.ndarray]) -> None:
    details = [compute_detail(film) for film in films]
    pairs = [(a, b) for a in range(6) for b in range(a)]
    found = [match_films(details[a], details[b], mirrored, False, 6) for a, b in pairs for mirrored in (False, True)]
    assert any(found)
    assert max(match.similarity for match in found if match) < 0.6
    assert max(match.points for match in found if match) < 20


def test_the_points_of_all_films_elect_the_turned_copy(films: list[np.ndarray]) -> None:
    copy = np.ascontiguousarray(255 - turn(films[2], 33)[:, ::-1])
    details = [compute_detail(film) for film in [*films, copy]]
    assert (2, 6, True, True) in find_by_points(details)


def test_a_film_without_points_matches_nothing() -> None:
    flat = compute_detail(np.full((300, 200), 90, np.uint8))
    assert flat.descriptor_KD.shape == (0, 128)
    assert match_films(flat, flat, False, False) is None
    assert find_by_points([flat, flat]) == []


def test_details_take_little_memory(films: list[np.ndarray]) -> None:
    detail: FilmDetail = compute_detail(films[3])
    assert detail.grey_HW.nbytes + detail.descriptor_KD.nbytes + detail.place_K2.nbytes < 110_000
