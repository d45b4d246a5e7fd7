"""Take the steps of the doctor in child processes, so that a library that crashes or hangs costs one line only."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from chess_cxr.doctor.check import SEE, Check, Finding, Request, Step, describe_failure, take
from chess_cxr.records import ChessError

STARTING_SECONDS = 120.0
SECONDS_A_STEP = 300.0
# In order of the libraries they need: none, all but torch, and torch, which takes longest to import.
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


def examine(request: Request, stages: Sequence[str] = tuple(STAGES)) -> Iterator[Check]:
    """Take every step of some stages in a child process, replaced after each loss, and yield the checks.

    Raises `ChessError` if no child can be started.
    """
    with ExitStack() as stack:
        with suppress(OSError):  # without a temporary folder, the steps that need one report it
            made = tempfile.TemporaryDirectory(prefix="chess-cxr-doctor-", ignore_cleanup_errors=True)
            request = replace(request, scratch=Path(stack.enter_context(made)))
        examiner = stack.enter_context(_Examiner(request))
        for stage in stages:
            listed = examiner.ask(stage, None, stage, "", SEE)
            if isinstance(listed, Check):
                yield listed
                continue
            for number, (name, group, advice) in enumerate(listed):
                yield examiner.ask(stage, number, name, group, advice)


class _Examiner:
    """Owner of a child process, which it starts when needed; a context manager."""

    def __init__(self, request: Request) -> None:
        self._asked = (request.paths, str(request.out), request.scratch and str(request.scratch))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Examiner:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._connection.close()
            self._process.kill()
            self._process.wait()
            self._process = None

    def ask(self, stage: str, number: int | None, name: str, group: str, advice: str) -> Any:
        """Return the check of a step, or without number the (name, group, advice) of all steps of a stage.

        A lost child is a broken check, with the name, group and advice given here.
        """
        if not self._process:
            self._start()
            _, fate = self._call(self._asked, STARTING_SECONDS)
            if fate:
                raise ChessError(f"the process that examines this machine {fate} before it began")
        answer, fate = self._call((stage, number), SECONDS_A_STEP)
        if fate:
            self.__exit__()
            return Check(name, group, Finding("broken", f"the process {fate} here", advice))
        return Check.from_json(answer) if isinstance(answer, dict) else answer

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "chess_cxr.doctor.child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def _call(self, request: object, seconds: float) -> tuple[Any, str]:
        """Send a request; return the answer, and the fate of a child that does not give one."""
        assert self._process
        try:
            self._connection.send_bytes(json.dumps(request).encode("ascii"))
            if self._connection.poll(seconds):
                return json.loads(self._connection.recv_bytes()), ""
        except (EOFError, OSError):
            return None, _describe_end(self._process.wait())
        return None, f"did not answer for {seconds:g} seconds"


def _describe_end(code: int) -> str:
    """Describe how a process ended."""
    if code < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"


def list_stage(stage: str, request: Request) -> list[Step] | Check:
    """Return the steps of a stage, or a broken check if its module cannot be imported."""
    try:
        return list(resolve_name(STAGES[stage])(request))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return Check(stage, "", describe_failure(error))


def _serve(descriptor: int) -> None:
    with Connection(descriptor) as connection, suppress(EOFError):
        paths, out, scratch = json.loads(connection.recv_bytes())
        request = Request(tuple(paths), Path(out), scratch and Path(scratch))
        listed: dict[str, list[Step] | Check] = {}
        answer: object = "ready"
        while True:
            connection.send_bytes(json.dumps(answer, default=str).encode("ascii"))
            stage, number = json.loads(connection.recv_bytes())
            if stage not in listed:
                listed[stage] = list_stage(stage, request)
            steps = listed[stage]
            if isinstance(steps, Check):
                answer = steps.as_json()
            elif number is None:
                answer = [(step.name, step.group, step.advice) for step in steps]
            else:
                answer = take(steps[number]).as_json()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
