"""Tasks under torchrun: two ranks train one model as one process does; the first alone scores, writes and prints."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from chess_cxr.pretraining.runs import read_lines
from chess_cxr.records import ChessError
from chess_cxr.store import open_store
from chess_cxr.tasks.classify.config import FinetuneConfig
from chess_cxr.tasks.classify.losses import Task, build_balance
from chess_cxr.tasks.classify.model import load_classifier
from chess_cxr.tasks.classify.objective import Classify, HeadShape, LabelledBatch
from chess_cxr.tasks.classify.train import finetune_classifier
from chess_cxr.tasks.table import load_model
from chess_cxr.training.distributed import average_gradients, average_over_ranks, join_ranks, let_first_rank
from children import run_ranks
from command_line import run

COMMANDS = {
    "classify": "classify random:test_resnet@32 {store} --mode mlp --steps 10 --batch 8",
    "classify linear": "classify random:test_resnet@32 {store}",
    "bones": (
        "bones random:regnetx_002@64 phantom:8@64#2 --test 0.25 --size 64 --crop 64 --decoder tiny --perceptual none"
        " --steps 4 --batch 4 --workers 1"
    ),
    "nodules": (
        "nodules random:regnetx_002@64 phantom:12@96 --size 64 --film-size 96 --width 4 --latent 8 --perceptual none"
        " --steps 4 --batch 2"
    ),
}


def call_command(words: list[str]) -> tuple[int, str, str]:
    answer = run(*words)
    return answer.code, answer.out, answer.err


@pytest.mark.parametrize(
    "name", [pytest.param(it, marks=[pytest.mark.long] * (it in ("bones", "nodules"))) for it in COMMANDS]
)
def test_the_first_of_two_ranks_alone_prints_and_writes(name: str, small_store: Path, tmp_path: Path) -> None:
    words = COMMANDS[name].format(store=small_store).split()
    command = ["finetune", *words, "--out", str(tmp_path / "model"), "--json", "--device", "cpu"]
    (code, out, _), (other_code, other_out, other_err) = run_ranks(call_command, 2, command)
    assert (code, other_code, other_out, other_err) == (0, 0, "", "")
    assert json.loads(out)["metrics"] == json.loads((tmp_path / "model" / "result.json").read_text())["metrics"]
    load_model(tmp_path / "model", "cpu")
    assert not (tmp_path / "model" / "run").exists()


def finetune(store: Path, out: Path, config: FinetuneConfig) -> str:
    result = finetune_classifier("random:test_resnet@32", store, out, (), config, device="cpu")
    return json.dumps(result.as_json(), sort_keys=True)


@pytest.mark.parametrize("mode", ["attentive", "full"])
def test_two_ranks_train_the_classifier_that_one_trains(mode: str, small_store: Path, tmp_path: Path) -> None:
    """BatchNorm takes its statistics over both."""
    config = FinetuneConfig(mode, steps=8, batch=8, learning_rate=1e-3)
    [alone] = run_ranks(finetune, 1, small_store, tmp_path / "alone", config)
    first, second = run_ranks(finetune, 2, small_store, tmp_path / "shared", config)
    assert first == second and json.loads(first)["notes"] == json.loads(alone)["notes"]
    one, two = (read_lines(tmp_path / it / "metrics.jsonl") for it in ("alone", "shared"))
    for name in ("val/loss", "loss/classifier", "gradient_norm/classifier"):
        assert [line[name] for line in one if name in line] == pytest.approx(
            [line[name] for line in two if name in line], rel=1e-3
        )
    films = [film.astype(np.float32) / 255 for film in open_store(small_store).read_films(range(20))]
    one, two = (load_classifier(tmp_path / it).predict(films) for it in ("alone", "shared"))
    np.testing.assert_allclose(one, two, atol=1e-3)


def compute_gradient(task: Task, target_BL: list[list[float]]) -> tuple[float, list[float]]:
    """Compute loss and gradient of a batch over the ranks, each of which has its share."""
    rank, world = join_ranks()
    torch.manual_seed(0)
    target, film = torch.tensor(target_BL), torch.randn(len(target_BL), 4)
    classifier = Classify(None, HeadShape("linear", task, 4, 3), build_balance(target, task, "inverse"))
    share = slice(rank * len(film) // world, (rank + 1) * len(film) // world)
    [(_, loss)] = classifier.losses(LabelledBatch(film[share], target[share]))
    with average_gradients(classifier.parameters()):
        loss.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in classifier.parameters()])
    return float(average_over_ranks(loss)), gradient.tolist()


@pytest.mark.parametrize("task", ["multilabel", "multiclass", "ordinal"])
def test_a_loss_is_the_mean_over_what_all_ranks_know(task: Task) -> None:
    nothing, unknown = [math.nan] * 3, math.nan
    known = {
        "multilabel": [[1.0, unknown, unknown], nothing, [1.0, 0.0, 1.0], [0.0, 0.0, unknown]],
        "multiclass": [[1.0, 0, 0], nothing, [0, 1.0, 0], [0, 1.0, 0]],
        "ordinal": [[0, 0, 1.0], nothing, [0, 1.0, 0], [0, 1.0, 0]],
    }
    [(loss, gradient)] = run_ranks(compute_gradient, 1, task, known[task])
    for shared_loss, shared_gradient in run_ranks(compute_gradient, 2, task, known[task]):
        assert shared_loss == pytest.approx(loss, rel=1e-5) and shared_gradient == pytest.approx(gradient, abs=1e-6)


def test_a_batch_that_two_ranks_cannot_share_is_one_line_and_leaves_nothing(small_store: Path, tmp_path: Path) -> None:
    words = ["finetune", "classify", "random:test_resnet@32", str(small_store), "--mode", "full", "--batch", "9"]
    answers = run_ranks(call_command, 2, [*words, "--out", str(tmp_path / "model")])
    line = "chess-cxr: a batch of 9 films cannot be shared by 2 ranks; choose a multiple\n"
    assert answers == [(2, "", line)] * 2 and not list(tmp_path.iterdir())


def fail_on_first() -> str:
    rank, _ = join_ranks()

    def work() -> None:
        raise ChessError("the first rank fails")

    try:
        let_first_rank(work)
    except ChessError as error:
        return f"{rank}: {error}"
    return "nothing"


def test_the_others_hear_of_it_when_the_first_rank_fails() -> None:
    first, second = run_ranks(fail_on_first, 2)
    assert first == "0: the first rank fails"
    assert second.startswith("1: another rank has ended")
