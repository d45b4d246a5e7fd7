"""What holds for every data set of the catalogue."""

import os
import re
import tracemalloc
from pathlib import Path

import pytest

from catalog_trees import (
    ABSENT,
    CHEXPERT_14,
    TREES,
    label,
    read_csv,
    write_csv,
    write_nih,
    write_picture,
    write_rubbish,
)
from chess_cxr.records import SPLITS, UsageError
from chess_cxr.sources.datasets.catalog import DATASETS, count_unlisted, list_datasets, read_dataset
from chess_cxr.sources.datasets.entry import Table
from chess_cxr.sources.datasets.padchest import parse_quoted_list
from places import CHECKOUT

# Tables that are texts with columns and a header; the others have tests of their own.
TABLES = [
    (name, key, table)
    for name, entry in DATASETS.items()
    for key, table in entry.tables.items()
    if any(".csv" in file for file in table.names)
]
PATHS = {
    "chexpert": ("train.csv", "Path"),
    "chexpert-plus": ("df_chexpert_plus_240401.csv", "path_to_image"),
    "mimic-cxr-jpg": ("mimic-cxr-2.0.0-metadata.csv.gz", "dicom_id"),
    "nih-chestxray14": ("Data_Entry_2017_v2020.csv", "Image Index"),
    "padchest": ("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", "ImageID"),
    "vindr-cxr": ("annotations/image_labels_test.csv", "image_id"),
    "rsna-pneumonia": ("stage_2_train_labels.csv", "patientId"),
    "siim-acr": ("train-rle.csv", "ImageId"),
    "brax": ("master_spreadsheet_update.csv", "PngPath"),
    "node21": ("metadata.csv", "img_name"),
}


def complain(name: str, root: Path) -> str:
    with pytest.raises(UsageError) as caught:
        read_dataset(name, root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def find_table(root: Path, table: Table) -> Path:
    return next(root / name for name in table.names if (root / name).is_file())


def strip_header(header: list[str]) -> list[str]:
    return [name.strip() for name in header]


def list_removals() -> list[tuple[str, Table, str]]:
    """Each table with each column that it must have."""
    return [(name, table, column) for name, _, table in TABLES for column in table.columns]


# ---------------------------------------------------------------- columns


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("trees")
    return {name: write(folder / name) for name, write in TREES.items()}


def test_every_data_set_has_a_tree_to_be_tested_on() -> None:
    assert list(TREES) == list(DATASETS)


@pytest.mark.parametrize(("name", "table", "column"), list_removals())
def test_a_column_that_is_missing_is_named(trees: dict[str, Path], name: str, table: Table, column: str) -> None:
    file = find_table(trees[name], table)
    content, rows = file.read_bytes(), read_csv(file)
    at = next(strip_header(rows[0]).index(one) for one in column.split("|") if one in strip_header(rows[0]))
    try:
        write_csv(file, rows[0][:at] + rows[0][at + 1 :], [row[:at] + row[at + 1 :] for row in rows[1:]])
        text = complain(name, trees[name])
    finally:
        file.write_bytes(content)
    assert text.startswith(f"{file} has no column {column.split('|')[0]!r}, which ")


@pytest.mark.parametrize(("name", "key", "table"), TABLES)
def test_a_column_that_is_not_published_is_named(trees: dict[str, Path], name: str, key: str, table: Table) -> None:
    file = find_table(trees[name], table)
    content, rows = file.read_bytes(), read_csv(file)
    try:
        write_csv(file, ["Surprise", *rows[0]], [["1", *row] for row in rows[1:]])
        text = complain(name, trees[name])
    finally:
        file.write_bytes(content)
    assert text.startswith(f"{file} has column 'Surprise', which ")
    assert text.endswith("is it another release?")


@pytest.mark.parametrize("name", DATASETS)
def test_a_tree_is_read_again_once_its_tables_are_whole(trees: dict[str, Path], name: str) -> None:
    assert read_dataset(name, trees[name]).count() > 0


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    table = TREES["node21"](tmp_path) / "metadata.csv"
    rows = read_csv(table)
    write_csv(table, [*rows[0], "label"], [[*row, "0"] for row in rows[1:]])
    assert "has the column 'label' more than once" in complain("node21", tmp_path)


def test_a_cell_that_is_no_label_is_an_error_that_names_the_column(tmp_path: Path) -> None:
    table = TREES["chexpert"](tmp_path) / "train.csv"
    table.write_text(table.read_text().replace("-1.0", "2.0"))
    assert "column 'Cardiomegaly' of CheXpert" in complain("chexpert", tmp_path)
    assert "in 1 row(s)" in complain("chexpert", tmp_path)


# ---------------------------------------------------------------- where it lies


@pytest.mark.parametrize("name", DATASETS)
def test_a_set_is_found_in_its_own_folder_and_in_the_parent(trees: dict[str, Path], tmp_path: Path, name: str) -> None:
    own = list(read_dataset(name, trees[name]))
    parent = trees[name].parents[1] if name == "node21" else trees[name].parent
    assert [film.path for film in read_dataset(name, parent)] == [film.path for film in own]


@pytest.mark.parametrize("name", DATASETS)
def test_a_set_that_is_not_there_tells_what_was_looked_for(tmp_path: Path, name: str) -> None:
    text = complain(name, tmp_path)
    assert f"in {tmp_path}" in text
    assert DATASETS[name].folders[0] in text
    assert DATASETS[name].marks[0] in text


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name, entry in DATASETS.items() for key, t in entry.tables.items() if t.needed]
)
def test_a_table_that_is_missing_is_named_with_its_place(tmp_path: Path, name: str, key: str) -> None:
    root = TREES[name](tmp_path)
    table = DATASETS[name].tables[key]
    file = next(file for file in table.names if (root / file).is_file())
    (root / file).unlink()
    text = complain(name, root)
    assert file in text
    assert str(root) in text


