"""How well people told real films from SYNTHETIC ones, from the answers that the reader page saves.

A reader says real or synthetic and how sure that is, 1 to 5.  The two together rank the films, from certainly real to
certainly synthetic; the AUROC is of that ranking.  Somebody who cannot tell scores 0.5, and a d' of 0.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from chess_cxr.evaluation.delong import estimate_area_interval
from chess_cxr.evaluation.intervals import Interval, interval_of_draws
from chess_cxr.records import ChessError, UsageError

FORMAT = "chess-cxr reader answers 1"
MAX_FILE_BYTES = 4 << 20
MAX_FILMS = 10_000
MAX_TEXT = 200
SUREST = 5


@dataclass(frozen=True)
class Answer:
    """One film: what it is, what the reader took it for, how sure that was (1 to 5), and the time it took."""

    film: str
    is_synthetic: bool
    says_synthetic: bool
    confidence: int
    seconds: float = math.nan


@dataclass(frozen=True)
class ReaderAnswers:
    """All answers of one reader to one page; `page` is the same for all readers of that page."""

    page: str
    reader: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class ReaderScore:
    """What the answers of one reader are worth.

    accuracy: with the exact binomial interval (Clopper & Pearson 1934).  auroc: with DeLong's, NaN where all or none of
    the pairs are ranked right.  d_prime: log-linear (Hautus 1995), finite for a reader without error too.
    hit_rate, false_alarm_rate: shares of SYNTHETIC and of real films that were called synthetic.
    misses: films that were taken for the other kind.
    """

    reader: str
    films: int
    synthetic: int
    accuracy: Interval
    auroc: Interval
    d_prime: float
    hit_rate: float
    false_alarm_rate: float
    misses: tuple[Answer, ...]


def read_answers(path: Path) -> ReaderAnswers:
    """Read a file that the reader page saved.

    It comes from outside: at most 4 MiB, 10,000 films and texts of 200 characters are taken.
    Raises ChessError for anything that is not such a file, in one line.
    """
    try:
        told = json.loads(_read_bounded(path), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise ChessError(f"{path.name} is no JSON file: give the file that the reader page saved") from None
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise ChessError(f"{path.name} does not hold answers of a reader page ({FORMAT})")
    answers = told.get("answers")
    if not isinstance(answers, list) or not 1 <= len(answers) <= MAX_FILMS:
        raise ChessError(f"{path.name} must hold 1 to {MAX_FILMS} answers")
    parsed = tuple(_parse_answer(answer, path) for answer in answers)
    if len({answer.film for answer in parsed}) < len(parsed):
        raise ChessError(f"{path.name} answers a film twice")
    return ReaderAnswers(_parse_text(told, "page", path), _parse_text(told, "reader", path), parsed)


def score_reader(given: ReaderAnswers, level: float = 0.95) -> ReaderScore:
    """Score one reader.  Rates, AUROC and d' are NaN where there is no film of a kind."""
    truth = np.array([answer.is_synthetic for answer in given.answers])
    said = np.array([answer.says_synthetic for answer in given.answers])
    confidence = np.array([answer.confidence for answer in given.answers], dtype=np.float64)
    right = int((truth == said).sum())
    exact = stats.binomtest(right, len(truth)).proportion_ci(level, method="exact")
    synthetic, real = int(truth.sum()), int((~truth).sum())
    hits, alarms = int(said[truth].sum()), int(said[~truth].sum())
    both = synthetic > 0 and real > 0
    return ReaderScore(
        reader=given.reader,
        films=len(truth),
        synthetic=synthetic,
        accuracy=Interval(right / len(truth), float(exact.low), float(exact.high), level),
        auroc=estimate_area_interval(truth, np.where(said, confidence, -confidence), level=level),
        d_prime=_compute_d_prime(hits, synthetic, alarms, real) if both else math.nan,
        hit_rate=hits / synthetic if synthetic else math.nan,
        false_alarm_rate=alarms / real if real else math.nan,
        misses=tuple(answer for answer in given.answers if answer.is_synthetic != answer.says_synthetic),
    )


