"""Calibrate this machine for `chess-cxr plan`: time the parts of a short real run of a preset."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from chess_cxr.device import choose_device
from chess_cxr.files.locations import find_own_folder
from chess_cxr.files.whole import write_atomically
from chess_cxr.film_jpeg import encode_film
from chess_cxr.methods import METHODS
from chess_cxr.pretraining.films import build_film_pool, read_view_batches
from chess_cxr.pretraining.presets import PretrainConfig
from chess_cxr.pretraining.pretrain import pretrain
from chess_cxr.records import ImageRecord, UsageError
from chess_cxr.sources.phantom.anatomy import draw_anatomy
from chess_cxr.sources.phantom.film import draw_exposure, render_film
from chess_cxr.store import Store, StoredFilm, get_store, write_store
from chess_cxr.training.loop import Method, StepReport
from chess_cxr.training.speed import StepCost, count_step_cost, measure_gemm_peak

PROBE_EVERY = 12  # steps; few, so that even a slow machine shows two probes and two checkpoints
GENERATED_FILMS, RENDERED_FILMS, FILM_SIDE = 256, 8, 512
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Calibration:
    """The speed of one preset on one machine.

    step_flops: counted FLOPs of a step.  peak_gflops: of a matrix product in the preset's precision.
    step_seconds: mean of a step, with waiting for the loader.  The other seconds are those of a single event.
    pairs_a_core_second: films that one core decodes, and draws two views of, per second.
    film_bytes: mean size of an encoded film.
    """

    machine: str
    date: str
    preset: str
    method: str
    architecture: str
    size: int
    batch: int
    precision: str
    threads: int
    data: str
    steps: int
    step_flops: int
    peak_gflops: float
    step_seconds: float
    probe_seconds: float
    checkpoint_seconds: float
    start_seconds: float
    pairs_a_core_second: float
    film_bytes: float

    @property
    def gflop_per_second(self) -> float:
        """The speed of the steps."""
        return self.step_flops / self.step_seconds / 1e9


class _EnoughError(Exception):
    """Ends the short run from within."""


def calibrate(config: PretrainConfig, store: Store | Path | str | None = None, seconds: float = 40.0) -> Calibration:
    """Train `config` for about `seconds` in a temporary folder, and time the parts of the run.

    store: real films, best those of the run to plan; None for generated ones.  Other work on the machine slows the
    measurement down.
    Raises UsageError for a negative or infinite time.
    """
    if not 0 <= seconds < math.inf:
        raise UsageError("--seconds must be 0 or more")
    with tempfile.TemporaryDirectory(prefix="chess-cxr-calibrate-") as folder:
        opened = get_store(store if store is not None else _write_generated_films(Path(folder) / "films.lance"))
        pairs = _measure_loader(config, opened)
        steps, times = _time_run(config, opened, Path(folder) / "run", seconds)
        size = _measure_film_bytes(opened)
    cost = count_config_cost(config)
    device = choose_device()
    return Calibration(
        machine=torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} {device.type}",
        date=datetime.date.today().isoformat(),
        preset=config.preset,
        method=config.method.name,
        architecture=config.method.architecture,
        size=config.views.size,
        batch=config.training.batch,
        precision=config.training.precision,
        threads=torch.get_num_threads(),
        data="generated films" if store is None else f"{len(opened)} films of {opened.path.name}",
        steps=steps,
        step_flops=cost.flops,
        peak_gflops=measure_gemm_peak(device, dtype=DTYPES[config.training.precision]),
        pairs_a_core_second=pairs,
        film_bytes=size,
        **times,
    )


def find_calibration() -> Path:
    """Return the path of the user's calibration: `$XDG_CONFIG_HOME/chess-cxr/calibration.json`, or `~/.config/…`."""
    return find_own_folder() / "calibration.json"


def write_calibration(calibration: Calibration, path: Path | None = None) -> Path:
    """Write a calibration as JSON, whole or not at all; return its path."""
    path = path or find_calibration()
    write_atomically(path, json.dumps(asdict(calibration), indent=1).encode())
    return path


def read_calibration(path: Path | None = None) -> Calibration:
    """Read a calibration; raises UsageError if it is absent or invalid."""
    path = path or find_calibration()
    try:
        text = path.read_text()
    except OSError:
        raise UsageError(f"{path} is absent: measure this machine with: chess-cxr plan --calibrate") from None
    try:
        return TypeAdapter(Calibration).validate_json(text)
    except ValidationError:
        problem = f"{path} is no calibration of this version; write it again: chess-cxr plan --calibrate"
        raise UsageError(problem) from None


