"""Plan the training of a nodule generator: its network, its examples and its optimisation."""

from __future__ import annotations

from typing import Any

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
SPADE_ONLY = ("mode", "latent", "feature_matching", "kld", "r1")


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
    )
    check_generate_config(planned)
    _check_film_size(config)
    return planned


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


def describe_training(config: NodulesConfig) -> dict[str, Any]:
    """Describe a configuration as earlier versions did, which knew spade alone, so that their runs can be continued."""
    told = describe(config)
    if config.network == "spade":
        del told["network"]
    return told


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
