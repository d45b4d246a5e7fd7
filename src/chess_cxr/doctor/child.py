"""Take the steps in a process of its own, so that a library that crashes or hangs is a line and not the end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from chess_cxr.doctor.check import SEE, Check, Finding, Request, Step, describe_failure, take
from chess_cxr.records import ChessError

STARTING_SECONDS = 120.0
SECONDS_A_STEP = 300.0
# In this order: what needs no library, what needs all but torch, and torch, which takes longest to import.
STAGES: dict[str, str] = {
    "machine": "chess_cxr.doctor.machine:list_steps",
    "packages": "chess_cxr.doctor.packages:list_steps",
    "extras": "chess_cxr.doctor.packages:list_extra_steps",
    "DICOM decoders": "chess_cxr.doctor.codecs:list_dicom_steps",
    "image decoders": "chess_cxr.doctor.codecs:list_image_steps",
    "writers": "chess_cxr.doctor.writers:list_steps",
    "places": "chess_cxr.doctor.places:list_steps",
    "imports": "chess_cxr.doctor.packages:list_import_steps",
    "torch": "chess_cxr.doctor.device:list_steps",
    "encoders and models": "chess_cxr.doctor.places:list_network_steps",
}

_Key = tuple[str, str, str]  # stage, group and name of a step; no name: the list of the stage's steps
_Listing = Callable[[Request], Iterator[Step]]


@dataclass
class _Progress:
    """passed: steps that need not be taken again.  current: the step that the child is at.  advice: where it fails."""

    stages: Sequence[str]
    passed: list[_Key] = field(default_factory=list)
    current: _Key | None = None
    advice: str = ""


def examine(request: Request, stages: Sequence[str] = tuple(STAGES)) -> Iterator[Check]:
    """Take every step of some stages in child processes, a new one after each that is lost, and yield what is found.

    Raises ChessError where no child can be started.
    """
    progress = _Progress(stages)
    while (fate := (yield from _examine_in_child(request, progress))) is not None:
        if progress.current is None:
            raise ChessError(f"the process that examines this machine {fate} before it began")
        stage, group, name = progress.current
        yield Check(name or stage, group, Finding("broken", f"the process {fate} here", progress.advice))
        progress.passed.append(progress.current)


def _examine_in_child(request: Request, progress: _Progress) -> Generator[Check, None, str | None]:
    """Yield what one child finds; return None where it came to the end, else its fate."""
    ours, theirs = socket.socketpair()
    with Connection(ours.detach()) as connection:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "chess_cxr.doctor.child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        progress.current = None
        try:
            asked: dict[str, Any] = {"paths": request.paths, "out": str(request.out)}
            asked |= {"stages": progress.stages, "passed": progress.passed}
            connection.send_bytes(json.dumps(asked).encode("ascii"))
            while connection.poll(SECONDS_A_STEP if progress.current else STARTING_SECONDS):
                told: dict[str, Any] = json.loads(connection.recv_bytes())
                if "begin" in told:
                    progress.current, progress.advice = tuple(told["begin"]), told["advice"]
                elif "check" in told:
                    yield Check.from_json(told["check"])
                    if progress.current:
                        progress.passed.append(progress.current)
                else:
                    return None
            return f"did not answer for {SECONDS_A_STEP if progress.current else STARTING_SECONDS:g} seconds"
        except (EOFError, OSError):
            return _describe_end(process.wait())
        finally:
            process.kill()
            process.wait()


def _describe_end(code: int) -> str:
    """Say how a process ended."""
    if code < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"


def run_stages(
    request: Request,
    stages: Sequence[str],
    passed: Set[_Key],
    on_begin: Callable[[_Key, str], None],
    on_check: Callable[[Check], None],
) -> None:
    """Take the steps that are not among `passed`, in this process."""
    for stage in stages:
        if (stage, "", "") in passed:
            continue
        on_begin((stage, "", ""), SEE)
        steps = _list_steps(STAGES[stage], request)
        if isinstance(steps, Finding):
            on_check(Check(stage, "", steps))
            continue
        for step in steps:
            key = (stage, step.group, step.name)
            if key not in passed:
                on_begin(key, step.advice)
                on_check(take(step))


def _list_steps(place: str, request: Request) -> list[Step] | Finding:
    """Return the steps of a stage, or why its module cannot even be imported."""
    try:
        listing: _Listing = resolve_name(place)
        return list(listing(request))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return describe_failure(error)


def _serve(descriptor: int) -> None:
    with Connection(descriptor) as connection:

        def tell(**told: Any) -> None:
            connection.send_bytes(json.dumps(told, default=str).encode("ascii"))

        asked = json.loads(connection.recv_bytes())
        run_stages(
            Request(tuple(asked["paths"]), Path(asked["out"])),
            asked["stages"],
            {(stage, group, name) for stage, group, name in asked["passed"]},
            lambda key, advice: tell(begin=key, advice=advice),
            lambda check: tell(check=check.as_json()),
        )
        tell(end=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
