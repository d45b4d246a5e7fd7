"""Lists of hashed uids: which films to take."""

from __future__ import annotations

import re
from pathlib import Path

from chess_cxr.records import UsageError


def read_uid_list(path: Path) -> frozenset[str]:
    """Read the uids of a text or CSV file with one a line, or with a column `uid`; other columns are ignored.

    Raises `UsageError` if the file cannot be read or names no uid.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise UsageError(f"cannot read the list of films {path}: {reason}") from None
    cells = [[cell.strip().strip('"') for cell in re.split(r"[,;\t]", line)] for line in lines if line.strip()]
    place = cells[0].index("uid") if cells and "uid" in cells[0] else 0
    uids = frozenset(row[place] for row in cells if len(row) > place) - {"uid", ""}
    if not uids:
        raise UsageError(f"the list of films {path} names no film")
    return uids
