"""Write and read stores, the data sets on disk.  No other file knows their format.

A store is one Lance table with one row a film: the 8-bit grey JPEG, the fields of `ImageRecord`, two hashes of the
picture, a boolean column for each flag, a float column for each score and label, and a vector column for each encoder
that has embedded the films.  Lance is not fork-safe: read it from threads or spawned processes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import lance
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
from lance.fragment import write_fragments

from chess_cxr.files.lance_errors import Writing, explain_damage, explain_errors
from chess_cxr.files.listing import find_kind
from chess_cxr.files.locations import is_url, remove_folder
from chess_cxr.film_jpeg import decode_stored
from chess_cxr.records import FLAGS, SCORES, ChessError, ImageRecord, UsageError

STORE_VERSION = 3
ROWS_A_BATCH = 256
ROWS_A_SCAN = 65_536
LABEL_PREFIX = "label:"
FLAG_PREFIX = "flag:"
SCORE_PREFIX = "score:"
EMBEDDING_PREFIX = "embedding:"
COMPLETE = "chess_cxr.complete"  # configuration key of the table; a store without it is still being written
WRITER = "chess_cxr.writer"  # configuration key that names the newest writer, which holds the store
LEDGER = "chess_cxr.ledger"  # property of a commit
HASHES = ("pixel_hash", "perceptual_hash")
_TEXT_FIELDS = ("uid", "patient", "study", "view", "sex", "site", "split", "manufacturer")
_NUMBER_FIELDS = ("age_years", "year", "study_day", "spacing_mm")
_OTHER_COLUMNS = ("height", "width", "jpeg", *HASHES)


@dataclass(frozen=True)
class StoredFilm:
    """Encoded film with its record; `jpeg` is 8-bit grey, `height` and `width` are in pixels.

    pixel_hash, perceptual_hash: hashes of the decoded film to find duplicates by, empty if unknown.
    """

    record: ImageRecord
    jpeg: bytes
    height: int
    width: int
    pixel_hash: str = ""
    perceptual_hash: bytes = b""


def name_label_column(name: str) -> str:
    """Return the column of a label, percent-encoded: Lance reads full stops and backticks as syntax."""
    return LABEL_PREFIX + quote(name, safe=" ", errors="surrogatepass").replace(".", "%2E")


def check_label_names(names: Sequence[str]) -> None:
    """Raise `UsageError` for a label that has the name of another column or of another label."""
    own = {*_TEXT_FIELDS, *_NUMBER_FIELDS, *_OTHER_COLUMNS}
    for name in names:
        if not name or name in own or name.startswith((FLAG_PREFIX, SCORE_PREFIX, LABEL_PREFIX)):
            raise UsageError(f"no label can be named {name!r}, the store has a column of that name; rename it")
    if len(set(names)) < len(names):
        raise UsageError("two labels have the same name; rename one")


def is_store(location: Path | str) -> bool:
    """Whether `location` holds a Lance table, complete or not."""
    if not is_url(location):
        return any((Path(location) / "_versions").glob("*.manifest"))
    try:
        return find_kind(f"{location}/_versions") == "folder"
    except OSError as error:
        raise ChessError(f"{location} cannot be reached: {error.strerror or error}") from None


def check_place(location: Path | str) -> None:
    """Raise `UsageError` unless a store can be begun or continued at `location`."""
    if not Path(location).name.isprintable():
        raise UsageError(f"{str(location)!r} has characters in its name that cannot be printed; choose another --out")
    if is_store(location):
        taken = COMPLETE in _open_table(location).config()
    else:
        taken = not is_url(location) and not _is_free(Path(location))
    if taken:
        raise UsageError(f"{location} exists already; choose another --out or remove it")


# ---------------------------------------------------------------- writing


class StoreWriter:
    """Writer of a store that grows by commits; killed at any moment, it leaves exactly what was committed.

    Readers refuse the store until `finish`.  Each commit carries a ledger, a JSON value that the writer needs to
    continue later; films and ledger become visible together.
    """

    def __init__(self, location: Path | str, schema: pa.Schema, dataset: Any) -> None:
        self.location = location
        self._schema = schema
        self._dataset = dataset
        self._token = secrets.token_hex(8)
        with explain_errors(location):
            dataset.update_config({WRITER: self._token})

    def __len__(self) -> int:
        return int(self._dataset.count_rows())

    def read_columns(self, *names: str) -> Iterator[pa.RecordBatch]:
        """Yield columns of the committed films, batch by batch."""
        yield from self._dataset.to_batches(columns=list(names), batch_size=ROWS_A_SCAN)

    def read_ledgers(self) -> Iterator[Any]:
        """Yield the ledger of every commit, oldest first."""
        for version in range(1, self._dataset.version + 1):
            properties = self._dataset.read_transaction(version).transaction_properties
            if LEDGER in properties:
                yield json.loads(properties[LEDGER])

    def append(self, films: Iterable[StoredFilm], build_ledger: Callable[[], Any]) -> int:
        """Commit films, consumed lazily, with the ledger built after the last of them; return their number.

        Raises what `films` raises, OSError ENOSPC on a full disk, `ChessError` if the store cannot be written or
        another writer has taken it over; then none of these films is committed.
        """
        state = Writing()
        batches = pa.RecordBatchReader.from_batches(self._schema, _build_batches(films, self._schema, state))
        with explain_errors(self.location, state):
            transaction = write_fragments(
                batches, self._dataset, self._schema, return_transaction=True, enable_stable_row_ids=False
            )
            self._check_mine()
            transaction.transaction_properties = {LEDGER: json.dumps(build_ledger())}
            self._dataset = lance.LanceDataset.commit(self._dataset, transaction)
        return state.written

    def finish(self) -> None:
        """Make the store visible to readers and delete the remains of killed writers; raises as `append`."""
        with explain_errors(self.location):
            self._check_mine()
            # Remains are deleted first and ledgers, which a continued run needs, last: a kill in between is harmless.
            self._dataset.cleanup_old_versions(older_than=timedelta(days=36_500), delete_unverified=True)
            self._dataset.update_config({COMPLETE: "1", WRITER: None})
            _open_table(self.location).cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)

    def _check_mine(self) -> None:
        """Raise `ChessError` if another writer came later: the newest wins, so a crashed one blocks nobody."""
        if _open_table(self.location).config().get(WRITER) != self._token:
            raise ChessError(f"another ingest has taken over {self.location}; this one stops; nothing is lost")

    def remove(self) -> None:
        """Delete the store, unless another writer has taken it over or finished it."""
        with contextlib.suppress(OSError, ValueError):
            if _open_table(self.location).config().get(WRITER) == self._token:
                remove_folder(self.location)


def begin_store(
    location: Path | str, label_names: Sequence[str], dataset: str, options: Mapping[str, Any] | None = None
) -> StoreWriter:
    """Begin the store at `location`, or continue one that was begun with the same labels, name and `options`.

    options: settings that the store is made with, such as its longest side; JSON values.
    Raises `UsageError` if the place holds a complete store, something else, or a store begun with other settings.
    """
    check_label_names(label_names)
    schema = _build_schema(label_names, dataset, options or {})
    check_place(location)
    if not is_store(location):
        if not is_url(location):
            Path(location).parent.mkdir(parents=True, exist_ok=True)
        try:
            with explain_errors(location):
                empty = pa.RecordBatchReader.from_batches(schema, iter(()))
                created = lance.write_dataset(empty, _name_for_lance(location), schema=schema, mode="create")
            return StoreWriter(location, schema, created)
        except KeyboardInterrupt:
            remove_folder(location)
            raise
    opened = _open_table(location)
    if opened.schema.metadata != schema.metadata:
        raise UsageError(f"{location} was begun with other labels or options; use the same, or remove it to start over")
    return StoreWriter(location, schema, opened)


def write_store(location: Path | str, films: Iterable[StoredFilm], label_names: Sequence[str], dataset: str) -> int:
    """Write a new store, whole or not at all, from films consumed lazily; return their number.

    Raises `UsageError` if `location` exists, `ChessError` on a full disk or without films.
    """
    if is_store(location):
        raise UsageError(f"{location} exists already; choose another --out or remove it")
    writer = begin_store(location, label_names, dataset)
    try:
        written = writer.append(films, dict)
        if not written:
            raise ChessError(f"no film was left to write to {location}")
        writer.finish()
    except BaseException:
        writer.remove()
        raise
    return written


def _build_schema(label_names: Sequence[str], dataset: str, options: Mapping[str, Any]) -> pa.Schema:
    described = {"version": STORE_VERSION, "labels": list(label_names), "dataset": dataset, "options": dict(options)}
    fields = [pa.field(name, pa.string()) for name in _TEXT_FIELDS]
    fields += [pa.field(name, pa.float32()) for name in _NUMBER_FIELDS]
    fields += [pa.field("height", pa.int32()), pa.field("width", pa.int32())]
    fields += [pa.field("pixel_hash", pa.string()), pa.field("perceptual_hash", pa.binary())]
    fields += [pa.field(FLAG_PREFIX + name, pa.bool_()) for name in FLAGS]
    fields += [pa.field(SCORE_PREFIX + name, pa.float32()) for name in SCORES]
    fields += [pa.field(name_label_column(name), pa.float32()) for name in label_names]
    fields.append(pa.field("jpeg", pa.binary()))
    return pa.schema(fields, metadata={"chess_cxr": json.dumps(described)})


def _build_batches(films: Iterable[StoredFilm], schema: pa.Schema, state: Writing) -> Iterator[pa.RecordBatch]:
    """Turn films into record batches; keep in `state` the exception that Lance would wrap in its own."""
    unknown = {name: float("nan") for name in schema.names if name.startswith(LABEL_PREFIX)}
    rows = (unknown | _build_row(film) for film in films)
    try:
        while some := list(itertools.islice(rows, ROWS_A_BATCH)):
            yield pa.RecordBatch.from_pylist(some, schema=schema)
            state.written += len(some)
    except BaseException as error:
        state.error = error
        raise


def _build_row(film: StoredFilm) -> dict[str, Any]:
    record = film.record
    row: dict[str, Any] = {name: getattr(record, name) for name in _TEXT_FIELDS + _NUMBER_FIELDS}
    row |= {name_label_column(name): value for name, value in record.labels.items()}
    row |= {FLAG_PREFIX + name: name in record.flags for name in FLAGS}
    row |= {SCORE_PREFIX + name: record.scores.get(name, float("nan")) for name in SCORES}
    row |= {name: getattr(film, name) for name in HASHES}
    return row | {"jpeg": film.jpeg, "height": film.height, "width": film.width}


def _is_free(path: Path) -> bool:
    """Whether a place holds nothing, or only the remains of a writer that was killed before its first version."""
    if path.is_symlink() or not path.is_dir():
        return not (path.is_symlink() or path.exists())
    names = {child.name for child in path.iterdir()}
    return bool(names) and names <= {"_versions", "_transactions", "data"}


# ---------------------------------------------------------------- reading


class Store:
    """Store open for reading, pinned to one version of its table."""

    def __init__(self, location: Path | str, dataset: Any, described: dict[str, Any]) -> None:
        self.location = location
        self.path = Path(location)  # of a URL, only the name is meaningful
        self.version: int = dataset.version
        self.label_names: list[str] = described["labels"]
        self.dataset_name: str = described["dataset"]
        self.options: dict[str, Any] = described.get("options", {})
        self._dataset = dataset

    def __len__(self) -> int:
        return int(self._dataset.count_rows())

    @cached_property
    def films(self) -> pd.DataFrame:
        """All columns but pixels, hashes and embeddings, one row a film in table order; labels have no prefix."""
        names = [name for name in self._dataset.schema.names if name not in ("jpeg", *HASHES)]
        names = [name for name in names if not name.startswith(EMBEDDING_PREFIX)]
        with explain_damage(self.location):
            table: pd.DataFrame = self._dataset.to_table(columns=names).to_pandas()
        return table.rename(columns={name_label_column(name): name for name in self.label_names})

    def read_hashes(self) -> pd.DataFrame:
        """Read the columns `HASHES`, one row a film in table order."""
        with explain_damage(self.location):
            return pd.DataFrame(self._dataset.to_table(columns=list(HASHES)).to_pandas())

    def read_jpegs(self, rows: Sequence[int] | np.ndarray) -> list[bytes]:
        """Read the encoded films at these row numbers, in this order."""
        with explain_damage(self.location):
            column = self._dataset.take(np.asarray(rows, dtype=np.int64).tolist(), columns=["jpeg"])["jpeg"]
        return [value.as_py() for value in column]

    def read_films(self, rows: Sequence[int] | np.ndarray, shortest_side: int = 0) -> list[np.ndarray]:
        """Read and decode the films at these row numbers to uint8 [H, W], in this order."""
        return [decode_stored(jpeg, shortest_side) for jpeg in self.read_jpegs(rows)]

    @property
    def embeddings(self) -> dict[str, str]:
        """Keys of the encoders that have embedded the films, with the names that they were called by."""
        fields = [field for field in self._dataset.schema if field.name.startswith(EMBEDDING_PREFIX)]
        return {f.name.removeprefix(EMBEDDING_PREFIX): (f.metadata or {}).get(b"encoder", b"").decode() for f in fields}

    def read_embedding(self, key: str) -> np.ndarray:
        """Read the features of all films, float32 [N, D] in table order; key: one of `embeddings`."""
        name = EMBEDDING_PREFIX + key
        with explain_damage(self.location):
            column = self._dataset.to_table(columns=[name])[name].combine_chunks()
        feature_ND: np.ndarray = column.flatten().to_numpy().reshape(len(column), -1)
        return feature_ND

    def add_embedding(self, key: str, encoder: str, parts_ND: Iterable[np.ndarray], width: int) -> Store:
        """Add the features of all films, float32 [n, width] part by part, in one commit; return the store with them."""
        vector = pa.list_(pa.float32(), width)
        schema = pa.schema([pa.field(EMBEDDING_PREFIX + key, vector, metadata={"encoder": encoder})])
        columns = (pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), width) for part in parts_ND)
        batches = (pa.record_batch([column], schema=schema) for column in columns)
        with explain_errors(self.location):
            _open_table(self.location).add_columns(pa.RecordBatchReader.from_batches(schema, batches))
        return open_store(self.location)

    def get_rows(self, split: str) -> np.ndarray:
        """Return the row numbers of one split, in table order."""
        return np.flatnonzero(self.films["split"].to_numpy() == split)


def open_store(location: Path | str, version: int | None = None) -> Store:
    """Open the store at `location`, a path or URL, at its newest version or at `version`.

    Raises `UsageError` if there is no store, it is incomplete, or it has another format version.
    """
    if not is_store(location):
        raise UsageError(f"{location} is not a store; make one with: chess-cxr ingest FOLDER --out {location}")
    try:
        dataset = _open_table(location, version)
        described = json.loads(dataset.schema.metadata[b"chess_cxr"])
        written_in = int(described["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{location} is not a readable store ({type(error).__name__}); ingest it again") from None
    if written_in != STORE_VERSION:
        raise UsageError(
            f"{location} has store format {written_in}, this program reads {STORE_VERSION}; ingest it again"
        )
    if COMPLETE not in dataset.config():
        raise UsageError(f"{location} is not complete; run its ingest again, which continues where it stopped")
    return Store(location, dataset, described)


StoreLike = Store | Path | str


def get_store(store: StoreLike) -> Store:
    """Return the store itself, or open the one at this path."""
    return store if isinstance(store, Store) else open_store(store)


def _name_for_lance(location: Path | str) -> str:
    """Return the name of a location for Lance, which would take a path such as "a:b" for a URL."""
    return str(location) if is_url(location) else os.path.abspath(location)


def _open_table(location: Path | str, version: int | None = None) -> Any:
    return lance.dataset(_name_for_lance(location), version=version)
