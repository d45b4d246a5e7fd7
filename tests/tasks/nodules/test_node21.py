"""Made films in NODE21's layout, as its readers see them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from chess_cxr.tasks.nodules.files import list_nodule_films
from chess_cxr.tasks.nodules.films import read_source
from chess_cxr.tasks.nodules.node21 import encode_mha, write_node21_tables


def test_simpleitk_reads_the_film_its_spacing_and_that_it_is_synthetic(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    film_HW = np.random.default_rng(0).random((30, 50)).astype(np.float32)
    (tmp_path / "film.mha").write_bytes(encode_mha(film_HW, 0.35, "SYNTHETIC nodule in abc"))
    image = sitk.ReadImage(str(tmp_path / "film.mha"))
    assert image.GetSize() == (50, 30) and image.GetSpacing() == pytest.approx((0.35, 0.35))
    assert np.abs(sitk.GetArrayFromImage(image) / 65_535 - film_HW).max() < 1e-5
    assert b"Comment = SYNTHETIC nodule in abc\n" in (tmp_path / "film.mha").read_bytes()


def test_tables_are_those_of_node21_and_are_read_back(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    (tmp_path / "images").mkdir()
    films = [("a.mha", [(5, 10, 8, 6), (30, 2, 4, 4)]), ("b.mha", [(1, 1, 12, 12)])]
    for name, _ in films:
        grey = np.random.default_rng(1).random((40, 40)).astype(np.float32)
        (tmp_path / "images" / name).write_bytes(encode_mha(grey, float("nan"), "SYNTHETIC"))
    write_node21_tables(tmp_path, films)
    with (tmp_path / "metadata.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["", "height", "img_name", "label", "width", "x", "y"]
    assert rows[1] == ["0", "6", "a.mha", "1", "8", "5", "10"] and len(rows) == 4
    told = json.loads((tmp_path / "nodules.json").read_text())
    assert told["type"] == "Multiple 2D bounding boxes" and told["version"] == {"major": 1, "minor": 0}
    # NODE21's baseline takes corner 2 as the smallest and corner 0 as the largest x and y
    assert [[box["corners"][2], box["corners"][0]] for box in told["boxes"]] == [
        [[5, 10, 0], [13, 16, 0]],
        [[30, 2, 0], [34, 6, 0]],
        [[1, 1, 1], [13, 13, 1]],
    ]
    entries = list_nodule_films(tmp_path)
    assert [entry.boxes for entry in entries] == [tuple(found) for _, found in films]
    mask_HW = read_source(entries[1]).mask_HW
    assert mask_HW[7, 7] and mask_HW.sum() == pytest.approx(np.pi * 36, rel=0.1) and not mask_HW[20:].any()
