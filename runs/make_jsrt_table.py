"""Turn JSRT's table of cases into a table for `chess-cxr ingest`.

usage: python runs/make_jsrt_table.py DATA OUT.csv

Each case is a film of a patient of its own.  Files and patients are named as in make_pool_table.py, so that under the
same key a film has the same hash in both stores.
"""

import sys
from pathlib import Path

import pandas as pd


def build_jsrt_table(data: Path) -> pd.DataFrame:
    """Return one row a film: file, patient, age, sex, view, nodule (1, 0), malignant (1, 0, empty without nodule)."""
    cases = pd.read_csv(data / "jsrt/cases.csv")
    table = pd.DataFrame({"file": "jsrt/" + cases["file"], "patient": "jsrt/" + cases["case"]})
    table["age"], table["sex"], table["view"] = cases["age"], cases["sex"], "PA"
    table["nodule"] = cases["nodule"]
    table["malignant"] = cases["state"].map({"malignant": 1.0, "benign": 0.0})
    return table


if __name__ == "__main__":
    build_jsrt_table(Path(sys.argv[1])).to_csv(sys.argv[2], index=False)
