"""The folder that a task trains in, and that holds its model once it is finished."""

from __future__ import annotations

from pathlib import Path

from chess_cxr.records import UsageError


def refuse_foreign_folder(out: Path) -> None:
    """Raise UsageError where a model cannot be written or continued."""
    if (out / "config.json").exists() or out.is_symlink():
        raise UsageError(f"{out} exists already; choose another --out or remove it")
    if out.exists() and not (out / "run" / "config.json").exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already and is no interrupted run; choose another --out or remove it")
