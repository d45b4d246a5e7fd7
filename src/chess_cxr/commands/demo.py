"""Commands for a first look: demo, doctor."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from chess_cxr.arguments import Examined, print_result
from chess_cxr.encoders.names import locate_encoder
from chess_cxr.records import ChessError


def demo(out: Path = Path("demo"), quick: bool = False, quiet: bool = False) -> None:
    """Run the whole pipeline on generated films, in minutes.

    Generated DICOM films -> store -> pre-training -> encoder -> classification, bone suppression and nodule generation,
    each with and without the encoder -> report.html, whose path is printed last.  All data are SYNTHETIC: the demo
    shows that the software works.

    Example: chess-cxr demo --out demo

    Args:
        out: folder for all results; if interrupted, the same command continues there.
        quick: use a tenth of the films and steps, to see in about a minute whether it runs; the numbers mean nothing.
        quiet: show no progress.
    """
    from chess_cxr.demo.run import QUICK, run_demo, shorten_config

    size, config = (QUICK, shorten_config()) if quick else (None, None)
    print(run_demo(out, quiet, size, config))


def doctor(paths: Examined = (), out: Path = Path(), json: bool = False) -> None:
    """Check this installation, and tell how to fix what does not work.

    Checks Python, packages, cores, memory, disk, decoders, writers, torch and its device, and every store, encoder,
    model and run given as PATH.  Prints one line per check: a tick, a dash for an optional part that is missing, or a
    cross for a required one.  The exit code is 1 if there is a cross.

    Example: chess-cxr doctor films.lance encoders/first

    Args:
        paths: stores, encoder folders, published encoders, model folders and run folders to check.
        out: a folder on the disk where results will be written.
        json: print everything as JSON.
    """
    from chess_cxr.doctor.check import Request
    from chess_cxr.doctor.child import examine
    from chess_cxr.doctor.render import render

    places = tuple(locate_encoder(path) for path in paths)
    found, kept = itertools.tee(examine(Request(places, out)))
    for line in () if json else render(found, sys.stdout.encoding or "utf-8"):
        print(line, flush=True)
    checks = list(kept)
    broken = sum(check.finding.status == "broken" for check in checks)
    if json:
        print_result({"ok": not broken, "checks": [check.as_json() for check in checks]}, json)
    if broken:
        raise ChessError(f"{broken} of {len(checks)} checks found something broken")
