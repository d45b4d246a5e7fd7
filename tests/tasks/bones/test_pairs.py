import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from chess_cxr.decode.film import decode_film
from chess_cxr.records import UsageError
from chess_cxr.tasks.bones.pairs import (
    FilmPair,
    check_pair,
    draw_phantom_pair,
    fit_grey_scale,
    fold_pairs,
    is_bone_bright,
    measure_registration,
    read_pairs,
    split_pairs,
)
from chess_cxr.workers.child import Limits
from chess_cxr.workers.pool import FILMS_A_TASK, build_ingest_pool
from shared_child import share_pool


@cache
def draw(patient: int = 3, size: int = 256) -> FilmPair:
    return draw_phantom_pair(patient, patient + 1, size)


def complain(*pair: object) -> str:
    with pytest.raises(UsageError) as caught:
        check_pair("film 7", *pair)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and str(caught.value).startswith("film 7: ")
    return str(caught.value).removeprefix("film 7: ")


def shift(picture_HW: np.ndarray, right: float, down: float = 0.0) -> np.ndarray:
    """Move by a share of the side."""
    height, width = picture_HW.shape
    matrix = np.array([[1, 0, right * width], [0, 1, down * height]], np.float32)
    return cv2.warpAffine(picture_HW, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)


def write_pair(folder: Path, name: str, film_HW: np.ndarray, bone_free_HW: np.ndarray) -> Path:
    for side, picture_HW in (("source", film_HW), ("target", bone_free_HW)):
        (folder / side).mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / side / f"{name}.png"), (picture_HW * 65535).round().astype(np.uint16))
    return folder


# Real pairs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_pairs(real_films: Path) -> list[FilmPair]:
    return read_pairs(str(real_films / "bone_pairs"))


@pytest.mark.real_films
def test_all_real_pairs_are_read_and_registered(real_pairs: list[FilmPair]) -> None:
    assert len(real_pairs) == 16 and {p.kind for p in real_pairs} == {"folder"}
    assert [p.group for p in real_pairs if p.group != p.name] == ["JPCLN139"]
    for pair in real_pairs:
        for picture in (pair.film_HW, pair.bone_free_HW):
            assert picture.dtype == np.float32 and picture.ndim == 2
            assert picture.min() >= 0 and picture.max() <= 1
        assert pair.film_HW.shape == pair.bone_free_HW.shape
        moved, likeness = measure_registration(pair.film_HW, pair.bone_free_HW)
        assert moved < 0.01 and likeness > 0.7, pair.name


# All 16 were looked at after they were read: lungs dark, bone bright.  These had to be turned for it.
STORED_BONE_DARK = ["JPCLN139_1", *(f"jsrtbse_fig{n}" for n in (0, 4, 5, 7, 8))]


@pytest.mark.real_films
def test_bone_is_bright_in_every_real_pair_afterwards(real_pairs: list[FilmPair]) -> None:
    turned = [p.name for p in real_pairs if any("bone was dark" in note for note in p.notes)]
    assert turned == STORED_BONE_DARK
    assert all(is_bone_bright(pair.film_HW, pair.bone_free_HW) for pair in real_pairs)


@pytest.mark.real_films
@pytest.mark.parametrize("case", ["JPCLN105", "JPCNN009", "JPCLN116"])
def test_negative_pairs_with_few_bright_spots_are_turned_too(case: str, real_films: Path) -> None:
    """The difference of film and target has few but strong outliers on the wrong side in the first two."""
    film, target = (
        decode_film(real_films / "bone_jsrt" / folder / f"{case}.png").pixels for folder in ("JSRT", "BSE_JSRT")
    )
    pair = check_pair(case, film, target)
    assert "bone was dark in both films; both were inverted" in pair.notes
    assert (pair.film_HW - pair.bone_free_HW).mean() > 0.001


