"""Ingest films into a store: decode them, hash identifiers, split by patient, quarantine failures.

One writer commits the results of the workers part by part, in the order of the listing.  A commit also lists the films
left out of it, so that an ingest that was killed knows which films are done.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from chess_cxr.deidentify.id_map import check_id_map, open_id_map
from chess_cxr.deidentify.identity import cap_age, hash_id, limit_spacing, name_manufacturer, read_year, shift_day
from chess_cxr.files.locations import is_url
from chess_cxr.files.whole import FULL_DISK
from chess_cxr.ingest.earlier import (
    LISTED_BITS,
    NOTHING,
    Earlier,
    check_unchanged,
    fingerprint_film,
    read_earlier,
    read_left_out,
)
from chess_cxr.ingest.encoding import EncodedFilm, EncodeOptions, encode_in_order
from chess_cxr.ingest.options import IngestOptions
from chess_cxr.ingest.side_files import find_quarantine, lock_store, write_quarantine
from chess_cxr.ingest.split import assign_split, assign_stratified_splits, check_fractions, find_given_splits
from chess_cxr.ingest.summary import IngestSummary, summarise_store
from chess_cxr.records import ChessError, FilmListing, ImageRecord, SourceFilm, UsageError, build_listing
from chess_cxr.store import StoredFilm, StoreWriter, begin_store
from chess_cxr.workers.child import check_limits

FILMS_TO_JUDGE_SPACE = 200  # fewer than the first commit holds, so no space has been taken yet
BYTES_A_ROW = 400  # of a row beside its JPEG: fields and Lance's own pages
NO_PATIENT = "\0film\0"  # prefix of the uid, which stands for the patient of a film that names none


@dataclass
class _Progress:
    """State of a run beyond its commits.

    split_of_patient: splits of the patients that the source names; those of `Earlier` take precedence.
    remembers_headers: whether some films have a split but no patient, so that the patients in their headers must be
    remembered lest one falls into two splits.  expected: number of films left for this run.
    """

    split_of_patient: Mapping[str, str]
    remembers_headers: bool = False
    expected: int = 0
    earlier: Earlier = NOTHING
    split_by_header: dict[str, str] = field(default_factory=dict)  # of hashed patients named by headers only
    films: int = 0
    encoded_bytes: int = 0
    ended: bool = False
    # Since the last commit, as in `LeftOut`:
    left_out: list[tuple[str, str]] = field(default_factory=list)
    patients_unknown: int = 0
    listed: int = 0

    def take_ledger(self) -> dict[str, Any]:
        """Return the ledger of the films since the last commit, and begin a new one."""
        listed = f"{self.listed % (1 << LISTED_BITS):x}"
        ledger = {"left_out": self.left_out, "patients_unknown": self.patients_unknown, "listed": listed}
        self.left_out, self.patients_unknown, self.listed = [], 0, 0
        return ledger


def ingest_films(
    films: FilmListing | Sequence[SourceFilm],
    out: Path | str,
    options: IngestOptions,
    executor: Executor | None = None,
    on_film: Callable[[], None] | None = None,
) -> IngestSummary:
    """Write films in their order to the store `out`, a path or URL, with `<out>.quarantine.csv` beside it.

    Films are decoded in child processes, which belong to the workers of `executor` or, without one, to this process;
    `on_film` is called after each film.  The source's own description of a film takes precedence over its header.  A
    film that cannot be decoded is left out; the quarantine lists its hashed uid and the reason.

    Finished parts are committed.  After a stop at any moment the same call continues: committed films are not read
    again.  Readers see the store once it is complete.

    Raises `UsageError` if `out` holds a complete store, an option is invalid, or films differ from those that the store
    was begun with; `ChessError` if no film can be decoded, a patient is in two given splits, or the disk is full.
    """
    started = time.monotonic()
    if not isinstance(films, FilmListing):
        _check_uids(films)
        films = build_listing(films)
    _check(out, options)
    split_of_patient = _prepare(films, options)
    with lock_store(out), _remember_interrupts() as insist:
        with open_id_map(options.id_map) as write_id:
            writer = begin_store(out, films.label_names, options.dataset, _describe(options))
            progress = _Progress(split_of_patient, _need_headers(films))
            with _keep_what_is_committed(writer, progress):
                earlier = progress.earlier = read_earlier(writer)
                check_unchanged(films, earlier, options.id_key, out)
                progress.expected = films.count() - len(earlier)
                count = on_film or (lambda: None)
                undone = _skip_done(films, earlier, options, write_id, count)
                insist()
                _write_films(undone, writer, progress, options, executor, count)
                insist()
                left_out = read_left_out(writer)
                summary = summarise_store(writer, left_out, time.monotonic() - started, resumed=len(earlier))
        with _keep_what_is_committed(writer, progress):
            write_quarantine(out, left_out.films)
            writer.finish()
        return summary


@contextlib.contextmanager
def _keep_what_is_committed(writer: StoreWriter, progress: _Progress) -> Iterator[None]:
    """On an error remove a store without commits, and describe a full disk."""
    try:
        yield
    except BaseException as error:
        is_full = isinstance(error, OSError) and error.errno in FULL_DISK
        said = ChessError(_describe_full_disk(writer, progress)) if is_full else error
        if not _has_commits(writer):
            writer.remove()
        if said is error:
            raise
        raise said from None


def _has_commits(writer: StoreWriter) -> bool:
    """Whether films are committed; True also if the store cannot be read, so that nothing is removed."""
    try:
        return any(True for _ in writer.read_ledgers())
    except (OSError, ValueError):
        return True


@contextlib.contextmanager
def _remember_interrupts() -> Iterator[Callable[[], None]]:
    """Yield a function that raises KeyboardInterrupt again if Lance swallowed one inside a callback."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual is not signal.default_int_handler:
        yield lambda: None
        return
    lost = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal lost
        lost = True
        signal.default_int_handler(number, frame)

    def insist() -> None:
        if lost:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, remember)
    try:
        yield insist
    finally:
        signal.signal(signal.SIGINT, usual)


