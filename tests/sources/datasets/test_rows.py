"""What becomes of each row of each data set's tables."""

import math
from pathlib import Path

import pandas as pd
import pytest

from catalog_trees import (
    CHEXPERT_14,
    JSRT_RECORDS,
    NIH_HEADER,
    read_csv,
    write_brax,
    write_bse_jsrt,
    write_chexpert,
    write_chexpert_plus,
    write_csv,
    write_film,
    write_jsrt,
    write_mimic,
    write_montgomery,
    write_nih,
    write_node21,
    write_padchest,
    write_picture,
    write_rsna,
    write_shenzhen,
    write_siim,
    write_vindr,
)
from chess_cxr.records import UNCERTAIN, SourceFilm, UsageError
from chess_cxr.sources.datasets.catalog import read_dataset

NAN = math.nan


def read(name: str, root: Path, val: float = 0.0) -> dict[str, SourceFilm]:
    films = list(read_dataset(name, root, val))
    assert len({film.uid for film in films}) == len(films)
    return {film.uid: film for film in films}


def tell(film: SourceFilm) -> dict[str, float]:
    """The labels that are known."""
    return {name: value for name, value in film.labels.items() if not math.isnan(value)}


def pick(film: SourceFilm, *fields: str) -> tuple[object, ...]:
    return tuple(getattr(film, field) for field in fields)


# ---------------------------------------------------------------- CheXpert


def test_chexpert_rows_keep_uncertain_and_blank_apart(tmp_path: Path) -> None:
    root = write_chexpert(tmp_path)
    film = read("chexpert", root)["train/patient00001/study1/view1_frontal.jpg"]
    assert film.path == root / "train/patient00001/study1/view1_frontal.jpg"
    assert pick(film, "patient", "study", "view", "sex", "age_years", "split") == (
        *("patient00001", "patient00001/study1", "AP", "F", 68, "train"),
    )
    assert tell(film) == {"Cardiomegaly": UNCERTAIN, "Edema": 0, "Pleural Effusion": 1}
    assert list(film.labels) == CHEXPERT_14


def test_chexpert_views_ages_and_sexes_that_are_not_told_are_unknown(tmp_path: Path) -> None:
    films = read("chexpert", write_chexpert(tmp_path))
    assert films["train/patient00001/study1/view2_lateral.jpg"].view == "LATERAL"
    unknown = films["train/patient00002/study2/view1_frontal.jpg"]
    assert (unknown.sex, unknown.view) == ("", "PA")
    assert films["train/patient00003/study1/view1_frontal.jpg"].view == ""  # frontal and LL at once
    assert math.isnan(unknown.age_years)
    assert tell(unknown) == {"No Finding": 1}  # what the blanks beside it mean is decided by whoever reads them


def test_chexpert_splits_are_the_official_ones_and_studies_of_the_test_part_label_all_their_films(
    tmp_path: Path,
) -> None:
    films = read("chexpert", write_chexpert(tmp_path))
    assert [film.split for film in films.values()] == ["train"] * 4 + ["val"] + ["test"] * 3
    both = [films[f"test/patient64741/study1/{name}.jpg"] for name in ("view1_frontal", "view2_lateral")]
    assert [tell(film) for film in both] == [{"Edema": 1, "Fracture": 0}] * 2
    assert [pick(film, "view", "patient") for film in both] == [("", "patient64741"), ("LATERAL", "patient64741")]


def test_a_chexpert_study_without_films_is_listed_and_not_passed_over(tmp_path: Path) -> None:
    film = read("chexpert", write_chexpert(tmp_path))["test/patient64742/study1/view1_frontal.jpg"]
    assert not film.path.exists()


def test_chexpert_is_read_without_its_test_part_too(tmp_path: Path) -> None:
    (write_chexpert(tmp_path) / "groundtruth.csv").unlink()
    assert {film.split for film in read("chexpert", tmp_path).values()} == {"train", "val"}


# ---------------------------------------------------------------- CheXpert Plus


