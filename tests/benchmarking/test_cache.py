"""The folder of cells: whole or not there, under a name that says what it holds."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chess_cxr.benchmarking import cache
from chess_cxr.benchmarking.cache import CellFolder, compute_code_version, compute_key, hash_array, list_sources
from chess_cxr.benchmarking.cells import EMBED_CODE, PROBE_CODE, REPLICATE_CODE, read_features
from chess_cxr.benchmarking.fit_cells import FIT_CODE
from chess_cxr.benchmarking.stages import cut_films
from chess_cxr.records import ChessError

KEY = compute_key({"some": "cell"})


@pytest.fixture
def folder(tmp_path: Path) -> CellFolder:
    made = CellFolder(tmp_path / "cells")
    made.write(KEY, {"a": np.arange(6.0).reshape(2, 3), "empty": np.empty((0, 3), np.float32)}, {"notes": ["x"]})
    return made


def test_a_cell_is_read_as_it_was_written(folder: CellFolder) -> None:
    arrays = folder.read_arrays(KEY)
    assert arrays["a"].tolist() == [[0, 1, 2], [3, 4, 5]] and arrays["empty"].shape == (0, 3)
    assert folder.read_facts(KEY) == {"notes": ["x"]} and folder.holds(KEY)


@pytest.mark.parametrize("damage", ["shorten", "remove", "no description", "half a description"])
def test_a_damaged_cell_is_not_there_and_can_be_written_again(folder: CellFolder, damage: str) -> None:
    place = folder.locate(KEY)
    if damage == "shorten":
        (place / "a.npy").write_bytes((place / "a.npy").read_bytes()[:-1])
    elif damage == "remove":
        (place / "a.npy").unlink()
    elif damage == "no description":
        (place / "cell.json").unlink()
    else:
        (place / "cell.json").write_text('{"bytes": {"a"')
    assert not folder.holds(KEY)
    with pytest.raises(ChessError, match="missing or damaged"):
        folder.read_arrays(KEY)
    folder.write(KEY, {"a": np.zeros(2)}, {})
    assert folder.read_arrays(KEY)["a"].tolist() == [0, 0]


def test_features_are_gathered_from_their_chunks(tmp_path: Path) -> None:
    feature_ND = np.arange(10_000, dtype=np.float32).reshape(5000, 2)
    folder = CellFolder(tmp_path, lasting=False)
    keys = [folder.keep_array(feature_ND[start:stop], "feature") for start, stop in cut_films(5000)]
    places = np.array([4999, 0, 2047, 2048, 2049, 4095, 4096])
    assert len(keys) == 3 and np.array_equal(read_features(folder, keys, places), feature_ND[places])


def test_a_cell_that_is_there_stays(folder: CellFolder) -> None:
    folder.write(KEY, {"a": np.zeros(2)}, {})
    assert folder.read_arrays(KEY)["a"].shape == (2, 3)
    assert not list(folder.root.glob(".partial-*"))


def test_what_a_killed_process_left_is_cleared_and_what_a_living_one_writes_is_not(folder: CellFolder) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = socket.gethostname()
    drafts = {name: folder.root / f".partial-{name}" for name in (f"{host}-{gone.pid}-a", f"{host}-{os.getpid()}-b")}
    drafts |= {"other": folder.root / ".partial-otherhost-1-c"}
    for draft in drafts.values():
        draft.mkdir()
    folder.clear_partial()
    assert [draft.exists() for draft in drafts.values()] == [False, True, True]


def test_arrays_are_named_by_type_shape_and_content(folder: CellFolder) -> None:
    first = folder.keep_array(np.arange(4))
    assert folder.keep_array(np.arange(4)) == first
    assert folder.read_array(first).tolist() == [0, 1, 2, 3]
    others = [np.arange(4).astype(np.int32), np.arange(4).reshape(2, 2), np.arange(1, 5), np.arange(0)]
    assert len({hash_array(array) for array in others} | {hash_array(np.arange(4))}) == 5


def test_a_key_does_not_hang_on_the_order_of_its_parts() -> None:
    assert compute_key({"a": 1, "b": 2}) == compute_key({"b": 2, "a": 1}) != compute_key({"a": 1, "b": 3})


def test_the_code_is_part_of_the_name() -> None:
    assert compute_code_version("evaluation.metrics") != compute_code_version("evaluation.intervals")


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ChessError, match="cannot write to"):
        CellFolder(tmp_path / "file").write(KEY, {"a": np.zeros(2)}, {})


CODE = {"EMBED": EMBED_CODE, "FIT": FIT_CODE, "REPLICATE": REPLICATE_CODE}
CODE |= {head: (module,) for head, module in PROBE_CODE.items()}


@pytest.mark.parametrize("modules", CODE.values(), ids=CODE)
def test_the_key_of_a_cell_covers_every_module_that_is_loaded_to_compute_it(modules: tuple[str, ...]) -> None:
    loading = "; ".join(f"import chess_cxr.{module}" for module in modules)
    code = f"import sys, chess_cxr; before = set(sys.modules); {loading}; print(*(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    ours = {name.removeprefix("chess_cxr.") for name in loaded if name.startswith("chess_cxr.")}
    without_code = {name for name in ours if (cache.PACKAGE / name.replace(".", "/")).is_dir()}
    assert len(ours) > 3 and ours - without_code <= set(list_sources(modules))


def test_a_changed_module_that_a_cell_needs_changes_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = shutil.copytree(cache.PACKAGE, tmp_path / cache.PACKAGE.name)
    monkeypatch.setattr(cache, "PACKAGE", package)

    def compute() -> dict[str, str]:
        compute_code_version.cache_clear()
        return {name: compute_code_version(*modules) for name, modules in CODE.items()}

    before = compute()
    for module, changed in {
        "encoders/xrv": {"EMBED", "FIT"}, "store": {"EMBED", "FIT"}, "views": {"EMBED", "FIT"},
        "training/precision": {"FIT"}, "evaluation/logistic": {"FIT", "linear"}, "evaluation/delong": {"REPLICATE"},
        "evaluation/neighbours": {"knn", "REPLICATE"},
        "sources/folder": set[str](),
    }.items():  # fmt: skip
        source = package / f"{module}.py"
        source.write_text(source.read_text() + "\n# changed\n")
        after = compute()
        assert {name for name in CODE if after[name] != before[name]} == changed, module
        before = after
    compute_code_version.cache_clear()
