"""Run folders in a table: real runs, and folders as a crash or a stranger leaves them."""

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from chess_cxr.methods.moco import MoCoConfig
from chess_cxr.pretraining.presets import PixelScale, PretrainConfig
from chess_cxr.pretraining.pretrain import pretrain
from chess_cxr.pretraining.runs import (
    build_table,
    compare_runs,
    find_runs,
    list_runs,
    read_lines,
    read_run,
    say_duration,
)
from chess_cxr.records import ChessError, UsageError
from chess_cxr.training.loop import StepReport, TrainingConfig
from chess_cxr.views import ViewConfig

TINY = PretrainConfig(
    preset="tiny",
    method=MoCoConfig(architecture="test_efficientnet", embedding=8, queue=20, key_momentum=0.9, norm_groups=2),
    views=ViewConfig(size=32, crop_area=(0.5, 1.0)),
    training=TrainingConfig(steps=12, batch=8, learning_rate=0.01, log_every=1, probe_every=6, checkpoint_every=5),
    pixels=PixelScale(0.5, 0.25),
)
NOW = 1_800_000_000.0


def make_run(folder: Path, steps: int = 100, done: int = 40, age: float = 5.0, **entries: Any) -> Path:
    """A run that wrote a line every 10 steps, 2 seconds apart, the last one `age` seconds before `NOW`."""
    folder.mkdir(parents=True)
    training = {"steps": steps, "batch": 64, "checkpoint_every": 20, **entries.pop("training", {})}
    config = {"preset": "cpu_small", "method": {"name": "moco_v2", "queue": 1024}, "training": training, **entries}
    (folder / "config.json").write_text(json.dumps(config))
    lines: list[dict[str, float]] = []
    for step in range(10, done + 1, 10):
        values: dict[str, float] = {"step": step, "time": NOW - age - (done - step) / 5, "loss/encoder": 7 - step / 50}
        values |= {"images_per_second": 320.0, "data_wait_share": 0.02}
        if step % 20 == 0:
            values |= {"probe/knn_auroc": 0.9 - step / 1000, "probe/knn_auroc/nodule": 0.99, "probe/effective_rank": 30}
        lines.append(values)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    touch(folder, NOW - age)
    return folder


def add_checkpoint(run: Path, step: int, age: float) -> None:
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / f"checkpoints/step_{step:08d}.safetensors").write_bytes(b"x")
    touch(run / "checkpoints", NOW - age)


def touch(folder: Path, when: float) -> None:
    for path in folder.iterdir():
        os.utime(path, (when, when))


def read_state(run: Path) -> str:
    return read_run(run, NOW).state


