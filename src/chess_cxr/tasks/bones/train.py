"""Train a bone network on pairs of films and test it on pairs of patients left out."""

from __future__ import annotations

import copy
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chess_cxr.encoders.embed import EncoderLike
from chess_cxr.encoders.encoder import Encoder, compute_state_sha256
from chess_cxr.encoders.load import load_encoder
from chess_cxr.evaluation.film_means import FilmMean, summarise_films
from chess_cxr.evaluation.image_metrics import compute_psnr
from chess_cxr.records import OnProgress, UsageError
from chess_cxr.sources.phantom.place import is_phantom
from chess_cxr.tasks.bones.config import BonesConfig
from chess_cxr.tasks.bones.familiar import describe_familiar
from chess_cxr.tasks.bones.model import BoneSuppressor, load_bone_suppressor
from chess_cxr.tasks.bones.network import BoneNetwork, begin_from, build_bone_network
from chess_cxr.tasks.bones.objective import PairBatch, SuppressBones
from chess_cxr.tasks.bones.pairs import FilmPair, find_spacing, read_pairs, split_pairs
from chess_cxr.tasks.bones.plan import check_bones_config, complete_earlier, go_on_as_begun, plan_bone_training
from chess_cxr.tasks.bones.score import find_spread_scale, score_added_nodules, score_pair, score_pairs, shrink_pair
from chess_cxr.tasks.bones.sheet import draw_suppression_sheet
from chess_cxr.tasks.bones.tiles import prepare_film
from chess_cxr.tasks.bones.views import PairViews, TrainingPair, draw_pair_batch
from chess_cxr.tasks.card import CARD_FILE, render_card
from chess_cxr.tasks.ct_nodules import CtNodule, read_ct_nodules
from chess_cxr.tasks.model_folder import (
    WEIGHTS_FILE,
    describe_files,
    pack_tensors,
    refuse_foreign_folder,
    write_model,
)
from chess_cxr.tasks.perceptual import PerceptualLoss, balance_stages, build_perceptual
from chess_cxr.tasks.result import TaskResult, list_kinds
from chess_cxr.tasks.run import read_task_batches
from chess_cxr.tasks.runtime import build_runtime_files
from chess_cxr.training.distributed import join_ranks, let_first_rank
from chess_cxr.training.run import OnStep, RunInputs, describe, hash_uids, train_in_folder
from chess_cxr.training.watch import RunWatch
from chess_cxr.views import resize_longest
from chess_cxr.workers.child import Limits
from chess_cxr.workers.pool import call_in_child

SHOWN = 8  # pairs on the sheet of a model
MOST_ADDED = 4  # nodules that are added to a square in training
LEAST_BONE = 1e-3  # mean grey of a pair's bone; less counts as much


@dataclass(frozen=True, kw_only=True)
class BonesResult(TaskResult):
    """Metrics of a bone network on the test pairs: means over films with 95 % intervals by patient.

    before: the same metrics of the unchanged films.  pairs: number by split.  kinds: kinds of the test pairs.
    notes: what was corrected, pair by pair, and then other notes.  corrected: number of pairs by correction.
    begun_from: SHA-256 of the model that training began with.
    """

    metrics: Mapping[str, FilmMean]
    before: Mapping[str, FilmMean]
    pairs: Mapping[str, int]
    kinds: tuple[str, ...]
    perceptual: str
    notes: tuple[str, ...] = ()
    corrected: Mapping[str, int] = field(default_factory=dict)
    begun_from: str = ""

    def list_metrics(self) -> list[str]:
        """Return a heading, and a line for each metric, with that of the unchanged film."""
        lines = [f"{'':26s} suppressed               film as it is"]
        for name, line in zip(self.metrics, super().list_metrics(), strict=True):
            before = self.before.get(name)
            lines.append(line.ljust(52) + (f"{before.value:.3f}" if before and math.isfinite(before.value) else ""))
        return lines

    def describe_basis(self) -> str:
        """Describe the test and the training pairs."""
        test = f"{self.pairs['test']} test pairs: {list_kinds(self.kinds)}"
        return f"{test}; trained on {self.pairs['train']} pairs"

    def list_notes(self) -> Sequence[str]:
        """Return a line with the number of pairs that were corrected, and the notes on other things."""
        counts = "; ".join(
            f"{count} of {sum(self.pairs.values())} pairs: {what}" for what, count in self.corrected.items()
        )
        return [*([f"{counts} (each in result.json)"] if counts else []), *self.notes[sum(self.corrected.values()) :]]


