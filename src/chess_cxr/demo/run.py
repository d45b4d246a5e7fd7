"""The demo: pre-training and the four tasks of CheSS on generated films, in a few minutes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from chess_cxr.benchmarking.comparison import Comparison
from chess_cxr.benchmarking.evaluate import evaluate
from chess_cxr.demo.page import HEALTHY, REAL, DemoResults, Examples, write_demo_page
from chess_cxr.files.whole import read_json, write_atomically
from chess_cxr.ingest.options import IngestOptions
from chess_cxr.ingest.pipeline import ingest_films
from chess_cxr.judges.crops import crop_around
from chess_cxr.judges.frechet import compute_frechet_interval
from chess_cxr.judges.networks import load_feature_network
from chess_cxr.pretraining.export import export
from chess_cxr.pretraining.presets import PretrainConfig
from chess_cxr.pretraining.presets import demo as demo_preset
from chess_cxr.pretraining.pretrain import pretrain
from chess_cxr.progress import StageBars, say_seconds
from chess_cxr.records import OnProgress
from chess_cxr.sources.folder import read_folder
from chess_cxr.sources.phantom.film import CLASSES, write_phantom_films
from chess_cxr.store import Store, open_store
from chess_cxr.tasks.bones.config import BonesConfig
from chess_cxr.tasks.bones.model import load_bone_suppressor
from chess_cxr.tasks.bones.pairs import draw_phantom_pair
from chess_cxr.tasks.bones.train import finetune_bones
from chess_cxr.tasks.nodules.config import NodulesConfig
from chess_cxr.tasks.nodules.films import NoduleFilm, read_nodule_films
from chess_cxr.tasks.nodules.model import load_nodule_generator
from chess_cxr.tasks.nodules.train import finetune_nodules
from chess_cxr.workers.pool import build_ingest_pool, build_pool

SEED = 0
DEMO_KEY = b"chess-cxr demo: generated films, nothing to hide"
PERCEPTUAL = {"none": "none", "pre-trained": "same"}  # names on the page -> names of perceptual losses
JUDGE = "random:resnet18@64#7"  # untrained: the core packages contain no trained one but the demo's own encoder
SHOWN_PATIENT, SHOWN_FILM = 90_001, 4  # seeds of a film that no station trains on


@dataclass(frozen=True)
class DemoSize:
    """The size of the demo.

    film_size: side of the generated DICOM films in pixels.  fractions: label fractions of the training patients.
    draws: label draws per fraction.  replicates: of the bootstrap.
    bone_pairs, bone_steps: of each bone network.  nodule_patients, nodule_steps: of each nodule generator.
    judged_nodules: number of generated nodules to compare with as many others.
    planned_share: expected time, as a share of `PLANNED_SECONDS`.
    """

    patients: int = 250
    films_per_patient: int = 3
    film_size: int = 256
    fractions: tuple[float, ...] = (0.05, 0.25, 1.0)
    draws: int = 3
    replicates: int = 300
    bone_pairs: int = 80
    bone_steps: int = 150
    nodule_patients: int = 60
    nodule_steps: int = 120
    judged_nodules: int = 80
    planned_share: float = 1.0


QUICK = DemoSize(
    patients=30, films_per_patient=2, film_size=128, fractions=(0.25, 1.0), draws=2, replicates=100, bone_pairs=10,
    bone_steps=20, nodule_patients=10, nodule_steps=20, judged_nodules=20, planned_share=0.2,
)  # fmt: skip
PLANNED_SECONDS = {  # on two free cores
    "generate DICOM films": 45.0,
    "ingest": 6.0,
    "pre-train": 155.0,
    "classify": 12.0,
    "suppress bones, no perceptual loss": 28.0,
    "suppress bones, pre-trained perceptual loss": 33.0,
    "generate nodules, no perceptual loss": 42.0,
    "generate nodules, pre-trained perceptual loss": 46.0,
    "judge the nodules": 40.0,
}


def shorten_config() -> PretrainConfig:
    """Return the pre-training configuration of the quick demo."""
    config = demo_preset()
    return replace(config, training=replace(config.training, steps=60, probe_every=30))


class Stations:
    """Announces the stations of the demo and estimates the time left.

    planned: expected seconds of each station, corrected by the pace of the finished ones.
    """

    def __init__(self, planned: Mapping[str, float], quiet: bool) -> None:
        self._planned, self._quiet = planned, quiet
        self._names = list(planned)
        self._spent = self._expected = 0.0

    @contextmanager
    def enter(self, name: str) -> Iterator[StageBars]:
        """Announce a station; yield its progress bars."""
        place = self._names.index(name)
        if not self._quiet:
            later = sum(self._planned[other] for other in self._names[place:])
            pace = self._spent / self._expected if self._expected else 1.0
            left = f"about {say_seconds(later * pace)} left in all"
            print(f"station {place + 1} of {len(self._names)}: {name} ({left})", file=sys.stderr, flush=True)
        started = time.monotonic()
        with StageBars(self._quiet, f"{place + 1}/{len(self._names)} ") as bars:
            yield bars
        self._spent += time.monotonic() - started
        self._expected += self._planned[name]

    def skip(self, name: str) -> None:
        """Announce that an earlier call finished this station."""
        if not self._quiet:
            place = self._names.index(name)
            print(f"station {place + 1} of {len(self._names)}: {name}: done before", file=sys.stderr, flush=True)
        self._planned = {**self._planned, name: 0.0}


def run_demo(
    out: Path, quiet: bool = False, size: DemoSize | None = None, config: PretrainConfig | None = None
) -> Path:
    """Run all stations from generated DICOM films to the report, skipping those that an earlier call finished.

    size, config: by default for a few minutes.  Returns the path of `report.html`.
    """
    started = time.monotonic()
    torch.set_num_threads(1)  # for networks this small, a second thread costs more than it gains
    size, config = size or DemoSize(), config or demo_preset()
    is_new = not out.exists() or not any(out.iterdir())
    out.mkdir(parents=True, exist_ok=True)
    stations = Stations({name: size.planned_share * planned for name, planned in PLANNED_SECONDS.items()}, quiet)
    store = _make_store(out, size, stations)
    encoder = _make_encoder(out, store, config, stations)
    comparison = _classify(store, encoder, config, size, stations)
    bones = {name: _suppress_bones(out / "bones", name, encoder, size, stations) for name in PERCEPTUAL}
    for name in PERCEPTUAL:
        _train_generator(out / "nodules", name, encoder, size, stations)
    with stations.enter("judge the nodules") as bars:
        distances = _judge_nodules(out / "nodules", size, bars.show)
    results = DemoResults(comparison, bones, distances, _draw_examples(out))
    minutes = (time.monotonic() - started) / 60
    subtitle = f"From generated films to this page in {minutes:.1f} minutes." if is_new else ""
    return write_demo_page(out, store, config, results, SEED, subtitle).resolve()


def _make_store(out: Path, size: DemoSize, stations: Stations) -> Store:
    path, films = out / "films.lance", out / "films"
    if path.exists():
        stations.skip("generate DICOM films")
        stations.skip("ingest")
        return open_store(path)
    table = films / "labels.csv"
    if table.exists():
        stations.skip("generate DICOM films")
    else:
        with stations.enter("generate DICOM films") as bars, build_pool() as pool:
            count = _build_counter(bars, "generate", size.patients * size.films_per_patient)
            write_phantom_films(films, size.patients, size.films_per_patient, SEED, size.film_size, pool, count)
    listed = read_folder([films], table, {"path": "file", "patient": "patient", "class": "label"})
    options = IngestOptions(DEMO_KEY, dataset="phantom films (SYNTHETIC)", seed=SEED)
    with stations.enter("ingest") as bars, build_ingest_pool() as pool:
        ingest_films(listed, path, options, pool, _build_counter(bars, "ingest", listed.count()))
    return open_store(path)


def _build_counter(bars: StageBars, title: str, total: int) -> Callable[[], None]:
    """Return a callback that counts one finished piece of a stage."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        bars.show(title, done, total)

    return count


