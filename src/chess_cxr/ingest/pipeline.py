"""From listed films to a store: decode, hash the identifiers, split by patient, quarantine what fails.

One writer takes what the workers send, in the order of the listing, and commits it part by part.  A part becomes
visible together with the list of what was left out of it, so an ingest that was killed knows what is done.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import math
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chess_cxr.ingest.child import Limits
from chess_cxr.ingest.deidentify import (
    HASH_CHARACTERS,
    cap_age,
    hash_id,
    limit_spacing,
    name_manufacturer,
    read_year,
    shift_day,
)
from chess_cxr.ingest.encoding import EncodedFilm, EncodeOptions
from chess_cxr.ingest.quality import QualityOptions
from chess_cxr.ingest.split import (
    assign_split,
    assign_stratified_splits,
    check_fractions,
    find_given_splits,
    raise_torn,
)
from chess_cxr.ingest.workers import encode_in_order
from chess_cxr.locations import is_url, write_location
from chess_cxr.records import (
    FLAGS,
    SPLITS,
    ChessError,
    FilmListing,
    ImageRecord,
    SourceFilm,
    UsageError,
    list_label_names,
)
from chess_cxr.store import FLAG_PREFIX, StoredFilm, StoreWriter, begin_store

# Fewer than the first commit holds, so that all the space is still to be taken.
FILMS_TO_JUDGE_SPACE = 200
# What a row of the store takes beside its JPEG: 0.3 KB of fields and Lance's own pages.
BYTES_A_ROW = 400
MOST_SECONDS, MOST_GIB = 86_400, 1024


@dataclass(frozen=True)
class IngestOptions:
    """How films become a store.

    id_key: what `read_id_key` returned.  id_map: where to write the one file that ties hashed uids to paths.
    dataset: becomes the `site` of every film.  longest_side: of the stored films, in pixels.  val, test: fractions of
    patients.  stratify: divide the patients whose labels are known so that each split has its share of every label.
    quality: what is judged.  limits: what one film may take.  in_flight: how many films the executor is given ahead of
    the writer.  films_a_commit, seconds_a_commit: whichever comes first ends a part; a kill costs one part at most.
    """

    id_key: bytes
    id_map: Path | None = None
    dataset: str = ""
    longest_side: int = 512
    val: float = 0.1
    test: float = 0.2
    seed: int = 0
    stratify: bool = True
    quality: QualityOptions = field(default_factory=QualityOptions)
    limits: Limits = field(default_factory=Limits)
    in_flight: int = 64
    films_a_commit: int = 8192
    seconds_a_commit: float = 60.0


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
            lines.append(f"flagged, and stored: {_list_counts(self.flags)}")
        if self.quarantined:
            lines.append(f"{sum(self.quarantined.values())} quarantined: {_list_counts(self.quarantined)}")
        return "\n".join(lines)


@dataclass
class _Progress:
    """What this run knows beyond what is committed.

    split_of_patient: of the patients that the source names.  split_seen: by hashed patient, of the films so far; None
    where no film has a split but leaves its patient to the header, so that no patient can be torn.
    """

    expected: int
    split_of_patient: Mapping[str, str]
    split_seen: dict[str, str] | None
    left_out: list[tuple[str, str]] = field(default_factory=list)  # uid and reason, since the last commit
    patients_unknown: int = 0  # since the last commit
    films: int = 0
    encoded_bytes: int = 0
    ended: bool = False

    def load_splits(self, writer: StoreWriter) -> None:
        """Learn the splits of the patients whose films are committed."""
        if self.split_seen is not None and len(writer):
            patients, splits = (writer.read_column(name).to_pylist() for name in ("patient", "split"))
            self.split_seen.update(zip(patients, splits, strict=True))


@dataclass(frozen=True)
class _Earlier:
    """What is committed.  uids: of the films stored or left out, packed and sorted."""

    uids: np.ndarray

    def __contains__(self, uid: str) -> bool:
        if not len(self.uids):
            return False
        packed = np.bytes_(_pack(uid))
        at = int(np.searchsorted(self.uids, packed))
        return at < len(self.uids) and bool(self.uids[at] == packed)


def ingest_films(
    films: FilmListing | Sequence[SourceFilm],
    out: Path | str,
    options: IngestOptions,
    executor: Executor | None = None,
    on_film: Callable[[], None] | None = None,
) -> IngestSummary:
    """Write the store `out`, a path or URL, from `films`, in their order, and `<stem>.quarantine.csv` beside it.

    Films are decoded in child processes of `executor`'s workers, of this process without one; `on_film` is called
    after each.  What the source says of a film wins over the file's own header.  A film that cannot be decoded is left
    out, and listed in the quarantine by its hashed uid with the reason.

    Parts are committed as they are done.  Stopped at any moment, the same call goes on: films that are committed are
    not read again.  Readers see the store when it is complete.

    Raises `UsageError` if a complete store is at `out` or an option makes no sense, `ChessError` if no film could be
    decoded, a patient is in two given splits, or the disk is full.
    """
    started = time.monotonic()
    _check(films, out, options)
    progress = _prepare(films, options)
    with _lock(out), _remember_interrupts() as insist:
        label_names = films.label_names if isinstance(films, FilmListing) else list_label_names(films)
        writer = begin_store(out, label_names, options.dataset, _describe(options))
        earlier = _read_earlier(writer)
        progress.load_splits(writer)
        count = on_film or (lambda: None)
        with _open_id_map(options.id_map) as write_id:
            undone = _skip_done(films, earlier, options, write_id, count)
            with _keep_what_is_committed(writer, progress):
                insist()
                _write_films(undone, writer, progress, options, executor, count)
                insist()
            return _finish(writer, progress, started, resumed=len(earlier.uids))


@contextlib.contextmanager
def _keep_what_is_committed(writer: StoreWriter, progress: _Progress) -> Iterator[None]:
    """On an error take away a store that holds nothing yet, and put a full disk into words."""
    try:
        yield
    except BaseException as error:
        is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        said = ChessError(_describe_full_disk(writer, progress)) if is_full else error
        if not _has_commits(writer):
            writer.remove()
        if said is error:
            raise
        raise said from None


@contextlib.contextmanager
def _remember_interrupts() -> Iterator[Callable[[], None]]:
    """Yield what raises again a KeyboardInterrupt that came while Lance was calling and was lost there."""
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


def _check(films: FilmListing | Sequence[SourceFilm], out: Path | str, options: IngestOptions) -> None:
    check_fractions(options.val, options.test)
    if not isinstance(films, FilmListing) and not films:
        raise UsageError("there is no film to ingest")
    if options.longest_side < 32:
        raise UsageError(f"longest_side {options.longest_side} is too small; films need 32 pixels or more")
    if options.in_flight < 1 or options.films_a_commit < 1:
        raise UsageError("in_flight and films_a_commit must be 1 or more")
    if not (0 < options.limits.film_seconds <= MOST_SECONDS and 0 < options.limits.film_gib <= MOST_GIB):
        raise UsageError(f"a film's limits must be above 0, and at most {MOST_SECONDS} seconds and {MOST_GIB} GiB")
    if options.id_map is not None and (options.id_map.exists() or options.id_map.is_symlink()):
        raise UsageError(f"{options.id_map} exists already; choose another name or remove it")
    for written in (out, options.id_map):
        if isinstance(written, Path) and written.parent.is_file():
            raise UsageError(f"{written.parent} is a file, not a folder; choose another place")


def _describe(options: IngestOptions) -> dict[str, Any]:
    """Return what a store is made by, to be found the same when an ingest goes on; of the key, only a fingerprint."""
    made_by = {name: getattr(options, name) for name in ("longest_side", "val", "test", "seed", "stratify")}
    return made_by | {"quality": asdict(options.quality), "key": hash_id(options.id_key, "uid", "\0fingerprint")}


def _prepare(films: FilmListing | Sequence[SourceFilm], options: IngestOptions) -> _Progress:
    """Decide the splits that can be decided from what the source itself says."""
    if isinstance(films, FilmListing) and not films.described:
        return _Progress(films.count(), {}, None)
    if options.stratify:
        splits = assign_stratified_splits(films, options.seed, options.val, options.test)
    else:
        splits = find_given_splits(films)
    seen: dict[str, str] | None = {} if any(film.split and not film.patient for film in films) else None
    expected = films.count() if isinstance(films, FilmListing) else len(films)
    return _Progress(expected, splits, seen)


@contextlib.contextmanager
def _lock(out: Path | str) -> Iterator[None]:
    """Keep a second ingest on this machine from writing the same store; object stores have no such lock."""
    if is_url(out):
        yield
        return
    import fcntl

    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it before may have removed the file between our opening and our locking it.
            held = lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat())
        except OSError:
            held = False
        if not held:
            raise UsageError(f"another ingest is writing {out}; wait for it or choose another --out")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _read_earlier(writer: StoreWriter) -> _Earlier:
    quarantine, _ = _read_ledgers(writer)
    uids = [_pack(uid) for uid, _ in quarantine]
    uids += [_pack(uid.as_py()) for uid in writer.read_column("uid")] if len(writer) else []
    return _Earlier(np.sort(np.array(uids, dtype=f"S{HASH_CHARACTERS // 2 + 1}")))


def _read_ledgers(writer: StoreWriter) -> tuple[list[tuple[str, str]], int]:
    """Return uid and reason of each film that was left out, and how many films name no patient."""
    ledgers = list(writer.read_ledgers())
    quarantine = [(uid, reason) for ledger in ledgers for uid, reason in ledger["left_out"]]
    return quarantine, sum(ledger["patients_unknown"] for ledger in ledgers)


def _pack(uid: str) -> bytes:
    """Pack a hashed uid; the byte at its end keeps numpy from dropping zeros before it."""
    return bytes.fromhex(uid) + b"\1"


def _has_commits(writer: StoreWriter) -> bool:
    return any(True for _ in writer.read_ledgers())


@contextlib.contextmanager
def _open_id_map(path: Path | None) -> Iterator[Callable[[Sequence[str]], object] | None]:
    """Yield what writes one row to the CSV file `path`; it appears (mode 0600) only if all inside succeeds."""
    if path is None:
        yield None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("uid", "path"))
            yield writer.writerow
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _skip_done(
    films: Iterable[SourceFilm],
    earlier: _Earlier,
    options: IngestOptions,
    write_id: Callable[[Sequence[str]], object] | None,
    on_film: Callable[[], None],
) -> Iterator[SourceFilm]:
    """Yield the films that are still to be done, and name all of them in the id map."""
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
    def build_ledger() -> Any:
        return {"left_out": progress.left_out, "patients_unknown": progress.patients_unknown}

    encode = EncodeOptions(options.longest_side, options.quality)
    pairs = encode_in_order(films, encode, options.limits, executor, options.in_flight)
    with contextlib.closing(pairs):
        built = _build_films(pairs, options, progress, writer, on_film)
        while not progress.ended:
            writer.append(_take_part(built, options, progress), build_ledger)
            progress.left_out, progress.patients_unknown = [], 0


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
    """Yield what goes into the store, None for a film that is left out."""
    for film, encoded in pairs:
        on_film()
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
    # Films of unknown patients must not become one patient, nor meet a real one of the same name.
    owner = known or f"\0film\0{film.uid}"
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
        site=options.dataset,
        split=_choose_split(film, owner, patient, options, progress),
        year=read_year(date),
        study_day=shift_day(key, owner, date),
        manufacturer=name_manufacturer(film.manufacturer or header.manufacturer),
        flags=_correct_flags(encoded.flags, film.view),
        scores=encoded.scores,
        labels=film.labels,
    )


def _correct_flags(flags: frozenset[str], view: str) -> frozenset[str]:
    """Let the view that the source names overrule the one that was judged."""
    if not view:
        return flags
    return flags | {"lateral"} if view == "LATERAL" else flags - {"lateral"}


def _choose_split(film: SourceFilm, owner: str, patient: str, options: IngestOptions, progress: _Progress) -> str:
    seen = progress.split_seen
    split = film.split or progress.split_of_patient.get(owner) or (seen or {}).get(patient)
    split = split or assign_split(owner, options.seed, options.val, options.test)
    if seen is not None:
        seen.setdefault(patient, split)
    return split


def _finish(writer: StoreWriter, progress: _Progress, started: float, resumed: int) -> IngestSummary:
    """Judge the whole, write the quarantine beside the store and make both final."""
    quarantine, patients_unknown = _read_ledgers(writer)
    reasons = Counter(reason for _, reason in quarantine)
    if not len(writer):
        writer.remove()
        raise ChessError(f"none of the {sum(reasons.values())} films could be stored: {_list_counts(reasons)}")
    patients = writer.read_column("patient")
    if torn := _count_torn(patients, writer.read_column("split")):
        writer.remove()
        raise_torn(torn)
    if doubled := len(writer) - int(pc.count_distinct(writer.read_column("uid")).as_py()):
        raise ChessError(
            f"{doubled} films are in {writer.location} twice: two ingests wrote it at once; remove it to begin anew"
        )
    splits = {item["values"]: item["counts"] for item in pc.value_counts(writer.read_column("split")).to_pylist()}
    flags = {name: held for name in FLAGS if (held := int(pc.sum(writer.read_column(FLAG_PREFIX + name)).as_py() or 0))}
    write_location(find_quarantine(writer.location), _build_quarantine(quarantine))
    summary = IngestSummary(
        films=len(writer),
        quarantined=dict(reasons),
        patients=int(pc.count_distinct(patients).as_py()),
        patients_unknown=patients_unknown,
        splits=splits,
        flags=flags,
        seconds=time.monotonic() - started,
        resumed=resumed,
    )
    writer.finish()
    return summary


def _count_torn(patients: pa.ChunkedArray, splits: pa.ChunkedArray) -> int:
    """Return how many patients are in two splits, of all that is committed: runs may have seen other tables."""
    pairs = pa.table({"patient": patients, "split": splits}).group_by(["patient", "split"]).aggregate([])
    counts = pc.value_counts(pairs["patient"].combine_chunks())
    return int(pc.sum(pc.greater(counts.field("counts"), 1)).as_py() or 0)


def find_quarantine(out: Path | str) -> Path | str:
    """Return where the list of the films that are left out of the store `out` is written."""
    if isinstance(out, Path):
        return out.with_name(f"{out.stem}.quarantine.csv")
    folder, _, name = out.rstrip("/").rpartition("/")
    return f"{folder}/{PurePosixPath(name).stem}.quarantine.csv"


def _build_quarantine(rows: Iterable[tuple[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows((("uid", "reason"), *rows))
    return text.getvalue().encode()


def _list_counts(counts: Mapping[str, int]) -> str:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {name}" for name, count in ranked)


def _estimate_megabytes(progress: _Progress) -> float:
    mean = progress.encoded_bytes / max(progress.films, 1) + BYTES_A_ROW
    return mean * progress.expected / 1e6


def _check_space(writer: StoreWriter, progress: _Progress) -> None:
    """Stop after some films rather than after a night, if the rest will not fit."""
    if is_url(writer.location):
        return
    if shutil.disk_usage(Path(writer.location).parent).free < _estimate_megabytes(progress) * 1e6:
        raise ChessError(_describe_full_disk(writer, progress))


def _describe_full_disk(writer: StoreWriter, progress: _Progress) -> str:
    kept = "what is done is kept, the same command goes on" if _has_commits(writer) else "nothing was kept"
    return f"no space left for {writer.location}: it needs about {_estimate_megabytes(progress):.0f} MB; {kept}"
