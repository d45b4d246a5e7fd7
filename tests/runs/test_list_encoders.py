"""The table of encoders that runs/list_encoders.sh writes into suites."""

import subprocess
import tomllib
from pathlib import Path

from places import CHECKOUT


def test_folders_and_files_of_this_place_become_absolute_and_names_stay(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "chess.pth.tar").touch()
    asked = {
        "own": ("own", f"{tmp_path}/own"),
        "larger": ("size=96:blocks=4:own", f"size=96:blocks=4:{tmp_path}/own"),
        "CheSS": ("chess:chess.pth.tar", f"chess:{tmp_path}/chess.pth.tar"),
        "ImageNet": ("size=96:imagenet:tf_efficientnet_lite0", "size=96:imagenet:tf_efficientnet_lite0"),
        "cxr-small": ("cxr-small", "cxr-small"),
    }
    words = [f"{name}={spec}" for name, (spec, _) in asked.items()]
    told = subprocess.run(
        [CHECKOUT / "runs/list_encoders.sh", *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert tomllib.loads(told.stdout)["encoders"] == {name: expected for name, (_, expected) in asked.items()}