def test_a_parent_with_two_copies_asks_for_one(tmp_path: Path) -> None:
    root = TREES["chexpert"](tmp_path)
    other = tmp_path / "CheXpert-v1.0"
    other.mkdir()
    (other / "train.csv").write_bytes((root / "train.csv").read_bytes())
    assert "more than one CheXpert" in complain("chexpert", tmp_path)


def test_a_set_under_another_folder_name_is_read_by_its_content(tmp_path: Path) -> None:
    root = TREES["chexpert"](tmp_path).rename(tmp_path / "mine")
    assert next(iter(read_dataset("chexpert", root))).path.is_file()


def test_what_is_no_folder_and_what_is_no_data_set_are_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert complain("jsrt", tmp_path / "file") == f"{tmp_path / 'file'} is no folder"
    assert complain("chexprt", tmp_path).startswith("no data set is named 'chexprt'; there are chexpert, chexpert-plus")
    with pytest.raises(UsageError, match="val 1 must be"):
        read_dataset("jsrt", tmp_path, val=1)


def test_a_name_is_known_in_any_case_and_with_underscores(trees: dict[str, Path]) -> None:
    assert read_dataset("NODE21", trees["node21"]).count() == 2
    assert read_dataset("bse_jsrt", trees["bse-jsrt"]).count() == 5


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("far", ["../../secret.png", "/etc/passwd", "a/../../../secret.png"])
def test_no_table_leads_out_of_the_set(tmp_path: Path, name: str, far: str) -> None:
    root = TREES[name](tmp_path)
    file, column = PATHS[name]
    rows = read_csv(root / file)
    at = strip_header(rows[0]).index(column)
    rows[1][at] = far
    write_csv(root / file, rows[0], rows[1:])
    try:
        listed = [film.path for film in read_dataset(name, root)]
    except UsageError as error:
        assert "leads out of" in str(error)
        assert "passwd" not in str(error)
        assert "secret" not in str(error)
    else:  # what the table names was put below a folder of the set, where nothing is
        assert all(os.path.normpath(path).startswith(f"{root}{os.sep}") for path in listed)
        assert far not in map(str, listed)


def test_a_test_study_of_chexpert_does_not_list_a_folder_outside(tmp_path: Path) -> None:
    root = TREES["chexpert"](tmp_path)
    write_picture(tmp_path / "outside/view1_frontal.jpg")
    write_csv(root / "groundtruth.csv", ["Study", *CHEXPERT_14], [("../outside", *label(Edema="1"))])
    assert "leads out of" in complain("chexpert", root)


