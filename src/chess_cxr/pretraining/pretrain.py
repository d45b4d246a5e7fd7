"""Pre-train an encoder on the films of stores: begin or continue a run, and feed it view pairs."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chess_cxr.encoders.encoder import build_grey_network, compute_state_sha256
from chess_cxr.encoders.folder import read_heads
from chess_cxr.encoders.load import load_encoder
from chess_cxr.encoders.names import locate_encoder
from chess_cxr.methods import build_method
from chess_cxr.methods.batch import RawViews, ViewBatch, take_views
from chess_cxr.methods.guides import Guide, Guided
from chess_cxr.methods.moco import MoCoConfig, check_norm_groups
from chess_cxr.pretraining.crops import Crops, Sizes
from chess_cxr.pretraining.export import HEADS
from chess_cxr.pretraining.films import FilmPool, Positives, build_film_pool, read_codes, read_view_batches
from chess_cxr.pretraining.presets import PixelScale, PretrainConfig, build_config, read_pretrain_config
from chess_cxr.pretraining.watch import PretrainMethod, Watch
from chess_cxr.progress import Say, say_on_stderr
from chess_cxr.records import UsageError
from chess_cxr.store import Store, StoreLike, get_store
from chess_cxr.training.checkpoint import find_checkpoint
from chess_cxr.training.config import TrackingConfig
from chess_cxr.training.distributed import count_ranks
from chess_cxr.training.loop import TrainingConfig
from chess_cxr.training.run import OnStep, Rank, RunInputs, describe, hash_uids, train_in_folder
from chess_cxr.training.run_log import RunLog
from chess_cxr.views import ViewConfig


@dataclass(frozen=True)
class RunPlan:
    """The settings of a pre-training run, besides its method.

    begun_from: SHA-256 of the weights that the method began with; "" for untrained ones.
    """

    training: TrainingConfig
    views: ViewConfig
    pixels: PixelScale
    splits: tuple[str, ...] = ("train", "")
    positives: Positives = "view"
    crops: Crops = Crops()
    guides: tuple[Guide, ...] = ()
    balance: str = ""
    sizes: Sizes = ()
    begun_from: str = ""
    films: str = ""


def pretrain(
    stores: Sequence[StoreLike] | StoreLike,
    out: Path | str,
    preset: str | PretrainConfig = "cpu_small",
    on_step: OnStep | None = None,
    *,
    begin_from: str = "",
    tracking: TrackingConfig | None = None,
    say: Say | None = None,
    device: str = "auto",
) -> Path:
    """Pre-train an encoder without labels on the train split and the unsplit films of some stores.

    preset: the name of a preset, or a configuration.  on_step: called with every step's report and the newest probe.
    begin_from: an encoder to continue from, see `continue_from`.  tracking: trackers besides `metrics.jsonl`.
    say: called with each important line, such as a collapse; prints it on stderr by default.
    device: auto, cpu, cuda, cuda:N or mps.
    The same call again continues an interrupted run.  Returns the run folder.
    Raises `UsageError` if `out` holds a run of another configuration.
    """
    config = build_config(preset, Path(out))
    config = continue_from(config, begin_from) if begin_from else config
    opened = [get_store(store) for store in ([stores] if isinstance(stores, StoreLike) else stores)]
    if not opened:
        raise UsageError("name at least one store to pre-train on")
    places = [store.path.resolve() for store in opened]
    if doubled := [store.path for store in opened if places.count(store.path.resolve()) > 1]:
        raise UsageError(f"the store {doubled[0]} occurs more than once; name it once")
    torch.manual_seed(config.training.seed)
    encoder, sha256 = read_beginning(config)
    plan = RunPlan(
        config.training, config.views, config.pixels, config.splits, config.positives, config.crops, config.guides,
        config.balance, config.sizes, sha256, config.films,
    )  # fmt: skip
    method: Any = build_method(config.method, encoder, config.training.steps)
    if config.begin_from:
        take_heads(method, config)
    check_patches(method.encoder, list_sides(config))
    if isinstance(config.method, MoCoConfig) and not find_checkpoint(Path(out) / "checkpoints"):
        check_norm_groups(method, config.method, count_ranks())
    if config.guides:
        method = Guided(
            method, config.guides, count_values(build_film_pool(opened, config.splits, config.films), config.guides)
        )
    pretrain_run(Path(out), method, opened, plan, describe(config), on_step, tracking, say, device)
    return Path(out)


def count_values(pool: FilmPool, guides: Sequence[Guide]) -> dict[str, int]:
    """Count the values of each guide's column; raises `UsageError` for a column with fewer than two."""
    values = {guide.column: read_codes(pool, guide.column)[1] for guide in guides}
    for column, count in values.items():
        if count < 2:
            what = "has the same value" if count else "is unknown"
            raise UsageError(f"guides: the column {column!r} {what} for all films, so it can guide nothing")
    return values


