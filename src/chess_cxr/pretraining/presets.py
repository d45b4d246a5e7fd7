"""Pre-training configurations: named presets as plain functions, and configurations read from JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from chess_cxr.methods import METHODS, MethodConfig
from chess_cxr.methods.guides import Guide
from chess_cxr.methods.moco import MoCoConfig
from chess_cxr.pretraining.crops import Crops, check_sizes
from chess_cxr.pretraining.films import Positives
from chess_cxr.records import UsageError, choose_problem, word_problem
from chess_cxr.training.loop import TrainingConfig
from chess_cxr.training.run import read_run_config
from chess_cxr.views import ViewConfig

PAPER_FILMS = 4_800_000
PAPER_EPOCHS = 200


@dataclass(frozen=True)
class PixelScale:
    """Mean and standard deviation, on the [0, 1] scale, that training normalises pixels by."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise UsageError("pixels: mean must be a finite number and std one above 0")


@dataclass(frozen=True)
class PretrainConfig:
    """The resolved configuration of one pre-training run, as written to its `config.json`.

    positives: where the two views of a pair come from, see `read_view_batches`.
    begin_from: an encoder to continue from, as `load_encoder` takes it; "" for an untrained one.
    crops: number and size of each film's views.  guides: columns that features should keep or forget, see `Guide`.
    balance: the column to balance films by, see `build_groups`; "" for none.
    sizes: side of global views over the course of the run, as (share of the run, size); () for a constant size.
    films: a file with the uids of the films to train on, such as `chess-cxr select` writes; "" for all.
    """

    # for pydantic, nested configurations included: refuse a misspelt entry
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    preset: str
    method: Annotated[MethodConfig, Field(discriminator="name")]
    views: ViewConfig
    training: TrainingConfig
    pixels: PixelScale
    splits: tuple[str, ...] = ("train", "")
    positives: Positives = "view"
    begin_from: str = ""
    crops: Crops = Crops()
    guides: tuple[Guide, ...] = ()
    balance: str = ""
    sizes: tuple[tuple[float, int], ...] = ()
    films: str = ""

    def __post_init__(self) -> None:
        check_sizes(self.sizes, self.views.size)
        for _, size in self.sizes or ((1.0, self.views.size),):
            self.crops.check(replace(self.views, size=size))
        if len({guide.column for guide in self.guides}) < len(self.guides):
            raise UsageError("guides: a column guides once")
        if not self.splits or not set(self.splits) <= {"train", ""}:
            raise UsageError("splits can be train and '' (films without a split); val and test never are")


def chess_paper() -> PretrainConfig:
    """ResNet-50 at 512² on 4.8 million films, with the views of the published reference code."""
    views = ViewConfig(
        size=512, filters=("median_blur", "motion_blur", "sharpen"), filter_p=0.2,
        brightness=(-0.1, 0.1), contrast=(-0.2, 0.1), contrast_about="black", tone_p=0.6,
        noise=(3.2, 7.1), gain=0.1, quick_noise=True, noise_p=0.2, lift=0.1, jitter_p=0.3,
        shift=0.0625, zoom=0.2, rotate_deg=10, affine_p=0.2, border="mirror", distort=0.0375, distort_p=0.06,
    )  # fmt: skip
    training = TrainingConfig(
        steps=PAPER_EPOCHS * PAPER_FILMS // 256, batch=256, loader_threads=8,
        log_every=50, probe_every=5_000, checkpoint_every=2_000,
    )  # fmt: skip
    return PretrainConfig("chess_paper", MoCoConfig(), views, training, PixelScale(0.658, 0.221))


def chess_strong() -> PretrainConfig:
    """`chess_paper` with stronger views: crops that keep the lungs, gamma, contrast, noise, blur, elastic; no flip."""
    views = ViewConfig(
        size=512, crop_area=(0.3, 1.0), crop_aspect=(0.8, 1.25), keep=(0.8, 0.7),
        shift=0.05, zoom=0.1, rotate_deg=10, affine_p=0.8, elastic=0.03, elastic_p=0.5,
        gamma=(0.7, 1.4), gamma_p=0.5, contrast=(-0.3, 0.3), brightness=(-0.15, 0.15), tone_p=0.8,
        filters=("gaussian_blur", "sharpen"), filter_p=0.3, noise=(1.0, 8.0), quick_noise=True, noise_p=0.3,
    )  # fmt: skip
    return replace(chess_paper(), preset="chess_strong", views=views)