@pytest.mark.real_films
@pytest.mark.parametrize("inverted", ["both", "target", "film"])
def test_real_pairs_come_out_alike_whichever_picture_was_inverted(
    inverted: str, real_films: Path, real_pairs: list[FilmPair]
) -> None:
    for known in real_pairs:
        film, target = (
            decode_film(real_films / "bone_pairs" / side / f"{known.name}.png").pixels for side in ("source", "target")
        )
        film = 1 - film if inverted in ("both", "film") else film
        target = 1 - target if inverted in ("both", "target") else target
        pair = check_pair(known.name, film, target)
        np.testing.assert_allclose(pair.film_HW, known.film_HW, atol=1e-5, err_msg=known.name)
        np.testing.assert_allclose(pair.bone_free_HW, known.bone_free_HW, atol=2e-3, err_msg=known.name)
        assert any("inverted against its film" in note for note in pair.notes) == (inverted != "both")


@pytest.mark.real_films
def test_a_real_target_that_is_shifted_is_refused_with_the_measured_number(real_pairs: list[FilmPair]) -> None:
    for pair in real_pairs:
        line = complain(pair.film_HW, shift(pair.bone_free_HW, 0.02))
        found = float(line.removeprefix("the target is shifted by ").split("%")[0])
        own = 100 * measure_registration(pair.film_HW, pair.bone_free_HW)[0]
        assert abs(found - 2) < own + 0.3, (pair.name, line)


@pytest.mark.real_films
def test_a_real_target_that_is_shifted_a_little_is_accepted(real_pairs: list[FilmPair]) -> None:
    registered = [p for p in real_pairs if measure_registration(p.film_HW, p.bone_free_HW)[0] < 0.004]
    assert len(registered) == 15
    for pair in registered:
        assert check_pair(pair.name, pair.film_HW, shift(pair.bone_free_HW, 0.0, 0.005)).name == pair.name


@pytest.mark.real_films
def test_no_real_film_takes_the_target_of_another(real_pairs: list[FilmPair]) -> None:
    accepted = []
    for pair in real_pairs:
        for other in real_pairs:
            if other.film_HW.shape == pair.film_HW.shape and other is not pair:
                try:
                    check_pair("film 7", pair.film_HW, other.bone_free_HW)
                    accepted.append((pair.name, other.name))
                except UsageError as error:
                    assert "another film" in str(error) or "is shifted" in str(error)
    assert accepted == []


@pytest.mark.real_films
@pytest.mark.parametrize(("gain", "offset"), [(0.8, 0.1), (0.6, 0.3), (-0.7, 0.9)])
def test_the_grey_scale_of_a_real_target_is_found_again(gain: float, offset: float, real_pairs: list[FilmPair]) -> None:
    """As in BSE-JSRT, whose targets have another window than the films."""
    for known in real_pairs:
        pair = check_pair(known.name, known.film_HW, gain * known.bone_free_HW + offset)
        inside = (known.bone_free_HW > 0.02) & (known.bone_free_HW < 0.98)
        np.testing.assert_allclose(pair.bone_free_HW[inside], known.bone_free_HW[inside], atol=0.03)
        assert np.abs(pair.bone_free_HW - known.bone_free_HW)[inside].mean() < 0.01, known.name
        assert any("grey levels were matched" in note for note in pair.notes)


# What is no pair ----------------------------------------------------------------------------------------------------


def test_a_phantom_shifted_by_two_percent_is_refused_and_by_half_a_percent_accepted() -> None:
    pair = draw()
    for right, down in ((0.02, 0.0), (0.0, -0.02)):
        line = complain(pair.film_HW, shift(pair.bone_free_HW, right, down))
        found = float(line.removeprefix("the target is shifted by ").split("%")[0])
        assert found == pytest.approx(2, abs=0.3)
        assert line.endswith("% of its side against its film; up to 1% is a pair, so register it first")
    check_pair("film 7", pair.film_HW, shift(pair.bone_free_HW, 0.005))


def test_a_film_with_itself_is_no_pair_and_neither_is_one_saved_twice() -> None:
    film = draw().film_HW
    line = "the film and its target are the same picture; a target has no bone"
    assert complain(film, film.copy()) == line
    assert complain(film, 1 - film) == line
    assert complain(film, 0.8 * film + 0.1) == line
    for quality in (95, 50):
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        _, content = cv2.imencode(".jpg", (film * 255).round().astype(np.uint8), options)
        again = cv2.imdecode(content, cv2.IMREAD_UNCHANGED).astype(np.float32) / 255
        assert complain(film, again) == line


