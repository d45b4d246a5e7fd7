"""The queue on disk: films received, results to send, what failed.  SQLite, shared by any number of processes.

A film goes from received to answered to sent, or ends as failed, with a reason that names no patient.  What a function
of this module has returned is on the disk: after a kill at any moment, the next process finds it.  A film belongs to
the worker that claimed it as long as that worker's process lives, which a lock on a file tells without a clock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chess_cxr.files.whole import flush_folder, write_flushed
from chess_cxr.records import ChessError, UsageError

State = Literal["received", "answered", "sent", "failed"]
STATES: tuple[State, ...] = ("received", "answered", "sent", "failed")
WAIT_SECONDS = 60.0  # for other processes that write
KEPT_DAYS = 30.0  # of rows of films that are done, so that a film sent again is recognised
ORPHAN_SECONDS = 3600.0  # a file without a row is older than any transfer
_TABLES = """
CREATE TABLE IF NOT EXISTS films (
    number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, state TEXT NOT NULL, file TEXT NOT NULL,
    owner TEXT NOT NULL DEFAULT '', tries INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL, since REAL NOT NULL,
    reason TEXT NOT NULL DEFAULT '', failures INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS results (
    film INTEGER NOT NULL REFERENCES films, place INTEGER NOT NULL, file TEXT NOT NULL, sent INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (film, place)
);
CREATE TABLE IF NOT EXISTS seen (key TEXT PRIMARY KEY, value TEXT NOT NULL, since REAL NOT NULL);
CREATE INDEX IF NOT EXISTS films_by_state ON films (state, due);
"""


@dataclass(frozen=True)
class Claim:
    """A film that this worker alone has.

    failures: how often it failed in this state.  lost: how often a process ended while it had the film.
    """

    number: int
    path: Path
    failures: int = 0
    lost: int = 0


class QueueError(ChessError):
    """The disk is full or the database cannot be used: no fault of a film."""

    def __init__(self, cause: Exception) -> None:
        self.cause = type(cause).__name__
        super().__init__(f"the queue cannot be used ({self.cause})")


@dataclass(frozen=True)
class Failed:
    """A film that failed.  since: seconds since 1970.  path: its file, which stays for whoever looks into it."""

    number: int
    reason: str
    since: float
    path: Path


class Queue:
    """The spool folder: `queue.sqlite`, films and results as files, locks of the living workers.

    The folder is for its owner only (mode 0700): the films hold what identifies patients.  The database holds none of
    it; films are known there by hashes of their UIDs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            for name in ("", "films", "results", "workers"):
                (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            self._create_tables()
            self._drop_orphans()
        except (OSError, QueueError) as error:
            cause = error.cause if isinstance(error, QueueError) else type(error).__name__
            raise UsageError(f"cannot use {folder} as spool ({cause})") from None

    def _create_tables(self) -> None:
        """Create the tables once; of processes that start together the others wait."""
        descriptor = os.open(self.folder / "start.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with self._read() as database:
                database.execute("PRAGMA journal_mode = WAL")
                database.executescript(_TABLES)
                if "failures" not in {row[1] for row in database.execute("PRAGMA table_info(films)")}:  # version 0.2
                    database.execute("ALTER TABLE films ADD COLUMN failures INTEGER NOT NULL DEFAULT 0")
        finally:
            os.close(descriptor)

    # ------------------------------------------------------------ receiving

    def add(self, key: str, content: bytes | memoryview) -> bool:
        """Keep a film on the disk; return False if it is known already.

        key: identifies the film and the models that will answer it; only its hash is stored.
        Raises `QueueError` if the disk is full.
        """
        hashed = hash_key(key)
        if self._is_known(hashed):
            return False
        name = f"{uuid.uuid4().hex}.dcm"
        path = self.folder / "films" / name
        now = time.time()
        try:
            self._write_files({path: bytes(content)})
            with self._write() as database:
                added = database.execute(
                    "INSERT OR IGNORE INTO films (key, state, file, due, since) VALUES (?, 'received', ?, ?, ?)",
                    (hashed, name, now, now),
                ).rowcount
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        if not added:
            path.unlink(missing_ok=True)
        return bool(added)

    def _is_known(self, hashed: str) -> bool:
        with self._read() as database:
            return database.execute("SELECT 1 FROM films WHERE key = ?", (hashed,)).fetchone() is not None

    def is_known(self, key: str) -> bool:
        """Whether a film of this key was received before."""
        return self._is_known(hash_key(key))

    # ------------------------------------------------------------ working

    def claim(self, state: State, worker: Worker) -> Claim | None:
        """Return a film in this state that is due and that no living worker has.

        Films with which no process ended come first, then the longest due.  Whatever this worker had claimed before is
        free again.  A film is also due if it was put back later than now: then the clock went back.
        """
        with self._write() as database:
            database.execute("UPDATE films SET owner = '', tries = tries - 1 WHERE owner = ?", (worker.name,))
            owners = [row[0] for row in database.execute("SELECT DISTINCT owner FROM films WHERE owner != ''")]
            for owner in owners:
                if not self._lives(owner):
                    database.execute("UPDATE films SET owner = '' WHERE owner = ?", (owner,))
            row = database.execute(
                "SELECT number, file, failures, tries - failures FROM films WHERE state = ? AND owner = '' "
                "AND (due <= ? OR since > ?) ORDER BY tries - failures, due LIMIT 1",
                (state, now := time.time(), now),
            ).fetchone()
            if row is None:
                return None
            number, name, failures, lost = row
            database.execute("UPDATE films SET owner = ?, tries = tries + 1 WHERE number = ?", (worker.name, number))
        return Claim(number, self.folder / "films" / name, failures, lost)

    def finish_answer(self, claim: Claim, results: Sequence[bytes]) -> None:
        """Keep the results of a film, which is then answered; without results it is done."""
        names = [f"{uuid.uuid4().hex}.dcm" for _ in results]
        self._write_files(
            {self.folder / "results" / name: content for name, content in zip(names, results, strict=True)}
        )
        state: State = "answered" if names else "sent"
        with self._write() as database:
            database.executemany(
                "INSERT INTO results (film, place, file) VALUES (?, ?, ?)",
                [(claim.number, place, name) for place, name in enumerate(names)],
            )
            self._move(database, claim, state)
        if not names:
            claim.path.unlink(missing_ok=True)

    def list_unsent(self, claim: Claim) -> list[tuple[int, Path]]:
        """Return place and file of the results that are still to be sent."""
        with self._read() as database:
            rows = database.execute(
                "SELECT place, file FROM results WHERE film = ? AND sent = 0 ORDER BY place", (claim.number,)
            ).fetchall()
        return [(place, self.folder / "results" / name) for place, name in rows]

    def mark_sent(self, claim: Claim, place: int) -> None:
        """Note that a result has arrived."""
        with self._write() as database:
            database.execute("UPDATE results SET sent = 1 WHERE film = ? AND place = ?", (claim.number, place))

    def finish_sending(self, claim: Claim) -> None:
        """Note that all results have arrived; film and results leave the disk."""
        with self._write() as database:
            names = [row[0] for row in database.execute("SELECT file FROM results WHERE film = ?", (claim.number,))]
            self._move(database, claim, "sent")
        for path in (claim.path, *(self.folder / "results" / name for name in names)):
            path.unlink(missing_ok=True)

    def put_back(self, claim: Claim, seconds: float, count: bool = True) -> None:
        """Give a film back, due again after so many seconds.  count: whether it failed."""
        now = time.time()
        with self._write() as database:
            database.execute(
                "UPDATE films SET owner = '', due = ?, since = ?, tries = tries - ?, failures = failures + ? "
                "WHERE number = ?",
                (now + seconds, now, int(not count), int(count), claim.number),
            )

    def fail(self, claim: Claim, reason: str) -> None:
        """End a film with the reason, one line that names no patient.  Its file stays."""
        with self._write() as database:
            self._move(database, claim, "failed", reason)

    def _move(self, database: sqlite3.Connection, claim: Claim, state: State, reason: str = "") -> None:
        now = time.time()
        database.execute(
            "UPDATE films SET state = ?, owner = '', tries = 0, failures = 0, due = ?, since = ?, reason = ? "
            "WHERE number = ?",
            (state, now, now, reason, claim.number),
        )

    # ------------------------------------------------------------ looking

    def count(self) -> dict[State, int]:
        """Return the number of films in each state."""
        with self._read() as database:
            found = dict(database.execute("SELECT state, COUNT(*) FROM films GROUP BY state").fetchall())
        return {state: found.get(state, 0) for state in STATES}

    def count_waiting(self) -> int:
        """Return the number of films that are not done."""
        with self._read() as database:
            query = "SELECT COUNT(*) FROM films WHERE state IN ('received', 'answered')"
            return int(database.execute(query).fetchone()[0])

    def list_failed(self) -> list[Failed]:
        """Return the films that failed, the latest first."""
        with self._read() as database:
            rows = database.execute(
                "SELECT number, reason, since, file FROM films WHERE state = 'failed' ORDER BY since DESC"
            ).fetchall()
        return [Failed(number, reason, since, self.folder / "films" / name) for number, reason, since, name in rows]

    def try_failed_again(self) -> int:
        """Put all failed films back to work, those with results to be sent; return how many."""
        with self._write() as database:
            return database.execute(
                "UPDATE films SET reason = '', tries = 0, failures = 0, due = ?, state = CASE "
                "WHEN EXISTS (SELECT 1 FROM results WHERE film = number) THEN 'answered' ELSE 'received' END "
                "WHERE state = 'failed'",
                (time.time(),),
            ).rowcount

    # ------------------------------------------------------------ what was seen, for those who ask a server

    def recall(self, key: str) -> str:
        """Return what `note` stored under a key, "" for nothing."""
        with self._read() as database:
            row = database.execute("SELECT value FROM seen WHERE key = ?", (hash_key(key),)).fetchone()
        return row[0] if row else ""

    def note(self, key: str, value: str) -> None:
        """Store a value that `recall` finds, also after a restart; it must not identify a patient."""
        with self._write() as database:
            database.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", (hash_key(key), value, time.time()))

    # ------------------------------------------------------------ order

    def tidy(self) -> None:
        """Forget what has been done for `KEPT_DAYS`."""
        before = time.time() - KEPT_DAYS * 86_400
        with self._write() as database:
            old = "SELECT number FROM films WHERE state = 'sent' AND since < ?"
            database.execute(f"DELETE FROM results WHERE film IN ({old})", (before,))
            database.execute("DELETE FROM films WHERE state = 'sent' AND since < ?", (before,))
            database.execute("DELETE FROM seen WHERE since < ?", (before,))

    def _drop_orphans(self) -> None:
        """Remove files that a killed process left before or after their row; fresh ones may be in use."""
        with self._read() as database:
            films = database.execute("SELECT file FROM films WHERE state != 'sent'").fetchall()
            results = database.execute(
                "SELECT results.file FROM results JOIN films ON film = number WHERE state != 'sent'"
            ).fetchall()
        before = time.time() - ORPHAN_SECONDS
        for folder, rows in (("films", films), ("results", results)):
            named = {row[0] for row in rows}
            for path in (self.folder / folder).iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if path.name not in named and path.stat().st_mtime < before:
                        path.unlink()
        for path in (self.folder / "workers").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < before:  # a new one may not be locked yet
                    self._lives(path.name)

    def _lives(self, owner: str) -> bool:
        """Whether the worker's process holds its lock; the lock of a dead one is removed."""
        path = self.folder / "workers" / owner
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            return False
        except OSError:
            return True
        finally:
            os.close(descriptor)

    def _write_files(self, contents: Mapping[Path, bytes]) -> None:
        """Write files that are on the disk at the end."""
        with explain_queue():
            for path, content in contents.items():
                write_flushed(path, content, 0o600)
            for folder in {path.parent for path in contents}:
                flush_folder(folder)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.folder / "queue.sqlite", timeout=WAIT_SECONDS, isolation_level=None)

    @contextlib.contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with explain_queue(), contextlib.closing(self._connect()) as database:
            yield database

    @contextlib.contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """Write in one transaction that is on the disk at its end."""
        with explain_queue(), contextlib.closing(self._connect()) as database:
            database.execute("PRAGMA synchronous = FULL")
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.rollback()
                raise
            database.commit()


class Worker:
    """Someone who claims films, known by a lock that ends with the process."""

    def __init__(self, queue: Queue) -> None:
        self.name = uuid.uuid4().hex
        self._descriptor = os.open(queue.folder / "workers" / self.name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ChessError(
                f"{queue.folder} is on a file system without locks; choose a spool on a local disk"
            ) from None

    def close(self) -> None:
        """Give up all claims."""
        os.close(self._descriptor)


@contextlib.contextmanager
def explain_queue() -> Iterator[None]:
    """Raise errors of disk and database as `QueueError`."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise QueueError(error) from None


def hash_key(key: str) -> str:
    """Return the hash under which the database knows a film or a study."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
