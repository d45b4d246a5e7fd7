"""Measure how well MoCo's queries tell their own key from newer and older keys of other films, at a run's checkpoint.

usage: OMP_NUM_THREADS=1 python runs/queue_age.py RUN STORE

Prints the mean cosine of queries to their own key, to this step's keys of other films, and to the queue from its newest
to its oldest step.  If those fall with age, age tells positives from the queue.
"""

import argparse
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from chess_cxr.methods.batch import ViewBatch
from chess_cxr.methods.moco import MoCo, MoCoConfig, _choose_sent
from chess_cxr.pretraining.films import build_film_pool, read_view_batches
from chess_cxr.pretraining.presets import read_pretrain_config
from chess_cxr.store import open_store
from chess_cxr.training.checkpoint import find_checkpoint
from chess_cxr.training.run import read_run_config


@torch.no_grad()
def main() -> None:
    """Load the newest checkpoint and embed the next step's views."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("store", type=Path)
    asked = parser.parse_args()
    config = read_pretrain_config(read_run_config(asked.run))
    assert isinstance(config.method, MoCoConfig)
    checkpoint = find_checkpoint(asked.run / "checkpoints")
    assert checkpoint is not None
    step, batch = int(checkpoint.stem.rpartition("_")[2]), config.training.batch
    method = MoCo(config.method, steps=config.training.steps)
    tensors = safetensors.torch.load_file(checkpoint)
    state = {name.removeprefix("method."): value for name, value in tensors.items() if name.startswith("method.")}
    method.load_state_dict(state, strict=False)
    method.train()
    pool = build_film_pool([open_store(asked.store)], ["train"])
    drawn = next(
        read_view_batches(
            pool, config.views, batch=batch, seed=config.training.seed, first_step=step, steps=step + 1,
            threads=1, crops=config.crops,
        )
    )  # fmt: skip
    views = drawn if isinstance(drawn, ViewBatch) else ViewBatch(drawn)
    mean, std = (float(value) for value in (config.pixels.mean, config.pixels.std))

    def scale(view: Tensor) -> Tensor:
        return (view.float() / 255 - mean) / std

    views = ViewBatch(scale(views.global_GB1SS), None if views.local_LB1ss is None else scale(views.local_LB1ss))
    key_BD = method._embed_keys(*_choose_sent(views, 1))
    newest_first = torch.arange(
        int(method.queue_position) - 1, int(method.queue_position) - 1 - len(method.queue_KD), -1
    )
    queue_SBD = method.queue_KD[newest_first % len(method.queue_KD)].view(-1, batch, key_BD.shape[1])
    print(f"step {step}, temperature {config.method.temperature}; mean key of length {key_BD.mean(0).norm():.2f}")
    queries = {"global": method._embed_queries(views.global_GB1SS[0])}
    queries |= {f"local {number}": query for number, query in enumerate(method._embed_local_queries(views))}
    for name, query_BD in queries.items():
        cosine_BB = query_BD @ key_BD.T
        own = float(cosine_BB.diagonal().mean())
        others = float(cosine_BB.sum() - cosine_BB.diagonal().sum()) / (batch * (batch - 1))
        ages = " ".join(f"{float((query_BD @ key.T).mean()):.3f}" for key in queue_SBD)
        print(f"{name}: own {own:.3f}, others of this step {others:.3f}, queue {ages}")


if __name__ == "__main__":
    main()