def test_pictures_of_two_sizes_are_no_pair() -> None:
    pair = draw()
    line = complain(pair.film_HW, pair.bone_free_HW[:200])
    assert line == "the film is 256 x 256 and its target 256 x 200 pixels; a pair has one size"


def test_the_target_of_another_phantom_is_refused() -> None:
    line = complain(draw(3).film_HW, draw(8).bone_free_HW)
    assert "another film" in line or "is shifted" in line


def test_noise_is_the_target_of_no_film() -> None:
    noise = np.random.default_rng(0).random((256, 256), np.float32)
    assert complain(draw().film_HW, noise).startswith("the target seems to be of another film")


def test_pictures_that_show_nothing_are_refused() -> None:
    film, flat = draw().film_HW, np.full((256, 256), 0.4, np.float32)
    assert complain(flat, film) == "the film is of one grey level; it shows nothing"
    assert complain(film, flat) == "the target is of one grey level; it shows nothing"
    assert complain(film[:1, :1], flat[:1, :1]) == "the film is of one grey level; it shows nothing"


# Grey scales --------------------------------------------------------------------------------------------------------


def draw_ribs(share: float) -> tuple[np.ndarray, np.ndarray]:
    """A phantom's soft tissue with bone in bands that cover a share of it (SYNTHETIC)."""
    bone_free = 0.1 + 0.6 * draw().bone_free_HW
    bands = (np.arange(256) % 32 < 32 * share)[:, None]
    return (bone_free + 0.15 * bands).astype(np.float32), bone_free


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4])
@pytest.mark.parametrize(("gain", "offset"), [(1.0, 0.0), (0.7, 0.2), (1.2, -0.05)])
def test_the_grey_scale_is_found_though_bone_covers_a_part(share: float, gain: float, offset: float) -> None:
    film, bone_free = draw_ribs(share)
    found_gain, found_offset = fit_grey_scale(film, gain * bone_free + offset)
    restored = found_gain * (gain * bone_free + offset) + found_offset
    assert np.abs(restored - bone_free).max() < 0.01


def test_a_grey_scale_that_cannot_be_told_is_left_alone() -> None:
    film, bone_free = draw_ribs(0.25)
    flat = np.full_like(bone_free, 0.5)
    assert fit_grey_scale(film, flat) == (1.0, 0.0)
    assert fit_grey_scale(film, np.zeros_like(flat)) == (1.0, 0.0)


def test_polarity_is_told_by_the_side_on_which_bone_lies() -> None:
    for patient in range(4):
        pair = draw(patient, 128)
        assert is_bone_bright(pair.film_HW, pair.bone_free_HW)
        assert not is_bone_bright(1 - pair.film_HW, 1 - pair.bone_free_HW)


def test_a_phantom_stored_the_other_way_round_is_turned() -> None:
    known = draw()
    pair = check_pair("film 7", 1 - known.film_HW, 1 - known.bone_free_HW)
    np.testing.assert_allclose(pair.film_HW, known.film_HW, atol=1e-6)
    assert pair.notes[0] == "bone was dark in both films; both were inverted"
    assert np.corrcoef(pair.bone_free_HW.ravel(), known.bone_free_HW.ravel())[0, 1] > 0.999


# Files --------------------------------------------------------------------------------------------------------------


def test_written_pairs_are_read_in_order_and_counted(tmp_path: Path) -> None:
    for patient in (2, 1):
        write_pair(tmp_path, f"JPCNN00{patient}", draw(patient).film_HW, draw(patient).bone_free_HW)
    seen: list[tuple[int, int]] = []
    pairs = read_pairs(str(tmp_path), on_pair=lambda *counts: seen.append(counts))
    assert [p.name for p in pairs] == ["JPCNN001", "JPCNN002"] and seen == [(1, 2), (2, 2)]


