"""Bone suppression from pairs to a model with results, and from a model and film files to derived films."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chess_cxr.decode.film import decode_film
from chess_cxr.derive.film import write_new_file
from chess_cxr.encoders.embed import EncoderLike
from chess_cxr.encoders.encoder import Encoder, parse_device
from chess_cxr.encoders.load import load_encoder
from chess_cxr.encoders.published import compute_sha256
from chess_cxr.evaluation.film_means import FilmMean, summarise_films
from chess_cxr.evaluation.intervals import describe_intervals
from chess_cxr.files.whole import read_json
from chess_cxr.records import ChessError, Undecodable, UsageError
from chess_cxr.tasks.bones.fit import (
    LARGEST_SIDE,
    BonesConfig,
    BoneSuppressor,
    check_bones_config,
    score_pair,
    score_pairs,
    shrink_pair,
    train_bone_network,
)
from chess_cxr.tasks.bones.network import BoneNetwork, BoneNetworkShape
from chess_cxr.tasks.bones.objective import SMALLEST_SIDE
from chess_cxr.tasks.bones.pairs import FilmPair, read_pairs, split_pairs
from chess_cxr.tasks.bones.sheet import draw_suppression_sheet, render_suppression_sheet
from chess_cxr.tasks.bones.written import write_suppressed_film
from chess_cxr.tasks.model_folder import read_tensors, refuse_foreign_folder, write_model
from chess_cxr.training.run import OnStep, describe
from chess_cxr.views import resize_longest
from chess_cxr.workers.child import Limits
from chess_cxr.workers.pool import build_ingest_pool, call_in_child

FAINTEST = 1 / 512  # bone of less than half a grey level of 255 is none: such pixels stay as they are stored
BURNED_IN = "BONE-SUPPRESSED, DERIVED"
SHOWN = 8  # pairs on the sheet of a model
SHEET_SIDE = 1024  # a panel has fewer pixels


@dataclass(frozen=True)
class BonesResult:
    """What a bone network does on held-out pairs: means over films with 95 % intervals by patient.

    before: the same of the films as they are.  pairs: by split.  kinds: of the test pairs.
    """

    metrics: Mapping[str, FilmMean]
    before: Mapping[str, FilmMean]
    pairs: Mapping[str, int]
    kinds: tuple[str, ...]
    encoder: str
    perceptual: str
    seed: int
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready values; a number that does not exist is None."""
        described = asdict(self)
        described["metrics"], described["before"] = map(describe_intervals, (self.metrics, self.before))
        return described

    def as_text(self) -> str:
        """Return the result as lines of text."""
        lines = [f"{'':26s} suppressed               film as it is"]
        for name, mean in self.metrics.items():
            before = self.before.get(name)
            told = f"{before.value:.3f}" if before and math.isfinite(before.value) else ""
            lines.append(f"{name:26s} {mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]".ljust(52) + told)
        synthetic = " (SYNTHETIC)" if "phantom" in self.kinds else ""
        basis = f"{self.pairs['test']} test pairs: {', '.join(self.kinds)}{synthetic}"
        trained = f"trained on {self.pairs['train']} pairs"
        lines.append(f"({basis}; {trained}; 95 % bootstrap by patient, seed {self.seed})")
        return "\n".join([*lines, *self.notes])