def count_config_cost(config: PretrainConfig, ranks: int = 1) -> StepCost:
    """Count the cost of one rank's step of a configuration, without memory for its networks."""
    return count_step_cost(build_weightless(config), get_batch_shape(config, ranks), config.training.precision)


def build_weightless(config: PretrainConfig) -> Method:
    """Build a configuration's method on the meta device, without memory for its weights."""
    with torch.device("meta"):
        method: Method = METHODS[config.method.name][1](config.method, steps=config.training.steps)
    assert isinstance(method, torch.nn.Module)
    method.to(memory_format=torch.channels_last)
    return method


def get_batch_shape(config: PretrainConfig, ranks: int = 1) -> tuple[int, ...]:
    """Return the shape of one rank's batch of view pairs."""
    size = config.views.size
    return (2, config.training.batch // ranks, 1, size, size)


def _time_run(config: PretrainConfig, store: Store, folder: Path, seconds: float) -> tuple[int, dict[str, float]]:
    """Train for `seconds` after the first step, and at least two probes and checkpoints; return steps and times."""
    training = replace(
        config.training,
        steps=max(config.training.steps, 4 * PROBE_EVERY),
        probe_every=PROBE_EVERY,
        checkpoint_every=PROBE_EVERY,
        log_every=min(config.training.log_every, PROBE_EVERY),
    )
    reports: list[StepReport] = []
    beside: list[float] = []  # seconds between the ends of two steps, without the later step
    started = last = time.perf_counter()

    def note(report: StepReport, _probe: Mapping[str, float]) -> None:
        nonlocal last
        now = time.perf_counter()
        reports.append(report)
        beside.append(max(now - last - report.seconds, 0.0))
        last = now
        if len(reports) >= 2 * PROBE_EVERY + 1 and now - started - beside[0] >= seconds:
            raise _EnoughError

    with contextlib.suppress(_EnoughError):
        pretrain(store, folder, replace(config, training=training), note)
    steps = [report.seconds for report in reports[2:]]  # the first ones choose kernels and fill the loader
    return (
        len(steps),
        {
            "step_seconds": statistics.mean(steps),  # not the median, as slow steps are part of a run
            "probe_seconds": statistics.median(beside[PROBE_EVERY - 1 :: PROBE_EVERY]),
            "checkpoint_seconds": statistics.median(beside[PROBE_EVERY::PROBE_EVERY]),
            "start_seconds": beside[0],
        },
    )


def _measure_loader(config: PretrainConfig, store: Store, batches: int = 3) -> float:
    """Measure the view pairs that one core prepares per second of CPU time."""
    pool = build_film_pool([store], config.splits)
    batch = min(config.training.batch, 64)
    prepared: Iterator[object] = read_view_batches(
        pool, config.views, batch=batch, seed=0, first_step=0, steps=batches + 1, threads=1, positives=config.positives
    )
    next(prepared)
    # the loader's thread works ahead: measure all its work from here to the end
    started = time.process_time()
    done = sum(1 for _ in prepared)
    return batch * done / max(time.process_time() - started, 1e-9)


def _measure_film_bytes(store: Store, most: int = 200) -> float:
    rows = np.linspace(0, len(store) - 1, min(len(store), most)).astype(int)
    return float(np.mean([len(jpeg) for jpeg in store.read_jpegs(rows)]))


def _write_generated_films(path: Path) -> Path:
    """Write a store of a few generated films, each many times, which takes the loader as long as different films."""
    drawn = [render_film(draw_anatomy(seed), draw_exposure(seed), size=FILM_SIDE) for seed in range(RENDERED_FILMS)]
    jpegs = [encode_film(film.pixels.astype(np.float32) / 4095, FILM_SIDE) for film in drawn]

    def list_films() -> Iterator[StoredFilm]:
        for number in range(GENERATED_FILMS):
            split = "val" if number % 8 >= 6 else "train"
            record = ImageRecord(uid=f"{number:032x}", patient=f"p{number}", split=split, labels={"odd": number % 2.0})
            yield StoredFilm(record, *jpegs[number % RENDERED_FILMS])

    write_store(path, list_films(), ["odd"], "generated films (SYNTHETIC)")
    return path
