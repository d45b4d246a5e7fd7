"""A run that was interrupted, by whatever and whenever, ends as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from chess_cxr.film_jpeg import encode_film
from chess_cxr.pretraining.presets import PretrainConfig
from chess_cxr.pretraining.pretrain import pretrain
from chess_cxr.pretraining.runs import read_metrics
from chess_cxr.records import ChessError, ImageRecord, UsageError
from chess_cxr.store import StoredFilm, open_store, write_store
from chess_cxr.training.checkpoint import find_checkpoint
from chess_cxr.training.precision import Precision
from children import TINY, TINY_SGD, TINY_WARM, start_training, train_in_child, wait_for_lines
from same_end import check_same_end, read_repeatable

CONFIGS = {"adamw": TINY, "sgd": TINY_SGD, "warm": TINY_WARM}
FINAL = "checkpoints/step_00000030.safetensors"


@pytest.fixture(scope="module")
def uninterrupted(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Run folders of runs that nothing disturbed, each made when it is first asked for."""

    class Runs(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            self[name] = run = tmp_path_factory.mktemp("uninterrupted") / name
            assert train_in_child(small_store, run, CONFIGS[name]) == (0, "")
            return run

    return Runs()


def read_folder_bytes(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("optimizer", "steps"),
    [
        # before the first checkpoint, and between two
        ("adamw", (3, 15)),
        # before the first checkpoint; while a checkpoint is due; just after one; between two
        pytest.param("adamw", (3, 9, 10, 15, 25), marks=pytest.mark.long),
        pytest.param("sgd", (3, 9, 10, 15, 25), marks=pytest.mark.long),
    ],
)
def test_a_run_killed_again_and_again_ends_with_the_same_weights_and_metrics(
    optimizer: str, steps: tuple[int, ...], small_store: Path, uninterrupted: Mapping[str, Path], tmp_path: Path
) -> None:
    for step in steps:
        code, _ = train_in_child(small_store, tmp_path, CONFIGS[optimizer], signal_at=(step, signal.SIGKILL))
        assert code == -signal.SIGKILL
        assert read_metrics(tmp_path)[-1]["step"] == step
    assert train_in_child(small_store, tmp_path, CONFIGS[optimizer]) == (0, "")
    check_same_end(tmp_path, uninterrupted[optimizer])


@pytest.mark.long
@pytest.mark.parametrize("first", range(4))
def test_a_run_killed_at_twenty_random_moments_ends_with_the_same_weights_and_metrics(
    first: int, small_store: Path, uninterrupted: Mapping[str, Path], tmp_path: Path
) -> None:
    """Five moments each: at a step, at any time from outside, before, inside and after the writing of a checkpoint."""
    rng, run, killed = random.Random(first), tmp_path / "run", 0
    size = (uninterrupted["warm"] / FINAL).stat().st_size
    kinds = ["step", "outside", "open", "inside", rng.choice(["os.rename", "os.remove"])]
    rng.shuffle(kinds)
    for _ in range(100):
        if killed == len(kinds):
            break
        code = train_until_killed(kinds[killed], small_store, run, rng, size)
        if code == 0:  # it was done before its moment came
            check_same_end(run, uninterrupted["warm"])
            shutil.rmtree(run)
        else:
            assert code == (-signal.SIGXFSZ if kinds[killed] == "inside" else -signal.SIGKILL)
            killed += 1
    assert killed == len(kinds)
    assert train_in_child(small_store, run, TINY_WARM) == (0, "")
    check_same_end(run, uninterrupted["warm"])


def train_until_killed(kind: str, store: Path, run: Path, rng: random.Random, size: int) -> int:
    if kind == "outside":
        process, _ = start_training(store, run, TINY_WARM)
        time.sleep(rng.uniform(0, 1))
        process.kill()
        process.join()
        assert process.exitcode is not None
        return process.exitcode
    if kind == "step":
        newest = find_checkpoint(run / "checkpoints")
        step = int(newest.stem[5:]) if newest else 0
        return train_in_child(store, run, TINY_WARM, signal_at=(step + rng.randint(1, 12), signal.SIGKILL))[0]
    event = "open" if kind == "inside" else kind
    most = rng.randrange(1, size) if kind == "inside" else 0
    code = train_in_child(store, run, TINY_WARM, die_writing=(event, most))[0]
    if kind == "inside" and code:
        assert most in [path.stat().st_size for path in (run / "checkpoints").glob(".step_*.partial-*")]
    return code


@pytest.mark.long
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_run_in_half_precision_goes_on_to_the_bit_with_its_scale(
    precision: Precision, small_store: Path, tmp_path: Path
) -> None:
    half = replace(TINY, training=replace(TINY.training, precision=precision))
    assert train_in_child(small_store, tmp_path / "undisturbed", half) == (0, "")
    assert train_in_child(small_store, tmp_path / "run", half, signal_at=(13, signal.SIGKILL))[0] == -signal.SIGKILL
    assert train_in_child(small_store, tmp_path / "run", half) == (0, "")
    check_same_end(tmp_path / "run", tmp_path / "undisturbed")
    state = load_file(tmp_path / "run" / FINAL)
    assert ("loop.scaling.encoder.scale" in state) == (precision == "float16")


@pytest.mark.long
def test_a_run_killed_from_outside_ends_the_same(
    small_store: Path, uninterrupted: Mapping[str, Path], tmp_path: Path
) -> None:
    for lines in (1, 12):
        process, _ = start_training(small_store, tmp_path, TINY)
        wait_for_lines(tmp_path / "metrics.jsonl", lines, process)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert train_in_child(small_store, tmp_path, TINY) == (0, "")
    check_same_end(tmp_path, uninterrupted["adamw"])


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGUSR1, marks=pytest.mark.long)])
def test_a_stopped_run_keeps_the_step_it_finished_and_goes_on_from_there(
    number: signal.Signals, small_store: Path, uninterrupted: Mapping[str, Path], tmp_path: Path
) -> None:
    said = train_in_child(small_store, tmp_path, TINY, signal_at=(13, number))
    assert said == (128 + number, "stopped at step 14 of 30; the same command continues it")
    newest = find_checkpoint(tmp_path / "checkpoints")
    assert newest is not None and newest.name == "step_00000014.safetensors"
    assert train_in_child(small_store, tmp_path, TINY) == (0, "")
    check_same_end(tmp_path, uninterrupted["adamw"])


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGUSR1, 138, marks=pytest.mark.long)]
)
def test_a_pre_empted_command_says_one_line_and_by_its_code_that_the_same_command_continues(
    number: signal.Signals, exit_code: int, small_store: Path, uninterrupted: Mapping[str, Path], tmp_path: Path
) -> None:
    described, run = tmp_path / "tiny.json", tmp_path / "run"
    described.write_text(json.dumps(asdict(TINY)))
    words = ["pretrain", str(small_store), "--config", str(described), "--out", str(run), "--quiet"]
    command = subprocess.Popen(
        [sys.executable, "-m", "chess_cxr", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for_first_line(run / "metrics.jsonl", command)
    command.send_signal(signal.SIGTERM)
    out, err = command.communicate(timeout=300)
    assert command.returncode == 143 and out == ""
    step = read_metrics(run)[-1]["step"]
    assert err.splitlines() == [f"chess-cxr: stopped at step {step} of 30; the same command continues it"]
    assert (run / f"checkpoints/step_{step:08d}.safetensors").exists()
    assert train_in_child(small_store, run, TINY) == (0, "")
    check_same_end(run, uninterrupted["adamw"])


def wait_for_first_line(path: Path, command: "subprocess.Popen[str]") -> None:
    while not path.exists() or not path.stat().st_size:
        assert command.poll() is None
        time.sleep(0.001)


def test_a_finished_run_is_left_as_it_is(small_store: Path, uninterrupted: Mapping[str, Path]) -> None:
    run = uninterrupted["adamw"]
    before, steps = read_folder_bytes(run), []
    assert pretrain(small_store, run, TINY, lambda report, probe: steps.append(report.step)) == run
    assert steps == [] and read_folder_bytes(run) == before


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (
            replace(TINY, training=replace(TINY.training, learning_rate=2e-3)),
            "training.learning_rate was 0.001, is 0.002",
        ),
        (replace(TINY, method=replace(TINY.method, queue=21)), "method.queue was 20, is 21"),
        (replace(TINY, positives="patient"), "positives was .*view.*, is .*patient"),
    ],
)
def test_another_configuration_is_refused_by_name_and_nothing_is_touched(
    changed: PretrainConfig, difference: str, small_store: Path, uninterrupted: Mapping[str, Path]
) -> None:
    before = read_folder_bytes(uninterrupted["adamw"])
    with pytest.raises(UsageError, match=difference) as caught:
        pretrain(small_store, uninterrupted["adamw"], changed)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert read_folder_bytes(uninterrupted["adamw"]) == before


