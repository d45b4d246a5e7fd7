"""Work on one film at a time in a child process with limits, so that no file can take the job down.

A decoder written in C may crash, hang or ask for all memory, and nothing in its own process can stop it.  The child is
a plain subprocess, which any thread, pool process or cluster worker may own; films go to it one at a time.
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
from typing import Any

from chess_cxr.records import ChessError, UsageError

STARTING_SECONDS = 120.0
# A child may be killed while it starts, by whoever frees memory; there may be more a moment later.
STARTS, SECONDS_BETWEEN_STARTS = 4, 0.5
MOST_SECONDS, MOST_GIB = 86_400, 1024
# A child whose owner was killed ends itself this long after its film's time is up.
ORPHAN_SECONDS = 5
# One thread a child.  And glibc keeps the memory of a film for the next one, instead of asking the system for pages and
# giving them back for each.  (32 MiB is the largest threshold that it takes.)
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
}


@dataclass(frozen=True)
class Limits:
    """What one film may take.

    Args:
        film_seconds: time to read one film and decode or copy it, in seconds of the clock.
        film_gib: memory above what the program takes by itself, in GiB.
    """

    film_seconds: float = 60.0
    film_gib: float = 4.0


def check_limits(limits: Limits) -> None:
    """Raise `UsageError` for limits that are none."""
    if not (0 < limits.film_seconds <= MOST_SECONDS and 0 < limits.film_gib <= MOST_GIB):
        raise UsageError(f"a film's limits must be above 0, and at most {MOST_SECONDS} seconds and {MOST_GIB} GiB")


class ChildDied(Exception):
    """The child crashed or ran out of memory on the request."""


class ChildGone(Exception):
    """The child had died before it was asked: nothing is said about the request."""


class ChildLate(Exception):
    """The child did not answer in time and was killed."""


class Child:
    """One process that calls `task` for whoever owns it.

    task: a function of a module, which raises nothing but `ChessError` and ConnectionError.  What it is given and what
    it returns pass over a socket: nothing of it stands on a command line.
    """

    def __init__(self, task: Callable[..., object], limits: Limits, group: ChildGroup | None = None) -> None:
        self.task, self.limits = task, limits
        ours, theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        with theirs:
            # -P: a file cv2.py in the folder that the user stands in must not be taken for the library.
            command = [sys.executable, "-P", "-m", "chess_cxr.workers.child", _name(task), str(theirs.fileno())]
            command += [str(limits.film_seconds), str(limits.film_gib)]
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
        """Return what the child's task returns for one request, or raise what it raised.

        Raises `ChildGone`, `ChildDied` or `ChildLate` too; then the child must not be used again.
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
            self.close()  # its answer would be taken for that to the next request
            raise
        self.close()
        raise ChildLate

    @property
    def is_open(self) -> bool:
        """Whether it can be asked, as far as its owner knows."""
        return not self._connection.closed

    def kill(self) -> None:
        """Kill the process, from any thread: to its owner it will have died."""
        self._process.kill()

    def close(self) -> None:
        """End the process; for its owner alone."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()
        elif hasattr(self, "_connection"):
            self._connection.close()


class ChildGroup:
    """The children of some threads, which can all be ended at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: weakref.WeakSet[Child] = weakref.WeakSet()
        self.ended = False

    def adopt_thread(self) -> None:
        """Take in every child that this thread will start."""
        _own.group = self

    def add(self, child: Child) -> None:
        """Take in a child; where the group has ended, it ends too."""
        with self._lock:
            self._children.add(child)
            if self.ended:
                child.kill()

    def end(self) -> None:
        """Kill all children, whatever they are at, and those that are started later."""
        with self._lock:
            self.ended = True
            for child in self._children:
                child.kill()


_own = threading.local()


def get_child(task: Callable[..., object], limits: Limits) -> Child:
    """Return this thread's child for the task, started when first needed and after it was lost.

    Raises `ChessError` where none can be started, or where the thread's group has ended, `UsageError` for limits that
    are none.
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
    raise ChessError("the decoding process cannot be started; is there memory left?")


def check_not_ended() -> None:
    """Raise `ChessError` where the group of this thread has ended: what became of its child says nothing of a film."""
    group: ChildGroup | None = getattr(_own, "group", None)
    if group is not None and group.ended:
        raise ChessError("the run was ended")


def drop_child() -> None:
    """End this thread's child, if it has one."""
    _own.child = None


atexit.register(drop_child)


def _name(task: Callable[..., Any]) -> str:
    return f"{task.__module__}:{task.__qualname__}"


def _set_limits(film_gib: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the owner's to handle
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the film
    with contextlib.suppress(OSError, ValueError):  # systems without /proc or without this limit
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
            # The alarm's default action ends the process even inside a decoder that never returns.
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
