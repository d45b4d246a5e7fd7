import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chess_cxr.evaluation.compare import Comparison, compare_encoders
from chess_cxr.records import UsageError
from chess_cxr.report.comparison import build_result_table, write_comparison


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 80)
    good = rng.normal(size=(80, 4)) + 2.0 * label[:, None]
    return compare_encoders(
        {"zeta": good, "alpha": rng.normal(size=(80, 4))},
        label,
        ("absent", "present"),
        [f"p{number:02d}" for number in range(80)],
        np.where(np.arange(80) % 4 == 0, "test", "train"),
        data_set="made-up films",
        fractions=(0.5, 1.0),
        draws=2,
        replicates=50,
    )


def test_a_comparison_becomes_tables_and_a_page_that_agree(comparison: Comparison, tmp_path: Path) -> None:
    page = write_comparison(comparison, tmp_path / "result", "alpha", "chess-cxr evaluate --seed 0")
    assert page == tmp_path / "result" / "report.html"
    names = {path.name for path in page.parent.iterdir()}
    assert names == {"results.csv", "draws.csv", "differences.csv", "table.md", "report.html"}
    results = pd.read_csv(page.parent / "results.csv")
    row = results.query("encoder == 'zeta' and subset == '100 %' and metric == 'accuracy'").iloc[0]
    cell = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    text = page.read_text()
    assert f"<td>{cell}</td>" in text and cell in (page.parent / "table.md").read_text()
    assert "20 films of 20 patients" in text and "chess-cxr evaluate --seed 0" in text
    assert set(pd.read_csv(page.parent / "differences.csv")["reference"]) == {"alpha"}
    assert len(pd.read_csv(page.parent / "draws.csv")) == 2 * (2 + 1)


def test_encoders_and_subsets_keep_the_order_they_were_given_in(comparison: Comparison) -> None:
    table = build_result_table(comparison.table(), "accuracy")
    assert table.columns.tolist() == ["encoder", "50 % · 30 films", "100 % · 60 films"]
    assert table["encoder"].tolist() == ["zeta", "alpha"]


def test_nothing_is_overwritten_and_nothing_half_written(comparison: Comparison, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        write_comparison(comparison, tmp_path, "alpha", "")
    with pytest.raises(UsageError, match="no encoder named 'beta'"):
        write_comparison(comparison, tmp_path / "new", "beta", "")
    with pytest.raises(UnicodeEncodeError):
        write_comparison(comparison, tmp_path / "new", "alpha", "\ud800")
    assert list(tmp_path.iterdir()) == []


def test_the_table_as_json_has_a_record_a_number(comparison: Comparison) -> None:
    records = json.loads(comparison.table().to_json(orient="records"))
    assert len(records) == 2 * 2 * 9
