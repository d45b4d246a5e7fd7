import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from chess_cxr.encoders.card import render_card
from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.encoder import TrainingSummary, build_network
from chess_cxr.encoders.folder import write_encoder


def describe(**changes: Any) -> dict[str, Any]:
    """Return the config of an encoder folder, as far as the card reads it."""
    block = {
        "feature_count": 368,
        "licence": "CC-BY-NC-4.0, research only",
        "contract": {
            "size": 96,
            "mean": [0.658],
            "std": [0.221],
            "percentiles": [0.0, 99.0],
            "polarity": "bone_bright",
            "interpolation": "area",
            "fit": "squash",
            "channels": 1,
        },
        "training": {
            "data": "5,960 films of four sets; no licence is stated for three of them.",
            "images": 5960,
            "steps": 12_500,
            "method": "MoCo v2",
            "date": "2025-01-31",
            "config": {"batch": 256, "lr": 0.03},
        },
        "training_uids": 5960,
        "sha256": {"model.safetensors": "ab" * 32},
    }
    for key, value in changes.items():
        if isinstance(value, dict) and key in block:
            block[key] = {**block[key], **value}
        else:
            block[key] = value
    return {"architecture": "regnetx_002", "chess_cxr": block}


def split_card(card: str) -> tuple[dict[str, Any], str]:
    empty, front, body = card.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front), body


def read_section(card: str, title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title!r}"
    return found[1]


def test_the_front_matter_tells_the_hub_licence_library_and_task() -> None:
    front, _ = split_card(render_card(describe()))
    assert front["license"] == "cc-by-nc-4.0"
    assert front["library_name"] == "timm"
    assert front["pipeline_tag"] == "image-feature-extraction"
    assert {"timm", "chest-x-ray", "chess-cxr"} <= set(front["tags"])


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("Apache-2.0 (root licence of the published repository)", "apache-2.0"),
        ("apache 2.0", "apache-2.0"),
        ("MIT", "mit"),
        ("CC-BY-4.0", "cc-by-4.0"),
        ("CC BY-NC-SA 4.0", "cc-by-nc-sa-4.0"),
        ("MITRE terms", "other"),
        ("Apache-2.01", "other"),
        ("not stated", "other"),
    ],
)
def test_only_a_licence_the_hub_knows_is_named_to_it(licence: str, expected: str) -> None:
    front, body = split_card(render_card(describe(licence=licence)))
    assert front["license"] == expected
    assert front.get("license_name") == (licence if expected == "other" else None)
    assert licence in read_section(body, "Licence")


@pytest.mark.parametrize("licence", ['mine: "all"\nlicense: mit', "---\n# other card", "a # b: [c", "Ünïcode 中文"])
def test_no_licence_text_can_add_front_matter(licence: str) -> None:
    front, body = split_card(render_card(describe(licence=licence)))
    assert front["license"] == "other"
    assert front["license_name"] == " ".join(licence.split())
    assert set(front) == {"library_name", "license", "license_name", "pipeline_tag", "tags"}
    assert body.lstrip().startswith("# Chest X-ray encoder (regnetx_002)")


def test_the_contract_table_says_everything_a_user_must_do_to_the_pixels() -> None:
    table = read_section(render_card(describe()), "Pixel contract")
    for fact in ("0.658", "0.221", "96 × 96", "air dark, bone bright", "percentiles 0.0 and 99.0", "area average"):
        assert fact in table
    other = {"percentiles": None, "polarity": "bone_dark", "fit": "pad", "interpolation": "bilinear", "channels": 3}
    colour = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    table = read_section(render_card(describe(contract={**other, **colour})), "Pixel contract")
    facts = (
        "0.485, 0.456, 0.406",
        "as decoded",
        "air bright, bone dark",
        "padded with air",
        "3 (the grey film repeated)",
    )
    for fact in facts:
        assert fact in table
    assert "area average" not in table