def test_a_run_that_ran_to_its_end_and_one_that_was_stopped_are_told_apart(small_store: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    pretrain(small_store, tmp_path / "whole", TINY)

    def stop(report: StepReport, probe: Mapping[str, float]) -> None:
        if report.step == 7:
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(ChessError, match="stopped at step"):
        pretrain(small_store, tmp_path / "part", TINY, stop)
    whole, part = list_runs([tmp_path], sort="state").runs
    assert (whole.name, whole.state, whole.step, whole.steps) == ("whole", "finished", 12, 12)
    assert (part.name, part.state, part.steps) == ("part", "stopped", 12) and part.step in (7, 8)
    assert (whole.preset, whole.method) == ("tiny", "moco_v2")
    assert whole.images_per_second and whole.loss and whole.effective_rank and whole.seconds
    assert abs(time.time() - (whole.started or 0)) < 60
    part_line = next(line for line in list_runs([tmp_path]).as_text().splitlines() if line.startswith("part"))
    assert part_line.split()[1:5] == ["tiny", "moco_v2", "stopped", f"{part.step}/12"]


def test_the_state_follows_from_the_files_and_their_times(tmp_path: Path) -> None:
    assert read_state(make_run(tmp_path / "busy")) == "running"
    slow = make_run(tmp_path / "quiet for less than ten of its lines", age=119)
    assert read_state(slow) == "running"
    killed = make_run(tmp_path / "killed between checkpoints", done=50, age=3600)
    add_checkpoint(killed, 40, age=3602)
    assert read_state(killed) == "failed"
    stopped = make_run(tmp_path / "stopped just now", done=40, age=3)
    add_checkpoint(stopped, 43, age=3)
    assert read_state(stopped) == "stopped" and read_run(stopped, NOW).step == 43
    due = make_run(tmp_path / "a checkpoint in turn is no stop", done=40, age=3)
    add_checkpoint(due, 40, age=3)
    assert read_state(due) == "running"
    os.utime(due / "config.json", (NOW - 9999, NOW - 9999))
    assert read_run(due, NOW + 9999).state == "stopped"
    assert read_state(make_run(tmp_path / "whole", done=100)) == "finished"


def test_numbers_are_the_newest_the_best_and_the_time_without_pauses(tmp_path: Path) -> None:
    run = make_run(tmp_path / "first", done=60)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    late = [json.dumps(json.loads(line) | {"time": json.loads(line)["time"] - 90_000}) for line in lines[:3]]
    (run / "metrics.jsonl").write_text("\n".join([*late, *lines[3:]]) + "\n")
    found = read_run(run, NOW)
    assert found.knn_auroc_best == pytest.approx(0.88) and found.knn_auroc_last == pytest.approx(0.84)
    assert (found.effective_rank, found.loss, found.data_wait_share) == (30, pytest.approx(5.8), 0.02)
    assert found.seconds == pytest.approx(8)  # four gaps of 2 s; a night lies in the fifth
    assert found.seconds_left == pytest.approx(40 * 64 / 320)


@pytest.mark.parametrize(
    "tail",
    [b'{"step": 50, "time": 18', b"\xff\xfe{{{\n", b"[1, 2]\n", b"null\n", b'{"step": "x", "time": "y"}\n', b"\n\n"],
)
def test_a_half_written_or_foreign_line_is_passed_over(tail: bytes, tmp_path: Path) -> None:
    run = make_run(tmp_path / "first")
    expected = read_run(run, NOW)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    touch(run, NOW - 5)
    assert read_run(run, NOW) == expected
    assert read_lines(run / "metrics.jsonl")[-1]["step"] == 40


def test_a_run_that_has_only_begun_is_listed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "new")
    (run / "metrics.jsonl").unlink()
    found = read_run(run, NOW)
    assert (found.state, found.step, found.loss, found.started, found.seconds) == ("running", 0, None, None, None)
    assert "0/100" in list_runs([run], now=NOW).as_text()
    (run / "config.json").write_text('{"training": {"steps": "many"}, "method": {}}')
    assert (read_run(run, NOW).steps, read_run(run, NOW).method) == (None, "moco_v2")


def test_foreign_folders_are_no_runs(tmp_path: Path) -> None:
    for number, text in enumerate(('{"architecture": "resnet50"}', "[]", "{", "", '{"training": 3, "method": {}}')):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/config.json").write_text(text)
    (tmp_path / "films.lance/run").mkdir(parents=True)
    make_run(tmp_path / "films.lance/run/inside")
    make_run(tmp_path / ".hidden")
    make_run(tmp_path / "a/b/c/too deep")
    make_run(tmp_path / "runs/first")
    assert find_runs([tmp_path, tmp_path / "runs", tmp_path / "runs/first"]) == [tmp_path / "runs/first"]
    assert list_runs([tmp_path / "0"]).as_text().startswith("There is no run here")
    with pytest.raises(UsageError, match="there is no folder"):
        list_runs([tmp_path / "absent"])


def test_runs_with_a_damaged_configuration_are_named(tmp_path: Path) -> None:
    make_run(tmp_path / "whole")
    for name, text in (("cut", '{"training": {'), ("gone", "")):
        add_checkpoint(run := make_run(tmp_path / name), 20, 5.0)
        (run / "config.json").write_text(text)
    (tmp_path / "gone/config.json").unlink()
    found = list_runs([tmp_path], now=NOW)
    assert ([run.name for run in found.runs], found.damaged) == (
        ["whole"], (str(tmp_path / "cut"), str(tmp_path / "gone"))
    )  # fmt: skip


