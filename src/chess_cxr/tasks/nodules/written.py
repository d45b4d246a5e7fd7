"""Read and write films for nodule generation in child processes, which must not wait for torch to load."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chess_cxr.decode.decoded import DecodedFilm
from chess_cxr.decode.film import decode_film
from chess_cxr.derive.film import write_derived_film
from chess_cxr.records import UsageError
from chess_cxr.tasks.nodules.masks import read_request_mask


def read_film_and_masks(
    location: Path, mask: Path | None, lung: Path | None
) -> tuple[DecodedFilm, np.ndarray | None, np.ndarray | None]:
    """Read a film and the masks of its nodules and lungs, bool [H, W]; a mask of None stays None."""
    film = decode_film(location)
    shape = (film.pixels.shape[0], film.pixels.shape[1])
    mask_HW = None if mask is None else read_request_mask(mask, shape)
    try:
        lung_HW = None if lung is None else read_request_mask(lung, shape)
    except UsageError as error:
        raise UsageError(str(error).replace("the mask", "the lung mask", 1)) from None
    return film, mask_HW, lung_HW


def write_synthetic_film(location: Path, change_HW: np.ndarray, out: Path, model: str, seed: int) -> Path:
    """Write a film with `change_HW` added (see `write_derived_film`) and declared SYNTHETIC."""
    return write_derived_film(location, change_HW, out, kind="synthetic nodule", model=model, seed=seed)
