"""Tasks whose results are pictures, bone suppression and nodule generation, as cells of a benchmark.

Each encoder is trained and tested by the task itself (`tasks.bones`, `tasks.nodules`), on the same films and split; the
scores of single test films are kept, so that encoders are compared on the same resamples of the same patients.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chess_cxr.benchmarking.cache import CellFolder, compute_code_version, compute_key
from chess_cxr.benchmarking.cells import Computed, load_once
from chess_cxr.benchmarking.encoders import EncoderFacts
from chess_cxr.benchmarking.floors import NAMES
from chess_cxr.benchmarking.predictions import Failure
from chess_cxr.benchmarking.stages import Ledger
from chess_cxr.benchmarking.suite import EncoderSource, PictureKind, PictureSpec, Suite
from chess_cxr.evaluation.film_means import build_mean_statistic
from chess_cxr.evaluation.holm import correct_holm
from chess_cxr.evaluation.intervals import DrawReplicates, average_draws, replicate_draws, subtract_draws
from chess_cxr.records import ChessError, UsageError
from chess_cxr.sources.phantom.place import is_phantom, parse_phantom

PICTURE_CODE: Mapping[PictureKind, tuple[str, ...]] = {
    "bones": ("tasks.bones.train", "tasks.bones.model", "tasks.bones.score"),
    "nodules": ("tasks.nodules.train", "tasks.nodules.model", "tasks.nodules.score"),
}
RUNS = "runs"  # folder of trainings under way, beside the cells
Scores = list[dict[str, float]]


@dataclass(frozen=True)
class Tested:
    """A trained model's test films: scores and patient of each, a sheet of pictures (PNG), and notes."""

    scores: Scores
    groups: list[str]
    sheet: bytes
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PictureCell:
    """One encoder, trained and tested: score_FM of the test films by the metrics that the facts name.

    places, content: where the films stand, and their hash.  options: fields of the task's configuration.
    Killed, it goes on from its last checkpoint.
    """

    source: EncoderSource
    identity: str
    kind: PictureKind
    places: tuple[str, ...]
    content: str
    val: float
    test: float
    options: tuple[tuple[str, Any], ...]
    seed: int
    device: str = "cpu"

    @property
    def size(self) -> int:
        """One training."""
        return 1

    @property
    def key(self) -> str:
        """The hash of encoder, films, settings and code."""
        described = {name: value for name, value in vars(self).items() if name not in ("source", "places", "device")}
        described |= {"device": self.device.partition(":")[0], "options": dict(self.options)}
        return compute_key({"cell": "picture", "code": compute_code_version(*PICTURE_CODE[self.kind])} | described)

    def compute(self, cells: CellFolder) -> Computed:
        """Train in a folder beside the cells, score every test film, and take the folder away."""
        encoder = load_once(self.source, self.identity, self.device)
        if isinstance(encoder, str | Path):
            raise ChessError(f"{self.source.name} has no network")
        out = cells.root / RUNS / self.key
        out.parent.mkdir(exist_ok=True)
        tested = (score_bones if self.kind == "bones" else score_nodules)(self, encoder, out)
        names = list(dict.fromkeys(name for film in tested.scores for name in film))
        score_FM = np.array([[film.get(name, math.nan) for name in names] for film in tested.scores], np.float64)
        group_F = np.unique(tested.groups, return_inverse=True)[1].astype(np.int64)
        shutil.rmtree(out, ignore_errors=True)
        sheet = np.frombuffer(tested.sheet, np.uint8)
        return {"score_FM": score_FM, "group_F": group_F, "sheet": sheet}, {"names": names, "notes": list(tested.notes)}


