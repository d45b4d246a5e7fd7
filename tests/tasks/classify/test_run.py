"""Training by steps in a folder: killed and continued, watched, tracked, in half precision, and without a folder."""

import json
import os
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from chess_cxr.encoders.encoder import Encoder
from chess_cxr.pretraining.runs import read_lines
from chess_cxr.records import ChessError, UsageError
from chess_cxr.store import Store, open_store
from chess_cxr.tasks.classify import films
from chess_cxr.tasks.classify.config import FinetuneConfig
from chess_cxr.tasks.classify.labels import select_labelled
from chess_cxr.tasks.classify.model import load_classifier
from chess_cxr.tasks.classify.train import finetune_classifier, fit_classifier, train_classifier
from chess_cxr.training.config import TrackingConfig
from children import die_in_child, run_ranks
from states import list_changed

HEAD = FinetuneConfig("mlp", steps=80, batch=16, learning_rate=1e-2, checkpoint_every=5)
CONFIGS = {
    "mlp": HEAD,
    "attentive": replace(HEAD, mode="attentive"),
    "full": FinetuneConfig("full", steps=60, batch=8, learning_rate=5e-2, patience=2, checkpoint_every=2),
}
LONG = [pytest.param(mode, marks=pytest.mark.long) for mode in ("attentive", "full")]
MOMENTS = {"mlp": (12, 23, 32), "attentive": (20, 33, 40), "full": (3, 8, 9)}  # best, kill and end
SHORT = replace(CONFIGS["full"], steps=12, learning_rate=2e-3)


def finetune(
    store: Path, out: Path, config: FinetuneConfig, kill_at: tuple[str, int] = ("", 0), trackers: Sequence[str] = ()
) -> list[tuple[str, int]]:
    """Train in a process that dies at a moment of its progress; return all moments that it came to."""
    films.FILMS_A_FILE = 64
    moments = []

    def show(stage: str, done: int, _total: int) -> None:
        moments.append((stage, done))
        if (stage, done) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    tracking = TrackingConfig(tuple(trackers))  # type: ignore[arg-type]
    finetune_classifier("random:test_resnet@32", store, out, (), config, show, "cpu", tracking)
    return moments


def read_looks(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["val/loss"]) for line in read_lines(folder / "metrics.jsonl") if "val/loss" in line]


def compare_models(*folders: Path) -> list[str]:
    return list_changed(*(load_file(folder / "model.safetensors") for folder in folders))


