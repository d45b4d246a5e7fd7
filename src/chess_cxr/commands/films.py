"""Commands about films: ingest, deidentify, audit."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

from chess_cxr.arguments import (
    Sources,
    Stores,
    check_workers,
    parse_location,
    parse_pairs,
    print_result,
    refuse_existing,
)
from chess_cxr.ingest.quality_options import QualityOptions
from chess_cxr.progress import ProgressBar, StageBars
from chess_cxr.records import ChessError, FilmListing, UsageError
from chess_cxr.workers.child import Limits
from chess_cxr.workers.cores import count_usable_cores


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
        from chess_cxr.sources.datasets.catalog import list_datasets, list_datasets_as_json

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
        from chess_cxr.workers.cluster import check_address

        check_address(cluster)
    from chess_cxr.deidentify.identity import check_key_place, read_id_key
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
    """Yield what runs the work of an ingest, a cluster or this machine's cores, and how many films at once."""
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
    from chess_cxr.deidentify.copies import REPORT, DeidentifyOptions, check_apart, deidentify_files
    from chess_cxr.deidentify.identity import check_key_place, read_id_key
    from chess_cxr.sources.folder import read_folder
    from chess_cxr.workers.pool import build_ingest_pool

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
    from chess_cxr.audit.audit import AuditOptions, audit_stores
    from chess_cxr.audit.write import write_audit

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