def test_another_configuration_is_refused_before_the_first_checkpoint_too(small_store: Path, tmp_path: Path) -> None:
    code, _ = train_in_child(small_store, tmp_path, TINY, signal_at=(3, signal.SIGKILL))
    assert code == -signal.SIGKILL and find_checkpoint(tmp_path / "checkpoints") is None
    before = read_folder_bytes(tmp_path)
    with pytest.raises(UsageError, match="training.seed was 0, is 1"):
        pretrain(small_store, tmp_path, replace(TINY, training=replace(TINY.training, seed=1)))
    assert read_folder_bytes(tmp_path) == before


def test_a_store_of_the_same_name_and_size_with_other_films_to_train_on_is_refused(
    small_store: Path, uninterrupted: Mapping[str, Path], tmp_path: Path
) -> None:
    """Otherwise a film that was held out before would be trained on."""
    old = open_store(small_store)
    swap = {"train": "train", "val": "test", "test": "val"}
    films = [
        StoredFilm(ImageRecord(row.uid, row.patient, split=swap[row.split]), jpeg, row.height, row.width)
        for row, jpeg in zip(old.films.itertuples(), old.read_jpegs(range(len(old))), strict=True)
    ]
    same_training = tmp_path / "a" / small_store.name
    write_store(same_training, films, [], "")
    assert pretrain(same_training, uninterrupted["adamw"], TINY) == uninterrupted["adamw"]
    moved = tmp_path / "b" / small_store.name
    turn = {"train": "val", "val": "train", "test": "train"}
    write_store(moved, (replace(f, record=replace(f.record, split=turn[f.record.split])) for f in films), [], "")
    with pytest.raises(UsageError, match="data.films was 60, is 36"):
        pretrain(moved, uninterrupted["adamw"], TINY)
    renamed = tmp_path / "c" / small_store.name
    write_store(renamed, (replace(f, record=replace(f.record, uid=f.record.uid[::-1])) for f in films), [], "")
    with pytest.raises(UsageError, match="data.uids_sha256 was"):
        pretrain(renamed, uninterrupted["adamw"], TINY)


