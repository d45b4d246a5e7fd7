"""Films a second of the loader against the bare JPEG decoder, and how long `cpu_small` waits for its batches.

usage: OMP_NUM_THREADS=1 python benchmarks/loader.py DATA [--films 2000] [--rounds 7] [--threads 1] [--steps 8]

DATA holds pool.csv, real films; some, evenly spread over its sets, are first ingested into a store that is thrown away.

reading: the films of training's batches in training's order, to arrays, as the loader does before it draws views, from
memory (the loader holds pools of up to 1 GB) and from the store's files (in the system's cache), against simplejpeg on
the same JPEGs in memory, on the same number of threads.
Two decodes: of whole films, and at the reduced size that 64-pixel views ask for.  In turn in every round, medians, by
the processor's clock (all threads of the process, those of Lance too) and by the wall's.
waiting: training of the preset, its batches from the loader or one batch held in memory, in turn in every round; the
share of its steps' time that training waits for the loader, the first step of a round, which fills it, left out.
"""

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from torch import Tensor

from chess_cxr.film_jpeg import decode_stored
from chess_cxr.ingest.options import IngestOptions
from chess_cxr.ingest.pipeline import ingest_films
from chess_cxr.methods.moco import MoCo
from chess_cxr.pretraining.crops import OVERSAMPLING
from chess_cxr.pretraining.films import (
    HELD_BYTES,
    FilmPool,
    build_film_pool,
    build_reader,
    read_view_batches,
)
from chess_cxr.pretraining.presets import PretrainConfig, cpu_small
from chess_cxr.records import SourceFilm
from chess_cxr.store import open_store
from chess_cxr.training.loop import build_optimizers, train
from chess_cxr.training.order import compute_batch

SPLITS = ("train", "val", "test", "")
BATCH, SEED = 128, 0
Work = Callable[[int], object]


def build_pool(data: Path, count: int, out: Path) -> FilmPool:
    """Ingest evenly spread films of the pool and open their store."""
    with (data / "pool.csv").open() as file:
        names = [row["file"] for row in csv.DictReader(file)]
    chosen = [names[place] for place in np.linspace(0, len(names) - 1, min(count, len(names))).astype(int)]
    summary = ingest_films([SourceFilm(data / name, name) for name in chosen], out, IngestOptions(bytes(16)))
    print(f"{summary.films} films of the pool ingested", flush=True)
    return build_film_pool([open_store(out)], SPLITS)


def keep_largest(pool: FilmPool) -> tuple[FilmPool, int]:
    """Return the films whose longest side is the longest of the pool, and that side."""
    side_N = pool.stores[0].films[["height", "width"]].max(axis=1).to_numpy()[pool.row_of_N]
    largest = np.flatnonzero(side_N == side_N.max())
    return FilmPool(pool.stores, pool.store_of_N[largest], pool.row_of_N[largest]), int(side_N.max())


def time_alternating(sides: dict[str, Work], rounds: int) -> dict[str, tuple[float, float]]:
    """Call each side with the round's number, in turn; return the median CPU and wall seconds of each."""
    taken: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for number in range(-1, rounds):  # the first warms up
        for side, run in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run(max(number, 0))
            if number >= 0:
                taken[side].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {
        side: (statistics.median(cpu for cpu, _ in each), statistics.median(wall for _, wall in each))
        for side, each in taken.items()
    }


def compare_reading(name: str, pool: FilmPool, rounds: int, threads: int, from_store: bool) -> None:
    """Time reading and decoding against decoding alone, and reading alone."""
    batches = len(pool) // BATCH
    jpegs = pool.read_jpegs(range(len(pool)))
    kilobytes = statistics.mean(len(jpeg) for jpeg in jpegs) / 1000
    print(
        f"reading {name}: {batches} batches of {BATCH}, {kilobytes:.1f} KB a film, {rounds} rounds, {threads} threads"
    )

    def get_films(step: int) -> np.ndarray:
        return compute_batch(len(pool), BATCH, step, SEED)[0]

    read_jpegs = pool.read_jpegs if from_store else build_reader(pool, HELD_BYTES)
    with ThreadPoolExecutor(threads) as executor:

        def run(work: Work) -> Work:
            return lambda number: list(executor.map(work, range(number * batches, (number + 1) * batches)))

        for side in (0, round(OVERSAMPLING * cpu_small().views.size)):

            def decode(step: int, side: int = side) -> None:
                chosen = [jpegs[film] for film in get_films(step)]
                films = [simplejpeg.decode_jpeg(jpeg, "GRAY", min_height=side, min_width=side) for jpeg in chosen]
                assert len(films) == BATCH

            def load(step: int, side: int = side) -> None:
                films = [decode_stored(jpeg, side) for jpeg in read_jpegs(get_films(step))]
                assert len(films) == BATCH

            def read(step: int) -> None:
                assert len(read_jpegs(get_films(step))) == BATCH

            sides = {"decoder": run(decode), "loader": run(load), "reading alone": run(read)}
            seconds = time_alternating(sides, rounds)
            print(f"  {'films no smaller than ' + str(side) if side else 'whole films'}:")
            films, decoder = batches * BATCH, seconds["decoder"]
            for side_name, (cpu, wall) in seconds.items():
                print(
                    f"    {side_name:14s}{films / cpu:8.0f} films/CPU s{decoder[0] / cpu:8.1%} of the decoder's"
                    f"{films / wall:9.0f} films/s by the wall{decoder[1] / wall:8.1%}",
                    flush=True,
                )


