"""Commands for a first look: demo, doctor."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from chess_cxr.arguments import (
    Examined,
    print_result,
)
from chess_cxr.records import ChessError


def demo(out: Path = Path("demo"), quick: bool = False, quiet: bool = False) -> None:
    """Walk the whole path on generated films, in minutes.

    Generated DICOM films -> store -> pre-training -> encoder -> classification, bone suppression and nodule generation,
    each with and without the encoder -> report.html, whose path is printed last.  Everything is SYNTHETIC: it shows
    that the software works.

    Example: chess-cxr demo --out demo

    Args:
        out: folder for all that is made; an interrupted demo continues there.
        quick: a tenth of the films and steps, in about a minute: whether it runs, with numbers that mean nothing.
        quiet: no progress on stderr.
    """
    from chess_cxr.demo.run import QUICK, run_demo, shorten_config

    if quick:
        print(run_demo(out, quiet, QUICK, shorten_config()))
    else:
        print(run_demo(out, quiet))


def doctor(paths: Examined = (), out: Path = Path(), json: bool = False) -> None:
    """Say what works on this machine, what does not, and what to do about it.

    Looks at Python, packages, cores, memory, disk, decoders, writers, torch and its device.  A line each: a tick, a
    dash for what is optional, a cross for what the core needs and lacks.  Stores, encoders, models and runs that are
    named as PATH are opened and checked.  The exit code is 1 if there is a cross.

    Example: chess-cxr doctor films.lance encoders/first

    Args:
        paths: stores, encoder folders, model folders and run folders.
        out: a folder on the disk that results will go to.
        json: print everything as JSON.
    """
    from chess_cxr.doctor.check import Request
    from chess_cxr.doctor.child import examine
    from chess_cxr.doctor.render import render

    found, kept = itertools.tee(examine(Request(paths, out)))
    for line in () if json else render(found, sys.stdout.encoding or "utf-8"):
        print(line, flush=True)
    checks = list(kept)
    broken = sum(check.finding.status == "broken" for check in checks)
    if json:
        print_result({"ok": not broken, "checks": [check.as_json() for check in checks]}, json)
    if broken:
        raise ChessError(f"{broken} of {len(checks)} checks found something broken")
