"""How a bone network learns from pairs of films, and what it does on pairs it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch

from chess_cxr.evaluation.bone_metrics import score_suppression
from chess_cxr.evaluation.image_metrics import compute_psnr
from chess_cxr.film_pairs import FilmPair
from chess_cxr.models.bone_network import BoneNetwork, build_bone_network, predict_bone, resize_longest
from chess_cxr.models.embedding import Encoder, compute_state_sha256
from chess_cxr.perceptual import SAME, build_perceptual
from chess_cxr.records import UsageError
from chess_cxr.store import compute_batch
from chess_cxr.tasks.pair_views import PairViews, draw_pair_batch
from chess_cxr.tasks.perceptual import PerceptualConfig
from chess_cxr.tasks.suppress_bones import SMALLEST_SIDE, PairBatch, SuppressBones
from chess_cxr.training.batches import prepare_ahead
from chess_cxr.training.loop import StepReport, TrainingConfig
from chess_cxr.training.pretraining import hash_uids
from chess_cxr.training.run import OnStep, Rank, RunInputs, describe, train_in_folder
from chess_cxr.training.run_log import RunLog

LARGEST_SIDE = 4096  # of the films that a network is asked to work at


@dataclass(frozen=True)
class BonesConfig:
    """How a bone network is made.

    size: longest side of the films it works at.  crop: side of the squares it learns from, and sees at a time.
    decoder: of its U-Net, "tiny" for a CPU.  perceptual: the network of the perceptual loss, see `build_perceptual`.
    perceptual_weight: its share of the loss, beside L1 and 1 - MS-SSIM.
    encoder_rate: learning rate of the encoder as a share of the decoder's.
    """

    size: int = 512
    crop: int = 256
    decoder: Literal["tiny", "full"] = "full"
    perceptual: str = SAME
    perceptual_weight: float = 1.0
    compare: PerceptualConfig = PerceptualConfig()
    steps: int = 3000
    batch: int = 8
    learning_rate: float = 1e-3
    encoder_rate: float = 0.3
    weight_decay: float = 1e-4
    checkpoint_every: int = 500
    threads: int = 1
    seed: int = 0


def check_bones_config(config: BonesConfig) -> None:
    """Raise UsageError for numbers that cannot train."""
    if not SMALLEST_SIDE <= config.crop <= config.size <= LARGEST_SIDE:
        raise UsageError(f"bone suppression needs {SMALLEST_SIDE} <= crop <= size <= {LARGEST_SIDE} pixels")
    if not (0 <= config.perceptual_weight < np.inf and 0 <= config.encoder_rate <= 1):
        raise UsageError("bone suppression needs a perceptual weight of 0 or more and an encoder rate from 0 to 1")


def plan_bone_training(config: BonesConfig) -> TrainingConfig:
    """Return how a bone network is optimised."""
    return TrainingConfig(
        steps=config.steps,
        batch=config.batch,
        optimizer="adamw",
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup=0.05,
        clip_norm=1.0,
        log_every=max(1, min(20, config.steps)),
        probe_every=max(1, config.steps // 10),
        checkpoint_every=config.checkpoint_every,
        loader_threads=config.threads,
        seed=config.seed,
    )


def train_bone_network(
    folder: Path,
    encoder: Encoder,
    train: Sequence[FilmPair],
    val: Sequence[FilmPair],
    config: BonesConfig,
    on_step: OnStep | None = None,
    say: Callable[[str], None] | None = None,
) -> BoneNetwork:
    """Train a bone network in `folder`, or continue there; return it on the CPU, in evaluation mode.

    train, val: pairs of any size; val is looked at ten times, and chooses nothing.
    Raises UsageError where `folder` holds a run of another configuration or on other pairs.
    """
    check_bones_config(config)
    if not train:
        raise UsageError("bone suppression needs at least one pair to learn from")
    torch.manual_seed(config.seed)
    network = build_bone_network(encoder, config.decoder, config.seed)
    perceptual, about = build_perceptual(config.perceptual, encoder, config.compare, config.seed)
    method = SuppressBones(network, perceptual, config.perceptual_weight)
    training = plan_bone_training(config)
    pairs = [(resize_longest(p.film_HW, config.size), resize_longest(p.bone_free_HW, config.size)) for p in train]
    views = PairViews(config.crop)

    def open_batches(first_step: int, rank: Rank) -> Generator[PairBatch, None, None]:
        if config.batch % rank.world:
            raise UsageError(
                f"a batch of {config.batch} pairs cannot be shared by {rank.world} ranks; choose a multiple"
            )
        own = config.batch // rank.world
        share = slice(rank.number * own, (rank.number + 1) * own)

        def prepare(step: int) -> PairBatch:
            chosen_B, position_B = compute_batch(len(pairs), config.batch, step, config.seed)
            drawn = [pairs[int(pair)] for pair in chosen_B[share]]
            batch = draw_pair_batch(drawn, position_B[share].tolist(), config.seed, views)
            return PairBatch(batch.film_B1HW.to(rank.device), batch.bone_free_B1HW.to(rank.device))

        return prepare_ahead(prepare, range(first_step, config.steps), config.threads)

    def open_watch(log: RunLog, rank: Rank) -> BoneWatch:
        return BoneWatch(log, method, training, val, config)

    groups: list[dict[str, Any]] = [
        {"params": list(network.encoder.parameters()), "rate_scale": config.encoder_rate},
        {"params": [*network.decoder.parameters(), *network.head.parameters()]},
    ]
    described = {
        "task": "bones",
        "bones": describe(config),
        "encoder_sha256": compute_state_sha256(encoder.module),
        "perceptual": about,
        "perceptual_sha256": compute_state_sha256(perceptual.network) if perceptual else "",
        "pairs": {"train": len(train), "val": len(val), "names_sha256": hash_uids([p.name for p in train])},
    }
    inputs = RunInputs([p.name for p in train], open_batches, open_watch, {"suppression": groups})
    train_in_folder(folder, method, training, inputs, described, on_step, say=say)
    network.cpu().eval()
    return network


class BoneWatch:
    """Logs a run's numbers, and now and then how well held-out pairs are suppressed."""

    has_collapsed = False

    def __init__(
        self,
        log: RunLog,
        method: SuppressBones,
        training: TrainingConfig,
        val: Sequence[FilmPair],
        config: BonesConfig,
    ) -> None:
        self.log, self.probe = log, dict[str, float]()
        self._method, self._training, self._config, self._val = method, training, config, val

    def look(self, report: StepReport) -> None:
        """Log a step that was made, and look at the held-out pairs where it is time."""
        training, step, last = self._training, report.step, report.step == self._training.steps
        values = dict[str, float]()
        if report.problem:
            self.log.say(f"step {step} was skipped: {report.problem}; {report.skipped_steps} so far")
        if last or step % training.log_every == 0:
            values = self.log.summarise(report, self._method.signals, training.batch)
        if self._val and (last or step % training.probe_every == 0):
            found = [_compute_psnr(self._method.network, pair, self._config) for pair in self._val]
            self._method.network.train()
            self.probe = {"val/psnr": float(np.mean(found))}
            values |= self.probe
        if values:
            self.log.write(step, values)