def _make_encoder(out: Path, store: Store, config: PretrainConfig, stations: Stations) -> Path:
    encoder = out / "encoder"
    if encoder.exists():
        stations.skip("pre-train")
        return encoder
    with stations.enter("pre-train") as bars:
        steps = config.training.steps
        pretrain(store, out / "run", config, lambda report, _: bars.show_step("train", report.step, steps))
        export(out / "run", encoder, licence="Apache-2.0", data="Generated films of chess-cxr's phantom. SYNTHETIC.")
    return encoder


def _classify(store: Store, encoder: Path, config: PretrainConfig, size: DemoSize, stations: Stations) -> Comparison:
    with stations.enter("classify") as bars:
        return evaluate(
            store,
            {"pre-trained": encoder, "untrained": f"random:{config.method.architecture}@{config.views.size}"},
            CLASSES,
            fractions=size.fractions,
            draws=size.draws,
            seed=SEED,
            replicates=size.replicates,
            on_progress=bars.show,
        )


def _suppress_bones(folder: Path, name: str, encoder: Path, size: DemoSize, stations: Stations) -> Mapping[str, Any]:
    """Train a bone network with a perceptual loss; return its `result.json`."""
    out, station = folder / name, f"suppress bones, {_describe_perceptual(name)}"
    if (out / "config.json").exists():
        stations.skip(station)
    else:
        config = BonesConfig(
            size=128, crop=64, decoder="tiny", perceptual=PERCEPTUAL[name], keep_nodules=0.0, spread=False,
            head="softplus", steps=size.bone_steps, seed=SEED,
        )  # fmt: skip
        with stations.enter(station) as bars, build_ingest_pool() as pool:
            finetune_bones(
                encoder, [f"phantom:{size.bone_pairs}@128#{SEED}"], out, config, executor=pool, on_stage=bars.show,
                on_step=lambda report, _: bars.show_step("train", report.step, config.steps),
            )  # fmt: skip
    return read_json(out / "result.json")


