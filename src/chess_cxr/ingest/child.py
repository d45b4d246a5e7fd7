"""Decoding in a child process with limits, so that no file can take the job down.

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
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from chess_cxr.records import ChessError

STARTING_SECONDS = 120.0
# A child whose owner was killed ends itself this long after its film's time is up.
ORPHAN_SECONDS = 5


@dataclass(frozen=True)
class Limits:
    """What one film may take.

    Args:
        film_seconds: time to read and decode one film, in seconds of the clock.
        film_gib: memory above what the decoder takes by itself, in GiB.
    """

    film_seconds: float = 60.0
    film_gib: float = 4.0


class ChildDied(Exception):
    """The child crashed or ran out of memory on the request."""


class ChildGone(Exception):
    """The child had died before it was asked: nothing is said about the request."""


class ChildLate(Exception):
    """The child did not answer in time and was killed."""


class Child:
    """One process that calls `chess_cxr.ingest.encoding.encode_film_file` for whoever owns it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        ours, theirs = socket.socketpair()
        with theirs:
            # -P: a file cv2.py in the folder that the user stands in must not be taken for the library.
            command = [sys.executable, "-P", "-m", "chess_cxr.ingest.child", str(theirs.fileno())]
            command += [str(limits.film_seconds), str(limits.film_gib)]
            one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # C libraries print what they read, names included
                env=os.environ | one_thread,
            )
        self._connection = Connection(ours.detach())
        try:
            self._receive(STARTING_SECONDS)
        except (ChildDied, ChildLate):
            raise ChessError("the decoding process cannot be started; is there memory left?") from None

    def ask(self, *request: object) -> object:
        """Return what the child answers to one request; afterwards a child that raised must not be used again.

        Raises `ChildGone`, `ChildDied`, `ChildLate`, or ConnectionError where the films' own store cannot be reached.
        """
        try:
            self._connection.send(request)
        except OSError:
            self.close()
            raise ChildGone from None
        answer = self._receive(self.limits.film_seconds)
        if isinstance(answer, ConnectionError):
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
        self.close()
        raise ChildLate

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def __del__(self) -> None:
        if hasattr(self, "_connection"):
            self.close()


_own = threading.local()


def get_child(limits: Limits) -> Child:
    """Return the child of this thread, started when first needed and after it was dropped."""
    child: Child | None = getattr(_own, "child", None)
    if child is None or child.limits != limits:
        child = _own.child = Child(limits)
    return child


def drop_child() -> None:
    """End this thread's child, if it has one."""
    _own.child = None


atexit.register(drop_child)


def _set_limits(film_gib: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the owner's to handle
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the film
    with contextlib.suppress(OSError, ValueError):  # systems without /proc or without this limit
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + int(film_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _serve(descriptor: int, film_seconds: float, film_gib: float) -> None:
    import cv2

    from chess_cxr.ingest.encoding import encode_film_file

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
                answer = encode_film_file(*request)
            except ConnectionError:
                answer = ConnectionError()  # its text may name the film
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(answer)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
