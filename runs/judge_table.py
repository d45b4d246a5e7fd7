"""Print what a judged encoder got, one row an encoder, one column a task, label share and head: mean AUROC.

usage: python judge_table.py JUDGED/val
"""

import sys
from pathlib import Path

import pandas as pd

summary = pd.read_csv(Path(sys.argv[1]) / "summary.csv").query("metric == 'auroc'")
for head, part in summary.groupby("head", sort=False):
    table = part.pivot_table(index="encoder", columns=["task", "subset"], values="value", sort=False)
    table.columns = [f"{task}, {subset.partition(' (')[0]}" for task, subset in table.columns]
    table["mean"] = table.mean(axis=1)
    print(f"\n{head}\n\n| encoder | {' | '.join(table.columns)} |\n|{' --- |' * (len(table.columns) + 1)}")
    for encoder, row in table.iterrows():
        print(f"| {encoder} | {' | '.join(f'{value:.3f}' for value in row)} |")
