"""The cost of local views: a step with two global and six local views against a step with two global views.

usage: OMP_NUM_THREADS=1 python benchmarks/multi_crop.py STORE [--methods moco_v2 …] [--rounds 9] [--steps 2]

Preset cpu_small: RegNetX-002, batch 128, global views of 64 x 64 pixels, local ones of 32 x 32; `lejepa` and `dino` use
the same network.
step: both sides in one process on one thread, with batches in memory, in turn in every round; who goes first changes.
Medians of the rounds by CPU time and by wall time, and the ratio of each round.  For comparison: the ratio of pixels,
and that of FLOPs, which differs from it because momentum encoders see only global views, without a backward pass.
waiting: training with local views of the films of STORE, with the preset's loader threads; the share of time that steps
wait for the loader, without the first step of a round, which fills the loader.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, repeat
from pathlib import Path

import cv2
import torch

from chess_cxr.methods import build_method
from chess_cxr.methods.batch import ViewBatch, take_views
from chess_cxr.methods.dino import DINOConfig
from chess_cxr.methods.lejepa import LeJEPAConfig
from chess_cxr.pretraining.crops import Crops
from chess_cxr.pretraining.films import FilmPool, build_film_pool, read_view_batches
from chess_cxr.pretraining.presets import PretrainConfig, cpu_small
from chess_cxr.pretraining.pretrain import normalise_views
from chess_cxr.store import open_store
from chess_cxr.training.loop import StepReport, build_optimizers, train
from chess_cxr.training.speed import count_step_cost

PLAIN, LOCAL = Crops(), Crops(local_views=6, local_size=32)
NETWORK = cpu_small().method.architecture
METHODS = {
    "moco_v2": cpu_small().method,
    "lejepa": LeJEPAConfig(NETWORK, hidden=512),
    "dino": DINOConfig(NETWORK, hidden=512, prototypes=1024),
}


@dataclass
class Side:
    """One of both sides, with the seconds per step of every round, CPU and wall time."""

    name: str
    steps: Iterator[StepReport]
    flops: int
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def work(self, steps: int) -> None:
        """Make some steps and note their time."""
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            next(self.steps)
        self.cpu.append((time.process_time() - cpu) / steps)
        self.wall.append((time.perf_counter() - wall) / steps)


def build_steps(config: PretrainConfig, batches: Iterator[ViewBatch]) -> tuple[Iterator[StepReport], int]:
    """Return the training steps of a configuration, made as they are asked for, and the FLOPs of one."""
    torch.manual_seed(0)
    method = build_method(config.method, None, config.training.steps)
    method.to(memory_format=torch.channels_last)
    flops = count_step_cost(method, partial(config.crops.build_batch, config.views, config.training.batch)).flops
    return train(method, batches, build_optimizers(method, config.training), config.training), flops


def draw_batch(config: PretrainConfig) -> ViewBatch:
    """Draw a batch of noise."""
    batch = config.crops.build_batch(config.views, config.training.batch)
    batch.global_GB1SS.normal_()
    if batch.local_LB1ss is not None:
        batch.local_LB1ss.normal_()
    return batch


def compare_steps(config: PretrainConfig, rounds: int, steps: int) -> None:
    """Measure both sides in turn and print what local views cost."""
    sides = []
    for name, crops in (("two global views", PLAIN), ("with six local views", LOCAL)):
        chosen = replace(config, crops=crops)
        sides.append(Side(name, *build_steps(chosen, repeat(draw_batch(chosen)))))
    for side in sides:  # warms up
        next(side.steps)
    for number in range(rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            side.work(steps)
    plain, local = sides
    side, small = config.views.size, LOCAL.local_size
    pixels = 1 + LOCAL.local_views * small**2 / (2 * side**2)
    print(f"{config.method.name}, {NETWORK}, batch {config.training.batch}, {rounds} rounds of {steps} steps")
    for each in sides:
        cpu, wall = statistics.median(each.cpu), statistics.median(each.wall)
        print(f"  {each.name:22s}{cpu:8.3f} CPU s a step{wall:8.3f} s wall{each.flops / 1e9:9.1f} GFLOP")
    for clock in ("cpu", "wall"):
        ratios = sorted(b / a for a, b in zip(getattr(plain, clock), getattr(local, clock), strict=True))
        print(f"  ratio by {clock:5s}{statistics.median(ratios):6.2f} x   ({ratios[0]:.2f} … {ratios[-1]:.2f})")
    print(f"  for comparison: {pixels:.2f} x the pixels, {local.flops / plain.flops:.2f} x the FLOPs", flush=True)


def read_batches(pool: FilmPool, config: PretrainConfig, first_step: int, steps: int) -> Iterator[ViewBatch]:
    """Yield the batches of some steps as training of a configuration gets them."""
    training = config.training
    made = read_view_batches(
        pool, config.views, batch=training.batch, seed=training.seed, first_step=first_step, steps=first_step + steps,
        threads=training.loader_threads, crops=config.crops,
    )  # fmt: skip
    return (normalise_views(take_views(batch), config.pixels) for batch in made)


def measure_waiting(pool: FilmPool, config: PretrainConfig, rounds: int, steps: int) -> None:
    """Train on real films and print the share of time spent waiting."""
    shares, chosen = [], replace(config, crops=LOCAL)
    for number in range(rounds):
        batches = read_batches(pool, chosen, number * (steps + 1), steps + 1)
        made = list(islice(build_steps(chosen, batches)[0], steps + 1))[1:]
        shares.append(sum(report.wait_seconds for report in made) / sum(report.seconds for report in made))
    print(
        f"  waiting with local views, {len(pool)} films, {config.training.loader_threads} loader threads: "
        f"{statistics.median(shares):.2%} of a step ({min(shares):.2%} to {max(shares):.2%})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--methods", nargs="*", default=["moco_v2"], choices=METHODS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2, help="a round")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    pool = build_film_pool([open_store(chosen.store)], ("train", ""))
    for name in chosen.methods:
        config = replace(cpu_small(), method=METHODS[name])
        compare_steps(config, chosen.rounds, chosen.steps)
        measure_waiting(pool, config, chosen.rounds, chosen.steps)


if __name__ == "__main__":
    main()