def test_chexpert_plus_takes_the_pictures_that_are_there_and_chexberts_labels(tmp_path: Path) -> None:
    root = write_chexpert_plus(tmp_path)
    films = list(read("chexpert-plus", root).values())
    assert films[0].path == root / "PNG/PNG/train/patient42140/study5/view1_frontal.png"
    assert films[0].uid == "train/patient42140/study5/view1_frontal.jpg"  # the same as in CheXpert
    assert [pick(film, "patient", "view", "split", "sex", "age_years") for film in films] == [
        ("patient42140", "AP", "train", "F", 61),
        ("patient42140", "LATERAL", "train", "F", 61),
        ("patient42141", "AP", "val", "F", 61),
    ]
    assert [tell(film) for film in films] == [{"Edema": 0, "Cardiomegaly": UNCERTAIN}, {}, {"Edema": 1}]


def test_chexpert_plus_takes_dicom_where_only_that_is_there(tmp_path: Path) -> None:
    root = write_chexpert_plus(tmp_path)
    (root / "PNG").rename(root / "elsewhere")
    write_film(root / "train/patient42140/study5/view1_frontal.dcm")
    films = list(read("chexpert-plus", root).values())
    assert films[0].path == root / "train/patient42140/study5/view1_frontal.dcm"


def test_chexpert_plus_has_no_labels_without_chexberts_file(tmp_path: Path) -> None:
    root = write_chexpert_plus(tmp_path)
    (root / "chexbert_labels/impression_fixed.json").unlink()
    assert read_dataset("chexpert-plus", root).label_names == ()


def test_a_line_of_chexberts_file_that_is_no_object_is_named(tmp_path: Path) -> None:
    file = write_chexpert_plus(tmp_path) / "chexbert_labels/impression_fixed.json"
    file.write_text(file.read_text() + "[1]\n")
    with pytest.raises(UsageError, match="line 3 of .*impression_fixed.json is not a JSON object"):
        read_dataset("chexpert-plus", tmp_path)


# ---------------------------------------------------------------- MIMIC-CXR-JPG


def test_mimic_rows_are_joined_from_its_compressed_tables(tmp_path: Path) -> None:
    root = write_mimic(tmp_path)
    films = list(read("mimic-cxr-jpg", root).values())
    assert films[0].path == root / "files/p10/p10000032/s50414267/02aa804e-bde0afdd.jpg"
    assert [pick(film, "patient", "study", "view", "split", "study_date") for film in films] == [
        ("10000032", "50414267", "PA", "train", "21800506"),
        ("10000032", "50414267", "LATERAL", "train", "21800506"),
        ("10000764", "57375967", "", "val", "21321015"),
        ("10000898", "50771383", "AP", "test", "21880123"),
    ]
    assert [tell(film) for film in films[:3]] == [{"Edema": UNCERTAIN, "Fracture": 1}] * 2 + [{}]


def test_mimic_labels_by_hand_stand_beside_the_automatic_ones_under_their_chexpert_name(tmp_path: Path) -> None:
    film = list(read("mimic-cxr-jpg", write_mimic(tmp_path)).values())[3]
    assert tell(film) == {"Lung Opacity": 1, "Lung Opacity (radiologist)": 0, "Edema (radiologist)": 1}


def test_two_rows_of_one_mimic_study_are_an_error(tmp_path: Path) -> None:
    table = write_mimic(tmp_path) / "mimic-cxr-2.0.0-chexpert.csv.gz"
    rows = read_csv(table)
    write_csv(table, rows[0], [*rows[1:], rows[1]])
    with pytest.raises(UsageError, match="more than one row of one subject_id and study_id"):
        read_dataset("mimic-cxr-jpg", tmp_path)


# ---------------------------------------------------------------- NIH, RSNA, SIIM


@pytest.mark.parametrize("old", [False, True])
def test_nih_rows_of_both_releases_are_read_the_same(tmp_path: Path, old: bool) -> None:
    root = write_nih(tmp_path, old)
    films = list(read("nih-chestxray14", root).values())
    assert films[0].path == root / "images_001/images/00000001_000.png"
    assert films[3].path == root / "images_012/images/00000003_000.PNG"
    assert [pick(film, "patient", "study", "view", "sex", "split") for film in films] == [
        ("1", "1/0", "PA", "M", "train"),
        ("1", "1/1", "AP", "M", "train"),
        ("2", "2/0", "PA", "F", "train"),
        ("3", "3/0", "PA", "F", "test"),
    ]
    assert [film.age_years for film in films] == pytest.approx([58, 58, NAN, 81], nan_ok=True)


