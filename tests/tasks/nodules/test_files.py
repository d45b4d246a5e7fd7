"""Listing of JSRT, NODE21 and folders with masks."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from chess_cxr.records import UsageError
from chess_cxr.tasks.nodules.files import list_nodule_films

NODE21_COLUMNS = ("", "height", "img_name", "label", "width", "x", "y")


def write_table(path: Path, rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.real_films
def test_jsrt_lists_every_film_but_those_low_in_contrast(real_films: Path) -> None:
    entries = list_nodule_films(real_films / "jsrt")
    with (real_films / "jsrt" / "cases.csv").open(encoding="utf-8") as file:
        told = {row["case"]: row for row in csv.DictReader(file) if row["low_contrast"] == "0"}
    assert {entry.name for entry in entries} == set(told) and len(entries) == 193
    for entry in entries:
        assert (entry.mask is not None) == (told[entry.name]["nodule"] == "1")
        assert {"malignant": 1.0, "benign": 0.0}.get(told[entry.name]["state"], "?") in (entry.malignant, "?")
        assert entry.film.is_file() and entry.lung is not None and entry.group == entry.name
    assert [entry.name for entry in entries] == sorted(told)


def test_node21_joins_the_boxes_of_a_film(tmp_path: Path) -> None:
    rows = [(0, 30, "a.mha", 1, 20, 5, 6), (1, 9, "a.mha", 1, 8, 50, 60), (2, 0, "b.mha", 0, 0, 0, 0)]
    write_table(tmp_path / "metadata.csv", [NODE21_COLUMNS, *rows])
    touch(tmp_path / "images" / "a.mha", tmp_path / "images" / "b.mha")
    first, second = list_nodule_films(tmp_path)
    assert first.boxes == ((5, 6, 20, 30), (50, 60, 8, 9)) and second.boxes == ()
    assert (first.name, first.group, first.kind) == ("a", "a", "node21")
    assert math.isnan(first.field_mm)


def test_a_folder_joins_films_masks_and_lungs_by_name(tmp_path: Path) -> None:
    touch(*(tmp_path / "films" / name for name in ("a.png", "b.dcm", "c.png")))
    touch(tmp_path / "masks" / "b.png", tmp_path / "lungs" / "a.png")
    write_table(tmp_path / "films.csv", [("film", "patient", "spacing_mm"), ("a.png", "P1", "0.5"), ("b", "P1", "")])
    a, b, c = list_nodule_films(tmp_path)
    assert (a.mask, b.mask, a.lung) == (None, tmp_path / "masks" / "b.png", tmp_path / "lungs" / "a.png")
    assert (a.group, b.group, c.group) == ("P1", "P1", "c")
    assert a.spacing_mm == 0.5 and math.isnan(b.spacing_mm)


def test_a_table_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "secret.mha")
    write_table(tmp_path / "set" / "metadata.csv", [NODE21_COLUMNS, (0, 0, "../secret.mha", 0, 0, 0, 0)])
    with pytest.raises(UsageError, match="row 2 of metadata.csv leads out"):
        list_nodule_films(tmp_path / "set")


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "secret.png")
    (tmp_path / "set" / "films").mkdir(parents=True)
    (tmp_path / "set" / "films" / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UsageError, match="leads out"):
        list_nodule_films(tmp_path / "set")


def test_each_fault_of_a_folder_is_one_line_without_a_films_name(tmp_path: Path) -> None:
    faults = {
        "no layout": ("neither cases.csv", []),
        "no film": ("films holds no film", ["films/readme.txt"]),
        "a mask alone": ("1 of 1 files in .* have no film", ["films/Doe.png", "masks/Roe.png"]),
        "two endings": ("differ in their extension", ["films/Doe.png", "films/Doe.jpg"]),
    }
    for folder, (words, files) in faults.items():
        (tmp_path / folder).mkdir()
        touch(*(tmp_path / folder / name for name in files))
        with pytest.raises(UsageError, match=words) as caught:
            list_nodule_films(tmp_path / folder)
        assert "\n" not in str(caught.value) and "Doe" not in str(caught.value) and "Roe" not in str(caught.value)
    with pytest.raises(UsageError, match="is no folder"):
        list_nodule_films(tmp_path / "absent")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ((0, 5, "b.mha", 1, 5, 1, 1), "film of row 2 of metadata.csv is not in"),
        ((0, 5, "a.mha", 1, "wide", 1, 1), "width of row 2 of metadata.csv is no number"),
        ((0, 5, "a.mha", 1, 0, 1, 1), "box of row 2 of metadata.csv is 0 x 5"),
    ],
)
def test_a_damaged_row_of_node21_is_named(tmp_path: Path, row: tuple[object, ...], words: str) -> None:
    touch(tmp_path / "images" / "a.mha")
    write_table(tmp_path / "metadata.csv", [NODE21_COLUMNS, row])
    with pytest.raises(UsageError, match=words):
        list_nodule_films(tmp_path)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    write_table(tmp_path / "metadata.csv", [("img_name", "label"), ("a.mha", 1)])
    with pytest.raises(UsageError, match="lacks the columns height, width, x, y"):
        list_nodule_films(tmp_path)
