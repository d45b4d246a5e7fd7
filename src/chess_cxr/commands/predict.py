"""Use a model on film files: predict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from chess_cxr.commands.words import (
    check_workers,
    parse_location,
    print_films,
)
from chess_cxr.progress import ProgressBar
from chess_cxr.records import ChessError, UsageError
from chess_cxr.workers.child import Limits


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
    from chess_cxr.files.whole import read_json
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
    from chess_cxr.tasks.classify.model import load_classifier, predict_files
    from chess_cxr.workers.pool import build_ingest_pool

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
    from chess_cxr.tasks.bones.model import load_bone_suppressor, suppress_files

    loaded = load_bone_suppressor(model)
    done = suppress_files(loaded, locations, out, burn_in=burn_in, sheets=sheets, limits=limits)
    records = (
        {"film": str(each.location), "out": str(each.out) if each.out else "", "reason": each.reason} for each in done
    )
    return ("film", "out", "reason"), records
