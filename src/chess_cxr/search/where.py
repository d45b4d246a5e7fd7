"""Choose films by a condition on their columns, such as "age_years > 60 and Effusion = 1"."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing

import numpy as np
import pandas as pd

from chess_cxr.records import UsageError

_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}
_PARTS = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|\w+""")


def select_rows(films: pd.DataFrame, where: str) -> np.ndarray:
    """Return the numbers of the films that meet a condition in SQL; unknown values meet none.

    Names of columns with other signs than letters, digits and _ stand in double quotes, texts in single quotes.
    Raises `UsageError` for a condition that cannot be read, naming the columns if one does not exist.
    """
    words = _PARTS.findall(where)
    named = {word.strip('"`[]').lower() for word in words if not word.startswith("'")}
    columns = [name for name in films.columns if name.lower() in named]
    known = {name.lower() for name in films.columns}
    for word in words:
        if word.startswith(('"', "`", "[")) and word.strip('"`[]').lower() not in known:  # SQLite takes it for a text
            raise UsageError(f"--where: {_list_columns(films, word)}; texts stand in single quotes")
    with closing(sqlite3.connect(":memory:")) as base:
        try:
            base.execute(f"create table films ({', '.join(map(_quote, [*columns, 'row number']))})")
            table = films[columns].astype(object).where(films[columns].notna(), None)
            marks = ", ".join("?" * (len(columns) + 1))
            values = zip(*(table[name] for name in columns), range(len(films)), strict=True)
            rows = (tuple(map(_simplify, row)) for row in values)
            base.executemany(f"insert into films values ({marks})", rows)
            base.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY)
            found = base.execute(f'select "row number" from films where ({where}\n)').fetchall()
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise UsageError(f"--where: {_explain(str(error), films)}") from None
    return np.array([row for (row,) in found], np.int64)


def _simplify(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _explain(error: str, films: pd.DataFrame) -> str:
    missing = error.partition("no such column: ")[2]
    return _list_columns(films, missing) if missing else error


def _list_columns(films: pd.DataFrame, missing: str) -> str:
    return f"there is no column {missing}; there are {', '.join(map(str, films.columns))}"
