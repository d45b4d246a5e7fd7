"""Train encoders by several recipes for the same seconds, one after the other, each on one thread.

usage: python trials.py TRIALS.toml STORE OUT [--seconds 600] [--core 1] [--only NAME ...]

TRIALS.toml holds a table [trials.NAME] for each recipe: what differs from the preset `cpu_small`, nested as in a run's
config.json.  A `method` with a name, and everything that is no table, takes the preset's place; other tables are
merged.

Steps are as many as fit into the seconds by the fastest five of 40 steps before, so that other work on the machine
makes a trial longer but does not change it.  The learning rate is annealed over them.  Each trial's run and encoder
stand in OUT/NAME.  A trial whose encoder is there is left alone, and one that was interrupted goes on.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chess_cxr.pretraining.presets import PRESETS, PretrainConfig, read_pretrain_config

TIMED_STEPS, LOG_EVERY = 40, 5


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


def count_steps(store: Path, folder: Path, config: PretrainConfig, begin_from: str, core: int, seconds: float) -> int:
    """Time a short run; return how many steps fit into the seconds."""
    short = folder / "timing"
    shutil.rmtree(short, ignore_errors=True)
    described = json.loads(json.dumps(asdict(config)))
    described["training"] |= {
        "steps": TIMED_STEPS,
        "log_every": LOG_EVERY,
        "probe_every": 10**6,
        "checkpoint_every": 10**6,
    }
    (folder / "timing.json").write_text(json.dumps(described))
    pretrain(store, short, folder / "timing.json", begin_from, core)
    lines = [json.loads(line) for line in (short / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(short)
    fastest = min(after["time"] - before["time"] for before, after in itertools.pairwise(lines)) / LOG_EVERY
    print(f"{folder.name}: {fastest:.3f} s a step", flush=True)
    return max(1, round(seconds / fastest))


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
    subprocess.run([*export, str(folder / "encoder")], check=True)
    averaged = subprocess.run([*export, str(folder / "averaged"), "--which", "averaged"], capture_output=True)
    if averaged.returncode:
        print(f"{name}: no averaged encoder", flush=True)


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
