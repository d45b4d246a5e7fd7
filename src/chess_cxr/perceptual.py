"""The perceptual network of a task, by name."""

from __future__ import annotations

from pathlib import Path

from chess_cxr.benchmark.encoders import check_spec, load_source, settle_source
from chess_cxr.benchmark.suite import EncoderSource
from chess_cxr.models.embedding import Encoder
from chess_cxr.records import UsageError
from chess_cxr.tasks.perceptual import PerceptualConfig, PerceptualLoss
from chess_cxr.weights import build_random_encoder

SAME = "same"


def check_perceptual(spec: str) -> None:
    """Raise UsageError, without loading anything, for a name that no perceptual network can have."""
    if spec == "chess":
        raise UsageError("chess needs the published file: chess:FILE.pth.tar")
    if spec.startswith("pixels:"):
        raise UsageError("bare pixels are no perceptual network; none leaves the perceptual loss out")
    if spec not in (SAME, "none"):
        check_spec(spec)


def build_perceptual(
    spec: str, encoder: Encoder, config: PerceptualConfig | None = None, seed: int = 0
) -> tuple[PerceptualLoss | None, str]:
    """Build the perceptual loss that a name stands for; return it with a line that says what it is.

    spec: "none"; "same", the given encoder; "random", one like it with weights of its own from the seed; "imagenet";
    "chess:FILE", the published checkpoint; or whatever `load_encoder` takes.
    """
    check_perceptual(spec)
    if spec == "none":
        return None, "no perceptual loss"
    if spec == SAME:
        found = encoder
    elif spec == "random":
        found = build_random_encoder(encoder.architecture, encoder.contract, seed=seed + 1000)
    else:
        source, _ = settle_source(EncoderSource(spec, spec, encoder.name if Path(encoder.name).is_dir() else ""))
        loaded = load_source(source)
        assert isinstance(loaded, Encoder)
        found = loaded
    return PerceptualLoss(found, config), f"{found.name} ({found.architecture} at {found.contract.size}²)"
