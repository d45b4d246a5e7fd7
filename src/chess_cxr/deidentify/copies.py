"""Write de-identified copies of DICOM films: OUT/patient/study/film.dcm, all three keyed hashes, and a report.

An interrupted run leaves its finished copies and a folder `.partial`, from which the next run continues.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

from chess_cxr.decode.film import read_film_content
from chess_cxr.deidentify.film import DeidentifiedFilm, deidentify_dicom
from chess_cxr.deidentify.id_map import check_id_map, open_id_map
from chess_cxr.deidentify.identity import hash_id
from chess_cxr.deidentify.options import DeidentifyOptions
from chess_cxr.files.locations import is_url
from chess_cxr.files.whole import flush_file, flush_folder, hold, place_new, write_atomically, write_flushed
from chess_cxr.records import ChessError, SourceFilm, Undecodable, UsageError, list_counts
from chess_cxr.workers.child import check_limits
from chess_cxr.workers.pool import call_in_child, run_in_order

COPIED, REFUSED = "copied", "refused"
REPORT = "report.csv"
COLUMNS = ("uid", "status", "reason", "copy")
_PARTIAL = ".partial"


@dataclass(frozen=True)
class DeidentifySummary:
    """Counts of a de-identification, including the runs that it continued.

    copied: films with a copy.  refused: films without one, by reason.  seconds: duration of this run.
    """

    copied: int
    refused: Mapping[str, int]
    seconds: float

    def as_text(self) -> str:
        """Return the summary in a line or two, without any identifier."""
        lines = [f"{self.copied} films copied in {self.seconds:.0f} s"]
        if self.refused:
            lines.append(f"{sum(self.refused.values())} refused: {list_counts(self.refused)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class CopiedFilm:
    """Row of the report: hashed uid (as in a store), "copied" or "refused", reason, and path of the copy."""

    uid: str
    status: str
    reason: str = ""
    copy: str = ""


def deidentify_files(
    sources: Iterable[SourceFilm],
    out: Path,
    options: DeidentifyOptions,
    executor: Executor | None = None,
    on_film: Callable[[], object] | None = None,
) -> DeidentifySummary:
    """Write a de-identified copy (PS3.15 Annex E) of each film below `out`, and `report.csv` with one row a film.

    sources: films in a fixed order, iterated once.  Films are copied in `executor` or, without one, here; `on_film` is
    called after each.  The same call continues an interrupted run and skips finished copies.  Films that share a SOP
    Instance UID are accepted if their copies are equal, else refused.

    Raises `UsageError` if `out` holds anything but an interrupted run with the same key, options and films;
    `ChessError` if the executor is lost or the disk is full, after which the run can be continued.
    """
    started = time.monotonic()
    if options.in_flight < 1:
        raise UsageError("in_flight must be 1 or more")
    check_limits(options.limits)
    refused: Counter[str] = Counter()
    copied = 0
    check_id_map(options.id_map, out)
    with _open_report(out, options) as (done, write), open_id_map(options.id_map) as write_id:
        films = _write_id_map(sources, options.id_key, write_id)
        with contextlib.closing(_copy_films(films, done, write, out, options, executor)) as rows:
            for row in rows:
                copied += row.status == COPIED
                refused.update([row.reason] if row.status == REFUSED else [])
                if on_film is not None:
                    on_film()
        if not copied and not refused:
            raise UsageError("there is no film to copy")
    return DeidentifySummary(copied, dict(refused), time.monotonic() - started)


def _write_id_map(
    films: Iterable[SourceFilm], id_key: bytes, write_id: Callable[[Sequence[str]], object] | None
) -> Iterator[SourceFilm]:
    for film in films:
        if write_id is not None:
            write_id((hash_id(id_key, "uid", film.uid), str(film.path)))
        yield film


def check_apart(out: Path, sources: Iterable[Path | str]) -> None:
    """Raise `UsageError` if `out` and a source lie within each other."""
    target = out.resolve()
    for source in sources:
        if is_url(source):
            continue
        folder = Path(source).resolve()
        if folder == target or folder in target.parents or target in folder.parents:
            raise UsageError(f"{out} and {source} lie within each other; choose another --out")


def copy_film(film: SourceFilm, out: Path, options: DeidentifyOptions) -> CopiedFilm:
    """Copy one film through this thread's child; a failure becomes a reason without header values or names.

    The child reads and this process writes, so a killed child leaves nothing behind.
    """
    uid = hash_id(options.id_key, "uid", film.uid)
    try:
        copy = call_in_child(deidentify_film_file, options.limits, film, options.id_key, options.allow_burned_in)
        relative = f"{copy.patient}/{copy.study}/{copy.instance}.dcm"
        _write_copy(out, relative, copy.content)
    except Undecodable as error:
        return CopiedFilm(uid, REFUSED, str(error))
    return CopiedFilm(uid, COPIED, copy=relative)


def deidentify_film_file(film: SourceFilm, id_key: bytes, allow_burned_in: bool) -> DeidentifiedFilm:
    """Read one film and return its copy; the task of a child.

    Raises `Undecodable`, and `ConnectionError` if an object store cannot be reached.
    """
    return deidentify_dicom(read_film_content(film.path), film, id_key, allow_burned_in)


def _write_copy(out: Path, relative: str, content: bytes) -> None:
    """Write a copy whole or not at all, and never over another film."""
    target = out / relative
    partial = out / _PARTIAL / f"{target.name}.{os.getpid()}-{threading.get_ident()}"
    try:
        write_flushed(partial, content)
        target.parent.mkdir(parents=True, exist_ok=True)
        place_new(partial, target)
    except FileExistsError:
        # An earlier run was killed after it wrote this copy, or the archive holds the film twice.
        if target.read_bytes() != content:
            raise Undecodable("another film has the same SOP Instance UID") from None
    except OSError as error:
        raise ChessError(
            f"cannot write below {out} ({error.strerror}); run the same command again to continue"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def _copy_films(
    sources: Iterator[SourceFilm],
    done: Iterable[CopiedFilm],
    write: Callable[[CopiedFilm], None],
    out: Path,
    options: DeidentifyOptions,
    executor: Executor | None,
) -> Generator[CopiedFilm, None, None]:
    """Yield the rows of earlier runs, checked against the sources, then those of the remaining films."""
    for row in done:
        film = next(sources, None)
        if film is None or hash_id(options.id_key, "uid", film.uid) != row.uid:
            raise UsageError(f"{out} was begun with other films; choose another --out or remove it")
        yield row
    copy = partial(copy_film, out=out, options=options)
    with contextlib.closing(run_in_order(sources, copy, executor, options.in_flight)) as copied:
        for row in copied:
            write(row)
            yield row


# ---------------------------------------------------------------- the report and the state of an interrupted run


@contextlib.contextmanager
def _open_report(
    out: Path, options: DeidentifyOptions
) -> Iterator[tuple[Iterator[CopiedFilm], Callable[[CopiedFilm], None]]]:
    """Yield the rows of the interrupted run and a function that writes a row; `report.csv` appears at the end."""
    partial = out / _PARTIAL
    fresh = _begin(out, options)
    try:
        refusal = ChessError(f"another run is writing {out}; wait for it or choose another --out")
        with hold(partial / "lock", refusal):
            for left in partial.glob("*.dcm.*"):
                left.unlink()
            report = partial / REPORT
            _cut_report(report, out)
            with open(report, "a", encoding="utf-8", newline="") as file:
                yield _read_rows(report), _build_row_writer(file)
                flush_file(report)
            os.replace(report, out / REPORT)
            flush_folder(out)
    except UsageError:
        if fresh and not _has_rows(partial / REPORT):
            shutil.rmtree(out)
        raise
    shutil.rmtree(partial)


def _has_rows(report: Path) -> bool:
    return report.exists() and any(True for _ in _read_rows(report))


def _begin(out: Path, options: DeidentifyOptions) -> bool:
    """Prepare `out` and return whether it is new; refuse anything but an interrupted run of the same kind."""
    started = out / _PARTIAL / "started.json"
    wanted = {"key": hash_id(options.id_key, "study", "\0key"), "allow_burned_in": options.allow_burned_in}
    if (out / REPORT).exists() or out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out} exists already; choose another --out or remove it")
    if started.is_file():
        if json.loads(started.read_text(encoding="ascii")) != wanted:
            raise UsageError(f"{out} was begun with another key or other options; choose another --out or remove it")
        return False
    if out.exists() and any(child.name != _PARTIAL for child in out.iterdir()):
        raise UsageError(f"{out} is not empty; choose another --out")
    started.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(started, json.dumps(wanted).encode())
    return True


def _cut_report(report: Path, out: Path) -> None:
    """Truncate the report after the last complete row whose copy exists; begin a missing report."""
    if not report.exists():
        report.write_text(",".join(COLUMNS) + "\n", encoding="ascii")
        return
    with open(report, "rb+") as file:
        end = len(file.readline())
        for line in file:
            row = _parse_row(line.decode("utf-8", "replace"))
            if not line.endswith(b"\n") or row is None or (row.copy and not (out / row.copy).is_file()):
                break
            end += len(line)
        file.truncate(end)


def _read_rows(report: Path) -> Iterator[CopiedFilm]:
    end = report.stat().st_size  # rows written meanwhile belong to this run
    with open(report, "rb") as file:
        file.readline()
        while file.tell() < end:
            row = _parse_row(file.readline().decode("utf-8"))
            assert row is not None
            yield row


def _parse_row(line: str) -> CopiedFilm | None:
    values = next(csv.reader([line]), [])
    return CopiedFilm(*values) if len(values) == len(COLUMNS) else None


def _build_row_writer(file: TextIO) -> Callable[[CopiedFilm], None]:
    writer = csv.writer(file, lineterminator="\n")

    def write(row: CopiedFilm) -> None:
        writer.writerow((row.uid, row.status, row.reason, row.copy))
        file.flush()  # a killed run loses no row of a finished film

    return write
