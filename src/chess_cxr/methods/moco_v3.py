"""MoCo v3: momentum contrast without a queue, for CNNs and ViTs (Chen, Xie & He 2021).

Shapes: B this rank's films, N the films of all ranks, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from chess_cxr.methods.batch import ViewBatch, embed_local, take_views
from chess_cxr.methods.full_precision import normalise
from chess_cxr.methods.heads import build_normed_head
from chess_cxr.methods.method import EncoderMethod
from chess_cxr.methods.momentum import MomentumSchedule, copy_frozen, follow
from chess_cxr.methods.ranks import contrast_over_ranks, gather_ranks
from chess_cxr.methods.signals import measure_pairs
from chess_cxr.records import UsageError


@dataclass(frozen=True)
class MoCoV3Config:
    """Hyperparameters of MoCo v3; the defaults are the paper's for ResNet-50 (for a ViT it uses temperature 0.2).

    hidden: width of the heads' hidden layers.  key_momentum: initial momentum of the key encoder; it rises to 1 over
    the run, along half a cosine.
    freeze_patches: keep a ViT's patch projection at its random start, for stability (section 4.2).
    """

    name: Literal["moco_v3"] = field(default="moco_v3", kw_only=True)
    architecture: str = "resnet50"
    embedding: int = 256
    hidden: int = 4096
    key_momentum: float = 0.99
    temperature: float = 1.0
    freeze_patches: bool = True


def compute_contrast(query_BD: Tensor, key_ND: Tensor, temperature: float) -> Tensor:
    """Contrast each query with its key against the keys of all ranks (MoCo v3, eq. 1 and algorithm 1).

    query_BD, key_ND: L2-normalised float32; keys without gradient, in rank order.
    Returns the mean InfoNCE loss in nats, times 2 temperature, scalar.
    """
    return 2 * temperature * contrast_over_ranks(query_BD, key_ND, temperature)


class MoCoV3(EncoderMethod):
    """The query network (encoder, projector, predictor) and the key network (encoder, projector)."""

    def __init__(self, config: MoCoV3Config, encoder: nn.Module | None = None, steps: int = 0) -> None:
        if not config.temperature > 0:
            raise UsageError("moco_v3: temperature must be above 0")
        super().__init__(config.architecture, encoder)
        self.config = config
        is_vit = isinstance(self.encoder, VisionTransformer)
        if is_vit and config.freeze_patches:
            self.encoder.patch_embed.requires_grad_(False)
        hidden = (config.hidden, config.hidden) if is_vit else (config.hidden,)
        self.head = build_normed_head((self.features, *hidden, config.embedding), norm_last=True)
        self.key_encoder, self.key_head = copy_frozen(self.encoder), copy_frozen(self.head)
        self.predictor = build_normed_head((config.embedding, config.hidden, config.embedding), norm_last=is_vit)
        self.momentum = MomentumSchedule(config.key_momentum, 1.0, steps)

    def losses(self, batch: Tensor | ViewBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield the symmetrised loss of a batch of views.

        Each local view is contrasted with both global keys; twice the mean over all pairs keeps the scale.
        """
        views = take_views(batch)
        pair = views.global_GB1SS[:2]
        with torch.no_grad():
            own_keys = [normalise(self.key_head(self.key_encoder(view))) for view in pair]
        first_BD, second_BD = (self._predict(view) for view in pair)
        self.measured = measure_pairs(first_BD, own_keys[1])
        keys = [gather_ranks(key_BD) for key_BD in own_keys]
        queries = [(first_BD, keys[1]), (second_BD, keys[0])]
        queries += [(local_BD, key_ND) for local_BD in embed_local(views, self._predict) for key_ND in keys]
        losses = [compute_contrast(query_BD, key_ND, self.config.temperature) for query_BD, key_ND in queries]
        yield "encoder", losses[0] + losses[1] if len(losses) == 2 else 2 * torch.stack(losses).mean()

    def _predict(self, view_B1SS: Tensor) -> Tensor:
        return normalise(self.predictor(self.head(self.encoder(view_B1SS))))

    def after_step(self) -> None:
        """Move the key network towards the query network."""
        follow((self.key_encoder, self.key_head), (self.encoder, self.head), self.momentum.advance())
