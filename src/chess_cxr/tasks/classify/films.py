"""Inputs of a classifier's network: pixels, or features that are computed once and cached in files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chess_cxr.encoders.embed import embed
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.files.whole import flush_file
from chess_cxr.records import OnCount
from chess_cxr.store import Store
from chess_cxr.tasks.classify.heads import extract_map
from chess_cxr.tasks.classify.labels import LabelledRows
from chess_cxr.tasks.classify.objective import LabelledBatch, draw_labelled_batch
from chess_cxr.views import ViewConfig

FILMS_AT_ONCE = 64
FILMS_A_FILE = 2048  # a multiple of FILMS_AT_ONCE, so that the files do not decide which films share a batch
VIEWS = ViewConfig(
    crop_area=(0.7, 1.0),
    crop_aspect=(0.9, 1.1),
    rotate_deg=7,
    affine_p=0.5,
    contrast=(-0.2, 0.2),
    brightness=(-0.1, 0.1),
    tone_p=0.8,
)


class PixelFilms:
    """The chosen films of a store as pixels, augmented for training."""

    def __init__(self, encoder: Encoder, store: Store, chosen: LabelledRows, seed: int, device: torch.device) -> None:
        self._contract, self._store, self._chosen = encoder.contract, store, chosen
        self._seed, self._device = seed, device

    def take(self, places: np.ndarray) -> Tensor:
        """Return the films at some places of the chosen rows, float32 [B, C, S, S]."""
        films = self._store.read_films(self._chosen.rows[places])
        film_BCSS = torch.stack([self._contract.prepare(film.astype(np.float32) / 255) for film in films])
        return film_BCSS.to(self._device, memory_format=torch.channels_last)

    def draw(self, places: list[int], positions: list[int]) -> LabelledBatch:
        """Return a training batch of the films at some places, augmented by their running positions."""
        films, views = self._store.read_films(self._chosen.rows[places]), replace(VIEWS, size=self._contract.size)
        target_BL = self._chosen.target_NL[places]
        return draw_labelled_batch(films, target_BL, positions, self._seed, views, self._contract)


class FeatureFilms:
    """The chosen films as features that `cache_features` has written; feature maps stay on the disk."""

    def __init__(self, chosen: LabelledRows, folder: Path, maps: bool, device: torch.device) -> None:
        self._chosen, self._device = chosen, device
        files = [_name_file(folder, start) for start in range(0, len(chosen.rows), FILMS_A_FILE)]
        self._parts = [np.load(file, mmap_mode="r" if maps else None) for file in files]

    def take(self, places: np.ndarray | list[int]) -> Tensor:
        """Return the features of the films at some places of the chosen rows, float32 [B, D] or [B, T, D]."""
        found = np.stack([self._parts[place // FILMS_A_FILE][place % FILMS_A_FILE] for place in places])
        return torch.from_numpy(found.astype(np.float32, copy=False)).to(self._device)

    def draw(self, places: list[int], _positions: list[int]) -> LabelledBatch:
        """Return a training batch of the films at some places."""
        return LabelledBatch(self.take(places), torch.from_numpy(self._chosen.target_NL[places]).float())


def cache_features(
    encoder: Encoder,
    store: Store,
    rows: np.ndarray,
    folder: Path,
    maps: bool,
    on_films: OnCount,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Write the features [N, D] of films, or their last feature maps [N, T, D] as float16, to files in `folder`.

    Each file appears whole or not at all, and existing files are kept.  Ranks share the work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    compute = extract_maps if maps else embed
    for start in range(0, len(rows), FILMS_A_FILE)[rank::world]:
        file, part = _name_file(folder, start), rows[start : start + FILMS_A_FILE]
        if file.exists():
            continue
        growing = file.with_name(f".{file.name}.partial")
        with growing.open("wb") as stream:
            for done in range(0, len(part), FILMS_AT_ONCE):
                feature = np.ascontiguousarray(compute(encoder, store, part[done : done + FILMS_AT_ONCE]))
                if done == 0:
                    shape = (len(part), *feature.shape[1:])
                    header = {"descr": feature.dtype.str, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(stream, header)
                stream.write(feature.data)
                on_films(start + done + len(feature), len(rows))
        flush_file(growing)
        growing.replace(file)


def extract_maps(encoder: Encoder, store: Store, rows: np.ndarray) -> np.ndarray:
    """Return the last feature maps of films, float16 [N, T, D]."""
    encoder.module.eval()
    films = [encoder.contract.prepare(film.astype(np.float32) / 255) for film in store.read_films(rows)]
    film_BCSS = torch.stack(films).to(encoder.device, memory_format=torch.channels_last)
    with torch.inference_mode():
        map_BTD: np.ndarray = extract_map(encoder.module, film_BCSS).half().cpu().numpy()
    return map_BTD


def _name_file(folder: Path, start: int) -> Path:
    return folder / f"{start:09d}.npy"