def list_sides(config: PretrainConfig) -> set[int]:
    """Return the sides of all views of a run."""
    sides = {config.views.size, *(size for _, size in config.sizes)}
    return sides | {config.crops.local_size} if config.crops.local_views else sides


def check_patches(encoder: nn.Module, sides: Iterable[int]) -> None:
    """Raise `UsageError` for a side that is not a multiple of a ViT's patch size."""
    patch: Any = getattr(getattr(encoder, "patch_embed", None), "patch_size", None)
    for side in sorted(sides) if patch and hasattr(encoder, "pos_embed") else ():
        if side % patch[0]:
            raise UsageError(f"a ViT with patches of {patch[0]} pixels takes views whose side they divide, not {side}")


def take_heads(method: Any, config: PretrainConfig) -> None:
    """Load the heads of the encoder folder that a run begins from, if they are of the same method.

    Raises `UsageError` if they have other sizes.
    """
    folder = Path(locate_encoder(config.begin_from))
    name, tensors = read_heads(folder) if folder.is_dir() else ("", {})
    if name != config.method.name:
        return
    state = {key: tensor for key, tensor in method.state_dict().items() if key.partition(".")[0] in HEADS}
    if {key: tensor.shape for key, tensor in tensors.items()} != {key: tensor.shape for key, tensor in state.items()}:
        raise UsageError(
            f"the heads of {config.begin_from} have other sizes; set method as its config.json says, or remove its "
            "heads.safetensors to begin with its encoder alone"
        )
    method.load_state_dict(method.state_dict() | tensors)
    for follower in ("key_head", "target_head", "teacher_head"):
        if hasattr(method, follower):
            getattr(method, follower).load_state_dict(method.head.state_dict())


