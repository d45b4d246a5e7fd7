"""The encoders of a suite: from what stands in its file to a network that embeds, and to the hash of what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from chess_cxr.benchmarking.cache import compute_key, hash_array
from chess_cxr.benchmarking.suite import RELATIVE, EncoderSource
from chess_cxr.benchmarking.variants import build_variant, parse_variant
from chess_cxr.device import choose_device
from chess_cxr.encoders.embed import EncoderLike, tell_seen
from chess_cxr.encoders.encoder import (
    Encoder,
    place_encoder,
)
from chess_cxr.encoders.load import LITE0, build_random_encoder, choose_imagenet, load_encoder
from chess_cxr.encoders.names import check_encoder_name
from chess_cxr.records import UsageError


@dataclass(frozen=True)
class EncoderFacts:
    """What is known of an encoder: the hash of its weights and contract, a line for people, notes on it, and by task
    a note on scored films that it was pre-trained on.
    """

    source: EncoderSource
    identity: str
    about: str
    notes: tuple[str, ...] = ()
    seen: Mapping[str, str] = field(default_factory=dict)


def check_spec(spec: str) -> None:
    """Raise UsageError for what can be neither found nor a name."""
    if spec not in RELATIVE:
        check_encoder_name(parse_variant(spec).spec)


def resolve_sources(encoders: Mapping[str, str], reference: str) -> dict[str, EncoderSource]:
    """Turn the encoders of a suite into sources: `random` becomes an untrained network like the reference's.

    Raises UsageError where there is no such network, or an encoder folder or file is missing.
    """
    for spec in encoders.values():
        check_spec(spec)
    like = encoders[reference]
    for name, spec in encoders.items():
        if spec == "random" and (like == "random" or like.startswith("pixels:")):
            raise UsageError(
                f"{name}: random is a network like the reference's, and {reference} has none: name one, such as "
                "random:resnet50@512"
            )
    return {
        name: EncoderSource(name, spec, like if spec in ("random", "imagenet") else "")
        for name, spec in encoders.items()
    }


def settle_source(source: EncoderSource) -> tuple[EncoderSource, tuple[str, ...]]:
    """Decide which weights `imagenet` stands for: timm's of the reference's network, or what works offline.

    Returns the source as every worker will load it, and what the reader has to know.
    """
    if source.spec != "imagenet":
        return source, ()
    network = ""
    if source.like not in ("", "imagenet") and not source.like.startswith(("pixels:", "xrv:")):
        like = load_source(EncoderSource("", parse_variant(source.like).spec))
        network = like.architecture if isinstance(like, Encoder) else ""
    chosen = choose_imagenet(network)
    if chosen != LITE0:
        return EncoderSource(source.name, chosen), ()
    why = f"those of {network} are not at hand" if network else "the reference is no network of timm"
    return EncoderSource(source.name, LITE0), (f"{source.name}: weights of EfficientNet-Lite0, as {why}.",)


def load_source(source: EncoderSource, device: str = "cpu") -> EncoderLike:
    """Load an encoder of a suite.

    Takes everything `load_encoder` does, its variants (see `variants`), `random`, a network like the reference's, and
    `pixels:SIDE`, which is its own encoder.  Raises ChessError, in one line, for whatever is missing or broken.
    """
    if source.spec.startswith("pixels:"):
        return source.spec
    if source.spec == "random":
        changed = parse_variant(source.like)
        like = load_source(EncoderSource("", changed.spec))
        assert isinstance(like, Encoder)
        untrained = build_random_encoder(like.architecture, like.contract)
        return build_variant(place_encoder(untrained, choose_device(device)), changed)
    variant = parse_variant(LITE0 if source.spec == "imagenet" else source.spec)
    return build_variant(load_encoder(variant.spec, device=device), variant)


def describe_source(
    source: EncoderSource, scored: Mapping[str, np.ndarray] | None = None, device: str = "cpu"
) -> EncoderFacts:
    """Load an encoder once and return what is known of it.

    scored: by task, the uids of the films that it will be scored on.  Raises ChessError where it cannot be loaded.
    """
    source, notes = settle_source(source)
    encoder = load_source(source, device)
    if not isinstance(encoder, Encoder):
        return EncoderFacts(source, compute_identity(encoder), f"bare pixels ({source.spec})", notes)
    data = encoder.training.data.split(".")[0].split("\n")[0]
    told = {task: tell_seen(source.name, encoder, uids) for task, uids in (scored or {}).items()}
    seen = {task: note for task, note in told.items() if note}
    about = f"{encoder.architecture} at {encoder.contract.size}², {encoder.training.method or 'pre-trained'}: {data}"
    return EncoderFacts(source, compute_identity(encoder), about, notes, seen)


def compute_identity(encoder: EncoderLike) -> str:
    """Return the SHA-256 of all that decides an encoder's features: network, weights, pixel contract."""
    if not isinstance(encoder, Encoder):
        return compute_key({"encoder": str(encoder)})
    weights = {
        name: hash_array(tensor.detach().cpu().contiguous().numpy())
        for name, tensor in encoder.module.state_dict().items()
    }
    contract = json.loads(json.dumps(asdict(encoder.contract)))
    return compute_key({"architecture": encoder.architecture, "contract": contract, "weights": weights})
