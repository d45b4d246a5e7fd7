"""Trackers of a run's numbers, besides `metrics.jsonl`: TensorBoard (the default), Weights & Biases, MLflow.

W&B and MLflow are optional packages; both write to the local disk unless configured otherwise, and their telemetry is
off.  They get the run's configuration and numbers, nothing about films.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from chess_cxr.files.whole import read_json, write_atomically
from chess_cxr.progress import Say, say_on_stderr
from chess_cxr.records import ChessError, UsageError, import_extra
from chess_cxr.training.config import TrackingConfig, flatten_config
from chess_cxr.training.events import EventFile

RunEnd = Literal["finished", "stopped", "failed"]
IDENTITIES = "trackers.json"
# Environment variables that the packages read on import: no telemetry, and a dead server delays a step by seconds
# instead of minutes.
_ENVIRONMENT = {
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


class Tracker(Protocol):
    """One destination of a run's numbers."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write named numbers of one step."""

    def close(self, end: RunEnd) -> None:
        """Flush, and record how the run ended."""


class Trackers:
    """All trackers of a run.

    A service that fails during the run is dropped with a warning, as it must not end a run of days.  TensorBoard's
    files are as important as the run's own: their errors are raised.
    """

    def __init__(self, trackers: Mapping[str, Tracker], say: Say) -> None:
        self._trackers, self._say = dict(trackers), say

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write named numbers of one step to all trackers."""
        for name in list(self._trackers):
            self._try(name, lambda tracker: tracker.write(step, values), f"at step {step}; its later numbers are in")

    def close(self, end: RunEnd) -> None:
        """Close all trackers, even if one of them fails."""
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
    folder: Path, config: TrackingConfig, described: Mapping[str, Any], first_step: int, say: Say = say_on_stderr
) -> Trackers:
    """Open the trackers of the run in `folder`, at `first_step`; a continued run remains one run in every tracker.

    described: the run's configuration as JSON values.  say: called with a line if a service fails later.
    Raises `UsageError` if a package is missing, `ChessError` if a service cannot be reached now.
    """
    check_tracking(config)
    identities = read_json(folder / IDENTITIES)
    opened: dict[str, Tracker] = {}
    try:
        for name in dict.fromkeys(config.trackers):
            if name == "tensorboard":
                opened[name] = EventFile(folder / "tensorboard", first_step)
                continue
            service = _Wandb if name == "wandb" else _Mlflow
            opened[name] = service(folder, config, described, identities)
            write_atomically(folder / IDENTITIES, json.dumps(identities, indent=1).encode())
    except BaseException:
        Trackers(opened, say).close("failed")
        raise
    return Trackers(opened, say)


def check_tracking(config: TrackingConfig) -> None:
    """Raise `UsageError` for unknown trackers and missing packages; imports the packages."""
    for name in config.trackers:
        if name not in ("tensorboard", "wandb", "mlflow"):
            raise UsageError(f"no tracker named {name!r}; there are tensorboard, wandb and mlflow")
        if name != "tensorboard":
            _import_service(name)


def _import_service(name: str) -> Any:
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    if name == "wandb":
        return import_extra("wandb", "wandb", "the tracker wandb")
    return import_extra("mlflow", "mlflow", "the tracker mlflow")


class _Wandb:
    """One W&B run; continuing it offline adds a folder of the same id, which `wandb sync` joins."""

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
        self._teardown()  # the file is complete only after this


class _Mlflow:
    """One MLflow run, written step by step through its client."""

    def __init__(
        self, folder: Path, config: TrackingConfig, described: Mapping[str, Any], identities: dict[str, Any]
    ) -> None:
        self._mlflow = _import_service("mlflow")
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # else it logs how it creates its tables
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
        except (self._mlflow.exceptions.MlflowException, OSError, ImportError) as error:  # ImportError: database driver
            reason = f"mlflow at {hide_password(uri)} cannot begin: {_name_error(error)}"
            raise ChessError(f"{reason}; correct the address, start the server, or leave mlflow out") from None
        identities["mlflow"] = {"id": self._id, "uri": hide_password(uri)}

    def _create_run(self, out: Path, project: str, described: Mapping[str, Any], uri: str) -> str:
        experiment = self._client.get_experiment_by_name(project)
        if experiment:
            place = experiment.experiment_id
        else:  # we send no files, but MLflow would create a folder for them in the current directory
            beside = (out.parent / "mlflow_files").as_uri() if uri.startswith("sqlite:") else None
            place = self._client.create_experiment(project, artifact_location=beside)
        run = self._client.create_run(place, run_name=out.name)
        entries = [self._mlflow.entities.Param(key, text[:500]) for key, text in flatten_config(described).items()]
        for start in range(0, len(entries), 100):  # the most that one request may hold
            self._client.log_batch(run.info.run_id, params=entries[start : start + 100])
        return str(run.info.run_id)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now = round(1000 * time.time())
        metrics = [self._mlflow.entities.Metric(_spell(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, end: RunEnd) -> None:
        state = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[end]
        self._client.set_terminated(self._id, state)


def _find_out(folder: Path, described: Mapping[str, Any]) -> Path:
    """Return the folder that the user named: a task trains in OUT/run."""
    return folder.resolve().parent if "task" in described else folder.resolve()


def hide_password(uri: str) -> str:
    """Remove user and password from an address."""
    return re.sub(r"(?<=//)\S*@", "", uri)


def _spell(name: str) -> str:
    """Replace the letters that MLflow does not allow in a name."""
    return "".join(letter if letter.isalnum() or letter in "_-. /:" else "_" for letter in name)


def _name_error(error: BaseException) -> str:
    first: Sequence[str] = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__} {hide_password(first[0])[:200]}".strip()
