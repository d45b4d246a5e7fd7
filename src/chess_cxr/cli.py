"""The command line: one dict of command names and functions.

Results go to stdout, progress and messages to stderr.  Exit codes: 0 done, 1 the work or a part of it failed, 2 wrong
use.  What takes seconds to import is imported inside the commands, after what can be judged without it.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import itertools
import json as json_text
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from chess_cxr.cores import count_usable_cores
from chess_cxr.ingest.child import Limits
from chess_cxr.ingest.quality_options import QualityOptions
from chess_cxr.progress import ProgressBar, StageBars, build_count, build_step_note
from chess_cxr.records import ChessError, FilmListing, UsageError

TRACEBACK_VARIABLE = "CHESS_CXR_TRACEBACK"
INTERRUPTED = 130
Sources = Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="SRC…")]
Stores = Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="STORE…")]
RunPaths = Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN…")]
StorePath = Annotated[Positional[Path], tyro.conf.arg(metavar="STORE")]
Examined = Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="PATH…")]
EncoderName = Annotated[Positional[str], tyro.conf.arg(metavar="ENCODER")]


def demo(out: Path = Path("demo"), quick: bool = False, quiet: bool = False) -> None:
    """Walk the whole path on generated films, in minutes.

    Generated DICOM films -> store -> pre-training -> encoder -> classification, bone suppression and nodule generation,
    each with and without the encoder -> report.html, whose path is printed last.  Everything is SYNTHETIC: it shows
    that the software works.

    Example: chess-cxr demo --out demo

    Args:
        out: folder for all that is made; an interrupted demo continues there.
        quick: a tenth of the films and steps, in about a minute: whether it runs, with numbers that mean nothing.
        quiet: no progress on stderr.
    """
    from chess_cxr.demo import QUICK, run_demo, shorten_config

    if quick:
        print(run_demo(out, quiet, QUICK, shorten_config()))
    else:
        print(run_demo(out, quiet))


def ingest(
    sources: Sources,
    out: str = "",
    table: Path | None = None,
    columns: tuple[str, ...] = (),
    dataset: str = "",
    site: str = "",
    longest_side: int = 512,
    val: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    stratify: bool = True,
    key_file: Path | None = None,
    id_map: Path | None = None,
    workers: int | None = None,
    cluster: str = "",
    quality: QualityOptions = QualityOptions(),  # noqa: B008
    limits: Limits = Limits(),  # noqa: B008
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Turn films (DICOM, PNG, JPEG, TIFF, WebP, NIfTI, MHA, JSRT's IMG) into a store.

    Each film is decoded once, within limits of time and memory, and judged; identifiers become keyed hashes; patients
    are split into train, val and test.  What cannot be read stands in OUT's quarantine file with its reason; the rest
    is stored all the same, with exit code 1.  Stopped at any moment, the same command goes on.

    Example: chess-cxr ingest films/ --out films.lance --table labels.csv --columns patient=PatientID class=Diagnosis

    Args:
        sources: folders, files or URLs such as s3://bucket/films.
        out: the store to write, such as films.lance or s3://bucket/films.lance.
        table: CSV, TSV or Parquet with one row a film.
        columns: FIELD=COLUMN pairs; fields are path, uid, patient, study, view, age, sex, split, class, labels,
            study_date, manufacturer.
        dataset: a public data set whose tables and folders are known, such as nih-chestxray14; "list" lists them.
        site: name of the hospital or set in the store; by default that of the data set.
        longest_side: of the stored films, in pixels.
        val: fraction of the patients for validation, where the table gives no split.
        test: fraction of the patients for the test.
        seed: of the split.
        stratify: give each split its share of every label; without it each patient's split hangs on its id alone.
        key_file: secret key of the identifier hashes; by default CHESS_CXR_ID_KEY or a file of your own made once.
        id_map: write uid and path of every film there, for your eyes only.
        workers: processes; by default one a core.
        cluster: address of a Dask scheduler, such as tcp://10.0.0.1:8786, whose workers see the same files.
        quality: what is judged.
        limits: what one film may take.
        json: print the summary as JSON.
        quiet: no progress on stderr.
    """
    pairs = parse_pairs(columns)
    if dataset == "list":
        from chess_cxr.sources.catalog import list_datasets, list_datasets_as_json

        print_result(list_datasets_as_json() if json else list_datasets(), json)
        return
    if not out:
        raise UsageError("name the store to write with --out, such as --out films.lance")
    if not sources:
        raise UsageError("no source folder is given")
    store = parse_location(out)
    check_workers(workers)
    if workers is not None and cluster:
        raise UsageError("--workers is for this machine; a --cluster has its own")
    if cluster:
        from chess_cxr.ingest.cluster import check_address

        check_address(cluster)
    from chess_cxr.ingest.deidentify import check_key_place, read_id_key
    from chess_cxr.ingest.pipeline import IngestOptions, ingest_films
    from chess_cxr.ingest.side_files import find_quarantine
    from chess_cxr.store import check_place

    check_place(store)
    places = [parse_location(source) for source in sources]
    check_key_place(key_file, [*places, store])
    films = list_source_films(places, table, pairs, dataset, val)
    for note in () if quiet else films.notes:
        print(f"note: {note}", file=sys.stderr)
    options = IngestOptions(
        read_id_key(key_file),
        id_map,
        dataset=site or dataset,
        longest_side=longest_side,
        val=val,
        test=test,
        seed=seed,
        stratify=stratify,
        quality=quality,
        limits=limits,
    )
    count = films.count()
    with open_executor(workers, cluster) as (executor, threads), ProgressBar("ingest", count, "films", quiet) as bar:
        options = replace(options, in_flight=max(options.in_flight, 32 * threads))
        summary = ingest_films(films, store, options, executor, bar.advance)
    print_result(vars(summary) if json else summary.as_text(), json)
    if failed := sum(summary.quarantined.values()):
        raise ChessError(f"{failed} of {count} films could not be stored; {find_quarantine(store)} says why")


def list_source_films(
    places: Sequence[Path | str], table: Path | None, columns: dict[str, str], dataset: str, val: float
) -> FilmListing:
    """List the films of an ingest: a public data set's, a table's or all below the sources."""
    if not dataset:
        from chess_cxr.sources.folder import read_folder

        return read_folder(places, table, columns)
    from chess_cxr.sources.catalog import count_unlisted, read_dataset

    if table or columns:
        raise UsageError("a --dataset has tables and columns of its own; leave --table and --columns out")
    if len(places) != 1 or not isinstance(places[0], Path):
        raise UsageError("a --dataset is read from one folder of this machine")
    films = read_dataset(dataset, places[0], val=val)
    if unlisted := count_unlisted(dataset, places[0]):
        print(f"{unlisted} image files are in none of the tables of {dataset} and are left out", file=sys.stderr)
    return films


