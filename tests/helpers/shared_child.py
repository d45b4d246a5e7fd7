"""One decoding process for the films of a whole test run: each ingest would start one of its own.

The functions are those of the package, and without an executor they are given the shared one, a film at a time, as they
do it by themselves.  A child inherits the environment of its start: what changes it needs a pool of its own.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import cache
from pathlib import Path

from chess_cxr.deidentify import copies as dicom_copies
from chess_cxr.deidentify.copies import DeidentifySummary
from chess_cxr.deidentify.options import DeidentifyOptions
from chess_cxr.ingest import pipeline
from chess_cxr.ingest.options import IngestOptions
from chess_cxr.ingest.pipeline import IngestSummary
from chess_cxr.records import FilmListing, SourceFilm
from chess_cxr.workers.pool import build_ingest_pool


@cache
def share_pool() -> Executor:
    """The pool of one child, which ends with this process."""
    return build_ingest_pool(1)


def ingest_films(
    films: FilmListing | Sequence[SourceFilm],
    out: Path | str,
    options: IngestOptions,
    executor: Executor | None = None,
    on_film: Callable[[], None] | None = None,
) -> IngestSummary:
    if executor is None:
        executor, options = share_pool(), replace(options, in_flight=min(options.in_flight, 1))
    return pipeline.ingest_films(films, out, options, executor, on_film)


def deidentify_files(
    sources: Iterable[SourceFilm],
    out: Path,
    options: DeidentifyOptions,
    executor: Executor | None = None,
    on_film: Callable[[], object] | None = None,
) -> DeidentifySummary:
    if executor is None:
        executor, options = share_pool(), replace(options, in_flight=min(options.in_flight, 1))
    return dicom_copies.deidentify_files(sources, out, options, executor, on_film)
