"""Paths that do to their reader what a broken decoder does; decoding processes import them through PYTHONPATH."""

import os
import threading
import time


class PathThatKillsItsReader:
    """A file that takes the whole process with it, as one does that crashes a decoder written in C."""

    def __fspath__(self) -> str:
        os._exit(1)


class PathThatNeverAnswers:
    """A file whose reading never ends."""

    def __fspath__(self) -> str:
        time.sleep(600)
        return ""


def leave_thread() -> None:
    """A task that leaves a thread which does not end with the main one."""
    threading.Thread(target=time.sleep, args=(600,)).start()