def test_a_folder_that_points_at_itself_ends(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs/first")
    (tmp_path / "runs/again").symlink_to(tmp_path / "runs")
    (tmp_path / "twice").symlink_to(run)
    assert len(find_runs([tmp_path])) == 1


def test_runs_are_sorted_with_the_unknown_last(tmp_path: Path) -> None:
    for name, done in (("a", 20), ("b", 60), ("c", 0), ("d", 40)):
        make_run(tmp_path / name, done=done)
    order = {key: "".join(run.name for run in list_runs([tmp_path], key, NOW).runs) for key in ("name", "step", "loss")}
    assert order == {"name": "abcd", "step": "bdac", "loss": "bdac"}
    assert [run.name for run in list_runs([tmp_path], "knn_auroc_best", NOW).runs][-1] == "c"
    with pytest.raises(UsageError, match="cannot be sorted by 'beauty'; choose one of name"):
        list_runs([tmp_path], "beauty")


def test_a_comparison_shows_what_differs_and_the_newest_numbers(tmp_path: Path) -> None:
    first = make_run(tmp_path / "first", training={"batch": 64}, views={"size": 64})
    second = make_run(tmp_path / "second", done=60, training={"batch": 128}, method={"name": "simclr"})
    found = compare_runs([second, first], NOW)
    assert found.config == {
        "method.name": ("simclr", "moco_v2"),
        "method.queue": ("–", "1024"),
        "training.batch": ("128", "64"),
        "views.size": ("–", "64"),
    }
    assert found.numbers["loss/encoder"] == (pytest.approx(5.8), pytest.approx(6.2))
    assert found.numbers["probe/knn_auroc"] == (pytest.approx(0.84), pytest.approx(0.86))
    assert found.numbers["probe/knn_auroc, best"] == (pytest.approx(0.88), pytest.approx(0.88))
    lines = [line.split() for line in found.as_text().splitlines()]
    assert lines[0] == ["second", "first"] and ["training.batch", "128", "64"] in lines
    assert ["loss/encoder", "5.800", "6.200"] in lines and ["step", "60/100", "40/100"] in lines
    assert json.loads(json.dumps(found.as_json()))["config"]["training.batch"] == ["128", "64"]
    with pytest.raises(UsageError, match="is not a run"):
        compare_runs([first, tmp_path])
    with pytest.raises(UsageError, match="at least two"):
        compare_runs([first])


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / place / "run") for place in ("a", "b")]
    assert compare_runs(runs, NOW).as_text().startswith("The configurations are the same.")
    assert compare_runs(runs, NOW).as_text().splitlines()[2].split() == ["a/run", "b/run"]
    assert [line.split()[0] for line in list_runs([tmp_path], "name", NOW).as_text().splitlines()[1:]] == [
        "a/run",
        "b/run",
    ]
    assert list_runs(runs[:1], now=NOW).as_text().splitlines()[1].split()[0] == "run"


def test_what_a_folder_is_called_cannot_break_the_table(tmp_path: Path) -> None:
    make_run(tmp_path / "tab\tline\nescape\x1b[31m", preset="x" * 200)
    lines = list_runs([tmp_path], now=NOW).as_text().splitlines()
    assert len(lines) == 2 and "\x1b" not in lines[1] and "x" * 48 not in lines[1]


def test_two_thousand_runs_are_listed_in_seconds(tmp_path: Path) -> None:
    first = make_run(tmp_path / "0", done=100)
    config, metrics = (first / "config.json").read_bytes(), (first / "metrics.jsonl").read_bytes()
    for number in range(1, 2000):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/config.json").write_bytes(config)
        (tmp_path / f"{number}/metrics.jsonl").write_bytes(metrics)
    started = time.process_time()
    assert len(list_runs([tmp_path]).runs) == 2000
    assert time.process_time() - started < 5


def test_only_the_end_of_a_long_run_is_parsed_and_all_of_it_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "long", steps=10**6, done=200_000)
    started = time.process_time()
    found = read_run(run, NOW)
    assert time.process_time() - started < 1
    assert found.step == 200_000 and found.knn_auroc_best == pytest.approx(0.88)
    assert found.seconds == pytest.approx(2 * 19_999)


def test_durations_are_said_short() -> None:
    assert [say_duration(value) for value in (None, 5, 725, 12_000, 200_000.0, float("nan"))] == [
        *("", "0:05", "12:05", "3 h 20", "2 d 7 h", "")
    ]


def test_empty_columns_are_left_out_and_numbers_stand_to_the_right() -> None:
    assert build_table(["a", "b", "c"], [["x", "", "1"], ["yy", "", "20"]]) == "a    c\nx    1\nyy  20"
