"""Write an audit as tables and a page with the pairs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chess_cxr.audit.matching import FilmMatch, compute_detail, lay_film
from chess_cxr.audit.page import AuditTable, FilmPicture, PairPicture, render_audit
from chess_cxr.audit.result import KINDS, LEAKS, ROWS_SHOWN, TOLD, AuditResult, _get_row
from chess_cxr.files.whole import write_whole_folder
from chess_cxr.film_jpeg import encode_film
from chess_cxr.records import OnProgress
from chess_cxr.report.page import write_page
from chess_cxr.store import Store

THUMBNAIL = 192


def write_audit(result: AuditResult, out: Path) -> Path:
    """Write pairs.csv, patients.csv, lists.csv and report.html to a new folder, whole or not at all.

    Returns the page's path.  Raises UsageError where `out` exists.
    """
    with write_whole_folder(out) as growing:
        for name in ("pairs", "patients", "lists"):
            getattr(result, name).to_csv(growing / f"{name}.csv", index=False)
        write_page(growing / "report.html", result.page)
    return out / "report.html"


def _render(result: AuditResult, pictures: Sequence[PairPicture]) -> str:
    counts = pd.DataFrame(
        [{"": TOLD[kind][1], **{leak: result.counts[leak][kind] for leak in LEAKS}} for kind in (*KINDS, "patients")]
    )
    told = ", ".join(f"{name} ({count:,} films)" for name, count in result.films.items())
    tables = [
        AuditTable("What is shared", counts, "Hints, two exposures that look like one person, do not count as leaks.")
    ]
    if len(result.patients):
        shown = result.patients.head(ROWS_SHOWN)
        caption = f"{len(shown)} of {len(result.patients)} patients; all stand in patients.csv. Ids are keyed hashes."
        tables.append(AuditTable("Patients in more than one place", shown, caption))
    if len(result.lists):
        shown = result.lists.assign(leak=result.lists["leak"].map({True: "LEAK", False: "as expected"}))
        tables.append(AuditTable("Films in training lists", shown, "Films of a train split are expected there."))
    verdict = (
        f"{result.leaks:,} leaks across splits, stores or training lists were found."
        if result.leaks
        else "No leak across splits, stores or training lists was found."
    )
    return render_audit(
        f"Leak audit of {told}", verdict, result.leaks, tables, pictures, len(result.pairs), result.notes
    )


def _draw_pairs(stores: Sequence[Store], pairs: pd.DataFrame, show: OnProgress) -> list[PairPicture]:
    drawn = []
    for number in range(len(pairs)):
        pair = _get_row(pairs, number)
        first, second = (_read_one(stores, pair, name) for name in ("first", "second"))
        facts = [str(pair["kind"]), *([f"similarity {pair['similarity']:.2f}"] if pair["similarity"] > 0 else [])]
        facts += [pair["transform"]] if pair["transform"] else []
        facts += ["one patient by id" if pair["same_patient"] else "two patients by id"]
        laid = _draw_laid(first, second, pair["match"]) if pair["match"] else b""
        films = [
            FilmPicture(_say_where(pair, name), pair[f"{name}_uid"], _shrink(film))
            for name, film in (("first", first), ("second", second))
        ]
        drawn.append(PairPicture(_head(pair), tuple(facts), films[0], films[1], laid))
        show("draw pairs", number + 1, len(pairs))
    return drawn


def _say_where(pair: Mapping[str, Any], name: str) -> str:
    return f"{pair[f'{name}_store']}, {pair[f'{name}_split'] or 'no split'}"


def _head(pair: Mapping[str, Any]) -> str:
    return (
        f"Hints at one patient under two ids, {pair['leak']}"
        if pair["kind"] == KINDS[3]
        else f"Films shared {pair['leak']}"
    )


def _read_one(stores: Sequence[Store], pair: Mapping[str, Any], name: str) -> np.ndarray:
    film: np.ndarray = stores[pair[f"{name}_number"]].read_films([pair[name]])[0]
    return film


def _draw_laid(first: np.ndarray, second: np.ndarray, match: FilmMatch) -> bytes:
    laid, covered = lay_film(compute_detail(first).grey_HW, match.matrix_23, compute_detail(second).grey_HW.shape)
    return _shrink(np.where(covered > 0, 255 - laid if match.inverted else laid, 0).astype(np.uint8))


def _shrink(film: np.ndarray) -> bytes:
    return encode_film(film.astype(np.float32) / 255, THUMBNAIL)[0]
