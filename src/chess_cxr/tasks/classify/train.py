"""Train a classifier on a store's labels: data → `training/run` → test → model folder."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from chess_cxr.arguments import refuse_existing
from chess_cxr.device import choose_device
from chess_cxr.encoders.embed import EncoderLike, tell_seen
from chess_cxr.encoders.encoder import Encoder, compute_state_sha256
from chess_cxr.encoders.load import load_encoder
from chess_cxr.records import OnProgress, UsageError
from chess_cxr.store import Store, StoreLike, get_store
from chess_cxr.tasks.classify.config import FinetuneConfig
from chess_cxr.tasks.classify.films import FeatureFilms, PixelFilms, cache_features
from chess_cxr.tasks.classify.fit import (
    Fitted,
    build_shape,
    check_finetuning,
    compute_loss,
    divide,
    fit_linear,
    group_by_layer,
    name_encoder,
    plan_training,
    score_films,
    score_splits,
    tell_rare,
)
from chess_cxr.tasks.classify.fit_operating import fit_operating
from chess_cxr.tasks.classify.folder import write_classifier
from chess_cxr.tasks.classify.heads import Standardise
from chess_cxr.tasks.classify.labels import LabelledRows, select_labelled
from chess_cxr.tasks.classify.losses import build_balance
from chess_cxr.tasks.classify.objective import BestMoment, Classify, LabelledBatch
from chess_cxr.tasks.classify.score import ClassifierResult, measure_deployment, score_test
from chess_cxr.tasks.model_folder import refuse_foreign_folder
from chess_cxr.tasks.run import read_task_batches
from chess_cxr.training.config import TrackingConfig
from chess_cxr.training.distributed import join_ranks, let_first_rank
from chess_cxr.training.loop import build_optimizers, train
from chess_cxr.training.order import share_batch
from chess_cxr.training.run import Rank, RunInputs, describe, hash_uids, prepare_folder, train_in_folder
from chess_cxr.training.run_log import RunLog
from chess_cxr.training.trackers import check_tracking
from chess_cxr.training.watch import RunWatch

FEATURES = "features"  # folder of cached features, in the run folder


def finetune_classifier(
    encoder: EncoderLike,
    store: StoreLike,
    out: Path | str,
    labels: Sequence[str] = (),
    config: FinetuneConfig | None = None,
    on_progress: OnProgress | None = None,
    device: str = "auto",
    tracking: TrackingConfig | None = None,
) -> ClassifierResult:
    """Train a classifier on a store's train split, write it to `out` and score it on the test split.

    encoder: an `Encoder`, which stays unchanged, or anything `load_encoder` takes.  labels: by default all of the
    store.
    on_progress: called with the stage, the finished pieces and the total.  tracking: trackers of the numbers in
    `metrics.jsonl`; not in linear mode.
    docs/finetuning.md describes the folder.  Modes that train by steps add `metrics.jsonl` and the trackers' folders,
    and the same call continues an interrupted training.
    Raises `UsageError` if `out` exists and is no interrupted training of this kind, the train or test split has no
    labelled film, or the configuration is invalid.
    """
    out, config, show = Path(out), config or FinetuneConfig(), on_progress or (lambda *_: None)
    by_steps = config.mode != "linear"
    if by_steps:
        refuse_foreign_folder(out)
        check_tracking(tracking or TrackingConfig())
    else:
        refuse_existing(out)
    opened = get_store(store)
    chosen = select_labelled(opened, labels, config.task, config.uncertain, config.seed)
    counts = {split: int((chosen.split == split).sum()) for split in ("train", "val", "test")}
    for split in ("train", "test"):
        if not counts[split]:
            raise UsageError(f"{opened.path.name} has no labelled film in its {split} split")
    check_finetuning(config, chosen)
    join_ranks(device)
    loaded = encoder if isinstance(encoder, Encoder) else load_encoder(encoder, device=device)
    if by_steps:
        learner = train_classifier(out / "run", loaded, opened, chosen, config, show, tracking, device)

    def finish() -> ClassifierResult:
        fitted = learner.score() if by_steps else fit_linear(loaded, opened, chosen, config, show)
        operating = fit_operating(chosen, fitted.scores["val"])
        scored = score_test(chosen, fitted.scores["test"], config.aggregate, config.seed)
        seen = tell_seen(loaded.name, loaded, opened.films["uid"].to_numpy()[chosen.rows[chosen.split == "test"]])
        result = ClassifierResult(
            metrics=scored.metrics,
            labels=chosen.names,
            task="binary" if chosen.task == "multilabel" and len(chosen.names) == 1 else chosen.task,
            encoder=loaded.name,
            data_set=opened.dataset_name or opened.path.stem,
            films=counts,
            test_patients=scored.patients,
            seed=config.seed,
            test_units=scored.units,
            notes=(*fitted.notes, *_tell_uncertain(chosen), *((seen,) if seen else ())),
            **measure_deployment(opened, chosen, operating, fitted.scores, config.seed),
        )
        return write_classifier(out, loaded, fitted, operating, config, result)

    return let_first_rank(finish)


def fit_classifier(
    encoder: Encoder, store: Store, chosen: LabelledRows, config: FinetuneConfig, on_progress: OnProgress
) -> Fitted:
    """Fit a classifier to the train split and score the val and the test split; leave no files."""
    if config.mode == "linear":
        return fit_linear(encoder, store, chosen, config, on_progress)
    with TemporaryDirectory(prefix="chess-cxr-features-") as scratch, _seed_torch(config.seed, encoder.device):
        if config.mode != "full":
            _cache(encoder, store, chosen, config, Path(scratch), on_progress, (0, 1))
        learner = Learner(encoder, store, chosen, config, Path(scratch), encoder.device)
        rank = Rank(0, 1, encoder.device)
        optimizers = build_optimizers(learner.method, learner.plan, learner.groups)
        with closing(learner.open_batches(0, rank)) as batches:
            for report in train(learner.method, batches, optimizers, learner.plan):
                on_progress("finetune", report.step, config.steps)
                if report.step % learner.plan.probe_every == 0 or report.step == config.steps:
                    learner.look(report.step)
                if learner.method.is_over:
                    break
        return learner.score()


def train_classifier(
    folder: Path,
    encoder: Encoder,
    store: Store,
    chosen: LabelledRows,
    config: FinetuneConfig,
    on_progress: OnProgress,
    tracking: TrackingConfig | None = None,
    device: str = "auto",
) -> Learner:
    """Train a classifier by steps in `folder`, or continue there.

    Raises UsageError if `folder` holds a run of another configuration, encoder or films.
    """
    uids, rank = store.films["uid"].to_numpy()[chosen.rows], join_ranks(device)
    share_batch(plan_training(config, len(divide(chosen, config.seed).train)).batch, *rank)
    described = {
        "task": "classify",
        "classify": _describe_config(config),
        "encoder_sha256": compute_state_sha256(encoder.module),
        "contract": describe(encoder.contract),
        "labels": list(chosen.names),
        "films": {"count": len(uids), "sha256": _hash_films(uids, chosen)},
    }
    with prepare_folder(folder, described):
        if config.mode != "full":
            _cache(encoder, store, chosen, config, folder, on_progress, rank)
    with _seed_torch(config.seed, target := choose_device(device)):
        learner = Learner(encoder, store, chosen, config, folder, target)
        inputs = RunInputs(list(uids[learner.parts.train]), learner.open_batches, learner.open_watch, learner.groups)
        train_in_folder(
            folder, learner.method, learner.plan, inputs, described,
            lambda report, _: on_progress("finetune", report.step, config.steps), tracking, device=device,
        )  # fmt: skip
    return learner


class Learner:
    """A classifier that is trained by steps: its films, network and batches, and its evaluation on held-out films."""

    def __init__(
        self,
        encoder: Encoder,
        store: Store,
        chosen: LabelledRows,
        config: FinetuneConfig,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.parts = divide(chosen, config.seed)
        self.plan = plan_training(config, len(self.parts.train))
        self._encoder, self._chosen = encoder, chosen
        full = config.mode == "full"
        self._films: PixelFilms | FeatureFilms = (
            PixelFilms(encoder, store, chosen, config.seed, device)
            if full
            else FeatureFilms(chosen, folder / FEATURES, config.mode == "attentive", device)
        )
        balance = build_balance(torch.from_numpy(chosen.target_NL[self.parts.train]), chosen.task, config.imbalance)
        network = Classify(
            copy.deepcopy(encoder.module) if full else None, build_shape(encoder, chosen, config), balance.to(device)
        ).to(device)
        for module in network.modules():
            if isinstance(module, Standardise):
                module.learn(self._films.take(self.parts.train))
        self.groups = {"classifier": group_by_layer(network, config)} if full else None
        self.method = BestMoment(network, config.patience).train()

    def open_batches(self, first_step: int, rank: Rank) -> Generator[LabelledBatch, None, None]:
        """Return a rank's batches from a step on, prepared ahead."""
        return read_task_batches(list(self.parts.train), self._films.draw, self.plan, first_step, rank)

    def open_watch(self, log: RunLog, _rank: Rank) -> RunWatch:
        """Return the watcher that logs the run and ends it early."""
        return RunWatch(log, self.plan, self.look, lambda: self.method.is_over)

    def look(self, step: int) -> dict[str, float]:
        """Compute the loss on held-out films, if there are any, and keep the weights if it is the smallest."""
        if not len(self.parts.held_out):
            return {}
        loss = compute_loss(self.method.network, self._chosen, self.parts.held_out, self._films.take)
        self.method.train()
        self.method.judge(step, loss)
        return {"val/loss": loss}

    def score(self) -> Fitted:
        """Score the val and the test films with the best weights."""
        network, best_step = self.method.get_best(), int(self.method.best_step)
        scores = score_splits(self._chosen, lambda places: score_films(network, places, self._films.take))
        tensors = dict(network.state_dict())
        if network.encoder is None:
            tensors = name_encoder(self._encoder.module) | tensors
        kept = f"smallest loss on {self.parts.name}" if best_step else "no film to choose by"
        note = f"weights of step {best_step or self.plan.steps} of {self.plan.steps} ({kept})"
        return Fitted(network.shape, tensors, scores, (note, *tell_rare(self._chosen, self.parts.train)))


