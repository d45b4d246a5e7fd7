"""Encoders compared on one store, and the tables and files that say how they did."""

import copy
import math
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chess_cxr.benchmarking.comparison import Comparison
from chess_cxr.benchmarking.evaluate import evaluate
from chess_cxr.benchmarking.page.comparison import write_comparison
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.records import ImageRecord, UsageError
from chess_cxr.store import Store, StoredFilm, open_store, write_store

ENCODERS = {"zeta": "pixels:8", "alpha": "pixels:1"}
LABELS = ("stripes", "spots")
PUBLISHED = np.arange(96) % 10 == 0
PROVENANCE = ["subset", "fraction", "n_train_films", "n_train_patients", "draws", "data_set", "split", "n_test"]
PROVENANCE += ["n_test_patients", "seed", "interval_covers", "metric", "value", "low", "high"]
METRICS = ["accuracy", "balanced_accuracy", "macro_f1", "auroc", "auprc"]
METRICS += [f"{area}/{name}" for area in ("auroc", "auprc") for name in LABELS]


def rewrite(store: Store, path: Path, **columns: np.ndarray) -> Store:
    """The small store with a column "marked", and with these columns instead of its own."""
    films = []
    rows = store.films.assign(marked=0.0).assign(**columns).to_dict("records")
    for row, jpeg in zip(rows, store.read_jpegs(range(len(store))), strict=True):
        labels = {name: float(row[name]) for name in (*LABELS, "marked") if not math.isnan(row[name])}
        record = ImageRecord(row["uid"], row["patient"], split=row["split"], labels=labels)
        films.append(StoredFilm(record, jpeg, row["height"], row["width"]))
    write_store(path, films, [*LABELS, "marked"], "small pictures")
    return open_store(path)


