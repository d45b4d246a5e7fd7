import gzip
import math
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from chess_cxr.records import UNCERTAIN, ChessError, SourceFilm, UsageError
from chess_cxr.sources.folder import read_folder
from places import touch


def write_table(root: Path, text: str, name: str = "films.csv") -> Path:
    (root / name).write_text(text, encoding="utf-8")
    return root / name


def read_one(root: Path, text: str, **columns: str) -> SourceFilm:
    (film,) = list(read_folder([root], write_table(root, text), columns))
    return film


def complain(sources: list[Path], table: Path | None = None, **columns: str) -> str:
    with pytest.raises(UsageError) as caught:
        read_folder(sources, table, columns)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- tree


def test_a_tree_gives_every_file_that_may_be_a_film_in_a_fixed_order(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.dcm", "b/IM0001", "a.PNG", "b/c/é, 1.jpeg", "z.unknown")
    films = list(read_folder([tmp_path]))
    assert [film.uid for film in films] == ["a.PNG", "z.unknown", "b/2.dcm", "b/IM0001", "b/c/é, 1.jpeg"]
    assert [film.path for film in films] == [tmp_path / film.uid for film in films]
    assert films[0].patient == films[0].split == ""
    assert films[0].labels == {}


def test_tables_texts_and_hidden_files_are_no_films(tmp_path: Path) -> None:
    touch(
        tmp_path, "labels.csv", "README.md", "a.json", "DICOMDIR", "x.csv.gz", ".DS_Store", ".git/film.png", "film.png"
    )
    assert [film.uid for film in read_folder([tmp_path])] == ["film.png"]


def test_links_out_of_the_tree_are_not_followed_and_links_inside_are(tmp_path: Path) -> None:
    outside, inside = touch(tmp_path / "outside", "secret.png"), touch(tmp_path / "inside", ".store/film")
    (inside / "away.png").symlink_to(outside / "secret.png")
    (inside / "folder").symlink_to(outside)
    (inside / "broken.png").symlink_to(inside / "absent")
    (inside / "kept.png").symlink_to(inside / ".store" / "film")
    assert [film.uid for film in read_folder([inside])] == ["kept.png"]


def test_what_is_no_regular_file_is_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    touch(tmp_path, "film.png")
    assert [film.uid for film in read_folder([tmp_path])] == ["film.png"]


def test_films_of_several_sources_are_told_apart_by_the_name_of_the_source(tmp_path: Path) -> None:
    sources = [touch(tmp_path / "one", "1.png"), touch(tmp_path / "two", "1.png"), touch(tmp_path, "3.png") / "3.png"]
    assert [film.uid for film in read_folder(sources)] == ["one/1.png", "two/1.png", "3.png"]


def test_one_file_can_be_the_source(tmp_path: Path) -> None:
    assert [film.uid for film in read_folder([touch(tmp_path, "film.png") / "film.png"])] == ["film.png"]


def test_an_empty_folder_is_wrong_use(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    assert complain([tmp_path]) == f"no image file in {tmp_path}"


def test_a_source_that_is_absent_is_wrong_use(tmp_path: Path) -> None:
    assert "does not exist" in complain([tmp_path / "absent"])
    assert "no source" in complain([])


def test_a_source_given_twice_is_wrong_use(tmp_path: Path) -> None:
    touch(tmp_path, "film.png")
    assert "occurs more than once" in complain([tmp_path, tmp_path])


# ---------------------------------------------------------------- table

WHOLE = (
    "f,id,who,visit,proj,years,gender,part,finding,Edema,Mass\n1.png,u1,p1,s1,AP SUPINE,034Y,female,valid,covid,1,-1\n"
)


def test_any_column_can_be_mapped_to_any_field(tmp_path: Path) -> None:
    mapping = {"path": "f", "uid": "id", "patient": "who", "study": "visit", "view": "proj", "age": "years"}
    mapping |= {"sex": "gender", "split": "part", "class": "finding", "labels": "Edema, Mass"}
    film = read_one(tmp_path, WHOLE, **mapping)
    assert (film.path, film.uid, film.patient, film.study) == (tmp_path / "1.png", "u1", "p1", "s1")
    assert (film.view, film.age_years, film.sex, film.split) == ("AP", 34, "F", "val")
    assert film.labels["Edema"] == film.labels["covid"] == 1
    assert film.labels["Mass"] == UNCERTAIN
    assert list(film.labels) == ["Edema", "Mass", "covid"]


@pytest.mark.parametrize("path_column", ["file", "Path", "Image Index"])
def test_the_column_with_the_files_is_found_by_its_usual_names_and_is_the_uid(tmp_path: Path, path_column: str) -> None:
    film = read_one(tmp_path, f"{path_column},x\nsub/1.png,7\n")
    assert (film.uid, film.path) == ("sub/1.png", tmp_path / "sub/1.png")


def test_columns_of_a_fields_own_name_count_unless_they_are_mapped_to_nothing(tmp_path: Path) -> None:
    text = "file,patient,split\n1.png,p1,test\n"
    assert (read_one(tmp_path, text).patient, read_one(tmp_path, text).split) == ("p1", "test")
    assert (read_one(tmp_path, text, split="").patient, read_one(tmp_path, text, split="").split) == ("p1", "")


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz", "t.parquet"])
def test_every_kind_of_table_gives_the_same_films(tmp_path: Path, name: str) -> None:
    frame = pd.DataFrame({"file": ["1.png", "2.png"], "who": [12.0, None], "Edema": [1.0, None], "age": [40, 50]})
    if name.endswith(".parquet"):
        frame.to_parquet(tmp_path / name)
    else:
        text = "file,who,Edema,age\n1.png,12,1,40\n2.png,,,50\n".replace(",", "\t" if "tsv" in name else ",")
        (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    films = list(read_folder([tmp_path], tmp_path / name, {"patient": "who", "labels": "Edema"}))
    assert [(film.uid, film.patient, film.age_years) for film in films] == [("1.png", "12", 40), ("2.png", "", 50)]
    assert films[0].labels == {"Edema": 1.0}
    assert math.isnan(films[1].labels["Edema"])


def test_leading_zeros_of_a_patient_number_are_kept(tmp_path: Path) -> None:
    assert read_one(tmp_path, "file,patient\n1.png,00123\n").patient == "00123"


@pytest.mark.parametrize(
    "text", ["\ufefffile;patient\n1.png;p,1\n", 'file,patient,\n1.png,"p,1",\n', ' file ,patient \n1.png,"p,1"\n']
)
def test_tables_as_spreadsheets_write_them_are_read(tmp_path: Path, text: str) -> None:
    film = read_one(tmp_path, text)
    assert (film.uid, film.patient) == ("1.png", "p,1")


def test_a_header_with_unquoted_brackets_is_read_as_the_nih_published_it(tmp_path: Path) -> None:
    text = "Image Index,Finding Labels,Patient ID,OriginalImage[Width,Height],\n00000001_000.png,Mass,1,2682,2749,\n"
    assert read_one(tmp_path, text, patient="Patient ID").patient == "1"


def test_a_class_column_becomes_one_label_a_value_and_blank_makes_all_unknown(tmp_path: Path) -> None:
    table = write_table(tmp_path, "file,label\n1.png,normal\n2.png,covid\n3.png,\n")
    labels = [film.labels for film in read_folder([tmp_path], table, {"class": "label"})]
    assert labels[0] == {"covid": 0.0, "normal": 1.0}
    assert labels[1] == {"covid": 1.0, "normal": 0.0}
    assert all(math.isnan(value) for value in labels[2].values())
    assert list(labels[2]) == ["covid", "normal"]


@pytest.mark.parametrize("blank", ["", "NaN", "nan", "NA"])
def test_a_blank_label_is_unknown(tmp_path: Path, blank: str) -> None:
    assert math.isnan(read_one(tmp_path, f"file,Edema\n1.png,{blank}\n", labels="Edema").labels["Edema"])


@pytest.mark.parametrize("uncertain", ["-1", "-1.0", " -1 "])
def test_an_uncertain_label_stays_uncertain(tmp_path: Path, uncertain: str) -> None:
    assert read_one(tmp_path, f"file,Edema\n1.png,{uncertain}\n", labels="Edema").labels == {"Edema": UNCERTAIN}


@pytest.mark.parametrize("wrong", ["yes", "2", "0.5", "inf"])
def test_a_label_that_is_no_label_is_wrong_use_that_names_column_and_row(tmp_path: Path, wrong: str) -> None:
    table = write_table(tmp_path, f"file,Edema\n1.png,1\n2.png,{wrong}\n3.png,{wrong}\n")
    message = complain([tmp_path], table, labels="Edema")
    assert "'Edema'" in message
    assert "row 2 (2 such rows)" in message


def test_a_class_and_a_label_of_one_name_are_wrong_use(tmp_path: Path) -> None:
    table = write_table(tmp_path, "file,label,covid\n1.png,covid,1\n")
    assert "same name" in complain([tmp_path], table, labels="covid", **{"class": "label"})


def test_a_missing_column_is_wrong_use_that_lists_those_there_are(tmp_path: Path) -> None:
    table = write_table(tmp_path, "file,who\n1.png,1\n")
    assert complain([tmp_path], table, patient="PatientID") == "the table has no column 'PatientID'; it has file, who"
    assert "no column 'Edema'" in complain([tmp_path], table, labels="who,Edema")
    assert "it has who" in complain([tmp_path], write_table(tmp_path, "who\n1\n"))


def test_a_field_that_does_not_exist_is_wrong_use_that_lists_those_there_are(tmp_path: Path) -> None:
    table = write_table(tmp_path, "file\n1.png\n")
    message = complain([tmp_path], table, pateint="file")
    assert "'pateint'" in message
    assert "patient, study" in message


def test_a_column_that_occurs_twice_is_wrong_use_if_it_is_mapped(tmp_path: Path) -> None:
    table = write_table(tmp_path, "file,who,who\n1.png,1,2\n")
    assert "more than one column 'who'" in complain([tmp_path], table, patient="who")
    assert next(iter(read_folder([tmp_path], table))).patient == ""


def test_a_file_that_occurs_twice_is_wrong_use_that_names_rows_and_not_the_file(tmp_path: Path) -> None:
    table = write_table(tmp_path, "file\n1.png\njane.png\njane.png\n3.png\n3.png\n3.png\n")
    message = complain([tmp_path], table)
    assert message.startswith("the file of row 2 occurs again in row 3 (3 such rows)")
    assert "jane" not in message


def test_a_uid_that_occurs_twice_is_wrong_use_that_names_rows_and_not_the_uid(tmp_path: Path) -> None:
    table = write_table(tmp_path, "file,id\n1.png,jane\n2.png,\n3.png,jane\n4.png,2.png\n")
    message = complain([tmp_path], table, uid="id")
    assert message.startswith("the uid of row 1 occurs again in row 3 (2 such rows)")
    assert "jane" not in message


def test_a_table_without_a_use_is_wrong_use(tmp_path: Path) -> None:
    assert "does not exist" in complain([tmp_path], tmp_path / "absent.csv")
    assert "has no rows" in complain([tmp_path], write_table(tmp_path, "file,x\n"))
    assert "is empty" in complain([tmp_path], write_table(tmp_path, ""))
    assert "no table is given" in complain([touch(tmp_path, "1.png")], None, patient="who")


@pytest.mark.parametrize("name", ["t.parquet", "t.csv.gz"])
def test_a_table_that_is_no_table_is_wrong_use(tmp_path: Path, name: str) -> None:
    assert "cannot be read" in complain([tmp_path], write_table(tmp_path, "file\n1.png\n", name))


@pytest.mark.parametrize("text", ["file,x\n1.png,1\n2.png,1,2\n", "file,x\n1.png,1,2\n2.png,3,4\n"])
def test_rows_longer_than_the_header_are_wrong_use(tmp_path: Path, text: str) -> None:
    said = complain([tmp_path], write_table(tmp_path, text))
    assert "has rows with more cells than its header" in said or "Expected 2 fields in line 3, saw 3" in said


def test_a_table_in_another_encoding_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("file,who\n1.png,Gröger\n".encode("latin-1"))
    assert "not UTF-8" in complain([tmp_path], tmp_path / "t.csv")


def test_a_split_of_another_name_is_wrong_use_that_names_the_row_and_not_what_stands_there(tmp_path: Path) -> None:
    table = write_table(tmp_path, "file,split\n1.png,train\n2.png,jane doe\n3.png,fold3\n")
    message = complain([tmp_path], table)
    assert "column 'split' holds something other than a split in row 2 (2 such rows)" in message
    assert "jane" not in message


def test_a_film_that_the_table_names_and_the_tree_lacks_is_listed(tmp_path: Path) -> None:
    assert read_one(tmp_path, "file\nabsent.png\n").path == tmp_path / "absent.png"


@pytest.mark.parametrize("path", ["../1.png", "/etc/passwd", "a/../../1.png", "."])
def test_a_path_that_leads_out_of_the_sources_is_wrong_use(tmp_path: Path, path: str) -> None:
    root = touch(tmp_path / "root", "1.png")
    assert "row 1 of column 'file' leads out" in complain([root], write_table(root, f"file\n{path}\n"))


def test_an_absolute_path_inside_the_source_is_fine(tmp_path: Path) -> None:
    assert read_one(tmp_path, f"file\n{tmp_path}/a/../1.png\n").path == tmp_path / "1.png"


SPELLINGS = ["./1.png", "a/../1.png", "1.png/.", "a/..//1.png", "1.png/", "{root}/1.png", "{root}/a/../1.png"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_file_has_one_uid_however_its_path_is_spelled(tmp_path: Path, spelling: str) -> None:
    film = read_one(touch(tmp_path, "1.png"), f"file\n{spelling.format(root=tmp_path)}\n")
    assert (film.uid, film.path) == ("1.png", tmp_path / "1.png")


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("columns", [{}, {"uid": "id"}])
def test_two_rows_that_name_one_file_are_wrong_use(tmp_path: Path, spelling: str, columns: dict[str, str]) -> None:
    rows = f"file,id\n0.png,a\n1.png,b\n{spelling.format(root=tmp_path)},c\n"
    message = complain([tmp_path], write_table(tmp_path, rows), **columns)
    assert message.startswith("the file of row 2 occurs again in row 3;")
    assert ".png" not in message


def test_one_file_named_with_its_source_and_without_it_is_one_file(tmp_path: Path) -> None:
    sources = [touch(tmp_path / "one", "1.png"), touch(tmp_path / "two", "1.png", "2.png")]
    rows = f"file\n1.png\n{tmp_path}/two/1.png\n2.png\n"
    films = list(read_folder(sources, write_table(tmp_path, rows)))
    assert [film.path for film in films] == [sources[0] / "1.png", sources[1] / "1.png", sources[1] / "2.png"]
    assert len({film.uid for film in films}) == 3
    for again, row in (("one/1.png", 1), ("two/2.png", 3), ("two/x/../1.png", 2)):
        table = write_table(tmp_path, f"{rows}{tmp_path}/{again}\n")
        assert complain(sources, table).startswith(f"the file of row {row} occurs again in row 4;")


def link_outside(tmp_path: Path) -> Path:
    """A folder with links to a file and a folder outside and a link inside."""
    outside, root = touch(tmp_path / "outside", "jane.png"), touch(tmp_path / "root", ".store/film", "1.png")
    (root / "away.png").symlink_to(outside / "jane.png")
    (root / "folder").symlink_to(outside)
    (root / "kept.png").symlink_to(root / ".store" / "film")
    (root / "within").symlink_to(root / ".store")
    (root / "circle").symlink_to("circle")
    return root


@pytest.mark.parametrize("path", ["away.png", "folder/jane.png", "folder/absent.png", "within/../away.png"])
def test_a_link_out_of_the_source_is_not_read_through_a_table_either(tmp_path: Path, path: str) -> None:
    root = link_outside(tmp_path)
    listing = read_folder([root], write_table(tmp_path, f"file\n1.png\n{path}\n"))
    with pytest.raises(UsageError, match="^row 2 of column 'file' names a link that leads out of") as caught:
        list(listing)
    assert "jane" not in str(caught.value)
    assert "away" not in str(caught.value)


def test_links_inside_the_source_and_those_to_nothing_are_listed_from_a_table(tmp_path: Path) -> None:
    root, names = link_outside(tmp_path), ["kept.png", "within/film", "circle", "circle/1.png", "n" * 300, "a\0b"]
    table = write_table(tmp_path, "file\n" + "".join(f"{name}\n" for name in names))
    assert [film.path for film in read_folder([root], table)] == [root / name for name in names]


def test_a_source_that_is_itself_a_link_holds_its_films(tmp_path: Path) -> None:
    root = link_outside(tmp_path)
    (tmp_path / "link").symlink_to(root)
    table = write_table(tmp_path, "file\n1.png\nkept.png\n")
    assert [film.path.name for film in read_folder([tmp_path / "link"], table)] == ["1.png", "kept.png"]


def test_a_store_among_the_films_is_not_listed(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "a/mine.lance/_versions/1.manifest", "a/mine.lance/data/1.bin", "not.lance/2.png")
    assert [film.uid for film in read_folder([tmp_path])] == ["1.png", "not.lance/2.png"]


def test_a_row_without_a_file_is_wrong_use(tmp_path: Path) -> None:
    table = write_table(tmp_path, "file,x\n1.png,1\n,2\n")
    assert "row 2 of column 'file' names no file" in complain([tmp_path], table)


def test_a_table_film_is_looked_for_in_each_source(tmp_path: Path) -> None:
    sources = [touch(tmp_path / "one", "1.png"), touch(tmp_path / "two", "2.png")]
    table = write_table(tmp_path, "file\n1.png\n2.png\n3.png\n")
    films = read_folder(sources, table)
    assert [film.path for film in films] == [tmp_path / "one/1.png", tmp_path / "two/2.png", tmp_path / "one/3.png"]


@pytest.mark.real_films
def test_the_real_tables_are_read(real_films: Path) -> None:
    labels = "Pneumonia,Edema"
    nih = list(read_folder([real_films / "nih_covid"], real_films / "nih_covid" / "labels.csv", {"labels": labels}))
    assert len(nih) == 855
    assert nih[0].patient == "nih01280"
    assert nih[0].age_years == 36
    assert sum(film.labels["Pneumonia"] == 1 for film in nih) == 361
    kermany = list(read_folder([real_films / "kermany3"], real_films / "kermany3" / "labels.csv", {"class": "label"}))
    assert sum(film.labels["bacteria"] == 1 for film in kermany) == 1914
    assert {film.split for film in kermany} == {"train", "val", "test"}
    assert all(film.path.is_file() for film in nih + kermany)


# ---------------------------------------------------------------- listing


def test_a_tree_is_listed_anew_each_time_and_counted(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "a/2.png", "a/notes.txt")
    listing = read_folder([tmp_path])
    assert (listing.count(), listing.described, listing.label_names) == (2, False, ())
    assert list(listing) == list(listing)
    touch(tmp_path, "a/3.png")
    assert [film.uid for film in listing] == ["1.png", "a/2.png", "a/3.png"]
    assert listing.count() == 3


def test_a_tree_is_walked_only_as_far_as_it_is_asked_for(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/2.png")
    films = iter(read_folder([tmp_path]))
    assert next(films).uid == "a/1.png"
    touch(tmp_path, "b/1.png")
    assert [film.uid for film in films] == ["b/1.png", "b/2.png"]


def test_a_folder_that_vanishes_while_it_is_listed_ends_the_work_and_is_not_named(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "jane_doe/2.png")
    films = iter(read_folder([tmp_path]))
    next(films)
    shutil.rmtree(tmp_path / "jane_doe")
    with pytest.raises(ChessError, match=f"^a folder in {tmp_path} was removed while it was listed") as caught:
        list(films)
    assert caught.value.exit_code == 1
    assert "jane" not in str(caught.value)


def test_films_of_a_table_are_listed_in_its_order_across_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_table(tmp_path, "file,patient,Edema\n" + "".join(f"{i}.png,p{i // 2},{i % 2}\n" for i in range(23)))
    listing = read_folder([tmp_path], table, {"labels": "Edema"})
    assert (listing.count(), listing.described, listing.label_names) == (23, True, ("Edema",))
    whole = list(listing)
    monkeypatch.setattr("chess_cxr.sources.tables._ROWS_A_SLICE", 5)
    assert list(listing) == whole
    assert [(film.uid, film.patient, film.labels["Edema"]) for film in whole[:3]] == [
        ("0.png", "p0", 0.0),
        ("1.png", "p0", 1.0),
        ("2.png", "p1", 0.0),
    ]


def test_label_names_are_known_before_any_film_is_made(tmp_path: Path) -> None:
    table = write_table(tmp_path, "file,label,Edema\n1.png,normal,1\n2.png,covid,\n")
    listing = read_folder([tmp_path], table, {"labels": "Edema", "class": "label"})
    assert listing.label_names == ("Edema", "covid", "normal")
    assert {tuple(film.labels) for film in listing} == {listing.label_names}


def test_a_path_written_as_text_is_a_source_too(tmp_path: Path) -> None:
    touch(tmp_path, "a b.png")
    for source in (str(tmp_path), tmp_path.as_uri()):
        assert [film.path for film in read_folder([source])] == [tmp_path / "a b.png"]


# ---------------------------------------------------------------- several sources


def test_sources_of_one_name_are_told_apart_by_the_folders_above_them(tmp_path: Path) -> None:
    sources = [touch(tmp_path / where / "images", "1.png") for where in ("2019", "2020")]
    sources += [touch(tmp_path / "more", "1.png"), touch(tmp_path / "2021", "images/1.png") / "images/1.png"]
    uids = [film.uid for film in read_folder(sources)]
    assert uids == ["2019/images/1.png", "2020/images/1.png", f"{tmp_path.name}/more/1.png", "images/1.png"]


def test_no_two_films_of_any_sources_have_one_uid(tmp_path: Path) -> None:
    touch(tmp_path, "x/a/images/1.png", "y/a/images/1.png", "z/images/1.png", "images/1.png", "q/1.png")
    sources = [tmp_path / name for name in ("x/a", "y/a/images", "z/images", "images", "q/1.png")]
    uids = [film.uid for film in read_folder(sources)]
    assert len(set(uids)) == len(uids) == 5


@pytest.mark.parametrize("inner", ["a", "a/b", "a/1.png"])
def test_a_source_inside_another_is_wrong_use(tmp_path: Path, inner: str) -> None:
    touch(tmp_path, "a/1.png", "a/b/2.png", "ab/3.png")
    assert "lies inside" in complain([tmp_path / inner, tmp_path])
    assert len(list(read_folder([tmp_path / "a", tmp_path / "ab"]))) == 3


def test_a_source_given_under_two_names_is_wrong_use(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert "occurs more than once" in complain([tmp_path / "a", tmp_path / "link"])


# ---------------------------------------------------------------- date and maker


@pytest.mark.parametrize(
    ("text", "day"),
    [("20150203", "20150203"), ("2015-02-03", "20150203"), ("2015-02-03 10:11:12", "20150203"), ("", "")]
    + [("20150230", ""), ("2015", ""), ("03/02/2015", ""), ("2015-0203", ""), ("unknown", "")],
)
def test_the_day_of_a_study_is_read_in_either_form_and_nothing_else_is(tmp_path: Path, text: str, day: str) -> None:
    assert read_one(tmp_path, f"file,when\n1.png,{text}\n", study_date="when").study_date == day


def test_date_and_maker_are_taken_from_columns_of_their_names(tmp_path: Path) -> None:
    text = "file,study_date,manufacturer\n1.png,2015-02-03,Agfa HealthCare\n"
    film = read_one(tmp_path, text)
    assert (film.study_date, film.manufacturer) == ("20150203", "Agfa HealthCare")
    film = read_one(tmp_path, text, study_date="", manufacturer="")
    assert (film.study_date, film.manufacturer) == ("", "")


def test_a_table_names_the_site_of_each_film(tmp_path: Path) -> None:
    text = "file,site\n1.png,Seoul\n2.png,Busan\n3.png,Seoul\n4.png,\n5.png,Busan\n"
    (tmp_path / "t.csv").write_text(text)
    for number in range(1, 6):
        (tmp_path / f"{number}.png").write_bytes(b"")
    assert [film.site for film in read_folder([tmp_path], tmp_path / "t.csv")] == [""] * 5  # only when asked for
    films = list(read_folder([tmp_path], tmp_path / "t.csv", {"site": "site"}))
    assert [film.site for film in films] == ["Seoul", "Busan", "Seoul", "", "Busan"]


def test_a_column_that_names_each_film_is_no_site(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,name\n1.png,A\n2.png,B\n3.png,C\n")
    with pytest.raises(UsageError, match="'name' holds 3 values in 3 rows, too many for sites"):
        read_folder([tmp_path], tmp_path / "t.csv", {"site": "name"})


def test_dates_of_a_parquet_table_are_read(tmp_path: Path) -> None:
    when = pd.to_datetime(pd.Series(["2015-02-03", None]))
    pd.DataFrame({"file": ["1.png", "2.png"], "study_date": when}).to_parquet(tmp_path / "t.parquet")
    assert [film.study_date for film in read_folder([tmp_path], tmp_path / "t.parquet")] == ["20150203", ""]


def test_a_class_column_that_is_none_is_wrong_use(tmp_path: Path) -> None:
    table = write_table(tmp_path, "file,report\n" + "".join(f"{i}.png,words {i}\n" for i in range(1001)))
    assert "column 'report' holds 1001 classes" in complain([tmp_path], table, **{"class": "report"})
