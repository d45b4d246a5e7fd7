"""What the command line and Python users call: stores and encoders in, run folders, encoders and tables out."""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch

from chess_cxr.evaluation.compare import Comparison, compare_encoders
from chess_cxr.methods.moco import MoCo
from chess_cxr.models.contract import PixelContract
from chess_cxr.presets import PRESETS, PretrainConfig, read_pretrain_config
from chess_cxr.records import UsageError
from chess_cxr.report.page import Section, build_result_table, render_page, write_page
from chess_cxr.report.plots import draw_label_efficiency
from chess_cxr.store import Store, open_store
from chess_cxr.training.checkpoint import find_checkpoint, read_checkpoint, write_atomically
from chess_cxr.training.loop import StepReport
from chess_cxr.training.run import RunPlan, describe, pretrain_run, read_run_config
from chess_cxr.views import resize_film
from chess_cxr.weights import Encoder, TrainingSummary, load_encoder, write_encoder

FILMS_AT_ONCE = 256
StoreLike = Store | Path | str
EncoderLike = Encoder | Path | str
ClassifyTask = Literal["multiclass", "multilabel"]


def pretrain(
    stores: Sequence[StoreLike] | StoreLike,
    out: Path | str,
    preset: str | PretrainConfig = "cpu_small",
    on_step: Callable[[StepReport, Mapping[str, float]], None] | None = None,
) -> Path:
    """Pre-train an encoder without labels on the train split (and unsplit films) of some stores.

    preset: the name of a preset or a configuration.  The same call again continues an interrupted run.
    Returns the run folder.  Raises `UsageError` where `out` holds a run of another configuration.
    """
    config = build_config(preset)
    torch.manual_seed(config.training.seed)
    plan = RunPlan(config.training, config.views, config.pixels, config.splits)
    opened = [_open(store) for store in (stores if isinstance(stores, (list, tuple)) else [stores])]
    pretrain_run(Path(out), MoCo(config.method), opened, plan, describe(config), on_step)
    return Path(out)


def build_config(preset: str | PretrainConfig) -> PretrainConfig:
    """Return the configuration that a preset name stands for."""
    if isinstance(preset, PretrainConfig):
        return preset
    if preset not in PRESETS:
        raise UsageError(f"no preset named {preset!r}; there are {', '.join(PRESETS)}")
    return PRESETS[preset]()


