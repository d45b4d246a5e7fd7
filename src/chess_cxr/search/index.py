"""An index of an archive's features, for more films than memory or patience hold: approximate, its recall measured.

It stands beside the store as a Lance table of unit vectors with an index of inverted lists of bytes (IVF_SQ).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from chess_cxr.encoders.film_features import FilmEncoder
from chess_cxr.evaluation.neighbours import make_unit
from chess_cxr.files.lance_errors import explain_damage, explain_errors
from chess_cxr.files.locations import is_url, remove_folder
from chess_cxr.records import UsageError
from chess_cxr.search.archive import Archive, find_largest, read_archive
from chess_cxr.store import Store, is_store

INDEX_FROM = 1_000_000  # films from which a search takes the index by itself
ROWS_AT_ONCE = 65_536
PROBES, REFINE = 32, 4  # lists that a search reads; candidates for each wanted film that are compared exactly
QUERIES, AT = 200, 10  # of the measured recall
PLACES = "chess_cxr_index"


@dataclass(frozen=True)
class Index:
    """An index open for searching.  recall: measured share of the ten exact nearest films that it finds."""

    store: Store
    table: Any
    location: Path | str
    mean_D: np.ndarray
    recall: float
    queries: int

    def find_nearest(
        self, feature_D: np.ndarray, count: int, rows: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of the nearest films and their cosines, nearest first; rows: must be None, for all."""
        if rows is not None:
            raise ValueError("an index searches all films")
        unit_D = make_unit(feature_D - self.mean_D).astype(np.float32)
        return search_table(self.table, self.location, unit_D, count)

    def tell(self) -> str:
        """Return what the index was measured to find."""
        return (
            f"index: recall@{AT} {self.recall:.3f} on {self.queries} stored films; without --index the search is exact"
        )


def choose_archive(store: Store, encoder: FilmEncoder, name: str, index: bool, chosen: bool) -> Archive | Index:
    """Open the index of a store if it is asked for, or if there are many films; else read the features.

    chosen: whether only chosen films are searched, which an index cannot.
    """
    if index or (len(store) > INDEX_FROM and not chosen and is_store(find_index(store, encoder.key))):
        return open_index(store, encoder.key)
    return read_archive(store, encoder, name)


def search_table(table: Any, location: Path | str, unit_D: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows nearest to a unit vector, and their cosines."""
    nearest = {"column": "unit", "q": unit_D, "k": count, "nprobes": PROBES, "refine_factor": REFINE}
    with explain_damage(location):
        found = table.to_table(columns=["row", "_distance"], nearest=nearest)
    return found["row"].to_numpy(), (1 - found["_distance"].to_numpy()).astype(np.float32)


def write_index(archive: Archive, key: str, seed: int = 0) -> Index:
    """Write the index of an archive beside its store, in place of an older one, and measure its recall."""
    location = find_index(archive.store, key)
    growing = f"{location}.partial" if is_url(location) else Path(f"{location}.partial")
    remove_folder(growing)
    with explain_errors(location):
        table = build_table(archive.unit_ND, growing)
        recall, queries = measure_recall(table, growing, archive.unit_ND, seed)
        told = {"mean": archive.mean_D.tolist(), "recall": recall, "queries": queries, "films": len(archive.unit_ND)}
        table.update_config({PLACES: json.dumps(told)})
    if isinstance(growing, Path):
        remove_folder(location)
        shutil.move(growing, location)
    return open_index(archive.store, key)


def build_table(unit_ND: np.ndarray, location: Path | str) -> Any:
    """Write unit vectors as a Lance table with an index."""
    films, width = unit_ND.shape
    schema = pa.schema([pa.field("row", pa.int64()), pa.field("unit", pa.list_(pa.float32(), width))])

    def list_batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, films, ROWS_AT_ONCE):
            part = np.ascontiguousarray(unit_ND[start : start + ROWS_AT_ONCE])
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), width)
            yield pa.record_batch([pa.array(np.arange(start, start + len(part))), vectors], schema=schema)

    table = lance.write_dataset(pa.RecordBatchReader.from_batches(schema, list_batches()), str(location), schema=schema)
    lists = max(1, min(4096, round(films**0.5)))
    table.create_index("unit", "IVF_SQ", metric="cosine", num_partitions=lists)
    return table


def measure_recall(
    table: Any, location: Path | str, unit_ND: np.ndarray, seed: int, queries: int = QUERIES
) -> tuple[float, int]:
    """Return the share of the `AT` exact nearest films of some stored films that the index finds, and their number."""
    rows = np.random.default_rng(seed).permutation(len(unit_ND))[:queries]
    found = 0
    for row in rows.tolist():
        exact = find_largest(unit_ND @ unit_ND[row], AT)
        found += len(np.intersect1d(exact, search_table(table, location, unit_ND[row], AT)[0]))
    return found / (len(rows) * min(AT, len(unit_ND))), len(rows)


def find_index(store: Store, key: str) -> Path | str:
    """Return the place of the index of a store and an encoder, whether it is there or not."""
    place = f"{str(store.location).rstrip('/')}.{key}.index"
    return place if is_url(store.location) else Path(place)


def open_index(store: Store, key: str) -> Index:
    """Open the index beside a store; raises `UsageError` with the command if there is none of these films."""
    location = find_index(store, key)
    try:
        table = lance.dataset(str(location))
        told = json.loads(table.config()[PLACES])
    except (ValueError, OSError, KeyError):
        told = {}
    if told.get("films") != len(store):
        command = f"chess-cxr embed ENCODER {store.location} --index"
        raise UsageError(f"{store.path.name} has no index for this encoder; write it with: {command}")
    return Index(store, table, location, np.array(told["mean"]), told["recall"], told["queries"])
