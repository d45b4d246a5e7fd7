"""Read a CSV, TSV or Parquet table of bounded size."""

from __future__ import annotations

import csv
import gzip
import io
import warnings
import zlib
from pathlib import Path
from typing import IO, Any, TextIO, cast

import numpy as np
import pandas as pd

from chess_cxr.files.locations import TooLarge, read_location, simplify_location
from chess_cxr.records import UsageError

MAX_TABLE_BYTES = 2 << 30  # of the file, and of its inflated text; public data sets have tables of less than 1 GB
MAX_HEADER_CHARACTERS = 1 << 20


def read_table(table: Path | str) -> pd.DataFrame:
    """Read a CSV, TSV or Parquet file or object (text may be gzipped); text tables keep every value literally.

    Raises `UsageError` for a table that is missing, unreadable, larger than 2 GiB (inflated text too) or without rows.
    """
    table = simplify_location(table)
    if str(table).lower().endswith((".xlsx", ".xls", ".ods")):
        raise UsageError(f"the table {table} is a spreadsheet; save it as CSV (UTF-8)")
    try:
        if isinstance(table, Path) and table.is_dir():
            raise UsageError(f"the table {table} is a folder; name the file")
        if isinstance(table, Path) and not table.is_file():
            raise FileNotFoundError
        if isinstance(table, Path) and table.stat().st_size > MAX_TABLE_BYTES:
            raise TooLarge
        content = table if isinstance(table, Path) else io.BytesIO(read_location(table, MAX_TABLE_BYTES))
        name = str(table).lower()
        if name.endswith((".parquet", ".pq")):
            frame = pd.read_parquet(content, dtype_backend="numpy_nullable")
        else:
            frame = _read_text_table(content, name)
    except FileNotFoundError:
        raise UsageError(f"the table {table} does not exist") from None
    except PermissionError:
        raise UsageError(f"no permission to read the table {table}") from None
    except pd.errors.EmptyDataError:
        raise UsageError(f"the table {table} is empty") from None
    except UnicodeDecodeError:
        raise UsageError(f"the table {table} is not UTF-8 text; save it as UTF-8") from None
    except TooLarge:
        raise UsageError(f"the table {table} has more than {MAX_TABLE_BYTES >> 20} MiB; divide it") from None
    except pd.errors.ParserWarning:
        raise UsageError(
            f"the table {table} has rows with more cells than its header; quote cells with commas"
        ) from None
    except pd.errors.ParserError as error:
        reason = str(error).rpartition("C error: ")[2].strip()  # tells numbers of rows and cells alone
        raise UsageError(f"the table {table} cannot be divided into rows and cells: {reason[:200]}") from None
    except (EOFError, zlib.error):
        raise UsageError(f"the table {table} is cut off or damaged; copy it again") from None
    except UsageError:
        raise
    except (ValueError, OSError, MemoryError, csv.Error) as error:
        raise UsageError(f"the table {table} cannot be read ({type(error).__name__})") from None
    frame.columns = pd.Index([str(name).strip() for name in frame.columns])
    if not len(frame):
        raise UsageError(f"the table {table} has no rows")
    return frame


def _read_text_table(content: Path | io.BytesIO, name: str) -> pd.DataFrame:
    """Read CSV or TSV as literal text; a comma at the end of each row is no column."""
    with _open_text(content, name) as file:
        head = file.readline(MAX_HEADER_CHARACTERS)
        tabs = name.endswith((".tsv", ".tab", ".tsv.gz"))
        separator = "\t" if tabs else ";" if ";" in head and "," not in head else ","
        names = next(csv.reader([head], delimiter=separator), [])
        first = next(csv.reader(iter(lambda: file.readline(MAX_HEADER_CHARACTERS), ""), delimiter=separator), [])
    if len(first) == len(names) + 1 and not first[-1]:
        names.append("")
    with _open_text(content, name) as file, warnings.catch_warnings():
        # If rows are longer than the header, pandas takes the first column as an index; with index_col=False it warns.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = pd.read_csv(
            file,
            sep=separator,
            header=0,
            names=list(range(len(names))),  # pandas would rename a repeated column
            dtype=str,
            keep_default_na=False,
            index_col=False,
        )
    frame.columns = pd.Index(names)
    filled = np.flatnonzero((frame != "").any(axis=1).to_numpy())
    return frame.iloc[: int(filled[-1]) + 1 if len(filled) else 0]  # spreadsheets write empty rows at the end


def _open_text(content: Path | io.BytesIO, name: str) -> TextIO:
    """Open a table as text; reading raises `TooLarge` after `MAX_TABLE_BYTES`."""
    if isinstance(content, io.BytesIO):
        content = io.BytesIO(content.getbuffer())  # can be read twice, and closed
    bounded = io.BufferedReader(_Bounded(_open_bytes(content, name), MAX_TABLE_BYTES), 1 << 16)
    return io.TextIOWrapper(bounded, encoding="utf-8-sig", newline="")


def _open_bytes(content: Path | io.BytesIO, name: str) -> IO[bytes]:
    if name.endswith(".gz"):
        return cast(IO[bytes], gzip.open(content, "rb"))
    return content.open("rb") if isinstance(content, Path) else content


class _Bounded(io.RawIOBase):
    """Stream that raises `TooLarge` after `most` bytes."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file, self._left = file, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._file.read(len(buffer))
        self._left -= len(part)
        if self._left < 0:
            raise TooLarge
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()
