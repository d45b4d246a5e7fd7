"""Being told to stop: which signals, and what the process says to whoever started it when it goes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from chess_cxr.records import ChessError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(ChessError):
    """A run that a signal stopped, after it wrote its checkpoint; the exit code is 128 + the signal's number.

    143 for SIGTERM, 138 for SIGUSR1, 130 for SIGINT: what a shell reports of a process that the signal ended, told
    apart from 0 (finished), 1 (failed: starting it again does not help) and 2 (wrong use).

    - SLURM's `--signal=B:USR1@300` tells the batch script alone, five minutes before the time is up; the script
      passes it on to what it started and, on 138 or 143, calls `scontrol requeue $SLURM_JOB_ID` (`#SBATCH --requeue`
      only permits that).  A pre-empted job gets SIGTERM and is put back into the queue by SLURM itself.
    - torchrun takes any code but 0 as a failure.  Told SIGTERM itself, it passes the signal on, waits
      `--shutdown-timeout` seconds (30 by default) for the checkpoint, and ends with 1.  A rank that is told without
      torchrun makes all ranks stop, and `--max-restarts` starts them again from the checkpoint.  SIGUSR1 would end
      torchrun and leave its ranks alone; `--signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1` passes it on.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@contextmanager
def catch_stop_signals() -> Iterator[Callable[[], int]]:
    """Turn SIGTERM, SIGINT and SIGUSR1 into a number the loop asks for after each step: 0, or the first one's.

    A second SIGINT acts as usual: somebody sits at the keyboard and is in a hurry.  SIGTERM and SIGUSR1 never do:
    SLURM and torchrun may both tell a process the same, and the second messenger must not spoil the checkpoint.
    """
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        for number in before:
            signal.signal(number, note)
    except ValueError:  # signals belong to the main thread: elsewhere nothing can be caught
        yield lambda: 0
        return
    try:
        yield lambda: caught[0] if caught else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