def finetune_bones(
    encoder: EncoderLike,
    places: Sequence[str] | Sequence[FilmPair],
    out: Path | str,
    config: BonesConfig | None = None,
    val: float = 0.1,
    test: float = 0.2,
    limits: Limits | None = None,
    executor: Executor | None = None,
    on_stage: OnProgress | None = None,
    on_step: OnStep | None = None,
    device: str = "auto",
    nodules: Path | None = None,
) -> BonesResult:
    """Train a bone network on pairs, write it to `out` and score it on pairs that it has not seen.

    encoder: first weights of the network's encoder, unless it begins from a model, and, by default, the perceptual
    network.  places: folders of pairs and "phantom:PATIENTS@SIZE#SEED", see `read_pairs`; or pairs.  They are split by
    patient.
    nodules: folder of projected CT nodules (`read_ct_nodules`), bodies of half of the nodules that training adds.
    The same call continues an interrupted run.  The folder holds `model.safetensors`, `config.json`, `result.json`,
    `README.md` (the card), `test_pairs.png` and `metrics.jsonl`.
    Raises `UsageError` if `out` holds something else, or files are not a pair.
    """
    out, config, show = Path(out), config or BonesConfig(), on_stage or (lambda *_: None)
    check_bones_config(config)
    refuse_foreign_folder(out)
    begun = load_bone_suppressor(config.begin_from) if config.begin_from else None
    for place in places:
        if isinstance(place, str) and not is_phantom(place) and _lies_in(out, Path(place)):
            raise UsageError(f"{out} lies inside the pairs in {place}; choose another --out")
    pairs = _read_places(places, config.size, limits, executor, show)
    split = split_pairs(pairs, val, test, config.seed)
    for part in ("train", "test"):
        if not split[part]:
            raise UsageError(f"{len(pairs)} pairs leave none for {part}; give more of them, or other --val and --test")
    ct_nodules = call_in_child(read_ct_nodules, limits or Limits(), nodules) if nodules else []
    config = go_on_as_begun(out / "run", config)
    join_ranks(device)
    loaded = encoder if isinstance(encoder, Encoder) else load_encoder(encoder, device=device)
    run = out / "run"
    network = train_bone_network(
        run, loaded, split["train"], split["val"], config, on_step, device=device, ct_nodules=ct_nodules, begun=begun
    )

    def finish() -> BonesResult:
        suppressor = _complete_model(network, config, split["train"], split["val"])
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
            corrected=dict(Counter(note.partition(" (")[0] for pair in pairs for note in pair.notes)),
            begun_from=begun.sha256 if begun else "",
        )
        return _write_model(out, suppressor, config, result, split["test"])

    return let_first_rank(finish)


def _lies_in(out: Path, folder: Path) -> bool:
    return Path(os.path.realpath(out)).is_relative_to(os.path.realpath(folder))


def _read_places(
    places: Sequence[str] | Sequence[FilmPair],
    size: int,
    limits: Limits | None,
    executor: Executor | None,
    show: OnProgress,
) -> list[FilmPair]:
    pairs, shrink = list[FilmPair](), partial(shrink_pair, size=size)
    for place in places:
        if isinstance(place, FilmPair):
            pairs.append(place)
            continue
        pairs += read_pairs(place, limits, executor, partial(show, f"read {Path(place).name}"), shrink)
    [(doubled, count)] = Counter(pair.name for pair in pairs).most_common(1) or [("", 0)]
    if count > 1:
        raise UsageError(f"the pair {doubled} occurs twice; name each folder once, and give phantoms different seeds")
    return pairs