def read_batches(pool: FilmPool, preset: PretrainConfig, first_step: int, steps: int) -> Iterator[Tensor]:
    """Yield the view pairs of some steps as training of `preset` gets them."""
    return read_view_batches(
        pool,
        preset.views,
        batch=preset.training.batch,
        seed=SEED,
        first_step=first_step,
        steps=first_step + steps,
        threads=preset.training.loader_threads,
    )


def measure_loader(pool: FilmPool, preset: PretrainConfig, rounds: int, batches: int = 4) -> None:
    """Print how fast the whole loader is, views included."""

    def run(number: int) -> None:
        assert sum(1 for _ in read_batches(pool, preset, number * batches, batches)) == batches

    cpu, wall = time_alternating({"loader": run}, rounds)["loader"]
    films = batches * preset.training.batch
    print(f"whole loader of {preset.preset}: {films / cpu:.0f} view pairs/CPU s, {films / wall:.0f} by the wall")


def compare_waiting(pool: FilmPool, preset: PretrainConfig, rounds: int, steps: int) -> None:
    """Train with batches from the loader and with one from memory, and print the share of time spent waiting."""
    training = replace(preset.training, steps=steps + 1)
    held = next(read_batches(pool, preset, 0, 1))
    shares: list[float] = []
    seconds: dict[str, list[float]] = {"loader": [], "memory": []}

    def run(name: str, batches: Iterator[Tensor]) -> None:
        method = MoCo(preset.method)
        method.to(memory_format=torch.channels_last)
        normalised = ((batch.float() / 255 - preset.pixels.mean) / preset.pixels.std for batch in batches)
        made = list(train(method, normalised, build_optimizers(method, training), training))[1:]
        total = sum(report.seconds for report in made)
        seconds[name].append(total / len(made))
        if name == "loader":
            shares.append(sum(report.wait_seconds for report in made) / total)

    sides: dict[str, Work] = {
        "loader": lambda number: run("loader", read_batches(pool, preset, number * (steps + 1), steps + 1)),
        "memory": lambda number: run("memory", repeat(held, steps + 1)),
    }
    time_alternating(sides, rounds)
    loader, memory = (statistics.median(each[1:]) for each in seconds.values())
    print(
        f"waiting: {preset.preset}, {preset.method.architecture}, batch {training.batch}, {preset.views.size} pixels, "
        f"{steps} steps a round, {torch.get_num_threads()} threads for the step, {training.loader_threads} for the "
        f"loader\n    data-wait share {statistics.median(shares[1:]):.2%} "
        f"({min(shares[1:]):.2%} to {max(shares[1:]):.2%} in {rounds} rounds)\n"
        f"    a step takes {loader:.3f} s with the loader, {memory:.3f} s with a batch from memory: "
        f"{loader / memory:.3f} times"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--films", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        pool = build_pool(options.data, options.films, Path(folder) / "pool.lance")
        largest, side = keep_largest(pool)
        for from_store in (False, True):
            place = "from the store, as of a large pool" if from_store else "from memory, as of a small pool"
            print(place)
            compare_reading(f"films of {side} pixels", largest, options.rounds, options.threads, from_store)
            compare_reading("all films", pool, options.rounds, options.threads, from_store)
        measure_loader(pool, cpu_small(), options.rounds)
        compare_waiting(pool, cpu_small(), options.rounds, options.steps)


if __name__ == "__main__":
    main()
