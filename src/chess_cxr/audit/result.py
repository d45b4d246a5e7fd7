"""Results of an audit as tables, text and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

# From worst to mildest: across splits makes results wrong, across stores may, within a split only re-weights films.
LEAKS = ("across splits", "across stores", "within a split")
KINDS = ("same film", "same pixels", "near duplicate", "one patient?")
PAIR_COLUMNS = (
    *("leak", "kind", "first_store", "first_split", "first_uid", "second_store", "second_split", "second_uid"),
    *("similarity", "transform", "overlap", "points", "same_patient", "first", "second"),
)
DRAWN_COLUMNS = ("match", "first_number", "second_number")
PATIENT_COLUMNS = ("leak", "patient", "where", "films")
LIST_COLUMNS = ("leak", "training_list", "store", "split", "films", "matched_by")
ROWS_SHOWN = 20
TOLD = {
    "same film": ("pair with one uid", "pairs with one uid"),
    "same pixels": ("pair with the same pixels", "pairs with the same pixels"),
    "near duplicate": ("near-duplicate pair", "near-duplicate pairs"),
    "one patient?": ("hint at one patient under two ids", "hints at one patient under two ids"),
    "patients": ("patient", "patients"),
}


@dataclass(frozen=True)
class AuditResult:
    """Shared films and patients as tables, worst first; every id is a keyed hash.

    pairs: `PAIR_COLUMNS`; `first` and `second` are row numbers in their stores.  patients: `PATIENT_COLUMNS`.
    lists: `LIST_COLUMNS`.  films: number in each store.  notes: limits of the audit.  page: self-contained HTML.
    by_features: whether films near in an encoder's features were compared.
    """

    pairs: pd.DataFrame
    patients: pd.DataFrame
    lists: pd.DataFrame
    films: Mapping[str, int]
    thorough: bool
    notes: tuple[str, ...] = ()
    page: str = field(default="", repr=False)
    by_features: bool = False

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Count pairs by leak and kind, patients and listed films by leak; "one patient?" pairs are only hints."""
        found = {
            leak: {kind: int(((self.pairs["leak"] == leak) & (self.pairs["kind"] == kind)).sum()) for kind in KINDS}
            | {"patients": int((self.patients["leak"] == leak).sum())}
            for leak in LEAKS
        }
        return found | {"training lists": {"films": int(self.lists.loc[self.lists["leak"], "films"].sum())}}

    @property
    def leaks(self) -> int:
        """Number of pairs, patients and listed films that cross splits or stores."""
        crossing = [number for leak in LEAKS[:2] for kind, number in self.counts[leak].items() if kind != KINDS[3]]
        return sum(crossing) + self.counts["training lists"]["films"]

    def as_text(self) -> str:
        """Return the result in short lines, without any identifier."""
        films = ", ".join(f"{name} {count}" for name, count in self.films.items())
        near = "; films near in the features of an encoder compared" if self.by_features else ""
        lines = [f"films: {films}; turned and cropped copies {'' if self.thorough else 'NOT '}looked for{near}"]
        for leak in LEAKS:
            told = [_tell(kind, number) for kind, number in self.counts[leak].items() if number]
            lines.append(f"{leak}: {', '.join(told) or 'nothing'}")
        for row in self.lists.to_dict("records"):
            what = "LEAK" if row["leak"] else "as expected"
            where = f"{row['store']}, {row['split'] or 'no split'}"
            lines.append(f"{row['training_list']}: {row['films']} films of {where} by {row['matched_by']} ({what})")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def as_json(self) -> dict[str, Any]:
        """Return everything but the page as plain JSON values."""
        tables = {name: _to_records(getattr(self, name)) for name in ("pairs", "patients", "lists")}
        films = {"films": dict(self.films), "thorough": self.thorough, "notes": list(self.notes)}
        return {"leaks": self.leaks, "counts": self.counts, **films, **tables}


def get_row(table: pd.DataFrame, place: int) -> dict[str, Any]:
    """Return a row of a table by its position, with the types of its columns."""
    return {name: table[name].iat[place] for name in table.columns}


def _to_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(name): None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}
        for row in table.to_dict("records")
    ]


def _tell(kind: str, number: int) -> str:
    one, many = TOLD[kind]
    return f"{number} {one if number == 1 else many}"