def score_bones(cell: PictureCell, encoder: Any, out: Path) -> Tested:
    """Train a bone network and score its test pairs, as `tasks.bones` does."""
    from chess_cxr.tasks.bones.config import BonesConfig
    from chess_cxr.tasks.bones.model import load_bone_suppressor
    from chess_cxr.tasks.bones.pairs import read_pairs, split_pairs
    from chess_cxr.tasks.bones.score import score_pairs
    from chess_cxr.tasks.bones.train import finetune_bones

    config = _build_config(BonesConfig, cell)
    pairs = [pair for place in cell.places for pair in read_pairs(place)]
    _train(finetune_bones, encoder, pairs, out, config, cell)
    held_out = split_pairs(pairs, cell.val, cell.test, cell.seed)["test"]
    scores = score_pairs(load_bone_suppressor(out, cell.device), held_out)
    return Tested(scores, [pair.group for pair in held_out], (out / "test_pairs.png").read_bytes(), ())


def score_nodules(cell: PictureCell, encoder: Any, out: Path) -> Tested:
    """Train a nodule generator, and score a nodule made in the place of each real one of its test films."""
    from chess_cxr.tasks.nodules.config import NodulesConfig
    from chess_cxr.tasks.nodules.films import list_sources, read_each, read_source, split_nodule_films
    from chess_cxr.tasks.nodules.model import load_nodule_generator
    from chess_cxr.tasks.nodules.plan import plan_windows
    from chess_cxr.tasks.nodules.train import finetune_nodules, score_made_film
    from chess_cxr.tasks.nodules.windows import take_example

    config = _build_config(NodulesConfig, cell)
    result = _train(finetune_nodules, encoder, list(cell.places), out, config, cell)
    generator, plan = load_nodule_generator(out, cell.device), plan_windows(config)
    examples = [one for place in cell.places for one in read_each(list_sources(place), take_example, plan)]
    held_out = [one for one in split_nodule_films(examples, cell.seed, cell.val, cell.test)["test"] if one.can_make]
    again = read_each([one.source for one in held_out], read_source, in_flight=1)
    scores = [
        score_made_film(generator, film, generator.paint(film.film_HW, film.mask_HW, number, film.lung_HW))
        for number, film in enumerate(again)
    ]
    notes = tuple(result.list_notes()) if result else ()
    return Tested(scores, [one.group for one in held_out], (out / "test_films.png").read_bytes(), notes)


def compare_pictures(suite: Suite, facts: Mapping[str, EncoderFacts], ledger: Ledger) -> dict[str, Any]:
    """Train and test every encoder on every task of pictures.

    Returns the tables `pictures` and `picture_differences`, and `sheets`: PNG by task and encoder.
    """
    planned = dict[tuple[str, str], PictureCell]()
    for name, spec in suite.pictures.items():
        content = hash_places(spec.places)
        for encoder, known in facts.items():
            if spec.encoders and encoder not in spec.encoders:
                continue
            if encoder not in NAMES.values() and not known.source.spec.startswith("pixels:"):
                planned[name, encoder] = PictureCell(
                    known.source, known.identity, spec.kind, spec.places, content, spec.val, spec.test,
                    tuple(sorted(spec.options.items())), suite.seed, suite.device,
                )  # fmt: skip
    failed = ledger.runner.run(list(planned.values()), ledger.folder, ledger.watch("pictures"))
    replicates = dict[tuple[str, str], dict[str, DrawReplicates]]()
    rows, sheets = list[dict[str, Any]](), dict[tuple[str, str], bytes]()
    for (name, encoder), cell in planned.items():
        if cell.key in failed:
            ledger.failures.append(Failure(name, encoder, suite.pictures[name].kind, "", -1, failed[cell.key]))
            continue
        arrays, told = ledger.folder.read_arrays(cell.key), ledger.folder.read_facts(cell.key)
        parts = _resample(arrays, told["names"], suite)
        replicates[name, encoder], sheets[name, encoder] = parts, arrays["sheet"].tobytes()
        rows += [
            _describe(name, encoder, suite, metric, arrays) | _say(average_draws(part, suite.seed, suite.level))
            for metric, part in parts.items()
        ]
    gaps = _build_differences(suite, replicates)
    return {"pictures": pd.DataFrame(rows), "picture_differences": gaps, "sheets": sheets}