@pytest.mark.parametrize("mode", ["mlp", *LONG])
def test_a_killed_training_goes_on_to_the_same_end_and_the_same_weights(
    mode: str, small_store: Path, tmp_path: Path
) -> None:
    """The kill comes after the best look and before patience is at its end: a checkpoint must hold both."""
    whole, cut, config = tmp_path / "whole", tmp_path / "cut", CONFIGS[mode]
    best, kill, end = MOMENTS[mode]
    [moments] = run_ranks(finetune, 1, small_store, whole, config)
    assert moments[-1] == ("finetune", end)
    assert json.loads((whole / "result.json").read_text())["notes"][0].startswith(f"weights of step {best} of ")
    assert die_in_child(finetune, small_store, cut, config, ("finetune", kill)) == -signal.SIGKILL
    assert {path.name for path in cut.iterdir()} == {"run"}
    [moments] = run_ranks(finetune, 1, small_store, cut, config)
    first = (kill - 1) // config.checkpoint_every * config.checkpoint_every + 1
    assert moments == [("finetune", step) for step in range(first, end + 1)]
    assert compare_models(whole, cut) == []
    assert (whole / "result.json").read_text() == (cut / "result.json").read_text()
    assert read_looks(whole) == read_looks(cut)
    assert {path.name for path in cut.iterdir()} == {
        "README.md", "config.json", "golden.safetensors", "metrics.jsonl", "model.onnx", "model.safetensors",
        "result.json",
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["mlp", LONG[0]])
def test_features_that_a_killed_command_has_computed_are_found_again(
    mode: str, small_store: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    config = replace(CONFIGS[mode], steps=4)
    [moments] = run_ranks(finetune, 1, small_store, whole, config)
    assert moments[:2] == [("embed", 64), ("embed", 90)]
    assert die_in_child(finetune, small_store, cut, config, ("embed", 90)) == -signal.SIGKILL
    assert {path.name for path in (cut / "run" / "features").iterdir()} == {"000000000.npy", ".000000064.npy.partial"}
    [moments] = run_ranks(finetune, 1, small_store, cut, config)
    assert [moment for moment in moments if moment[0] == "embed"] == [("embed", 90)]
    assert compare_models(whole, cut) == []


def test_a_training_that_ended_early_is_not_taken_up_again(
    tiny_encoder: Encoder, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a kill while the test films are scored."""
    chosen, steps = select_labelled(store), list[int]()

    def show(stage: str, done: int, _total: int) -> None:
        steps.extend([done] * (stage == "finetune"))

    first, again = (
        train_classifier(tmp_path / "run", tiny_encoder, store, chosen, HEAD, show, device="cpu").score()
        for _ in range(2)
    )
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] < 80
    assert f"run is finished already, at step {steps[-1]}; nothing was trained" in capsys.readouterr().err
    assert first.notes == again.notes
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in first.tensors.items())
    np.testing.assert_array_equal(first.scores["test"], again.scores["test"])


def test_another_configuration_encoder_or_other_labels_cannot_go_on(
    tiny_encoder: Encoder, encoder: Encoder, store: Store, tmp_path: Path
) -> None:
    def begin(encoder: Encoder, config: FinetuneConfig, labels: Sequence[str] = ()) -> None:
        chosen = select_labelled(store, labels, config.task)
        train_classifier(tmp_path / "run", encoder, store, chosen, config, lambda *_: None, device="cpu")

    begin(tiny_encoder, SHORT)
    with pytest.raises(UsageError, match="another configuration: classify.learning_rate was 0.002, is 0.1"):
        begin(tiny_encoder, replace(SHORT, learning_rate=0.1))
    with pytest.raises(UsageError, match="another configuration: contract"):
        begin(encoder, SHORT)
    with pytest.raises(UsageError, match="another configuration: films.sha256"):
        begin(tiny_encoder, SHORT, ("spots",))
    (tmp_path / "run" / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(UsageError, match="exists already"):
        finetune_classifier(tiny_encoder, store, tmp_path, config=SHORT)


def test_a_finished_model_and_the_work_of_others_are_left_alone(
    tiny_encoder: Encoder, store: Store, tmp_path: Path
) -> None:
    finetune_classifier(tiny_encoder, store, tmp_path / "model", config=SHORT)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for out in ("model", "mine"):
        with pytest.raises(UsageError, match="exists already"):
            finetune_classifier(tiny_encoder, store, tmp_path / out, config=SHORT)
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"letter.txt"}


def test_metrics_tell_the_looks_and_the_losses(tiny_encoder: Encoder, store: Store, tmp_path: Path) -> None:
    finetune_classifier(tiny_encoder, store, tmp_path / "model", config=HEAD, device="cpu")
    lines = {line["step"]: line for line in read_lines(tmp_path / "model" / "metrics.jsonl")}
    looks = read_looks(tmp_path / "model")
    assert [step for step, _ in looks] == list(range(4, max(lines) + 1, 4)) and len(looks) <= 20
    assert lines[20]["loss/classifier"] < np.log(2) and {"learning_rate", "images_per_second"} <= set(lines[20])
    best = min(looks, key=lambda look: look[1])[0]
    assert f"weights of step {best} of 80" in (tmp_path / "model" / "result.json").read_text()


def test_trackers_get_the_numbers_and_stay_with_the_model(small_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "findings"
    run_ranks(finetune, 1, small_store, out, HEAD, ("", 0), ("tensorboard", "wandb"))
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    found = [(point.step, point.value) for point in events.Scalars("val/loss")]
    assert found == [(step, pytest.approx(loss)) for step, loss in read_looks(out)]
    [offline] = (out / "wandb").glob("offline-run-*/*.wandb")
    content = offline.read_bytes()
    assert b"findings" in content and b"val/loss" in content


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("mode", ["mlp", "full"])
def test_half_precision_trains_nearly_the_same_classifier(
    mode: str, precision: str, tiny_encoder: Encoder, store: Store, tmp_path: Path
) -> None:
    config = replace(HEAD, steps=12) if mode == "mlp" else SHORT
    for name, one in {"whole": config, "half": replace(config, precision=precision)}.items():
        finetune_classifier(tiny_encoder, store, tmp_path / name, config=one, device="cpu")
    described = json.loads((tmp_path / "half" / "config.json").read_text())
    assert described["finetune"]["precision"] == precision
    assert compare_models(tmp_path / "whole", tmp_path / "half") != []
    pictures = [film.astype(np.float32) / 255 for film in store.read_films(range(20))]
    whole, half = (load_classifier(tmp_path / name).predict(pictures) for name in ("whole", "half"))
    np.testing.assert_allclose(whole, half, atol=0.05)
    weights = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} <= {torch.float32, torch.int64}


def test_batches_prepared_ahead_are_the_same_however_many_threads_there_are(
    tiny_encoder: Encoder, store: Store, tmp_path: Path
) -> None:
    for threads in (1, 3):
        finetune_classifier(tiny_encoder, store, tmp_path / str(threads), config=replace(SHORT, threads=threads))
    assert compare_models(tmp_path / "1", tmp_path / "3") == []


@pytest.mark.parametrize("mode", CONFIGS)
def test_a_fit_without_a_folder_is_the_same_and_leaves_nothing(
    mode: str, tiny_encoder: Encoder, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    store = open_store(small_store)
    fitted = fit_classifier(tiny_encoder, store, select_labelled(store), CONFIGS[mode], lambda *_: None)
    assert list((tmp_path / "scratch").iterdir()) == []
    result = finetune_classifier(tiny_encoder, store, tmp_path / "model", config=CONFIGS[mode], device="cpu")
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert fitted.notes == result.notes and fitted.tensors.keys() == written.keys()
    assert [name for name, tensor in written.items() if not torch.equal(tensor, fitted.tensors[name])] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "float8"}, "precision must be one of"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
        ({"threads": 0}, "loader_threads must be at least 1"),
    ],
)
def test_numbers_that_cannot_train_are_refused_and_leave_nothing(
    change: dict[str, object], message: str, tiny_encoder: Encoder, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(ChessError, match=message):
        finetune_classifier(tiny_encoder, store, tmp_path / "model", config=replace(SHORT, **change))
    assert list(tmp_path.iterdir()) == []
