from dataclasses import replace
from pathlib import Path

import pytest

from chess_cxr.benchmarking.evaluate import evaluate
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.records import ImageRecord, UsageError
from chess_cxr.store import Store, StoredFilm, open_store, write_store


def test_encoders_are_compared_on_the_labelled_films(store: Store, tiny_encoder: Encoder) -> None:
    seen: list[tuple[str, int, int]] = []
    comparison = evaluate(
        store,
        {"ours": tiny_encoder, "pixels": "pixels:12"},
        fractions=(0.5, 1.0),
        draws=2,
        replicates=40,
        on_progress=lambda *stage: seen.append(stage),
    )
    assert comparison.data_set == "small pictures (SYNTHETIC)" and comparison.notes == ()
    assert comparison.encoders == ("ours", "pixels") and comparison.subsets == ("50 %", "100 %")
    value = comparison.table().query("metric == 'auroc' and subset == '100 %'").set_index("encoder")["value"]
    assert value["pixels"] > 0.8
    assert seen == [("embed ours", 90, 90), ("embed pixels", 90, 90), *[("probe", n, 6) for n in range(1, 7)]]


def test_encoders_without_names_are_named_after_themselves(store: Store) -> None:
    comparison = evaluate(store, ["pixels:4", "pixels:8"], fractions=(1.0,), replicates=10, evaluate_on="val")
    assert comparison.encoders == ("pixels:4", "pixels:8") and comparison.split == "val"


def mark_films(small_store: Path, folder: Path, marked: range) -> Store:
    old = open_store(small_store)
    films = []
    for number, (row, jpeg) in enumerate(
        zip(old.films.to_dict("records"), old.read_jpegs(range(len(old))), strict=True)
    ):
        labels = {name: row[name] for name in ("stripes", "spots")} | {"marked": float(number in marked)}
        record = ImageRecord(row["uid"], row["patient"], split=row["split"], labels=labels)
        films.append(StoredFilm(record, jpeg, row["height"], row["width"]))
    write_store(folder / "marked.lance", films, ["stripes", "spots", "marked"], "")
    return open_store(folder / "marked.lance")


def test_a_column_can_mark_the_first_draw(small_store: Path, tmp_path: Path) -> None:
    store = mark_films(small_store, tmp_path, marked=range(0, 96, 10))
    comparison = evaluate(
        store, ["pixels:4"], ("stripes", "spots"), fractions=(), first_draw="marked", draws=3, replicates=10
    )
    known = [row for row in range(96) if row % 17]
    expected = [n for n, row in enumerate(known) if row % 10 == 0 and (row // 2) % 5 < 3]
    assert comparison.subsets == (f"{len(expected)} films",)
    first, *others = [cell.draw.film_index.tolist() for cell in comparison.cells["pixels:4", comparison.subsets[0]]]
    assert first == expected
    assert len(others) == 2 and all(len(draw) == len(expected) and draw != expected for draw in others)


def test_a_column_that_marks_nothing_is_refused(small_store: Path, tmp_path: Path) -> None:
    store = mark_films(small_store, tmp_path, marked=range(0))
    with pytest.raises(UsageError, match="marks no labelled film of the train split"):
        evaluate(store, ["pixels:4"], ("stripes", "spots"), first_draw="marked")
    with pytest.raises(UsageError, match="no column 'one_percent'"):
        evaluate(store, ["pixels:4"], ("stripes", "spots"), first_draw="one_percent")


def test_pre_training_on_scored_films_is_said_under_every_table(store: Store, tiny_encoder: Encoder) -> None:
    test_uids = store.films.loc[store.films["split"] == "test", "uid"].tolist()
    seen = replace(tiny_encoder, read_uids=lambda: frozenset(test_uids[:2]))
    comparison = evaluate(store, {"ours": seen, "pixels": "pixels:4"}, fractions=(1.0,), replicates=10)
    scored = len(comparison.patient_M)
    assert comparison.notes == (f"ours was pre-trained, without labels, on 2 of these {scored} films.",)
    assert comparison.as_markdown().endswith(f"\n\n{comparison.notes[0]}\n")
