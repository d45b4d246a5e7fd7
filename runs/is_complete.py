"""End with 0 if a store is complete, with 1 if its ingest has not begun or was interrupted.

usage: python runs/is_complete.py STORE
"""

import sys

from chess_cxr.records import UsageError
from chess_cxr.store import open_store


def is_complete(store: str) -> bool:
    """Whether a store can be read."""
    try:
        open_store(store)
    except UsageError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(not is_complete(sys.argv[1]))