def check_pictures(suite: Suite) -> None:
    """Raise UsageError, naming the task, for options that a task does not have, and folders that are not there."""
    from chess_cxr.tasks.bones.config import BonesConfig
    from chess_cxr.tasks.nodules.config import NodulesConfig

    for name, spec in suite.pictures.items():
        fields = vars(BonesConfig() if spec.kind == "bones" else NodulesConfig())
        if unknown := [option for option in spec.options if option not in fields or option in ("seed", "begin_from")]:
            raise UsageError(f"tasks.{name}.options: there is no {unknown[0]!r}")
        for place in spec.places:
            if is_phantom(place):
                parse_phantom(place)
            elif not Path(place).is_dir():
                raise UsageError(f"tasks.{name}.places: there is no folder {place}")


def hash_places(places: Sequence[str]) -> str:
    """Return the SHA-256 of all files in these folders, by name and content; of generated films, of their name."""
    digest = hashlib.sha256()
    for place in places:
        lines = [place] if is_phantom(place) else list(_hash_files(place))
        digest.update("\n".join(lines).encode())
    return digest.hexdigest()


@cache
def _hash_files(place: str) -> tuple[str, ...]:
    def walk() -> Iterator[str]:
        for path in sorted(Path(place).rglob("*")):
            if path.is_file():
                with path.open("rb") as stream:
                    yield f"{path.relative_to(place)} {hashlib.file_digest(stream, 'sha256').hexdigest()}"

    return tuple(walk())


def _build_config(kind: Any, cell: PictureCell) -> Any:
    try:
        return kind(**dict(cell.options), seed=cell.seed)
    except TypeError as error:
        raise ChessError(f"its options do not fit: {error}") from None


def _train(finetune: Any, encoder: Any, places: Sequence[Any], out: Path, config: Any, cell: PictureCell) -> Any:
    """Train, or go on; None where an earlier try has left the whole model and only its cell is missing."""
    if (out / "result.json").is_file() and (out / "config.json").is_file():
        return None
    return finetune(encoder, places, out, config, val=cell.val, test=cell.test, device=cell.device)


def _resample(arrays: Mapping[str, NDArray[Any]], names: Sequence[str], suite: Suite) -> dict[str, DrawReplicates]:
    scores = [dict(zip(names, row, strict=True)) for row in arrays["score_FM"].tolist()]
    return replicate_draws(arrays["group_F"], [build_mean_statistic(scores)], suite.replicates, suite.seed)


def _describe(
    name: str, encoder: str, suite: Suite, metric: str, arrays: Mapping[str, NDArray[Any]]
) -> dict[str, object]:
    spec: PictureSpec = suite.pictures[name]
    films, patients = len(arrays["group_F"]), len(np.unique(arrays["group_F"]))
    return {"task": name, "kind": spec.kind, "encoder": encoder, "metric": metric} | {
        "n_test": films,
        "n_test_patients": patients,
    }


def _say(interval: Any) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _build_differences(
    suite: Suite, replicates: Mapping[tuple[str, str], Mapping[str, DrawReplicates]]
) -> pd.DataFrame:
    """Return encoder minus reference, on the same resamples; p_holm over the encoders of one task and metric."""
    rows = []
    for (name, encoder), parts in replicates.items():
        theirs = replicates.get((name, suite.reference), {})
        for metric, part in parts.items() if encoder != suite.reference else ():
            if metric in theirs and part.value_DR.shape == theirs[metric].value_DR.shape:
                gap = subtract_draws(part, theirs[metric], suite.seed, suite.level)
                about = {"task": name, "encoder": encoder, "reference": suite.reference, "metric": metric}
                rows.append(about | _say(gap) | {"p": gap.p})
    table = pd.DataFrame(rows)
    if not table.empty:
        family = table.groupby(["task", "metric"], sort=False)["p"]
        table["p_holm"] = family.transform(lambda p: correct_holm(p.to_numpy()))
    return table