def score_readers(paths: Sequence[Path], level: float = 0.95) -> pd.DataFrame:
    """Score the files of several readers of one page: a row a reader, then the mean where there are several.

    The mean's interval is Student's over readers: it says nothing about other films.
    Raises UsageError where the files are of different pages or films, or one reader's file is given twice.
    """
    given = [read_answers(path) for path in paths]
    if not given:
        raise UsageError("there is no file of answers to score")
    if len({_identify_films(answers) for answers in given}) > 1:
        raise UsageError("the files are answers to different reader pages: score each page by itself")
    if len({answers.answers for answers in given}) < len(given):
        raise UsageError("two of the files hold the same answers: give each reader's file once")
    scores = [score_reader(answers, level) for answers in given]
    rows = [_list_row(score) for score in scores]
    if len(scores) > 1:
        rows.append(_average(scores, level))
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- reading


def _read_bounded(path: Path) -> bytes:
    try:
        # Without waiting for the other end of a pipe
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ChessError(f"{path.name} is not a regular file")
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ChessError(f"{path.name} cannot be read ({error.strerror})") from None
    if len(content) > MAX_FILE_BYTES:
        raise ChessError(f"{path.name} is larger than {MAX_FILE_BYTES >> 20} MiB: no file of answers is")
    return content


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


def _parse_answer(answer: Any, path: Path) -> Answer:
    if not isinstance(answer, dict):
        raise ChessError(f"{path.name} holds an answer that is none")
    truth, said, confidence = (answer.get(name) for name in ("is_synthetic", "says_synthetic", "confidence"))
    if not (isinstance(truth, bool) and isinstance(said, bool)):
        raise ChessError(f"{path.name} holds an answer that is neither real nor synthetic")
    if isinstance(confidence, bool) or not isinstance(confidence, int) or not 1 <= confidence <= SUREST:
        raise ChessError(f"{path.name} holds a confidence that is not 1 to {SUREST}")
    return Answer(_parse_text(answer, "film", path), truth, said, confidence, _parse_seconds(answer.get("seconds")))


def _parse_seconds(seconds: object) -> float:
    """Return the time, NaN where it is none: no score depends on it."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e9:
        return math.nan
    return float(seconds)


def _parse_text(told: dict[str, Any], name: str, path: Path) -> str:
    text = told.get(name)
    if not isinstance(text, str) or len(text) > MAX_TEXT or (text and not text.isprintable()):
        raise ChessError(f"{path.name} holds no {name}, or one that is not a line of at most {MAX_TEXT} characters")
    return text


# ---------------------------------------------------------------- scoring


def _compute_d_prime(hits: int, synthetic: int, alarms: int, real: int) -> float:
    hit, alarm = (hits + 0.5) / (synthetic + 1), (alarms + 0.5) / (real + 1)
    return float(stats.norm.ppf(hit) - stats.norm.ppf(alarm))


def _identify_films(given: ReaderAnswers) -> tuple[str, frozenset[tuple[str, bool]]]:
    return given.page, frozenset((answer.film, answer.is_synthetic) for answer in given.answers)


def _list_row(score: ReaderScore) -> dict[str, object]:
    return {
        "reader": score.reader or "no name",
        "films": score.films,
        "synthetic": score.synthetic,
        "accuracy": score.accuracy.value,
        "accuracy_low": score.accuracy.low,
        "accuracy_high": score.accuracy.high,
        "auroc": score.auroc.value,
        "auroc_low": score.auroc.low,
        "auroc_high": score.auroc.high,
        "d_prime": score.d_prime,
        "hit_rate": score.hit_rate,
        "false_alarm_rate": score.false_alarm_rate,
    }


def _average(scores: Sequence[ReaderScore], level: float) -> dict[str, object]:
    accuracy = interval_of_draws([score.accuracy.value for score in scores], level)
    auroc = interval_of_draws([score.auroc.value for score in scores], level)
    mean = {
        name: float(np.mean([getattr(score, name) for score in scores]))
        for name in ("d_prime", "hit_rate", "false_alarm_rate")
    }
    return {
        "reader": f"mean of {len(scores)} readers",
        "films": scores[0].films,
        "synthetic": scores[0].synthetic,
        "accuracy": accuracy.value,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "auroc": auroc.value,
        "auroc_low": auroc.low,
        "auroc_high": auroc.high,
        **mean,
    }
