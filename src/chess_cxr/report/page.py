"""One self-contained HTML page: readable offline, on a phone and on paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined


@dataclass(frozen=True)
class Section:
    """One part of a page: a heading, paragraphs of plain text, a plot as SVG text, a table, a command."""

    heading: str
    text: str = ""
    figure: str = ""
    figure_caption: str = ""
    table: pd.DataFrame | None = None
    table_caption: str = ""
    command: str = ""


def render_page(title: str, sections: Sequence[Section], *, subtitle: str = "", synthetic: bool = False) -> str:
    """Render a page; `synthetic` puts a banner on it that nobody can overlook."""
    template = files("chess_cxr.report").joinpath("templates/page.html").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        title=title, subtitle=subtitle, sections=sections, synthetic=synthetic
    )


def write_page(path: Path, page: str) -> Path:
    """Write a rendered page whole or not at all."""
    growing = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    growing.write_text(page, "utf-8")
    growing.replace(path)
    return path


def build_result_table(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Turn `Comparison.table()` into encoders down, label subsets across, "value [low, high]" in the cells."""
    chosen = table[table["metric"] == metric]
    cells = pd.DataFrame(
        {
            "encoder": chosen["encoder"],
            "subset": [f"{row.subset} · {row.n_train_films:.0f} films" for row in chosen.itertuples()],
            "text": [f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in chosen.itertuples()],
        }
    )
    wide = cells.pivot(index="encoder", columns="subset", values="text")
    wide = wide.loc[cells["encoder"].drop_duplicates(), cells["subset"].drop_duplicates()]
    return wide.reset_index().rename_axis(columns=None)
