"""The page of the demo: generated films, pre-training, the four tasks, and a table in the form of the paper's."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from chess_cxr.benchmarking.comparison import Comparison
from chess_cxr.benchmarking.page.comparison import build_comparison_sections
from chess_cxr.methods import METHOD_TITLES, compute_chance_loss
from chess_cxr.pretraining.page import draw_run_curves
from chess_cxr.pretraining.presets import PretrainConfig
from chess_cxr.pretraining.runs import read_metrics
from chess_cxr.records import SPLITS
from chess_cxr.report.page import Section, render_page, write_page
from chess_cxr.report.plots import draw_film
from chess_cxr.sources.phantom.film import CLASSES
from chess_cxr.store import Store
from chess_cxr.views import draw_view_pairs, resize_film

FILM_WIDTH, EXAMPLE_WIDTH = 9, 15  # of a film on the page, in letters
REAL, HEALTHY = "nodules of other patients", "the same places without a nodule"
DISTANCE = "Fréchet distance × 1000"
BONE_METRICS = {"psnr": ("PSNR, dB", "higher"), "ssim": ("SSIM", "higher"), "rmse": ("RMSE, of 255", "lower")}


@dataclass(frozen=True)
class Examples:
    """A new film, the same without bone, and the same with a generated nodule at nodule_HW: float [H, W]."""

    film_HW: np.ndarray
    suppressed_HW: np.ndarray
    painted_HW: np.ndarray
    nodule_HW: np.ndarray


@dataclass(frozen=True)
class DemoResults:
    """The results of all stations.

    bones: `result.json` of the bone network for each perceptual loss.
    distances: of the nodules of each generator, with the judge's name.
    """

    comparison: Comparison
    bones: Mapping[str, Mapping[str, Any]]
    distances: Mapping[str, Any]
    examples: Examples


def write_demo_page(
    out: Path, store: Store, config: PretrainConfig, results: DemoResults, seed: int, subtitle: str
) -> Path:
    """Write `report.html` into the demo's folder; return its path."""
    sections = [
        *_build_film_sections(out, store, config, seed),
        *build_comparison_sections(results.comparison, ["accuracy", "auroc"]),
        _build_bone_section(results),
        _build_nodule_section(results),
        _build_paper_section(results, seed),
    ]
    page = render_page("chess-cxr demo", sections, subtitle=subtitle, synthetic=True)
    return write_page(out / "report.html", page)


def _build_film_sections(out: Path, store: Store, config: PretrainConfig, seed: int) -> Sequence[Section]:
    figures = draw_run_curves(read_metrics(out / "run"), compute_chance_loss(config.method))
    rows = [int(np.flatnonzero(store.films[name].to_numpy() == 1)[0]) for name in CLASSES]
    films = store.read_films(rows)
    side, titles = config.views.size, [name.replace("_", " ") for name in CLASSES]
    pairs = draw_view_pairs(films, list(range(len(films))), seed, config.views)[:, :, 0]
    views = [draw_film(view, f"view {1 + which}") for which in (0, 1) for view in pairs[which]]
    return [
        Section(
            "Generated films",
            f"{_describe_store(out, store)}\n\nFilms were written as DICOM, read back, split by patient and stored.",
            tuple(draw_film(resize_film(film, 192), title) for film, title in zip(films, titles, strict=True)),
            FILM_WIDTH,
            "One generated film of each class. SYNTHETIC.",
        ),
        Section(
            "What the encoder learned from",
            "Pre-training sees no label. It learns to recognise two random views of one film among many others.",
            tuple(views),
            FILM_WIDTH,
            f"Two views of each film above, {side} × {side} pixels. SYNTHETIC.",
        ),
        Section(
            "Pre-training",
            f"{METHOD_TITLES[config.method.name]} with {config.method.architecture}, {config.training.steps} steps of "
            f"{config.training.batch} films, on the train split only.",
            tuple(figures[name] for name in ("loss", "knn", "collapse", "rank") if name in figures),
            20,
            "The loss, with that of an untrained network; a nearest-neighbour probe; spread and effective rank, which "
            "would fall if the representation collapsed. SYNTHETIC films.",
        ),
    ]


def _describe_store(out: Path, store: Store) -> str:
    splits = ", ".join(f"{split} {len(store.get_rows(split))}" for split in SPLITS)
    with (out / "films.lance.quarantine.csv").open(newline="") as file:
        left_out = sum(1 for _ in csv.reader(file)) - 1
    patients = store.films["patient"].nunique()
    return f"{len(store)} films of {patients} patients ({splits}); {left_out} could not be read."


def _build_bone_section(results: DemoResults) -> Section:
    shown = results.examples
    return Section(
        "Bone suppression",
        "A small U-Net learns to subtract ribs and clavicles from pairs of generated films with and without bone. Its "
        "loss is L1 and MS-SSIM, with or without a perceptual loss on the pre-trained encoder.",
        (
            _draw(shown.film_HW, "film"),
            _draw(shown.suppressed_HW, "without bone"),
            _draw(shown.film_HW - shown.suppressed_HW, "bone taken away, × 3", gain=3),
        ),
        EXAMPLE_WIDTH,
        "A film that no network has seen. SYNTHETIC; derived, bone-suppressed, with the perceptual loss.",
        _tabulate_bones(results),
        _describe_bones(results),
    )


