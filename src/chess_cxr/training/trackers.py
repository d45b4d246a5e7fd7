"""Where a run's numbers go beside `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow.

TensorBoard is written by default.  The others are optional packages; both write to this disk unless they are told where
else, and their own telemetry is off.  What goes out is the run's configuration and its numbers, nothing about films.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from chess_cxr.files.whole import write_atomically
from chess_cxr.records import ChessError, UsageError, import_extra
from chess_cxr.training.config import TrackingConfig
from chess_cxr.training.events import EventFile

RunEnd = Literal["finished", "stopped", "failed"]
IDENTITIES = "trackers.json"
# Read by the packages while they are imported: neither tells its makers that it is used, and a dead server holds a step
# up for seconds, not minutes.
_SURROUNDINGS = {
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


class Tracker(Protocol):
    """One place that numbers go to."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write named numbers of one step."""

    def close(self, end: RunEnd) -> None:
        """Write what is left, and how the run ended."""


class Trackers:
    """All trackers of a run.  TensorBoard's files are as needed as the run's own: what fails there is raised.

    A service that fails on the way is left out from there, with one line said: it must not end a run of days.
    """

    def __init__(self, trackers: Mapping[str, Tracker], say: Callable[[str], None]) -> None:
        self._trackers, self._say = dict(trackers), say

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write named numbers of one step to all trackers."""
        for name in list(self._trackers):
            self._try(name, lambda tracker: tracker.write(step, values), f"at step {step}; its later numbers are in")

    def close(self, end: RunEnd) -> None:
        """Close all trackers, whatever happens to any of them."""
        failed: BaseException | None = None
        for name in list(self._trackers):
            try:
                self._try(name, lambda tracker: tracker.close(end), "while closing; all numbers are in")
            except OSError as error:
                failed = failed or error
        self._trackers.clear()
        if failed:
            raise failed

    def _try(self, name: str, act: Callable[[Tracker], None], where: str) -> None:
        try:
            act(self._trackers[name])
        except Exception as error:
            if name == "tensorboard":
                raise
            del self._trackers[name]
            self._say(f"{name} failed {where} metrics.jsonl: {_name_error(error)}")


def open_trackers(
    folder: Path,
    config: TrackingConfig,
    described: Mapping[str, Any],
    first_step: int,
    say: Callable[[str], None] | None = None,
) -> Trackers:
    """Open the trackers of the run in `folder`, which is at `first_step`; a continued run stays one run everywhere.

    described: the run's configuration, JSON-ready.  say: told one line where a service fails later; stderr by default.
    Raises `UsageError` where a package is missing, `ChessError` where a service cannot be reached now.
    """
    check_tracking(config)
    say = say or _say_on_stderr
    identities = _read_identities(folder)
    opened: dict[str, Tracker] = {}
    try:
        for name in dict.fromkeys(config.trackers):
            if name == "tensorboard":
                opened[name] = _TensorBoard(folder, first_step)
                continue
            service = _Wandb if name == "wandb" else _Mlflow
            opened[name] = service(folder, config, described, identities)
            write_atomically(folder / IDENTITIES, json.dumps(identities, indent=1).encode())
    except BaseException:
        Trackers(opened, say).close("failed")
        raise
    return Trackers(opened, say)


def check_tracking(config: TrackingConfig) -> None:
    """Raise `UsageError` for trackers that do not exist or whose package is missing; imports them."""
    for name in config.trackers:
        if name not in ("tensorboard", "wandb", "mlflow"):
            raise UsageError(f"no tracker named {name!r}; there are tensorboard, wandb and mlflow")
        if name != "tensorboard":
            _import_service(name)


def _import_service(name: str) -> Any:
    for variable, value in _SURROUNDINGS.items():
        os.environ.setdefault(variable, value)
    if name == "wandb":
        return import_extra("wandb", "wandb", "the tracker wandb")
    return import_extra("mlflow", "mlflow", "the tracker mlflow")


class _TensorBoard:
    def __init__(self, folder: Path, first_step: int) -> None:
        self._events = EventFile(folder / "tensorboard", first_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._events.write(step, values)

    def close(self, end: RunEnd) -> None:
        self._events.close()


class _Wandb:
    """One W&B run; continued offline, it becomes another folder of the same id, which `wandb sync` joins."""

    def __init__(
        self, folder: Path, config: TrackingConfig, described: Mapping[str, Any], identities: dict[str, Any]
    ) -> None:
        wandb = _import_service("wandb")
        identity = identities.setdefault("wandb", {"id": uuid.uuid4().hex[:12]})["id"]
        settings = wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True, save_code=False, x_disable_meta=True,
            x_disable_stats=True, x_save_requirements=False, host="", init_timeout=60,
        )  # fmt: skip
        try:
            self._run = wandb.init(
                project=config.project, name=_find_out(folder, described).name, id=identity, dir=str(folder),
                settings=settings, config=dict(described), mode=config.wandb_mode,
                resume="allow" if config.wandb_mode == "online" else None,
            )  # fmt: skip
        except wandb.Error as error:
            raise ChessError(f"wandb cannot begin: {_name_error(error)}; leave it out or use it offline") from None
        self._teardown = wandb.teardown

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, end: RunEnd) -> None:
        self._run.finish(exit_code=0 if end == "finished" else 1)
        self._teardown()  # only then is the file whole


class _Mlflow:
    """One MLflow run, written step by step through its client."""

    def __init__(
        self, folder: Path, config: TrackingConfig, described: Mapping[str, Any], identities: dict[str, Any]
    ) -> None:
        self._mlflow = _import_service("mlflow")
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells how it makes its tables
        out = _find_out(folder, described)
        uri = config.mlflow_uri or f"sqlite:///{out.parent / 'mlflow.db'}"
        try:
            self._client = self._mlflow.MlflowClient(uri)
            known = identities.get("mlflow", {})
            if known.get("uri") == hide_password(uri):
                self._id = known["id"]
                self._client.update_run(self._id, status="RUNNING")
            else:
                self._id = self._create_run(out, config.project, described, uri)
        except (self._mlflow.exceptions.MlflowException, OSError, ImportError) as error:  # a database's driver, too
            reason = f"mlflow at {hide_password(uri)} cannot begin: {_name_error(error)}"
            raise ChessError(f"{reason}; correct the address, start the server, or leave mlflow out") from None
        identities["mlflow"] = {"id": self._id, "uri": hide_password(uri)}

    def _create_run(self, out: Path, project: str, described: Mapping[str, Any], uri: str) -> str:
        experiment = self._client.get_experiment_by_name(project)
        if experiment:
            place = experiment.experiment_id
        else:  # no files are sent, but MLflow would make a folder for them where the command was called
            beside = (out.parent / "mlflow_files").as_uri() if uri.startswith("sqlite:") else None
            place = self._client.create_experiment(project, artifact_location=beside)
        run = self._client.create_run(place, run_name=out.name)
        entries = [self._mlflow.entities.Param(key, text) for key, text in flatten_config(described).items()]
        for start in range(0, len(entries), 100):  # as many as one request may hold
            self._client.log_batch(run.info.run_id, params=entries[start : start + 100])
        return str(run.info.run_id)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now = round(1000 * time.time())
        metrics = [self._mlflow.entities.Metric(_spell(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, end: RunEnd) -> None:
        state = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[end]
        self._client.set_terminated(self._id, state)


def flatten_config(described: Any, at: str = "") -> dict[str, str]:
    """Turn a nested configuration into `part.entry` names and texts of at most 500 letters."""
    if not isinstance(described, Mapping):
        return {at: (described if isinstance(described, str) else json.dumps(described))[:500]}
    found: dict[str, str] = {}
    for key, value in described.items():
        found |= flatten_config(value, f"{at}.{key}" if at else str(key))
    return found


def _find_out(folder: Path, described: Mapping[str, Any]) -> Path:
    """Return the folder that the user has named: a task trains in OUT/run."""
    return folder.resolve().parent if "task" in described else folder.resolve()


def hide_password(uri: str) -> str:
    """Return an address without user and password."""
    return re.sub(r"(?<=//)\S*@", "", uri)


def _spell(name: str) -> str:
    """Spell a name with the letters that MLflow takes."""
    return "".join(letter if letter.isalnum() or letter in "_-. /:" else "_" for letter in name)


def _read_identities(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / IDENTITIES).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _name_error(error: BaseException) -> str:
    first: Sequence[str] = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__} {hide_password(first[0])[:200]}".strip()


def _say_on_stderr(line: str) -> None:
    print(f"chess-cxr: {line}", file=sys.stderr, flush=True)
