"""Compare encoders on one store by linear probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Literal

import numpy as np

from chess_cxr.encoders.embed import EncoderLike, _parse_side, embed, tell_seen
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.encoders.load import load_encoder
from chess_cxr.evaluation.compare import Comparison, compare_encoders
from chess_cxr.records import UsageError
from chess_cxr.store import Store, StoreLike, get_store
from chess_cxr.tasks.classify.labels import select_labelled


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
