"""What an ingest has made, judged as a whole before it is given to readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from chess_cxr.ingest.earlier import PACKED, LeftOut, pack_hash
from chess_cxr.ingest.split import raise_torn
from chess_cxr.records import FLAGS, SPLITS, ChessError
from chess_cxr.store import FLAG_PREFIX, StoreWriter


@dataclass(frozen=True)
class IngestSummary:
    """What is in the store: films, quarantined films by reason, patients, films by split and by flag.

    patients_unknown: films that name no patient; each of them counts as a patient of its own.
    seconds: of this run; resumed: films that an earlier run had done.
    """

    films: int
    quarantined: Mapping[str, int]
    patients: int
    patients_unknown: int
    splits: Mapping[str, int]
    flags: Mapping[str, int]
    seconds: float
    resumed: int = 0

    def as_text(self) -> str:
        """Return the summary in a few lines of text, without any identifier."""
        splits = ", ".join(f"{split} {self.splits.get(split, 0)}" for split in SPLITS)
        lines = [f"{self.films} films of {self.patients} patients stored in {self.seconds:.0f} s ({splits})"]
        if self.resumed:
            lines.append(f"{self.resumed} films had been done before")
        if self.patients_unknown:
            lines.append(f"{self.patients_unknown} of them name no patient; each counts as a patient of its own")
        if self.flags:
            lines.append(f"flagged, and stored: {list_counts(self.flags)}")
        if self.quarantined:
            lines.append(f"{sum(self.quarantined.values())} quarantined: {list_counts(self.quarantined)}")
        return "\n".join(lines)


def summarise_store(writer: StoreWriter, left_out: LeftOut, seconds: float, resumed: int) -> IngestSummary:
    """Count what is committed, a part at a time.

    Raises `ChessError` where it has no film, and is taken back, a patient in two splits, or a film twice.
    """
    reasons = Counter(reason for _, reason in left_out.films)
    films = len(writer)
    if not films:
        writer.remove()
        hint = "; paths in a table start at the source folder" if set(reasons) == {"file not found"} else ""
        raise ChessError(f"none of the {sum(reasons.values())} films could be stored: {list_counts(reasons)}{hint}")
    uids, patients = np.empty(films, PACKED), np.empty(films, PACKED)
    split_N = np.empty(films, np.int8)
    flags: Counter[str] = Counter()
    at = 0
    for batch in writer.read_columns("uid", "patient", "split", *(FLAG_PREFIX + name for name in FLAGS)):
        rows = slice(at, at + len(batch))
        uids[rows] = [pack_hash(uid) for uid in batch["uid"].to_pylist()]
        patients[rows] = [pack_hash(patient) for patient in batch["patient"].to_pylist()]
        split_N[rows] = [SPLITS.index(split) for split in batch["split"].to_pylist()]
        flags.update({name: int(pc.sum(batch[FLAG_PREFIX + name]).as_py() or 0) for name in FLAGS})
        at += len(batch)
    if torn := _count_torn(patients, split_N):
        raise_torn(torn)
    if doubled := films - len(np.unique(uids)):
        raise ChessError(
            f"{doubled} films are in {writer.location} twice: two ingests wrote it at once; remove it to begin anew"
        )
    return IngestSummary(
        films=films,
        quarantined=dict(reasons),
        patients=len(np.unique(patients)),
        patients_unknown=left_out.patients_unknown,
        splits={name: held for number, name in enumerate(SPLITS) if (held := int((split_N == number).sum()))},
        flags={name: flags[name] for name in FLAGS if flags[name]},
        seconds=seconds,
        resumed=resumed,
    )


def _count_torn(patients: np.ndarray, split_N: np.ndarray) -> int:
    """Return how many patients are in two splits, of all that is committed: runs may have seen other films."""
    pairs = np.concatenate([np.unique(patients[split_N == number]) for number in range(len(SPLITS))])
    return int((np.unique(pairs, return_counts=True)[1] > 1).sum())


def list_counts(counts: Mapping[str, int]) -> str:
    """Return "3 truncated, 1 blank", the most frequent first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {name}" for name, count in ranked)
