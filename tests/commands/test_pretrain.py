"""What no run can do is one line of `pretrain`, before anything is trained or written."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from command_line import Answer, run
from tiny_runs import build_tiny_config

VIT = {"name": "dino", "architecture": "test_vit", "embedding": 8, "hidden": 16, "prototypes": 8}
LARGE = {"local_views": 2, "local_size": 48}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"crops": LARGE}, "crops: local views of 48 pixels are larger than the global ones of 32"),
        (
            {"crops": {"local_views": 2, "local_size": 24}, "sizes": [[0.5, 16], [1, 32]]},
            "crops: local views of 24 pixels are larger than the global ones of 16",
        ),
        (
            {"guides": [{"column": "hospital"}]},
            "no column 'hospital' can guide or balance a run; there are site, manufacturer, view, sex, patient, study",
        ),
        (
            {"guides": [{"column": "manufacturer"}]},
            "guides: the column 'manufacturer' is unknown for all films, so it can guide nothing",
        ),
        (
            {"guides": [{"column": "view"}]},
            "guides: the column 'view' has the same value for all films, so it can guide nothing",
        ),
        ({"balance": "view"}, "all films have the same view: there is nothing to balance"),
        (
            {"sizes": [[0.5, 16], [0.9, 32]]},
            "sizes: (share of the run, size) pairs rise to share 1, such as [[0.5, 64], [1, 96]]",
        ),
        ({"sizes": [[0.5, 16], [1, 24]]}, "sizes: the last size must be that of the views, 32, not 24"),
        (
            {"method": VIT, "crops": {"local_views": 2, "local_size": 20}},
            "a ViT with patches of 16 pixels takes views whose side they divide, not 20",
        ),
        (
            {"method": VIT, "sizes": [[0.5, 24], [1, 32]]},
            "a ViT with patches of 16 pixels takes views whose side they divide, not 24",
        ),
    ],
    ids=str,
)
def test_what_no_run_can_do_is_one_line_before_anything_is_trained(
    changed: dict[str, Any], said: str, two_sites: Path, tmp_path: Path
) -> None:
    described = json.loads(json.dumps(asdict(build_tiny_config()))) | changed
    config = tmp_path / "config.json"
    config.write_text(json.dumps(described))
    answer = run("pretrain", two_sites, "--config", config, "--out", tmp_path / "run", "--quiet")
    assert answer.code == 2 and answer.out == ""
    [line] = answer.err.splitlines()
    assert line.startswith("chess-cxr: ") and line.endswith(said)
    assert not (tmp_path / "run").exists()


def test_the_same_configuration_without_mistakes_trains(two_sites: Path, tmp_path: Path) -> None:
    """Otherwise the lines above might come from something else."""
    right = {
        "method": VIT, "crops": {"local_views": 2, "local_size": 16}, "sizes": [[0.5, 16], [1, 32]],
        "guides": [{"column": "site"}], "balance": "site",
    }  # fmt: skip
    described = json.loads(json.dumps(asdict(build_tiny_config(steps=2)))) | right
    described["training"]["decay_norms"], described["views"]["antialias"] = False, True
    config = tmp_path / "config.json"
    config.write_text(json.dumps(described))
    answer = run("pretrain", two_sites, "--config", config, "--out", tmp_path / "run", "--quiet")
    assert answer == Answer(0, f"{tmp_path / 'run'}\n", "")


def test_a_run_goes_on_after_its_store_was_embedded(small_store: Path, tmp_path: Path) -> None:
    store, config = tmp_path / "films.lance", tmp_path / "tiny.json"
    shutil.copytree(small_store, store)
    config.write_text(json.dumps(asdict(build_tiny_config())))
    words = ("pretrain", store, "--config", config, "--out", tmp_path / "run", "--quiet")
    assert run(*words).code == 0
    assert run("embed", "pixels:4", store, "--quiet").code == 0
    (tmp_path / "run" / "checkpoints" / "step_00000004.safetensors").unlink()  # as after a kill at step 3
    again = run(*words)
    assert again.code == 0 and "finished already" not in again.err, again
