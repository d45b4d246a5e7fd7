"""Join pool.csv with the label tables of its sets into one table for `chess-cxr ingest`.

usage: python make_pool_table.py DATA OUT.csv

Patients are named by set, so that no two sets share one by accident.  kermany3 keeps its own split; the NIH films
of nih_covid get theirs from the ingest; all other films may be trained on.  A training film that pool.csv calls a
near duplicate of a held-out one is left out.
"""

import sys
from pathlib import Path

import pandas as pd

FINDINGS = ("Atelectasis", "Edema", "Effusion", "Infiltration", "Pneumonia")


def build_pool_table(data: Path) -> pd.DataFrame:
    """Return one row a film: file, patient, split, class, one_percent and five NIH findings."""
    pool = pd.read_csv(data / "pool.csv", dtype=str)
    kermany = pd.read_csv(data / "kermany3/labels.csv").assign(file=lambda t: "kermany3/" + t["file"])
    nih = pd.read_csv(data / "nih_covid/labels.csv").assign(file=lambda t: "nih_covid/" + t["file"])
    nih = nih[nih["class3"] != "covid"]
    table = pool.merge(kermany[["file", "label", "split", "one_percent"]], on="file", how="left")
    table = table.merge(nih[["file", "age", "sex", "view", *FINDINGS]], on="file", how="left")
    is_nih = table["file"].isin(nih["file"])
    table["split"] = table["split"].where(table["split"].notna() | is_nih, "train")
    table["patient"] = (table["set"] + "/" + table["patient"]).where(table["patient"].notna())
    held_out = table["split"].isin(["val", "test"]) | is_nih
    twins = set(table.loc[held_out, "file"]), set(table.loc[held_out, "near_duplicate_of"].dropna())
    leaks = ~held_out & (table["near_duplicate_of"].isin(twins[0]) | table["file"].isin(twins[1]))
    print(f"{len(table)} films, {leaks.sum()} left out as near duplicates of held-out films", file=sys.stderr)
    return table[~leaks].drop(columns="near_duplicate_of")


if __name__ == "__main__":
    build_pool_table(Path(sys.argv[1])).to_csv(sys.argv[2], index=False)
