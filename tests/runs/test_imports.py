"""What the scripts import is there: most of them run for hours, too long for a test."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from places import CHECKOUT

FOLDERS = [CHECKOUT / "runs", CHECKOUT / "benchmarks"]
SCRIPTS = sorted(path for folder in FOLDERS for path in folder.glob("*.py"))
SHELL = sorted(path for path in FOLDERS[0].glob("*.sh") if "from chess_cxr" in path.read_text())


def list_imported(path: Path) -> Iterator[tuple[str, str]]:
    """List the names that a script takes from modules, wherever it does: module, name; of the shell's, our modules."""
    text = path.read_text("utf-8")
    if path.suffix == ".sh":
        text = "\n".join(line for line in text.splitlines() if line.startswith("from chess_cxr"))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, name.name) for name in node.names)


def list_defined(path: Path) -> set[str]:
    """List what a script defines at its top level, without running it."""
    names = set[str]()
    for node in ast.parse(path.read_text("utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            names |= {part.id for part in ast.walk(target) if isinstance(part, ast.Name)} if target else set()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {name.asname or name.name for name in node.names}
    return names


@pytest.mark.parametrize("script", [*SCRIPTS, *SHELL], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_finds_every_name(script: Path) -> None:
    neighbours = {path.stem: path for path in SCRIPTS}
    for module, name in list_imported(script):
        if module in neighbours:
            assert name in list_defined(neighbours[module]), f"{module} has no {name}"
        elif module.partition(".")[0] == "chess_cxr":
            found = importlib.import_module(module)
            assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}"), f"{module} has no {name}"
