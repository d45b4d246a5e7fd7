import io
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pydicom.uid import RLELossless

from chess_cxr.audit import near
from chess_cxr.audit.near import POSES, find_near_hashes, is_mirrored, pose_hashes, unpack_hashes
from chess_cxr.decode.film import decode_film
from chess_cxr.ingest.hashes import HASH_BYTES, HASH_VERSION, compute_hashes
from chess_cxr.records import UsageError
from dicom_films import build_film


def draw_film(seed: int, height: int = 96, width: int = 80) -> np.ndarray:
    """A picture of smooth blobs, in [0, 1]."""
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 6)
    return (smooth - smooth.min()) / np.ptp(smooth)


def hash_all(films: list[np.ndarray]) -> np.ndarray:
    return unpack_hashes([compute_hashes(film).perceptual for film in films])


def pose_picture(film: np.ndarray, pose: int) -> np.ndarray:
    """What `pose_hashes` does to hashes, done to pixels."""
    posed = film.T if pose & 4 else film
    posed = posed[:, ::-1] if pose & 1 else posed
    posed = posed[::-1] if pose & 2 else posed
    return np.ascontiguousarray(1 - posed if pose & 8 else posed)


def draw_hashes(count: int, seed: int = 0) -> np.ndarray:
    """Unit vectors around a common mean, as those of chests are."""
    rng = np.random.default_rng(seed)
    size = HASH_BYTES - 1
    raw = 0.1 * rng.normal(size=size) + rng.normal(size=(count, size)) * np.geomspace(0.4, 0.05, size)
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


def plant_copies(hash_ND: np.ndarray, copies: int, cosine: float) -> list[tuple[int, int]]:
    """Overwrite the last hashes by posed and disturbed copies of the first; return who copies whom."""
    rng, pairs = np.random.default_rng(1), []
    for number in range(copies):
        copy = pose_hashes(hash_ND[number : number + 1], number % POSES)[0]
        noise = rng.normal(size=copy.shape)
        noise -= copy * (noise @ copy)
        hash_ND[-1 - number] = cosine * copy + np.sqrt(1 - cosine**2) * noise / np.linalg.norm(noise)
        pairs.append((number, len(hash_ND) - 1 - number))
    return pairs


def list_pairs(hash_ND: np.ndarray, **how: int) -> set[tuple[int, int]]:
    found = find_near_hashes(hash_ND, **how)
    return set(zip(found.first.tolist(), found.second.tolist(), strict=True))


def test_the_same_picture_has_one_pixel_hash_as_png_and_as_lossless_dicom(tmp_path: Path) -> None:
    grey = np.random.default_rng(3).integers(0, 256, (64, 48), np.uint8)
    Image.fromarray(grey).save(tmp_path / "film.png")
    film = build_film(grey, bits=8)
    film.compress(RLELossless, grey)
    written = io.BytesIO()
    film.save_as(written, enforce_file_format=True)
    (tmp_path / "film.dcm").write_bytes(written.getvalue())
    png, dicom = (compute_hashes(decode_film(tmp_path / name).pixels) for name in ("film.png", "film.dcm"))
    assert png == dicom
    assert len(png.pixel) == 32 and len(png.perceptual) == HASH_BYTES


def test_one_grey_level_or_another_shape_is_another_pixel_hash() -> None:
    film = draw_film(0)
    changed = film.copy()
    changed[5, 5] += np.float32(1 / 255) if film[5, 5] < 0.5 else -np.float32(1 / 255)
    hashes = {compute_hashes(picture).pixel for picture in (film, changed, film.reshape(80, 96))}
    assert len(hashes) == 3


@pytest.mark.parametrize("pose", range(POSES))
def test_a_film_is_recognised_in_every_pose_by_its_hash_alone(pose: int) -> None:
    film = draw_film(1)
    upright, posed = hash_all([film, pose_picture(film, pose)])
    assert float(pose_hashes(upright[None], pose)[0] @ posed) > 0.995
    found = find_near_hashes(np.stack([upright, posed]), similarity=0.99)
    assert found.first.tolist() == [0] and found.second.tolist() == [1]
    assert found.inverted.tolist() == [pose >= 8]
    assert found.mirrored.tolist() == is_mirrored(np.array([pose])).tolist()


