"""The configuration of trackers, and any configuration as flat text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

TrackerName = Literal["tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True)
class TrackingConfig:
    """Trackers of a run; not part of its identity, so they may change when it is continued.

    Args:
        trackers: trackers to write besides OUT/metrics.jsonl: tensorboard, wandb, mlflow.
        project: project of W&B, experiment of MLflow.
        wandb_mode: offline keeps everything in OUT/wandb, for a later "wandb sync"; online sends it.
        mlflow_uri: a server, or a database such as sqlite:///mlflow.db; by default mlflow.db beside OUT.
    """

    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    project: str = "chess-cxr"
    wandb_mode: Literal["offline", "online"] = "offline"
    mlflow_uri: str = ""


def flatten_config(described: Any, at: str = "") -> dict[str, str]:
    """Turn a nested configuration into `part.entry` names and texts."""
    if not isinstance(described, Mapping):
        return {at: described if isinstance(described, str) else json.dumps(described, ensure_ascii=False)}
    found: dict[str, str] = {}
    for key, value in described.items():
        found |= flatten_config(value, f"{at}.{key}" if at else str(key))
    return found
