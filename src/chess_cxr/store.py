"""The on-disk data set: writer, reader and sample order.  The only file that knows the format.

A store is one Lance table, one row a film: the 8-bit grey JPEG, the fields of `ImageRecord` and one
float column a label.  Lance is not fork-safe: read it from threads or spawned processes.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import cv2
import lance
import numpy as np
import pandas as pd
import pyarrow as pa
import simplejpeg

from chess_cxr.records import ChessError, ImageRecord, UsageError

STORE_VERSION = 1
JPEG_QUALITY = 95
ROWS_A_BATCH = 256
LABEL_PREFIX = "label:"
_TEXT_FIELDS = ("uid", "patient", "study", "view", "sex", "site", "split")
_NUMBER_FIELDS = ("age_years", "spacing_mm")


@dataclass
class _Writing:
    written: int = 0
    error: BaseException | None = None


@dataclass(frozen=True)
class StoredFilm:
    """One encoded film with its record; `jpeg` is 8-bit grey, `height` and `width` in pixels."""

    record: ImageRecord
    jpeg: bytes
    height: int
    width: int


def encode_film(pixels_HW: np.ndarray, longest_side: int) -> tuple[bytes, int, int]:
    """Encode a film in [0, 1] as 8-bit grey JPEG whose longest side is at most `longest_side`; never enlarged.

    Returns the JPEG bytes, height and width.
    """
    height, width = pixels_HW.shape
    shrink = longest_side / max(height, width)
    if shrink < 1:
        height, width = max(1, round(height * shrink)), max(1, round(width * shrink))
        pixels_HW = cv2.resize(pixels_HW, (width, height), interpolation=cv2.INTER_AREA)
    grey_HW1 = np.rint(np.clip(pixels_HW, 0, 1) * 255).astype(np.uint8)[..., None]
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(grey_HW1), JPEG_QUALITY, colorspace="GRAY")
    return jpeg, height, width


def decode_stored(jpeg: bytes, shortest_side: int = 0) -> np.ndarray:
    """Decode a stored film to uint8 [H, W], bone bright.

    With `shortest_side` the decoder may return the film reduced by 2, 4 or 8 in its own transform, as
    long as no side falls below that many pixels: most of the cost of small networks is saved there.
    """
    grey: np.ndarray = simplejpeg.decode_jpeg(
        jpeg, colorspace="GRAY", min_height=shortest_side, min_width=shortest_side
    )
    return grey[..., 0]


def _build_schema(label_names: Sequence[str], dataset: str) -> pa.Schema:
    described = {"version": STORE_VERSION, "labels": list(label_names), "dataset": dataset}
    fields = [pa.field(name, pa.string()) for name in _TEXT_FIELDS]
    fields += [pa.field(name, pa.float32()) for name in _NUMBER_FIELDS]
    fields += [pa.field("height", pa.int32()), pa.field("width", pa.int32())]
    fields += [pa.field(LABEL_PREFIX + name, pa.float32()) for name in label_names]
    fields.append(pa.field("jpeg", pa.binary()))
    return pa.schema(fields, metadata={"chess_cxr": json.dumps(described)})


def _build_batches(films: Iterable[StoredFilm], schema: pa.Schema, state: _Writing) -> Iterator[pa.RecordBatch]:
    """Turn films into record batches, keeping the exception that Lance would wrap in its own."""
    rows: list[dict[str, Any]] = []
    try:
        for film in films:
            rows.append(_build_row(film))
            if len(rows) == ROWS_A_BATCH:
                yield _build_batch(rows, schema)
                state.written += len(rows)
                rows = []
        if rows:
            yield _build_batch(rows, schema)
            state.written += len(rows)
    except BaseException as error:
        state.error = error
        raise


def _build_row(film: StoredFilm) -> dict[str, Any]:
    record = film.record
    row: dict[str, Any] = {name: getattr(record, name) for name in _TEXT_FIELDS + _NUMBER_FIELDS}
    row |= {LABEL_PREFIX + name: value for name, value in record.labels.items()}
    return row | {"jpeg": film.jpeg, "height": film.height, "width": film.width}


def _build_batch(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    unknown = {name: float("nan") for name in schema.names if name.startswith(LABEL_PREFIX)}
    return pa.RecordBatch.from_pylist([unknown | row for row in rows], schema=schema)


def write_store(path: Path, films: Iterable[StoredFilm], label_names: Sequence[str], dataset: str) -> int:
    """Write a new store at `path` from films consumed lazily; return how many were written.

    Nothing stands at `path` unless all of it was written: the table grows in a hidden folder beside it,
    which takes the name at the end.  Raises `UsageError` if `path` exists, `ChessError` on a full disk.
    """
    if path.exists():
        raise UsageError(f"{path} exists already; choose another --out or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    growing = path.parent / f".{path.name}.partial-{os.getpid()}"
    schema, state = _build_schema(label_names, dataset), _Writing()
    try:
        batches = pa.RecordBatchReader.from_batches(schema, _build_batches(films, schema, state))
        lance.write_dataset(batches, str(growing), schema=schema, mode="create")
        if not state.written:
            raise ChessError(f"no film was left to write to {path}")
        growing.rename(path)
    except OSError as error:
        if state.error:
            raise state.error from None
        if not _is_full_disk(error):
            raise
        raise ChessError(f"no space left for {path}; free some or choose another --out (nothing was kept)") from None
    finally:
        shutil.rmtree(growing, ignore_errors=True)
    return state.written


def _is_full_disk(error: OSError) -> bool:
    """Lance reports a full disk as an OSError that its text alone tells apart."""
    words = ("no space left", "file too large", "quota")
    return error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) or any(w in str(error).lower() for w in words)


class Store:
    """A store open for reading, pinned at one version of its table."""

    def __init__(self, path: Path, dataset: Any, described: dict[str, Any]) -> None:
        self.path = path
        self.version: int = dataset.version
        self.label_names: list[str] = described["labels"]
        self.dataset_name: str = described["dataset"]
        self._dataset = dataset

    def __len__(self) -> int:
        return int(self._dataset.count_rows())

    @cached_property
    def films(self) -> pd.DataFrame:
        """All columns but the pixels, one row a film in table order; labels are named without prefix."""
        names = [name for name in self._dataset.schema.names if name != "jpeg"]
        table: pd.DataFrame = self._dataset.to_table(columns=names).to_pandas()
        return table.rename(columns={LABEL_PREFIX + name: name for name in self.label_names})

    def read_jpegs(self, rows: Sequence[int] | np.ndarray) -> list[bytes]:
        """Read the encoded films at these row numbers, in this order."""
        column = self._dataset.take(np.asarray(rows, dtype=np.int64).tolist(), columns=["jpeg"])["jpeg"]
        return [value.as_py() for value in column]

    def read_films(self, rows: Sequence[int] | np.ndarray, shortest_side: int = 0) -> list[np.ndarray]:
        """Read and decode the films at these row numbers to uint8 [H, W], in this order."""
        return [decode_stored(jpeg, shortest_side) for jpeg in self.read_jpegs(rows)]

    def get_rows(self, split: str) -> np.ndarray:
        """Row numbers of one split, in table order."""
        return np.flatnonzero(self.films["split"].to_numpy() == split)


def open_store(path: Path | str, version: int | None = None) -> Store:
    """Open the store at `path`, at its newest version or the one named.

    Raises `UsageError` where there is no store, or one written in another format version.
    """
    path = Path(path)
    if not (path / "_versions").is_dir():
        raise UsageError(f"{path} is not a store; make one with: chess-cxr ingest FOLDER --out {path}")
    try:
        dataset = lance.dataset(str(path), version=version)
        described = json.loads(dataset.schema.metadata[b"chess_cxr"])
        written_in = int(described["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a readable store ({type(error).__name__}); ingest it again") from None
    if written_in != STORE_VERSION:
        raise UsageError(f"{path} has store format {written_in}, this program reads {STORE_VERSION}; ingest it again")
    return Store(path, dataset, described)


@lru_cache(maxsize=2)
def compute_epoch_order(films: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which one epoch visits `films` films: a pure function of seed and epoch.

    Read-only; the newest two are kept, since drawing 5 million takes longer than a step should.
    """
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(films)
    order.flags.writeable = False
    return order


def compute_batch(films: int, batch: int, step: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which films step `step` sees, and the running position of each in the whole run.

    The run is one endless row of epochs, each a fresh permutation; a batch may straddle two of them, so
    no film is dropped.  The positions seed the views.  Ranks take slices of both.
    """
    position_B = np.arange(step * batch, (step + 1) * batch, dtype=np.int64)
    epoch_B = position_B // films
    film_B = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(epoch_B):
        chosen = epoch_B == epoch
        film_B[chosen] = compute_epoch_order(films, seed, int(epoch))[position_B[chosen] % films]
    return film_B, position_B
