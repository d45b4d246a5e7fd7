"""Open and check the stores, encoders, models and runs that the user names."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from chess_cxr.doctor.check import Finding, Request, Step, tell
from chess_cxr.files.locations import is_url, simplify_location
from chess_cxr.files.whole import read_json
from chess_cxr.pretraining.runs import is_run, read_run
from chess_cxr.records import SPLITS
from chess_cxr.tasks.table import TASKS, load_model

if TYPE_CHECKING:
    from chess_cxr.store import Store

Kind = Literal["store", "encoder", "model", "run", "interrupted", "unknown"]
MOST_DECODED = 24  # films of a store
_CONTINUE = "the same pretrain command continues it"
_NEEDS_TORCH: tuple[Kind, ...] = ("encoder", "model")


def list_steps(request: Request) -> Iterator[Step]:
    """List the places that need no torch, and those of an unknown kind."""
    for path in request.paths:
        kind = recognise(path)
        if kind == "store":
            yield Step(f"store {path}", partial(look_at_store, path), advice="ingest it again")
        elif kind == "run":
            yield Step(f"run {path}", partial(look_at_run, Path(path)))
        elif kind not in _NEEDS_TORCH:
            yield Step(path, partial(refuse, path, kind))


def list_network_steps(request: Request) -> Iterator[Step]:
    """List the places with networks to load."""
    for path in request.paths:
        kind = recognise(path)
        if kind == "encoder":
            yield Step(f"encoder {path}", partial(look_at_encoder, Path(path)))
        elif kind == "model":
            yield Step(f"model {path}", partial(look_at_model, Path(path)))


def recognise(path: str) -> Kind:
    """Recognise the kind of a path by its files; opens only config.json."""
    location = simplify_location(path)
    if is_url(location):
        return "store"
    folder = Path(location)
    if any((folder / "_versions").glob("*.manifest")):
        return "store"
    if is_run(folder):
        return "run"
    config = read_json(folder / "config.json")
    if config.get("task") in TASKS:
        return "model"
    if "chess_cxr" in config or "architecture" in config:
        return "encoder"
    if (folder / "run" / "config.json").exists():
        return "interrupted"
    return "unknown"


def refuse(path: str, kind: Kind) -> Finding:
    """Return why a path cannot be examined."""
    if kind == "interrupted":
        return Finding("broken", "its training was interrupted", "the same finetune command continues it")
    if not Path(path).exists():
        return Finding("broken", "does not exist", "name a store, an encoder, a model or a run")
    return Finding("broken", "is no store, encoder, model or run", "name one of these; films go to chess-cxr ingest")


def look_at_store(path: str) -> Finding:
    """Open a store, count its films by split, and decode a sample that spans it."""
    from chess_cxr.store import open_store

    store = open_store(simplify_location(path))
    films = store.films["split"]
    counts = {split: int((films == split).sum()) for split in SPLITS}
    if rest := len(films) - sum(counts.values()):
        counts["no split"] = rest
    facts: dict[str, Any] = {"version": store.version, "films": len(films), "splits": counts}
    if films.empty:
        return Finding("broken", "holds no film", "ingest it again", facts)
    rows = np.unique(np.linspace(0, len(films) - 1, MOST_DECODED).round().astype(int)).tolist()
    if broken := _find_broken_films(store, rows):
        return Finding("broken", f"{len(broken)} of {len(rows)} films tried: {broken[0]}", "ingest it again", facts)
    told = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    value = f"{len(films):,} films ({told}), version {store.version}; {len(rows)} decoded, first and last among them"
    return Finding("ok", value, facts=facts)


def _find_broken_films(store: Store, rows: list[int]) -> list[str]:
    """Return a line for each film at these rows that cannot be decoded as stored."""
    broken = []
    for row in rows:
        try:
            [film_HW] = store.read_films([row])
            shape = (int(store.films["height"][row]), int(store.films["width"][row]))
            if film_HW.shape != shape:
                broken.append(f"film {row} has {film_HW.shape} pixels, not {shape}")
        except Exception as error:
            broken.append(f"film {row}: {tell(error)}")
    return broken


def look_at_encoder(folder: Path) -> Finding:
    """Load an encoder on this device; this checks its contract, hashes and golden embedding."""
    from chess_cxr.device import choose_device
    from chess_cxr.encoders.folder import show_encoder
    from chess_cxr.encoders.load import load_encoder

    device = choose_device()
    encoder = load_encoder(folder, device=str(device))
    films = len(encoder.read_uids())
    shown = show_encoder(folder)
    contract = encoder.contract
    value = (
        f"{encoder.architecture}, {encoder.feature_count} features, {contract.size} x {contract.size} x "
        f"{contract.channels} pixels, {encoder.licence}; SHA-256 and golden embedding agree on {device}; "
        f"{films:,} hashed training films"
    )
    return Finding("ok", value, facts=json.loads(json.dumps(shown)) | {"device": str(device)})


def look_at_model(folder: Path) -> Finding:
    """Load a model that a `finetune` command wrote."""
    from chess_cxr.device import choose_device

    config, device = read_json(folder / "config.json"), str(choose_device())
    facts = {"task": config["task"], "device": device}
    model = load_model(folder, device)
    if labels := getattr(model, "labels", ()):
        facts["labels"] = labels
    said = resolve_name(TASKS[config["task"]].describe)(model)
    return Finding("ok", f"{said}; loads on {device}", facts=facts)


def look_at_run(folder: Path) -> Finding:
    """Read the progress of a pre-training run, and check its newest checkpoint."""
    run = read_run(folder, time.time())
    facts = {"state": run.state, "step": run.step, "steps": run.steps}
    value = f"{run.state} at step {run.step:,} of {run.steps or 0:,}"
    newest = max((folder / "checkpoints").glob("step_*.safetensors"), default=None)
    if newest is None:
        return Finding("optional" if run.state == "running" else "broken", f"{value}, no checkpoint", _CONTINUE, facts)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(newest, "np") as file:
            tensors = len(file.keys())
    except (SafetensorError, OSError) as error:
        advice = f"remove {newest.name}: {_CONTINUE}, from the checkpoint before it"
        return Finding("broken", f"{value}; {newest.name} cannot be read ({tell(error)})", advice, facts)
    return Finding("ok", f"{value}; {newest.name} holds {tensors} tensors", facts=facts)
