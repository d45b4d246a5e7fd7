"""Measure the steps a second of pre-training alone and beside processes that keep all cores busy.

usage: python benchmarks/busy_machine.py [--preset demo] [--seconds 40] [--rounds 3] [--busy CORES]

On generated films (SYNTHETIC).  Sides alternate: alone, then beside one busy process a core, each with the thread
settings of this package and with those that torch would choose by itself (spinning waits).  Where n busy processes
share n cores with the run, its fair share is half of what it does alone.  Prints medians over the rounds, and ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from chess_cxr.workers.cores import count_usable_cores

TRAIN = """
import os, sys, time
from dataclasses import replace
if sys.argv[4] == "spinning":  # what torch does where nobody tells it to sleep
    import torch
import chess_cxr
from chess_cxr.pretraining.presets import PRESETS

def on_step(report, probe):
    at.append(time.perf_counter())
    if len(at) > 5 and at[-1] - at[4] > float(sys.argv[3]):
        print((len(at) - 5) / (at[-1] - at[4]), flush=True)
        os._exit(0)

at = []
config = PRESETS[sys.argv[5]]()
never = 10**9
quiet = replace(config.training, steps=never, probe_every=never, checkpoint_every=never, log_every=never)
chess_cxr.pretrain(sys.argv[1], sys.argv[2], replace(config, training=quiet), on_step)
"""
PREPARE = """
import sys
from pathlib import Path
import chess_cxr as cxr

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    table = cxr.write_phantom_films(folder / "films", patients=64, films_per_patient=3, seed=0, size=128)
    films = cxr.read_folder([folder / "films"], table, {"path": "file", "patient": "patient", "class": "label"})
    cxr.ingest_films(films, folder / "films.lance", cxr.IngestOptions(id_key=b"generated films only"))
"""
BUSY = "while True: sum(range(10000))"


def measure(folder: Path, busy: int, waits: str, args: argparse.Namespace) -> float:
    """Return the steps a second of one run."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    run = tempfile.mkdtemp(prefix="run", dir=folder)
    words = [str(folder / "films.lance"), run, str(args.seconds), waits, args.preset]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    try:
        done = subprocess.run(
            [sys.executable, "-c", TRAIN, *words], env=inherited, capture_output=True, text=True, check=True
        )
    finally:
        for other in others:
            other.kill()
            other.wait()
    return float(done.stdout.split()[-1])


def main() -> None:
    """Alternate the sides and print a line a setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=count_usable_cores())
    args = parser.parse_args()
    rates: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-c", PREPARE, name], check=True, capture_output=True)
        for number in range(args.rounds):
            for waits in ("sleeping", "spinning"):
                for busy in (0, args.busy):
                    rate = measure(folder, busy, waits, args)
                    rates.setdefault((waits, busy), []).append(rate)
                    print(f"round {number + 1}, {waits}, {busy} busy: {rate:.2f} steps/s", file=sys.stderr, flush=True)
    print(f"preset {args.preset}, {count_usable_cores()} cores, {args.busy} busy processes, {args.rounds} rounds")
    for waits in ("sleeping", "spinning"):
        alone, beside = (statistics.median(rates[waits, busy]) for busy in (0, args.busy))
        print(f"{waits:9} alone {alone:6.2f} steps/s  beside {beside:6.2f}  of the fair share {2 * beside / alone:.2f}")


if __name__ == "__main__":
    main()
