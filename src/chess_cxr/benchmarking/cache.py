"""A folder of finished cells, each under the hash of all that it was computed from.

A cell is a folder of `.npy` files and a `cell.json`; it is written elsewhere and renamed, so that it is there whole or
not at all, whenever the process is killed and whoever else works in the same folder.  Readers map the arrays.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chess_cxr.files.whole import flush_file, flush_folder
from chess_cxr.records import ChessError

DESCRIPTION = "cell.json"
PACKAGE = Path(__file__).parents[1]
PARTIAL = ".partial-"
Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class CellFolder:
    """The folder of all cells; it can be pickled, and used by many processes at once.

    lasting: whether every cell reaches the disk at once; no need where the folder goes when its process ends.
    """

    root: Path
    lasting: bool = True

    def locate(self, key: str) -> Path:
        """Return where the cell of this key stands, or will stand."""
        return self.root / key[:2] / key

    def holds(self, key: str) -> bool:
        """Return whether the cell is there, with all its files in full length."""
        return self._read_description(key) is not None

    def read_arrays(self, key: str) -> dict[str, NDArray[Any]]:
        """Map the arrays of a cell; each holds a file open.  Raises ChessError where it is missing or damaged."""
        described = self._read_description(key)
        if described is None:
            raise ChessError(f"a cell of {self.root} is missing or damaged; run the same again")
        return {name: np.load(self.locate(key) / f"{name}.npy", mmap_mode="r") for name in described["bytes"]}

    def read_facts(self, key: str) -> dict[str, Any]:
        """Return what a cell says beside its arrays."""
        described = self._read_description(key)
        return {} if described is None else dict(described["facts"])

    def write(self, key: str, arrays: Arrays, facts: Mapping[str, Any]) -> None:
        """Write a cell, whole or not at all; one that is there already in full stays."""
        owner = f"{socket.gethostname()}-{os.getpid()}"
        draft = self.root / f"{PARTIAL}{owner}-{uuid.uuid4().hex}"
        place = self.locate(key)
        try:
            draft.mkdir(parents=True)
            for name, array in arrays.items():
                np.save(draft / f"{name}.npy", array, allow_pickle=False)
            sizes = {name: (draft / f"{name}.npy").stat().st_size for name in arrays}
            described = json.dumps({"bytes": sizes, "facts": dict(facts)}, allow_nan=False)
            (draft / DESCRIPTION).write_text(described, "utf-8")
            if self.lasting:
                for file in draft.iterdir():
                    flush_file(file)
                flush_folder(draft)
            place.parent.mkdir(exist_ok=True)
            if place.exists() and not self.holds(key):
                shutil.rmtree(place)
            if not place.exists():
                draft.rename(place)
                if self.lasting:
                    flush_folder(place.parent)
        except OSError as error:
            if not self.holds(key):  # else another process was faster with the same cell
                raise ChessError(f"cannot write to {self.root}: {error.strerror or error}") from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def keep_array(self, array: NDArray[np.generic], name: str = "array") -> str:
        """Store one array under the hash of its content and return that key."""
        key = compute_key({name: hash_array(array)})
        if not self.holds(key):
            self.write(key, {name: array}, {})
        return key

    def read_array(self, key: str) -> NDArray[Any]:
        """Map an array that `keep_array` stored."""
        return self.read_arrays(key)["array"]

    def clear_partial(self) -> None:
        """Remove what killed processes of this machine left half-written."""
        mine = f"{PARTIAL}{socket.gethostname()}-"
        for draft in self.root.glob(f"{mine}*"):
            pid = draft.name.removeprefix(mine).partition("-")[0]
            if pid.isdecimal() and not _is_alive(int(pid)):
                shutil.rmtree(draft, ignore_errors=True)

    def _read_description(self, key: str) -> dict[str, Any] | None:
        place = self.locate(key)
        try:
            described: dict[str, Any] = json.loads((place / DESCRIPTION).read_bytes())
            whole = all((place / f"{name}.npy").stat().st_size == size for name, size in described["bytes"].items())
        except (OSError, ValueError, KeyError):
            return None
        return described if whole else None


def compute_key(described: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain JSON values, whatever their order."""
    return hashlib.sha256(json.dumps(described, sort_keys=True, allow_nan=False).encode()).hexdigest()


def hash_array(array: NDArray[np.generic]) -> str:
    """Return the SHA-256 of an array's type, shape and content."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return digest.hexdigest()


@cache
def compute_code_version(*modules: str) -> str:
    """Return the SHA-256 of the source of these modules, such as "evaluation.linear_probe", and of all they import.

    A cell computed by other code is another cell: nobody has to remember to raise a number or to name a module.
    """
    digest = hashlib.sha256()
    for name, source in sorted(list_sources(modules).items()):
        digest.update(f"{name}\n".encode() + source.read_bytes())
    return digest.hexdigest()


def list_sources(modules: Iterable[str]) -> dict[str, Path]:
    """Return the source of these modules and of all modules of this package that they import, inside functions too."""
    found, waiting = dict[str, Path](), list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = _find_source(name)
            waiting += _list_imports(found[name])
    return found


def _find_source(module: str) -> Path:
    file = PACKAGE.joinpath(*module.split("."))
    return file / "__init__.py" if file.is_dir() else file.with_suffix(".py")


def _list_imports(source: Path) -> list[str]:
    """Name the modules of this package that a source file imports, without the package's own name."""
    names = list[str]()
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE.name}."):
            module = str(node.module).partition(".")[2]
            inside = [f"{module}.{alias.name}" for alias in node.names]
            names += [module, *(name for name in inside if _find_source(name).is_file())]
    return names


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