def _tabulate_bones(results: DemoResults) -> pd.DataFrame:
    some = next(iter(results.bones.values()))
    rows: list[dict[str, str]] = [
        {"": "film as it is"} | {title: _say(some["before"][name]) for name, (title, _) in BONE_METRICS.items()}
    ]
    for perceptual, result in results.bones.items():
        found = {title: _say(result["metrics"][name]) for name, (title, _) in BONE_METRICS.items()}
        rows.append({"": f"perceptual loss: {perceptual}"} | found)
    return pd.DataFrame(rows)


def _describe_bones(results: DemoResults) -> str:
    pairs = next(iter(results.bones.values()))["pairs"]
    return (
        f"{pairs['test']} test pairs of other patients than the {pairs['train']} for training; means over films with "
        "95 % bootstrap intervals by patient. SYNTHETIC."
    )


def _build_nodule_section(results: DemoResults) -> Section:
    shown, told = results.examples, results.distances
    rows = np.flatnonzero(shown.nodule_HW.any(1)), np.flatnonzero(shown.nodule_HW.any(0))
    middle = [int(found[[0, -1]].mean()) for found in rows]
    half = max(24, *(int(np.ptp(found)) for found in rows))
    here = tuple(slice(max(0, at - half), at + half) for at in middle)
    table = pd.DataFrame(
        [{"": name, DISTANCE: _say(_scale(found), 2)} for name, found in told["distances"].items()]
    ).replace({"none": "made, no perceptual loss", "pre-trained": "made, pre-trained perceptual loss"})
    return Section(
        "Nodule generation",
        "A small SPADE generator learns to paint a nodule at a given mask, and leaves the rest of the film unchanged. "
        "It learns with or without a perceptual loss on the pre-trained encoder.",
        (
            _draw(shown.painted_HW, "film with a made nodule"),
            _draw(shown.film_HW[here], "before"),
            _draw(shown.painted_HW[here], "after"),
        ),
        EXAMPLE_WIDTH,
        "The film from above with a generated nodule; the squares show its place. SYNTHETIC.",
        table,
        _describe_distances(told),
    )


def _describe_distances(told: Mapping[str, Any]) -> str:
    return (
        f"Squares around {told['count']} made nodules against squares around {told['count']} nodules that the phantom "
        "rendered in other patients. Lower is more alike: the first row is what chance leaves between two sets of "
        "rendered nodules, the second what a distance looks like if there is a difference. Judge: "
        f"{told['judge']}, {told['dimension']} features: an untrained network, since the demo's own encoder took part "
        "in the training. 95 % bootstrap intervals over films. SYNTHETIC."
    )


def _build_paper_section(results: DemoResults, seed: int) -> Section:
    few, everything = results.comparison.subsets[0], results.comparison.subsets[-1]
    table = results.comparison.table()
    rows = [
        _build_row(
            f"classification, {subset} of the labels",
            f"{title} (higher is better)",
            _find(table, "untrained", subset, metric),
            _find(table, "pre-trained", subset, metric),
        )
        for metric, title in (("accuracy", "accuracy"), ("auroc", "macro AUROC"))
        for subset in dict.fromkeys((few, everything))
    ]
    for name, (title, better) in BONE_METRICS.items():
        without, with_it = (results.bones[which]["metrics"][name] for which in ("none", "pre-trained"))
        rows.append(_build_row("bone suppression", f"{title} ({better} is better)", without, with_it))
    made = {name: _scale(found) for name, found in results.distances["distances"].items()}
    rows.append(_build_row("nodule generation", f"{DISTANCE} (lower is better)", made["none"], made["pre-trained"], 2))
    return Section(
        "All four tasks",
        "The form of the paper's results (Cho et al. 2023): each task with and without the pre-trained encoder.",
        table=pd.DataFrame(rows),
        table_caption=f"Classification: untrained against pre-trained encoder, linear probe, {few} and {everything} of "
        "the training patients labelled. Bones and nodules: the loss without and with a perceptual part on the "
        f"pre-trained encoder. Values with 95 % intervals; data, films and draws stand in the sections above. Seed "
        f"{seed}, one training run each: a difference between two of these runs may be luck. SYNTHETIC.",
    )


def _build_row(
    task: str, metric: str, without: Mapping[str, Any], with_it: Mapping[str, Any], digits: int = 3
) -> dict[str, str]:
    return {
        "task": task,
        "measure": metric,
        "without pre-training": _say(without, digits),
        "with the pre-trained encoder": _say(with_it, digits),
    }


def _find(table: pd.DataFrame, encoder: str, subset: str, metric: str) -> Mapping[str, Any]:
    wanted = (table["encoder"] == encoder) & (table["subset"] == subset) & (table["metric"] == metric)
    return {str(key): value for key, value in table.loc[wanted].iloc[0].items()}


def _scale(found: Mapping[str, float]) -> dict[str, float]:
    """Multiply the numbers by 1000, as the distances on an untrained network's features are small."""
    return {key: 1000 * value for key, value in found.items()}


def _say(found: Mapping[str, Any], digits: int = 3) -> str:
    numbers = (f"{float('nan') if found[key] is None else found[key]:.{digits}f}" for key in ("value", "low", "high"))
    return "{} [{}, {}]".format(*numbers)


def _draw(film_HW: np.ndarray, title: str, gain: float = 1.0) -> str:
    side = 256
    grey_HW = np.clip(255 * gain * film_HW, 0, 255).astype(np.uint8)
    return draw_film(cv2.resize(grey_HW, (side, side), interpolation=cv2.INTER_LINEAR), title)
