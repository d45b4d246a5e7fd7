"""Process films one at a time in a child process with limits, so that no file can stop the job.

A decoder written in C may crash, hang or allocate all memory, and nothing inside its process can stop it.  The child is
a plain subprocess that any thread, pool process or cluster worker may own.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from pkgutil import resolve_name

from chess_cxr.records import ChessError, UsageError

STARTING_SECONDS = 120.0
# The out-of-memory killer may hit a child that is starting; a moment later there may be memory.
STARTS, SECONDS_BETWEEN_STARTS = 4, 0.5
MOST_SECONDS, MOST_GIB = 86_400, 1024
# An orphaned child ends itself this long after the time limit of its film.
ORPHAN_SECONDS = 5
# One thread a child.  glibc keeps the memory of one film for the next instead of returning it to the system; 32 MiB is
# the largest threshold it accepts.
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
}
_own = threading.local()  # group and child of each thread


@dataclass(frozen=True)
class Limits:
    """Limits for one film.

    Args:
        film_seconds: seconds in which a film must be read and decoded or copied.
        film_gib: memory for a film, in GiB above what the program itself needs.
    """

    film_seconds: float = 60.0
    film_gib: float = 4.0


def check_limits(limits: Limits) -> None:
    """Raise `UsageError` unless limits are positive and bounded."""
    if not (0 < limits.film_seconds <= MOST_SECONDS and 0 < limits.film_gib <= MOST_GIB):
        raise UsageError(f"a film's limits must be above 0, and at most {MOST_SECONDS} seconds and {MOST_GIB} GiB")


class ChildDied(Exception):
    """The child crashed or ran out of memory while it served the request."""


class ChildGone(Exception):
    """The child had died before the request, which is not to blame."""


class ChildLate(Exception):
    """The child did not answer in time and was killed."""


class NoChild(ChessError):
    """No child can be started, which is no fault of a film."""


class Child:
    """Child process that calls `task` for its owner.

    task: function of a module that raises only `ChessError` and `ConnectionError`.  Arguments and results pass through
    a socket; none of them appears on a command line.
    """

    def __init__(self, task: Callable[..., object], limits: Limits, group: ChildGroup | None = None) -> None:
        self.task, self.limits = task, limits
        ours, theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        with theirs:
            # -P: a file cv2.py in the working directory must not shadow the library.
            command = [sys.executable, "-P", "-m", "chess_cxr.workers.child", f"{task.__module__}:{task.__qualname__}"]
            command += [str(theirs.fileno()), str(limits.film_seconds), str(limits.film_gib)]
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # C libraries print what they read, names included
                env=os.environ | ENVIRONMENT,
            )
        if group is not None:
            group.add(self)
        self._receive(STARTING_SECONDS)

    def ask(self, *request: object) -> object:
        """Return the result of the task for one request, or raise its error.

        After `ChildGone`, `ChildDied` or `ChildLate` the child must not be used again.
        """
        try:
            self._connection.send(request)
        except OSError:
            self.close()
            raise ChildGone from None
        answer = self._receive(self.limits.film_seconds)
        if isinstance(answer, (ConnectionError, ChessError)):
            raise answer
        return answer

    def _receive(self, seconds: float) -> object:
        try:
            if self._connection.poll(seconds):
                answer: object = self._connection.recv()
                return answer
        except (EOFError, OSError):
            self.close()
            raise ChildDied from None
        except BaseException:
            self.close()  # a late answer would be taken for the next one
            raise
        self.close()
        raise ChildLate

    @property
    def is_open(self) -> bool:
        """Whether the child can be asked, as far as its owner knows."""
        return not self._connection.closed

    def kill(self) -> None:
        """Kill the process, from any thread; its owner sees it die."""
        self._process.kill()

    def close(self) -> None:
        """End the process; only its owner may call this."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()
        elif hasattr(self, "_connection"):
            self._connection.close()


class ChildGroup:
    """Children of several threads that can be ended together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: weakref.WeakSet[Child] = weakref.WeakSet()
        self.ended = False

    def adopt_thread(self) -> None:
        """Add every child that this thread will start."""
        _own.group = self

    def add(self, child: Child) -> None:
        """Add a child; kill it if the group has ended."""
        with self._lock:
            self._children.add(child)
            if self.ended:
                child.kill()

    def end(self) -> None:
        """Kill all children, now and in future."""
        with self._lock:
            self.ended = True
            for child in self._children:
                child.kill()


def get_child(task: Callable[..., object], limits: Limits) -> Child:
    """Return this thread's child for the task; start it at the first call and after a loss.

    Raises `NoChild` if none can be started, `ChessError` if the thread's group has ended, `UsageError` for invalid
    limits.
    """
    check_not_ended()
    child: Child | None = getattr(_own, "child", None)
    if child is None or not child.is_open or (child.task, child.limits) != (task, limits):
        drop_child()
        child = _own.child = _start_child(task, limits)
    return child


def _start_child(task: Callable[..., object], limits: Limits) -> Child:
    check_limits(limits)
    for start in range(STARTS):
        if start:
            time.sleep(SECONDS_BETWEEN_STARTS)
        try:
            return Child(task, limits, getattr(_own, "group", None))
        except (ChildDied, OSError):
            check_not_ended()
        except ChildLate:
            break
    raise NoChild("the decoding process cannot be started; is there memory left?")


def check_not_ended() -> None:
    """Raise `ChessError` if the group of this thread has ended; the loss of its child is then no fault of a film."""
    group: ChildGroup | None = getattr(_own, "group", None)
    if group is not None and group.ended:
        raise ChessError("the run was ended")


def drop_child() -> None:
    """End this thread's child, if it has one."""
    _own.child = None


atexit.register(drop_child)


def _set_limits(film_gib: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the owner handles Ctrl-C
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the film
    with contextlib.suppress(OSError, ValueError):  # a system without /proc or this limit
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + int(film_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _serve(task: Callable[..., object], descriptor: int, film_seconds: float, film_gib: float) -> None:
    import cv2

    cv2.setNumThreads(1)
    _set_limits(film_gib)
    with Connection(descriptor) as connection, contextlib.suppress(EOFError, OSError):
        connection.send("ready")
        while True:
            request = connection.recv()
            # By default this alarm ends the process, even inside a decoder that never returns.
            signal.setitimer(signal.ITIMER_REAL, film_seconds + ORPHAN_SECONDS)
            answer: object
            try:
                answer = task(*request)
            except ChessError as error:
                answer = error
            except ConnectionError:
                answer = ConnectionError()  # its text may name the film
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(answer)


if __name__ == "__main__":
    _serve(resolve_name(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
    os._exit(0)  # threads that the task left, such as those of an open DICOM association, would keep the process
