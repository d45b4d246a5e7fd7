"""The model card of an encoder: Markdown for readers, front matter for the Hugging Face Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from chess_cxr.encoders.contract import parse_contract
from chess_cxr.encoders.processor import list_unexpressed

# Licence identifiers of the Hub; for any other licence the front matter says "other" and the text names it.
HUB_LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-nc-sa-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "cc-by-4.0")
POLARITIES = {"bone_bright": "air dark, bone bright", "bone_dark": "air bright, bone dark"}
FITS = {
    "squash": "whole film, aspect ratio ignored",
    "pad": "whole film, short side padded with air",
    "crop": "central square",
}
INTERPOLATIONS = {"area": "area average (bilinear when enlarging)", "bilinear": "bilinear, no smoothing"}


def render_card(config: Mapping[str, Any], evaluation: str = "", limits: str = "") -> str:
    """Render the model card from an encoder folder's `config.json`, its evaluation and its known limits (Markdown).

    Escapes the text of the config: it cannot end a table row or add front matter.
    """
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"cell": _to_cell, "count": _to_count, "quote": json.dumps}
    template = environment.from_string((files("chess_cxr.encoders") / "card.md").read_text("utf-8"))
    block = config["chess_cxr"]
    contract = block["contract"]
    return template.render(
        architecture=config["architecture"],
        block=block,
        contract=contract,
        training={"seconds": 0, "machine": ""} | block["training"],
        hub_licence=_find_hub_licence(block["licence"]),
        polarity=POLARITIES[contract["polarity"]],
        fit=FITS[contract["fit"]],
        interpolation=INTERPOLATIONS[contract["interpolation"]],
        configuration=json.dumps(block["training"]["config"], indent=2),
        evaluation=evaluation.strip(),
        limits=limits.strip(),
        unexpressed=list_unexpressed(parse_contract(contract)),
    )


def _find_hub_licence(licence: str) -> str:
    """Return the Hub's identifier if the text starts with one, else "other"."""
    text = licence.lower().replace(" ", "-")
    return next((name for name in HUB_LICENCES if re.match(rf"{re.escape(name)}(?![\w.])", text)), "other")


def _to_cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _to_count(value: int) -> str:
    return f"{value:,}" if value else "not stated"
