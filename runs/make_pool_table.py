"""Join a pool of films with the label tables of its sets into one table for `chess-cxr ingest`.

usage: python runs/make_pool_table.py DATA OUT.csv [pool_wide.csv]

Without the last argument the pool is pool.csv.  Patients are named by set, so that no two sets share one by accident;
only NIH patients are named alike in nih_covid and nih_adult, where some of them have films in both.  kermany3,
nih_adult and tuberculosis keep their own splits, and the NIH films of nih_covid get theirs from the ingest, except
those of patients that nih_adult trains on.  In pool_wide.csv jsrt is held out as a whole (split test), since nodules
and bones are tested on it.  All other films may be trained on.  A training film that the pool calls a near duplicate of
a held-out one is left out.

Columns of a wide pool that are made here: female and aged_50 (0/1) of the films in nih_adult, and nodule_or_mass.
"""

import sys
from pathlib import Path

import pandas as pd

FINDINGS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia")
FINDINGS += ("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax", "No_Finding")
PATIENT = ("age", "sex", "view")


def build_pool_table(data: Path, name: str = "pool.csv") -> pd.DataFrame:
    """Return one row a film: file, set, patient, age, sex, view, split and labels."""
    pool = pd.read_csv(data / name, dtype=str)
    wide = "nih_adult" in set(pool["set"])
    kermany, nih = read_labels(data, "kermany3"), read_labels(data, "nih_covid")
    nih = nih[nih["class3"] != "covid"]
    table = pool.merge(kermany[["file", "label", "split", "one_percent"]], on="file", how="left")
    from_ingest = table["file"].isin(nih["file"])
    if wide:
        adults, tuberculosis = read_labels(data, "nih_adult"), read_labels(data, "tuberculosis")
        trained = set(adults.loc[adults["split"] == "train", "patient"])
        from_ingest &= ~table["patient"].isin(trained)
        adults["female"] = (adults["sex"] == "F").astype(int)
        adults["aged_50"] = (adults["age"] >= 50).astype(int)
        adults["nodule_or_mass"] = adults[["Nodule", "Mass"]].max(axis=1)
        nih = pd.concat([nih, adults])
        table = table.merge(tuberculosis[["file", "tuberculosis"]], on="file", how="left")
        own = pd.concat([adults, tuberculosis]).set_index("file")["split"]
        table["split"] = table["split"].fillna(table["file"].map(own)).mask(table["set"] == "jsrt", "test")
    found = [column for column in (*FINDINGS, "female", "aged_50", "nodule_or_mass") if column in nih]
    table = table.merge(nih[["file", *PATIENT, *found]], on="file", how="left")
    table["split"] = table["split"].where(table["split"].notna() | from_ingest, "train")
    named = table["set"].replace("nih_adult", "nih_covid") + "/" + table["patient"]
    table["patient"] = named.where(table["patient"].notna())
    held_out = table["split"].isin(["val", "test"]) | from_ingest
    twins = set(table.loc[held_out, "file"]), set(table.loc[held_out, "near_duplicate_of"].dropna())
    leaks = ~held_out & (table["near_duplicate_of"].isin(twins[0]) | table["file"].isin(twins[1]))
    print(f"{len(table)} films, {leaks.sum()} left out as near duplicates of held-out films", file=sys.stderr)
    return table[~leaks].drop(columns="near_duplicate_of")


def read_labels(data: Path, name: str) -> pd.DataFrame:
    """Read the labels of a set, its files named as in the pool."""
    return pd.read_csv(data / name / "labels.csv").assign(file=lambda table: f"{name}/" + table["file"])


if __name__ == "__main__":
    build_pool_table(Path(sys.argv[1]), *sys.argv[3:]).to_csv(sys.argv[2], index=False)
