"""Writing a film with a SYNTHETIC nodule in a process of its own, which must not wait for torch to load."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chess_cxr.derived_films import write_derived_film


def write_synthetic_film(location: Path, change_HW: np.ndarray, out: Path, model: str, seed: int) -> Path:
    """Write one film with `change_HW` added, see `write_derived_film`; it says that it is SYNTHETIC."""
    return write_derived_film(location, change_HW, out, kind="synthetic nodule", model=model, seed=seed)