def test_a_cut_checkpoint_is_named_and_the_older_one_still_leads_to_the_same_end(
    small_store: Path, uninterrupted: Mapping[str, Path], tmp_path: Path
) -> None:
    train_in_child(small_store, tmp_path, TINY, signal_at=(20, signal.SIGKILL))
    newest = find_checkpoint(tmp_path / "checkpoints")
    assert newest is not None and newest.name == "step_00000018.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1000])
    code, line = train_in_child(small_store, tmp_path, TINY)
    assert code == 1 and line.startswith(f"{newest} is damaged") and "remove it" in line and "\n" not in line
    newest.unlink()
    (newest.parent / ".step_00000018.safetensors.partial-1").write_bytes(b"what a killed run was writing")
    assert train_in_child(small_store, tmp_path, TINY) == (0, "")
    check_same_end(tmp_path, uninterrupted["adamw"])
    left = sorted(path.name for path in newest.parent.iterdir())
    assert left == ["step_00000027.safetensors", "step_00000030.safetensors"]


@pytest.mark.long
def test_a_full_disk_says_one_line_keeps_the_old_checkpoint_and_later_ends_the_same(
    small_store: Path, uninterrupted: Mapping[str, Path], tmp_path: Path
) -> None:
    train_in_child(small_store, tmp_path, TINY, signal_at=(11, signal.SIGKILL))
    checkpoints = read_folder_bytes(tmp_path / "checkpoints")
    code, line = train_in_child(small_store, tmp_path, TINY, largest_file=200_000)
    assert code == 1 and line.startswith("no space left for ") and "step_00000018" in line and "\n" not in line
    assert read_folder_bytes(tmp_path / "checkpoints") == checkpoints
    assert train_in_child(small_store, tmp_path, TINY) == (0, "")
    check_same_end(tmp_path, uninterrupted["adamw"])