def test_nih_findings_are_1_where_they_are_listed_and_0_elsewhere(tmp_path: Path) -> None:
    films = list(read("nih-chestxray14", write_nih(tmp_path)).values())
    assert all(set(film.labels.values()) == {0.0, 1.0} and len(film.labels) == 15 for film in films)
    present = [{name for name, value in film.labels.items() if value} for film in films]
    assert present == [{"Cardiomegaly", "Emphysema"}, {"Pleural_Thickening"}, {"No Finding"}, {"Hernia"}]


def test_nih_without_its_lists_has_no_split_and_with_one_of_them_is_an_error(tmp_path: Path) -> None:
    root = write_nih(tmp_path)
    (root / "test_list.txt").unlink()
    with pytest.raises(UsageError, match="needs both train_val_list.txt and test_list.txt"):
        read_dataset("nih-chestxray14", root)
    (root / "train_val_list.txt").unlink()
    assert {film.split for film in read("nih-chestxray14", root).values()} == {""}


def test_nih_lists_that_share_a_film_are_an_error(tmp_path: Path) -> None:
    (write_nih(tmp_path) / "test_list.txt").write_text("00000001_000.png\n")
    with pytest.raises(UsageError, match="share films"):
        read_dataset("nih-chestxray14", tmp_path)


def test_a_finding_that_nih_does_not_publish_is_named(tmp_path: Path) -> None:
    table = write_nih(tmp_path) / "Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace("Hernia", "Hernai"))
    with pytest.raises(UsageError, match="'Finding Labels' .* has 'Hernai'"):
        read_dataset("nih-chestxray14", tmp_path)


def test_two_files_of_one_name_are_an_error_because_the_table_cannot_say_which(tmp_path: Path) -> None:
    write_picture(write_nih(tmp_path) / "images-224/00000001_000.png")
    with pytest.raises(UsageError, match="two files 00000001_000.png"):
        read_dataset("nih-chestxray14", tmp_path)


def test_rsna_boxes_become_one_film_each_and_the_mapping_names_the_nih_patient(tmp_path: Path) -> None:
    root = write_rsna(tmp_path)
    films = read("rsna-pneumonia", root)
    assert {uid: tell(film) for uid, film in films.items()} == {
        "0004cfab": {"Pneumonia": 0, "Normal": 0, "No Lung Opacity / Not Normal": 1},
        "00436515": {"Pneumonia": 1, "Normal": 0, "No Lung Opacity / Not Normal": 0},
        "00569f44": {"Pneumonia": 0, "Normal": 1, "No Lung Opacity / Not Normal": 0},
        "0000a175": {},
    }
    nih = read("nih-chestxray14", write_nih(tmp_path))["00000001_000.png"]
    assert [film.patient for film in films.values()] == [nih.patient, nih.patient, "00569f44", "30805"]
    assert films["0000a175"].path == root / "stage_2_test_images/0000a175.dcm"


def test_rsna_without_its_mapping_takes_each_film_for_a_patient(tmp_path: Path) -> None:
    (write_rsna(tmp_path) / "pneumonia-challenge-dataset-mappings_2018.json").unlink()
    assert all(film.patient == uid for uid, film in read("rsna-pneumonia", tmp_path).items())


def test_rsna_rows_of_one_film_that_contradict_each_other_are_an_error(tmp_path: Path) -> None:
    table = write_rsna(tmp_path) / "stage_2_train_labels.csv"
    table.write_text(table.read_text() + "00436515,,,,,0\n")
    with pytest.raises(UsageError, match="rows that differ in Target"):
        read_dataset("rsna-pneumonia", tmp_path)


def test_siim_masks_become_one_label_a_film_and_films_without_a_row_have_none(tmp_path: Path) -> None:
    root, stem = write_siim(tmp_path), "1.2.276.0.7230010.3.1.4.8323329."
    films = read("siim-acr", root)
    known = {uid.removeprefix(stem): tell(film).get("Pneumothorax") for uid, film in films.items()}
    assert known == {"1": 0, "2": 1, "3": 0, "9": 0, "4": None, "5": None}
    assert films[stem + "2"].path == root / f"dicom-images-train/st.2/se.2/{stem}2.dcm"
    assert films[stem + "5"].path == root / f"dicom-images-test/st.5/se.5/{stem}5.DCM"
    assert not films[stem + "9"].path.exists()
    assert {pick(film, "patient", "split") for film in films.values()} == {("", "")}


