import gzip
import math
import tracemalloc
from pathlib import Path

import pandas as pd
import pytest

from chess_cxr.records import UsageError
from chess_cxr.sources.read_table import read_table
from chess_cxr.sources.tables import build_table_listing

TEXT = 'file,patient\n1.png,"p,1"\n2.png,007\n'


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.CSV"])
def test_a_text_table_is_read_as_it_stands_from_path_and_url(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(TEXT.encode()) if name.endswith("gz") else TEXT.encode())
    for table in (path, str(path), path.as_uri()):
        frame = read_table(table)
        assert frame["file"].tolist() == ["1.png", "2.png"]
        assert frame["patient"].tolist() == ["p,1", "007"]


def test_words_that_look_like_nothing_are_kept_by_the_reader(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,x\n1.png,NA\n2.png,\n3.png,None\n")
    assert read_table(tmp_path / "t.csv")["x"].tolist() == ["NA", "", "None"]


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder; name the file"):
        read_table(tmp_path)


def test_numbers_of_a_parquet_table_become_the_text_they_were(tmp_path: Path) -> None:
    frame = pd.DataFrame({"file": ["1.png", "2.png"], "patient": [12.0, None], "study": [7, 8], "age": [40.5, None]})
    frame.to_parquet(tmp_path / "t.parquet")
    films = list(build_table_listing(read_table(tmp_path / "t.parquet"), [tmp_path], {}))
    assert [(film.patient, film.study) for film in films] == [("12", "7"), ("", "8")]
    assert films[0].age_years == 40.5


def test_the_order_of_a_frames_index_does_not_matter(tmp_path: Path) -> None:
    frame = pd.DataFrame({"file": ["1.png", "2.png", "3.png"], "Edema": ["1", "", "-1"], "uid": ["a", "", "c"]})
    shuffled = frame.set_index(pd.Index([7, 7, 0]))
    columns = {"labels": "Edema", "uid": "uid"}
    films = [list(build_table_listing(table, [tmp_path], columns)) for table in (frame, shuffled)]
    assert [film.uid for film in films[0]] == ["a", "2.png", "c"]
    assert str(films[0]) == str(films[1])


@pytest.mark.parametrize("name", ["NA", "null.png", "nan", "None", " 1.png", "1.png "])
@pytest.mark.parametrize("kind", ["t.csv", "t.parquet"])
def test_a_path_and_a_uid_are_taken_as_they_stand(tmp_path: Path, name: str, kind: str) -> None:
    frame = pd.DataFrame({"file": [name, "2"], "uid": ["2", name], "patient": ["NA", "p"]})
    frame.to_csv(tmp_path / kind, index=False) if "csv" in kind else frame.to_parquet(tmp_path / kind)
    films = list(build_table_listing(read_table(tmp_path / kind), [tmp_path], {"uid": "uid"}))
    assert [(film.path, film.uid, film.patient) for film in films] == [
        (tmp_path / name, "2", ""),
        (tmp_path / "2", name, "p"),
    ]


@pytest.mark.parametrize("blank", [None, "", " "])
def test_a_missing_or_empty_path_names_no_file(tmp_path: Path, blank: str | None) -> None:
    pd.DataFrame({"file": ["1.png", blank]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="row 2 of column 'file' names no file"):
        build_table_listing(read_table(tmp_path / "t.parquet"), [tmp_path], {})


def test_large_numbers_of_a_parquet_table_stay_apart_beside_a_blank(tmp_path: Path) -> None:
    patients = pd.array([2**53, 2**53 + 1, None], dtype="Int64")
    pd.DataFrame({"file": ["1.png", "2.png", "3.png"], "patient": patients}).to_parquet(tmp_path / "t.parquet")
    films = build_table_listing(read_table(tmp_path / "t.parquet"), [tmp_path], {})
    assert [film.patient for film in films] == [str(2**53), str(2**53 + 1), ""]


@pytest.mark.parametrize("name", ["t.xlsx", "t.XLS", "t.ods"])
def test_a_spreadsheet_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(UsageError, match="is a spreadsheet; save it as CSV"):
        read_table(tmp_path / name)


def test_binary_columns_of_a_parquet_table_are_read_as_utf_8(tmp_path: Path) -> None:
    frame = pd.DataFrame({"file": ["é.png".encode(), b"2.png"], "patient": [b"007", None]})
    frame.to_parquet(tmp_path / "t.parquet")
    films = list(build_table_listing(read_table(tmp_path / "t.parquet"), [tmp_path], {}))
    assert [(film.uid, film.patient) for film in films] == [("é.png", "007"), ("2.png", "")]


def test_binary_that_is_no_text_is_wrong_use_that_names_the_row(tmp_path: Path) -> None:
    pd.DataFrame({"file": [b"1.png", b"jane\xff.png"]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="column 'file' is binary, and row 2 is not UTF-8 text") as caught:
        build_table_listing(read_table(tmp_path / "t.parquet"), [tmp_path], {})
    assert "jane" not in str(caught.value)


@pytest.mark.parametrize("field", ["file", "uid", "patient", "study"])
def test_an_infinite_number_names_nobody(tmp_path: Path, field: str) -> None:
    frame = pd.DataFrame({"file": [1.0, 2.0], field: [3.0, float("-inf")]})
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UsageError, match=f"column '{field}' holds an infinite number in row 2"):
        build_table_listing(read_table(tmp_path / "t.parquet"), [tmp_path], {"uid": "uid"} if field == "uid" else {})


@pytest.mark.parametrize("values", [[True, False], [True, False, None]])
@pytest.mark.parametrize("dtype", [None, "boolean", object])
def test_labels_of_a_parquet_table_may_be_true_and_false(tmp_path: Path, values: list, dtype: object) -> None:
    frame = pd.DataFrame({"file": list("abc")[: len(values)], "Edema": pd.Series(values, dtype=dtype)})
    frame.to_parquet(tmp_path / "t.parquet")
    films = list(build_table_listing(read_table(tmp_path / "t.parquet"), [tmp_path], {"labels": "Edema"}))
    assert [film.labels["Edema"] for film in films[:2]] == [1.0, 0.0]
    assert all(math.isnan(film.labels["Edema"]) for film in films[2:])


def test_a_text_table_that_says_true_is_still_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,Edema\n1.png,True\n")
    with pytest.raises(UsageError, match="labels are numbers"):
        build_table_listing(read_table(tmp_path / "t.csv"), [tmp_path], {"labels": "Edema"})


LONG = {  # 64 MB of text that is small when packed: many rows, one long row, one long header
    "rows": b"file\n" + b"1.png\n" * 10_000_000,
    "row": b"file\n" + b"1" * 64_000_000,
    "header": b"f" * 64_000_000,
}


@pytest.mark.parametrize("shape", LONG)
@pytest.mark.parametrize("kind", ["packed", "packed url", "plain", "plain url"])
def test_a_table_is_read_only_as_far_as_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, kind: str
) -> None:
    monkeypatch.setattr("chess_cxr.sources.read_table.MAX_TABLE_BYTES", 4 << 20)
    path = tmp_path / ("t.csv.gz" if "packed" in kind else "t.csv")
    path.write_bytes(gzip.compress(LONG[shape], 1) if "packed" in kind else LONG[shape])
    tracemalloc.start()
    with pytest.raises(UsageError, match=r"has more than 4 MiB|cannot be read \(Error\)") as caught:
        read_table(path.as_uri() if "url" in kind else path)
    assert "\n" not in str(caught.value)
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()


def test_a_table_of_just_the_size_that_is_allowed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("t.csv", "t.csv.gz"):
        (tmp_path / name).write_bytes(gzip.compress(TEXT.encode()) if name.endswith("gz") else TEXT.encode())
        monkeypatch.setattr(
            "chess_cxr.sources.read_table.MAX_TABLE_BYTES", max(len(TEXT), (tmp_path / name).stat().st_size)
        )
        assert len(read_table(tmp_path / name)) == 2
    monkeypatch.setattr("chess_cxr.sources.read_table.MAX_TABLE_BYTES", len(TEXT) - 1)
    with pytest.raises(UsageError, match="has more than"):
        read_table(tmp_path / "t.csv")


def test_cells_that_are_not_understood_are_counted_and_the_columns_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "file,age,sex,study_date,patient\n1.png,abc,F,31.12.2020,a\n2.png,40,weiblich,,b\n,,,,\n"
    )
    listing = build_table_listing(read_table(tmp_path / "t.csv"), [tmp_path], {"age": "age"})
    assert listing.count() == 2
    assert listing.notes[0].startswith("columns of the table: ")
    assert listing.notes[0].endswith("; no labels (map class=COLUMN or labels=COLUMN,COLUMN)")
    assert listing.notes[1:] == tuple(
        f"{field}: 1 cells are not understood and count as unknown" for field in ("age", "sex", "study_date")
    )
