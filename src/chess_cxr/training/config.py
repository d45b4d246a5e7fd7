"""Where the numbers of a run go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TrackerName = Literal["tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True)
class TrackingConfig:
    """Where numbers go; not part of what a run is, so it may change when a run is continued.

    Args:
        trackers: where numbers go beside OUT/metrics.jsonl: tensorboard, wandb, mlflow.
        project: of W&B, and experiment of MLflow.
        wandb_mode: offline keeps all in OUT/wandb, which "wandb sync" can send later; online sends.
        mlflow_uri: a server, or a database such as sqlite:///mlflow.db; mlflow.db beside OUT by default.
    """

    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    project: str = "chess-cxr"
    wandb_mode: Literal["offline", "online"] = "offline"
    mlflow_uri: str = ""
