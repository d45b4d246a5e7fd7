"""Apply a model to film files: predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from chess_cxr.arguments import Flat, check_device_name, check_workers, parse_location, print_films
from chess_cxr.encoders.names import locate_model
from chess_cxr.progress import ProgressBar
from chess_cxr.records import ChessError, UsageError
from chess_cxr.tasks.table import PredictOptions, find_predictor, predict_films


def predict(
    model: Annotated[Positional[Path], tyro.conf.arg(metavar="MODEL")],
    films: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILM…")],
    options: Flat[PredictOptions] = PredictOptions(),  # noqa: B008
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Apply a model to film files.

    For a classifier, prints as CSV each label's probability (calibrated if the model is), threshold, and yes or no, and
    the flags of the film, such as inverted, lateral, not_chest, collimated.  For a bone model, writes films without
    bone to OUT, as derived DICOM for DICOM and as PNG for other files, and prints their names: chess-cxr predict
    models/bones new/ --out suppressed

    Decodes files like ingest.  If a film fails, its row gives the reason, and the exit code is 1.  Research software,
    not a medical device.

    Example: chess-cxr predict models/findings new/film.dcm new/other.png

    Args:
        model: a model folder from finetune classify or finetune bones, or the name of a published model.
        films: files (DICOM, PNG, JPEG, …), folders or URLs.
        options: what to make, and where to run.
        json: print JSON, one record per film.
        quiet: show no progress.
    """
    check_workers(options.workers)
    check_device_name(options.device)
    if not films:
        raise UsageError("no film is given")
    from chess_cxr.sources.folder import read_folder

    model = locate_model(model)
    find_predictor(model)  # before its films are looked for
    locations = [film.path for film in read_folder([parse_location(film) for film in films])]
    predictions = predict_films(model, locations, options)
    with ProgressBar("predict", len(locations), "films", quiet) as bar:
        failed = print_films(predictions.columns, predictions.records, json, bar)
    if failed:
        raise ChessError(f"{failed} of {len(locations)} films could not be read; the table gives the reasons")