@pytest.mark.parametrize("linked", ["view1_frontal.jpg", "study1"])
def test_a_link_out_of_the_set_is_not_read_though_a_table_names_it(tmp_path: Path, linked: str) -> None:
    root = TREES["chexpert"](tmp_path / "set")
    film = next(iter(read_dataset("chexpert", root))).path
    place = film if linked == film.name else film.parent
    away = place.rename(tmp_path / f"away_{place.name}")
    place.symlink_to(away)
    text = complain("chexpert", root)
    assert text.startswith("row 1 of CheXpert")
    assert text.endswith(f"names a link that leads out of {root}")
    assert film.parent.parent.name not in text


def test_links_out_of_the_tree_are_no_films(tmp_path: Path) -> None:
    root = TREES["montgomery"](tmp_path)
    write_picture(tmp_path / "secret.png")
    (root / "CXR_png/MCUCXR_0200_1.png").symlink_to(tmp_path / "secret.png")
    assert "MCUCXR_0200_1" not in {film.uid for film in read_dataset("montgomery", root)}


@pytest.mark.parametrize("name", DATASETS)
def test_every_film_of_a_tree_is_on_disk_but_for_those_that_are_absent_on_purpose(
    trees: dict[str, Path], name: str
) -> None:
    missing = [film.uid for film in read_dataset(name, trees[name]) if not film.path.is_file()]
    assert len(missing) == ABSENT.get(name, 0)


def test_a_film_named_twice_is_an_error(tmp_path: Path) -> None:
    table = TREES["brax"](tmp_path) / "master_spreadsheet_update.csv"
    rows = read_csv(table)
    write_csv(table, rows[0], [*rows[1:], rows[1]])
    assert "1 film(s) of BRAX are named more than once" in complain("brax", tmp_path)


def test_files_that_no_table_names_are_counted_and_rubbish_is_not(tmp_path: Path) -> None:
    root = TREES["chexpert"](tmp_path)
    assert count_unlisted("chexpert", root) == 0
    write_picture(root / "train/patient00009/study1/view1_frontal.jpg")
    write_rubbish(root / "train/patient00009/study1")
    assert count_unlisted("chexpert", root) == 1
    assert count_unlisted("montgomery", TREES["montgomery"](tmp_path)) == 6  # the masks


# ---------------------------------------------------------------- listing


@pytest.mark.parametrize("name", DATASETS)
def test_a_listing_says_the_same_each_time_and_every_film_has_every_label(trees: dict[str, Path], name: str) -> None:
    listing = read_dataset(name, trees[name])
    first, second = list(listing), list(listing)
    assert list(map(str, first)) == list(map(str, second))
    assert listing.count() == len(first)
    assert {tuple(sorted(film.labels)) for film in first} == {tuple(sorted(listing.label_names))}
    assert {film.split for film in first} <= {"", *SPLITS}


def test_films_are_made_while_they_are_listed(tmp_path: Path) -> None:
    root = TREES["chexpert"](tmp_path)
    rows = read_csv(root / "train.csv")
    many = [[f"x/train/patient{n:05d}/study1/view1_frontal.jpg", *rows[1][1:]] for n in range(6000)]
    write_csv(root / "train.csv", rows[0], many)
    listing = read_dataset("chexpert", root)
    tracemalloc.start()
    peaks = []
    for _ in range(3):  # threads that other tests have left behind may allocate meanwhile
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        for _ in listing:
            pass
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
    before = tracemalloc.get_traced_memory()[0]
    films = list(listing)
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(films) > 6000
    assert min(peaks) < held / 2  # of all films at once, no more than a part was ever held


# ---------------------------------------------------------------- splits


def write_many_nih(parent: Path, patients: int = 300) -> Path:
    root = write_nih(parent)
    names = [f"{patient:08d}_{film:03d}.png" for patient in range(1, patients + 1) for film in (0, 1)]
    header = (root / "Data_Entry_2017_v2020.csv").read_text().splitlines()[0]
    rows = [f"{name},No Finding,0,{int(name[:8])},40,M,PA,2,2,0.1,0.1" for name in names]
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join([header, *rows]) + "\n")
    (root / "train_val_list.txt").write_text("\n".join(names[: patients + 100]))
    (root / "test_list.txt").write_text("\n".join(names[patients + 100 :]))
    return root


