"""A comparison of encoders as files for people and programs: tables, plots, one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chess_cxr.benchmarking.comparison import Comparison, build_result_table
from chess_cxr.files.whole import write_whole_folder
from chess_cxr.report.page import Section, render_page, write_page
from chess_cxr.report.plots import METRIC_NAMES, draw_efficiency_bands

SHOWN_METRICS = ("accuracy", "auroc", "auprc")


def write_comparison(comparison: Comparison, out: Path, reference: str, command: str, synthetic: bool = False) -> Path:
    """Write a comparison's tables (CSV, Markdown) and its page to a new folder, whole or not at all.

    reference: the encoder that differences are taken to.  command: what was typed, for the page.
    Returns the page's path.  Raises UsageError where `out` exists or the reference is unknown.
    """
    with write_whole_folder(out) as growing:
        table = comparison.table()
        metrics = [name for name in SHOWN_METRICS if name in set(table["metric"])]
        table.to_csv(growing / "results.csv", index=False)
        comparison.draw_table().to_csv(growing / "draws.csv", index=False)
        comparison.differences(reference).to_csv(growing / "differences.csv", index=False)
        markdown = "\n".join(comparison.as_markdown(metric) for metric in metrics)
        (growing / "table.md").write_text(f"{markdown}\n    {command}\n", "utf-8")
        sections = build_comparison_sections(comparison, metrics, command)
        page = render_page(f"Encoders compared on {comparison.data_set}", sections, synthetic=synthetic)
        write_page(growing / "report.html", page)
    return out / "report.html"


def build_comparison_sections(comparison: Comparison, metrics: Sequence[str], command: str = "") -> list[Section]:
    """Build the sections of a page that show a comparison: one plot and one table a metric."""
    table = comparison.table()
    return [
        Section(
            heading=f"Linear probe, {METRIC_NAMES.get(metric, metric)}",
            figures=(draw_efficiency_bands(table, metric, list(dict.fromkeys(table["encoder"]))),),
            figure_width=28,
            figure_caption="Mean over label draws; the bands are 95 % intervals over patients and draws.",
            table=build_result_table(
                table[table["metric"] == metric], lambda row: f"{row.subset} · {row.n_train_films:.0f} films"
            ),
            table_caption=" ".join([comparison.caption(metric), *comparison.notes]),
            command=command if metric == metrics[-1] else "",
        )
        for metric in metrics
    ]
