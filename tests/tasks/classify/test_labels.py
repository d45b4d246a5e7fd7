from pathlib import Path

import numpy as np
import pytest

from chess_cxr.evaluation.metrics import compute_multiclass, compute_multilabel
from chess_cxr.film_jpeg import encode_film
from chess_cxr.records import ImageRecord, UsageError
from chess_cxr.store import Store, StoredFilm, open_store, write_store
from chess_cxr.tasks.classify.labels import METRICS, LabelledRows, select_labelled

NAN = float("nan")


def write_labels(path: Path, rows: list[dict[str, float]], names: list[str]) -> Store:
    film = encode_film(np.full((32, 32), 0.5, np.float32), 32)
    records = [ImageRecord(f"{n:04x}", f"p{n}", split="train", labels=row) for n, row in enumerate(rows)]
    write_store(path / "labels.lance", [StoredFilm(record, *film) for record in records], names, "")
    return open_store(path / "labels.lance")


def select(path: Path, rows: list[dict[str, float]], *arguments: object) -> LabelledRows:
    return select_labelled(write_labels(path, rows, ["a", "b"]), *arguments)


def test_one_label_a_film_is_a_class(small_store: Path) -> None:
    store = open_store(small_store)
    chosen = select_labelled(store)
    assert chosen.task == "multiclass" and chosen.names == ("stripes", "spots")
    assert chosen.rows.tolist() == [row for row in range(96) if row % 17]
    films = store.films.iloc[chosen.rows]
    assert chosen.label.tolist() == films["spots"].astype(int).tolist()
    assert chosen.patient.tolist() == films["patient"].tolist() and chosen.split.tolist() == films["split"].tolist()
    assert np.array_equal(chosen.label_NL, films[["stripes", "spots"]].to_numpy())


def test_two_labels_on_a_film_are_findings(tmp_path: Path) -> None:
    rows = [{"a": 1.0, "b": 1.0}, {"a": 0.0, "b": NAN}, {"a": NAN, "b": NAN}, {"a": 0.0, "b": 0.0}]
    chosen = select(tmp_path, rows)
    assert chosen.task == "multilabel" and chosen.rows.tolist() == [0, 1, 3]
    np.testing.assert_array_equal(chosen.label_NL, [[1, 1], [0, NAN], [0, 0]])


def test_a_single_label_is_a_finding(tmp_path: Path) -> None:
    chosen = select(tmp_path, [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}], ["b", "b"])
    assert chosen.task == "multilabel" and chosen.names == ("b",) and chosen.label.tolist() == [[0.0], [1.0]]


def write_sites(path: Path) -> Store:
    film = encode_film(np.full((32, 32), 0.5, np.float32), 32)
    rows = [("x", 1.0, 0.0), ("x", 0.0, 1.0), ("y", 1.0, 1.0), ("", 0.0, 1.0)]
    records = [
        ImageRecord(f"{n:04x}", f"p{n}", site=site, split="train", labels={"a": a, "b": b})
        for n, (site, a, b) in enumerate(rows)
    ]
    write_store(path / "sites.lance", [StoredFilm(record, *film) for record in records], ["a", "b"], "")
    return open_store(path / "sites.lance")


def test_the_films_of_some_sites_alone_tell_the_task(tmp_path: Path) -> None:
    store = write_sites(tmp_path)
    assert select_labelled(store).task == "multilabel"
    chosen = select_labelled(store, sites=["x"])
    assert chosen.task == "multiclass" and chosen.rows.tolist() == [0, 1]
    assert select_labelled(store, sites=["y", "x"]).rows.tolist() == [0, 1, 2]


def test_an_unknown_site_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no film of site 'z'; its sites: x, y"):
        select_labelled(write_sites(tmp_path), sites=["x", "z"])


def test_labels_come_in_the_order_asked_for(tmp_path: Path) -> None:
    chosen = select(tmp_path, [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}], ["b", "a"])
    assert chosen.names == ("b", "a") and chosen.label.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([{"a": 1.0}], [["c", "d"]], "has no label 'c', 'd'; it has a, b"),
        ([{}], [], "no film of labels.lance has a known value of the labels a, b"),
        ([{"a": 1.0, "b": 1.0}], [(), "multiclass"], "films do not have exactly one of the labels"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(
    rows: list[dict[str, float]], arguments: list[object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        select(tmp_path, rows, *arguments)


def test_a_store_without_labels_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no labels; ingest --table"):
        select_labelled(write_labels(tmp_path, [{}], []))


def test_the_metrics_named_are_those_computed() -> None:
    score = [[0.9, 0.1], [0.2, 0.8]]
    assert METRICS["multiclass"] == tuple(n for n in compute_multiclass([0, 1], score, "ab") if "/" not in n)
    assert METRICS["multilabel"] == tuple(n for n in compute_multilabel(np.eye(2), score, "ab") if "/" not in n)
