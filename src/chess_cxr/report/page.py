"""Render self-contained HTML pages, readable offline, on a phone and on paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined, Template

from chess_cxr.files.whole import write_atomically


@dataclass(frozen=True)
class Section:
    """Part of a page: a heading, paragraphs of plain text (separated by blank lines), plots, a table, a command.

    figures: SVG texts, side by side if there is room.  figure_width: of each, in rem.
    """

    heading: str
    text: str = ""
    figures: tuple[str, ...] = ()
    figure_width: int = 20
    figure_caption: str = ""
    table: pd.DataFrame | None = None
    table_caption: str = ""
    command: str = ""


def render_page(title: str, sections: Sequence[Section], *, subtitle: str = "", synthetic: bool = False) -> str:
    """Render a page; `synthetic` adds a conspicuous banner.  All text is escaped, except the figures."""
    template = load_template("chess_cxr.report", "templates/page.html")
    return template.render(title=title, subtitle=subtitle, sections=sections, synthetic=synthetic)


def load_template(package: str, name: str, **filters: Callable[..., object]) -> Template:
    """Load the template of a page, which escapes all text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= filters
    return environment.from_string(files(package).joinpath(name).read_text("utf-8"))


def write_page(path: Path, page: str) -> Path:
    """Write a rendered page whole or not at all, and return its path."""
    write_atomically(path, page.encode())
    return path
