"""Select films of a store that differ: without near duplicates, spread over the features, balanced by a column."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from chess_cxr.files.whole import write_atomically
from chess_cxr.records import OnProgress, UsageError
from chess_cxr.search.archive import Archive

By = Literal["kmeans++", "core-set", "random"]
ROWS_AT_ONCE = 256
MOST_ROUNDS = 4096  # of drawing; larger selections draw several films a round


def select_films(
    archive: Archive,
    count: int,
    rows: np.ndarray,
    by: By = "kmeans++",
    balance: str = "",
    duplicates: float = 0.98,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> np.ndarray:
    """Return the rows of `count` films out of some rows of a store, in table order.

    by: "kmeans++" draws films with the square of their distance to those chosen (Arthur and Vassilvitskii 2007),
    "core-set" takes the farthest one (Sener and Savarese 2018), which favours outliers, "random" draws evenly.
    balance: a column of the store of whose values as many films each are chosen, as far as there are; unknown is one.
    duplicates: cosine from which the later of two films is left out, as are films with equal pixels.
    Raises `UsageError` if fewer films are left than asked for.
    """
    show = on_progress or (lambda *_: None)
    rng = np.random.default_rng(seed)
    kept = rows[~_find_duplicates(archive, rows, duplicates, show)]
    if not 0 < count <= len(kept):
        raise UsageError(
            f"{len(kept)} of the {len(rows)} films are left without near duplicates; --films {count} cannot be selected"
        )
    groups = _group(archive.store.films, kept, balance)
    chosen: list[np.ndarray] = []
    for group, quota in zip(groups, share_quota([len(group) for group in groups], count), strict=True):
        if by == "random":
            chosen.append(rng.choice(group, quota, replace=False))
        elif quota:
            chosen.append(group[_spread(archive.unit_ND[group], quota, by, rng)])
        show("select films", sum(map(len, chosen)), count)
    return np.sort(np.concatenate(chosen))


def write_selection(uids: list[str], out: Path) -> Path:
    """Write hashed uids as a CSV file that `pretrain` and `ingest` take; return its path."""
    write_atomically(out, "\n".join(["uid", *uids, ""]).encode())
    return out


def share_quota(sizes: list[int], count: int) -> list[int]:
    """Share `count` evenly among groups, none above its size; the first groups take what remains."""
    quota = [0] * len(sizes)
    while count:
        open_groups = [number for number, size in enumerate(sizes) if quota[number] < size]
        each, more = divmod(count, len(open_groups))
        for place, number in enumerate(open_groups):
            taken = min(each + (place < more), sizes[number] - quota[number])
            quota[number] += taken
            count -= taken
    return quota


def _group(films: pd.DataFrame, rows: np.ndarray, column: str) -> list[np.ndarray]:
    if not column:
        return [rows]
    if column not in films.columns:
        raise UsageError(f"--balance: there is no column {column}; there are {', '.join(map(str, films.columns))}")
    code = pd.factorize(films[column].iloc[rows], sort=True)[0]
    groups = [rows[code == value] for value in np.unique(code)]
    if len(groups) > 1000:
        raise UsageError(f"--balance: {column} has {len(groups)} values; balance by a column with few")
    return groups


def _find_duplicates(archive: Archive, rows: np.ndarray, cosine: float, show: OnProgress) -> np.ndarray:
    """Return which films have a near duplicate among earlier films that are kept."""
    pixel_hash = archive.store.read_hashes()["pixel_hash"].iloc[rows].fillna("")
    doubled = (pixel_hash.duplicated() & (pixel_hash != "")).to_numpy().copy()
    unit_ND = archive.unit_ND[rows]
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = unit_ND[start : start + ROWS_AT_ONCE]
        later, earlier = np.nonzero(part @ unit_ND[: start + len(part)].T >= cosine)
        later += start
        for film in np.unique(later[earlier < later]):
            doubled[film] |= not doubled[earlier[(later == film) & (earlier < film)]].all()
        show("compare films", start + len(part), len(rows))
    return doubled


def _spread(unit_ND: np.ndarray, count: int, by: By, rng: np.random.Generator) -> np.ndarray:
    """Choose films far from those chosen before; returns their places."""
    films, at_once = len(unit_ND), -(-count // MOST_ROUNDS)
    chosen = [int(rng.integers(films))]
    gap_N = np.full(films, np.inf)
    fresh = chosen[:]
    while len(chosen) < count:
        cosine_N = (unit_ND @ unit_ND[fresh].T).max(axis=1)
        gap_N = np.minimum(gap_N, np.maximum(2 - 2 * cosine_N.astype(np.float64), 1e-12))  # squared distance
        gap_N[fresh] = 0
        wanted = min(at_once, count - len(chosen))
        if by == "core-set":
            fresh = np.argsort(-gap_N, kind="stable")[:wanted].tolist()
        else:
            fresh = rng.choice(films, wanted, replace=False, p=gap_N / gap_N.sum()).tolist()
        chosen += fresh
    return np.array(chosen)
