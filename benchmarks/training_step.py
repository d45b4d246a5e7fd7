"""One optimisation step: ours against lightly's MoCo example, on the same images and threads.

usage: OMP_NUM_THREADS=1 python benchmarks/training_step.py [--rounds 7] [--batch 128] [SETTING …] [--precision P …]
       python benchmarks/training_step.py --device cuda [--batch 256] [--steps 50] [resnet50@224/8 …]

A setting is NETWORK@SIZE/GROUPS, P is float32 or bfloat16; on the CPU lightly's side is always float32, as its example
is, and on a GPU both sides use P and channels_last.  Times end when the device has finished.  Needs the extra `bench`.
Each side is a process of its own that builds its networks, gets the same random images and waits while the other works;
they take turns, and who goes first changes with every round.  Prints the medians of the rounds in images a second of
wall time and of CPU time (the fairer one on a busy machine), the ratios of the rounds, and what share of the machine's
float32 GEMM peak, measured in every round too, each side reaches.

lightly's side is its `examples/pytorch/moco.py` step by step: SGD 0.06 without momentum, a memory bank of 4,096, the
momentum update before the forward pass.  It has no groups for BatchNorm and no shuffling; ours shuffles the keys, and
with /4 passes the batch in four groups.
"""

import argparse
import copy
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from chess_cxr.device import choose_device
from chess_cxr.methods.moco import MoCo, MoCoConfig
from chess_cxr.records import UsageError
from chess_cxr.training.loop import TrainingConfig, build_optimizers, train
from chess_cxr.training.precision import Precision
from chess_cxr.training.speed import count_flops, measure_gemm_peak, wait_for
from peers import import_peer

SETTINGS = ("regnetx_002@64/1", "regnetx_002@64/4", "resnet18@64/1")
QUEUE, RATE, KEPT, TEMPERATURE = 4096, 0.06, 0.99, 0.5
Step = Callable[[], object]


def parse_setting(text: str) -> tuple[str, int, int]:
    """Read NETWORK@SIZE/GROUPS; one group where none is named."""
    network, _, rest = text.partition("@")
    size, _, groups = rest.partition("/")
    return network, int(size), int(groups or 1)


def draw_images(batch: int, size: int) -> Tensor:
    return torch.randn(2, batch, 1, size, size, generator=torch.Generator().manual_seed(0))


def build_our_step(setting: str, batch: int, precision: Precision, device: torch.device) -> Step:
    network, size, groups = parse_setting(setting)
    chosen = MoCoConfig(
        architecture=network, queue=QUEUE, key_momentum=KEPT, temperature=TEMPERATURE, norm_groups=groups
    )
    method = MoCo(chosen).to(device)
    method.to(memory_format=torch.channels_last)
    config = TrainingConfig(
        steps=10**9, batch=batch, learning_rate=RATE, momentum=0.0, weight_decay=0.0, precision=precision
    )
    images = draw_images(batch, size).to(device)
    steps = train(method, itertools.repeat(images), build_optimizers(method, config), config)
    return lambda: next(steps)


