"""What `chess-cxr plan` says of a run on this machine, against the run.

usage: OMP_NUM_THREADS=1 python benchmarks/plan_accuracy.py STORE [--preset cpu_small] [--minutes 10] [--calibrate 60]

Calibrates, plans, then trains for that many minutes in a folder that is removed, probes and checkpoints included, and
prints the seconds that the plan gives for as many steps beside the seconds they took.  On a quiet machine only.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from chess_cxr.pretraining.calibrate import calibrate
from chess_cxr.pretraining.plan import estimate_machine_seconds, plan
from chess_cxr.pretraining.presets import build_config
from chess_cxr.pretraining.pretrain import pretrain
from chess_cxr.store import open_store
from chess_cxr.training.loop import StepReport


class EnoughError(Exception):
    """The minutes are over."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--preset", default="cpu_small")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--calibrate", type=float, default=60, help="seconds")
    chosen = parser.parse_args()
    config, store = build_config(chosen.preset), open_store(chosen.store)
    calibration = calibrate(config, store, chosen.calibrate)
    planned = plan(config, len(store), calibration=calibration)
    print(planned.as_text(), flush=True)
    done, taken, started = 0, 0.0, time.perf_counter()

    def note(report: StepReport, _probe: Mapping[str, float]) -> None:
        nonlocal done, taken
        done, taken = report.step, time.perf_counter() - started
        if taken > 60 * chosen.minutes:
            raise EnoughError

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(EnoughError):
        pretrain(store, Path(folder) / "run", config, note)
    expected = estimate_machine_seconds(config, calibration, planned.step_seconds, done)
    print(f"{done} steps: planned {expected:.0f} s, taken {taken:.0f} s, planned / taken {expected / taken:.2f}")


if __name__ == "__main__":
    main()
