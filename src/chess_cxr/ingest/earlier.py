"""Read what earlier runs of an ingest committed, and check that the films are still listed as they were."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from chess_cxr.deidentify.identity import HASH_CHARACTERS, hash_id
from chess_cxr.records import SPLITS, SourceFilm, UsageError
from chess_cxr.store import StoreWriter

PACKED = np.dtype(f"S{HASH_CHARACTERS // 2 + 1}")
LISTED_BITS = 4 * HASH_CHARACTERS


@dataclass(frozen=True)
class LeftOut:
    """Contents of all ledgers.

    films: uid and reason of each film left out.  patients_unknown: number of stored films that name no patient.
    listed: sum of `fingerprint_film` over all films done.
    """

    films: list[tuple[str, str]]
    patients_unknown: int
    listed: int


@dataclass(frozen=True)
class Earlier:
    """Films that are done.

    uids: of films stored or left out, packed and sorted.  patients: of stored films, packed and sorted.
    split_of_patient: their splits, as indices of `SPLITS`.  listed: as in `LeftOut`.
    """

    uids: np.ndarray
    patients: np.ndarray
    split_of_patient: np.ndarray
    listed: int

    def __len__(self) -> int:
        return len(self.uids)

    def __contains__(self, uid: str) -> bool:
        return _find(self.uids, uid) is not None

    def find_split(self, patient: str) -> str:
        """Return the split of a hashed patient with a film in the store, "" of anybody else."""
        at = _find(self.patients, patient)
        return "" if at is None else SPLITS[self.split_of_patient[at]]


NOTHING = Earlier(np.empty(0, PACKED), np.empty(0, PACKED), np.empty(0, np.int8), 0)


def _find(sorted_N: np.ndarray, text: str) -> int | None:
    packed = np.bytes_(pack_hash(text))
    at = int(np.searchsorted(sorted_N, packed))
    return at if at < len(sorted_N) and sorted_N[at] == packed else None


def pack_hash(text: str) -> bytes:
    """Pack a hashed identifier; NumPy drops zeros at the end, so a byte 1 follows them."""
    return bytes.fromhex(text) + b"\1"


def fingerprint_film(id_key: bytes, film: SourceFilm) -> int:
    """Return a keyed hash, as a number, of everything that the source says about a film, location included."""
    said = {**vars(film), "path": str(film.path), "labels": dict(film.labels)}
    if not film.site:
        del said["site"]  # version 0.1 had none; an ingest begun with it continues
    return int(hash_id(id_key, "listed", repr(said)), 16)


def read_left_out(writer: StoreWriter) -> LeftOut:
    """Read and join the ledgers of all commits."""
    ledgers = list(writer.read_ledgers())
    return LeftOut(
        films=[(uid, reason) for ledger in ledgers for uid, reason in ledger["left_out"]],
        patients_unknown=sum(ledger["patients_unknown"] for ledger in ledgers),
        listed=sum(int(ledger["listed"], 16) for ledger in ledgers) % (1 << LISTED_BITS),
    )


def read_stored(writer: StoreWriter) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return packed uid, packed patient and split (an index of `SPLITS`) of each stored film, in table order."""
    films, at = len(writer), 0
    uids, patients, split_N = np.empty(films, PACKED), np.empty(films, PACKED), np.empty(films, np.int8)
    for batch in writer.read_columns("uid", "patient", "split"):
        rows = slice(at, at + len(batch))
        uids[rows] = [pack_hash(uid) for uid in batch["uid"].to_pylist()]
        patients[rows] = [pack_hash(patient) for patient in batch["patient"].to_pylist()]
        split_N[rows] = [SPLITS.index(split) for split in batch["split"].to_pylist()]
        at += len(batch)
    return uids, patients, split_N


def read_earlier(writer: StoreWriter) -> Earlier:
    """Read the films that are done."""
    left_out = read_left_out(writer)
    stored, patients, split_N = read_stored(writer)
    uids = np.sort(np.concatenate([stored, np.array([pack_hash(uid) for uid, _ in left_out.films], PACKED)]))
    patients, first = np.unique(patients, return_index=True)
    return Earlier(uids, patients, split_N[first], left_out.listed)


def check_unchanged(films: Iterable[SourceFilm], earlier: Earlier, id_key: bytes, out: object) -> None:
    """Raise `UsageError` unless every film that is done is listed as before; new films may be added."""
    if not len(earlier):
        return
    done, listed = 0, 0
    for film in films:
        if hash_id(id_key, "uid", film.uid) in earlier:
            done += 1
            listed += fingerprint_film(id_key, film)
    if done != len(earlier) or listed % (1 << LISTED_BITS) != earlier.listed:
        raise UsageError(
            f"the films, their table or their folder are not those that {out} was begun with; "
            "put them back, or remove it to start over"
        )
