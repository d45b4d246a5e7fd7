import gzip
from pathlib import Path

import pandas as pd
import pytest

from chess_cxr.records import UsageError
from chess_cxr.sources.tables import build_table_listing, parse_date, read_table

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
    with pytest.raises(UsageError, match="does not exist"):
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


def test_only_a_day_of_the_calendar_is_a_date() -> None:
    assert [parse_date(text) for text in ("20240229", " 2024-02-29T08:00", "20230229", "00000000", "99999999")] == [
        "20240229",
        "20240229",
        "",
        "",
        "",
    ]