@contextmanager
def _seed_torch(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's random generators, and restore their states at the end."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # Not torch.manual_seed: it would also reset the other GPUs' generators, which are not put back here.
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _cache(
    encoder: Encoder,
    store: Store,
    chosen: LabelledRows,
    config: FinetuneConfig,
    folder: Path,
    on_progress: OnProgress,
    rank: tuple[int, int],
) -> None:
    """Write the features or feature maps that a head is trained on; ranks (number, count) share the work."""

    def show(done: int, total: int) -> None:
        on_progress("embed", done, total)

    cache_features(encoder, store, chosen.rows, folder / FEATURES, config.mode == "attentive", show, *rank)


def _describe_config(config: FinetuneConfig) -> dict[str, Any]:
    """Describe a configuration; one query stays unsaid, so that runs of versions without queries continue."""
    return {name: value for name, value in describe(config).items() if name != "queries" or value != 1}


def _hash_films(uids: np.ndarray, chosen: LabelledRows) -> str:
    """Return a hash of the films, their splits, patients and labels."""
    digest = hashlib.sha256(hash_uids([*uids, *chosen.split, *chosen.patient]).encode())
    for array in (chosen.target_NL, chosen.label):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _tell_uncertain(chosen: LabelledRows) -> tuple[str, ...]:
    if not chosen.uncertain_L.any():
        return ()
    return (f"{int(chosen.uncertain_L.sum())} labels are uncertain; those of the test split are not scored",)
