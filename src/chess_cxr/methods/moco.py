"""MoCo v2: momentum contrast with a queue (He et al. 2020; Chen et al. 2020, "Improved baselines").

Shapes: B batch, D embedding, K queue.

BatchNorm leaks information: the query and key of a film share their batch's statistics, the queue's negatives do not.
Query and key must therefore not be normalised in the same batch.  As in the paper, the batch is shuffled over the
ranks of a node before the key encoder, and unshuffled after it (ShuffleBN).  The films of a step form `norm_groups`
groups over all ranks, and each group passes through the network separately.  So one process with eight groups computes
the same as eight ranks of one node with one group each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from chess_cxr.methods.batch import ViewBatch, take_views
from chess_cxr.methods.full_precision import full_precision, normalise
from chess_cxr.methods.heads import build_projection_head
from chess_cxr.methods.method import EncoderMethod
from chess_cxr.methods.momentum import MomentumSchedule, copy_frozen, follow
from chess_cxr.methods.pointwise import compute_pointwise_as_linear
from chess_cxr.methods.ranks import Node, draw_shared_permutation, gather_ranks, get_node, get_world, take_own
from chess_cxr.methods.signals import measure_pairs
from chess_cxr.records import UsageError
from chess_cxr.training.late import advance_count, read_count


@dataclass(frozen=True)
class MoCoConfig:
    """Hyperparameters of MoCo v2; the defaults are those of the published CheSS run.

    key_momentum: momentum of the key encoder.  key_momentum_end: its value at the end of the run, reached along half a
    cosine; None keeps it constant.
    norm_groups: number of BatchNorm groups in a step, over all ranks; each rank has at least one.
    symmetric: use each view as the query of the other; only the second views' keys enter the queue.
    mask_unfilled: ignore the random vectors that fill the queue at the start.
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
    """Return the number of BatchNorm groups on each of `world` ranks."""
    return max(1, config.norm_groups // world)


def check_norm_groups(method: nn.Module, config: MoCoConfig, world: int) -> None:
    """Raise UsageError if BatchNorm would normalise every key together with its own query."""
    if config.norm_groups * world == 1 and any(isinstance(layer, _BatchNorm) for layer in method.modules()):
        raise UsageError(
            "moco: one norm_group on one process normalises each key together with its query, and BatchNorm then leaks "
            "the answer; set method.norm_groups to 8"
        )


def compute_info_nce(query_BD: Tensor, key_BD: Tensor, queue_KD: Tensor, temperature: float) -> Tensor:
    """Contrast each query with its key against the queue (MoCo, He et al. 2020, eq. 1).

    query_BD, key_BD: L2-normalised float32.  queue_KD: older keys, without gradient.
    Returns the mean InfoNCE loss in nats, scalar.
    """
    with full_precision(query_BD.device):
        positive_B1 = (query_BD * key_BD).sum(1, keepdim=True)
        logits = torch.cat([positive_B1, query_BD @ queue_KD.T], 1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


class MoCo(EncoderMethod):
    """The query encoder, its momentum copy, both heads and the queue.

    Signals are those of `measure_pairs`, with the queue as negatives, and the age of the queue's keys.
    """

    queue_KD: Tensor
    queue_position: Tensor

    def __init__(self, config: MoCoConfig, encoder: nn.Module | None = None, steps: int = 0) -> None:
        if config.norm_groups < 1 or config.queue < 1 or not config.temperature > 0:
            raise UsageError("moco: norm_groups and queue must be at least 1 and temperature above 0")
        super().__init__(config.architecture, encoder)
        self.config = config
        self.head = build_projection_head(self.features, config.embedding)
        self.key_encoder, self.key_head = copy_frozen(self.encoder), copy_frozen(self.head)
        self.register_buffer("queue_KD", F.normalize(torch.randn(config.queue, config.embedding), dim=1))
        self.register_buffer("queue_position", torch.zeros((), dtype=torch.long))
        end = config.key_momentum if config.key_momentum_end is None else config.key_momentum_end
        self.momentum = MomentumSchedule(config.key_momentum, end, steps)
        self._new_keys_BD: Tensor | None = None

    def losses(self, batch: Tensor | ViewBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield the contrastive loss of a batch of views, with the first view and all local views as queries.

        The key is that of the second view and, if `symmetric`, also that of the first.
        """
        views = take_views(batch)
        negative_KD, temperature = self._get_negatives(), self.config.temperature
        first_B1SS, second_B1SS = views.global_GB1SS[:2]
        key_BD, query_BD = self._embed_keys(*_choose_sent(views, 1)), self._embed_queries(first_B1SS)
        pairs, keys = [(query_BD, key_BD)], [key_BD]
        if self.config.symmetric:
            keys.append(self._embed_keys(*_choose_sent(views, 0)))
            pairs.append((self._embed_queries(second_B1SS), keys[1]))
        pairs += [(local_BD, key) for local_BD in self._embed_local_queries(views) for key in keys]
        losses = [compute_info_nce(query, key, negative_KD, temperature) for query, key in pairs]
        self._new_keys_BD = key_BD
        self.measured = measure_pairs(query_BD, key_BD) | self._measure_queue(query_BD.detach(), negative_KD)
        yield "encoder", losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the key encoder towards the query encoder and enqueue the new keys."""
        follow((self.key_encoder, self.key_head), (self.encoder, self.head), self.momentum.advance())
        if self._new_keys_BD is not None:
            self._enqueue(gather_ranks(self._new_keys_BD))
            self._new_keys_BD = None

    def _enqueue(self, keys_BD: Tensor) -> None:
        places = (self.queue_position + torch.arange(len(keys_BD), device=keys_BD.device)) % len(self.queue_KD)
        self.queue_KD[places[-len(self.queue_KD) :]] = keys_BD[-len(self.queue_KD) :]
        advance_count(self, "queue_position", len(keys_BD))

    def _get_negatives(self) -> Tensor:
        return self.queue_KD[: read_count(self, "queue_position")] if self.config.mask_unfilled else self.queue_KD

    def _measure_queue(self, query_BD: Tensor, negative_KD: Tensor) -> dict[str, Tensor]:
        """Measure the mean cosine of queries and negatives, and the mean age of the queue's keys in steps."""
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
        """Embed the local views, each group's films as one batch; return one normalised [B, D] per view."""
        if views.local_LB1ss is None:
            return []
        count, local = count_own_groups(self.config, get_world()), views.local_LB1ss
        with compute_pointwise_as_linear(local.device):
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
            raise UsageError("moco: a norm_group of one film has no statistics; choose fewer groups or a larger batch")
        groups = view_B1HW.chunk(count)
        embedded: Tensor = torch.cat([encoder(group) for group in groups]) if count > 1 else encoder(view_B1HW)
        return embedded

    @torch.no_grad()
    def _embed_keys(self, view_B1HW: Tensor, normalise_pixels: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Embed the keys in shuffled batches (ShuffleBN, He et al. 2020, section 3.3).

        normalise_pixels: makes the views, sent as uint8, what the network takes; None for normalised views.
        """
        node, own = self._find_company(), len(view_B1HW)
        everyone = gather_ranks(view_B1HW, node)
        shuffled = draw_shared_permutation(own, view_B1HW.device, node)
        mine = everyone[take_own(shuffled, own, node)]
        mine = normalise_pixels(mine) if normalise_pixels else mine
        keys = gather_ranks(self.key_head(self._encode_in_groups(self.key_encoder, mine)), node)
        return normalise(keys[take_own(torch.argsort(shuffled), own, node)])

    def _find_company(self) -> Node:
        """Return the ranks to shuffle with: those of this node, unless they have but one BatchNorm group."""
        node, world = get_node(), get_world()
        return node if node.ranks * count_own_groups(self.config, world) > 1 else Node(0, world)


def _choose_sent(views: ViewBatch, which: int) -> tuple[Tensor, Callable[[Tensor], Tensor] | None]:
    """Return a global view as ranks send it, and what makes it normalised."""
    if views.raw is None:
        return views.global_GB1SS[which], None
    return views.raw.views_GB1SS[which], views.raw.normalise