@pytest.mark.real_films
@pytest.mark.parametrize(
    "nasty", ["truncated.png", "empty.png", "bad_crc.png", "lfs_pointer.png", "text.jpg", "header_only.jpg"]
)
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_broken_film_is_told_in_one_line_with_its_folder(
    nasty: str, side: str, real_films: Path, tmp_path: Path
) -> None:
    write_pair(tmp_path, "film 7", draw().film_HW, draw().bone_free_HW)
    (tmp_path / side / "film 7.png").unlink()
    shutil.copyfile(real_films / "nasty" / "image" / nasty, tmp_path / side / f"film 7{Path(nasty).suffix}")
    with pytest.raises(UsageError) as caught:
        read_pairs(str(tmp_path), executor=share_pool())
    line = str(caught.value)
    assert line.startswith(f"film 7: {side}/film 7{Path(nasty).suffix}: ") and "\n" not in line and len(line) < 250


@pytest.mark.real_films
def test_no_hostile_file_passes_for_the_target_of_a_film_or_takes_the_program_down(
    real_films: Path, tmp_path: Path
) -> None:
    hostile = sorted(
        path
        for folder in ("dicom_fuzz", "dicom", "image")
        for path in (real_films / "nasty" / folder).rglob("*")
        if path.suffix.lower() in (".dcm", ".png", ".jpg")
    )[::8]
    assert len(hostile) > 7
    write_pair(tmp_path, "film 7", draw(size=128).film_HW, draw(size=128).bone_free_HW)
    (tmp_path / "target" / "film 7.png").unlink()
    for path in hostile:
        copy = tmp_path / "target" / f"film 7{path.suffix}"
        shutil.copyfile(path, copy)
        with pytest.raises(UsageError) as caught:
            read_pairs(str(tmp_path), Limits(film_seconds=10, film_gib=1), share_pool())
        copy.unlink()
        assert str(caught.value).startswith("film 7: ") and "\n" not in str(caught.value), path.name


# Phantoms -----------------------------------------------------------------------------------------------------------


def test_phantom_pairs_know_bone_lung_and_nodule() -> None:
    pairs = read_pairs("phantom:4@96#5")
    assert [p.name for p in pairs] == [f"phantom 5-{n}" for n in range(4)] and {p.kind for p in pairs} == {"phantom"}
    assert [p.nodule_HW is not None for p in pairs] == [False, True, False, True]
    assert len({p.group for p in pairs}) == 4
    for pair in pairs:
        assert pair.lung_HW is not None and pair.bone_cm_HW is not None and pair.spacing_mm
        assert pair.film_HW.shape == pair.lung_HW.shape == pair.bone_cm_HW.shape == (96, 96)
        bone = pair.film_HW - pair.bone_free_HW
        assert bone.min() > -0.02 and bone[pair.bone_cm_HW > 0.5].mean() > 0.02
        assert np.abs(bone[pair.bone_cm_HW == 0]).mean() < 0.002


def test_phantom_pairs_are_a_function_of_their_seed() -> None:
    one, same, other = (read_pairs(place) for place in ("phantom:2@64#5", "phantom:3@64#5", "phantom:2@64#6"))
    for number in range(2):
        assert np.array_equal(one[number].film_HW, same[number].film_HW)
        assert not np.array_equal(one[number].film_HW, other[number].film_HW)
    assert {p.group for p in one}.isdisjoint(p.group for p in other)


def test_as_many_pairs_are_read_at_once_as_there_are_workers() -> None:
    both = threading.Barrier(2, timeout=60)

    def meet(pair: FilmPair) -> FilmPair:
        if pair.name in ("phantom 0-0", f"phantom 0-{FILMS_A_TASK}"):
            both.wait()  # for the first pair of the other worker's task
        return pair

    with build_ingest_pool(2) as pool:
        pairs = read_pairs(f"phantom:{FILMS_A_TASK + 1}@64", executor=pool, reduce=meet)
    assert [pair.name for pair in pairs] == [f"phantom 0-{number}" for number in range(FILMS_A_TASK + 1)]


# Splits -------------------------------------------------------------------------------------------------------------


