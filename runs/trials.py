"""Train encoders by several recipes for the same CPU seconds, one after the other, each on one thread.

usage: python runs/trials.py TRIALS.toml STORE OUT [--seconds 600] [--core 1] [--only NAME ...]

TRIALS.toml holds a table [trials.NAME] for each recipe: what differs from the preset `cpu_small`, nested as in a run's
config.json.  A `method` with a name, and everything that is no table, takes the preset's place; other tables are
merged.

Steps are as many as fit into the CPU seconds, by the difference between runs of 10 and of 40 steps, so that other work
on the machine makes a trial longer but does not change it.  The learning rate is annealed over them.  Each trial's run
and encoder stand in OUT/NAME.  A trial whose encoder is there is left alone, and one that was interrupted goes on.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chess_cxr.pretraining.presets import PRESETS, PretrainConfig, read_pretrain_config

TIMED_STEPS = (10, 40)


def build_trial(changes: dict[str, Any]) -> tuple[PretrainConfig, str]:
    """Return a trial's configuration, and the encoder that it begins from."""
    described = json.loads(json.dumps(asdict(PRESETS["cpu_small"]())))
    begin_from = changes.get("begin_from", "")
    for name, value in changes.items():
        if name == "begin_from":
            continue
        merged = isinstance(value, dict) and isinstance(described.get(name), dict) and "name" not in value
        described[name] = described[name] | value if merged else value
    return read_pretrain_config(described | {"preset": "trial"}), begin_from


def write_config(config: PretrainConfig, steps: int, path: Path) -> None:
    """Write a configuration for so many steps, with ten probes."""
    described = json.loads(json.dumps(asdict(config)))
    often = max(steps // 10, 1)
    described["training"] |= {"steps": steps, "probe_every": often, "checkpoint_every": often}
    described["training"]["log_every"] = min(described["training"]["log_every"], often)
    path.write_text(json.dumps(described, indent=1))


def pretrain(store: Path, run: Path, config: Path, begin_from: str, core: int) -> None:
    """Run chess-cxr pretrain on one core and one thread."""
    command = ["taskset", "-c", str(core), sys.executable, "-m", "chess_cxr", "pretrain", str(store), "--out", str(run)]
    command += ["--config", str(config), "--device", "cpu", "--quiet", "--trackers"]
    command += ["--begin-from", begin_from] if begin_from else []
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def measure_run(store: Path, folder: Path, config: PretrainConfig, begin_from: str, core: int, steps: int) -> float:
    """Return the CPU seconds of a short run."""
    described = json.loads(json.dumps(asdict(config)))
    often = {"log_every": steps, "probe_every": 10**6, "checkpoint_every": 10**6}
    described["training"] |= {"steps": steps} | often
    (folder / "timing.json").write_text(json.dumps(described))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    pretrain(store, folder / "timing", folder / "timing.json", begin_from, core)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(folder / "timing")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def count_steps(store: Path, folder: Path, config: PretrainConfig, begin_from: str, core: int, seconds: float) -> int:
    """Time two short runs; return how many steps fit into the seconds."""
    shutil.rmtree(folder / "timing", ignore_errors=True)
    short, long = (measure_run(store, folder, config, begin_from, core, steps) for steps in TIMED_STEPS)
    step = (long - short) / (TIMED_STEPS[1] - TIMED_STEPS[0])
    print(f"{folder.name}: {step:.3f} CPU seconds a step", flush=True)
    return max(1, round(seconds / step))


def run_trial(name: str, changes: dict[str, Any], store: Path, out: Path, core: int, seconds: float) -> None:
    """Train and export one trial."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    config, begin_from = build_trial(changes)
    if not (folder / "config.json").exists():
        steps = count_steps(store, folder, config, begin_from, core, seconds)
        write_config(config, steps, folder / "config.json")
    started = time.monotonic()
    pretrain(store, folder / "run", folder / "config.json", begin_from, core)
    print(f"{name}: {time.monotonic() - started:.0f} s, with probes", flush=True)
    export = [sys.executable, "-m", "chess_cxr", "export", str(folder / "run"), "--out"]
    if not (folder / "averaged").exists():
        averaged = subprocess.run([*export, str(folder / "averaged"), "--which", "averaged"], capture_output=True)
        if averaged.returncode:
            print(f"{name}: no averaged encoder", flush=True)
    subprocess.run([*export, str(folder / "encoder")], check=True)  # last: it says that all is done


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--core", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[])
    asked = parser.parse_args()
    trials = tomllib.loads(asked.trials.read_text())["trials"]
    for name, changes in trials.items():
        if asked.only and name not in asked.only or (asked.out / name / "encoder").exists():
            continue
        try:
            run_trial(name, changes, asked.store, asked.out, asked.core, asked.seconds)
        except subprocess.CalledProcessError as error:
            print(f"{name}: failed with exit code {error.returncode}", flush=True)


if __name__ == "__main__":
    main()