def cpu_small() -> PretrainConfig:
    """A small network that two CPU cores train in about an hour; `docs/log.md` tells how it was chosen.

    The views are mild: they preserve brightness and place of opacities, which can be learned from few labels.
    """
    views = ViewConfig(
        size=64, crop_area=(0.5, 1.0), crop_aspect=(0.8, 1.25), rotate_deg=10, zoom=0.1, affine_p=0.8,
        contrast=(-0.15, 0.15), brightness=(-0.08, 0.08), tone_p=0.8,
        filters=("gaussian_blur",), filter_p=0.2, noise=(1.0, 8.0), noise_p=0.2,
    )  # fmt: skip
    method = MoCoConfig("regnetx_002", queue=1024, key_momentum=0.99)
    training = TrainingConfig(
        steps=4800, batch=128, optimizer="adamw", learning_rate=1e-3, weight_decay=0.01, warmup=0.02,
        probe_every=200, checkpoint_every=200,
    )  # fmt: skip
    return PretrainConfig("cpu_small", method, views, training, PixelScale(0.5, 0.25))


def demo() -> PretrainConfig:
    """A few minutes on two CPU cores: shows that everything works, not how good it can be.

    timm's smallest ResNet learns something from generated films in 600 steps; RegNetX-002 did not.
    """
    small = cpu_small()
    training = replace(
        small.training, steps=600, batch=64, warmup=0.1, log_every=10, probe_every=100, checkpoint_every=200
    )
    method = MoCoConfig("test_resnet", queue=256, key_momentum=0.99)
    return replace(small, preset="demo", method=method, training=training)


PRESETS: dict[str, Callable[[], PretrainConfig]] = {
    "chess_paper": chess_paper,
    "chess_strong": chess_strong,
    "cpu_small": cpu_small,
    "demo": demo,
}


def build_config(preset: str | PretrainConfig, run: Path | None = None) -> PretrainConfig:
    """Return the configuration of a preset.

    run: the run folder.  A run begun there by an earlier version with the same preset keeps its `norm_groups`.
    """
    if isinstance(preset, PretrainConfig):
        return preset
    if preset not in PRESETS:
        raise UsageError(f"no preset named {preset!r}; there are {', '.join(PRESETS)}")
    config = PRESETS[preset]()
    if run is None or not (run / "config.json").exists() or not isinstance(config.method, MoCoConfig):
        return config
    begun = read_run_config(run)
    groups = begun["method"].get("norm_groups") if isinstance(begun.get("method"), dict) else None
    if begun.get("preset") != preset or not isinstance(groups, int):
        return config
    return replace(config, method=replace(config.method, norm_groups=groups))


def read_config_file(path: Path) -> PretrainConfig:
    """Read a pre-training configuration from a JSON file, such as a run's `config.json`."""
    try:
        described = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(described, dict):
        raise UsageError(f"{path} should hold one JSON object")
    try:
        return read_pretrain_config(described)
    except UsageError as error:
        raise UsageError(f"{path}: {str(error).removeprefix('configuration: ')}") from None


def read_pretrain_config(described: Mapping[str, Any]) -> PretrainConfig:
    """Build a configuration from JSON values, such as those of a run's `config.json`, without its data.

    Raises `UsageError` that names the first invalid entry.
    """
    known = {name: value for name, value in described.items() if name != "data"}
    if isinstance(known.get("method"), Mapping):  # early runs, when there was one method, did not write its name
        known["method"] = {"name": "moco_v2", **known["method"]}
    try:
        return TypeAdapter(PretrainConfig).validate_json(json.dumps(known))
    except ValidationError as error:
        first = choose_problem(error.errors())
        place = ".".join(str(part) for part in first["loc"] if part not in METHODS)
        raise UsageError(f"configuration: {place}: {word_problem(first, list_entries(asdict(cpu_small())))}") from None


def list_entries(described: Mapping[str, Any]) -> set[str]:
    """Return the names of all entries of a configuration, nested ones too."""
    inside = (list_entries(value) for value in described.values() if isinstance(value, Mapping))
    return set(described).union(*inside)