def _complete_model(
    network: BoneNetwork, config: BonesConfig, train: Sequence[FilmPair], val: Sequence[FilmPair]
) -> BoneSuppressor:
    """Calibrate the spread on val pairs, real ones if there are any, and describe the training films."""
    familiar = describe_familiar([pair.film_HW for pair in train])
    spread = network.shape.spread
    suppressor = BoneSuppressor(network, config.size, config.crop, familiar=familiar, spread=spread)
    known = [pair for pair in val if pair.kind != "phantom"] or val
    scale = find_spread_scale(suppressor, known) if spread and known else 1.0
    return replace(suppressor, spread_scale=scale, caution=config.caution if spread else 0.0)


def _write_model(
    out: Path, suppressor: BoneSuppressor, config: BonesConfig, result: BonesResult, test: Sequence[FilmPair]
) -> BonesResult:
    """Write the model, with a sheet of test pairs; return its result, with a note if there is no `model.onnx`."""
    assert suppressor.network is not None
    network = copy.deepcopy(suppressor.network).cpu().eval()
    described: dict[str, Any] = {
        "task": "bones",
        "network": asdict(network.shape),
        "size": suppressor.size,
        "tile": suppressor.tile,
        "spread_scale": suppressor.spread_scale,
        "caution": suppressor.caution,
        "familiar": suppressor.familiar.as_json() if suppressor.familiar else None,
        "encoder": result.encoder,
        "finetune": describe(config) | {"begin_from": Path(config.begin_from).name},
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
    files, missing = build_runtime_files(network, prepare_film, any_size=True)
    if missing:
        result = replace(result, notes=(*result.notes, missing))
    tensors = network.state_dict()
    described["files"] = describe_files({WEIGHTS_FILE: pack_tensors(tensors), **files})
    files[CARD_FILE] = render_card(described, result.as_json()).encode()
    write_model(out, tensors, described, result.as_json(), files=files)
    return result


def train_bone_network(
    folder: Path,
    encoder: Encoder,
    train: Sequence[FilmPair],
    val: Sequence[FilmPair],
    config: BonesConfig,
    on_step: OnStep | None = None,
    say: Callable[[str], None] | None = None,
    device: str = "auto",
    ct_nodules: Sequence[CtNodule] = (),
    begun: BoneSuppressor | None = None,
) -> BoneNetwork:
    """Train a bone network in `folder`, or continue there; return it on `device`, in evaluation mode.

    train, val: pairs of any size; val is scored ten times, and chooses nothing.  ct_nodules: bodies of half of the
    nodules that are added.  begun: from whose weights to begin; it counts kept nodules in full from the first step.
    A run that was begun before there were added nodules and a spread goes on without them.
    Raises UsageError if `folder` holds a run of another configuration or on other pairs, or `begun` has another shape.
    """
    check_bones_config(config)
    if not train:
        raise UsageError("bone suppression needs at least one pair to learn from")
    config = go_on_as_begun(folder, config)
    torch.manual_seed(config.seed)
    pairs = [_prepare_pair(pair, config.size) for pair in train]
    network = _build_network(encoder, pairs, config, begun)
    if config.head == "linear":
        pairs = weigh_pairs(pairs)
    perceptual, about = build_perceptual(config.perceptual, encoder, config.compare, config.seed)
    if perceptual and config.balance:
        perceptual.stages = _balance(perceptual, pairs, config)
    method = SuppressBones(network, perceptual, config.perceptual_weight, config.keep_nodules)
    training = plan_bone_training(config)
    views = PairViews(
        config.crop,
        strengthen_bone=config.strengthen_bone,
        nodules=MOST_ADDED if config.keep_nodules else 0,
        ct_nodules=ct_nodules,
    )

    def draw(chosen: list[TrainingPair], positions: list[int]) -> PairBatch:
        progress = 1.0 if begun else positions[0] / (config.batch * config.steps)
        return draw_pair_batch(chosen, positions, config.seed, views, progress)

    def measure(_step: int) -> dict[str, float]:
        found = [_score_briefly(network, pair, config) for pair in val]
        network.train()
        return {f"val/{name}": float(np.nanmean([one[name] for one in found])) for name in found[0]} if found else {}

    groups: list[dict[str, Any]] = [
        {"params": list(network.encoder.parameters()), "rate_scale": config.encoder_rate},
        {"params": [p for part in (network.decoder, network.head, network.spread_head) for p in part.parameters()]},
    ]
    described: dict[str, Any] = {
        "task": "bones",
        "bones": describe(config),
        "encoder_sha256": compute_state_sha256(encoder.module),
        "perceptual": about,
        "perceptual_sha256": compute_state_sha256(perceptual.network) if perceptual else "",
        **({"ct_nodules": hash_uids([nodule.name for nodule in ct_nodules])} if ct_nodules else {}),
        "pairs": {"train": len(train), "val": len(val), "names_sha256": hash_uids([p.name for p in train])},
    }
    del described["bones"]["begin_from"]  # its hash tells more
    described |= {"begun_from": begun.sha256} if begun else {}
    inputs = RunInputs(
        [p.name for p in train],
        lambda first_step, rank: read_task_batches(pairs, draw, training, first_step, rank),
        lambda log, rank: RunWatch(log, training, measure),
        {"suppression": groups},
        complete_earlier,
    )
    train_in_folder(folder, method, training, inputs, described, on_step, say=say, device=device)
    return network.eval()


def _build_network(
    encoder: Encoder, pairs: Sequence[TrainingPair], config: BonesConfig, begun: BoneSuppressor | None
) -> BoneNetwork:
    grey = measure_bone_grey(pairs) if config.head == "linear" else 0.0
    network = build_bone_network(encoder, config.decoder, config.seed, config.spread, grey)
    if begun:
        assert begun.network is not None
        begin_from(network, begun.network)
    return network


def _prepare_pair(pair: FilmPair, size: int) -> TrainingPair:
    film_HW, bone_free_HW = (resize_longest(p, size) for p in (pair.film_HW, pair.bone_free_HW))
    return TrainingPair(film_HW, bone_free_HW, find_spacing(pair) * max(pair.film_HW.shape) / max(film_HW.shape))


def measure_bone_grey(pairs: Sequence[TrainingPair]) -> float:
    """Return the standard deviation of the bone of a film, a mean over pairs: the grey that a score of 1 stands for."""
    return float(f"{np.mean([(pair.film_HW - pair.bone_free_HW).std() for pair in pairs]):.3g}")


def weigh_pairs(pairs: Sequence[TrainingPair]) -> list[TrainingPair]:
    """Return pairs whose weight is inverse to the mean grey of their bone, so that faint bone counts as much as other.

    To leave all bone costs as much in each pair: that of real films adds 0.004 of grey, that of phantoms 0.03.
    """
    bone_P = np.array([max(float(np.abs(p.film_HW - p.bone_free_HW).mean()), LEAST_BONE) for p in pairs])
    return [replace(pair, weight=float(bone_P.mean() / bone)) for pair, bone in zip(pairs, bone_P, strict=True)]


def _balance(perceptual: PerceptualLoss, pairs: Sequence[TrainingPair], config: BonesConfig) -> tuple[float, ...]:
    some = list(pairs[: config.batch])
    targets = [replace(pair, film_HW=pair.bone_free_HW) for pair in some]
    return balance_stages(
        perceptual, draw_pair_batch(targets, range(len(some)), config.seed, PairViews(config.crop)).film_B1HW
    )


def _score_briefly(network: BoneNetwork, pair: FilmPair, config: BonesConfig) -> dict[str, float]:
    pair = shrink_pair(pair, config.size)
    suppressor = BoneSuppressor(network, config.size, config.crop)
    psnr = compute_psnr(np.clip(suppressor.suppress(pair.film_HW), 0, 1), pair.bone_free_HW)
    return {"psnr": psnr, **(score_added_nodules(suppressor, pair) if config.keep_nodules else {})}
