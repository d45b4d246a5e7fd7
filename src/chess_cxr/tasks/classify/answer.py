"""A classifier's answers to film files: the same for the command, the server and Python."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from chess_cxr.encoders.contract import compute_contract_sha256
from chess_cxr.film_jpeg import decode_stored
from chess_cxr.ingest.encoding import EncodeOptions, encode_in_child
from chess_cxr.records import FLAGS, UsageError
from chess_cxr.tasks.answer import FilmAnswer, FindingAnswer
from chess_cxr.tasks.classify.model import Classifier, load_classifier
from chess_cxr.tasks.classify.operating import DEFAULT_POINT, check_point
from chess_cxr.tasks.table import Predictions, PredictOptions
from chess_cxr.workers.child import Limits
from chess_cxr.workers.pool import build_ingest_pool, run_in_order


@dataclass(frozen=True)
class ReadFilm:
    """A film file as the ingest reads it.

    reason: why it is refused, "" if it is not.  flags: doubts about it.  film_HW: float32 in [0, 1], bone bright; None
    if the film is refused.
    """

    location: Path | str
    reason: str = ""
    flags: tuple[str, ...] = ()
    film_HW: np.ndarray | None = field(default=None, repr=False)


def read_films(
    locations: Iterable[Path | str], executor: Executor | None = None, limits: Limits | None = None, in_flight: int = 64
) -> Generator[ReadFilm, None, None]:
    """Yield film files in their order, decoded, judged and encoded as the ingest does it.

    So they give the same numbers as from a store.  executor: of `build_ingest_pool`, whose processes read the files
    within `limits`.
    """
    yield from run_in_order(locations, partial(read_in_child, limits=limits or Limits()), executor, in_flight)


def read_in_child(location: Path | str, limits: Limits) -> ReadFilm:
    """Read one film file in this thread's child, see `workers.pool`; a film that cannot be read has a reason."""
    film = encode_in_child(location, EncodeOptions(), limits)
    if film.reason:
        return ReadFilm(location, film.reason)
    flags = tuple(name for name in FLAGS if name in film.flags)
    return ReadFilm(location, "", flags, decode_stored(film.jpeg).astype(np.float32) / 255)


def answer_film(model: Classifier, film: ReadFilm, point: str = DEFAULT_POINT) -> FilmAnswer:
    """Return a classifier's answer to one film.

    point: name of the operating point whose thresholds are given.  Raises UsageError for an unknown one.
    """
    check_point(point)
    contract_sha256 = compute_contract_sha256(model.contract)
    if film.film_HW is None:
        return FilmAnswer(model.name, model.sha256, contract_sha256, film.reason, film.flags)
    [probability_L] = model.predict([film.film_HW]).tolist()
    threshold_L = model.operating.thresholds.get(point, (None,) * len(model.labels))
    rows = zip(model.labels, probability_L, threshold_L, model.operating.calibrated, strict=True)
    return FilmAnswer(
        model.name,
        model.sha256,
        contract_sha256,
        flags=film.flags,
        findings=tuple(
            FindingAnswer(label, probability, threshold, None if threshold is None else probability >= threshold, known)
            for label, probability, threshold, known in rows
        ),
        calibrated=all(model.operating.calibrated),
        operating_point=point if any(threshold is not None for threshold in threshold_L) else "",
    )


def answer_films(
    model: Classifier,
    locations: Iterable[Path | str],
    point: str = DEFAULT_POINT,
    executor: Executor | None = None,
    limits: Limits | None = None,
    in_flight: int = 64,
) -> Generator[FilmAnswer, None, None]:
    """Yield a classifier's answers to film files, in their order; arguments as in `read_films` and `answer_film`."""
    check_point(point)
    for film in read_films(locations, executor, limits, in_flight):
        yield answer_film(model, film, point)


def describe_answer(location: Path | str, answer: FilmAnswer) -> dict[str, Any]:
    """Return an answer as a flat record of JSON values: a row of `chess-cxr predict`."""
    described: dict[str, Any] = {
        "flags": list(answer.flags),
        "point": answer.operating_point,
        "uncalibrated": [finding.label for finding in answer.findings if not finding.calibrated],
    }
    for finding in answer.findings:
        described[f"{finding.label} threshold"] = finding.threshold
        described[f"{finding.label} positive"] = finding.positive
    described |= {"model": answer.model, "model_sha256": answer.model_sha256, "contract_sha256": answer.contract_sha256}
    probabilities = {finding.label: finding.probability for finding in answer.findings}
    return described | {"film": str(location), "reason": answer.reason} | probabilities


def list_columns(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of `chess-cxr predict` in their order."""
    each = (f"{label} {column}" for label in labels for column in ("threshold", "positive"))
    return "film", *labels, "reason", "flags", "point", "uncalibrated", *each


def predict_films(folder: Path, locations: Sequence[Path | str], options: PredictOptions) -> Predictions:
    """Return a classifier's answers to film files."""
    if options.out is not None or options.burn_in or options.sheets or options.sure_map:
        raise UsageError("--out, --burn-in, --sheets and --sure-map are for bone models; a classifier prints its table")
    point = options.point or DEFAULT_POINT
    check_point(point)
    model = load_classifier(folder, options.device, options.runtime)

    def list_records() -> Iterator[dict[str, Any]]:
        with build_ingest_pool(options.workers) as pool:
            for film in read_films(locations, pool, options.limits):
                answer = answer_film(model, film, point)
                if options.saliency and film.film_HW is not None:
                    write_saliency(model, film, answer, options.saliency)
                yield describe_answer(film.location, answer)

    return Predictions(list_columns(model.labels), list_records())


def write_saliency(model: Classifier, film: ReadFilm, answer: FilmAnswer, out: Path) -> None:
    """Draw a film and, for each label, what in it spoke for the label."""
    from chess_cxr.derive.film import write_new_file
    from chess_cxr.tasks.classify.saliency import choose_method, compute_label_maps
    from chess_cxr.tasks.classify.saliency_sheet import SaliencyRow, draw_saliency_sheet

    assert film.film_HW is not None
    map_LHW = compute_label_maps(model.network, model.contract, film.film_HW)
    maps = {f"{it.label} {it.probability:.2f}": map_HW for it, map_HW in zip(answer.findings, map_LHW, strict=True)}
    stem, how = Path(str(film.location)).stem, choose_method(model.network, model.contract)
    sheet = draw_saliency_sheet([SaliencyRow(np.rint(255 * film.film_HW).astype(np.uint8), maps, None, stem)], how)
    write_new_file(out, stem, "_saliency.png", sheet)
