"""Commands about films: ingest, deidentify, audit."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from chess_cxr.arguments import (
    Flat,
    Sources,
    Stores,
    check_workers,
    parse_location,
    parse_pairs,
    print_result,
    refuse_existing,
)
from chess_cxr.audit.options import AuditConfig, AuditOptions
from chess_cxr.deidentify.options import DeidentifyConfig, DeidentifyOptions
from chess_cxr.encoders.names import check_encoder_name, locate_encoder
from chess_cxr.ingest.options import IngestConfig, IngestOptions
from chess_cxr.progress import ProgressBar, StageBars
from chess_cxr.records import ChessError, FilmListing, UsageError
from chess_cxr.workers.cores import count_usable_cores

if TYPE_CHECKING:
    import numpy as np

    from chess_cxr.store import Store


def ingest(
    sources: Sources,
    out: str = "",
    table: Path | None = None,
    columns: tuple[str, ...] = (),
    dataset: str = "",
    site: str = "",
    config: Flat[IngestConfig] = IngestConfig(),  # noqa: B008
    key_file: Path | None = None,
    id_map: Path | None = None,
    films: Path | None = None,
    workers: int | None = None,
    cluster: str = "",
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Turn films (DICOM, PNG, JPEG, TIFF, WebP, NIfTI, MHA, JSRT's IMG) into a store.

    Decodes each film once, within limits of time and memory, checks its quality, replaces identifiers by keyed hashes,
    and splits patients into train, val and test.  Lists films that cannot be read, with the reason, in OUT's quarantine
    file, and stores the others; the exit code is then 1.  If interrupted, the same command continues.

    Example: chess-cxr ingest films/ --out films.lance --table labels.csv --columns patient=PatientID class=Diagnosis

    Args:
        sources: folders, files or URLs such as s3://bucket/films.
        out: the store to write, such as films.lance or s3://bucket/films.lance.
        table: a CSV, TSV or Parquet file with one row per film.
        columns: FIELD=COLUMN pairs; the fields are path, uid, patient, study, view, age, sex, split, class, labels, \
study_date, manufacturer, site.
        dataset: a known public data set, such as nih-chestxray14; "list" lists them.
        site: name of the hospital or data set in the store; by default that of --dataset.
        config: films, split, quality and limits.
        key_file: secret key of the identifier hashes; by default CHESS_CXR_ID_KEY, or a file made once for you.
        id_map: a file to write with uid and original path of every film; keep it private.
        films: a file with the hashed uids of the films to take, such as chess-cxr select writes; by default all.
        workers: number of processes; by default one per core.
        cluster: address of a Dask scheduler, such as tcp://10.0.0.1:8786, whose workers see the same files.
        json: print the summary as JSON.
        quiet: show no progress.
    """
    pairs = parse_pairs(columns)
    if dataset == "list":
        from chess_cxr.sources.datasets.catalog import list_datasets, list_datasets_as_json

        print_result(list_datasets_as_json() if json else list_datasets(), json)
        return
    if not out:
        raise UsageError("name the store to write with --out, such as --out films.lance")
    if not sources:
        raise UsageError("no source folder is given")
    store = parse_location(out)
    check_workers(workers, cluster)
    if cluster:
        from chess_cxr.workers.cluster import check_address

        check_address(cluster)
    from chess_cxr.deidentify.identity import check_key_place, read_id_key
    from chess_cxr.ingest.pipeline import ingest_films
    from chess_cxr.ingest.side_files import find_quarantine
    from chess_cxr.store import check_place

    check_place(store)
    places = [parse_location(source) for source in sources]
    check_key_place(key_file, [*places, store])
    listing = list_source_films(places, table, pairs, dataset, config.val)
    for note in () if quiet else listing.notes:
        print(f"note: {note}", file=sys.stderr)
    options = IngestOptions(read_id_key(key_file), id_map, site or dataset, **vars(config))
    if films:
        from chess_cxr.files.uid_list import read_uid_list
        from chess_cxr.ingest.listed import keep_listed

        listing = keep_listed(listing, read_uid_list(films), options.id_key)
    count = listing.count()
    if films and not count:
        raise UsageError(
            f"no film of {films} is in these sources; uids are equal only with the key of the same --key-file"
        )
    with open_executor(workers, cluster) as (executor, threads), ProgressBar("ingest", count, "films", quiet) as bar:
        options = replace(options, in_flight=max(options.in_flight, 32 * threads))
        summary = ingest_films(listing, store, options, executor, bar.advance)
    print_result(vars(summary) if json else summary.as_text(), json)
    if failed := sum(summary.quarantined.values()):
        raise ChessError(f"{failed} of {count} films could not be stored; {find_quarantine(store)} says why")


