"""MoCo v2: momentum contrast with a queue (He et al. 2020; Chen et al. 2020, "Improved baselines").

Shapes: B batch, D embedding, K queue.

BatchNorm lets a network cheat: query and key of one film share their batch's statistics, the queue's
negatives do not.  As in the paper, keys are therefore normalised in other company than their queries:
the batch is shuffled over all groups of all ranks before the key encoder sees it, and put back after.
One process acts as `norm_groups` such groups, each passed through the network by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chess_cxr.models.encoder import build_encoder
from chess_cxr.models.heads import build_projection_head
from chess_cxr.records import UsageError


@dataclass(frozen=True)
class MoCoConfig:
    """Numbers of MoCo; the defaults are those of the published CheSS run.

    key_momentum: share of the key encoder that survives a step.
    norm_groups: groups into which one process splits its batch for BatchNorm.
    """

    architecture: str = "resnet50"
    embedding: int = 128
    queue: int = 65_536
    key_momentum: float = 0.999
    temperature: float = 0.2
    norm_groups: int = 1


def compute_info_nce(query_BD: Tensor, key_BD: Tensor, queue_KD: Tensor, temperature: float) -> Tensor:
    """Contrast each query with its key and the queue (MoCo, He et al. 2020, eq. 1).

    query_BD, key_BD: L2-normalised float32.  queue_KD: older keys, no gradient.
    Returns the mean InfoNCE loss in nats, scalar.
    """
    positive_B1 = (query_BD * key_BD).sum(1, keepdim=True)
    logits = torch.cat([positive_B1, query_BD @ queue_KD.T], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


class MoCo(nn.Module):
    """Owns the query encoder, its momentum copy, both heads and the queue."""

    queue_KD: Tensor
    queue_position: Tensor

    def __init__(self, config: MoCoConfig) -> None:
        super().__init__()
        if config.norm_groups < 1 or config.queue < 1 or config.temperature <= 0:
            raise UsageError("moco: norm_groups and queue must be at least 1 and temperature above 0")
        self.config = config
        self.encoder = build_encoder(config.architecture)
        features: Any = getattr(self.encoder, "head_hidden_size", None) or self.encoder.num_features
        self.head = build_projection_head(int(features), config.embedding)
        self.key_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.key_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("queue_KD", F.normalize(torch.randn(config.queue, config.embedding), dim=1))
        self.register_buffer("queue_position", torch.zeros((), dtype=torch.long))
        self.signals: dict[str, float] = {}
        self._new_keys_BD: Tensor | None = None

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that each named loss trains."""
        return {"encoder": [*self.encoder.parameters(), *self.head.parameters()]}

    def losses(self, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the contrastive loss of a batch of view pairs, normalised float32 [2, B, 1, H, W]."""
        key_BD = self._embed_keys(batch[1])
        query_BD = F.normalize(self.head(self._encode_in_groups(self.encoder, batch[0])), dim=1)
        self._new_keys_BD = key_BD
        self.signals = {
            "positive_similarity": float((query_BD.detach() * key_BD).sum(1).mean()),
            "embedding_std": float(query_BD.detach().std(0).mean() * query_BD.shape[1] ** 0.5),
        }
        yield "encoder", compute_info_nce(query_BD, key_BD, self.queue_KD, self.config.temperature)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the key encoder towards the query encoder and put the new keys into the queue."""
        moving: list[Tensor] = [*self.key_encoder.parameters(), *self.key_head.parameters()]
        target: list[Tensor] = [*self.encoder.parameters(), *self.head.parameters()]
        torch._foreach_lerp_(moving, target, 1 - self.config.key_momentum)
        if self._new_keys_BD is not None:
            self._enqueue(gather_ranks(self._new_keys_BD))
            self._new_keys_BD = None

    def _enqueue(self, keys_BD: Tensor) -> None:
        places = (self.queue_position + torch.arange(len(keys_BD), device=keys_BD.device)) % len(self.queue_KD)
        self.queue_KD[places[-len(self.queue_KD) :]] = keys_BD[-len(self.queue_KD) :]
        self.queue_position += len(keys_BD)

    def _encode_in_groups(self, encoder: nn.Module, view_B1HW: Tensor) -> Tensor:
        count = self.config.norm_groups
        if len(view_B1HW) % count:
            raise UsageError(f"moco: {len(view_B1HW)} films of one rank cannot be split into {count} equal norm_groups")
        groups = view_B1HW.chunk(count)
        embedded: Tensor = torch.cat([encoder(group) for group in groups]) if count > 1 else encoder(view_B1HW)
        return embedded

    @torch.no_grad()
    def _embed_keys(self, view_B1HW: Tensor) -> Tensor:
        """Embed the keys in shuffled company (ShuffleBN, He et al. 2020, section 3.3)."""
        everyone = gather_ranks(view_B1HW)
        shuffled = draw_shared_permutation(len(everyone), view_B1HW.device)
        rank, batch = get_rank(), len(view_B1HW)
        mine = everyone[shuffled[rank * batch : (rank + 1) * batch]]
        keys = gather_ranks(self.key_head(self._encode_in_groups(self.key_encoder, mine)))
        back = torch.argsort(shuffled)[rank * batch : (rank + 1) * batch]
        return F.normalize(keys[back], dim=1)


def get_rank() -> int:
    """Return this process's rank, 0 outside distributed training."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def gather_ranks(tensor: Tensor) -> Tensor:
    """Concatenate a tensor over all ranks along its first axis, without gradient."""
    if not torch.distributed.is_initialized():
        return tensor
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, tensor)
    return torch.cat(parts)


def draw_shared_permutation(length: int, device: torch.device) -> Tensor:
    """Draw a permutation that is the same on every rank: rank 0's."""
    permutation = torch.randperm(length).to(device)
    if torch.distributed.is_initialized():
        torch.distributed.broadcast(permutation, 0)
    return permutation