def name_pairs(*kinds: tuple[str, int], films_a_group: int = 1) -> list[FilmPair]:
    blank = np.zeros((8, 8), np.float32)
    draw_one: Callable[..., FilmPair] = lambda name, group, kind: FilmPair(name, blank, blank, group, kind)  # noqa: E731
    return [
        draw_one(f"{kind} {n}-{film}", f"{kind} {n}", kind)
        for kind, count in kinds
        for n in range(count)
        for film in range(films_a_group)
    ]


def test_no_group_is_in_two_splits_and_nothing_is_lost() -> None:
    pairs = name_pairs(("folder", 9), ("phantom", 20), films_a_group=3)
    for seed in range(5):
        split = split_pairs(pairs, 0.1, 0.3, seed)
        groups = {part: {p.group for p in found} for part, found in split.items()}
        assert sum(map(len, groups.values())) == len(set.union(*groups.values())) == 29
        assert sorted(p.name for found in split.values() for p in found) == sorted(p.name for p in pairs)


def test_each_kind_is_split_by_itself() -> None:
    split = split_pairs(name_pairs(("folder", 10), ("phantom", 40)), 0.1, 0.2)
    counted = {part: [sum(p.kind == k for p in found) for k in ("folder", "phantom")] for part, found in split.items()}
    assert counted == {"train": [7, 28], "val": [1, 4], "test": [2, 8]}


def test_a_patient_whose_films_are_of_two_kinds_stays_in_one_split() -> None:
    pairs = name_pairs(("folder", 6), ("bse-jsrt", 6))
    pairs = [replace(p, group=p.group.split()[-1]) for p in pairs]
    for seed in range(10):
        split = split_pairs(pairs, 0.2, 0.3, seed)
        assert all(sum(p.group == group for p in found) in (0, 2) for found in split.values() for group in "012345")


def test_a_split_depends_on_its_seed_alone_and_not_on_the_order_of_pairs() -> None:
    pairs = name_pairs(("folder", 12))
    one, other = split_pairs(pairs, 0.2, 0.2, 3), split_pairs(pairs[::-1], 0.2, 0.2, 3)
    assert {k: {p.name for p in v} for k, v in one.items()} == {k: {p.name for p in v} for k, v in other.items()}
    assert len({tuple(p.name for p in split_pairs(pairs, 0.2, 0.2, seed)["test"]) for seed in range(6)}) > 1


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.2), (0.5, 0.5), (float("nan"), 0.1), (0.0, 1.0)])
def test_shares_that_leave_nothing_to_train_on_are_refused(val: float, test: float) -> None:
    with pytest.raises(UsageError, match="must be 0 or more and leave something to train on"):
        split_pairs(name_pairs(("folder", 4)), val, test)


def test_folds_share_out_every_kind_and_keep_groups_together() -> None:
    pairs = name_pairs(("folder", 10), ("phantom", 21), films_a_group=2)
    folds = fold_pairs(pairs, 4, seed=1)
    for kind, count in (("folder", 10), ("phantom", 21)):
        dealt = [len({p.group for p in fold if p.kind == kind}) for fold in folds]
        assert sum(dealt) == count and max(dealt) - min(dealt) <= 1
    assert max(map(len, folds)) - min(map(len, folds)) <= 2
    assert sorted(p.name for fold in folds for p in fold) == sorted(p.name for p in pairs)
    groups = [p for fold in folds for p in {pair.group for pair in fold}]
    assert len(groups) == len(set(groups))


@pytest.mark.parametrize(("degrees", "scale"), [(3.0, 1.0), (0.0, 1.05)])
def test_a_target_that_is_turned_or_stretched_about_its_middle_is_refused(degrees: float, scale: float) -> None:
    pair = draw()
    move = cv2.getRotationMatrix2D((128, 128), degrees, scale)
    moved_HW = cv2.warpAffine(pair.bone_free_HW, move, (256, 256), borderMode=cv2.BORDER_REPLICATE)
    assert "turned, stretched or bent" in complain(pair.film_HW, moved_HW)
    check_pair("film 7", pair.film_HW, pair.bone_free_HW)