def test_a_wide_black_border_does_not_hide_the_inverted_film() -> None:
    film = draw_film(4)
    film[:, :40] = 0
    ours, theirs = hash_all([film, 1 - film])
    assert float(ours @ theirs) < -0.999


@pytest.mark.parametrize(
    "change",
    [
        lambda film: film**1.7,
        lambda film: np.clip((film - 0.1) / 0.8, 0, 1),
        lambda film: cv2.resize(film, (40, 48), interpolation=cv2.INTER_AREA),
    ],
    ids=["gamma", "window", "half size"],
)
def test_gamma_window_and_size_leave_the_hash_near(change: Callable[[np.ndarray], np.ndarray]) -> None:
    film = draw_film(2)
    ours, theirs, other = hash_all([film, change(film), draw_film(3)])
    assert float(ours @ theirs) > 0.97
    assert float(ours @ other) < 0.9


def test_a_flat_film_has_a_hash_that_is_near_to_nothing() -> None:
    hash_ND = hash_all([np.full((64, 64), 0.4, np.float32)] * 2)
    assert list_pairs(hash_ND) == set()


def test_the_search_in_blocks_finds_what_a_slow_search_over_all_poses_finds() -> None:
    hash_ND = draw_hashes(700)
    plant_copies(hash_ND, 40, 0.95)
    best = np.max([pose_hashes(hash_ND, pose) @ hash_ND.T for pose in range(POSES)], axis=0)
    wanted = {(int(i), int(j)) for i, j in zip(*np.nonzero(best >= 0.93), strict=True) if i < j}
    found = find_near_hashes(hash_ND, per_film=700)
    assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == wanted
    assert len(wanted) >= 40
    np.testing.assert_allclose(found.similarity, best[found.first, found.second], atol=1e-5)


def test_the_search_by_buckets_misses_hardly_a_near_copy() -> None:
    hash_ND = draw_hashes(3000)
    planted = set(plant_copies(hash_ND, 200, 0.97))
    found = list_pairs(hash_ND, exact_below=0)
    assert len(planted & found) >= 195
    assert found <= list_pairs(hash_ND, per_film=3000)


def test_many_films_take_little_memory_besides_their_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "TABLES", 1)
    monkeypatch.setattr(near, "PART", 4000)
    packed = np.random.default_rng(0).integers(-127, 128, (120_000, HASH_BYTES), np.int8)
    packed[:, 0] = HASH_VERSION
    texts = [row.tobytes() for row in packed]
    tracemalloc.start()
    hash_ND = unpack_hashes(texts)
    unpacked = tracemalloc.get_traced_memory()[1]
    find_near_hashes(hash_ND, similarity=0.99, exact_below=0)
    searched = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert unpacked < 1.3 * hash_ND.nbytes
    assert searched < 1.6 * hash_ND.nbytes


@pytest.mark.parametrize("exact_below", [0, 10_000])
def test_a_crowd_of_similar_films_gives_few_pairs_a_film(exact_below: int) -> None:
    rng = np.random.default_rng(0)
    crowd = draw_hashes(1)[[0] * 1200] + rng.normal(0, 0.002, (1200, HASH_BYTES - 1))
    crowd = (crowd / np.linalg.norm(crowd, axis=1, keepdims=True)).astype(np.float32)
    found = list_pairs(crowd, per_film=3, exact_below=exact_below)
    assert len({film for pair in found for film in pair}) > 1100
    assert len(found) <= 3 * 1200


def test_hashes_of_another_version_are_refused() -> None:
    good = compute_hashes(draw_film(0)).perceptual
    for bad in (b"\0" + good[1:], good[:-1], b""):
        with pytest.raises(UsageError, match="ingest it again"):
            unpack_hashes([good, bad])
