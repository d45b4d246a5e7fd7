"""What a suite file may say, and how a wrong one is refused."""

from pathlib import Path

import pytest

from chess_cxr.benchmarking.suite import FRACTIONS, SUITES, build_suite, describe_suite, read_suite
from chess_cxr.records import UsageError

GOOD = """
reference = "ours"
[encoders]
scratch = "random"
ours = "encoders/first"
published = "chess:weights/chess.pth.tar"
[tasks.kinds]
store = "films.lance"
labels = ["a", "b"]
first_draw = "one_percent"
[tasks.remote]
store = "s3://bucket/films.lance"
fractions = [0.5]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "suite.toml"
    path.write_text(text)
    return path


def test_a_suite_is_read_with_its_defaults_and_paths_beside_the_file(tmp_path: Path) -> None:
    suite = read_suite(write(tmp_path, GOOD))
    assert suite.fractions == FRACTIONS == (0.01, 0.05, 0.1, 0.25, 0.5, 1.0) and suite.draws == 10
    assert list(suite.encoders) == ["scratch", "ours", "published"]
    assert suite.encoders["ours"] == str(tmp_path / "encoders/first")
    assert suite.encoders["published"] == f"chess:{tmp_path}/weights/chess.pth.tar"
    assert suite.encoders["scratch"] == "random"
    assert suite.tasks["kinds"].store == str(tmp_path / "films.lance")
    assert suite.tasks["remote"].store == "s3://bucket/films.lance" and suite.tasks["remote"].fractions == (0.5,)
    assert describe_suite(suite)["tasks"]["kinds"]["labels"] == ["a", "b"]


def test_the_first_encoder_is_the_reference_where_none_is_named(tmp_path: Path) -> None:
    assert read_suite(write(tmp_path, GOOD.replace('reference = "ours"', ""))).reference == "scratch"


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("reference", "refference", "refference: there is no such entry"),
        ("labels", "lables", "tasks.kinds.lables: there is no such entry"),
        ('labels = ["a", "b"]', 'labels = "a"', "tasks.kinds.labels"),
        ('reference = "ours"', 'reference = "theirs"', "'theirs' is none of the encoders scratch, ours, published"),
        ('reference = "ours"', "draws = 0", "draws: must be 1 or more"),
        ('reference = "ours"', "draws = 1.5", "draws"),
        ('reference = "ours"', "level = 95.0", "level"),
        ('reference = "ours"', "fractions = [5.0]", "5 % is 0.05"),
        ('reference = "ours"', "fractions = [0.1, 0.1]", "twice"),
        ("fractions = [0.5]", "fractions = []", "tasks.remote.fractions: there is no label subset"),
        ("fractions = [0.5]", "draws = 0", "tasks.remote: draws, steps and batch must be 1 or more"),
        ("fractions = [0.5]", "film_counts = [0]", "tasks.remote.film_counts"),
        ("fractions = [0.5]", 'heads = ["forest"]', "tasks.remote.heads"),
        ("fractions = [0.5]", "heads = []", "tasks.remote.heads"),
        ("fractions = [0.5]", "fractions = 1979-05-27", "suite.toml"),
        ("fractions = [0.5]", 'encoders = ["theirs"]', "tasks.remote.encoders: 'theirs': name encoders of the suite"),
        ("fractions = [0.5]", 'encoders = ["ours", "ours"]', "tasks.remote.encoders: 'ours': name encoders"),
        ("fractions = [0.5]", 'encoders = ["scratch"]', "tasks.remote.encoders: 'ours', the reference, is missing"),
        ('store = "films.lance"', "", "tasks.kinds.store"),
        ("[tasks.kinds]", '[tasks."../kinds"]', "'../kinds' should be letters"),
        ("[encoders]", "[encoders", "suite.toml"),
        ('scratch = "random"\nours = "encoders/first"\npublished = "chess:weights/chess.pth.tar"', "", "encoders"),
    ],
)
def test_a_wrong_suite_is_refused_in_one_line_that_names_the_entry(
    tmp_path: Path, before: str, after: str, named: str
) -> None:
    assert before in GOOD
    with pytest.raises(UsageError) as error:
        read_suite(write(tmp_path, GOOD.replace(before, after, 1)))
    assert named in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_suite(tmp_path / "none.toml")


def test_the_paper_compares_four_encoders_on_few_and_all_labels() -> None:
    given = {"CheSS": "chess:/weights/chess.pth.tar", "ours": "/encoders/first", "pixels": "pixels:32"}
    suite = build_suite("paper", {"films": "/films.lance"}, given)
    assert list(suite.encoders) == ["scratch", "ImageNet", "CheSS", "ours", "pixels"]
    assert (suite.fractions, suite.draws, suite.reference) == ((0.01, 1.0), 10, "ours")
    assert suite.encoders["scratch"] == "random" and suite.tasks["films"].store == "/films.lance"


@pytest.mark.parametrize(
    ("preset", "stores", "encoders", "named"),
    [
        ("papr", {"films": "f"}, {}, f"one of {', '.join(SUITES)}"),
        ("paper", {"films": "f"}, {"ours": "e"}, "--encoders CheSS=chess:chess.pth.tar"),
        ("paper", {}, {"ours": "e", "CheSS": "c"}, "--stores"),
    ],
)
def test_a_preset_says_what_it_needs(preset: str, stores: dict[str, str], encoders: dict[str, str], named: str) -> None:
    with pytest.raises(UsageError, match=named.replace(".", r"\.")):
        build_suite(preset, stores, encoders)
