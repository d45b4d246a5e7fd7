"""The options of a de-identification; apart from the work, so that the command line starts without pydicom."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from chess_cxr.workers.child import Limits


@dataclass(frozen=True, kw_only=True)
class DeidentifyConfig:
    """The options of a de-identification that are also options of the command.

    Args:
        allow_burned_in: also copy films whose pixels may contain text: declared ones, colour, secondary captures.
        limits: limits of time and memory per film.
    """

    allow_burned_in: bool = False
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class DeidentifyOptions(DeidentifyConfig):
    """All options of a de-identification; `DeidentifyConfig` explains the others.

    id_key: result of `read_id_key`.  id_map: file that will tie hashed uids to paths, the only one that does.
    in_flight: films submitted ahead of the report.
    """

    id_key: bytes
    id_map: Path | None = None
    in_flight: int = 64