def export(run: Path | str, out: Path | str, licence: str = "not stated", data: str = "") -> Path:
    """Write the query encoder of a run's newest checkpoint as an encoder folder, with its pixel contract and card.

    licence: of the weights.  data: what the films were, for the card (Markdown).
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
        method=f"MoCo v2, preset {config.preset}",
        date=datetime.date.today().isoformat(),
        config=described,
    )
    return write_encoder(Path(out), weights, config.method.architecture, contract, licence, training, uids)


def embed(encoder: EncoderLike, store: StoreLike, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """Embed the films of a store (or some rows of it), float32 [N, D].

    encoder: an `Encoder`, anything `load_encoder` takes, or "pixels:32", the bare pixels of a 32 x 32 film.
    """
    opened = _open(store)
    rows = np.arange(len(opened)) if rows is None else np.asarray(rows)
    name = encoder if isinstance(encoder, str) else ""
    if name.startswith("pixels:"):
        side = _parse_side(name)
        small = [resize_film(film, side).ravel() for films in _read_parts(opened, rows) for film in films]
        return np.stack(small).astype(np.float32) / 255
    loaded = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
    parts = [loaded.embed([film.astype(np.float32) / 255 for film in films]) for films in _read_parts(opened, rows)]
    return np.concatenate(parts)


def _parse_side(name: str) -> int:
    side = name.removeprefix("pixels:")
    if not side.isdecimal() or not 1 <= int(side) <= 512:
        raise UsageError(f"{name!r} should be pixels:SIDE with a side of 1 to 512, such as pixels:32")
    return int(side)


def _read_parts(store: Store, rows: np.ndarray) -> Iterator[list[np.ndarray]]:
    for start in range(0, len(rows), FILMS_AT_ONCE):
        yield store.read_films(rows[start : start + FILMS_AT_ONCE])


@dataclass(frozen=True)
class LabelledRows:
    """The rows of a store that a task can use.

    label: class index [N] for multi-class, 1 / 0 / NaN [N, L] for multi-label.
    """

    rows: np.ndarray
    label: np.ndarray
    names: tuple[str, ...]
    patient: np.ndarray
    split: np.ndarray
    task: ClassifyTask

    @property
    def label_NL(self) -> np.ndarray:
        """Labels as 1, 0 and NaN, [N, L], whatever the task."""
        return self.label if self.task == "multilabel" else np.eye(len(self.names))[self.label]


def select_labelled(store: StoreLike, labels: Sequence[str] = (), task: ClassifyTask | None = None) -> LabelledRows:
    """Select the films whose labels are known.

    labels: names, all of the store's by default.  task: by default "multiclass" where every film that knows all of
    them carries exactly one, else "multilabel".
    """
    opened = _open(store)
    names = tuple(labels) or tuple(opened.label_names)
    missing = [name for name in names if name not in opened.label_names]
    if missing or not names:
        have = ", ".join(opened.label_names) or "none"
        raise UsageError(f"{opened.path.name} has no label {', '.join(map(repr, missing)) or 'at all'}; it has {have}")
    label_NL = opened.films[list(names)].to_numpy(np.float64)
    whole = ~np.isnan(label_NL).any(axis=1)
    exclusive = bool(whole.any()) and len(names) > 1 and bool((label_NL[whole].sum(axis=1) == 1).all())
    task = task or ("multiclass" if exclusive else "multilabel")
    if task == "multiclass" and not exclusive:
        raise UsageError(f"labels {', '.join(names)} are not one class a film; use the task multilabel")
    rows = np.flatnonzero(whole if task == "multiclass" else ~np.isnan(label_NL).all(axis=1))
    if not len(rows):
        raise UsageError(f"no film of {opened.path.name} knows any of the labels {', '.join(names)}")
    chosen = opened.films.iloc[rows]
    label = label_NL[rows].argmax(axis=1) if task == "multiclass" else label_NL[rows]
    return LabelledRows(rows, label, names, chosen["patient"].to_numpy(), chosen["split"].to_numpy(), task)


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
    on_encoder: Callable[[str], None] | None = None,
) -> Comparison:
    """Compare encoders by linear probes on cached features: same films, same label draws, same bootstrap.

    labels: names of the store's labels.  fractions: parts of the training patients.  film_counts: further subsets
    of that many films, one of each patient.  first_draw: a column of the store whose training films with value 1
    are the first draw of the subset of that many films.
    Everything is chosen on the train split; `evaluate_on` is only scored.
    """
    opened = _open(store)
    chosen = select_labelled(opened, labels)
    named = dict(encoders) if isinstance(encoders, Mapping) else {_name(encoder): encoder for encoder in encoders}
    first: np.ndarray | None = None
    if first_draw:
        if first_draw not in opened.label_names:
            raise UsageError(f"{opened.path.name} has no column {first_draw!r}")
        marked = opened.films[first_draw].to_numpy()[chosen.rows] == 1
        first = np.flatnonzero(marked & (chosen.split == "train"))
        film_counts = sorted({len(first), *film_counts})
    features = {}
    for name, encoder in named.items():
        if on_encoder:
            on_encoder(name)
        features[name] = embed(encoder, opened, chosen.rows)
    return compare_encoders(
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
        task=chosen.task,
        evaluate_on=evaluate_on,
        replicates=replicates,
        executor=executor,
    )


def _name(encoder: EncoderLike) -> str:
    return encoder.name if isinstance(encoder, Encoder) else str(encoder).rstrip("/")


def _open(store: StoreLike) -> Store:
    return store if isinstance(store, Store) else open_store(store)


def read_metrics(run: Path | str) -> list[dict[str, float]]:
    """Read the lines of a run's `metrics.jsonl`."""
    text = (Path(run) / "metrics.jsonl").read_text()
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


def write_features(encoder: EncoderLike, store: StoreLike, out: Path) -> Path:
    """Write uid and feature vector of every film to a Parquet file."""
    if out.exists():
        raise UsageError(f"{out} exists already; choose another --out or remove it")
    opened = _open(store)
    feature_ND = embed(encoder, opened)
    column = pa.FixedSizeListArray.from_arrays(pa.array(feature_ND.ravel()), feature_ND.shape[1])
    table = pa.table({"uid": pa.array(opened.films["uid"]), "feature": column})
    content = io.BytesIO()
    pyarrow.parquet.write_table(table, content)
    write_atomically(out, content.getvalue())
    return out


def write_comparison(comparison: Comparison, out: Path, reference: str, command: str, synthetic: bool = False) -> Path:
    """Write a comparison's tables (CSV, Markdown) and its page to a folder; return the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    comparison.table().to_csv(out / "results.csv", index=False)
    comparison.draw_table().to_csv(out / "draws.csv", index=False)
    comparison.differences(reference).to_csv(out / "differences.csv", index=False)
    metrics = [name for name in ("accuracy", "auroc") if name in set(comparison.table()["metric"])]
    markdown = "\n".join(comparison.as_markdown(metric) for metric in metrics)
    (out / "table.md").write_text(f"{markdown}\n    {command}\n")
    sections = build_comparison_sections(comparison, metrics, command)
    page = render_page(f"Encoders compared on {comparison.data_set}", sections, synthetic=synthetic)
    return write_page(out / "report.html", page)


def build_comparison_sections(comparison: Comparison, metrics: Sequence[str], command: str = "") -> list[Section]:
    """Build the sections of a page that show a comparison: one plot and one table a metric."""
    table = comparison.table()
    return [
        Section(
            heading=f"Linear probe, {metric}",
            figure=draw_label_efficiency(table, metric),
            figure_caption="Mean over label draws; the band is the 95 % interval over patients and draws.",
            table=build_result_table(table, metric),
            table_caption=comparison.caption(metric),
            command=command,
        )
        for metric in metrics
    ]