def test_val_comes_from_official_training_patients_alone_and_test_stays_the_official_one(tmp_path: Path) -> None:
    root = write_many_nih(tmp_path)
    films = list(read_dataset("nih-chestxray14", root))
    official = set((root / "test_list.txt").read_text().split())
    assert {film.uid for film in films if film.split == "test"} == official
    patients = {split: {film.patient for film in films if film.split == split} for split in SPLITS}
    assert not patients["train"] & patients["val"]
    assert 10 <= len(patients["val"]) <= 32  # of 200, a tenth by chance; the hash never changes
    assert len(patients["train"]) + len(patients["val"]) == 200


def test_a_larger_val_holds_the_smaller_one_and_none_leaves_the_official_split(tmp_path: Path) -> None:
    root = write_many_nih(tmp_path)
    val = {
        share: {film.uid for film in read_dataset("nih-chestxray14", root, share) if film.split == "val"}
        for share in (0.0, 0.1, 0.3)
    }
    assert val[0.0] == set()
    assert val[0.1] < val[0.3]


@pytest.mark.parametrize("name", ["chexpert", "mimic-cxr-jpg", "chexpert-plus"])
def test_an_official_val_is_taken_as_it_is(trees: dict[str, Path], name: str) -> None:
    splits = [[film.split for film in read_dataset(name, trees[name], share)] for share in (0.0, 0.9)]
    assert splits[0] == splits[1]
    assert "val" in splits[0]


def test_a_split_that_is_not_published_is_an_error(tmp_path: Path) -> None:
    table = TREES["mimic-cxr-jpg"](tmp_path) / "mimic-cxr-2.0.0-split.csv.gz"
    rows = read_csv(table)
    write_csv(table, rows[0], [[*row[:3], "holdout"] for row in rows[1:]])
    assert "names a split 'holdout'" in complain("mimic-cxr-jpg", tmp_path)


# ---------------------------------------------------------------- lists of labels


@pytest.mark.parametrize(
    ("text", "names"),
    [("[]", ()), ("['a']", ("a",)), ("['a', 'b']", ("a", "b")), (" [ 'A ' , \"b's\" ] ", ("a", "b's"))]
    + [("['', 'a', 'a']", ("a",)), ("['a, b']", ("a, b")), ("['a',]", ("a",))],
)
def test_a_list_of_quoted_texts_is_read(text: str, names: tuple[str, ...] | str) -> None:
    assert parse_quoted_list(text) == ((names,) if isinstance(names, str) else names)


@pytest.mark.parametrize(
    "text",
    ["", "a", "['a'", "'a']", "[a]", "[1]", "['a' 'b']", "['a'; 'b']", "[['a']]", "['a', __import__('os')]"]
    + ["['a\\n']", "['a'] + ['b']", "('a',)", "[" + "'a'," * 300 + "]", "['" + "a" * 10_000 + "']"],
)
def test_what_is_no_list_of_quoted_texts_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="list"):
        parse_quoted_list(text)


def test_a_padchest_cell_that_is_no_list_is_an_error_that_names_the_column(tmp_path: Path) -> None:
    table = next(TREES["padchest"](tmp_path).glob("*.csv"))
    table.write_text(table.read_text().replace("[]", "[0]"))
    assert "column 'Labels' of PadChest cannot be read" in complain("padchest", tmp_path)


# ---------------------------------------------------------------- words


def test_the_list_of_data_sets_has_one_line_each(tmp_path: Path) -> None:
    lines = list_datasets().splitlines()
    assert [line.split()[0] for line in lines] == ["name", *DATASETS]
    assert all(len(line) < 180 for line in lines)


def test_the_page_of_data_sets_describes_every_set_of_the_catalogue() -> None:
    page = (CHECKOUT / "docs" / "datasets.md").read_text("utf-8")
    for entry in DATASETS.values():
        assert f"chess-cxr ingest --dataset {entry.name} " in page
        for text in (entry.title, entry.films, entry.licence, entry.access, entry.url):
            assert text in page, f"{entry.name}: {text}"


def test_sets_that_share_films_say_so_of_each_other() -> None:
    sections = (CHECKOUT / "docs" / "datasets.md").read_text("utf-8").partition("## Each set")[2].split("\n### ")[1:]
    shares = dict[str, list[str]]()
    for section in sections:
        [name] = re.findall(r"--dataset (\S+)", section)
        shares[name] = re.findall(r"`([a-z0-9-]+)`", "".join(re.findall(r"films in common with(.*)", section)))
    assert set(shares) == set(DATASETS) and sum(map(len, shares.values())) == 22
    assert all(name in shares[other] for name, others in shares.items() for other in others)
