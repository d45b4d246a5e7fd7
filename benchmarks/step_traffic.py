"""Bytes that a rank sends per step, and how often its host waits for the device.

usage: OMP_NUM_THREADS=1 python benchmarks/step_traffic.py [--ranks 2] [--batch 32] [--log-every 5] [--network NAME]

Runs a real pre-training (MoCo v2, SGD, 64² views of generated films) in gloo processes on the CPU, and counts on the
first rank from the second step on.  A CPU stands in for a GPU: each number that is read from a tensor would let the
host wait for a GPU's work.  Bytes are those of rings: an all-reduce of n bytes sends 2 n (ranks - 1) / ranks, an
all-gather sends its own part ranks - 1 times.  Also runs on versions that read all numbers in every step.
"""

import argparse
import multiprocessing
import os
import socket
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

STEPS = 22


class StepTraffic(TorchFunctionMode):
    """Counts what happens within its context: numbers read from tensors, and bytes sent to other ranks, by kind.

    reads: also those within torch's own functions, such as an optimiser's step.  sent: as a ring would send them.
    """

    READS: tuple[Any, ...] = (
        Tensor.__float__, Tensor.__int__, Tensor.__bool__, Tensor.__index__, Tensor.item, Tensor.tolist, Tensor.cpu,
        Tensor.numpy, Tensor.nonzero, torch.nonzero, torch.equal, Tensor.equal, torch.unique, torch.masked_select,
    )  # fmt: skip

    def __init__(self) -> None:
        self.reads, self._depth = 0, 0
        self.sent: Counter[str] = Counter()
        self._operations = _Operations(self)

    def __enter__(self) -> Self:
        self._operations.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._operations.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self.READS:
            return func(*args, **(kwargs or {}))
        before = self.reads
        found = func(*args, **(kwargs or {}))
        self.reads = before + 1  # however many operations it took
        return found


class _Operations(TorchDispatchMode):
    READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default)
    INDEXES = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)

    def __init__(self, traffic: StepTraffic) -> None:
        super().__init__()
        self._traffic = traffic

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masked = func in self.INDEXES and any(index is not None and index.dtype == torch.bool for index in args[1])
        self._traffic.reads += masked or func in self.READS
        if func.namespace == "c10d":
            self._count(func._schema.name.removeprefix("c10d::").strip("_"), args)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: Any) -> None:
        ranks = torch.distributed.get_world_size()
        if name == "allreduce":
            kind = "gradients" if args[0][0].numel() > 1000 else "numbers"
            share = 2 * (ranks - 1) / ranks
        elif name == "allgather":
            [outputs], args = args[0], args[1:]
            kind, share = ("views" if outputs[0].ndim == 4 else "embeddings"), len(outputs) - 1
        else:
            kind, share = name, 1
        self._traffic.sent[kind] += int(share * sum(tensor.numel() * tensor.element_size() for tensor in args[0]))


def run_rank(rank: int, chosen: argparse.Namespace, port: int, folder: Path, answer: Any) -> None:
    """Pre-train as one rank of a run; the first one sends its counts of each step."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(chosen.ranks), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    from chess_cxr.pretraining.presets import cpu_small
    from chess_cxr.pretraining.pretrain import pretrain

    try:
        from chess_cxr.training import late
    except ImportError:
        pass
    else:
        late.LATE.add("cpu")
    small = cpu_small()
    training = replace(
        small.training, steps=STEPS, batch=chosen.batch, optimizer="sgd", learning_rate=0.01,
        log_every=chosen.log_every, probe_every=1000, checkpoint_every=1000,
    )  # fmt: skip
    config = replace(small, training=training, method=replace(small.method, architecture=chosen.network))
    traffic, counts = StepTraffic(), []

    def on_step(report: Any, _probe: Mapping[str, float]) -> None:
        if report.step == 1:
            traffic.__enter__()
        elif report.step == STEPS - 1:
            traffic.__exit__(None, None, None)
        counts.append((traffic.reads, dict(traffic.sent)))

    pretrain(folder / "films.lance", folder / "run", config, on_step, say=lambda line: None, device="cpu")
    if rank == 0:
        answer.send(counts[: STEPS - 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--log-every", type=int, default=5)
    parser.add_argument("--network", default="regnetx_002")
    chosen = parser.parse_args()
    from chess_cxr.pretraining.calibrate import _write_generated_films

    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name, socket.socket() as probe:
        folder = Path(name)
        _write_generated_films(folder / "films.lance")
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        ours, theirs = spawn.Pipe(duplex=False)
        ranks = [
            spawn.Process(target=run_rank, args=(rank, chosen, port, folder, theirs)) for rank in range(chosen.ranks)
        ]
        for rank in ranks:
            rank.start()
        counts = ours.recv()
        for rank in ranks:
            rank.join()
    steps = len(counts) - 1
    reads = [after - before for (before, _), (after, _) in zip(counts, counts[1:], strict=False)]
    print(f"moco_v2, {chosen.network} at 64², batch {chosen.batch} over {chosen.ranks} ranks, logged every "
          f"{chosen.log_every} steps; {steps} steps counted")  # fmt: skip
    print(f"numbers read a step   {sum(reads) / steps:.2f} (in each: {' '.join(map(str, reads))})")
    sent = counts[-1][1]
    for kind in sorted(sent):
        print(f"sent a step           {sent[kind] / steps:12,.0f} bytes of {kind}")
    print(f"sent a step           {sum(sent.values()) / steps:12,.0f} bytes in all")


if __name__ == "__main__":
    main()