def finetune_bones(
    encoder: EncoderLike,
    places: Sequence[str] | Sequence[FilmPair],
    out: Path | str,
    config: BonesConfig | None = None,
    val: float = 0.1,
    test: float = 0.2,
    limits: Limits | None = None,
    executor: Executor | None = None,
    on_stage: Callable[[str, int, int], None] | None = None,
    on_step: OnStep | None = None,
) -> BonesResult:
    """Train a bone network on pairs, write it to `out` and score it on pairs it has not seen.

    encoder: what the network's own encoder begins with, and by default the perceptual network too.  places: folders of
    pairs and "phantom:PATIENTS@SIZE#SEED", see `read_pairs`; or pairs themselves.  They are split by patient.
    The same call continues an interrupted run.  The folder then holds `model.safetensors`, `config.json`,
    `result.json`, `test_pairs.png` and `metrics.jsonl`.
    Raises `UsageError` where `out` holds something else, and for pairs that are none.
    """
    out, config, show = Path(out), config or BonesConfig(), on_stage or _show_nothing
    check_bones_config(config)
    refuse_foreign_folder(out)
    for place in places:
        if isinstance(place, str) and not place.startswith("phantom:") and _lies_in(out, Path(place)):
            raise UsageError(f"{out} lies inside the pairs in {place}; choose another --out")
    pairs = list[FilmPair]()
    for place in places:
        pairs += [place] if isinstance(place, FilmPair) else _read_place(place, config.size, limits, executor, show)
    [(doubled, count)] = Counter(pair.name for pair in pairs).most_common(1) or [("", 0)]
    if count > 1:
        raise UsageError(f"the pair {doubled} occurs twice; name each folder once, and give phantoms different seeds")
    split = split_pairs(pairs, val, test, config.seed)
    for part in ("train", "test"):
        if not split[part]:
            raise UsageError(f"{len(pairs)} pairs leave none for {part}; give more of them, or other --val and --test")
    loaded = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
    run = out / "run"
    network = train_bone_network(run, loaded, split["train"], split["val"], config, on_step)
    suppressor = BoneSuppressor(network, config.size, config.crop)
    scores = score_pairs(suppressor, split["test"], lambda done, total: show("test", done, total))
    groups = [pair.group for pair in split["test"]]
    before = [score_pair(pair, pair.film_HW) for pair in (shrink_pair(p, config.size) for p in split["test"])]
    result = BonesResult(
        metrics=summarise_films(scores, groups, config.seed),
        before=summarise_films(before, groups, config.seed),
        pairs={part: len(found) for part, found in split.items()},
        kinds=tuple(sorted({pair.kind for pair in split["test"]})),
        encoder=loaded.name,
        perceptual=config.perceptual,
        seed=config.seed,
        notes=tuple(f"{pair.name}: {note}" for pair in pairs for note in pair.notes),
    )
    _write_model(out, suppressor, config, result, split["test"])
    return result


def _lies_in(out: Path, folder: Path) -> bool:
    return Path(os.path.realpath(out)).is_relative_to(os.path.realpath(folder))


def _read_place(
    place: str, size: int, limits: Limits | None, executor: Executor | None, show: Callable[[str, int, int], None]
) -> list[FilmPair]:
    title, shrink = f"read {Path(place).name}", partial(shrink_pair, size=size)
    return read_pairs(place, limits, executor, lambda done, total: show(title, done, total), shrink)


def _show_nothing(_stage: str, _done: int, _total: int) -> None:
    pass


def _write_model(
    out: Path, suppressor: BoneSuppressor, config: BonesConfig, result: BonesResult, test: Sequence[FilmPair]
) -> None:
    """Write all of a model, with a sheet of test pairs."""
    described = {
        "task": "bones",
        "network": asdict(suppressor.network.shape),
        "size": suppressor.size,
        "tile": suppressor.tile,
        "encoder": result.encoder,
        "finetune": describe(config),
    }
    generated = {pair.kind == "phantom" for pair in test[:SHOWN]}
    mixed = len(generated) > 1
    rows = [
        (
            f"{pair.name} SYNTHETIC" if mixed and pair.kind == "phantom" else pair.name,
            pair.film_HW,
            suppressor.suppress(pair.film_HW),
            pair.bone_free_HW,
        )
        for pair in test[:SHOWN]
    ]
    draw_suppression_sheet(rows, out / "test_pairs.png", synthetic=None if mixed else True in generated)
    write_model(out, suppressor.network.state_dict(), described, result.as_json())


# ---------------------------------------------------------------- at work


