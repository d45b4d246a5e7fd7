"""Check and summarise a store before readers see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from chess_cxr.ingest.earlier import LeftOut, read_stored
from chess_cxr.ingest.split import raise_torn
from chess_cxr.records import FLAGS, SPLITS, ChessError, list_counts
from chess_cxr.store import FLAG_PREFIX, StoreWriter


@dataclass(frozen=True)
class IngestSummary:
    """Counts of a store: films, quarantined films by reason, patients, films by split and by flag.

    patients_unknown: films that name no patient; each counts as a patient of its own.
    seconds: duration of this run.  resumed: films that an earlier run had done.
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
    """Count the committed films.

    Raises `ChessError` if there is none (and removes the store), a patient is in two splits, or a film occurs twice.
    """
    reasons = Counter(reason for _, reason in left_out.films)
    films = len(writer)
    if not films:
        writer.remove()
        hint = "; paths in a table start at the source folder" if set(reasons) == {"file not found"} else ""
        raise ChessError(f"none of the {sum(reasons.values())} films could be stored: {list_counts(reasons)}{hint}")
    uids, patients, split_N = read_stored(writer)
    flags: Counter[str] = Counter()
    for batch in writer.read_columns(*(FLAG_PREFIX + name for name in FLAGS)):
        flags.update({name: int(pc.sum(batch[FLAG_PREFIX + name]).as_py() or 0) for name in FLAGS})
    if torn := _count_torn(patients, split_N):
        raise_torn(torn)
    if doubled := films - len(np.unique(uids)):
        raise ChessError(
            f"{doubled} films are in {writer.location} twice: two ingests wrote it at once; remove it to start over"
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
    """Return how many patients are in two splits; each run may have seen other films."""
    pairs = np.concatenate([np.unique(patients[split_N == number]) for number in range(len(SPLITS))])
    return int((np.unique(pairs, return_counts=True)[1] > 1).sum())
