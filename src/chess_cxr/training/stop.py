"""Stop a run on a signal, and tell the scheduler by the exit code."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from chess_cxr.records import ChessError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(ChessError):
    """A signal stopped the run after its checkpoint; the exit code is 128 + the signal's number.

    143 for SIGTERM, 138 for SIGUSR1, 130 for SIGINT, as a shell reports a process killed by the signal; distinct from 0
    (finished), 1 (failed: a restart does not help) and 2 (wrong use).

    - SLURM's `--signal=B:USR1@300` signals only the batch script, five minutes before the time limit.  The script must
      forward it and, on exit code 138 or 143, call `scontrol requeue $SLURM_JOB_ID` (`#SBATCH --requeue` only permits
      that).  SLURM requeues a pre-empted job, which gets SIGTERM, by itself.
    - torchrun treats any code but 0 as a failure.  On SIGTERM it forwards the signal, waits `--shutdown-timeout`
      seconds (30 by default) for the checkpoint, and exits with 1.  A signal to a single rank stops all ranks, and
      `--max-restarts` restarts them from the checkpoint.  SIGUSR1 kills torchrun but not its ranks, unless
      `--signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1` makes it forward the signal.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@contextmanager
def catch_stop_signals() -> Iterator[Callable[[], int]]:
    """Catch SIGTERM, SIGINT and SIGUSR1; yield a function that returns the number of the first one, or 0.

    A second SIGINT acts as usual, for an impatient user.  A second SIGTERM or SIGUSR1 does not: SLURM and torchrun may
    both send it, and it must not interrupt the checkpoint.
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
    except ValueError:  # only the main thread can catch signals
        yield lambda: 0
        return
    try:
        yield lambda: caught[0] if caught else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