@pytest.fixture(scope="module")
def marked(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return rewrite(store, tmp_path_factory.mktemp("store") / "marked.lance", marked=PUBLISHED)


def compare(store: Store, **options: object) -> Comparison:
    settings: dict[str, object] = {"fractions": (0.2, 1.0), "draws": 3, "replicates": 50}
    return evaluate(store, ENCODERS, LABELS, **(settings | options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def comparison(marked: Store) -> Comparison:
    return compare(marked, film_counts=(12,), first_draw="marked")


def test_every_row_says_where_its_number_comes_from(comparison: Comparison, marked: Store) -> None:
    table = comparison.table()
    assert len(table) == 2 * 4 * 9 and table["encoder"].unique().tolist() == [*comparison.encoders] == [*ENCODERS]
    assert not table.drop(columns=["value", "low", "high"]).isna().any().any()
    assert set(table["split"]) == {"test"} and set(table["data_set"]) == {"small pictures"}
    assert set(table["n_test"]) == {17} and set(table["n_test_patients"]) == {9}
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()
    subsets = table.drop_duplicates("subset").set_index("subset")
    films = np.flatnonzero(PUBLISHED & (marked.films["split"] == "train") & marked.films["stripes"].notna())
    assert tuple(subsets.index) == comparison.subsets == (f"{len(films)} films", "20 %", "12 films", "100 %")
    assert subsets["draws"].tolist() == [3, 3, 3, 1]
    assert subsets["n_train_films"].tolist() == pytest.approx([len(films), 12, 12, 56])
    assert subsets["fraction"].tolist() == pytest.approx([len(films) / 56, 12 / 56, 12 / 56, 1.0])
    assert subsets["interval_covers"].tolist() == [*["patients and draws"] * 3, "patients"]


def test_differences_are_to_any_reference_and_turn_round_with_it(comparison: Comparison) -> None:
    one, other = (comparison.differences(name).set_index(["subset", "metric"]) for name in ("alpha", "zeta"))
    assert set(one["encoder"]) == {"zeta"} and len(one) == 4 * 9
    table = comparison.table().query("metric == 'auroc' and subset == '100 %'").set_index("encoder")["value"]
    assert one.loc[("100 %", "auroc"), "value"] == pytest.approx(table["zeta"] - table["alpha"]) != 0
    assert one["value"].to_dict() == pytest.approx((-other["value"]).to_dict())
    assert one["low"].to_dict() == pytest.approx((-other["high"]).to_dict())
    assert (one["p_holm"] >= one["p"]).all() and (one["p_holm"] > one["p"]).any()


def test_an_encoder_does_not_differ_from_itself_and_has_no_difference_alone(store: Store) -> None:
    twins = evaluate(store, {"one": "pixels:4", "other": "pixels:4"}, fractions=(0.2,), draws=2, replicates=50)
    assert set(twins.differences("one")["p"]) == {1.0}
    alone = evaluate(store, ["pixels:4"], fractions=(1.0,), replicates=10, evaluate_on="val")
    assert alone.encoders == ("pixels:4",) and alone.differences("pixels:4").empty


def test_the_markdown_table_has_a_row_an_encoder_and_says_what_it_shows(comparison: Comparison) -> None:
    caption, _, head, rule, zeta, alpha = comparison.as_markdown("accuracy").splitlines()
    assert "small pictures, test split: 17 films of 9 patients" in caption and "seed 0" in caption
    assert head.endswith("| 20 % (12 films, 3 draws) | 12 films (12 films, 3 draws) | 100 % (56 films, 1 draw) |")
    assert rule.count("---") == 5
    row = comparison.table().query("encoder == 'zeta' and subset == '20 %' and metric == 'accuracy'").iloc[0]
    assert f"| {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}] |" in zeta
    assert zeta.startswith("| zeta |") and alpha.startswith("| alpha |")


def test_test_films_choose_nothing(store: Store, marked: Store, tmp_path: Path) -> None:
    test = store.films["split"] == "test"
    other = rewrite(
        store, tmp_path / "other.lance",
        stripes=store.films["stripes"].where(~test, store.films["spots"]),
        spots=store.films["spots"].where(~test, store.films["stripes"]),
    )  # fmt: skip
    before, after = compare(marked), compare(other)
    assert before.table()["value"].tolist() != after.table()["value"].tolist()
    for one, its_twin in zip(before.results.sets, after.results.sets, strict=True):
        assert (one.encoder, one.subset, one.draw) == (its_twin.encoder, its_twin.subset, its_twin.draw)
        assert np.array_equal(one.test_MC, its_twin.test_MC)


def test_validation_films_can_be_scored_instead_and_test_films_are_not_needed(store: Store, tmp_path: Path) -> None:
    split = store.films["split"]
    found = compare(store, evaluate_on="val")
    assert found.split == "val" and set(found.table()["split"]) == {"val"}
    known = store.films[(split == "val") & store.films["stripes"].notna()]
    assert found.results.tasks["evaluate"].test.uid_M.tolist() == known["uid"].tolist()
    without = rewrite(store, tmp_path / "without.lance", split=split.replace("test", "val"))
    assert set(compare(without, evaluate_on="val").table()["n_test"]) == {len(known) + 17}


def test_an_executor_changes_nothing_in_the_numbers(marked: Store, comparison: Comparison) -> None:
    seen: list[tuple[str, int, int]] = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        options = {"executor": executor, "on_progress": lambda *stage: seen.append(stage)}
        pooled = compare(marked, film_counts=(12,), first_draw="marked", **options)
        pd.testing.assert_frame_equal(pooled.table(), comparison.table())
        pd.testing.assert_frame_equal(pooled.draw_table(), comparison.draw_table())
        assert [stage for stage in seen if stage[0] == "probe"] == [("probe", done, 20) for done in range(21)]
        with pytest.raises(UsageError, match="the bootstrap needs at least one replicate"):
            compare(marked, replicates=0, executor=executor)


def test_findings_are_compared_with_unknown_labels(store: Store, tmp_path: Path) -> None:
    number_N, spots_N = np.arange(96), store.films["spots"].to_numpy(float)
    finding_N = np.where(number_N % 5 == 1, 1.0, np.where(number_N % 3 == 0, np.nan, spots_N))
    found = compare(rewrite(store, tmp_path / "unknown.lance", spots=finding_N), fractions=(1.0,))
    assert found.table().query("encoder == 'zeta'")["metric"].tolist() == ["auroc", "auprc", *METRICS[5:]]
    value = found.table().set_index(["encoder", "metric"])["value"]
    assert value["zeta", "auroc"] > value["alpha", "auroc"] + 0.1


def test_what_a_probe_could_not_learn_is_noted_with_its_draw(store: Store, tmp_path: Path) -> None:
    single = rewrite(store, tmp_path / "single.lance", marked=store.films["stripes"] == 1)
    found = compare(single, fractions=(), draws=1, first_draw="marked").draw_table()
    assert (found["notes"].str.contains("spots: no training film")).all()
    assert found["auroc"].tolist() == [0.5, 0.5]
    assert all(math.isnan(strength) for strength in found["strength"])


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"split": np.full(96, "train")}, {}, "new.lance has no labelled film in its test split"),
        ({"split": np.full(96, "test")}, {}, "new.lance has no labelled film in its train split"),
        ({"patient": np.full(96, "same")}, {}, "a patient of new.lance stands in two splits"),
        ({}, {"evaluate_on": "train"}, "val or test"),
        ({}, {"draws": 0}, "at least one draw"),
        ({}, {"replicates": 0}, "at least one replicate"),
        ({}, {"first_draw": "marked"}, "column 'marked' of new.lance marks no labelled film of the train split"),
        ({}, {"first_draw": "one_percent"}, "new.lance has no column 'one_percent'; it has stripes, spots, marked"),
    ],
)
def test_unfair_or_impossible_comparisons_are_refused(
    columns: dict[str, np.ndarray], options: dict[str, object], message: str, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        compare(rewrite(store, tmp_path / "new.lance", **columns), **options)


def test_unknown_names_are_refused(store: Store, comparison: Comparison) -> None:
    with pytest.raises(UsageError, match="no encoder named 'chess'"):
        comparison.differences("chess")
    with pytest.raises(UsageError, match="no metric named 'f2'"):
        comparison.as_markdown("f2")
    with pytest.raises(UsageError, match="at least one encoder"):
        evaluate(store, [])


def test_an_encoder_that_has_diverged_is_refused_and_no_cell_stays(
    store: Store, tiny_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    broken = replace(tiny_encoder, module=copy.deepcopy(tiny_encoder.module))
    for weight in broken.module.parameters():
        weight.data.fill_(math.nan)
    with pytest.raises(UsageError, match="features hold NaN or infinity: the encoder has diverged"):
        evaluate(store, {"broken": broken})
    assert list(tmp_path.iterdir()) == []


def test_pre_training_on_scored_films_is_said_and_every_stage_is_shown(store: Store, tiny_encoder: Encoder) -> None:
    test_uids = store.films.loc[store.films["split"] == "test", "uid"].tolist()
    seen = replace(tiny_encoder, read_uids=lambda: frozenset(test_uids[:2]))
    stages: list[tuple[str, int, int]] = []
    comparison = evaluate(
        store, {"ours": seen, "pixels": "pixels:12"}, fractions=(0.5, 1.0), draws=2, replicates=10,
        on_progress=lambda *stage: stages.append(stage),
    )  # fmt: skip
    assert comparison.notes == ("ours was pre-trained, without labels, on 2 of these 17 films.",)
    assert comparison.as_markdown().endswith(f"\n\n{comparison.notes[0]}\n")
    assert stages == [
        *[(f"embed {name}", done, 90) for name in ("ours", "pixels") for done in (64, 90)],
        *[("probe", done, 6) for done in range(7)],
        *[("bootstrap", done, 4) for done in range(5)],
    ]


def test_a_comparison_becomes_tables_and_a_page_that_agree(comparison: Comparison, tmp_path: Path) -> None:
    page = write_comparison(comparison, tmp_path / "result", "alpha", "chess-cxr evaluate --seed 0")
    assert page == tmp_path / "result" / "report.html"
    tables = {path.stem: pd.read_csv(path) for path in page.parent.glob("*.csv")}
    assert set(tables) == {"results", "draws", "differences"}
    assert {path.name for path in page.parent.iterdir()} == {*(f"{n}.csv" for n in tables), "table.md", page.name}
    row = tables["results"].query("encoder == 'zeta' and subset == '20 %' and metric == 'accuracy'").iloc[0]
    cell = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    text = page.read_text()
    assert f"<td>{cell}</td>" in text and cell in (page.parent / "table.md").read_text()
    assert "17 films of 9 patients" in text and "chess-cxr evaluate --seed 0" in text and "20 % · 12 films" in text
    assert tables["results"].columns.tolist() == ["encoder", *PROVENANCE, "level", "replicates", "undefined"]
    p_values = ["p", "p_holm", "level", "replicates", "undefined"]
    assert tables["differences"].columns.tolist() == ["encoder", "reference", *PROVENANCE, *p_values]
    assert set(tables["differences"]["reference"]) == {"alpha"}
    probe = ["encoder", "subset", "draw", "seed", "n_train_films", "strength"]
    assert tables["draws"].columns.tolist() == [*probe, *METRICS, "notes"]
    means = tables["draws"].groupby(["encoder", "subset"])["auroc"].mean().to_dict()
    values = tables["results"].query("metric == 'auroc'").set_index(["encoder", "subset"])["value"].to_dict()
    assert len(tables["draws"]) == 2 * 10 and means == pytest.approx(values)


def test_nothing_is_overwritten_and_nothing_half_written(comparison: Comparison, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        write_comparison(comparison, tmp_path, "alpha", "")
    with pytest.raises(UsageError, match="no encoder named 'beta'"):
        write_comparison(comparison, tmp_path / "new", "beta", "")
    with pytest.raises(UnicodeEncodeError):
        write_comparison(comparison, tmp_path / "new", "alpha", "\ud800")
    assert list(tmp_path.iterdir()) == []