def continue_from(config: PretrainConfig, encoder: str) -> PretrainConfig:
    """Return a configuration that begins with an encoder's weights instead of random ones.

    encoder: as `load_encoder` takes it; sets the network, and the mean and standard deviation of its pixels.
    The large gradients of the new head damage good weights (in their first epoch, continued runs lose quality).  So the
    head trains alone for the first 5 % of the steps, unless `training.frozen_steps` is set, or the encoder folder has
    heads of the same method.
    """
    loaded = load_encoder(encoder)
    _, mean, std = build_grey_network(loaded)
    folder = Path(locate_encoder(encoder))
    has_heads = folder.is_dir() and read_heads(folder)[0] == config.method.name
    frozen = config.training.frozen_steps or (0 if has_heads else max(1, config.training.steps // 20))
    return replace(
        config,
        begin_from=encoder.rstrip("/") or encoder,  # shell completion adds a slash
        method=replace(config.method, architecture=loaded.architecture),
        pixels=PixelScale(mean, std),
        training=replace(config.training, frozen_steps=frozen),
    )


def read_beginning(config: PretrainConfig) -> tuple[nn.Module | None, str]:
    """Load the network to continue from, for one grey channel, with the SHA-256 of its weights; or None and "".

    Raises `UsageError` if it is not the configuration's architecture.
    """
    if not config.begin_from:
        return None, ""
    loaded = load_encoder(config.begin_from)
    if loaded.architecture != config.method.architecture:
        raise UsageError(f"{config.begin_from} is a {loaded.architecture}, not a {config.method.architecture}")
    network, _, _ = build_grey_network(loaded)
    return network, compute_state_sha256(network)


def pretrain_run(
    folder: Path,
    method: PretrainMethod,
    stores: Sequence[Store],
    plan: RunPlan,
    described: dict[str, Any],
    on_step: OnStep | None = None,
    tracking: TrackingConfig | None = None,
    say: Say | None = None,
    device: str = "auto",
) -> Path:
    """Train `method` on view pairs from `stores` in `folder`, or continue the run there; return its checkpoint.

    A run continues only on the same films.  Arguments and errors as in `train_in_folder`.
    """
    training, say = plan.training, say or say_on_stderr
    pool = build_film_pool(stores, plan.splits, plan.films)
    if len(pool) < 2:
        raise UsageError("the given stores hold one film to train on; pre-training needs at least two")
    uids, columns = pool.get_uids(), [guide.column for guide in plan.guides]

    def open_batches(first_step: int, rank: Rank) -> Generator[ViewBatch, None, None]:
        if len(pool) < training.batch and rank.number == 0:
            say(f"the {len(pool)} films are fewer than a batch of {training.batch}, which then holds films twice")
        views = read_view_batches(
            pool, plan.views, batch=training.batch, seed=training.seed, first_step=first_step, steps=training.steps,
            rank=rank.number, world=rank.world, threads=training.loader_threads, positives=plan.positives,
            crops=plan.crops, guides=columns, balance=plan.balance, sizes=plan.sizes, device=rank.device,
        )  # fmt: skip
        return _normalise(views, plan.pixels)

    def open_watch(log: RunLog, rank: Rank) -> Watch:
        films_per_rank = training.batch // rank.world
        return Watch(
            log, method, stores, training, plan.views, plan.crops, columns, plan.pixels, films_per_rank, rank.device
        )

    described = described | {"data": _describe_data(stores, uids, plan.begun_from)}

    def complete(written: dict[str, Any]) -> dict[str, Any]:
        return _renew_versions(complete_description(written), described)

    inputs = RunInputs(uids, open_batches, open_watch, complete=complete)
    return train_in_folder(folder, method, training, inputs, described, on_step, tracking, say, device)


def complete_description(written: dict[str, Any]) -> dict[str, Any]:
    """Complete the description of an earlier version's run with defaults for new entries."""
    try:
        config = read_pretrain_config(written)
    except UsageError:
        return written
    return describe(config) | {name: value for name, value in written.items() if name == "data"}


def _renew_versions(written: dict[str, Any], described: Mapping[str, Any]) -> dict[str, Any]:
    """Take the versions that stores have now: an embedding adds a column and a version, and the films stay the same."""
    then, now = (config.get("data", {}).get("stores", []) for config in (written, described))
    without = [[{**store, "version": 0} for store in stores] for stores in (then, now)]
    return written | {"data": written["data"] | {"stores": now}} if then and without[0] == without[1] else written


def normalise_views(batch: Tensor | ViewBatch, pixels: PixelScale) -> ViewBatch:
    """Normalise uint8 views on their device."""

    def scale(view: Tensor) -> Tensor:
        return (view.float() / 255 - pixels.mean) / pixels.std

    views = take_views(batch)
    local = None if views.local_LB1ss is None else scale(views.local_LB1ss)
    return ViewBatch(scale(views.global_GB1SS), local, views.guides, RawViews(views.global_GB1SS, scale))


def _normalise(
    views: Generator[Tensor | ViewBatch, None, None], pixels: PixelScale
) -> Generator[ViewBatch, None, None]:
    try:
        for batch in views:
            yield normalise_views(batch, pixels)
    finally:
        views.close()


def _describe_data(stores: Sequence[Store], uids: Sequence[str], begun_from: str) -> dict[str, Any]:
    named = [{"store": store.path.name, "version": store.version, "films": len(store)} for store in stores]
    # a rebuilt store may have the same name and number of films, but other films or splits: hash the uids
    films = {"films": len(uids), "uids_sha256": hash_uids(uids)}
    return {"stores": named, **films} | ({"begun_from_sha256": begun_from} if begun_from else {})