def test_a_siim_cell_that_holds_neither_runs_nor_minus_one_is_an_error(tmp_path: Path) -> None:
    table = write_siim(tmp_path) / "train-rle.csv"
    table.write_text(table.read_text().replace(" 595 3 1011 16", " 595 3 1011"))
    with pytest.raises(UsageError, match="'EncodedPixels' .* 1 cell"):
        read_dataset("siim-acr", tmp_path)


# ---------------------------------------------------------------- PadChest


def test_padchest_rows_are_read_with_age_from_the_year_of_birth(tmp_path: Path) -> None:
    root = write_padchest(tmp_path)
    films = read("padchest", root)
    first = films["1001_a.png"]
    assert first.path == root / "0/1001_a.png"
    assert pick(first, "patient", "study", "view", "sex", "age_years", "study_date", "manufacturer") == (
        *("839860488694292331637988235681460987", "st1", "PA", "F", 84, "20140915", "PhilipsMedicalSystems"),
    )
    assert [film.view for film in films.values()] == ["PA", "LATERAL", "AP", "", ""]


def test_padchest_lists_give_every_name_that_occurs_and_a_blank_list_none(tmp_path: Path) -> None:
    films = read("padchest", write_padchest(tmp_path))
    assert films["1001_a.png"].labels == {"kyphosis": 1, "normal": 0, "pulmonary fibrosis": 1}
    assert films["1001_b.png"].labels == {"kyphosis": 0, "normal": 1, "pulmonary fibrosis": 0}
    assert set(films["1004.png"].labels.values()) == {0.0}
    assert tell(films["1002.png"]) == {}


def test_padchest_ids_that_say_none_are_unknown_and_a_row_without_film_is_listed_for_the_quarantine(
    tmp_path: Path,
) -> None:
    films = read("padchest", write_padchest(tmp_path))
    assert pick(films["1002.png"], "patient", "sex") == ("", "")
    assert math.isnan(films["1002.png"].age_years)
    assert not films["row 4"].path.exists()


@pytest.mark.parametrize("folder", ["", "images"])
def test_padchest_in_one_folder_is_found_too(tmp_path: Path, folder: str) -> None:
    root = write_padchest(tmp_path)
    (root / folder).mkdir(exist_ok=True)
    for path in [*root.glob("0/*.png"), *root.glob("54/*.png")]:
        path.rename(root / folder / path.name)
    assert read("padchest", root)["1002.png"].path == root / folder / "1002.png"


# ---------------------------------------------------------------- VinDr-CXR, BRAX


def test_vindr_labels_are_the_majority_of_the_readers(tmp_path: Path) -> None:
    films = read("vindr-cxr", write_vindr(tmp_path))
    present = {uid: {name for name, value in film.labels.items() if value} for uid, film in films.items()}
    assert present == {"aaa1": {"ILD"}, "aaa2": {"No finding"}, "bbb1": {"COPD", "Other diseases"}}
    assert {len(film.labels) for film in films.values()} == {28}
    assert [pick(film, "split", "view") for film in films.values()] == [
        ("train", "PA"),
        ("train", "PA"),
        ("test", "PA"),
    ]


def test_vindr_readers_at_a_tie_leave_it_uncertain(tmp_path: Path) -> None:
    table = write_vindr(tmp_path) / "annotations/image_labels_train.csv"
    rows = read_csv(table)
    write_csv(table, rows[0], rows[1:3])
    film = read("vindr-cxr", tmp_path)["aaa1"]
    assert (film.labels["Nodule/Mass"], film.labels["ILD"], film.labels["COPD"]) == (UNCERTAIN, 1, 0)


def test_brax_rows_are_read_with_ages_in_words(tmp_path: Path) -> None:
    root = write_brax(tmp_path)
    films = list(read("brax", root).values())
    assert films[0].path == root / "images/id_0/Study_1.0/Series_1.0/image-1.0.png"
    assert [film.age_years for film in films] == pytest.approx([85, 60, NAN], nan_ok=True)
    assert [film.view for film in films] == ["LATERAL", "PA", ""]
    assert pick(films[1], "patient", "study", "sex", "study_date", "manufacturer") == (
        *("id_1", "acc1", "M", "20120304", ""),
    )
    assert [tell(film) for film in films[:2]] == [{"Edema": UNCERTAIN}, {"No Finding": 1, "Support Devices": 0}]


def test_brax_takes_dicom_where_the_pictures_are_not_there(tmp_path: Path) -> None:
    root = write_brax(tmp_path)
    (root / "images").rename(root / "elsewhere")
    write_film(root / "Anonymized_DICOMs/id_0/Study_1.0/Series_1.0/image-1.0.dcm")
    assert next(iter(read("brax", root).values())).path.suffix == ".dcm"


