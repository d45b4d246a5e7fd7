"""Apply a model to film files: predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from chess_cxr.arguments import Device, check_device_name, check_workers, parse_location, print_films
from chess_cxr.progress import ProgressBar
from chess_cxr.records import ChessError, UsageError
from chess_cxr.workers.child import Limits


def predict(
    model: Annotated[Positional[Path], tyro.conf.arg(metavar="MODEL")],
    films: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILM…")],
    out: Path | None = None,
    burn_in: bool = False,
    sheets: bool = False,
    saliency: Path | None = None,
    device: Device = "auto",
    workers: int | None = None,
    limits: Limits = Limits(),  # noqa: B008
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Apply a model to film files.

    For a classifier, prints probabilities as CSV.  For a bone model, writes films without bone to OUT, as derived DICOM
    for DICOM and as PNG for other files, and prints their names: chess-cxr predict models/bones new/ --out suppressed

    Decodes files like ingest.  If a film fails, its row gives the reason, and the exit code is 1.  Research software,
    not a medical device.

    Example: chess-cxr predict models/findings new/film.dcm new/other.png

    Args:
        model: a model folder from finetune classify or finetune bones.
        films: files (DICOM, PNG, JPEG, …), folders or URLs.
        out: folder for the films that a bone model makes.
        burn_in: write "BONE-SUPPRESSED, DERIVED" into a corner of these films.
        sheets: also write a picture of film, result and removed bone.
        saliency: folder for pictures of a classifier's saliency for each film and label (Grad-CAM).
        device: auto, cpu, cuda, cuda:N or mps.
        workers: number of decoding processes; by default one per core.
        limits: limits of time and memory per film.
        json: print JSON, one record per film.
        quiet: show no progress.
    """
    check_workers(workers)
    check_device_name(device)
    if not films:
        raise UsageError("no film is given")
    from chess_cxr.sources.folder import read_folder
    from chess_cxr.tasks.table import PredictOptions, find_predictor, predict_films

    find_predictor(model)  # before its films are looked for
    locations = [film.path for film in read_folder([parse_location(film) for film in films])]
    options = PredictOptions(out, burn_in, sheets, saliency, device, workers, limits)
    predictions = predict_films(model, locations, options)
    with ProgressBar("predict", len(locations), "films", quiet) as bar:
        failed = print_films(predictions.columns, predictions.records, json, bar)
    if failed:
        raise ChessError(f"{failed} of {len(locations)} films could not be read; the table gives the reasons")
