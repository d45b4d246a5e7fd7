"""Peak memory of a training step against the estimate of `chess-cxr plan`.

usage: OMP_NUM_THREADS=1 python benchmarks/step_memory.py [NETWORK@SIZE/BATCH …] [--precision float32 bfloat16]

Every setting trains three MoCo v2 steps in a process of its own.  Measured is how far the process's peak (VmHWM) rises
above what it had with torch loaded and warm, before the method was built.  Estimated are weights, followers, gradients,
optimiser, buffers, batch, kept activations and working tensors; prefetched batches are none here.
"""

import argparse
import itertools
import subprocess
import sys

import torch
from torch import nn

from chess_cxr.methods.moco import MoCo, MoCoConfig
from chess_cxr.pretraining.plan import estimate_step_memory
from chess_cxr.training.loop import TrainingConfig, build_optimizers, train
from chess_cxr.training.precision import Precision
from memory import read_memory_mib

SETTINGS = ("regnetx_002@64/128", "resnet18@128/32", "resnet18@224/32", "resnet50@128/32", "resnet50@224/16")


def warm_up() -> None:
    """Load what the first convolutions and products load, and nothing of the size of a step."""
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(4))
    network(torch.randn(4, 1, 16, 16)).sum().backward()


def measure(setting: str, precision: Precision) -> None:
    network, _, rest = setting.partition("@")
    size, batch = (int(number) for number in rest.split("/"))
    warm_up()
    before = read_memory_mib("VmRSS")
    method = MoCo(MoCoConfig(architecture=network, queue=4096))
    method.to(memory_format=torch.channels_last)
    config = TrainingConfig(steps=3, batch=batch, precision=precision)
    steps = train(
        method, itertools.repeat(torch.randn(2, batch, 1, size, size)), build_optimizers(method, config), config
    )
    for _ in steps:
        pass
    measured = read_memory_mib("VmHWM") - before
    memory = estimate_step_memory(method, (2, batch, 1, size, size), config)
    parts = ", ".join(f"{name} {value / 2**20:.0f}" for name, value in vars(memory).items() if value >= 2**19)
    estimated = memory.total / 2**20
    print(f"{setting:20s} {precision:9s} {measured:8.0f} {estimated:9.0f} {measured / estimated:6.2f}   {parts}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=SETTINGS)
    parser.add_argument("--precision", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        measure(chosen.settings[0], chosen.precision[0])
        return
    print(f"{'setting':20s} {'precision':9s} measured estimated  ratio   parts of the estimate, MiB")
    for setting, precision in itertools.product(chosen.settings, chosen.precision):
        subprocess.run([sys.executable, __file__, setting, "--child", "--precision", precision], check=True)


if __name__ == "__main__":
    main()
