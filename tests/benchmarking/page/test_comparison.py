"""The folder that `evaluate --out` writes."""

from pathlib import Path

import pandas as pd
import pytest

from chess_cxr.benchmarking.comparison import Comparison
from chess_cxr.benchmarking.evaluate import evaluate
from chess_cxr.benchmarking.page.comparison import build_result_table, write_comparison
from chess_cxr.records import UsageError
from chess_cxr.store import Store

PROVENANCE = ["subset", "fraction", "n_train_films", "n_train_patients", "draws", "data_set", "split", "n_test"]
PROVENANCE += ["n_test_patients", "seed", "interval_covers", "metric", "value", "low", "high"]
METRICS = ["accuracy", "balanced_accuracy", "macro_f1", "auroc", "auprc"]
METRICS += [f"{area}/{name}" for area in ("auroc", "auprc") for name in ("stripes", "spots")]


@pytest.fixture(scope="module")
def comparison(store: Store) -> Comparison:
    encoders = {"zeta": "pixels:8", "alpha": "pixels:1"}
    return evaluate(store, encoders, fractions=(0.5, 1.0), draws=2, replicates=50)


def test_a_comparison_becomes_tables_and_a_page_that_agree(comparison: Comparison, tmp_path: Path) -> None:
    page = write_comparison(comparison, tmp_path / "result", "alpha", "chess-cxr evaluate --seed 0")
    assert page == tmp_path / "result" / "report.html"
    names = {path.name for path in page.parent.iterdir()}
    assert names == {"results.csv", "draws.csv", "differences.csv", "table.md", "report.html"}
    files = ("results", "draws", "differences")
    results, draws, differences = (pd.read_csv(page.parent / f"{name}.csv") for name in files)
    row = results.query("encoder == 'zeta' and subset == '100 %' and metric == 'accuracy'").iloc[0]
    cell = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    text = page.read_text()
    assert f"<td>{cell}</td>" in text and cell in (page.parent / "table.md").read_text()
    assert "17 films of 9 patients" in text and "chess-cxr evaluate --seed 0" in text
    assert set(differences["reference"]) == {"alpha"} and len(draws) == 2 * (2 + 1)
    assert results.columns.tolist() == ["encoder", *PROVENANCE, "level", "replicates", "undefined"]
    p_values = ["p", "p_holm", "level", "replicates", "undefined"]
    assert differences.columns.tolist() == ["encoder", "reference", *PROVENANCE, *p_values]
    probe = ["encoder", "subset", "draw", "seed", "n_train_films", "strength"]
    assert draws.columns.tolist() == [*probe, *METRICS, "notes"]


def test_encoders_and_subsets_keep_the_order_they_were_given_in(comparison: Comparison) -> None:
    table = build_result_table(comparison.table(), "accuracy")
    assert table.columns.tolist() == ["encoder", "50 % · 28 films", "100 % · 56 films"]
    assert table["encoder"].tolist() == ["zeta", "alpha"]
    assert list(comparison.table()["encoder"].unique()) == list(comparison.draw_table()["encoder"].unique())


def test_nothing_is_overwritten_and_nothing_half_written(comparison: Comparison, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        write_comparison(comparison, tmp_path, "alpha", "")
    with pytest.raises(UsageError, match="no encoder named 'beta'"):
        write_comparison(comparison, tmp_path / "new", "beta", "")
    with pytest.raises(UnicodeEncodeError):
        write_comparison(comparison, tmp_path / "new", "alpha", "\ud800")
    assert list(tmp_path.iterdir()) == []
