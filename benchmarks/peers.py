"""Packages that benchmarks compare with, of the extra `bench`."""

import sys
from pathlib import Path
from types import ModuleType

from chess_cxr.records import UsageError, import_extra


def import_peer(module: str) -> ModuleType:
    """Import a module of the extra `bench`, or end the script with one line that names the extra."""
    try:
        return import_extra(module, "bench", Path(sys.argv[0]).name)
    except UsageError as error:
        sys.exit(str(error))
