"""The page of a leak audit: what is shared, and the pairs of films side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from chess_cxr.report.page import load_template
from chess_cxr.report.pictures import embed_picture


@dataclass(frozen=True)
class FilmPicture:
    """A film on the page: where it is (store and split), its hashed uid, and a JPEG."""

    where: str
    uid: str
    jpeg: bytes


@dataclass(frozen=True)
class PairPicture:
    """Two films that share a picture; laid: JPEG of the first turned and laid on the second, empty where unknown.

    facts: short texts such as "near duplicate", "similarity 0.98".  leak: the heading it stands under.
    """

    leak: str
    facts: tuple[str, ...]
    first: FilmPicture
    second: FilmPicture
    laid: bytes = b""


@dataclass(frozen=True)
class AuditTable:
    """A table of the page with its heading and the sentence below it."""

    heading: str
    table: pd.DataFrame
    caption: str = ""


def render_audit(
    title: str,
    verdict: str,
    leaks: int,
    tables: Sequence[AuditTable],
    pairs: Sequence[PairPicture],
    pairs_in_all: int,
    notes: Sequence[str] = (),
) -> str:
    """Render the page of an audit, complete in itself; `pairs` in the order given, worst first.

    leaks: colours the verdict.  pairs_in_all: so that the page can say how many it does not show.
    """
    picture, pair_up = partial(embed_picture, kind="jpeg"), partial(zip, strict=True)
    return load_template("chess_cxr.audit", "audit.html", picture=picture, zip=pair_up).render(
        title=title,
        verdict=verdict,
        leaks=leaks,
        tables=tables,
        pairs=pairs,
        left_out=pairs_in_all - len(pairs),
        notes=notes,
    )
