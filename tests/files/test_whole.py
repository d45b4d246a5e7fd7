"""The order in which content and names reach the disk, as the calls say that were made."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chess_cxr.audit.audit import audit_stores
from chess_cxr.audit.page import write_audit
from chess_cxr.benchmarking.cache import CellFolder, compute_key
from chess_cxr.derive.film import write_new_file
from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.encoder import Encoder, TrainingSummary
from chess_cxr.encoders.folder import write_encoder
from chess_cxr.files.whole import write_atomically, write_whole_folder
from chess_cxr.records import ChessError, UsageError
from chess_cxr.store import Store
from chess_cxr.tasks.classify.train import finetune_classifier
from chess_cxr.tasks.model_folder import write_model


class Trace:
    """What was flushed, by inode, and what was renamed, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, int]] = []
        fsync, rename, replace, link = os.fsync, os.rename, os.replace, os.link

        def trace_fsync(descriptor: int) -> None:
            self.calls.append(("fsync", os.fstat(descriptor).st_ino))
            fsync(descriptor)

        def trace(name: str, call: Callable[..., None]) -> Callable[..., None]:
            def traced(source: str, target: str, **more: object) -> None:
                call(source, target, **more)
                self.calls.append((name, os.stat(target).st_ino))

            return traced

        monkeypatch.setattr(os, "fsync", trace_fsync)
        for name, call in {"rename": rename, "replace": replace, "link": link}.items():
            monkeypatch.setattr(os, name, trace(name, call))

    def find(self, kind: str, path: Path) -> list[int]:
        inode = path.stat().st_ino
        return [place for place, call in enumerate(self.calls) if call == (kind, inode)]

    def check(self, path: Path) -> None:
        """Every file: its content, its name in its folder, then the name of what is new, then that name's folder."""
        [named] = [place for kind in ("rename", "replace", "link") for place in self.find(kind, path)]
        for below in [path, *path.rglob("*")] if path.is_dir() else [path]:
            assert self.find("fsync", below) and self.find("fsync", below)[-1] < named, below
            if below.is_dir():
                within = [self.find("fsync", child)[0] for child in below.iterdir()]
                assert not within or max(within) < self.find("fsync", below)[-1], below
        assert self.find("fsync", path.parent)[-1] > named


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> Trace:
    return Trace(monkeypatch)


def test_a_file_is_flushed_before_it_is_named_and_its_folder_after(trace: Trace, tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "a.json", b"{}")
    trace.check(tmp_path / "new" / "a.json")
    write_new_file(tmp_path, "film", ".png", b"content")
    trace.check(tmp_path / "film.png")


def test_a_folder_is_flushed_from_the_inside_out_before_it_is_named(trace: Trace, tmp_path: Path) -> None:
    with write_whole_folder(tmp_path / "out") as growing:
        (growing / "inner").mkdir()
        (growing / "inner" / "a").write_text("a")
        (growing / "b").write_text("b")
        assert not (tmp_path / "out").exists()
    trace.check(tmp_path / "out")


def test_encoders_models_cells_and_audits_are_written_in_that_order(
    trace: Trace, tiny_encoder: Encoder, store: Store, tmp_path: Path
) -> None:
    state, contract = tiny_encoder.module.state_dict(), PixelContract(32, (0.5,), (0.25,))
    write_encoder(tmp_path / "encoder", state, "test_resnet", contract, "MIT", TrainingSummary("Drawn.  SYNTHETIC."))
    trace.check(tmp_path / "encoder")
    finetune_classifier(tiny_encoder, store, tmp_path / "model")
    trace.check(tmp_path / "model")
    write_audit(audit_stores([store]), tmp_path / "audit")
    trace.check(tmp_path / "audit")
    cells, key = CellFolder(tmp_path / "cells"), compute_key({"a": 1})
    cells.write(key, {"x": np.zeros(3)}, {})
    trace.check(cells.locate(key))
    (tmp_path / "bones" / "run").mkdir(parents=True)
    write_model(tmp_path / "bones", {}, {"task": "bones"}, {})
    for name in ("model.safetensors", "result.json", "config.json"):
        trace.check(tmp_path / "bones" / name)
    assert trace.find("replace", tmp_path / "bones" / "config.json") > trace.find(
        "replace", tmp_path / "bones" / "model.safetensors"
    )


def test_what_fails_within_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ChessError, match="broken"), write_whole_folder(tmp_path / "out") as growing:
        (growing / "a").write_text("a")
        raise ChessError("broken")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists already"), write_whole_folder(tmp_path / "out"):
        pass
