"""Pre-training on the films of stores: which ones, their view pairs, and the run over them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chess_cxr.records import UsageError
from chess_cxr.store import Store
from chess_cxr.training.batches import Positives, build_film_pool, read_view_batches
from chess_cxr.training.loop import TrainingConfig
from chess_cxr.training.run import OnStep, Rank, RunInputs, say_on_stderr, train_in_folder
from chess_cxr.training.run_log import PixelScale, PretrainMethod, RunLog, Watch
from chess_cxr.training.trackers import TrackingConfig
from chess_cxr.views import ViewConfig


@dataclass(frozen=True)
class RunPlan:
    """All that one pre-training run needs beside its method.

    begun_from: SHA-256 of the weights that the method began with; "" for untrained ones.
    """

    training: TrainingConfig
    views: ViewConfig
    pixels: PixelScale
    splits: tuple[str, ...] = ("train", "")
    positives: Positives = "view"
    begun_from: str = ""


def pretrain_run(
    folder: Path,
    method: PretrainMethod,
    stores: Sequence[Store],
    plan: RunPlan,
    described: dict[str, Any],
    on_step: OnStep | None = None,
    tracking: TrackingConfig | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Train `method` on view pairs from `stores` in `folder`, or continue what stands there; return its checkpoint.

    A folder continues only on the same films; see `train_in_folder` for the rest.
    """
    training = plan.training
    pool = build_film_pool(stores, plan.splits)
    if len(pool) < 2:
        raise UsageError("the given stores hold one film to train on; a film is told from others, so two are needed")
    say, uids = say or say_on_stderr, pool.get_uids()

    def open_batches(first_step: int, rank: Rank) -> Generator[Tensor, None, None]:
        if len(pool) < training.batch and rank.number == 0:
            say(f"the {len(pool)} films are fewer than a batch of {training.batch}: a film is told from itself then")
        views = read_view_batches(
            pool, plan.views, batch=training.batch, seed=training.seed, first_step=first_step, steps=training.steps,
            rank=rank.number, world=rank.world, threads=training.loader_threads, positives=plan.positives,
        )  # fmt: skip
        return _normalise(views, plan.pixels, rank.device)

    def open_watch(log: RunLog, rank: Rank) -> Watch:
        films_per_rank = training.batch // rank.world
        return Watch(log, method, stores, training, plan.views, plan.pixels, films_per_rank, rank.device)

    inputs = RunInputs(uids, open_batches, open_watch)
    described = described | {"data": _describe_data(stores, uids, plan.begun_from)}
    return train_in_folder(folder, method, training, inputs, described, on_step, tracking, say)


def _normalise(
    views: Generator[Tensor, None, None], pixels: PixelScale, device: torch.device
) -> Generator[Tensor, None, None]:
    try:
        for batch in views:
            yield (batch.to(device, non_blocking=True).float() / 255 - pixels.mean) / pixels.std
    finally:
        views.close()


def _describe_data(stores: Sequence[Store], uids: Sequence[str], begun_from: str) -> dict[str, Any]:
    named = [{"store": store.path.name, "version": store.version, "films": len(store)} for store in stores]
    # a store ingested anew may bear the old name and count, but not the old films in the old splits
    films = {"films": len(uids), "uids_sha256": hash_uids(uids)}
    return {"stores": named, **films} | ({"begun_from_sha256": begun_from} if begun_from else {})


def hash_uids(uids: Sequence[str]) -> str:
    """Return the SHA-256 of films' uids, in this order: what tells one pool of films from another."""
    return hashlib.sha256("\n".join(uids).encode("utf-8", "surrogateescape")).hexdigest()
