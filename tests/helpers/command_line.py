"""Command lines as their users meet them: exit code and what stands on which stream."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from unittest import mock

from chess_cxr import cli

ENVIRONMENT = {"CHESS_CXR_ID_KEY": "sixteen bytes or more", "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


def run(*words: object, cwd: Path | None = None, **env: str) -> Answer:
    """Run one command line in this process: a new one takes up to ten seconds to load torch, timm and torchvision.

    The streams are files, descriptors 1 and 2 included, so what a C library prints is seen too.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        line = ["chess-cxr", *map(str, words)]
        inside = contextlib.chdir(cwd) if cwd else contextlib.nullcontext()
        changed = mock.patch.dict(os.environ, ENVIRONMENT | env), mock.patch.object(sys, "argv", line)
        with changed[0], changed[1], inside, _send(1, out), _send(2, err):
            try:
                code = cli.run(line[1:])
            except SystemExit as stopped:  # help was asked for
                code = int(stopped.code or 0)
        return _check_plain(Answer(code, *(_read(file) for file in (out, err))))


def run_process(
    *words: object, cwd: Path | None = None, program: Sequence[str] = ("-m", "chess_cxr"), **env: str
) -> Answer:
    """Run one command line in a process of its own, for what only a process shows."""
    done = subprocess.run(
        [sys.executable, *program, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | ENVIRONMENT | env,
        timeout=300,
    )
    return _check_plain(Answer(done.returncode, done.stdout, done.stderr))


def _check_plain(answer: Answer) -> Answer:
    """No escape codes may ever reach a pipe or a file."""
    assert "\x1b" not in answer.out + answer.err
    return answer


@contextlib.contextmanager
def _send(number: int, file: IO[bytes]) -> Iterator[None]:
    """Send stream 1 (stdout) or 2 (stderr) of this process to a file for a while."""
    name = {1: "stdout", 2: "stderr"}[number]
    usual, usual_stream = os.dup(number), getattr(sys, name)
    usual_stream.flush()
    os.dup2(file.fileno(), number)
    with open(number, "w", encoding="utf-8", errors="surrogateescape", closefd=False) as stream:
        setattr(sys, name, stream)
        try:
            yield
        finally:
            stream.flush()
            setattr(sys, name, usual_stream)
            os.dup2(usual, number)
            os.close(usual)


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="surrogateescape")
