"""Draw and write the page of a leak audit: what is shared, with pairs of films side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chess_cxr.audit.matching import FilmMatch, compute_detail, lay_film
from chess_cxr.audit.result import KINDS, LEAKS, ROWS_SHOWN, TOLD, AuditResult, get_row
from chess_cxr.files.whole import write_whole_folder
from chess_cxr.film_jpeg import encode_film
from chess_cxr.records import OnProgress
from chess_cxr.report.page import load_template, write_page
from chess_cxr.report.pictures import embed_picture
from chess_cxr.store import Store

THUMBNAIL = 192


@dataclass(frozen=True)
class FilmPicture:
    """Film on the page: store and split, hashed uid, JPEG."""

    where: str
    uid: str
    jpeg: bytes


@dataclass(frozen=True)
class PairPicture:
    """Two films that share a picture; laid: JPEG of the first film aligned with the second, empty if unknown.

    leak: heading above the pair.  facts: short texts such as "near duplicate", "similarity 0.98".
    """

    leak: str
    facts: tuple[str, ...]
    first: FilmPicture
    second: FilmPicture
    laid: bytes = b""


@dataclass(frozen=True)
class AuditTable:
    """Table of the page, with its heading and the sentence below it."""

    heading: str
    table: pd.DataFrame
    caption: str = ""


def write_audit(result: AuditResult, out: Path) -> Path:
    """Write pairs.csv, patients.csv, lists.csv and report.html to a new folder, whole or not at all.

    Returns the path of the page.  Raises `UsageError` if `out` exists.
    """
    with write_whole_folder(out) as growing:
        for name in ("pairs", "patients", "lists"):
            getattr(result, name).to_csv(growing / f"{name}.csv", index=False)
        write_page(growing / "report.html", result.page)
    return out / "report.html"


def render_result(result: AuditResult, pictures: Sequence[PairPicture], synthetic: bool) -> str:
    """Render the page of an audit with the pictures of its first pairs.  synthetic: whether all films are generated."""
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
        f"Leak audit of {told}{', SYNTHETIC' if synthetic else ''}",
        verdict, result.leaks, tables, pictures, len(result.pairs), result.notes,
    )  # fmt: skip


def render_audit(
    title: str,
    verdict: str,
    leaks: int,
    tables: Sequence[AuditTable],
    pairs: Sequence[PairPicture],
    pairs_in_all: int,
    notes: Sequence[str] = (),
) -> str:
    """Render the self-contained page of an audit, pairs in the given order.

    leaks: decides the colour of the verdict.  pairs_in_all: tells how many pairs are not shown.
    """
    picture, pair_up = partial(embed_picture, kind="jpeg"), partial(zip, strict=True)
    return load_template("chess_cxr.audit", "audit.html", picture=picture, zip=pair_up).render(
        title=title, verdict=verdict, leaks=leaks, tables=tables, pairs=pairs, notes=notes,
        left_out=pairs_in_all - len(pairs),
    )  # fmt: skip


def draw_pairs(stores: Sequence[Store], pairs: pd.DataFrame, show: OnProgress) -> list[PairPicture]:
    """Read the films of pairs and draw their pictures."""
    drawn = []
    for number in range(len(pairs)):
        pair = get_row(pairs, number)
        first, second = (stores[pair[f"{name}_number"]].read_films([pair[name]])[0] for name in ("first", "second"))
        facts = [str(pair["kind"]), *([f"similarity {pair['similarity']:.2f}"] if pair["similarity"] > 0 else [])]
        facts += [pair["transform"]] if pair["transform"] else []
        facts += ["one patient by id" if pair["same_patient"] else "two patients by id"]
        laid = _draw_laid(first, second, pair["match"]) if pair["match"] else b""
        films = [_show_film(pair, name, film) for name, film in (("first", first), ("second", second))]
        is_hint = pair["kind"] == KINDS[3]
        heading = ("Hints at one patient under two ids, " if is_hint else "Films shared ") + pair["leak"]
        drawn.append(PairPicture(heading, tuple(facts), films[0], films[1], laid))
        show("draw pairs", number + 1, len(pairs))
    return drawn


def _show_film(pair: Mapping[str, Any], name: str, film_HW: np.ndarray) -> FilmPicture:
    where = f"{pair[f'{name}_store']}, {pair[f'{name}_split'] or 'no split'}"
    return FilmPicture(where, pair[f"{name}_uid"], _shrink(film_HW))


def _draw_laid(first: np.ndarray, second: np.ndarray, match: FilmMatch) -> bytes:
    laid, covered = lay_film(compute_detail(first).grey_HW, match.matrix_23, compute_detail(second).grey_HW.shape)
    return _shrink(np.where(covered > 0, 255 - laid if match.inverted else laid, 0).astype(np.uint8))


def _shrink(film: np.ndarray) -> bytes:
    return encode_film(film.astype(np.float32) / 255, THUMBNAIL)[0]
