"""From listed films to a store: decode, hash the identifiers, split by patient, quarantine what fails."""

from __future__ import annotations

import contextlib
import csv
import errno
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from chess_cxr.ingest.deidentify import hash_id
from chess_cxr.ingest.split import assign_split, check_fractions, find_given_splits, raise_torn
from chess_cxr.ingest.workers import EncodedFilm, decode_in_order
from chess_cxr.records import SPLITS, ChessError, ImageRecord, SourceFilm, UsageError, list_label_names
from chess_cxr.store import StoredFilm, write_store

# Fewer than the store gathers before its first write, so that all the space is still to be taken.
FILMS_TO_JUDGE_SPACE = 200
# What a row of the store takes beside its JPEG: 0.2 KB of fields and Lance's own pages.
BYTES_A_ROW = 300


@dataclass(frozen=True)
class IngestOptions:
    """How films become a store.

    id_key: what `read_id_key` returned.  id_map: where to write the one file that ties hashed uids to paths.
    dataset: becomes the `site` of every film.  longest_side: of the stored films, in pixels.  val, test:
    fractions of patients.  in_flight: how many films the executor is given ahead of the writer.
    """

    id_key: bytes
    id_map: Path | None = None
    dataset: str = ""
    longest_side: int = 512
    val: float = 0.1
    test: float = 0.2
    seed: int = 0
    in_flight: int = 64


@dataclass(frozen=True)
class IngestSummary:
    """What one ingest did: films stored, quarantined films by reason, patients, films by split, seconds.

    patients_unknown: films that name no patient; each of them counts as a patient of its own.
    """

    films: int
    quarantined: Mapping[str, int]
    patients: int
    patients_unknown: int
    splits: Mapping[str, int]
    seconds: float

    def as_text(self) -> str:
        """Return the summary in a few lines of text, without any identifier."""
        splits = ", ".join(f"{split} {self.splits.get(split, 0)}" for split in SPLITS)
        lines = [f"{self.films} films of {self.patients} patients stored in {self.seconds:.0f} s ({splits})"]
        if self.patients_unknown:
            lines.append(f"{self.patients_unknown} of them name no patient; each counts as a patient of its own")
        if self.quarantined:
            lines.append(f"{sum(self.quarantined.values())} quarantined: {_list_reasons(self.quarantined)}")
        return "\n".join(lines)


@dataclass
class _Progress:
    expected: int
    given: dict[str, str]  # patient -> split, as the owner wants it
    split_of: dict[str, str] = field(default_factory=dict)  # patient -> split, of the films stored so far
    torn: set[str] = field(default_factory=set)
    quarantined: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    films: int = 0
    patients_unknown: int = 0
    encoded_bytes: int = 0
    stopped_by: BaseException | None = None


def ingest_films(
    films: Sequence[SourceFilm],
    out: Path,
    options: IngestOptions,
    executor: Executor | None = None,
    on_film: Callable[[], None] | None = None,
) -> IngestSummary:
    """Write the store `out` from `films`, in their order, and `<stem>.quarantine.csv` beside it.

    Films are decoded in `executor` (processes, a cluster), here without one; `on_film` is called after each.
    What the source says of a film wins over the file's own header.  A film that cannot be decoded is left
    out, and listed in the quarantine by its hashed uid with the reason.

    Raises `UsageError` if `out` exists or an option makes no sense, `ChessError` if no film could be decoded,
    a patient is in two given splits or the disk is full; then nothing is left behind.
    """
    started = time.monotonic()
    _check(films, out, options)
    progress = _Progress(len(films), find_given_splits(films))
    quarantine = out.with_name(f"{out.stem}.quarantine.csv")
    try:
        with contextlib.ExitStack() as stack:
            write_quarantine = stack.enter_context(_open_table(quarantine, ("uid", "reason")))
            write_id = stack.enter_context(_open_table(options.id_map, ("uid", "path"))) if options.id_map else None
            pairs = decode_in_order(films, options.longest_side, executor, options.in_flight)
            watched = _watch(stack.enter_context(contextlib.closing(pairs)), options, write_id, on_film)
            stored = _build_films(watched, options, progress, write_quarantine, out)
            write_store(out, _remember_error(stored, progress), list_label_names(films), options.dataset)
    except (OSError, ChessError) as error:
        cause = progress.stopped_by or error
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            cause = ChessError(_describe_full_disk(out, progress))
        raise cause from None
    return IngestSummary(
        films=progress.films,
        quarantined=dict(progress.quarantined),
        patients=len(progress.split_of),
        patients_unknown=progress.patients_unknown,
        splits=dict(progress.splits),
        seconds=time.monotonic() - started,
    )