def test_no_room_for_metrics_is_one_line_too(
    small_store: Path, uninterrupted: Mapping[str, Path], tmp_path: Path
) -> None:
    room = (uninterrupted["adamw"] / "training_uids.txt").stat().st_size + 200
    code, line = train_in_child(small_store, tmp_path, TINY, largest_file=room)
    assert code == 1 and line.startswith("no space left for ") and "the same command continues it" in line
    assert train_in_child(small_store, tmp_path, TINY) == (0, "")
    check_same_end(tmp_path, uninterrupted["adamw"])


def test_a_loss_that_is_not_finite_stops_the_run_with_one_line(small_store: Path, tmp_path: Path) -> None:
    wild = replace(TINY_SGD, training=replace(TINY_SGD.training, learning_rate=1e30, warmup=0.0, clip_norm=0.0))
    with pytest.raises(
        ChessError,
        match=r"^the (encoder loss|gradient of the encoder loss) became .* at step \d+, after 9 skipped before it; try",
    ):
        pretrain(small_store, tmp_path, wild)
    kept = find_checkpoint(tmp_path / "checkpoints")  # of steps that were skipped: nothing of them is in it
    assert kept is None or all(bool(tensor.isfinite().all()) for tensor in load_file(kept).values())


def test_a_run_folder_tells_what_it_was_made_of(small_store: Path, uninterrupted: Mapping[str, Path]) -> None:
    run = uninterrupted["adamw"]
    described: dict[str, Any] = json.loads((run / "config.json").read_text())
    assert described.pop("data")["films"] == 60
    assert described == json.loads(json.dumps(asdict(TINY)))
    films = open_store(small_store).films
    uids = (run / "training_uids.txt").read_text().split("\n")
    assert uids == films["uid"][films["split"] == "train"].tolist()
    assert json.loads((run / "environment.json").read_text())["torch"] == torch.__version__


def test_tensorboard_reads_what_metrics_say_each_step_once(small_store: Path, tmp_path: Path) -> None:
    train_in_child(small_store, tmp_path, TINY, signal_at=(13, signal.SIGKILL))
    train_in_child(small_store, tmp_path, TINY)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    losses = {event.step: event.value for event in events.Scalars("loss/encoder")}
    assert len(events.Scalars("loss/encoder")) == 30
    assert losses == {line["step"]: pytest.approx(line["loss/encoder"]) for line in read_metrics(tmp_path)}
    assert [event.step for event in events.Scalars("probe/effective_rank")] == [7, 14, 21, 28, 30]


def test_metrics_show_loss_collapse_signals_and_probe(uninterrupted: Mapping[str, Path]) -> None:
    lines = read_repeatable(uninterrupted["adamw"])
    always = {"loss/encoder", "gradient_norm/encoder", "embedding_std", "positive_similarity", "learning_rate"}
    assert all(always <= line.keys() for line in lines)
    probed = [int(line["step"]) for line in lines if "probe/effective_rank" in line]
    assert probed == [7, 14, 21, 28, 30]


def test_films_without_labels_still_show_collapse(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    films = [
        StoredFilm(ImageRecord(uid=f"{n:032x}", patient=str(n)), *encode_film(rng.random((32, 32), np.float32), 32))
        for n in range(12)
    ]
    write_store(tmp_path / "bare.lance", films, [], "")
    short = replace(TINY, training=replace(TINY.training, steps=2))
    assert train_in_child(tmp_path / "bare.lance", tmp_path / "run", short) == (0, "")
    last = read_metrics(tmp_path / "run")[-1]
    assert 1 <= last["probe/effective_rank"] <= 12 and last["probe/feature_std"] > 0
    assert "probe/knn_auroc" not in last
