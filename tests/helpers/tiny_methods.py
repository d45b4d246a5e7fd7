"""Every method, small and without BatchNorm in its trunk: nothing but its own mathematics joins two films."""

from dataclasses import replace
from typing import Any

import torch

from chess_cxr.methods import AnyMethod, build_method
from chess_cxr.methods.batch import ViewBatch
from chess_cxr.methods.byol import BYOLConfig
from chess_cxr.methods.dino import DINOConfig
from chess_cxr.methods.lejepa import LeJEPAConfig
from chess_cxr.methods.moco import MoCoConfig
from chess_cxr.methods.moco_v3 import MoCoV3Config
from chess_cxr.methods.simclr import SimCLRConfig
from chess_cxr.methods.vicreg import VICRegConfig
from chess_cxr.training.distributed import copy_from_first_rank, join_ranks
from chess_cxr.training.loop import TrainingConfig, build_optimizers, train

TRUNK = "test_efficientnet_gn"
CONFIGS: dict[str, Any] = {
    "moco_v2": MoCoConfig(TRUNK, 8, queue=40, key_momentum=0.9, key_momentum_end=1.0, symmetric=True),
    "moco_v2 masked": MoCoConfig(TRUNK, 8, queue=40, key_momentum=0.9, mask_unfilled=True),
    "simclr": SimCLRConfig(TRUNK, 8),
    "byol": BYOLConfig(TRUNK, 8, hidden=24, target_momentum=0.9),
    "vicreg": VICRegConfig(TRUNK, 24),
    "vicreg narrow": VICRegConfig(TRUNK, 8),
    "moco_v3": MoCoV3Config(TRUNK, 8, hidden=24, key_momentum=0.9),
    "lejepa": LeJEPAConfig(TRUNK, 8, hidden=24, directions=16, regularisation=0.2),
    "dino": DINOConfig(TRUNK, 8, hidden=24, prototypes=12, teacher_momentum=0.9, frozen_prototypes=0.0),
    "moco_v3 of a ViT": MoCoV3Config("test_vit", 8, hidden=24, key_momentum=0.9, temperature=0.2),
}
CONFIGS |= {f"{name} + local": config for name, config in CONFIGS.items() if " " not in name}
CONFIGS["dino of a ViT + local"] = replace(CONFIGS["dino"], architecture="test_vit")
STEPS = 4


def give(name: str, pairs: torch.Tensor) -> torch.Tensor | ViewBatch:
    """Add two local views of half the side to pairs of views [2, B, 1, S, S], for methods that are to take some."""
    half = pairs.shape[-1] // 2
    if "local" not in name:
        return pairs
    return ViewBatch(pairs, torch.stack([pairs[0, ..., :half, :half], pairs[1, ..., half:, half:]]))


def build_tiny(name: str, seed: int = 0) -> AnyMethod:
    torch.manual_seed(seed)
    encoder = None
    if "ViT" in name:  # its stored size is 160, ours is 32
        import timm

        encoder = timm.create_model("test_vit", in_chans=1, num_classes=0, img_size=32, dynamic_img_size=True)
    return build_method(CONFIGS[name], encoder, STEPS)


def train_tiny(pairs: torch.Tensor, names: tuple[str, ...] = tuple(CONFIGS)) -> dict[str, Any]:
    """Train on a rank's share of `pairs` [2, B, 1, H, W]; return, of each method, numbers as plain lists."""
    rank, world = join_ranks()
    own = slice(rank * pairs.shape[1] // world, (rank + 1) * pairs.shape[1] // world)
    return {name: _train_one(name, pairs[:, own], rank) for name in names}


def _train_one(name: str, pairs: torch.Tensor, rank: int) -> dict[str, Any]:
    method = build_tiny(name, seed=rank)  # ranks that start apart must be brought together
    copy_from_first_rank(method)
    torch.manual_seed(7)
    config = TrainingConfig(steps=STEPS, batch=16, learning_rate=0.01, clip_norm=1.0)
    losses, gradients = [], []
    # from step to step the films wander, so that a queue holds others than the batch
    batches = (give(name, pairs.roll(step, 3)) for step in range(STEPS))
    for report in train(method, batches, build_optimizers(method, config), config):
        losses.append(report.losses["encoder"])
        gradients.append(report.gradient_norms["encoder"])
    state = {key: tensor.numpy().copy() for key, tensor in method.state_dict().items()}
    return {"losses": losses, "gradients": gradients, "state": state, "signals": method.signals}
