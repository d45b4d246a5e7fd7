"""Task cards: what was measured, exactly enough for two labs to know that they measured the same.

Films are named by hashes alone, of which each split has two: `keyed`, over the hashed uids, is the same only where the
films were ingested with the same secret key; `public`, over the decoded pixels and the labels, wherever they are the
same films with the same labels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from chess_cxr.benchmarking.cache import compute_key
from chess_cxr.benchmarking.films import OpenedTask, open_tasks
from chess_cxr.benchmarking.suite import Suite
from chess_cxr.files.whole import read_json, write_whole_folder
from chess_cxr.records import SPLITS, UsageError
from chess_cxr.store import Store

FORMAT = "chess-cxr task card 1"
SAME = ("kind", "labels", "uncertain", "protocol")  # of two cards, beside the films


def write_cards(suite: Suite, out: Path) -> dict[str, dict[str, Any]]:
    """Write NAME.json and NAME.md for each task of a suite to the new folder `out`; return the cards by name."""
    cards = {name: build_card(name, task, suite) for name, task in open_tasks(suite).items()}
    with write_whole_folder(out) as growing:
        for name, card in cards.items():
            (growing / f"{name}.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
            (growing / f"{name}.md").write_text(render_card(card), "utf-8")
    return cards


def build_card(name: str, task: OpenedTask, suite: Suite) -> dict[str, Any]:
    """Describe a task as plain JSON values."""
    spec, chosen = task.spec, task.chosen
    hash_N = read_film_hashes(task.store, chosen.rows)
    uid_N = task.store.films["uid"].to_numpy(str)[chosen.rows]
    label_NL = chosen.label_NL
    films = {}
    for split in SPLITS:
        places = np.flatnonzero(chosen.split == split)
        told = [f"{film} {' '.join(map(_say_label, label_NL[place]))}" for place, film in _pick(hash_N, places)]
        films[split] = {
            "films": len(places),
            "patients": len(np.unique(chosen.patient[places])),
            "positives": {label: int((label_NL[places, at] == 1).sum()) for at, label in enumerate(chosen.names)},
            "keyed": hash_lines(sorted(uid_N[places].tolist())),
            "public": hash_lines(sorted(told)),
        }
    fractions = suite.fractions if spec.fractions is None else spec.fractions
    return {
        "format": FORMAT,
        "name": name,
        "data_set": task.films.data_set,
        "store": {"films": len(task.store), "version": task.store.version},
        "sites": list(spec.sites),
        "kind": chosen.kind,
        "labels": list(chosen.names),
        "uncertain": spec.uncertain,
        "films": films,
        "protocol": {
            "scored": task.films.split,
            "fractions": list(fractions),
            "film_counts": list(spec.film_counts),
            "first_draw": spec.first_draw,
            "draws": suite.draws if spec.draws is None else spec.draws,
            "seed": suite.seed,
            "heads": list(spec.heads),
            "budget": {"steps": spec.steps, "batch": spec.batch, "patience": spec.patience},
            "interval": {"level": suite.level, "replicates": suite.replicates},
        },
        "drawn": hash_lines(f"{draw.subset} {draw.draw} {' '.join(uid_N[draw.film_index])}" for draw in task.plan),
        "made_by": f"chess-cxr {tell_version()}",
    }


def identify_card(card: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all that makes results of two cards comparable; not of names and keys."""
    films = {split: card["films"][split]["public"] for split in SPLITS}
    return compute_key({"films": films} | {name: card[name] for name in SAME})


def read_card(path: Path) -> dict[str, Any]:
    """Read a task card.  Raises UsageError for any other file."""
    card = read_json(path)
    if card.get("format") != FORMAT or not {"name", "films", *SAME} <= set(card):
        raise UsageError(f"{path} is no task card; chess-cxr benchmark card SUITE writes them")
    return card


def check_cards(suite: Suite, paths: Iterable[Path]) -> None:
    """Raise UsageError where a task of the suite is not what its card says, naming the first difference.

    A card speaks of the task of its name; where there is only one task, of that.
    """
    cards = {path: read_card(path) for path in paths}
    tasks = open_tasks(suite)
    for path, card in cards.items():
        name = card["name"] if card["name"] in tasks or len(tasks) > 1 else next(iter(tasks))
        if name not in tasks:
            raise UsageError(f"{path} is the card of a task {name!r}; there are {', '.join(tasks)}")
        if told := tell_difference(card, build_card(name, tasks[name], suite)):
            raise UsageError(f"tasks.{name} is not the task of {path}: {told}")


def tell_difference(card: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    """Return the first difference of two tasks, "" for none: labels, then films by split, then the protocol."""
    for name in ("kind", "labels", "uncertain"):
        if card[name] != mine[name]:
            return f"{name}: {_say(card[name])} in the card, {_say(mine[name])} here"
    for split in SPLITS:
        there, here = card["films"][split], mine["films"][split]
        if there["public"] != here["public"]:
            counts = f"{there['films']} films of {there['patients']} patients in the card, {here['films']} of"
            return f"another {split} split: {counts} {here['patients']} here, or other labels"
    for name, value in card["protocol"].items():
        if value != mine["protocol"].get(name):
            return f"protocol, {name}: {_say(value)} in the card, {_say(mine['protocol'].get(name))} here"
    return ""


def render_card(card: Mapping[str, Any]) -> str:
    """Render a task card as Markdown."""
    rows = [
        f"| {split} | {one['films']} | {one['patients']} | "
        f"{', '.join(f'{label} {count}' for label, count in one['positives'].items())} | "
        f"`{one['public'][:16]}` | `{one['keyed'][:16]}` |"
        for split, one in card["films"].items()
    ]
    protocol = [f"- {name.replace('_', ' ')}: {_say(value)}" for name, value in card["protocol"].items()]
    sites = f", sites {', '.join(card['sites'])}" if card["sites"] else ""
    lines = [
        f"# Task {card['name']}",
        "",
        f"{card['data_set']}{sites}; {card['kind']}: {', '.join(card['labels'])}.",
        "",
        f"Uncertain labels: {card['uncertain']}.",
        "",
        "| split | films | patients | with each label | public hash | keyed hash |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        "The public hash is of decoded pixels and labels, the keyed one of hashed uids; the JSON file has both whole.",
        "",
        "## Protocol",
        "",
        *protocol,
        "",
        f"Identity: `{identify_card(card)}`. {card['made_by']}.",
    ]
    return "\n".join(lines) + "\n"


def read_film_hashes(store: Store, rows: np.ndarray) -> list[str]:
    """Return the hash of the decoded pixels of each film; of its stored bytes where the store has none."""
    hash_N = [str(one) for one in store.read_hashes()["pixel_hash"].to_numpy()[rows]]
    return [
        one or "stored " + hashlib.sha256(store.read_jpegs([int(row)])[0]).hexdigest()
        for one, row in zip(hash_N, rows, strict=True)
    ]


def hash_lines(lines: Iterable[str]) -> str:
    """Return the SHA-256 of lines of text."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def tell_version() -> str:
    """Return the installed version of the package."""
    try:
        return version("chess-cxr")
    except PackageNotFoundError:
        return "not installed"


def _pick(hash_N: list[str], places: np.ndarray) -> list[tuple[int, str]]:
    return [(int(place), hash_N[place]) for place in places]


def _say_label(value: float) -> str:
    return "?" if np.isnan(value) else f"{value:g}"


def _say(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_say(one)}" for name, one in value.items())
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value) or "none"