def list_source_films(
    places: Sequence[Path | str], table: Path | None, columns: dict[str, str], dataset: str, val: float
) -> FilmListing:
    """List the films to ingest: those of a public data set, of a table, or all in the sources."""
    if not dataset:
        from chess_cxr.sources.folder import read_folder

        return read_folder(places, table, columns)
    from chess_cxr.sources.datasets.catalog import count_unlisted, read_dataset

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
    """Yield an executor, of a cluster or of this machine's cores, and its number of threads."""
    if cluster:
        from chess_cxr.workers.cluster import connect_cluster

        with connect_cluster(cluster) as connected:
            yield connected
        return
    from chess_cxr.workers.pool import build_ingest_pool

    count = workers or count_usable_cores()
    with build_ingest_pool(count) as pool:
        yield pool, count


def deidentify(
    sources: Sources,
    out: Path,
    key_file: Path | None = None,
    config: Flat[DeidentifyConfig] = DeidentifyConfig(),  # noqa: B008
    workers: int | None = None,
    id_map: Path | None = None,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Copy DICOM films without identifying data.

    Follows PS3.15 Annex E with an allow-list: replaces identifiers by keyed hashes, shifts dates by a secret number of
    days per patient, removes free text and private elements, and keeps pixels bit by bit.  OUT/report.csv lists the
    outcome for each film.  If interrupted, the same command continues.

    Example: chess-cxr deidentify archive/ --out copies --key-file ~/keys/study.key

    Args:
        sources: folders, files or URLs such as s3://bucket/films.
        out: folder for the copies, as patient/study/film.dcm with hashed names.
        key_file: secret key of the hashes; by default CHESS_CXR_ID_KEY, or a file made once for you.
        config: films and limits.
        workers: number of processes; by default one per core.
        id_map: a file to write with uid and original path of every film; keep it private.
        json: print the summary as JSON.
        quiet: show no progress.
    """
    check_workers(workers)
    from chess_cxr.deidentify.copies import REPORT, check_apart, deidentify_files
    from chess_cxr.deidentify.identity import check_key_place, read_id_key
    from chess_cxr.sources.folder import read_folder
    from chess_cxr.workers.pool import build_ingest_pool

    places = [parse_location(source) for source in sources]
    check_apart(out, places)
    check_key_place(key_file, [*places, out])
    films = read_folder(places)
    in_flight = 32 * (workers or count_usable_cores())
    options = DeidentifyOptions(read_id_key(key_file), id_map, in_flight, **vars(config))
    with build_ingest_pool(workers) as pool, ProgressBar("deidentify", films.count(), "films", quiet) as bar:
        summary = deidentify_files(films, out, options, pool, bar.advance)
    print_result(vars(summary) if json else summary.as_text(), json)
    if failed := sum(summary.refused.values()):
        raise ChessError(f"{failed} of {failed + summary.copied} films were not copied; {out / REPORT} says why")


def audit(
    stores: Stores,
    training_list: tuple[Path, ...] = (),
    out: Path | None = None,
    encoder: str = "",
    config: Flat[AuditConfig] = AuditConfig(),  # noqa: B008
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Find patients and films that stores, splits or published training lists share.

    Also finds rotated, mirrored, inverted and resized copies.  The exit code is 1 if anything is shared across splits,
    stores or lists, so that a CI can stop.

    Example: chess-cxr audit ours.lance theirs.lance --training-list encoders/first --out audit

    Args:
        stores: stores to compare with each other and within themselves.
        training_list: encoder folders, published encoders, or files with hashed uids, hashed patients or pixel hashes.
        out: folder for pairs.csv, patients.csv, lists.csv and report.html, which shows the pairs side by side.
        encoder: compare also films that are near in the features of this encoder, which finds crops; the stores must \
hold them, see chess-cxr embed.
        config: thresholds.
        json: print everything as JSON.
        quiet: show no progress.
    """
    if out:
        refuse_existing(out)
    from chess_cxr.store import open_store

    real = [os.path.realpath(store) for store in stores]
    if doubled := [store for store, place in zip(stores, real, strict=True) if real.count(place) > 1]:
        raise UsageError(f"the store {doubled[0]} occurs more than once; name it once")
    opened = [open_store(store) for store in stores]
    features = _read_features(opened, encoder) if encoder else []
    lists = [Path(locate_encoder(place)) for place in training_list]
    from chess_cxr.audit.audit import audit_stores
    from chess_cxr.audit.page import write_audit

    with StageBars(quiet) as bars:
        result = audit_stores(opened, lists, AuditOptions(**vars(config)), bars.show, features)
    print_result(result.as_json() if json else result.as_text(), json)
    if out:
        page = write_audit(result, out)
        if not json:
            print(page)
    if result.leaks:
        raise ChessError(f"{result.leaks} leaks across splits, stores or training lists were found")


def _read_features(stores: Sequence[Store], name: str) -> list[np.ndarray]:
    check_encoder_name(name)
    from chess_cxr.encoders.embed import open_encoder
    from chess_cxr.search.archive import read_features

    encoder = open_encoder(name, "cpu")
    return [read_features(store, encoder, name) for store in stores]
