import os
import re
import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest

import chess_cxr
from places import CHECKOUT

README = CHECKOUT / "README.md"
NAMES = [
    "PRESETS",
    "AuditOptions",
    "BonesConfig",
    "ChessError",
    "FinetuneConfig",
    "IngestOptions",
    "NodulesConfig",
    "TrackingConfig",
    "UsageError",
    "audit_stores",
    "benchmark",
    "continue_from",
    "decode_film",
    "embed",
    "evaluate",
    "export",
    "finetune_bones",
    "finetune_classifier",
    "finetune_nodules",
    "import_chess",
    "ingest_films",
    "load_as_xrv",
    "load_bone_suppressor",
    "load_classifier",
    "load_encoder",
    "load_nodule_generator",
    "open_store",
    "predict",
    "pretrain",
    "read_folder",
    "write_audit",
    "write_onnx",
    "write_phantom_films",
    "write_run_page",
]


def test_the_public_names_are_these_and_no_others() -> None:
    assert chess_cxr.__all__ == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_leads_to_something_that_explains_itself(name: str) -> None:
    found = getattr(chess_cxr, name)
    for one in found.values() if isinstance(found, dict) else [found]:
        assert len(one.__doc__) > 20
        assert one.__doc__ != getattr(type(one), "__doc__", None)
    assert name in dir(chess_cxr)


def test_a_name_of_an_earlier_version_works_and_says_its_new_one() -> None:
    with pytest.warns(DeprecationWarning, match="chess_cxr.finetune is now called finetune_classifier"):
        assert chess_cxr.finetune is chess_cxr.finetune_classifier


def test_other_names_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        chess_cxr.evalute  # noqa: B018


def test_evaluate_stays_the_function_when_its_numbers_are_imported() -> None:
    import chess_cxr.evaluation.metrics  # noqa: F401

    assert callable(chess_cxr.evaluate)


def test_importing_the_package_loads_neither_torch_nor_the_store() -> None:
    heavy = "{'torch', 'timm', 'lance', 'numpy', 'pandas', 'cv2', 'matplotlib', 'tyro'}"
    code = f"import sys, chess_cxr; dir(chess_cxr); print(sorted({heavy} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_type_checkers_may_trust_the_annotations() -> None:
    assert files("chess_cxr").joinpath("py.typed").is_file()


def test_the_version_is_that_of_the_distribution() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "chess_cxr", "--version"], capture_output=True, text=True, check=True
    )
    assert answer.stdout == f"chess-cxr {version('chess-cxr')}\n"


@pytest.mark.long  # `make docs-blocks` runs it too, with the core's packages
def test_the_python_example_of_the_readme_runs(tmp_path: Path) -> None:
    example = re.search(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert example
    for name in ("ingest_films", "pretrain", "export", "load_encoder", "evaluate"):
        assert f"{name}(" in example[1]
    script = tmp_path / "example.py"
    script.write_text(example[1], "utf-8")
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", script.name]
    environment = os.environ | {"XDG_CONFIG_HOME": str(tmp_path)}
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert re.search(r"\| ours \| \d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\] \|", answer.stdout)