def build_lightly_step(setting: str, batch: int, precision: Precision, device: torch.device) -> Step:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    network, size, _ = parse_setting(setting)
    backbone = timm.create_model(network, in_chans=1, num_classes=0)
    features = backbone.num_features
    head = MoCoProjectionHead(features, features, 128)
    slow_backbone, slow_head = copy.deepcopy(backbone), copy.deepcopy(head)
    deactivate_requires_grad(slow_backbone)
    deactivate_requires_grad(slow_head)
    everything = nn.ModuleList([backbone, head, slow_backbone, slow_head]).to(device)
    if device.type == "cuda":
        everything.to(memory_format=torch.channels_last)
    criterion = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(QUEUE, 128)).to(device)
    optimizer = torch.optim.SGD(everything.parameters(), lr=RATE)
    query_images, key_images = draw_images(batch, size).to(device)
    total = torch.zeros((), device=device)
    half = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")

    def step() -> None:
        update_momentum(backbone, slow_backbone, m=KEPT)
        update_momentum(head, slow_head, m=KEPT)
        with half:
            query = head(backbone(query_images).flatten(start_dim=1))
            key = slow_head(slow_backbone(key_images).flatten(start_dim=1)).detach()
        loss = criterion(query.float(), key.float())
        total.add_(loss.detach())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def run_side(side: str, setting: str, batch: int, precision: Precision, device: torch.device) -> None:
    """Answer every line of stdin: a number n with the seconds of n steps, "peak" with the device's GEMM peak."""
    torch.manual_seed(0)
    build = build_lightly_step if side == "lightly" else build_our_step
    step = build(setting, batch, precision, device)
    with count_flops() as get_flops:
        step()
    step()
    print(json.dumps({"gflop": get_flops() / 1e9}), flush=True)
    for line in sys.stdin:
        if line.strip() == "peak":
            print(json.dumps({"peak": measure_gemm_peak(device)}), flush=True)
            continue
        wait_for(device)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            step()
        wait_for(device)
        print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}), flush=True)


class Side:
    """One process that takes turns."""

    def __init__(self, side: str, setting: str, batch: int, precision: str, device: torch.device) -> None:
        self.name = f"{side} {precision}"
        command = [sys.executable, __file__, setting, "--side", side, "--batch", str(batch), "--precision", precision]
        command += ["--device", str(device)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.gflop = self.read()["gflop"]
        self.rounds: list[dict[str, float]] = []

    def read(self) -> dict[str, float]:
        """Wait for its next answer."""
        assert self.process.stdout
        answer: dict[str, float] = json.loads(self.process.stdout.readline())
        return answer

    def ask(self, line: str) -> dict[str, float]:
        """Let it work and wait for the answer."""
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def compare(setting: str, precision: str, batch: int, rounds: int, steps: int, device: torch.device) -> None:
    """Let both sides take turns and print what came out."""
    theirs = precision if device.type == "cuda" else "float32"
    sides = [Side("ours", setting, batch, precision, device), Side("lightly", setting, batch, theirs, device)]
    peaks = []
    for number in range(rounds):
        peaks.append(sides[0].ask("peak")["peak"])
        for side in sides if number % 2 == 0 else sides[::-1]:
            side.rounds.append(side.ask(str(steps)))
    print(f"\n{setting}, batch {batch}: {rounds} rounds of {steps} steps, {tell_machine(device)}")
    print(f"GEMM peak float32, median of the rounds: {statistics.median(peaks):.0f} GFLOP/s")
    images = batch * steps
    for side in sides:
        wall = statistics.median(images / turn["wall"] for turn in side.rounds)
        cpu = statistics.median(images / turn["cpu"] for turn in side.rounds)
        share = statistics.median(
            side.gflop * steps / turn["wall"] / peak for turn, peak in zip(side.rounds, peaks, strict=True)
        )
        print(f"{side.name:16s} {wall:7.1f} images/s  {cpu:7.1f} images a CPU second  {share:5.0%} of the GEMM peak")
        side.close()
    for clock in ("wall", "cpu"):
        ratios = sorted(
            theirs[clock] / ours[clock] for ours, theirs in zip(sides[0].rounds, sides[1].rounds, strict=True)
        )
        print(f"ratio by {clock:4s}  {statistics.median(ratios):5.2f} x   ({ratios[0]:.2f} … {ratios[-1]:.2f})")


def tell_machine(device: torch.device) -> str:
    """Name the GPU, or the number of threads."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=SETTINGS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="a round")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", nargs="*", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--side", choices=["ours", "lightly"], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    try:
        device = choose_device(chosen.device)
    except UsageError as error:
        raise SystemExit(str(error)) from None
    import_peer("lightly.loss")
    if chosen.side:
        run_side(chosen.side, chosen.settings[0], chosen.batch, chosen.precision[0], device)
        return
    for setting, precision in itertools.product(chosen.settings, chosen.precision):
        compare(setting, precision, chosen.batch, chosen.rounds, chosen.steps, device)


if __name__ == "__main__":
    main()
