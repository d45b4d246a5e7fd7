"""What the command line and Python users call: stores and encoders in, run folders, encoders and tables out."""

from __future__ import annotations

import datetime
import io
import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from torch import nn

from chess_cxr.evaluation.compare import Comparison, compare_encoders
from chess_cxr.labelled import select_labelled
from chess_cxr.methods import METHOD_TITLES, build_method
from chess_cxr.methods.moco import MoCoConfig, check_norm_groups
from chess_cxr.models.contract import PixelContract
from chess_cxr.models.embedding import build_grey_network, compute_state_sha256
from chess_cxr.presets import PRESETS, PretrainConfig, read_pretrain_config
from chess_cxr.records import UsageError
from chess_cxr.report.page import write_page
from chess_cxr.report.run_page import RunFacts, render_run_page
from chess_cxr.runs import read_json, read_lines, read_run, say_duration
from chess_cxr.store import Store, open_store
from chess_cxr.training.batches import FilmPool, build_film_pool, read_view_batches
from chess_cxr.training.checkpoint import find_checkpoint, read_checkpoint, write_atomically
from chess_cxr.training.distributed import count_ranks
from chess_cxr.training.loop import StepReport
from chess_cxr.training.pretraining import RunPlan, hash_uids, pretrain_run
from chess_cxr.training.probe import CollapseAlarm
from chess_cxr.training.run import describe, read_run_config
from chess_cxr.training.run_log import PixelScale, find_first_judged_step
from chess_cxr.training.trackers import TrackingConfig
from chess_cxr.views import resize_film
from chess_cxr.weights import Encoder, TrainingSummary, load_encoder, write_encoder

FILMS_AT_ONCE = 256
StoreLike = Store | Path | str
EncoderLike = Encoder | Path | str


