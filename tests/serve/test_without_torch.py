"""With ONNX Runtime, the server answers without torch, which takes seconds to import; saliency alone needs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chess_cxr.tasks.runtime import may_have_gpu
from pacs_node import write_radiograph
from served import serve, write_onnx_models

HEAVY = ("torch", "torchvision", "timm", "segmentation_models_pytorch")


@pytest.fixture
def no_torch(tmp_path: Path) -> str:
    """A path of modules on which torch and what comes with it cannot be imported."""
    folder = tmp_path / "without"
    folder.mkdir()
    for name in HEAVY:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not wanted here')\n")
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_onnx_models_are_served_without_torch_and_say_what_predict_says(tmp_path: Path, no_torch: str) -> None:
    findings, bones, encoder = write_onnx_models(tmp_path)
    film = write_radiograph(tmp_path / "film.dcm")
    device = ("--device", "cpu" if may_have_gpu() else "auto")
    with serve(tmp_path, findings, bones, encoder, *device, PYTHONPATH=no_torch) as served:
        told = served.ask("GET", "/v1/models").json()["models"]
        assert [(model["task"], model["runtime"]) for model in told] == [
            ("classify", "onnx"), ("bones", "onnx"), ("embed", "onnx"),
        ]  # fmt: skip
        [answer] = served.post("/v1/predict", film.read_bytes()).json()["answers"]
        assert served.post("/v1/suppress-bones", film.read_bytes()).status == 200
        features = np.array(served.post("/v1/embed", film.read_bytes()).json()["features"])
    assert features.shape[0] == 1 and np.ptp(features) > 0
    command = [sys.executable, "-m", "chess_cxr", "predict", str(findings), str(film), "--json", "--quiet", *device]
    without = os.environ | {"PYTHONPATH": no_torch}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=without)
    [record] = json.loads(done.stdout)
    assert {found["label"]: found["probability"] for found in answer["findings"]} == {
        found["label"]: record[found["label"]] for found in answer["findings"]
    }


def test_saliency_loads_torch_when_it_is_asked_for(tmp_path: Path) -> None:
    findings, _, _ = write_onnx_models(tmp_path)
    film = write_radiograph(tmp_path / "film.dcm")
    with serve(tmp_path, findings) as served:
        picture = served.post("/v1/saliency", film.read_bytes())
        assert picture.status == 200 and picture.body.startswith(b"\x89PNG")
