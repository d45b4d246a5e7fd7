"""What the earlier runs of an ingest have committed, and whether what they were told still holds."""

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
    """What the ledgers of all commits say.

    films: uid and reason of each film that was left out.  patients_unknown: stored films that name no patient.
    listed: sum of `fingerprint_film` over all films done.
    """

    films: list[tuple[str, str]]
    patients_unknown: int
    listed: int


@dataclass(frozen=True)
class Earlier:
    """The films that are done.

    uids: of those stored or left out, packed and sorted.  patients: of those stored, packed and sorted, each with its
    split in split_of_patient, a place in `SPLITS`.  listed: as in `LeftOut`.
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
        """Return the split of a hashed patient who has a film in the store, "" of anybody else."""
        at = _find(self.patients, patient)
        return "" if at is None else SPLITS[self.split_of_patient[at]]


NOTHING = Earlier(np.empty(0, PACKED), np.empty(0, PACKED), np.empty(0, np.int8), 0)


def _find(sorted_N: np.ndarray, text: str) -> int | None:
    packed = np.bytes_(pack_hash(text))
    at = int(np.searchsorted(sorted_N, packed))
    return at if at < len(sorted_N) and sorted_N[at] == packed else None


def pack_hash(text: str) -> bytes:
    """Pack a hashed identifier; the byte at its end keeps numpy from dropping zeros before it."""
    return bytes.fromhex(text) + b"\1"


def fingerprint_film(id_key: bytes, film: SourceFilm) -> int:
    """Return a keyed hash of all that the source says of a film, its place included, as a number."""
    said = {**vars(film), "path": str(film.path), "labels": dict(film.labels)}
    return int(hash_id(id_key, "listed", repr(said)), 16)


def read_left_out(writer: StoreWriter) -> LeftOut:
    """Join the ledgers of all commits."""
    ledgers = list(writer.read_ledgers())
    return LeftOut(
        films=[(uid, reason) for ledger in ledgers for uid, reason in ledger["left_out"]],
        patients_unknown=sum(ledger["patients_unknown"] for ledger in ledgers),
        listed=sum(int(ledger["listed"], 16) for ledger in ledgers) % (1 << LISTED_BITS),
    )


def read_earlier(writer: StoreWriter) -> Earlier:
    """Return the films that are done."""
    left_out = read_left_out(writer)
    stored = len(writer)
    uids, patients = np.empty(stored + len(left_out.films), PACKED), np.empty(stored, PACKED)
    split_N = np.empty(stored, np.int8)
    uids[stored:] = [pack_hash(uid) for uid, _ in left_out.films]
    at = 0
    for batch in writer.read_columns("uid", "patient", "split"):
        rows = slice(at, at + len(batch))
        uids[rows] = [pack_hash(uid) for uid in batch["uid"].to_pylist()]
        patients[rows] = [pack_hash(patient) for patient in batch["patient"].to_pylist()]
        split_N[rows] = [SPLITS.index(split) for split in batch["split"].to_pylist()]
        at += len(batch)
    uids.sort()
    patients, first = np.unique(patients, return_index=True)
    return Earlier(uids, patients, split_N[first], left_out.listed)


def check_unchanged(films: Iterable[SourceFilm], earlier: Earlier, id_key: bytes, out: object) -> None:
    """Raise `UsageError` unless every film that is done is listed as it was; films that have come are welcome."""
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
            "put them back, or remove it to begin anew"
        )