def pretrain(
    stores: Sequence[StoreLike] | StoreLike,
    out: Path | str,
    preset: str | PretrainConfig = "cpu_small",
    on_step: Callable[[StepReport, Mapping[str, float]], None] | None = None,
    *,
    begin_from: str = "",
    tracking: TrackingConfig | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Pre-train an encoder without labels on the train split (and unsplit films) of some stores.

    preset: the name of a preset or a configuration.  on_step gets every step's report and the newest probe.
    begin_from: an encoder to continue from, see `continue_from`.  tracking: where numbers go beside `metrics.jsonl`.
    say: told one line for what must not be overlooked, such as a collapse; stderr by default.
    The same call again continues an interrupted run.  Returns the run folder.
    Raises `UsageError` where `out` holds a run of another configuration.
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
    plan = RunPlan(config.training, config.views, config.pixels, config.splits, config.positives, sha256)
    method = build_method(config.method, encoder, config.training.steps)
    if isinstance(config.method, MoCoConfig) and not find_checkpoint(Path(out) / "checkpoints"):
        check_norm_groups(method, config.method, count_ranks())
    pretrain_run(Path(out), method, opened, plan, describe(config), on_step, tracking, say)
    return Path(out)


def continue_from(config: PretrainConfig, encoder: str) -> PretrainConfig:
    """Return a configuration that begins with an encoder's weights instead of random ones.

    encoder: as `load_encoder` takes it; its network and its pixels' mean and standard deviation take the place of the
    configuration's.  Its fresh head would tear at good weights (continued runs are known to lose in their first epoch
    what they began with), so the head learns alone for the first twentieth of the steps, unless `training.frozen_steps`
    says otherwise.
    """
    loaded = load_encoder(encoder)
    _, mean, std = build_grey_network(loaded)
    frozen = config.training.frozen_steps or max(1, config.training.steps // 20)
    return replace(
        config,
        begin_from=encoder.rstrip("/") or encoder,  # completed by a shell or not, it is the same beginning
        method=replace(config.method, architecture=loaded.architecture),
        pixels=PixelScale(mean, std),
        training=replace(config.training, frozen_steps=frozen),
    )


def read_beginning(config: PretrainConfig) -> tuple[nn.Module | None, str]:
    """Return the network that a run begins with, for one grey channel, and the SHA-256 of its weights; or None and "".

    Raises `UsageError` where it is not the configuration's network.
    """
    if not config.begin_from:
        return None, ""
    loaded = load_encoder(config.begin_from)
    if loaded.architecture != config.method.architecture:
        raise UsageError(f"{config.begin_from} is a {loaded.architecture}, not a {config.method.architecture}")
    network, _, _ = build_grey_network(loaded)
    return network, compute_state_sha256(network)


def build_config(preset: str | PretrainConfig, run: Path | None = None) -> PretrainConfig:
    """Return the configuration that a preset name stands for.

    run: where it is to train.  A run that an earlier version began there from the same preset keeps its `norm_groups`.
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


def export(run: Path | str, out: Path | str, licence: str = "not stated", data: str = "") -> Path:
    """Write the query encoder of a run's newest checkpoint as an encoder folder, with its pixel contract and card.

    licence: of the weights.  data: what the films were, for the card (Markdown).  Returns `out`.
    Raises `UsageError` where `run` is no run with a checkpoint or `out` exists.
    """
    run = Path(run)
    described = read_run_config(run)
    newest = find_checkpoint(run / "checkpoints")
    if newest is None:
        raise UsageError(f"{run} has no checkpoint yet; continue it with: chess-cxr pretrain")
    config = read_pretrain_config({key: value for key, value in described.items() if key != "data"})
    step, _, tensors = read_checkpoint(newest)
    prefix = "method.encoder."
    weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    contract = PixelContract(config.views.size, (config.pixels.mean,), (config.pixels.std,))
    uids = (run / "training_uids.txt").read_text().split()
    training = TrainingSummary(
        data or f"{len(uids):,} films; the owner of the run did not describe them.",
        images=len(uids),
        steps=step,
        method=f"{METHOD_TITLES[config.method.name]}, preset {config.preset}"
        + (f", begun from {Path(config.begin_from).name}" if config.begin_from else ""),
        date=datetime.date.today().isoformat(),
        # where folders lie on this machine is nobody else's business
        config=described | {"begin_from": Path(config.begin_from).name},
    )
    return write_encoder(Path(out), weights, config.method.architecture, contract, licence, training, uids)


def write_run_page(run: Path | str, stores: Sequence[StoreLike] = (), films: int = 12, synthetic: bool = False) -> Path:
    """Write a run's page with its curves, `report.html` in its folder, and return its path.

    stores: that it was trained on, for a sheet with the views that its first step saw of `films` films.
    synthetic: put a banner on it.  Raises `UsageError` where `run` is no run or the stores do not hold its films.
    """
    run = Path(run)
    if films < 1:
        raise UsageError("a sheet of views needs 1 film or more")
    described = read_run_config(run)
    config = read_pretrain_config({key: value for key, value in described.items() if key != "data"})
    summary, metrics = read_run(run, time.time()), read_lines(run / "metrics.jsonl")
    alarm = CollapseAlarm(first_step=find_first_judged_step(config.training))
    notes = [line for values in metrics if (line := alarm.judge(int(values["step"]), values))]
    state = f"{summary.state}, {summary.step:,} of {summary.steps:,} steps, {say_duration(summary.seconds)} of training"
    facts = RunFacts(
        summary.name, state, metrics, described, read_json(run / "environment.json"), tuple(notes),
        "Probes learn from up to 1,000 labelled train films and are scored on up to 500 val films.", synthetic,
    )  # fmt: skip
    pool = build_film_pool([get_store(store) for store in stores], config.splits) if stores else None
    if pool and hash_uids(pool.get_uids()) != described.get("data", {}).get("uids_sha256"):
        raise UsageError(f"{run} was trained on other films than these; give --store all of its stores, in its order")
    views = _draw_first_views(config, pool, films) if pool else None
    again = shlex.join(["chess-cxr", "pretrain", "STORE", "--config", str(run / "config.json"), "--out", str(run)])
    return write_page(run / "report.html", render_run_page(facts, views, again))


def _draw_first_views(config: PretrainConfig, pool: FilmPool, films: int) -> np.ndarray:
    """Draw the views of the first films of a run, uint8 [2, films, H, W]."""
    training = config.training
    batches = read_view_batches(
        pool, config.views, batch=training.batch, seed=training.seed, first_step=0, steps=1, positives=config.positives
    )
    views: np.ndarray = next(batches).numpy()[:, :films, 0]
    batches.close()
    return views


def embed(
    encoder: EncoderLike,
    store: StoreLike,
    rows: Sequence[int] | np.ndarray | None = None,
    on_films: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Embed the films of a store (or some rows of it), float32 [N, D].

    encoder: an `Encoder`, anything `load_encoder` takes, or "pixels:32", the bare pixels of a 32 x 32 film.
    on_films: called with the number of films done and of all films, now and then.
    """
    opened = get_store(store)
    rows = np.arange(len(opened)) if rows is None else np.asarray(rows)
    embed_films = _build_embedding(encoder)
    parts = []
    for start in range(0, len(rows), FILMS_AT_ONCE):
        part = rows[start : start + FILMS_AT_ONCE]
        parts.append(embed_films(opened.read_films(part)))
        if on_films:
            on_films(start + len(part), len(rows))
    if not parts:
        raise UsageError(f"there is no film of {opened.path.name} to embed")
    return np.concatenate(parts)


def _build_embedding(encoder: EncoderLike) -> Callable[[list[np.ndarray]], np.ndarray]:
    """Return what turns uint8 films into float32 [N, D]."""
    if isinstance(encoder, str) and encoder.startswith("pixels:"):
        side = _parse_side(encoder)
        return lambda films: np.stack([resize_film(film, side).ravel() for film in films]).astype(np.float32) / 255
    loaded = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
    return lambda films: loaded.embed([film.astype(np.float32) / 255 for film in films])


def _parse_side(name: str) -> int:
    side = name.removeprefix("pixels:")
    if not side.isdecimal() or not 1 <= int(side) <= 512:
        raise UsageError(f"{name!r} should be pixels:SIDE with a side of 1 to 512, such as pixels:32")
    return int(side)


def evaluate(
    store: StoreLike,
    encoders: Mapping[str, EncoderLike] | Sequence[EncoderLike],
    labels: Sequence[str] = (),
    *,
    fractions: Sequence[float] = (0.01, 0.1, 1.0),
    film_counts: Sequence[int] = (),
    draws: int = 10,
    first_draw: str = "",
    evaluate_on: Literal["val", "test"] = "test",
    seed: int = 0,
    replicates: int = 1000,
    executor: Executor | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Compare encoders by linear probes on cached features: same films, same label draws, same bootstrap.

    encoders: by name, or as `embed` takes them.  labels: names of the store's labels, all by default.
    fractions: parts of the training patients.  film_counts: further subsets of that many films, one of each patient.
    first_draw: a column of the store whose training films with value 1 are the first draw of the subset of their size.
    Everything is chosen on the train split; `evaluate_on` is only scored.  An encoder that was pre-trained on films it
    is scored on is named in the comparison's `notes`.
    executor: runs the probes.  on_progress: called with the stage, and how much of it is done, of how much.
    """
    opened = get_store(store)
    chosen = select_labelled(opened, labels)
    named = dict(encoders) if isinstance(encoders, Mapping) else {_name(encoder): encoder for encoder in encoders}
    first: np.ndarray | None = None
    if first_draw:
        first = _find_first_draw(opened, first_draw, chosen.rows, chosen.split)
        film_counts = sorted({len(first), *film_counts})
    loaded = {name: _load(encoder) for name, encoder in named.items()}
    features = {
        name: embed(encoder, opened, chosen.rows, _watch(on_progress, f"embed {name}"))
        for name, encoder in loaded.items()
    }
    comparison = compare_encoders(
        features,
        chosen.label,
        chosen.names,
        chosen.patient,
        chosen.split,
        data_set=opened.dataset_name or opened.path.stem,
        fractions=fractions,
        film_counts=film_counts,
        first_draw=first,
        draws=draws,
        one_film_per_patient=True,
        seed=seed,
        task=chosen.kind,
        evaluate_on=evaluate_on,
        replicates=replicates,
        executor=executor,
        on_probe=_watch(on_progress, "probe"),
    )
    scored = opened.films["uid"].to_numpy()[chosen.rows[chosen.split == evaluate_on]]
    return replace(
        comparison, notes=tuple(note for name, it in loaded.items() if (note := tell_seen(name, it, scored)))
    )


def tell_seen(name: str, encoder: EncoderLike, uids: Sequence[str] | np.ndarray) -> str:
    """Return a sentence that says how many of these films the encoder was pre-trained on, "" for none."""
    seen = len(encoder.training_uids.intersection(uids)) if isinstance(encoder, Encoder) else 0
    return f"{name} was pre-trained, without labels, on {seen} of these {len(uids)} films." if seen else ""


def _find_first_draw(store: Store, column: str, rows: np.ndarray, split: np.ndarray) -> np.ndarray:
    if column not in store.label_names:
        raise UsageError(f"{store.path.name} has no column {column!r}; it has {', '.join(store.label_names)}")
    marked = store.films[column].to_numpy()[rows] == 1
    first = np.flatnonzero(marked & (split == "train"))
    if not len(first):
        raise UsageError(f"column {column!r} of {store.path.name} marks no labelled film of the train split")
    return first


def _watch(on_progress: Callable[[str, int, int], None] | None, stage: str) -> Callable[[int, int], None] | None:
    return (lambda done, total: on_progress(stage, done, total)) if on_progress else None


def _load(encoder: EncoderLike) -> EncoderLike:
    if isinstance(encoder, Encoder):
        return encoder
    if isinstance(encoder, str) and encoder.startswith("pixels:"):
        _parse_side(encoder)
        return encoder
    return load_encoder(encoder)


def _name(encoder: EncoderLike) -> str:
    return encoder.name if isinstance(encoder, Encoder) else str(encoder).rstrip("/")


def get_store(store: StoreLike) -> Store:
    """Return the store itself, or open the one at this path."""
    return store if isinstance(store, Store) else open_store(store)


def read_metrics(run: Path | str) -> list[dict[str, float]]:
    """Read the whole lines of a run's `metrics.jsonl`.

    Raises `UsageError` where there is none.
    """
    try:
        text = (Path(run) / "metrics.jsonl").read_text()
    except OSError:
        raise UsageError(f"{run} is not a run; make one with: chess-cxr pretrain STORE --out {run}") from None
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def read_config_file(path: Path) -> PretrainConfig:
    """Read a pre-training configuration from JSON, such as a run's `config.json`."""
    try:
        described = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no readable JSON file ({type(error).__name__})") from None
    if not isinstance(described, dict):
        raise UsageError(f"{path} should hold one JSON object")
    return read_pretrain_config({key: value for key, value in described.items() if key != "data"})


def write_features(
    encoder: EncoderLike, store: StoreLike, out: Path, on_films: Callable[[int, int], None] | None = None
) -> Path:
    """Write uid and feature vector of every film to a Parquet file, whole or not at all, and return its path."""
    if out.exists():
        raise UsageError(f"{out} exists already; choose another --out or remove it")
    opened = get_store(store)
    feature_ND = embed(encoder, opened, on_films=on_films)
    column = pa.FixedSizeListArray.from_arrays(pa.array(feature_ND.ravel()), feature_ND.shape[1])
    table = pa.table({"uid": pa.array(opened.films["uid"]), "feature": column})
    content = io.BytesIO()
    pyarrow.parquet.write_table(table, content)
    write_atomically(out, content.getvalue())
    return out