def load_bone_suppressor(folder: Path | str, device: str = "cpu") -> BoneSuppressor:
    """Load what `finetune_bones` wrote.

    Raises UsageError where `folder` is no such model, ChessError where it is broken or not what it claims to be.
    """
    folder, target = Path(folder), parse_device(device)
    config = read_json(folder / "config.json")
    if config.get("task") != "bones":
        raise UsageError(f"{folder} is no bone model; make one with: chess-cxr finetune bones")
    shape, sides = config.get("network"), (config.get("size"), config.get("tile"))
    known = {item.name for item in fields(BoneNetworkShape)}
    size, tile = (side if type(side) is int else 0 for side in sides)
    whole = SMALLEST_SIDE <= tile <= size <= LARGEST_SIDE
    if not (isinstance(shape, Mapping) and set(shape) == known and whole):
        raise ChessError(f"{folder}: the network of a bone model has {', '.join(sorted(known))}, size and tile")
    if not all(type(shape[name]) in (int, float) for name in ("mean", "std")):
        raise ChessError(f"{folder}: mean and std of a bone model are numbers")
    if not all(type(shape[name]) is str for name in ("architecture", "decoder")):
        raise ChessError(f"{folder}: architecture and decoder of a bone model are names")
    try:
        with torch.device("meta"):  # without memory behind it, until the file is known to fit
            expected = BoneNetwork(BoneNetworkShape(**shape)).state_dict()
    except (UsageError, ValueError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ChessError(f"{folder}: {first[:200]}") from None
    tensors = read_tensors(folder / "model.safetensors", expected)
    network = BoneNetwork(BoneNetworkShape(**shape))
    network.load_state_dict(tensors)
    network.to(device=target, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return BoneSuppressor(network, size, tile, compute_sha256(folder / "model.safetensors"))


def _shrink_for_sheet(film_HW: np.ndarray) -> np.ndarray:
    return resize_longest(film_HW, SHEET_SIDE) if max(film_HW.shape) > SHEET_SIDE else film_HW


@dataclass(frozen=True)
class SuppressedFile:
    """What became of a film's file: the new file, or why there is none."""

    location: Path | str
    out: Path | None = None
    reason: str = ""


def suppress_files(
    model: BoneSuppressor,
    locations: Iterable[Path | str],
    out: Path,
    *,
    name: str = "",
    burn_in: bool = False,
    sheets: bool = False,
    limits: Limits | None = None,
) -> Generator[SuppressedFile, None, None]:
    """Write each film without its bones into `out`, and yield what became of it, in order.

    A DICOM film becomes a derived DICOM image, every other a PNG; see `write_derived_film`.  Where there is no bone,
    stored values stay as they are.  name: of the model, for the files; its hash by default.
    burn_in: write `BURNED_IN` into a corner.
    sheets: write NAME_sheet.png too, or NAME_sheet-2.png where that is taken: film, result and bone side by side.
    """
    limits, text, name = limits or Limits(), BURNED_IN if burn_in else "", name or model.sha256[:16]
    # a child knows one task: with one for each, none has to be started anew for every film
    with build_ingest_pool(1) as readers, build_ingest_pool(1) as writers:
        for location in locations:
            try:
                film = readers.submit(call_in_child, decode_film, limits, location).result()
                bone_HW = model.predict_bone(film.pixels)
                change_HW = np.where(bone_HW < FAINTEST, 0, -bone_HW).astype(np.float32)
                written = writers.submit(
                    call_in_child,
                    write_suppressed_film,
                    limits,
                    location,
                    change_HW,
                    out,
                    text,
                    name or model.sha256[:16],
                ).result()
                if sheets:
                    before_HW, after_HW = (_shrink_for_sheet(p) for p in (film.pixels, film.pixels + change_HW))
                    sheet = render_suppression_sheet([(written.name, before_HW, after_HW, None)], synthetic=None)
                    write_new_file(out, f"{written.stem}_sheet", ".png", sheet)
                yield SuppressedFile(location, written)
            except Undecodable as error:
                yield SuppressedFile(location, reason=str(error))
