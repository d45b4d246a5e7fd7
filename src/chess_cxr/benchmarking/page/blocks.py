"""What a report page is made of, before it is laid out: parts of blocks with text, plots, tables and pictures."""

from __future__ import annotations

from dataclasses import dataclass


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
    figure_width: of each, in letters (rem).
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
    code: str = ""


@dataclass(frozen=True)
class Part:
    """A section that the table of contents names."""

    anchor: str
    heading: str
    blocks: tuple[Block, ...]