# ---------------------------------------------------------------- JSRT, BSE-JSRT, NODE21


def test_jsrt_records_are_read_and_films_in_no_table_are_known_by_their_name(tmp_path: Path) -> None:
    root = write_jsrt(tmp_path)
    films = read("jsrt", root)
    assert tell(films["JPCLN001"]) == {"Nodule": 1, "Malignant": 1} | {f"Subtlety {n}": n == 5 for n in range(1, 6)}
    assert tell(films["JPCLN002"])["Malignant"] == 0
    assert [tell(films[name]) for name in ("JPCNN001", "JPCNN002")] == [{"Nodule": 0}] * 2
    assert films["JPCNN001"].path == root / "NonNodule93images/JPCNN001.img"
    assert [film.age_years for film in films.values()] == pytest.approx([53, NAN, 24, NAN], nan_ok=True)
    assert [film.sex for film in films.values()] == ["M", "F", "F", ""]
    assert [film.patient for film in films.values()] == list(films)


def test_a_jsrt_record_of_another_state_is_named(tmp_path: Path) -> None:
    table = write_jsrt(tmp_path) / "Clinical_Information/CLNDAT_EN.txt"
    table.write_text(table.read_text().replace("\tbenign", "\tunsure"))
    with pytest.raises(UsageError, match="record 2 of .* is neither malignant, benign nor non-nodule"):
        read_dataset("jsrt", tmp_path)


def test_jsrt_records_that_run_into_each_other_are_told_apart(tmp_path: Path) -> None:
    table = write_jsrt(tmp_path) / "Clinical_Information/CLNDAT_EN.txt"
    before = read("jsrt", tmp_path)
    table.write_text(JSRT_RECORDS[1] + JSRT_RECORDS[0])
    after = read("jsrt", tmp_path)
    assert str(after["JPCLN001"]) == str(before["JPCLN001"])
    assert str(after["JPCLN002"]) == str(before["JPCLN002"])


@pytest.mark.parametrize(("change", "count"), [(("\tmalignant", ""), 9), (("\tmalignant", "\tmalignant\tx"), 11)])
def test_a_jsrt_record_with_a_column_too_few_or_too_many_is_named(
    tmp_path: Path, change: tuple[str, str], count: int
) -> None:
    table = write_jsrt(tmp_path) / "Clinical_Information/CLNDAT_EN.txt"
    table.write_text(table.read_text().replace(*change))
    with pytest.raises(UsageError, match=f"record 1 of .* has {count} columns, but 10 are published: film, subtlety"):
        read_dataset("jsrt", tmp_path)


@pytest.mark.real_films
def test_the_real_records_of_jsrt_give_their_published_labels(tmp_path: Path, real_films: Path) -> None:
    cases = pd.read_csv(real_films / "jsrt" / "cases.csv", dtype=str, keep_default_na=False)
    cases = cases[cases["nodule"] == "1"]
    columns = ["subtlety", "size_mm", "age", "sex", "x_2048", "y_2048", "state", "location", "diagnosis"]
    lines = ["\t".join([f"{row['case']}.IMG", *(row[name] for name in columns)]) for row in cases.to_dict("records")]
    (tmp_path / "CLNDAT_EN.txt").write_text("\t\r\n".join(lines))
    films = read("jsrt", tmp_path)
    assert len(films) == 124
    for row in cases.to_dict("records"):
        film = films[row["case"]]
        subtlety = [film.labels[f"Subtlety {degree}"] for degree in range(1, 6)].index(1) + 1
        assert (subtlety, film.labels["Malignant"]) == (int(row["subtlety"]), row["state"] == "malignant")
        assert film.sex == row["sex"][0]
        assert film.age_years == pytest.approx(math.nan if row["age"] == "?" else float(row["age"]), nan_ok=True)


