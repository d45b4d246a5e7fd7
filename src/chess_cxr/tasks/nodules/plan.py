"""Plan the training of a nodule generator: its network, its examples and its optimisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from chess_cxr.files.whole import read_json
from chess_cxr.records import UsageError
from chess_cxr.tasks.nodules.canvas import Perceptual
from chess_cxr.tasks.nodules.config import NodulesConfig
from chess_cxr.tasks.nodules.flow import FlowConfig, FlowNodules, check_flow_config
from chess_cxr.tasks.nodules.objective import GenerateConfig, GenerateNodules, check_generate_config
from chess_cxr.tasks.nodules.windows import WindowPlan
from chess_cxr.training.loop import TrainingConfig
from chess_cxr.training.run import describe

NoduleMethod = GenerateNodules | FlowNodules
ADAM_BETAS = (0.0, 0.9)  # Park et al. 2019
FLOW_BETAS = (0.9, 0.99)
SPADE_ONLY = ("mode", "latent", "feature_matching", "kld", "r1", "vary")


def plan_generation(config: NodulesConfig) -> GenerateConfig | FlowConfig:
    """Return the generator's own configuration; raise UsageError if it is invalid."""
    if config.network == "flow":
        return _plan_flow(config)
    planned = GenerateConfig(
        mode=config.mode,
        size=config.size,
        width=config.width,
        latent=config.latent,
        lung=config.mode == "film",
        feature_matching=config.feature_matching,
        perceptual=config.perceptual_weight,
        kld=config.kld,
        r1=config.r1,
        ema=config.ema,
        vary=config.vary and _can_vary(config.network, config.mode),
    )
    check_generate_config(planned)
    _check_film_size(config)
    return planned


def _can_vary(network: str, mode: str) -> bool:
    return network == "spade" and mode == "inpaint"


def _plan_flow(config: NodulesConfig) -> FlowConfig:
    usual = NodulesConfig()
    if foreign := [name for name in SPADE_ONLY if getattr(config, name) != getattr(usual, name)]:
        raise UsageError(f"{foreign[0]} belongs to the network spade; leave it out for a flow")
    planned = FlowConfig(config.size, config.width, perceptual=config.perceptual_weight, ema=config.ema)
    check_flow_config(planned)
    _check_film_size(config)
    return planned


def _check_film_size(config: NodulesConfig) -> None:
    if config.mode == "inpaint" and not config.size <= config.film_size <= 4096:
        raise UsageError("a nodule generator needs size <= film_size <= 4096 pixels")


def build_generator(planned: GenerateConfig | FlowConfig, perceptual: Perceptual | None = None) -> NoduleMethod:
    """Build an untrained generator."""
    return FlowNodules(planned, perceptual) if isinstance(planned, FlowConfig) else GenerateNodules(planned, perceptual)


def begin_from(method: NoduleMethod, begun: NoduleMethod) -> None:
    """Copy the averaged weights of another generator; raise UsageError if it is of another shape."""
    shapes = [
        {name: getattr(one.config, name, None) for name in ("mode", "size", "width", "latent", "lung", "vary")}
        for one in (method, begun)
    ]
    if type(method) is not type(begun) or shapes[0] != shapes[1]:
        kind = "flow" if isinstance(begun, FlowNodules) else "spade"
        told = ", ".join(f"{name} {value}" for name, value in shapes[1].items() if value is not None)
        raise UsageError(f"the generator to begin from is of the network {kind}, {told}; ask for the same")
    for part in (method.averaged, method.network if isinstance(method, FlowNodules) else method.generator):
        part.load_state_dict(begun.averaged.state_dict())


def describe_training(config: NodulesConfig) -> dict[str, Any]:
    """Describe a configuration without what its network does not use and earlier versions did not know."""
    told = describe(config)
    del told["begin_from"]  # its hash stands in the run's description
    if not config.balance:
        del told["balance"]
    if config.network == "spade":
        del told["network"]
    if not _can_vary(config.network, config.mode):
        del told["vary"]
    return told


def go_on_as_begun(folder: Path, config: NodulesConfig) -> NodulesConfig:
    """Return the configuration of a run that an earlier version has begun in `folder`, without what it did not know."""
    begun = read_json(folder / "config.json").get("nodules")
    earlier = isinstance(begun, Mapping) and "vary" not in begun and _can_vary(config.network, config.mode)
    return replace(config, vary=False) if earlier else config


def complete_earlier(described: dict[str, Any]) -> dict[str, Any]:
    """Add what an earlier version did not know to its description of a run."""
    begun = described.get("nodules", {})
    unknown = {"vary": False} if _can_vary(begun.get("network", "spade"), begun.get("mode", "")) else {}
    return {**described, "nodules": {**unknown, **begun}}


def plan_windows(config: NodulesConfig) -> WindowPlan:
    """Return the configuration of training examples; raise UsageError if it is invalid."""
    planned = plan_generation(config)
    return WindowPlan(config.mode, config.size, config.film_size, planned.margin, planned.margin_px)


def plan_nodule_training(config: NodulesConfig) -> TrainingConfig:
    """Return the optimisation of a nodule generator."""
    return TrainingConfig(
        steps=config.steps,
        batch=config.batch,
        optimizer="adamw",
        learning_rate=config.learning_rate,
        weight_decay=0.0,
        warmup=0.02,
        log_every=max(1, min(20, config.steps)),
        probe_every=max(1, config.steps // 10),
        checkpoint_every=config.checkpoint_every,
        loader_threads=config.threads,
        seed=config.seed,
    )


def build_groups(method: NoduleMethod) -> dict[str, list[dict[str, Any]]]:
    """Return the parameter groups of the optimisers, with their learning rates and betas."""
    betas = ADAM_BETAS if isinstance(method, GenerateNodules) else FLOW_BETAS
    return {
        name: [group | {"betas": betas} for group in parts] for name, parts in method.build_parameter_groups().items()
    }
