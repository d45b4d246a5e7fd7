"""What a report page is made of, before it is laid out: parts of blocks with text, plots, tables and pictures."""

from __future__ import annotations

from dataclasses import dataclass

MOST_COLUMNS = 7
"""Of a table, beside the first, that fit a page of 1,280 pixels."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its text, small lines below it, and its tone ("", "ahead", "behind" or "warn")."""

    text: str
    small: tuple[str, ...] = ()
    tone: str = ""


@dataclass(frozen=True)
class Grid:
    """A table; the first cell of each row names it.  caption: what its numbers are."""

    heads: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture as a data address ("" where there is none), what it shows, and lines of text below it."""

    source: str
    spoken: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """A heading ("" for none) and what stands under it, in this order.

    warnings: sentences that must not be overlooked.  figures: SVG texts, side by side where there is room;
    figure_width: of each, in letters (rem).  sheets: pictures as wide as the page.
    """

    heading: str = ""
    text: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    figure_width: int = 20
    figure_caption: str = ""
    grid: Grid | None = None
    pictures: tuple[Picture, ...] = ()
    picture_caption: str = ""
    sheets: tuple[Picture, ...] = ()
    code: str = ""


@dataclass(frozen=True)
class Part:
    """A section that the table of contents names."""

    anchor: str
    heading: str
    blocks: tuple[Block, ...]


def split_grid(heading: str, grid: Grid) -> list[Block]:
    """Return a table as blocks, one below the other, each narrow enough for the page; the caption stands last."""
    columns = len(grid.heads) - 1
    parts = max(1, -(-columns // MOST_COLUMNS))
    most = -(-columns // parts)
    blocks = []
    for part in range(parts):
        take = slice(1 + part * most, 1 + (part + 1) * most)
        rows = tuple((row[0], *row[take]) for row in grid.rows if parts == 1 or any(c.text != "–" for c in row[take]))
        last = part == parts - 1
        narrow = Grid((grid.heads[0], *grid.heads[take]), rows, grid.caption if last else "")
        blocks.append(Block(heading if part == 0 else "", grid=narrow))
    return blocks
