"""Print what judged encoders got: mean AUROC by task and label share, one table a head.

usage: python runs/judge_table.py JUDGED/val [--intervals] [--transpose]
       python runs/judge_table.py JUDGED/test --differences   # to the first encoder; shown: p < 0.05 after Holm
"""

import sys
from pathlib import Path

import pandas as pd


def print_table(name: str, heads: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table below its name."""
    lines = [heads, ["---"] * len(heads), *rows]
    print(f"\n{name}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))


def read_aurocs(path: Path) -> pd.DataFrame:
    """Read the AUROCs of summary.csv or differences.csv, with a column that names task and label share."""
    table = pd.read_csv(path).query("metric == 'auroc'")
    return table.assign(column=[f"{row.task}, {row.subset.partition(' (')[0]}" for row in table.itertuples()])


def print_values(folder: Path, intervals: bool, transpose: bool) -> None:
    """Print the values of every encoder, and their mean."""
    for head, part in read_aurocs(folder / "summary.csv").groupby("head", sort=False):
        table = part.pivot_table(index="encoder", columns="column", values="value", sort=False)
        table["mean"] = table.mean(axis=1)
        shown = table.map("{:.3f}".format)
        for row in part.itertuples() if intervals else ():
            shown.loc[row.encoder, row.column] += f" [{row.low:.3f}, {row.high:.3f}]"
        shown = shown.T if transpose else shown
        first = "task" if transpose else "encoder"
        print_table(str(head), [first, *shown.columns], [[str(name), *row] for name, row in shown.iterrows()])


def print_differences(folder: Path) -> None:
    """Print every encoder minus the first, with its interval."""
    for head, part in read_aurocs(folder / "differences.csv").groupby("head", sort=False):
        cells = [
            f"{row.value:+.3f} [{row.low:+.3f}, {row.high:+.3f}]{' (shown)' * (row.p_holm < 0.05)}".replace("-", "−")
            for row in part.itertuples()
        ]
        table = part.assign(cell=cells).pivot(index="column", columns="encoder", values="cell")
        table = table.loc[part["column"].unique(), part["encoder"].unique()]
        heads = ["task", *(f"{name} − {part['reference'].iloc[0]}" for name in table.columns)]
        print_table(str(head), heads, [[str(name), *row] for name, row in table.iterrows()])


if __name__ == "__main__":
    _, folder, *options = sys.argv
    if "--differences" in options:
        print_differences(Path(folder))
    else:
        print_values(Path(folder), "--intervals" in options, "--transpose" in options)