@contextlib.contextmanager
def open_executor(workers: int | None, cluster: str) -> Iterator[tuple[Executor, int]]:
    """Yield what runs the work of an ingest, a cluster or this machine's cores, and how many films at once."""
    if cluster:
        from chess_cxr.ingest.cluster import connect_cluster

        with connect_cluster(cluster) as connected:
            yield connected
        return
    from chess_cxr.ingest.workers import build_ingest_pool

    count = workers or count_usable_cores()
    with build_ingest_pool(count) as pool:
        yield pool, count


def check_workers(workers: int | None) -> None:
    """Refuse a number of workers that is none."""
    if workers is not None and workers < 1:
        raise UsageError("--workers must be 1 or more")


def parse_location(text: str) -> Path | str:
    """Tell a URL from a path."""
    from chess_cxr.locations import simplify_location

    return simplify_location(text)


def deidentify(
    sources: Sources,
    out: Path,
    key_file: Path | None = None,
    allow_burned_in: bool = False,
    workers: int | None = None,
    limits: Limits = Limits(),  # noqa: B008
    id_map: Path | None = None,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Copy DICOM films without what identifies their patients.

    After PS3.15 Annex E, by an allow-list: identifiers become keyed hashes, dates move by a secret number of days a
    patient, free text and private elements are left out, pixels stay to the bit.  OUT/report.csv says what became of
    each film.  Stopped at any moment, the same command goes on.

    Example: chess-cxr deidentify archive/ --out copies --key-file ~/keys/study.key

    Args:
        sources: folders, files or URLs such as s3://bucket/films.
        out: folder for the copies: patient/study/film.dcm, all keyed hashes.
        key_file: secret key of the hashes; by default CHESS_CXR_ID_KEY or a file of your own made once.
        allow_burned_in: also copy what may have words in its pixels: declared ones, colour, secondary captures.
        workers: processes; by default one a core.
        limits: what one film may take.
        id_map: write uid and path of every film there, for your eyes only.
        json: print the summary as JSON.
        quiet: no progress on stderr.
    """
    check_workers(workers)
    from chess_cxr.ingest.deidentify import check_key_place, read_id_key
    from chess_cxr.ingest.dicom_copies import REPORT, DeidentifyOptions, check_apart, deidentify_files
    from chess_cxr.ingest.workers import build_ingest_pool
    from chess_cxr.sources.folder import read_folder

    places = [parse_location(source) for source in sources]
    check_apart(out, places)
    check_key_place(key_file, [*places, out])
    films = read_folder(places)
    in_flight = 32 * (workers or count_usable_cores())
    options = DeidentifyOptions(read_id_key(key_file), allow_burned_in, limits, in_flight, id_map)
    with build_ingest_pool(workers) as pool, ProgressBar("deidentify", films.count(), "films", quiet) as bar:
        summary = deidentify_files(films, out, options, pool, bar.advance)
    print_result(vars(summary) if json else summary.as_text(), json)
    if failed := sum(summary.refused.values()):
        raise ChessError(f"{failed} of {failed + summary.copied} films were not copied; {out / REPORT} says why")


def audit(
    stores: Stores,
    training_list: tuple[Path, ...] = (),
    out: Path | None = None,
    thorough: bool = False,
    duplicate_similarity: float = 0.85,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Find patients and pictures that stores, splits or published training lists share.

    Turned, mirrored, inverted and resized copies are found too.  The exit code is 1 where anything is shared across
    splits, stores or lists, so that a CI can stop on it.

    Example: chess-cxr audit ours.lance theirs.lance --training-list encoders/first --out audit

    Args:
        stores: stores to compare with each other and within themselves.
        training_list: encoder folders, or files with hashed uids, hashed patients or pixel hashes.
        out: folder to write, with pairs.csv, patients.csv, lists.csv and report.html with the pairs side by side.
        thorough: look for any turn, crop and scale among any number of films, not only among up to 2,000.
        duplicate_similarity: of fine detail, from which two films are one exposure.
        json: print everything as JSON.
        quiet: no progress on stderr.
    """
    if out:
        refuse_existing(out)
    from chess_cxr.store import open_store

    real = [os.path.realpath(store) for store in stores]
    if doubled := [store for store, place in zip(stores, real, strict=True) if real.count(place) > 1]:
        raise UsageError(f"the store {doubled[0]} occurs more than once; name it once")
    opened = [open_store(store) for store in stores]
    from chess_cxr.audit import AuditOptions, audit_stores, write_audit

    options = AuditOptions(duplicate_similarity=duplicate_similarity, thorough=thorough or None)
    with StageBars(quiet) as bars:
        result = audit_stores(opened, training_list, options, bars.show)
    print_result(result.as_json() if json else result.as_text(), json)
    if out:
        page = write_audit(result, out)
        if not json:
            print(page)
    if result.leaks:
        raise ChessError(f"{result.leaks} leaks across splits, stores or training lists were found")


def pretrain(
    stores: Stores,
    out: Path,
    preset: str = "",
    config: Path | None = None,
    begin_from: str = "",
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",),
    project: str = "chess-cxr",
    wandb_mode: Literal["offline", "online"] = "offline",
    mlflow_uri: str = "",
    quiet: bool = False,
) -> None:
    """Pre-train an encoder on the films of some stores, without labels.

    The same command again continues an interrupted run.  Films of the val and test splits are never trained on.
    Several GPUs or machines: torchrun … -m chess_cxr pretrain …

    Example: chess-cxr pretrain films.lance --preset cpu_small --out runs/first

    Args:
        stores: stores to train on.
        out: the run folder.
        preset: chess_paper, chess_strong, cpu_small or demo; by default cpu_small.
        config: a JSON file like a run's config.json instead of a preset.
        begin_from: an encoder to continue from: a folder, or a name such as imagenet:tf_efficientnet_lite0.
        trackers: where numbers go beside RUN/metrics.jsonl: tensorboard, wandb, mlflow.
        project: of W&B, and experiment of MLflow.
        wandb_mode: offline keeps all in RUN/wandb, which "wandb sync" can send later.
        mlflow_uri: a server, or a database such as sqlite:///mlflow.db; mlflow.db beside the run by default.
        quiet: no progress on stderr.
    """
    refuse_preset_and_config(preset, config)
    if begin_from:
        refuse_missing_encoders([begin_from])
    from chess_cxr.store import open_store

    opened = [open_store(store) for store in stores]
    from chess_cxr.api import build_config, read_config_file
    from chess_cxr.api import pretrain as run_pretrain
    from chess_cxr.training.trackers import TrackingConfig

    chosen = read_config_file(config) if config else build_config(preset or "cpu_small", out)
    tracking = TrackingConfig(trackers, project, wandb_mode, mlflow_uri)
    is_first = os.environ.get("RANK", "0") == "0"
    with ProgressBar("pretrain", chosen.training.steps, "steps", quiet or not is_first) as bar:
        run = run_pretrain(
            opened, out, chosen, build_step_note(bar), begin_from=begin_from, tracking=tracking, say=bar.say
        )
    if is_first:
        print(run)


def runs(
    folders: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER…")] = (Path(),),
    sort: str = "started",
    json: bool = False,
) -> None:
    """List pre-training runs: how far they are, how fast, what their encoders are worth.

    Example: chess-cxr runs runs/ --sort knn_auroc_best

    Args:
        folders: runs, or folders up to two levels above runs.
        sort: column to sort by, such as started, name, state, step, loss, knn_auroc_best or images_per_second.
        json: print JSON.
    """
    from chess_cxr.runs import list_runs

    listed = list_runs(folders, sort)
    print_result(listed.as_json() if json else listed.as_text(), json)


def compare_runs(folders: RunPaths, json: bool = False) -> None:
    """Put pre-training runs side by side: in what they differ, and their newest numbers.

    Example: chess-cxr runs compare runs/first runs/second

    Args:
        folders: two runs or more.
        json: print JSON.
    """
    from chess_cxr.runs import compare_runs as compare

    compared = compare(folders)
    print_result(compared.as_json() if json else compared.as_text(), json)


def write_run_page(
    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")],
    store: tuple[Path, ...] = (),
    films: int = 12,
    synthetic: bool = False,
) -> None:
    """Write a run's page, RUN/report.html, with its curves and a sheet of the view pairs it saw.

    Example: chess-cxr runs page runs/first --store films.lance

    Args:
        run: a run folder.
        store: stores it was trained on, for the sheet of views.
        films: how many on the sheet.
        synthetic: say on the page that the films were generated.
    """
    from chess_cxr.runs import is_run

    if not is_run(run):
        raise UsageError(f"{run} is not a run; chess-cxr runs lists the runs in a folder")
    from chess_cxr.api import write_run_page as write

    print(write(run, store, films, synthetic))


def plan_run(
    images: float = 0,
    preset: str = "",
    config: Path | None = None,
    gpus: str = "",
    price: float = 0.0,
    network_gbit: float = 100.0,
    epochs: float = 0.0,
    film_kilobytes: float = 0.0,
    calibrate: bool = False,
    store: Path | None = None,
    seconds: float = 40.0,
    calibration: Path | None = None,
    json: bool = False,
) -> None:
    """Tell what a pre-training run will take: store, steps, hours, memory, traffic, money.

    For named GPUs the numbers are calculated from data sheets, not measured.  Without --gpus they are for this machine,
    as measured by --calibrate, which trains the preset for a short while.

    Example: chess-cxr plan --images 4.8e6 --preset chess_paper --gpus 8xH100 --price 3

    Args:
        images: films of the run.
        preset: what is run; by default chess_paper.
        config: a JSON configuration instead of a preset.
        gpus: such as H100, 8xH100 or 4x8xH100 (nodes, GPUs of each).
        price: of one GPU for an hour.
        network_gbit: Gbit/s of a node's network, all its cards together.
        epochs: passes over the films instead of the preset's steps.
        film_kilobytes: of an encoded film, if you know it.
        calibrate: measure this machine first and keep that in the calibration file.
        store: films to calibrate with; generated ones by default.
        seconds: of the calibration.
        calibration: file of the calibration; by default one in your configuration folder.
        json: print JSON.
    """
    refuse_preset_and_config(preset, config)
    if not images and not calibrate:
        raise UsageError("say how many --images, such as --images 4.8e6, or --calibrate")
    if not 0 <= images < 1e12 or images != int(images):
        raise UsageError("--images must be a whole number, such as 4.8e6")
    from chess_cxr.api import build_config, read_config_file
    from chess_cxr.calibration import calibrate as measure
    from chess_cxr.calibration import find_calibration, read_calibration, write_calibration
    from chess_cxr.planning import parse_gpus, plan

    if gpus:
        parse_gpus(gpus)
    chosen = read_config_file(config) if config else build_config(preset or "chess_paper")
    place = calibration or find_calibration()
    if calibrate:
        print(f"calibrated: {write_calibration(measure(chosen, store, seconds), place)}", file=sys.stderr)
        if not images:
            return
    known = read_calibration(place) if calibrate or calibration or not gpus or place.exists() else None
    made = plan(
        chosen,
        int(images),
        gpus,
        calibration=known,
        price=price,
        network_gbit=network_gbit,
        film_bytes=1000 * film_kilobytes,
        epochs=epochs,
    )
    print_result(made.as_dict() if json else made.as_text(), json)


def export(run: Positional[Path], out: Path, licence: str = "not stated", data: str = "") -> None:
    """Write a run's encoder as a folder that everybody can load, with timm alone.

    Example: chess-cxr export runs/first --out encoders/first --licence Apache-2.0 --data "5,000 films of hospital A"

    Args:
        run: a run folder.
        out: the encoder folder to write.
        licence: of the weights.
        data: what the films were, for the model card.
    """
    refuse_existing(out)
    if not (run / "config.json").is_file():
        raise UsageError(f"{run} is not a run; make one with: chess-cxr pretrain STORE --out {run}")
    from chess_cxr.api import export as write

    print(write(run, out, licence, data))


def import_weights(file: Positional[Path], out: Path) -> None:
    """Turn a checkpoint in the published CheSS layout into an encoder folder.

    Only plain tensors are read: a file with code in it is refused.

    Example: chess-cxr weights import chess.pth.tar --out encoders/chess

    Args:
        file: the published .pth.tar file, or an extract of it.
        out: the encoder folder to write.
    """
    refuse_existing(out)
    if not file.is_file():
        raise UsageError(f"{file} is not a file")
    from chess_cxr.weights import import_chess

    print(import_chess(file, out))


def show_weights(encoder: Positional[Path]) -> None:
    """Print what an encoder folder says of itself, as JSON.

    Example: chess-cxr weights show encoders/chess

    Args:
        encoder: an encoder folder.
    """
    if not encoder.is_dir():
        raise UsageError(f"there is no folder {encoder}")
    from chess_cxr.weights import show_encoder

    print_result(show_encoder(encoder), True)


def embed(encoder: EncoderName, store: StorePath, out: Path, quiet: bool = False) -> None:
    """Write the feature vector of every film of a store to a Parquet file.

    Example: chess-cxr embed encoders/first films.lance --out features.parquet

    Args:
        encoder: an encoder folder, or a name such as imagenet:tf_efficientnet_lite0.
        store: a store.
        out: the Parquet file to write.
        quiet: no progress on stderr.
    """
    refuse_existing(out)
    refuse_missing_encoders([encoder])
    from chess_cxr.store import open_store

    opened = open_store(store)
    from chess_cxr.api import write_features

    with ProgressBar("embed", len(opened), "films", quiet) as bar:
        print(write_features(encoder, opened, out, build_count(bar)))


def evaluate(
    store: StorePath,
    encoders: tuple[str, ...],
    out: Path | None = None,
    labels: tuple[str, ...] = (),
    fractions: tuple[float, ...] = (0.01, 0.1, 1.0),
    films: tuple[int, ...] = (),
    draws: int = 10,
    first_draw: str = "",
    on: Literal["val", "test"] = "test",
    metric: str = "auroc",
    seed: int = 0,
    replicates: int = 1000,
    reference: str = "",
    synthetic: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Compare encoders by linear probes at several label fractions.

    Prints a table with intervals over patients and label draws.

    Example: chess-cxr evaluate films.lance --encoders mine=encoders/first random:regnetx_002@96 pixels:32 --out result

    Args:
        store: a store with labels.
        encoders: [NAME=]ENCODER: encoder folders, random:NETWORK@SIZE, imagenet:tf_efficientnet_lite0, pixels:SIDE.
        out: folder to write, with results.csv, draws.csv, differences.csv, table.md and report.html.
        labels: names of the labels; all by default.
        fractions: parts of the training patients that are labelled.
        films: further label subsets, by number of films, one of each patient.
        draws: label draws a fraction.
        first_draw: a 0/1 column that marks the first draw of a subset of its own size.
        on: the split that is scored.
        metric: of the printed table.
        seed: of draws and bootstrap.
        replicates: of the bootstrap.
        reference: encoder that differences are taken to; the first by default.
        synthetic: say on the page that the films were generated.
        json: print all numbers as JSON, one record for each encoder, subset and metric.
        quiet: no progress on stderr.
    """
    named = parse_encoders(encoders)
    reference = reference or next(iter(named))
    if reference not in named:
        raise UsageError(f"the reference {reference!r} is none of the encoders {', '.join(named)}")
    if out:
        refuse_existing(out)
    refuse_missing_encoders(named.values())
    from chess_cxr.labelled import METRICS, select_labelled
    from chess_cxr.store import open_store

    opened = open_store(store)
    known = METRICS[select_labelled(opened, labels).task]
    if metric not in known:
        raise UsageError(f"no metric named {metric!r} for these labels; there are {', '.join(known)}")
    from chess_cxr.api import evaluate as compare
    from chess_cxr.report.comparison import write_comparison

    with StageBars(quiet) as bars:
        comparison = compare(
            opened,
            named,
            labels,
            fractions=fractions,
            film_counts=films,
            draws=draws,
            first_draw=first_draw,
            evaluate_on=on,
            seed=seed,
            replicates=replicates,
            on_progress=bars.show,
        )
    if out:
        write_comparison(comparison, out, reference, shlex.join(["chess-cxr", *sys.argv[1:]]), synthetic)
    print(comparison.table().to_json(orient="records", indent=1) if json else comparison.as_markdown(metric).rstrip())


def benchmark(
    suite: Annotated[Positional[str], tyro.conf.arg(metavar="SUITE")],
    out: Path,
    stores: tuple[str, ...] = (),
    encoders: tuple[str, ...] = (),
    cells: Path | None = None,
    workers: int | None = None,
    cluster: str = "",
    card: str = "",
    pictures: bool = True,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Compare encoders on several tasks, at several label fractions, and write tables and a page.

    Every cell is computed once and kept in the folder of cells: stopped at any moment, the same command goes on.  A
    cell that fails is reported and does not stop the others; the exit code is 1 then.

    Example: chess-cxr benchmark suite.toml --out result

    Args:
        suite: a TOML file, or the name of a preset: paper.
        out: folder to write, with results.parquet, summary.csv, differences.csv, predictions/, table.md, report.html.
        stores: for a preset: stores, each a task with all its labels.
        encoders: for a preset: NAME=ENCODER, such as CheSS=chess:chess.pth.tar ours=encoders/first.
        cells: folder of finished cells, which suites may share; OUT.cells by default.
        workers: processes; by default one a core.
        cluster: address of a Dask scheduler, such as tcp://10.0.0.1:8786, whose workers see the same files.
        card: encoder that card_section.md is of; the reference by default.
        pictures: leave films out of the page, so that it may go where they may not.
        json: print summary, differences and failures as JSON.
        quiet: no progress on stderr.
    """
    refuse_existing(out)
    check_workers(workers)
    if workers is not None and cluster:
        raise UsageError("--workers is for this machine; a --cluster has its own")
    from chess_cxr.benchmark.suite import build_suite, read_suite

    if suite.endswith(".toml") or Path(suite).is_file():
        if stores or encoders:
            raise UsageError("--stores and --encoders are for presets; a suite file names its own")
        chosen = read_suite(Path(suite))
    else:
        named = parse_encoders(encoders) if encoders else {}
        chosen = build_suite(suite, {Path(store).stem: store for store in stores}, named)
    if card and card not in chosen.encoders:
        raise UsageError(f"--card {card!r} is none of the encoders {', '.join(chosen.encoders)}")
    from chess_cxr.benchmark.output import write_benchmark
    from chess_cxr.benchmark.run import run_benchmark

    folder = cells or out.with_name(f"{out.name}.cells")
    with contextlib.ExitStack() as stack:
        bars = stack.enter_context(StageBars(quiet))
        executor, count = None, workers or count_usable_cores()
        if cluster:
            from chess_cxr.ingest.cluster import connect_cluster

            executor, count = stack.enter_context(connect_cluster(cluster))
        done = run_benchmark(chosen, folder, workers=count, executor=executor, on_progress=bars.show)
        bars.show("write", 0, 1)
        written = write_benchmark(done, out, shlex.join(["chess-cxr", *sys.argv[1:]]), card, pictures)
        bars.show("write", 1, 1)
    print_result(written.as_json() if json else written.as_text(), json)
    if failed := len(done.results.failures):
        again = f"to try again remove {out}: finished cells are kept"
        parts = "part" if failed == 1 else "parts"
        raise ChessError(f"{failed} {parts} of the benchmark failed, {out / 'failures.csv'} says why; {again}")


def finetune_classify(
    encoder: EncoderName,
    store: StorePath,
    out: Path,
    labels: tuple[str, ...] = (),
    mode: Literal["linear", "mlp", "attentive", "full"] = "linear",
    task: Literal["auto", "multiclass", "multilabel", "ordinal"] = "auto",
    uncertain: tuple[str, ...] = ("ignore",),
    imbalance: Literal["none", "inverse", "effective", "focal", "logit_adjustment"] = "none",
    aggregate: Literal["none", "max", "mean"] = "none",
    steps: int = 300,
    batch: int = 32,
    learning_rate: float | None = None,
    layer_decay: float = 0.9,
    patience: int = 5,
    seed: int = 0,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Train a classifier on a store's labels and test it.

    Prints its results on the test split with 95 % intervals by patient.
    linear: a probe on cached features, in seconds.  mlp, attentive: small networks on cached features or feature maps.
    full: all weights.  All but linear keep the best moment on the val split.

    Example: chess-cxr finetune classify encoders/first films.lance --out models/findings

    Args:
        encoder: an encoder folder, or a name such as random:regnetx_002@96.
        store: a store with labels; at least its train and test splits.
        out: the model folder to write.
        labels: names of the labels; all by default; from low to high for an ordinal task.
        mode: linear, mlp, attentive or full.
        task: auto takes one class a film where every film has exactly one, findings elsewhere.
        uncertain: what uncertain labels teach: ignore, ones, zeros, smooth_ones, smooth_zeros or third_class, for all
            findings, or FINDING=POLICY pairs.
        imbalance: how classes of different size are treated; not in linear mode.
        aggregate: score studies by the largest or mean probability of their films.
        steps: optimisation steps, not in linear mode.
        batch: films a step.
        learning_rate: of AdamW; by default 1e-3 for mlp and attentive, 3e-4 for full.
        layer_decay: learning rate of each stage of the encoder as a share of the one above, in full mode.
        patience: looks at held-out films without improvement that end training, of 20; 0 for never.
        seed: of everything random.
        json: print the results as JSON.
        quiet: no progress on stderr.
    """
    refuse_existing(out)
    refuse_missing_encoders([encoder])
    from chess_cxr.labelled import select_labelled
    from chess_cxr.store import open_store

    policies: Any = uncertain[0] if len(uncertain) == 1 and "=" not in uncertain[0] else parse_policies(uncertain)
    opened = open_store(store)
    select_labelled(opened, labels, None if task == "auto" else task, policies)
    from chess_cxr.finetuning import FinetuneConfig, finetune

    chosen = FinetuneConfig(
        mode=mode,
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        layer_decay=layer_decay,
        patience=patience,
        task=None if task == "auto" else task,
        uncertain=policies,
        imbalance=imbalance,
        aggregate=aggregate,
        seed=seed,
    )
    with StageBars(quiet) as bars:
        result = finetune(encoder, opened, out, labels, chosen, bars.show)
    print_result(result.as_json() if json else result.as_text(), json)


def finetune_bones(
    encoder: EncoderName,
    pairs: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="PAIRS…")],
    out: Path,
    size: int = 512,
    crop: int = 256,
    decoder: Literal["tiny", "full"] = "full",
    perceptual: str = "same",
    perceptual_weight: float = 1.0,
    steps: int = 3000,
    batch: int = 8,
    learning_rate: float = 1e-3,
    val: float = 0.1,
    test: float = 0.2,
    workers: int | None = None,
    limits: Limits = Limits(),  # noqa: B008
    seed: int = 0,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Train a network that takes ribs and clavicles out of films, from pairs with and without bone.

    Prints what it does on the pairs of patients left out, with 95 % intervals.  Stopped at any moment, the same command
    goes on.  Then use the model with: chess-cxr predict OUT FILM --out FOLDER

    Example: chess-cxr finetune bones encoders/first bse_jsrt/ phantom:300@512 --out models/bones

    Args:
        encoder: an encoder folder, or a name such as random:regnetx_002@96; the network's encoder begins with it.
        pairs: folders with source and target, or JSRT and BSE_JSRT, in them; and phantom:PATIENTS@SIZE#SEED for
            generated pairs (SYNTHETIC).
        out: the model folder to write.
        size: longest side of films at which the network works, in pixels; its bone image is brought to each film's own.
        crop: side of the squares that it sees at a time.
        decoder: full, or tiny for a CPU.
        perceptual: network of its perceptual loss: same (ENCODER), none, random, imagenet, chess:FILE, or an encoder.
        perceptual_weight: share of the perceptual loss beside L1 and 1 - MS-SSIM.
        steps: optimisation steps.
        batch: pairs a step.
        learning_rate: of AdamW.
        val: share of the patients looked at during training.
        test: share of the patients that the results are of.
        workers: processes that read pairs; by default one a core.
        limits: what one film may take.
        seed: of everything random.
        json: print the results as JSON.
        quiet: no progress on stderr.
    """
    check_workers(workers)
    if not pairs:
        raise UsageError("name a folder of pairs, such as bse_jsrt/, or phantom:300@512")
    refuse_missing_encoders([encoder])
    from chess_cxr.bone_models import finetune_bones as finetune
    from chess_cxr.bone_training import BonesConfig
    from chess_cxr.ingest.workers import build_ingest_pool
    from chess_cxr.model_folder import refuse_foreign_folder
    from chess_cxr.perceptual import check_perceptual

    refuse_foreign_folder(out)
    check_perceptual(perceptual)
    config = BonesConfig(
        size=size,
        crop=crop,
        decoder=decoder,
        perceptual=perceptual,
        perceptual_weight=perceptual_weight,
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        seed=seed,
    )
    with StageBars(quiet) as bars, build_ingest_pool(workers) as pool:
        result = finetune(
            encoder, pairs, out, config, val, test, limits, pool, bars.show,
            lambda report, _: bars.show_step("train", report.step, steps),
        )  # fmt: skip
    print_result(result.as_json() if json else result.as_text(), json)


def finetune_nodules(
    encoder: EncoderName,
    films: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILMS…")],
    out: Path,
    mode: Literal["inpaint", "film"] = "inpaint",
    size: Literal[64, 128, 256, 512] = 64,
    film_size: int = 256,
    width: int = 16,
    perceptual: str = "same",
    perceptual_weight: float = 10.0,
    r1: float = 0.0,
    steps: int = 3000,
    batch: int = 8,
    learning_rate: float = 2e-4,
    val: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Train a generator that paints nodules into films where a mask says (SPADE).

    Prints how the nodules that it makes in films of patients left out stand out beside the real ones.  Stopped at any
    moment, the same command goes on.  Use the model with: chess-cxr generate OUT --films DIR --random 10 --out NEW

    Example: chess-cxr finetune nodules encoders/first jsrt/ --out models/nodules

    Args:
        encoder: an encoder folder, or a name such as random:regnetx_002@96: the network of the perceptual loss.
        films: folders in the layout of JSRT or NODE21, or with films/ and masks/ in them; and
            phantom:PATIENTS@SIZE#SEED for generated ones (SYNTHETIC).
        out: the model folder to write.
        mode: inpaint changes the region around the mask alone; film makes whole films.
        size: side of what it makes, in pixels.
        film_size: longest side of the films that it paints into while it learns.
        width: of its networks; 64 in the paper, 8 to 16 for a CPU.
        perceptual: network of its perceptual loss: same (ENCODER), none, random, imagenet, chess:FILE, or an encoder.
        perceptual_weight: share of the perceptual loss.
        r1: weight of the discriminator's gradient penalty.
        steps: optimisation steps.
        batch: films a step.
        learning_rate: of the generator; the discriminator's is four times that.
        val: share of the patients looked at during training.
        test: share of the patients that the results are of.
        seed: of everything random.
        json: print the results as JSON.
        quiet: no progress on stderr.
    """
    if not films:
        raise UsageError("name a folder of films with marked nodules, or phantom:300@256")
    refuse_missing_encoders([encoder])
    from chess_cxr.model_folder import refuse_foreign_folder
    from chess_cxr.nodule_finetuning import finetune_nodules as finetune
    from chess_cxr.nodule_training import NodulesConfig
    from chess_cxr.perceptual import check_perceptual

    refuse_foreign_folder(out)
    check_perceptual(perceptual)
    config = NodulesConfig(
        mode=mode,
        size=size,
        film_size=film_size,
        width=width,
        perceptual=perceptual,
        perceptual_weight=perceptual_weight,
        r1=r1,
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        seed=seed,
    )
    with StageBars(quiet) as bars:
        result = finetune(
            encoder,
            films,
            out,
            config,
            val,
            test,
            bars.show,
            lambda report, _: bars.show_step("train", report.step, steps),
        )
    print_result(result.as_json() if json else result.as_text(), json)


def generate(
    model: Annotated[Positional[Path], tyro.conf.arg(metavar="MODEL")],
    films: tuple[str, ...],
    out: Path,
    mask: Path | None = None,
    random: int = 0,
    size_mm: str = "5-30",
    spacing_mm: float | None = None,
    lungs: Path | None = None,
    limits: Limits = Limits(),  # noqa: B008
    seed: int = 0,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Paint nodules into films: SYNTHETIC films, each with its mask, box and provenance.

    DICOM becomes derived DICOM with Synthetic Data set, every other film PNG.  OUT's generated.csv has one row a film:
    box, diameter, hashes of source and model, and seed.  The same command makes the same films.  A film that fails
    has a reason instead, and the exit code is 1.

    Example: chess-cxr generate models/nodules --films healthy/ --random 20 --size-mm 5-30 --out synthetic

    Args:
        model: what finetune nodules wrote.
        films: film files or folders that nodules are painted into.
        out: folder for what is made.
        mask: a mask of the film's size, 0 and one other level; or a folder with one of the same name for each film.
        random: how many films to make with a nodule of random place in the lung and random size.
        size_mm: smallest and largest diameter of random nodules.
        spacing_mm: pixel spacing of films that do not say it, as PNG and JPEG never do.
        lungs: folder with a lung mask for each film; found by a small network without.
        limits: what one film may take.
        seed: of everything random; film N has seed + N.
        json: print JSON, one record for each film.
        quiet: no progress on stderr.
    """
    smallest, largest = parse_size_range(size_mm)
    if spacing_mm is not None and not 0.01 <= spacing_mm <= 10:
        raise UsageError("--spacing-mm is a number from 0.01 to 10")
    if random < 0:
        raise UsageError("--random is how many films to make: 1 or more")
    from chess_cxr.sources.folder import read_folder

    for place in map(Path, films):
        if place.is_dir() and out.resolve().is_relative_to(place.resolve()):
            raise UsageError(f"{out} lies inside {place}, where its films would pass for others; choose another --out")
    listed = [Path(film.path) for film in read_folder([Path(film) for film in films])]
    from chess_cxr.nodule_models import generate_files, load_nodule_generator, plan_orders

    orders = plan_orders(listed, mask, random, seed)
    made = generate_files(
        load_nodule_generator(model), orders, out, (smallest, largest), spacing_mm or float("nan"), lungs, limits
    )
    columns = ("source", "film", "mask", "x", "y", "width", "height", "reason")
    records = (
        dict(zip(columns, (str(m.order.location), str(m.film or ""), str(m.mask or ""), *m.box, m.reason), strict=True))
        for m in made
    )
    with ProgressBar("generate", len(orders), "films", quiet) as bar:
        failed = print_films(columns, records, json, bar)
    if failed:
        raise ChessError(f"{failed} of {len(orders)} films could not be made; their reasons stand in the table")


def parse_size_range(text: str) -> tuple[float, float]:
    """Parse a range of diameters such as 5-30."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)", text)
    if found is None or not 0 < float(found[1]) <= float(found[2]) <= 200:
        raise UsageError(f"--size-mm {text!r} should be a range of diameters, such as 5-30")
    return float(found[1]), float(found[2])


def parse_policies(texts: Sequence[str]) -> dict[str, str]:
    """Parse FINDING=POLICY texts."""
    pairs: dict[str, str] = {}
    for text in texts:
        finding, found, policy = text.rpartition("=")
        if not found or not finding or finding in pairs:
            raise UsageError(f"{text!r} should be FINDING=POLICY, each finding once, such as Edema=ones")
        pairs[finding] = policy
    return pairs


def predict(
    model: Annotated[Positional[Path], tyro.conf.arg(metavar="MODEL")],
    films: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILM…")],
    out: Path | None = None,
    burn_in: bool = False,
    sheets: bool = False,
    workers: int | None = None,
    limits: Limits = Limits(),  # noqa: B008
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Use a model on film files.

    A classifier's probabilities are printed as CSV.  A bone model writes films without bone to OUT, DICOM as derived
    DICOM images and others as PNG, and prints their names: chess-cxr predict models/bones new/ --out suppressed

    Files are decoded as the ingest does it.  A film that fails has a reason instead, and the exit code is 1.  Research
    software, not a medical device.

    Example: chess-cxr predict models/findings new/film.dcm new/other.png

    Args:
        model: what finetune classify or finetune bones wrote.
        films: files (DICOM, PNG, JPEG, …), folders or URLs.
        out: folder for what a bone model makes.
        burn_in: write "BONE-SUPPRESSED, DERIVED" into a corner of what it makes.
        sheets: write a picture of film, result and bone beside what it makes.
        workers: processes that decode; by default one a core.
        limits: what one film may take.
        json: print JSON, one record for each film.
        quiet: no progress on stderr.
    """
    check_workers(workers)
    if not films:
        raise UsageError("no film is given")
    from chess_cxr.runs import read_json
    from chess_cxr.sources.folder import read_folder

    task = read_json(model / "config.json").get("task")
    if task == "nodules":
        raise UsageError(f"{model} is a nodule generator; use it with: chess-cxr generate {model} --films …")
    bones = task == "bones"
    if bones and out is None:
        raise UsageError("a bone model writes films; name a folder for them with --out")
    if not bones and (out is not None or burn_in or sheets):
        raise UsageError("--out, --burn-in and --sheets are for bone models; a classifier prints its table")
    locations = [film.path for film in read_folder([parse_location(film) for film in films])]
    if bones and out:
        columns, records = predict_bones(model, locations, out, burn_in, sheets, limits)
    else:
        columns, records = predict_findings(model, locations, workers, limits)
    with ProgressBar("predict", len(locations), "films", quiet) as bar:
        failed = print_films(columns, records, json, bar)
    if failed:
        raise ChessError(f"{failed} of {len(locations)} films could not be read; their reasons stand in the table")


def predict_findings(
    model: Path, locations: Sequence[Path | str], workers: int | None, limits: Limits
) -> tuple[Sequence[str], Iterator[dict[str, Any]]]:
    """Return the columns and records of a classifier's probabilities."""
    from chess_cxr.classifiers import load_classifier, predict_files
    from chess_cxr.ingest.workers import build_ingest_pool

    loaded = load_classifier(model)

    def list_records() -> Iterator[dict[str, Any]]:
        with build_ingest_pool(workers) as pool:
            for found in predict_files(loaded, locations, pool, limits):
                yield {"film": str(found.location), "reason": found.reason, **found.probabilities}

    return ("film", *loaded.labels, "reason"), list_records()


def predict_bones(
    model: Path, locations: Sequence[Path | str], out: Path, burn_in: bool, sheets: bool, limits: Limits
) -> tuple[Sequence[str], Iterator[dict[str, Any]]]:
    """Return the columns and records of films that are written without their bones."""
    from chess_cxr.bone_models import load_bone_suppressor, suppress_files

    loaded = load_bone_suppressor(model)
    done = suppress_files(loaded, locations, out, burn_in=burn_in, sheets=sheets, limits=limits)
    records = (
        {"film": str(each.location), "out": str(each.out) if each.out else "", "reason": each.reason} for each in done
    )
    return ("film", "out", "reason"), records


def print_films(columns: Sequence[str], records: Iterator[dict[str, Any]], as_json: bool, bar: ProgressBar) -> int:
    """Print one row a film as it comes, or all as JSON; return how many have a reason."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if not as_json:
        writer.writerow(columns)
    kept, failed = list[dict[str, Any]](), 0
    for record in records:
        failed += bool(record["reason"])
        bar.advance()
        if as_json:
            kept.append(record)
        else:
            cells = (record.get(column, "") for column in columns)
            writer.writerow([f"{cell:.6f}" if isinstance(cell, float) else cell for cell in cells])
    if as_json:
        print_result(kept, as_json)
    return failed


def doctor(paths: Examined = (), out: Path = Path(), json: bool = False) -> None:
    """Say what works on this machine, what does not, and what to do about it.

    Looks at Python, packages, cores, memory, disk, decoders, writers, torch and its device.  A line each: a tick, a
    dash for what is optional, a cross for what the core needs and lacks.  Stores, encoders, models and runs that are
    named as PATH are opened and checked.  The exit code is 1 if there is a cross.

    Example: chess-cxr doctor films.lance encoders/first

    Args:
        paths: stores, encoder folders, model folders and run folders.
        out: a folder on the disk that results will go to.
        json: print everything as JSON.
    """
    from chess_cxr.doctor.check import Request
    from chess_cxr.doctor.child import examine
    from chess_cxr.doctor.render import render

    found, kept = itertools.tee(examine(Request(paths, out)))
    for line in () if json else render(found, sys.stdout.encoding or "utf-8"):
        print(line, flush=True)
    checks = list(kept)
    broken = sum(check.finding.status == "broken" for check in checks)
    if json:
        print_result({"ok": not broken, "checks": [check.as_json() for check in checks]}, json)
    if broken:
        raise ChessError(f"{broken} of {len(checks)} checks found something broken")


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "doctor": doctor,
    "ingest": ingest,
    "audit": audit,
    "deidentify": deidentify,
    "plan": plan_run,
    "pretrain": pretrain,
    "runs": runs,
    "runs compare": compare_runs,
    "runs page": write_run_page,
    "export": export,
    "weights import": import_weights,
    "weights show": show_weights,
    "embed": embed,
    "evaluate": evaluate,
    "benchmark": benchmark,
    "finetune classify": finetune_classify,
    "finetune bones": finetune_bones,
    "finetune nodules": finetune_nodules,
    "generate": generate,
    "predict": predict,
}
EXAMPLES = ("demo", "ingest", "pretrain")


def parse_pairs(texts: Sequence[str]) -> dict[str, str]:
    """Parse FIELD=COLUMN texts."""
    pairs: dict[str, str] = {}
    for text in texts:
        field, found, column = text.partition("=")
        if not found or not field:
            raise UsageError(
                f"{text!r} should be FIELD=COLUMN, such as patient=PatientID or 'patient=Patient ID'; "
                "sources come before the options"
            )
        if field in pairs:
            raise UsageError(f"the field {field!r} is mapped twice")
        pairs[field] = column
    return pairs


def parse_encoders(texts: Sequence[str]) -> dict[str, str]:
    """Parse [NAME=]ENCODER texts into encoders by name; a path with a = in it needs a name before it."""
    named: dict[str, str] = {}
    for text in texts:
        name, found, encoder = text.partition("=")
        if not found or "/" in name:
            name, encoder = text.rstrip("/"), text
        if not name or not encoder:
            raise UsageError(f"{text!r} should be [NAME=]ENCODER, such as mine=encoders/first")
        if name in named:
            raise UsageError(f"two encoders are named {name!r}")
        named[name] = encoder
    if not named:
        raise UsageError("name at least one encoder with --encoders")
    return named


def refuse_preset_and_config(preset: str, config: Path | None) -> None:
    """Raise UsageError where both are given: one of them would be passed over in silence."""
    if preset and config:
        raise UsageError("give --preset or --config, not both: a configuration names all that a preset does")


def refuse_existing(out: Path) -> None:
    """Raise UsageError where something stands at `out`: nothing is ever overwritten."""
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists already; choose another --out or remove it")


def refuse_missing_encoders(encoders: Iterable[str]) -> None:
    """Raise UsageError for an encoder that is neither a folder nor of the form KIND:NAME."""
    for encoder in encoders:
        if not re.match(r"(random|imagenet|timm|pixels):", encoder) and not Path(encoder).is_dir():
            raise UsageError(f"there is no encoder folder {encoder}, and it is no name such as pixels:32")


def print_result(result: Any, as_json: bool) -> None:
    """Print a result on stdout, as text or as JSON."""
    print(json_text.dumps(result, indent=1, default=str) if as_json else result)


def render_usage() -> str:
    """Render the main page of the help: the commands with a line each, and where to begin."""
    about = {name: describe(function)[0] for name, function in COMMANDS.items()}
    width = max(map(len, about))
    examples = [describe(COMMANDS[name])[1] for name in EXAMPLES]
    return "\n".join(
        [
            "usage: chess-cxr COMMAND …",
            "",
            "Pre-train a chest X-ray encoder without labels, publish it, and measure what it is worth.",
            "",
            *(f"  {name:{width}}  {line}" for name, line in about.items()),
            "",
            "Begin with:",
            *(f"  {example}" for example in examples),
            "",
            "chess-cxr COMMAND --help says more; --version names the version.",
        ]
    )


def describe(function: Callable[..., None]) -> tuple[str, str]:
    """Return the first line of a command's docstring, without its full stop, and its example."""
    text = function.__doc__ or ""
    return text.splitlines()[0].rstrip("."), text.split("Example: ")[1].splitlines()[0]


def parse_command(words: Sequence[str]) -> Callable[[], None]:
    """Turn the words after `chess-cxr` into a call that is ready to be made.

    Raises UsageError, in one line, for words that make no command; prints help and raises SystemExit where asked to.
    """
    if not words:
        raise UsageError("name a command; chess-cxr --help lists them")
    length = 2 if " ".join(words[:2]) in COMMANDS else 1
    name = " ".join(words[:length])
    if name not in COMMANDS:
        family = [known for known in COMMANDS if known.startswith(f"{name} ")]
        there_are = f"; there are {', '.join(family)}" if family else "; chess-cxr --help lists the commands"
        raise UsageError(f"there is no command {name!r}{there_are}")
    function = COMMANDS[name]

    @functools.wraps(function)
    def get_ready(*arguments: Any, **options: Any) -> Any:
        return functools.partial(function, *arguments, **options)

    named = [word.partition("=")[0] for word in words if word.startswith("--")]
    if doubled := [word for word in named if named.count(word) > 1]:
        raise UsageError(f"{doubled[0]} is given twice; give it once, with all its values behind it")
    markers = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            call: Callable[[], None] = tyro.cli(
                get_ready, prog=f"chess-cxr {name}", args=list(words[length:]), config=markers
            )
    except SystemExit as stopped:
        if not stopped.code:
            raise
        raise UsageError(f"{flatten_box(complaint.getvalue())}; see chess-cxr {name} --help") from None
    return call


def flatten_box(text: str) -> str:
    """Turn the box that the parser draws around an error into one line."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    parts = [""]
    for line in plain.splitlines()[1:-1]:
        content = line.strip("│| ").strip()
        if set(content) <= set("─-"):
            parts.append("")
        else:
            parts[-1] = f"{parts[-1]} {content}".strip()
    kept = [part.rstrip(".:") for part in parts if part and not part.startswith("For full helptext")]
    return "; ".join(kept) or "the arguments make no sense"


def main() -> None:
    """Run the command line and exit with its code."""
    open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # files are named by bytes, which may be no text
    code = run(sys.argv[1:])
    if code == INTERRUPTED:
        # Threads of the store may still be at work; Python would crash noisily while taking itself down under them.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def open_closed_streams() -> None:
    """Send what a caller has closed (`>&-`) to nowhere: the next file opened would take its number, and its output."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def run(words: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors become one line on stderr."""
    try:
        if words[:1] in (["--help"], ["-h"], ["help"]):
            print(render_usage())
        elif words[:1] == ["--version"]:
            print(f"chess-cxr {version('chess-cxr')}")
        else:
            parse_command(words)()
        sys.stdout.flush()
        return 0
    except ChessError as error:
        return complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        return leave_closed_pipe()
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            raise
        if was_interrupted(error):
            return complain("interrupted", INTERRUPTED)
        if isinstance(error, OSError) and error.strerror:
            return complain(": ".join(str(part) for part in (error.strerror, error.filename) if part), 1)
        first = (str(error).strip().splitlines() or ["no message"])[0]
        if is_out_of_memory(error):
            return complain(f"out of memory: {first}; a smaller batch or size takes less, see chess-cxr plan", 1)
        return complain(f"unexpected {type(error).__name__}: {first}; please report this", 1)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out, of the machine or of a GPU, as numpy, OpenCV and torch say it."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or "can't allocate memory" in str(error) or "Insufficient memory" in str(error)


def was_interrupted(error: BaseException | None) -> bool:
    """Return whether an exception arose while Ctrl-C was being handled, as what is torn down may complain."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def complain(message: str, code: int) -> int:
    """Print one line on stderr and return the exit code."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        leave_closed_pipe()
    print(f"chess-cxr: {' '.join(message.split())}", file=sys.stderr)
    return code


def leave_closed_pipe() -> int:
    """Stay quiet where whoever read the output has seen enough; the code is 1, since not all of it was delivered."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
