"""Numbers arrive where they are sent, and nowhere else: read back from the real files of each service."""

import json
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from chess_cxr.records import ChessError, UsageError
from chess_cxr.training.config import TrackingConfig, flatten_config
from chess_cxr.training.trackers import check_tracking, hide_password, open_trackers

DESCRIBED = {"preset": "tiny", "training": {"steps": 9, "seed": None}, "splits": ["train", ""], "note": "x" * 900}
# two sittings of one run: killed after step 4, continued from the checkpoint of step 3
CHILD = textwrap.dedent(
    """
    import json, sys
    from pathlib import Path
    from chess_cxr.training.trackers import open_trackers
    from chess_cxr.training.config import TrackingConfig

    folder, described = Path(sys.argv[1]), json.loads(sys.argv[2])
    config = TrackingConfig(("tensorboard", "wandb", "mlflow"), project="films")
    for first, last, end in ((0, 4, "stopped"), (3, 6, "finished")):
        trackers = open_trackers(folder, config, described, first)
        for step in range(first + 1, last + 1):
            trackers.write(step, {"loss/encoder": 1 / step, "probe/knn_auroc/Pleural, other": 0.5, "bad": float("nan")})
        trackers.close(end)
    """
)


@dataclass(frozen=True)
class Tracked:
    """A run that was tracked twice, and what the process was seen to connect to ("" where nobody could look)."""

    folder: Path
    connections: str


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    folder = tmp_path_factory.mktemp("runs") / "first"
    seen = folder.parent / "connections"
    watch = (
        ["strace", "-f", "--seccomp-bpf", "-qq", "-A", "-e", "trace=connect,sendto", "-o", str(seen)]
        if shutil.which("strace")
        else []
    )
    words = [*watch, sys.executable, "-c", CHILD, str(folder), json.dumps(DESCRIBED)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=400)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return Tracked(folder, seen.read_text() if watch else "")


def read_wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format after 7 bytes of W&B's own."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or last of several
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def test_tensorboard_sees_one_run_whose_repeated_steps_are_there_once(tracked: Tracked) -> None:
    events = EventAccumulator(str(tracked.folder / "tensorboard"))
    events.Reload()
    points = {point.step: point.value for point in events.Scalars("loss/encoder")}
    assert [point.step for point in events.Scalars("loss/encoder")] == [1, 2, 3, 4, 5, 6]
    assert points[5] == pytest.approx(0.2)


def test_wandb_writes_offline_two_parts_of_one_run(tracked: Tracked) -> None:
    parts = sorted((tracked.folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(parts) == 2
    identity = json.loads((tracked.folder / "trackers.json").read_text())["wandb"]["id"]
    losses: list[dict[int, float]] = []
    for part in parts:
        records = list(read_wandb_records(part))
        run = next(record.run for record in records if record.HasField("run"))
        assert (run.run_id, run.project, run.display_name, run.host) == (identity, "films", "first", "")
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["training"] == DESCRIBED["training"]
        rows = [record.history for record in records if record.HasField("history")]
        values = [{"/".join(item.nested_key) or item.key: item.value_json for item in row.item} for row in rows]
        losses.append({int(row["_step"]): float(row["loss/encoder"]) for row in values})
    assert losses[0] == {step: pytest.approx(1 / step) for step in (1, 2, 3, 4)}
    assert losses[1] == {step: pytest.approx(1 / step) for step in (4, 5, 6)}


def test_mlflow_keeps_one_run_with_its_configuration_and_its_end(tracked: Tracked) -> None:
    with sqlite3.connect(tracked.folder.parent / "mlflow.db") as database:
        runs = database.execute("select run_uuid, name, status from runs").fetchall()
        params = dict(database.execute("select key, value from params").fetchall())
        losses = database.execute("select distinct step, value from metrics where key = 'loss/encoder'").fetchall()
        names = {name for (name,) in database.execute("select distinct key from metrics")}
        experiments = {name for (name,) in database.execute("select name from experiments")}
    database.close()
    assert len(runs) == 1 and runs[0][1:] == ("first", "FINISHED") and "films" in experiments
    assert runs[0][0] == json.loads((tracked.folder / "trackers.json").read_text())["mlflow"]["id"]
    assert params["training.steps"] == "9" and params["splits"] == '["train", ""]' and params["note"] == "x" * 500
    assert dict(losses) == {step: pytest.approx(1 / step) for step in range(1, 7)}
    assert names == {"loss/encoder", "probe/knn_auroc/Pleural_ other", "bad"}


def test_nothing_leaves_the_machine(tracked: Tracked) -> None:
    if not tracked.connections:
        pytest.skip("strace is not installed: nobody can look")
    assert re.findall(r".*AF_INET.*", tracked.connections) == []


def test_all_that_was_made_stands_in_the_run_folder_or_beside_it(tracked: Tracked) -> None:
    made = {path.name for path in tracked.folder.parent.iterdir()} - {"connections"}
    assert made == {"first", "mlflow.db"}
    assert {path.name for path in tracked.folder.iterdir()} == {"tensorboard", "wandb", "trackers.json"}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_one_line_with_the_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=re.escape(f"needs the package {name}: pip install 'chess-cxr[{name}]'")):
        open_trackers(tmp_path / "run", TrackingConfig(("tensorboard", name)), {}, 0)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="no tracker named 'comet'; there are tensorboard, wandb and mlflow"):
        check_tracking(TrackingConfig(("comet",)))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_service_that_fails_on_the_way_is_left_out_and_the_run_goes_on(tracked: Tracked, tmp_path: Path) -> None:
    shutil.copy(tracked.folder.parent / "mlflow.db", tmp_path)  # MLflow takes seconds to make one
    said: list[str] = []
    trackers = open_trackers(tmp_path / "run", TrackingConfig(("tensorboard", "mlflow")), DESCRIBED, 0, said.append)
    trackers.write(1, {"loss": 1.0})
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("drop table metrics")
    database.close()
    for step in (2, 3):
        trackers.write(step, {"loss": 1.0})
    trackers.close("finished")
    assert len(said) == 1
    assert said[0].startswith("mlflow failed at step 2; its later numbers are in metrics.jsonl: MlflowException")
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("loss")] == [1, 2, 3]


def test_what_fails_in_tensorboard_is_raised(tmp_path: Path) -> None:
    trackers = open_trackers(tmp_path, TrackingConfig(), {}, 0)
    trackers.close("finished")
    again = open_trackers(tmp_path, TrackingConfig(), {}, 0)
    again._trackers["tensorboard"].close("failed")
    with pytest.raises(ValueError, match="closed file"):
        again.write(1, {"loss": 1.0})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_server_that_is_not_there_is_one_line_without_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    pytest.importorskip("mlflow")
    config = TrackingConfig(("mlflow",), mlflow_uri="http://user:secret@127.0.0.1:9")
    with pytest.raises(ChessError, match="mlflow at http://127.0.0.1:9 cannot begin") as caught:
        open_trackers(tmp_path, config, DESCRIBED, 0)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    assert hide_password("postgresql://me:p/w@host/runs") == "postgresql://host/runs"


def test_a_configuration_becomes_flat_names_and_texts() -> None:
    described = {"preset": "tiny", "training": {"steps": 9, "seed": None}, "splits": ["train", ""]}
    flat = {"preset": "tiny", "training.steps": "9", "training.seed": "null", "splits": '["train", ""]'}
    assert flatten_config(described) == flat
