"""How a bone network learns from pairs of films, and what it does on pairs it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch

from chess_cxr.encoders.encoder import Encoder, compute_state_sha256
from chess_cxr.evaluation.image_metrics import compute_psnr
from chess_cxr.judges.lpips import MOST_PIXELS, compute_lpips
from chess_cxr.judges.vgg16 import SMALLEST_SIDE as SMALLEST_PICTURE
from chess_cxr.judges.vgg16 import has_vgg16
from chess_cxr.records import UsageError
from chess_cxr.store import hash_uids
from chess_cxr.tasks.bones.metrics import score_suppression
from chess_cxr.tasks.bones.network import BoneNetwork, build_bone_network, predict_bone
from chess_cxr.tasks.bones.objective import SMALLEST_SIDE, PairBatch, SuppressBones
from chess_cxr.tasks.bones.pairs import FilmPair
from chess_cxr.tasks.bones.views import PairViews, draw_pair_batch
from chess_cxr.tasks.perceptual import SAME, PerceptualConfig, build_perceptual
from chess_cxr.tasks.run import TaskWatch, read_task_batches
from chess_cxr.training.loop import TrainingConfig, check_training_config
from chess_cxr.training.run import OnStep, RunInputs, describe, train_in_folder
from chess_cxr.views import resize_longest

MOST_BATCH_PIXELS = 1 << 28  # 1024 squares of 512 pixels, 2 GiB before the network has seen them
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
    check_training_config(plan_bone_training(config))
    if config.batch * config.crop**2 > MOST_BATCH_PIXELS:
        raise UsageError(f"a batch of {config.batch} squares of {config.crop} pixels fits no machine; lower --batch")


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

    def draw(chosen: list[tuple[np.ndarray, np.ndarray]], positions: list[int]) -> PairBatch:
        return draw_pair_batch(chosen, positions, config.seed, PairViews(config.crop))

    def measure() -> dict[str, float]:
        found = [_compute_psnr(network, pair, config) for pair in val]
        network.train()
        return {"val/psnr": float(np.mean(found))} if found else {}

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
    inputs = RunInputs(
        [p.name for p in train],
        lambda first_step, rank: read_task_batches(pairs, draw, training, first_step, rank),
        lambda log, rank: TaskWatch(log, method, training, measure),
        {"suppression": groups},
    )
    train_in_folder(folder, method, training, inputs, described, on_step, say=say)
    network.cpu().eval()
    return network


def _compute_psnr(network: BoneNetwork, pair: FilmPair, config: BonesConfig) -> float:
    film_HW, truth_HW = (resize_longest(p, config.size) for p in (pair.film_HW, pair.bone_free_HW))
    bone_HW = predict_bone(network, film_HW, config.size, config.crop)
    return compute_psnr(np.clip(film_HW - bone_HW, 0, 1), truth_HW)


@dataclass(frozen=True)
class BoneSuppressor:
    """A bone network and the scale it works at.

    size: longest side of films.  tile: side of what it sees at a time.  sha256: of its file.
    """

    network: BoneNetwork
    size: int
    tile: int
    sha256: str = ""

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
    """Score one suppressed film by all that its pair knows.

    lpips, of result and truth at the pair's size, is among the scores where VGG16's file is at hand.
    """
    nodules = list[np.ndarray]()
    if pair.nodule_HW is not None:
        count, part_HW = cv2.connectedComponents(pair.nodule_HW.astype(np.uint8))
        nodules = [part_HW == number for number in range(1, count)]
    scores = score_suppression(
        pair.film_HW, result_HW, pair.bone_free_HW, lung_HW=pair.lung_HW, bone_HW=pair.bone_cm_HW, nodules=nodules
    )
    if has_vgg16() and min(result_HW.shape) >= SMALLEST_PICTURE and result_HW.size <= MOST_PIXELS:
        scores["lpips"] = compute_lpips(result_HW, pair.bone_free_HW)
    return scores