@pytest.mark.real_films
def test_the_real_findings_of_nih_give_the_labels_they_were_told_as(tmp_path: Path, real_films: Path) -> None:
    table = next((real_films / "nih_covid").glob("*.csv"))
    cases = pd.read_csv(table, dtype=str, keep_default_na=False)
    cases = cases[~cases["finding_labels"].isin(["", "COVID-19"])].drop_duplicates("image_index")
    lines = [
        f"{row['image_index']},{row['finding_labels']},0,{row['patient']},{row['age']},{row['sex']},{row['view']},1,1,.1,.1"
        for row in cases.to_dict("records")
    ]
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text("\n".join([NIH_HEADER, *lines]))
    films = read("nih-chestxray14", tmp_path)
    assert len(films) == len(cases) > 500
    for row in cases.to_dict("records"):
        film = films[row["image_index"]]
        assert pick(film, "view", "sex", "age_years") == (row["view"], row["sex"], float(row["age"]))
        assert {name: int(value) for name, value in film.labels.items() if name in row} == {
            name: int(row[name]) for name in film.labels if name in row
        }


def test_bse_jsrt_pairs_share_patient_and_study_and_the_augmented_copies_are_left_out(tmp_path: Path) -> None:
    root = write_bse_jsrt(tmp_path)
    films = read("bse-jsrt", root)
    assert sorted(films) == [
        *("BSE_JSRT/JPCLN001.png", "BSE_JSRT/JPCNN002.png"),
        *("JSRT/JPCLN001.png", "JSRT/JPCNN002.png", "JSRT/JPCNN003.png"),
    ]
    pair = films["JSRT/JPCLN001.png"], films["BSE_JSRT/JPCLN001.png"]
    assert [film.path for film in pair] == [root / "JSRT/JSRT/JPCLN001.png", root / "BSE_JSRT/BSE_JSRT/JPCLN001.png"]
    assert {pick(film, "patient", "study") for film in pair} == {("JPCLN001", "JPCLN001")}
    assert [tell(film) for film in pair] == [{"Bone suppressed": 0, "Nodule": 1}, {"Bone suppressed": 1, "Nodule": 1}]


def test_bse_jsrt_needs_both_folders(tmp_path: Path) -> None:
    root = write_bse_jsrt(tmp_path)
    (root / "JSRT").rename(root / "originals")
    with pytest.raises(UsageError, match="JSRT is missing"):
        read_dataset("bse-jsrt", root)


def test_node21_boxes_become_one_film_each(tmp_path: Path) -> None:
    root = write_node21(tmp_path)
    films = read("node21", root)
    assert {uid: tell(film) for uid, film in films.items()} == {"c0001.mha": {"Nodule": 0}, "n0001.mha": {"Nodule": 1}}
    assert films["n0001.mha"].path == root / "images/n0001.mha"


# ---------------------------------------------------------------- Shenzhen, Montgomery


def test_shenzhen_readings_are_read_however_they_are_spelled(tmp_path: Path) -> None:
    films = read("shenzhen", write_shenzhen(tmp_path))
    assert [film.sex for film in films.values()] == ["M", "F", "M", "F", "M", ""]
    assert [film.age_years for film in films.values()] == pytest.approx([45, 32, 16 / 12, 24, 29, NAN], nan_ok=True)
    assert [film.labels["Tuberculosis"] for film in films.values()] == [0, 0, 0, 0, 1, 1]
    assert list(films)[-1] == "CHNCXR_0662_1"


def test_montgomery_films_of_one_patient_are_known_by_the_reading_and_masks_are_no_films(tmp_path: Path) -> None:
    films = read("montgomery", write_montgomery(tmp_path))
    assert [pick(film, "uid", "patient", "sex", "age_years") for film in films.values()] == [
        ("MCUCXR_0001_0", "MCUCXR_0001_0", "F", 27),
        ("MCUCXR_0162_1", "MCUCXR_0162_1", "M", 49),
        ("MCUCXR_0166_1", "MCUCXR_0162_1", "M", 49),
    ]
    assert [film.labels["Tuberculosis"] for film in films.values()] == [0, 1, 1]


def test_montgomery_films_that_refer_to_each_other_are_one_patient(tmp_path: Path) -> None:
    reading = write_montgomery(tmp_path) / "ClinicalReadings/MCUCXR_0162_1.txt"
    reading.write_text("Patient's Sex: M\nPatient's Age: 049Y\n(same pt as MCUCXR_0166_1)")
    films = read("montgomery", tmp_path)
    assert films["MCUCXR_0162_1"].patient == films["MCUCXR_0166_1"].patient == "MCUCXR_0162_1"


def test_one_of_the_two_tuberculosis_sets_is_not_taken_for_the_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no film of Montgomery .* MCUCXR_####_0.png"):
        read_dataset("montgomery", write_shenzhen(tmp_path))
