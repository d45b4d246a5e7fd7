"""Films with marked nodules as arrays."""

import csv
import os
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

from chess_cxr.records import ChessError, UsageError
from chess_cxr.tasks.nodules.films import (
    NoduleFilm,
    list_sources,
    read_each,
    read_nodule_films,
    read_source,
    resample_nodule_film,
    split_nodule_films,
)
from chess_cxr.workers.child import Limits
from chess_cxr.workers.pool import WORKER_DIED, build_ingest_pool
from odd_paths import PathThatKillsItsReader, PathThatNeverAnswers
from places import HELPERS


def write_film(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def draw_film(height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width)).astype(np.uint8)


def copy_jsrt(real_films: Path, folder: Path, cases: tuple[str, ...]) -> Path:
    """A JSRT folder of a few cases."""
    with (real_films / "jsrt" / "cases.csv").open(encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if row["case"] in cases]
    for part in ("images", "masks", "nodule_masks"):
        (folder / part).mkdir(parents=True)
        for case in cases:
            if (source := real_films / "jsrt" / part / f"{case}.png").is_file():
                shutil.copy(source, folder / part)
    with (folder / "cases.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, reader.fieldnames or ())
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.mark.real_films
def test_jsrt_films_are_bone_bright_with_nodules_where_the_table_says(real_films: Path, tmp_path: Path) -> None:
    cases = ("JPCLN002", "JPCLN014", "JPCNN002")
    films = read_nodule_films(str(copy_jsrt(real_films, tmp_path / "jsrt", cases)))
    assert tuple(film.name for film in films) == cases
    centres = {"JPCLN002": (403.5, 272.5)}
    for film in films:
        assert film.film_HW.dtype == np.float32 and 0 <= film.film_HW.min() < film.film_HW.max() <= 1
        assert film.lung_HW is not None and film.spacing_mm == pytest.approx(0.7)
        around = ndimage.binary_dilation(film.lung_HW, iterations=30) & ~film.lung_HW
        assert np.median(film.film_HW[film.lung_HW]) < np.median(film.film_HW[around])
        assert film.mask_HW.any() == (film.name != "JPCNN002")
        if film.name in centres:
            row, column = ndimage.center_of_mass(film.mask_HW)
            assert (column, row) == pytest.approx(centres[film.name], abs=1)
            assert 2 * np.sqrt(film.mask_HW.sum() / np.pi) * 0.7 == pytest.approx(30, rel=0.03)


@pytest.mark.real_films
def test_a_jsrt_copy_with_dark_bones_is_turned(real_films: Path, tmp_path: Path) -> None:
    folder = copy_jsrt(real_films, tmp_path / "jsrt", ("JPCLN002",))
    upright = read_nodule_films(str(folder))[0]
    path = folder / "images" / "JPCLN002.png"
    write_film(path, 255 - cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    assert np.allclose(read_nodule_films(str(folder))[0].film_HW, upright.film_HW, atol=1e-6)


def test_a_node21_box_becomes_its_ellipse(tmp_path: Path) -> None:
    folder = tmp_path / "node21"
    (folder / "images").mkdir(parents=True)
    for name in ("n1.mha", "n2.mha"):
        image = SimpleITK.GetImageFromArray(np.random.default_rng(1).integers(0, 4096, (128, 128)).astype(np.int16))
        SimpleITK.WriteImage(image, str(folder / "images" / name))
    table = ",height,img_name,label,width,x,y\n0,20,n1.mha,1,30,40,50\n1,0,n2.mha,0,0,0,0\n"
    (folder / "metadata.csv").write_text(table, encoding="utf-8")
    ill, healthy = read_nodule_films(str(folder))
    assert not healthy.mask_HW.any() and ill.kind == "node21"
    expected = np.zeros((128, 128), bool)
    for row in range(128):  # one pixel at a time
        for column in range(128):
            expected[row, column] = ((column - 54.5) / 15) ** 2 + ((row - 59.5) / 10) ** 2 <= 1
    assert np.array_equal(ill.mask_HW, expected)


def test_a_plain_folder_is_read_with_its_masks(tmp_path: Path) -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[10:14, 20:30] = 255
    write_film(tmp_path / "films" / "a.png", draw_film())
    write_film(tmp_path / "films" / "b.png", draw_film())
    write_film(tmp_path / "masks" / "a.png", mask)
    write_film(tmp_path / "lungs" / "a.png", np.full((60, 80), 255, np.uint8))
    a, b = read_nodule_films(str(tmp_path))
    assert np.array_equal(a.film_HW, (draw_film() / np.float32(255)).astype(np.float32))
    assert np.array_equal(a.mask_HW, mask > 0) and not b.mask_HW.any()
    assert a.lung_HW is not None and a.lung_HW.all() and b.lung_HW is None
    assert a.spacing_mm is None and np.isnan(a.malignant)


def test_faults_of_files_are_one_line_each(tmp_path: Path) -> None:
    write_film(tmp_path / "films" / "Doe.png", draw_film())
    write_film(tmp_path / "masks" / "Doe.png", np.zeros((60, 81), np.uint8))
    with pytest.raises(UsageError, match=r"film 1 of 1 by name: the mask has 81 x 60 pixels, the film 80 x 60"):
        read_nodule_films(str(tmp_path))
    write_film(tmp_path / "masks" / "Doe.png", draw_film())
    with pytest.raises(UsageError, match="not binary: it has 256 levels"):
        read_nodule_films(str(tmp_path))
    (tmp_path / "films" / "Doe.png").write_bytes(b"nothing")
    with pytest.raises(ChessError, match="film 1 of 1 by name cannot be decoded: not a DICOM") as caught:
        read_nodule_films(str(tmp_path))
    assert "Doe" not in str(caught.value) and caught.value.exit_code == 1


@pytest.fixture
def helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What decoding processes may import too."""
    monkeypatch.setenv("PYTHONPATH", str(HELPERS), prepend=os.pathsep)


@pytest.mark.usefixtures("helpers")
@pytest.mark.parametrize(
    ("part", "path", "reason"),
    [
        ("film", PathThatKillsItsReader(), WORKER_DIED),
        ("film", PathThatNeverAnswers(), "not decoded within 2 seconds"),
        ("mask", PathThatNeverAnswers(), "not decoded within 2 seconds"),
    ],
    ids=["film-dies", "film-hangs", "mask-hangs"],
)
def test_a_file_whose_decoder_dies_or_hangs_ends_the_reading_in_one_line(
    part: str, path: Path, reason: str, tmp_path: Path
) -> None:
    write_film(tmp_path / "films" / "a.png", draw_film())
    good = list_sources(str(tmp_path))[0]
    films = read_each([good, replace(good, **{part: path}), good], read_source, limits=Limits(film_seconds=2))
    assert next(films).name == "a"
    with pytest.raises(ChessError, match=f"^film 2 of 3 by name cannot be decoded: {reason}$"):
        next(films)


def test_films_come_in_order_from_any_number_of_processes(tmp_path: Path) -> None:
    for number in range(20):
        write_film(tmp_path / "films" / f"{number:02d}.png", draw_film(40 + number))
    with build_ingest_pool(3) as pool:
        films = read_nodule_films(str(tmp_path), executor=pool)
    assert [(film.name, film.film_HW.shape) for film in films] == [(f"{n:02d}", (40 + n, 80)) for n in range(20)]


def test_generated_patients_have_a_film_with_nodule_and_one_without() -> None:
    films = read_nodule_films("phantom:3@96#4")
    assert [film.mask_HW.any() for film in films] == [True, False] * 3
    assert [film.group for film in films] == [f"PHANTOM{n:04d}" for n in (0, 0, 1, 1, 2, 2)]
    assert all(film.film_HW.shape == (96, 96) and film.film_HW.max() <= 1 for film in films)
    again, other = read_nodule_films("phantom:1@96#4"), read_nodule_films("phantom:1@96#5")
    assert np.array_equal(again[0].film_HW, films[0].film_HW)
    assert not np.array_equal(other[0].film_HW, films[0].film_HW)


@pytest.mark.parametrize("size", [8, 5000])
def test_a_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match="outside 32 to 4096"):
        read_nodule_films("phantom:1", size)


def build_film(mask_HW: np.ndarray) -> NoduleFilm:
    film_HW = np.random.default_rng(2).random(mask_HW.shape, dtype=np.float32)
    return NoduleFilm("a", film_HW, mask_HW, mask_HW, "p", 0.5, "folder")


def test_resampling_averages_areas_and_keeps_millimetres() -> None:
    mask_HW = np.zeros((80, 160), bool)
    mask_HW[20:41, 40:80] = True
    film = build_film(mask_HW)
    half = resample_nodule_film(film, 80)
    mean = film.film_HW.reshape(40, 2, 80, 2).mean((1, 3))
    assert np.allclose(half.film_HW, mean, atol=1e-6)
    assert np.array_equal(half.mask_HW, mask_HW.reshape(40, 2, 80, 2).mean((1, 3)) > 0.5)
    assert half.spacing_mm == 1.0
    assert resample_nodule_film(film, 160) is film
    assert resample_nodule_film(film, 320).film_HW.shape == (160, 320)


def test_no_nodule_vanishes_when_the_film_shrinks() -> None:
    mask_HW = np.zeros((256, 256), bool)
    mask_HW[100:140, 100:140] = True
    mask_HW[31, 65] = mask_HW[255, 255] = True
    small = resample_nodule_film(build_film(mask_HW), 32)
    assert small.mask_HW[3, 8] and small.mask_HW[31, 31]
    assert small.mask_HW.sum() == 16 + 2
    assert small.lung_HW is not None and not small.lung_HW[31, 31]


def test_no_patient_appears_in_two_splits_and_nodules_are_shared_out() -> None:
    empty, marked = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    films = []
    for patient in range(60):
        for number in range(2):
            base = build_film(marked if patient % 3 == 0 and number == 0 else empty)
            films.append(replace(base, name=f"{patient}-{number}", group=f"p{patient}"))
    parts = split_nodule_films(films, 1, 0.2, 0.3)
    groups = {name: {film.group for film in part} for name, part in parts.items()}
    assert {name: len(group) for name, group in groups.items()} == {"train": 30, "val": 12, "test": 18}
    assert not groups["train"] & groups["val"] and not groups["test"] & (groups["train"] | groups["val"])
    assert {name: sum(f.mask_HW.any() for f in part) for name, part in parts.items()} == {
        "train": 10,
        "val": 4,
        "test": 6,
    }
    backwards = split_nodule_films(films[::-1], 1, 0.2, 0.3)
    assert {f.name for f in backwards["test"]} == {f.name for f in parts["test"]}
    assert {f.name for f in split_nodule_films(films, 2, 0.2, 0.3)["test"]} != {f.name for f in parts["test"]}
