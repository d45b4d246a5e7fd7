"""Who may import whom: the table of docs/architecture.md, read from the source."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import chess_cxr
from places import CHECKOUT

PACKAGE = Path(chess_cxr.__file__).parent
EVERYTHING = {"everything"}


def read_table() -> dict[str, set[str]]:
    """Read from docs/architecture.md what every room may import of this package besides itself."""
    page = (CHECKOUT / "docs" / "architecture.md").read_text("utf-8").partition("| room | what stands there |")[2]
    table = dict[str, set[str]]()
    for line in page.splitlines()[2:]:
        if not line.startswith("|"):
            break
        room, _, imports = (cell.strip() for cell in line.strip("|").split("|"))
        names = set(imports.split(", ")) - {"nothing"}
        table[room] = names - {"as tasks"} | (table["tasks"] if "as tasks" in names else set())
    return table


MAY_IMPORT = read_table() | {"__init__": EVERYTHING, "__main__": {"cli"}}
NUMBERS = {"numpy", "scipy", "pandas"}
TORCH = {"torch", "torchvision", "timm", "safetensors", "segmentation_models_pytorch"}
# Third parties, where they are few; a room that is not here may use any.
MAY_USE = {
    "records": {"numpy"},
    "progress": {"rich"},
    "evaluation": NUMBERS,
    "views": {"cv2", "numpy"},
    "report": {"cv2", "jinja2", "matplotlib", "numpy", "pandas"},
}
# What runs where no network is needed, child processes above all, must not wait for torch.
NEVER_TORCH = set(
    [
        "records",
        "progress",
        "film_jpeg",
        "files",
        "workers",
        "views",
        "evaluation",
        "sources",
        "store",
        "report",
        "decode",
        "deidentify",
        "ingest",
        "derive",
        "audit",
        "cli",
        "arguments",
        "commands",
        "serve",
        "encoders.names",
        "encoders.facts",
        "encoders.onnx_session",
        "judges.crops",
        "tasks.table",
        "tasks.config",
        "tasks.classify.config",
        "tasks.classify.command",
        "tasks.classify.labels",
        "tasks.card",
        "tasks.classify.fit_operating",
        "tasks.classify.operating",
        "tasks.classify.score",
        "tasks.classify.shape",
        "tasks.answer",
        "tasks.nodule_contrast",
        "tasks.bones.config",
        "tasks.bones.command",
        "tasks.bones.tiles",
        "tasks.bones.written",
        "tasks.nodules.config",
        "tasks.nodules.command",
        "tasks.nodules.files",
        "tasks.nodules.films",
        "tasks.nodules.insertion",
        "tasks.nodules.masks",
        "tasks.nodules.region",
        "tasks.nodules.windows",
        "tasks.nodules.written",
    ]
)


def list_modules() -> dict[str, Path]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}


MODULES = list_modules()


@cache
def list_imports(module: str) -> tuple[str, ...]:
    """Every imported name in full; names that only type checkers see count too, as they bind the design."""
    return tuple(walk_imports(module))


def walk_imports(module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def list_own(module: str) -> set[str]:
    """The modules of this package that a module imports, such as "encoders.card"."""
    found = set()
    for name in list_imports(module):
        if name.split(".")[0] == "chess_cxr":
            inside = name.split(".")[1:]
            found.add(next((".".join(inside[:n]) for n in (4, 3, 2, 1) if ".".join(inside[:n]) in MODULES), inside[0]))
    return found


def list_places(module: str) -> list[str]:
    """A module and the folders around it, from the inside out: tasks.bones.train, tasks.bones, tasks."""
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def get_room(module: str) -> str:
    return next((place for place in list_places(module) if place in MAY_IMPORT), module)


def may_import(room: str, imported: str) -> bool:
    """Whether the table allows it; that a room may import `tasks` says nothing of the tasks themselves."""
    places = list_places(imported)
    within = places[: places.index(get_room(imported)) + 1]
    return MAY_IMPORT[room] == EVERYTHING or not MAY_IMPORT[room].isdisjoint(within)


def test_every_module_stands_in_the_table() -> None:
    rooms = {get_room(module) for module in MODULES if not module.endswith("__init__") or module == "__init__"}
    assert rooms == set(MAY_IMPORT)


def test_the_root_holds_few_modules() -> None:
    assert len([module for module in MODULES if "." not in module and not module.startswith("__")]) <= 8
    assert not (PACKAGE / "models").exists() and "api" not in MODULES


def test_no_file_is_longer_than_400_lines() -> None:
    assert {name: n for name, path in MODULES.items() if (n := path.read_text("utf-8").count("\n")) > 400} == {}
    assert MODULES["cli"].read_text("utf-8").count("\n") <= 300


def test_the_reader_of_imports_sees_them_all() -> None:
    assert {"report.page", "report.plots", "files.whole"} <= list_own("benchmarking.page.comparison")
    assert {"encoders.card", "encoders.contract", "files.whole"} <= list_own("encoders.folder")
    assert "torch" in {name.split(".")[0] for name in list_imports("methods.moco")}
    assert "encoders.load" in list_own("doctor.places")  # imported inside functions


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_the_table_allows(module: str) -> None:
    room = get_room(module)
    others = {name for name in list_own(module) if get_room(name) != room}
    assert {name for name in others if not may_import(room, name)} == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter({module: list_own(module) - {module} for module in MODULES}).prepare()  # CycleError names it


def test_only_commands_and_the_demo_may_import_everything() -> None:
    assert {room for room, allowed in MAY_IMPORT.items() if allowed == EVERYTHING} == {
        "commands", "demo", "__init__",
    }  # fmt: skip


@pytest.mark.parametrize("module", [module for module in MODULES if get_room(module) in MAY_USE])
def test_a_module_uses_only_the_libraries_the_table_names(module: str) -> None:
    used = {name.split(".")[0] for name in list_imports(module)} - {"chess_cxr"}
    libraries = {name for name in used if name not in sys.stdlib_module_names}
    assert libraries <= MAY_USE[get_room(module)]


@pytest.mark.parametrize("module", [module for module in MODULES if NEVER_TORCH.intersection(list_places(module))])
def test_what_needs_no_network_never_imports_torch(module: str) -> None:
    assert {name.split(".")[0] for name in list_imports(module)} & TORCH == set()