def _train_generator(folder: Path, name: str, encoder: Path, size: DemoSize, stations: Stations) -> None:
    out, station = folder / name, f"generate nodules, {_describe_perceptual(name)}"
    if (out / "config.json").exists():
        stations.skip(station)
        return
    config = NodulesConfig(
        size=64, film_size=128, width=8, perceptual=PERCEPTUAL[name], steps=size.nodule_steps, seed=SEED
    )
    with stations.enter(station) as bars:
        finetune_nodules(
            encoder, [f"phantom:{size.nodule_patients}@128#{SEED}"], out, config, on_stage=bars.show,
            on_step=lambda report, _: bars.show_step("train", report.step, config.steps),
        )  # fmt: skip


def _describe_perceptual(name: str) -> str:
    return "no perceptual loss" if name == "none" else f"{name} perceptual loss"


def _judge_nodules(folder: Path, size: DemoSize, show: OnProgress) -> Mapping[str, Any]:
    """Compare crops around each generator's nodules with crops around nodules of other patients.

    Neither the painted nor the compared films are training films of the generators.
    """
    file = folder / "distances.json"
    if file.exists():
        return read_json(file)
    judge = load_feature_network(JUDGE)
    (asked, healthy), (real, _) = (_draw_films(size.judged_nodules, SEED + more, show) for more in (1, 2))
    generators = {name: load_nodule_generator(folder / name) for name in PERCEPTUAL}
    painted = {REAL: [film.film_HW for film in asked], HEALTHY: [film.film_HW for film in healthy]}
    for name, generator in generators.items():
        painted[name] = []
        for number, film in enumerate(asked):
            painted[name].append(generator.paint(film.film_HW, film.mask_HW, number))
            show(f"paint, {name}", number + 1, len(asked))
    boxes = [crop_around(film.mask_HW) for film in asked]
    reference = judge.embed([film.film_HW for film in real], [crop_around(film.mask_HW) for film in real])
    distances = {}
    for name, films in painted.items():
        found = compute_frechet_interval(judge.embed(films, boxes), reference, seed=SEED)
        distances[name] = {"value": found.value, "low": found.low, "high": found.high}
    told = {"judge": judge.name, "dimension": judge.feature_count, "count": len(asked), "distances": distances}
    write_atomically(file, (json.dumps(told, indent=1) + "\n").encode())
    return told


def _draw_films(patients: int, seed: int, show: OnProgress) -> tuple[list[NoduleFilm], list[NoduleFilm]]:
    """Generate a film with a nodule, and one without, of each of some new patients."""
    films = read_nodule_films(
        f"phantom:{patients}@128#{seed}", on_film=lambda done, total: show(f"draw films #{seed}", done, total)
    )
    return [film for film in films if film.mask_HW.any()], [film for film in films if not film.mask_HW.any()]


def _draw_examples(out: Path) -> Examples:
    sick = draw_phantom_pair(SHOWN_PATIENT, SHOWN_FILM, 256)
    healthy = draw_phantom_pair(SHOWN_PATIENT, SHOWN_FILM, 256, "normal")
    assert sick.nodule_HW is not None
    suppressed_HW = load_bone_suppressor(out / "bones" / "pre-trained").suppress(healthy.film_HW)
    painted_HW = load_nodule_generator(out / "nodules" / "pre-trained").paint(healthy.film_HW, sick.nodule_HW, SEED)
    return Examples(healthy.film_HW, suppressed_HW, painted_HW, sick.nodule_HW)
