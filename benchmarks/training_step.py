"""Images a second of one MoCo step, by network, resolution and BatchNorm groups, in alternating rounds.

usage: OMP_NUM_THREADS=2 python benchmarks/training_step.py [--rounds 5] [--batch 128] NETWORK@SIZE/GROUPS …

Prints the median of the rounds and its ratio to the first setting.
"""

import argparse
import itertools
import statistics
from collections.abc import Iterator

import torch
from torch import Tensor

from chess_cxr.methods.moco import MoCo, MoCoConfig
from chess_cxr.training.loop import StepReport, TrainingConfig, build_optimizers, train

SETTINGS = ("regnetx_002@64/4", "regnetx_002@64/1", "regnetx_002@96/4", "mobilenetv3_small_100@64/4", "resnet18@64/4")


def build_steps(setting: str, batch: int) -> Iterator[StepReport]:
    """Start an endless training of one setting on random films."""
    network, _, rest = setting.partition("@")
    size, _, groups = rest.partition("/")
    method = MoCo(MoCoConfig(network, queue=1024, key_momentum=0.99, norm_groups=int(groups)))
    method.to(memory_format=torch.channels_last)
    config = TrainingConfig(steps=1_000_000, batch=batch, optimizer="adamw", learning_rate=1e-4)
    films: Iterator[Tensor] = itertools.repeat(torch.randn(2, batch, 1, int(size), int(size)))
    return iter(train(method, films, build_optimizers(method, config), config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=SETTINGS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    chosen = parser.parse_args()
    running = {setting: build_steps(setting, chosen.batch) for setting in chosen.settings}
    for steps in running.values():
        next(steps)
    speeds: dict[str, list[float]] = {setting: [] for setting in running}
    for _ in range(chosen.rounds):
        for setting, steps in running.items():
            speeds[setting].append(chosen.batch / next(steps).seconds)
    first = statistics.median(next(iter(speeds.values())))
    print(f"{torch.get_num_threads()} threads, batch {chosen.batch}, median of {chosen.rounds} rounds")
    for setting, values in speeds.items():
        median = statistics.median(values)
        print(f"{setting:32s} {median:7.1f} images/s  {median / first:5.2f} x")


if __name__ == "__main__":
    main()