def _check_uids(films: Sequence[SourceFilm]) -> None:
    if not films:
        raise UsageError("there is no film to ingest")
    if doubled := len(films) - len({film.uid for film in films}):
        raise UsageError(f"{doubled} films have the uid of another; every film needs a uid of its own")


def _check(out: Path | str, options: IngestOptions) -> None:
    check_fractions(options.val, options.test)
    if options.longest_side < 32:
        raise UsageError(f"longest_side {options.longest_side} is too small; films need 32 pixels or more")
    if options.in_flight < 1 or options.films_a_commit < 1:
        raise UsageError("in_flight and films_a_commit must be 1 or more")
    check_limits(options.limits)
    for name, threshold in asdict(options.quality).items():
        if not (math.isfinite(threshold) and threshold >= 0):
            raise UsageError(f"quality.{name} {threshold} is not a threshold; give a number of 0 or more")
    check_id_map(options.id_map, out, find_quarantine(out))
    for written in (out, options.id_map):
        if isinstance(written, Path) and written.parent.is_file():
            raise UsageError(f"{written.parent} is a file, not a folder; choose another place")


def _describe(options: IngestOptions) -> dict[str, Any]:
    """Return the settings that a continued ingest must share, with a fingerprint of the key."""
    made_by = {name: getattr(options, name) for name in ("longest_side", "val", "test", "seed", "stratify")}
    return made_by | {"quality": asdict(options.quality), "key": hash_id(options.id_key, "uid", "\0fingerprint")}


def _prepare(films: FilmListing, options: IngestOptions) -> Mapping[str, str]:
    """Return the splits that follow from the source alone, by patient."""
    if not films.described:
        return {}
    if options.stratify:
        return assign_stratified_splits(films, options.seed, options.val, options.test)
    return find_given_splits(films)


def _need_headers(films: FilmListing) -> bool:
    """Whether a film has a split but only its header names the patient."""
    return films.described and any(film.split and not film.patient for film in films)


def _skip_done(
    films: Iterable[SourceFilm],
    earlier: Earlier,
    options: IngestOptions,
    write_id: Callable[[Sequence[str]], object] | None,
    on_film: Callable[[], None],
) -> Iterator[SourceFilm]:
    """Yield the films that are not done, and write all of them to the id map."""
    for film in films:
        uid = hash_id(options.id_key, "uid", film.uid)
        if write_id is not None:
            write_id((uid, str(film.path)))
        if uid in earlier:
            on_film()
        else:
            yield film


def _write_films(
    films: Iterable[SourceFilm],
    writer: StoreWriter,
    progress: _Progress,
    options: IngestOptions,
    executor: Executor | None,
    on_film: Callable[[], None],
) -> None:
    encode = EncodeOptions(options.longest_side, options.quality)
    pairs = encode_in_order(films, encode, options.limits, executor, options.in_flight)
    with contextlib.closing(pairs):
        built = _build_films(pairs, options, progress, writer, on_film)
        while not progress.ended:
            writer.append(_take_part(built, options, progress), progress.take_ledger)


