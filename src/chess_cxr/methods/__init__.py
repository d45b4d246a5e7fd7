"""Pre-training objectives, one a file: the literal dict `METHODS` names them."""

from __future__ import annotations

import math

from torch import nn

from chess_cxr.methods.byol import BYOL, BYOLConfig
from chess_cxr.methods.dino import DINO, DINOConfig
from chess_cxr.methods.lejepa import LeJEPA, LeJEPAConfig
from chess_cxr.methods.moco import MoCo, MoCoConfig
from chess_cxr.methods.moco_v3 import MoCoV3, MoCoV3Config
from chess_cxr.methods.simclr import SimCLR, SimCLRConfig
from chess_cxr.methods.vicreg import VICReg, VICRegConfig
from chess_cxr.records import UsageError

MethodConfig = MoCoConfig | SimCLRConfig | BYOLConfig | VICRegConfig | MoCoV3Config | LeJEPAConfig | DINOConfig
AnyMethod = MoCo | SimCLR | BYOL | VICReg | MoCoV3 | LeJEPA | DINO

METHODS = {
    "moco_v2": (MoCoConfig, MoCo),
    "simclr": (SimCLRConfig, SimCLR),
    "byol": (BYOLConfig, BYOL),
    "vicreg": (VICRegConfig, VICReg),
    "moco_v3": (MoCoV3Config, MoCoV3),
    "lejepa": (LeJEPAConfig, LeJEPA),
    "dino": (DINOConfig, DINO),
}

METHOD_TITLES = {
    "moco_v2": "MoCo v2",
    "simclr": "SimCLR",
    "byol": "BYOL",
    "vicreg": "VICReg",
    "moco_v3": "MoCo v3",
    "lejepa": "LeJEPA",
    "dino": "DINO",
}


def compute_chance_loss(config: MethodConfig) -> float | None:
    """Return MoCo's loss of a network that knows nothing, nats; None for the methods without such a number."""
    return math.log(1 + config.queue) if isinstance(config, MoCoConfig) else None


def build_method(config: MethodConfig, encoder: nn.Module | None = None, steps: int = 0) -> AnyMethod:
    """Build the method that a configuration names, as the file of the method says."""
    if config.embedding < 1:
        raise UsageError("method.embedding must be at least 1")
    method: AnyMethod = METHODS[config.name][1](config, encoder, steps)
    return method
