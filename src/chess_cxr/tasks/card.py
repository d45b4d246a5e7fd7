"""The card of a task's model: Markdown for readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

CARD_FILE = "README.md"


def render_card(config: Mapping[str, Any], result: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """Render the card from a model's config.json, which names its task, and its result.json.

    notes: what a reader of the numbers should know, where the result has it in another form.
    Escapes names: they cannot end a row of a table.
    """
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"cell": _to_cell, "number": _to_number, "interval": _to_interval, "share": _to_share}
    template = environment.from_string((files(f"chess_cxr.tasks.{config['task']}") / "card.md").read_text("utf-8"))
    return template.render(config=config, result=result, notes=notes)


def _to_cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def _to_number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3f}"


def _to_interval(row: Mapping[str, float | None], name: str = "") -> str:
    """Return a value with its interval; of the columns NAME, NAME_low and NAME_high if there is a name."""
    value, low, high = (
        row[key] for key in ((name, f"{name}_low", f"{name}_high") if name else ("value", "low", "high"))
    )
    return "not known" if value is None else f"{value:.3f} [{_to_number(low)}, {_to_number(high)}]"


def _to_share(count: Mapping[str, int]) -> str:
    known = count["with"] + count["without"]
    return f"{count['with']:,} of {known:,} ({count['with'] / known:.1%})" if known else "none known"