def _check(films: Sequence[SourceFilm], out: Path, options: IngestOptions) -> None:
    check_fractions(options.val, options.test)
    if not films:
        raise UsageError("there is no film to ingest")
    if options.longest_side < 32:
        raise UsageError(f"longest_side {options.longest_side} is too small; films need 32 pixels or more")
    if options.in_flight < 1:
        raise UsageError("in_flight must be 1 or more")
    for written in (out, options.id_map):
        if written is not None and (written.exists() or written.is_symlink()):
            raise UsageError(f"{written} exists already; choose another name or remove it")
        if written is not None and written.parent.is_file():
            raise UsageError(f"{written.parent} is a file, not a folder; choose another place")


@contextlib.contextmanager
def _open_table(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Sequence[str]], object]]:
    """Yield what writes one row to the CSV file `path`; it appears (mode 0600) only if all inside succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            yield writer.writerow
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _watch(
    pairs: Iterable[tuple[SourceFilm, EncodedFilm]],
    options: IngestOptions,
    write_id: Callable[[Sequence[str]], object] | None,
    on_film: Callable[[], None] | None,
) -> Iterator[tuple[SourceFilm, EncodedFilm]]:
    for film, encoded in pairs:
        if write_id is not None:
            write_id((hash_id(options.id_key, "uid", film.uid), str(film.path)))
        if on_film is not None:
            on_film()
        yield film, encoded


def _build_films(
    pairs: Iterable[tuple[SourceFilm, EncodedFilm]],
    options: IngestOptions,
    progress: _Progress,
    write_quarantine: Callable[[Sequence[str]], object],
    out: Path,
) -> Iterator[StoredFilm]:
    """Yield what goes into the store; raise at the end, before anything is committed, if it must not be."""
    for film, encoded in pairs:
        if encoded.reason:
            progress.quarantined[encoded.reason] += 1
            write_quarantine((hash_id(options.id_key, "uid", film.uid), encoded.reason))
            continue
        record = _build_record(film, encoded, options, progress)
        progress.films += 1
        progress.splits[record.split] += 1
        progress.encoded_bytes += len(encoded.jpeg)
        if progress.films == FILMS_TO_JUDGE_SPACE:
            _check_space(out, progress)
        yield StoredFilm(record, encoded.jpeg, encoded.height, encoded.width)
    if not progress.films:
        reasons = _list_reasons(progress.quarantined)
        raise ChessError(f"none of the {progress.expected} films could be decoded: {reasons}")
    if progress.torn:
        raise_torn(len(progress.torn))
    if progress.films < FILMS_TO_JUDGE_SPACE:
        _check_space(out, progress)


def _remember_error(films: Iterable[StoredFilm], progress: _Progress) -> Iterator[StoredFilm]:
    """Keep what stopped the films: on its way through Lance it becomes an OSError with a traceback for text."""
    try:
        yield from films
    except GeneratorExit:
        raise
    except BaseException as error:
        progress.stopped_by = error
        raise


def _build_record(film: SourceFilm, encoded: EncodedFilm, options: IngestOptions, progress: _Progress) -> ImageRecord:
    header, key = encoded.header, options.id_key
    patient = film.patient or header.patient
    # Films of unknown patients must not become one patient, nor meet a real one of the same name.
    owner = patient or f"\0film\0{film.uid}"
    progress.patients_unknown += not patient
    split = film.split or progress.given.get(owner) or progress.split_of.get(owner)
    split = split or assign_split(owner, options.seed, options.val, options.test)
    if progress.split_of.setdefault(owner, split) != split:
        progress.torn.add(owner)
    return ImageRecord(
        uid=hash_id(key, "uid", film.uid),
        patient=hash_id(key, "patient", owner),
        study=hash_id(key, "study", film.study or header.study),
        view=film.view or header.view,
        age_years=header.age_years if math.isnan(film.age_years) else film.age_years,
        sex=film.sex or header.sex,
        spacing_mm=encoded.spacing_mm,
        site=options.dataset,
        split=split,
        labels=film.labels,
    )


def _list_reasons(quarantined: Mapping[str, int]) -> str:
    ranked = sorted(quarantined.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason}" for reason, count in ranked)


def _estimate_megabytes(progress: _Progress) -> float:
    mean = progress.encoded_bytes / max(progress.films, 1) + BYTES_A_ROW
    return mean * progress.expected / 1e6


def _check_space(out: Path, progress: _Progress) -> None:
    """Stop after some films rather than after a night, if the rest will not fit."""
    if shutil.disk_usage(out.parent).free < _estimate_megabytes(progress) * 1e6:
        raise ChessError(_describe_full_disk(out, progress))


def _describe_full_disk(out: Path, progress: _Progress) -> str:
    return f"no space left for {out}: it needs about {_estimate_megabytes(progress):.0f} MB; nothing was kept"
