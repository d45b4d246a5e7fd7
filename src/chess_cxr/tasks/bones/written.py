"""The file of a bone-suppressed film, written by a process that may die of it.

Apart from the networks, which such a process would need ten seconds to import.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chess_cxr.derive.film import write_derived_film


def write_suppressed_film(location: Path | str, change_HW: np.ndarray, out: Path, text: str, model: str) -> Path:
    """Write one film with `change_HW` added; see `write_derived_film`, whose arguments and errors these are."""
    return write_derived_film(location, change_HW, out, kind="bone-suppressed", text=text, model=model)
