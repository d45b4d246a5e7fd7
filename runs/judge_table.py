"""Print what a judged encoder got, one row an encoder, one column a task, label share and head: mean AUROC.

usage: python judge_table.py JUDGED/val [--intervals] [--transpose]
"""

import sys
from pathlib import Path

import pandas as pd

folder, *options = sys.argv[1:]
summary = pd.read_csv(Path(folder) / "summary.csv").query("metric == 'auroc'")
summary["column"] = [f"{row.task}, {row.subset.partition(' (')[0]}" for row in summary.itertuples()]
for head, part in summary.groupby("head", sort=False):
    table = part.pivot_table(index="encoder", columns="column", values="value", sort=False)
    table["mean"] = table.mean(axis=1)
    shown = table.map("{:.3f}".format)
    if "--intervals" in options:
        for row in part.itertuples():
            shown.loc[row.encoder, row.column] += f" [{row.low:.3f}, {row.high:.3f}]"
    shown = shown.T if "--transpose" in options else shown
    first = "task" if "--transpose" in options else "encoder"
    print(f"\n{head}\n\n| {first} | {' | '.join(shown.columns)} |\n|{' --- |' * (len(shown.columns) + 1)}")
    for name, row in shown.iterrows():
        print(f"| {name} | {' | '.join(row)} |")
