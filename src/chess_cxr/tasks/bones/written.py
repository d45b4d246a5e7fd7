"""Write a bone-suppressed film in a child process, without the networks, which take ten seconds to import."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chess_cxr.derive.film import write_derived_film


def write_suppressed_film(location: Path | str, change_HW: np.ndarray, out: Path, text: str, model: str) -> Path:
    """Write a film with `change_HW` added; arguments and errors as for `write_derived_film`."""
    return write_derived_film(location, change_HW, out, kind="bone-suppressed", text=text, model=model)