def _take_part(built: Iterator[StoredFilm | None], options: IngestOptions, progress: _Progress) -> Iterator[StoredFilm]:
    """Yield the films of one commit."""
    started = time.monotonic()
    for count, film in enumerate(built, start=1):
        if film is not None:
            yield film
        if count >= options.films_a_commit or time.monotonic() - started > options.seconds_a_commit:
            return
    progress.ended = True


def _build_films(
    pairs: Iterable[tuple[SourceFilm, EncodedFilm]],
    options: IngestOptions,
    progress: _Progress,
    writer: StoreWriter,
    on_film: Callable[[], None],
) -> Iterator[StoredFilm | None]:
    """Yield the films to be stored, None for one that is left out."""
    for film, encoded in pairs:
        on_film()
        progress.listed += fingerprint_film(options.id_key, film)
        if encoded.reason:
            progress.left_out.append((hash_id(options.id_key, "uid", film.uid), encoded.reason))
            yield None
            continue
        record = _build_record(film, encoded, options, progress)
        progress.films += 1
        progress.encoded_bytes += len(encoded.jpeg)
        if progress.films == FILMS_TO_JUDGE_SPACE:
            _check_space(writer, progress)
        yield StoredFilm(
            record, encoded.jpeg, encoded.height, encoded.width, encoded.pixel_hash, encoded.perceptual_hash
        )
    if progress.films < FILMS_TO_JUDGE_SPACE:
        _check_space(writer, progress)


def _build_record(film: SourceFilm, encoded: EncodedFilm, options: IngestOptions, progress: _Progress) -> ImageRecord:
    header, key = encoded.header, options.id_key
    known = film.patient or header.patient
    # Films of unknown patients must not merge into one patient, nor into a real one of the same name.
    owner = known or f"{NO_PATIENT}{film.uid}"
    progress.patients_unknown += not known
    patient = hash_id(key, "patient", owner)
    date = film.study_date or header.study_date
    return ImageRecord(
        uid=hash_id(key, "uid", film.uid),
        patient=patient,
        study=hash_id(key, "study", film.study or header.study),
        view=film.view or encoded.view,
        age_years=cap_age(header.age_years if math.isnan(film.age_years) else film.age_years),
        sex=film.sex or header.sex,
        spacing_mm=limit_spacing(encoded.spacing_mm),
        site=film.site or options.dataset,
        split=_choose_split(film, owner, patient, options, progress),
        year=read_year(date),
        study_day=shift_day(key, owner, date),
        manufacturer=name_manufacturer(film.manufacturer or header.manufacturer),
        flags=_correct_flags(encoded.flags, film.view),
        scores=encoded.scores,
        labels=film.labels,
    )


def _correct_flags(flags: frozenset[str], view: str) -> frozenset[str]:
    """Let the view that the source gives overrule the judgement of the picture."""
    return flags if not view else flags | {"lateral"} if view == "LATERAL" else flags - {"lateral"}


def _choose_split(film: SourceFilm, owner: str, patient: str, options: IngestOptions, progress: _Progress) -> str:
    """Return the given split, else that of the patient's other films, else an assigned one.

    Raises `ChessError` if a header reveals that the patient already has films in another split.
    """
    seen = progress.earlier.find_split(patient) or progress.split_by_header.get(patient, "")
    split = film.split or seen or progress.split_of_patient.get(owner)
    split = split or assign_split(owner, options.seed, options.val, options.test)
    if film.patient or owner.startswith(NO_PATIENT):
        return split
    if seen and split != seen:
        raise ChessError(
            "the headers name a patient whose films would be in two splits; map a patient column, or give every film "
            "of a patient the same split, remove the store and start over"
        )
    if progress.remembers_headers:
        progress.split_by_header[patient] = split
    return split


def _estimate_megabytes(progress: _Progress) -> float:
    mean = progress.encoded_bytes / max(progress.films, 1) + BYTES_A_ROW
    return mean * progress.expected / 1e6


def _check_space(writer: StoreWriter, progress: _Progress) -> None:
    """Raise `ChessError` early if the films will not fit on the disk."""
    if is_url(writer.location):
        return
    if shutil.disk_usage(Path(writer.location).parent).free < _estimate_megabytes(progress) * 1e6:
        raise ChessError(_describe_full_disk(writer, progress))


def _describe_full_disk(writer: StoreWriter, progress: _Progress) -> str:
    kept = "finished films are kept, and the same command continues" if _has_commits(writer) else "nothing was kept"
    return f"no space left for {writer.location}: it needs about {_estimate_megabytes(progress):.0f} MB; {kept}"
