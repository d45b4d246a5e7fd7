"""MoCo v2: momentum contrast with a queue (He et al. 2020; Chen et al. 2020, "Improved baselines").

Shapes: B batch, D embedding, K queue.

BatchNorm lets a network cheat: query and key of one film share their batch's statistics, the queue's
negatives do not.  As in the paper, keys are therefore normalised in other company than their queries:
the batch is shuffled over all groups of all ranks before the key encoder sees it, and put back after.
A step's films form `norm_groups` such groups over all ranks; a rank passes each of its own through the network by
itself.  So one process with eight groups computes what eight ranks with one group each do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from chess_cxr.methods.batch import ViewBatch, take_views
from chess_cxr.methods.full_precision import full_precision, normalise
from chess_cxr.methods.heads import build_projection_head
from chess_cxr.methods.momentum import MomentumSchedule, copy_frozen, follow
from chess_cxr.methods.ranks import draw_shared_permutation, gather_ranks, get_world, take_own
from chess_cxr.methods.signals import measure_pairs, read_signals
from chess_cxr.methods.trunk import take_encoder
from chess_cxr.records import UsageError


@dataclass(frozen=True)
class MoCoConfig:
    """Numbers of MoCo; the defaults are those of the published CheSS run.

    key_momentum: share of the key encoder that survives a step.  key_momentum_end: what it rises to by the end of the
    run, along half a cosine; None keeps it.
    norm_groups: groups into which the films of a step are split for BatchNorm, over all ranks; a rank has at least one.
    symmetric: both views are queries, each against the other's key; the queue takes the keys of the second.
    mask_unfilled: only keys count as negatives, not the random unit vectors that fill the queue at the start.
    """

    name: Literal["moco_v2"] = field(default="moco_v2", kw_only=True)
    architecture: str = "resnet50"
    embedding: int = 128
    queue: int = 65_536
    key_momentum: float = 0.999
    temperature: float = 0.2
    norm_groups: int = 8
    symmetric: bool = False
    key_momentum_end: float | None = None
    mask_unfilled: bool = False


def count_own_groups(config: MoCoConfig, world: int) -> int:
    """Return into how many of the run's groups each of `world` ranks splits its own films."""
    return max(1, config.norm_groups // world)


def check_norm_groups(method: nn.Module, config: MoCoConfig, world: int) -> None:
    """Raise UsageError where BatchNorm would normalise every key together with its own query."""
    if config.norm_groups * world == 1 and any(isinstance(layer, _BatchNorm) for layer in method.modules()):
        raise UsageError(
            "moco: one norm_group on one process normalises each key together with its query, and BatchNorm then gives "
            "the answer away; set method.norm_groups to 8"
        )


def compute_info_nce(query_BD: Tensor, key_BD: Tensor, queue_KD: Tensor, temperature: float) -> Tensor:
    """Contrast each query with its key and the queue (MoCo, He et al. 2020, eq. 1).

    query_BD, key_BD: L2-normalised float32.  queue_KD: older keys, no gradient.
    Returns the mean InfoNCE loss in nats, scalar.
    """
    with full_precision(query_BD.device):
        positive_B1 = (query_BD * key_BD).sum(1, keepdim=True)
        logits = torch.cat([positive_B1, query_BD @ queue_KD.T], 1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


class MoCo(nn.Module):
    """Owns the query encoder, its momentum copy, both heads and the queue.

    encoder: to continue from.  steps: of the whole run, for `key_momentum_end`.
    """

    queue_KD: Tensor
    queue_position: Tensor

    def __init__(self, config: MoCoConfig, encoder: nn.Module | None = None, steps: int = 0) -> None:
        super().__init__()
        if config.norm_groups < 1 or config.queue < 1 or not config.temperature > 0:
            raise UsageError("moco: norm_groups and queue must be at least 1 and temperature above 0")
        self.config = config
        self.encoder, features = take_encoder(encoder, config.architecture)
        self.head = build_projection_head(features, config.embedding)
        self.key_encoder, self.key_head = copy_frozen(self.encoder), copy_frozen(self.head)
        self.register_buffer("queue_KD", F.normalize(torch.randn(config.queue, config.embedding), dim=1))
        self.register_buffer("queue_position", torch.zeros((), dtype=torch.long))
        end = config.key_momentum if config.key_momentum_end is None else config.key_momentum_end
        self.momentum = MomentumSchedule(config.key_momentum, end, steps)
        self._measured: dict[str, Tensor] = {}
        self._new_keys_BD: Tensor | None = None

    @property
    def signals(self) -> dict[str, float]:
        """Numbers of the newest step: `measure_pairs`, but with the queue as negatives, and the queue's age."""
        return read_signals(self._measured)

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that each named loss trains."""
        return {"encoder": [*self.encoder.parameters(), *self.head.parameters()]}

    def losses(self, batch: Tensor | ViewBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield the contrastive loss of a batch of views: queries are the first view, and the local ones.

        A local query has the same keys as the global ones: that of the second view, and with `symmetric` of the first.
        """
        views = take_views(batch)
        negative_KD, temperature = self._get_negatives(), self.config.temperature
        first_B1SS, second_B1SS = views.global_GB1SS[:2]
        key_BD, query_BD = self._embed_keys(second_B1SS), self._embed_queries(first_B1SS)
        pairs = [(query_BD, key_BD)]
        keys = [key_BD]
        if self.config.symmetric:
            keys.append(self._embed_keys(first_B1SS))
            pairs.append((self._embed_queries(second_B1SS), keys[1]))
        for local_BD in self._embed_local_queries(views):
            pairs += [(local_BD, key) for key in keys]
        losses = [compute_info_nce(query, key, negative_KD, temperature) for query, key in pairs]
        self._new_keys_BD = key_BD
        self._measured = measure_pairs(query_BD, key_BD) | self._measure_queue(query_BD.detach(), negative_KD)
        yield "encoder", losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the key encoder towards the query encoder and put the new keys into the queue."""
        follow((self.key_encoder, self.key_head), (self.encoder, self.head), self.momentum.advance())
        if self._new_keys_BD is not None:
            self._enqueue(gather_ranks(self._new_keys_BD))
            self._new_keys_BD = None

    def _enqueue(self, keys_BD: Tensor) -> None:
        places = (self.queue_position + torch.arange(len(keys_BD), device=keys_BD.device)) % len(self.queue_KD)
        self.queue_KD[places[-len(self.queue_KD) :]] = keys_BD[-len(self.queue_KD) :]
        self.queue_position += len(keys_BD)

    def _get_negatives(self) -> Tensor:
        if not self.config.mask_unfilled:
            return self.queue_KD
        return self.queue_KD[: int(self.queue_position)]

    def _measure_queue(self, query_BD: Tensor, negative_KD: Tensor) -> dict[str, Tensor]:
        """Measure the mean cosine of queries and negatives, and how many steps ago the queue's keys were made."""
        a_step = len(query_BD) * get_world()
        filled = self.queue_position.clamp(max=len(self.queue_KD))
        whole, rest = filled // a_step, filled % a_step
        ages = a_step * whole * (whole + 1) // 2 + rest * (whole + 1)
        measured = {"queue_age_steps": ages / filled.clamp(min=1)}
        if len(negative_KD):
            measured["negative_similarity"] = (query_BD.mean(0) * negative_KD.mean(0)).sum()
        return measured

    def _embed_queries(self, view_B1HW: Tensor) -> Tensor:
        return normalise(self.head(self._encode_in_groups(self.encoder, view_B1HW)))

    def _embed_local_queries(self, views: ViewBatch) -> list[Tensor]:
        """Embed the local views, those of each group's films together: unit rows [B, D] for each of the L views."""
        if views.local_LB1ss is None:
            return []
        count, local = count_own_groups(self.config, get_world()), views.local_LB1ss
        groups = [self.encoder(group.flatten(0, 1)).view(*group.shape[:2], -1) for group in local.chunk(count, 1)]
        embedded_ND = normalise(self.head(torch.cat(groups, 1).flatten(0, 1)))
        return list(embedded_ND.view(*local.shape[:2], -1))

    def _encode_in_groups(self, encoder: nn.Module, view_B1HW: Tensor) -> Tensor:
        count = count_own_groups(self.config, get_world())
        if len(view_B1HW) % count:
            raise UsageError(
                f"moco: {len(view_B1HW)} films of one rank cannot be split into {count} equal groups; change "
                "method.norm_groups or training.batch"
            )
        if 1 < count == len(view_B1HW):
            raise UsageError("moco: norm_groups of one film have no statistics; choose fewer, or a larger batch")
        groups = view_B1HW.chunk(count)
        embedded: Tensor = torch.cat([encoder(group) for group in groups]) if count > 1 else encoder(view_B1HW)
        return embedded

    @torch.no_grad()
    def _embed_keys(self, view_B1HW: Tensor) -> Tensor:
        """Embed the keys in shuffled company (ShuffleBN, He et al. 2020, section 3.3)."""
        everyone = gather_ranks(view_B1HW)
        shuffled = draw_shared_permutation(len(everyone), view_B1HW.device)
        batch = len(view_B1HW)
        mine = everyone[take_own(shuffled, batch)]
        keys = gather_ranks(self.key_head(self._encode_in_groups(self.key_encoder, mine)))
        return normalise(keys[take_own(torch.argsort(shuffled), batch)])
