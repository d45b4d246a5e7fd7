"""Tables that owners keep beside their films, read as they stand."""

from __future__ import annotations

import csv
import gzip
import warnings
from pathlib import Path

import pandas as pd

from chess_cxr.records import UsageError


def read_table(table: Path) -> pd.DataFrame:
    """Read a CSV, TSV or Parquet file (text may be gzipped); text columns hold every value as it stands.

    Raises `UsageError`, in one line, for a table that is absent, unreadable or without rows.
    """
    if not table.is_file():
        raise UsageError(f"the table {table} does not exist")
    try:
        frame = pd.read_parquet(table) if table.suffix.lower() in (".parquet", ".pq") else _read_text_table(table)
    except UnicodeDecodeError:
        raise UsageError(f"the table {table} is not UTF-8 text; save it as UTF-8") from None
    except (ValueError, OSError, EOFError, csv.Error, pd.errors.ParserWarning) as error:
        raise UsageError(f"the table {table} cannot be read ({type(error).__name__})") from None
    frame.columns = pd.Index([str(name).strip() for name in frame.columns])
    if not len(frame):
        raise UsageError(f"the table {table} has no rows")
    return frame


def _read_text_table(table: Path) -> pd.DataFrame:
    """Read CSV or TSV as text, every value as it stands; a comma at the end of each row is no column."""
    opened = gzip.open if table.suffix.lower() == ".gz" else open
    with opened(table, "rt", encoding="utf-8-sig", newline="") as file:
        head = file.readline()
        tabs = any(table.name.lower().endswith(end) for end in (".tsv", ".tab", ".tsv.gz"))
        separator = "\t" if tabs else ";" if ";" in head and "," not in head else ","
        names = next(csv.reader([head], delimiter=separator), [])
        first = next(csv.reader(file, delimiter=separator), [])
    if len(first) == len(names) + 1 and not first[-1]:
        names.append("")
    with warnings.catch_warnings():
        # Without index_col=False pandas takes the first column as an index where rows are longer than the
        # header; with it, it drops what is too much and warns.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = pd.read_csv(
            table,
            sep=separator,
            header=0,
            names=list(range(len(names))),  # pandas would rename a column that occurs twice
            dtype=str,
            keep_default_na=False,
            index_col=False,
            encoding="utf-8-sig",
        )
    frame.columns = pd.Index(names)
    return frame