def test_training_data_and_procedure_are_told() -> None:
    card = render_card(describe())
    data, procedure = read_section(card, "Training data"), read_section(card, "Training procedure")
    assert "no licence is stated for three of them" in data
    assert data.count("5,960") == 3 and "training_uids.txt" in data and "never score it" in data
    assert "MoCo v2" in procedure
    assert "12,500" in procedure
    assert "2025-01-31" in procedure
    timed = render_card(describe(training={"seconds": 3719.6, "machine": "cpu, 1 thread"}))
    assert "| seconds | 3,720 on cpu, 1 thread |" in read_section(timed, "Training procedure")
    configuration = re.search(r"```json\n(.*?)\n```", procedure, re.DOTALL)
    assert configuration and json.loads(configuration[1]) == {"batch": 256, "lr": 0.03}


def test_what_is_unknown_is_called_not_stated_and_never_zero() -> None:
    unknown = {"images": 0, "steps": 0, "method": "", "date": "", "config": {}}
    card = render_card(describe(training=unknown, training_uids=0))
    data, procedure = read_section(card, "Training data"), read_section(card, "Training procedure")
    assert data.count("not stated") == 2 and "overlap with test films cannot be checked" in data
    assert procedure.count("not stated") == 4
    assert "| 0 |" not in card
    assert "Configuration" not in card


def test_a_bar_or_line_break_in_a_value_does_not_break_its_table() -> None:
    procedure = read_section(
        render_card(describe(training={"method": "MoCo | v2\n| steps | 9 |"})), "Training procedure"
    )
    rows = [line for line in procedure.splitlines() if line.startswith("|")]
    assert len(rows) == 6
    assert r"| method | MoCo \| v2 \| steps \| 9 \| |" in rows


def test_the_evaluation_is_shown_as_given_or_said_to_be_missing() -> None:
    assert "None is recorded here" in read_section(render_card(describe()), "Evaluation")
    evaluation = "| task | AUROC |\n|---|---|\n| pneumonia | 0.81 [0.78, 0.84], 519 films |"
    section = read_section(render_card(describe(), evaluation), "Evaluation")
    assert evaluation in section
    assert "None is recorded" not in section


def test_the_known_limits_of_an_encoder_are_told() -> None:
    limits = read_section(
        render_card(describe(), limits="Films of adults: no better than pixels."), "Intended use and limits"
    )
    assert "Films of adults: no better than pixels." in limits and "For research" in limits


def test_the_card_says_what_the_image_processor_of_transformers_cannot_express() -> None:
    how = read_section(render_card(describe()), "How to load it")
    assert "Polarity: hand over films with air dark and bone bright" in how and "percentiles 0.0 and 99.0" in how
    how = read_section(render_card(describe(contract={"percentiles": None, "fit": "pad"})), "How to load it")
    assert "percentiles" not in how and "margins get the mean grey" in how


def test_text_that_looks_like_a_template_stays_text() -> None:
    card = render_card(describe(training={"data": "{{ 7 * 7 }} {% raw %}"}), "{{ config }}")
    assert "{{ 7 * 7 }} {% raw %}" in card
    assert "{{ config }}" in card


def test_the_card_says_it_is_for_research_and_cites_chess() -> None:
    card = render_card(describe())
    assert "For research" in read_section(card, "Intended use and limits")
    never = read_section(card, "What it must not be used for")
    assert "not a medical device" in never and "diagnose" in never and "identify people" in never
    citation = read_section(card, "Citation")
    assert "10.1007/s10278-023-00782-4" in citation
    assert citation.count("{") == citation.count("}")
    assert "ab" * 32 in read_section(card, "Files")


def test_the_loading_examples_in_the_card_run_as_printed(tmp_path: Path) -> None:
    state = build_network("regnetx_002", 1).state_dict()
    contract = PixelContract(64, (0.5,), (0.2,))
    write_encoder(tmp_path / "encoder", state, "regnetx_002", contract, "MIT", TrainingSummary("None."))
    examples = re.findall(r"```python\n(.*?)```", (tmp_path / "encoder" / "README.md").read_text(), re.DOTALL)
    assert len(examples) == 4
    known: dict[str, Any] = {"pixels": torch.zeros(2, 1, 64, 64), "films": [np.zeros((70, 60))] * 2}
    known |= {"pictures": [Image.new("L", (70, 60))] * 2, "xrv_films": torch.zeros(2, 1, 70, 60)}
    for example in examples:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of transformers
            exec(example.replace("path/to/this/folder", str(tmp_path / "encoder")), known)
        assert tuple(known.pop("features").shape) == (2, 368)
