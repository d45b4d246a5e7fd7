"""One encoder in several forms: films of another size, or the features of several blocks.

`size=128:ENCODER` feeds films of 128 pixels; `blocks=4:ENCODER` gives the pooled features of the last four blocks, side
by side (as DINOv2's linear probe does); both can be combined.  Only heads on cached features take several blocks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from chess_cxr.encoders.encoder import Encoder, join_encoder, place_encoder
from chess_cxr.records import ChessError, UsageError

_VARIANT = re.compile(r"(size|blocks)=([0-9]{1,4}):(.+)", re.DOTALL)


@dataclass(frozen=True)
class Variant:
    """The encoder that is named, and what is changed; size and blocks are 0 for nothing."""

    spec: str
    size: int = 0
    blocks: int = 0


def parse_variant(spec: str) -> Variant:
    """Parse `size=N:` and `blocks=N:` before the name of an encoder; raises UsageError for either of them twice."""
    found: dict[str, int] = {}
    rest = spec
    while match := _VARIANT.fullmatch(rest):
        name, number, rest = match[1], int(match[2]), match[3]
        if name in found or not number:
            raise UsageError(f"{spec!r} should be an encoder behind size=N: or blocks=N:, each once and above 0")
        found[name] = number
    if found and (rest in ("random", "imagenet") or rest.startswith("pixels:")):
        raise UsageError(
            f"{spec!r}: {rest} has no size and no blocks of its own; name a network, such as random:NET@SIZE"
        )
    return Variant(rest, **found)


def build_variant(encoder: Encoder, variant: Variant) -> Encoder:
    """Return the encoder in another form; itself where nothing is changed.

    Raises ChessError for a network that cannot give the features of that many blocks, or takes no films of that size.
    """
    if not variant.size and not variant.blocks:
        return encoder
    contract = replace(encoder.contract, size=variant.size) if variant.size else encoder.contract
    module, name = encoder.module, encoder.name
    architecture = encoder.architecture
    if variant.blocks:
        module, architecture = Blocks(module, variant.blocks), f"{architecture}, last {variant.blocks} blocks"
    device = encoder.device
    encoder.module.to("cpu")
    changed = join_encoder(module, contract, name, architecture, encoder.licence, encoder.training)
    changed.read_uids = encoder.read_uids
    return place_encoder(changed, device)


class Blocks(nn.Module):
    """The pooled features of a timm network's last blocks (stages of a convolutional network), deepest last.

    A map [B, C, H, W] is averaged over its places; of tokens, the class token stands beside the mean of the patches.
    """

    def __init__(self, network: Any, blocks: int) -> None:
        super().__init__()
        self.network, self.blocks = network, blocks
        if not hasattr(network, "forward_intermediates"):
            raise ChessError(f"{type(network).__name__} of timm gives no features of single blocks")

    def forward(self, film_BCSS: Tensor) -> Tensor:
        """Return [B, sum of the blocks' features]."""
        tokens = hasattr(self.network, "blocks") and hasattr(self.network, "cls_token")
        options: Mapping[str, Any] = {"return_prefix_tokens": True} if tokens else {}
        try:
            found = self.network.forward_intermediates(
                film_BCSS, indices=self.blocks, intermediates_only=True, output_fmt="NCHW", **options
            )
        except (AssertionError, IndexError) as error:
            raise ChessError(f"the network has fewer than {self.blocks} blocks") from error
        pooled = list[Tensor]()
        for block in found:
            map_BCHW, prefix_BTC = block if isinstance(block, tuple) else (block, None)
            pooled.append(map_BCHW.mean((2, 3)))
            if prefix_BTC is not None and prefix_BTC.shape[1]:
                pooled.append(prefix_BTC[:, 0])
        return torch.cat(pooled, 1)