def _compute_psnr(network: BoneNetwork, pair: FilmPair, config: BonesConfig) -> float:
    film_HW, truth_HW = (resize_longest(p, config.size) for p in (pair.film_HW, pair.bone_free_HW))
    bone_HW = predict_bone(network, film_HW, config.size, config.crop)
    return compute_psnr(np.clip(film_HW - bone_HW, 0, 1), truth_HW)


@dataclass(frozen=True)
class BoneSuppressor:
    """A bone network and the scale it works at.  size: longest side of films; tile: side of what it sees at a time."""

    network: BoneNetwork
    size: int
    tile: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    def predict_bone(self, film_HW: np.ndarray) -> np.ndarray:
        """Return what bone adds to a film, float32 [H, W], never more than the film itself."""
        bone_HW: np.ndarray = np.minimum(predict_bone(self.network, film_HW, self.size, self.tile), film_HW)
        return bone_HW

    def suppress(self, film_HW: np.ndarray) -> np.ndarray:
        """Return a film, float32 [H, W] in [0, 1] with bone bright, without its bones."""
        suppressed: np.ndarray = film_HW - self.predict_bone(film_HW)
        return suppressed


def score_pairs(
    suppressor: BoneSuppressor, pairs: Sequence[FilmPair], on_pair: Callable[[int, int], None] | None = None
) -> list[dict[str, float]]:
    """Score each pair at the size the network works at, or at the film's own where that is smaller."""
    scores = []
    for done, pair in enumerate(pairs, start=1):
        small = shrink_pair(pair, suppressor.size)
        scores.append(score_pair(small, suppressor.suppress(small.film_HW)))
        if on_pair:
            on_pair(done, len(pairs))
    return scores


def shrink_pair(pair: FilmPair, size: int) -> FilmPair:
    """Bring all pictures of a pair to `size` on their longest side, or leave them where they are smaller."""
    side = min(size, max(pair.film_HW.shape))
    if side == max(pair.film_HW.shape):
        return pair

    def shrink(mask_HW: np.ndarray | None) -> np.ndarray | None:
        return None if mask_HW is None else resize_longest(mask_HW.astype(np.float32), side) > 0.5

    return replace(
        pair,
        film_HW=resize_longest(pair.film_HW, side),
        bone_free_HW=resize_longest(pair.bone_free_HW, side),
        bone_cm_HW=None if pair.bone_cm_HW is None else resize_longest(pair.bone_cm_HW, side),
        lung_HW=shrink(pair.lung_HW),
        nodule_HW=shrink(pair.nodule_HW),
    )


def score_pair(pair: FilmPair, result_HW: np.ndarray) -> dict[str, float]:
    """Score one suppressed film by all that its pair knows."""
    nodules = list[np.ndarray]()
    if pair.nodule_HW is not None:
        count, part_HW = cv2.connectedComponents(pair.nodule_HW.astype(np.uint8))
        nodules = [part_HW == number for number in range(1, count)]
    return score_suppression(
        pair.film_HW, result_HW, pair.bone_free_HW, lung_HW=pair.lung_HW, bone_HW=pair.bone_cm_HW, nodules=nodules
    )
