import re
from pathlib import Path

import pandas as pd
import pytest

from chess_cxr.report.page import Section, render_page, write_page
from pages import read_texts


def make_section() -> Section:
    return Section(
        "A heading",
        "First paragraph.\n\nSecond paragraph.",
        ("<svg><text>one</text></svg>", "<svg><text>two</text></svg>"),
        figure_caption="Two plots.",
        table=pd.DataFrame({"encoder": ["ours"], "all · 9 films": ["0.9 [0.8, 1.0]"]}),
        table_caption="What it is.",
        command="chess-cxr evaluate a & b",
    )


def test_every_part_of_a_section_stands_on_the_page() -> None:
    texts = read_texts(render_page("A title", [make_section()], subtitle="A subtitle"))
    for expected in [
        ("h1", "A title"),
        ("p", "A subtitle"),
        ("h2", "A heading"),
        ("p", "First paragraph."),
        ("p", "Second paragraph."),
        ("text", "one"),
        ("text", "two"),
        ("figcaption", "Two plots."),
        ("th", "ours"),
        ("td", "0.9 [0.8, 1.0]"),
        ("p", "What it is."),
        ("pre", "chess-cxr evaluate a & b"),
    ]:
        assert expected in texts


def test_an_empty_section_leaves_no_empty_boxes() -> None:
    page = render_page("A title", [Section("Only a heading")])
    assert not re.search(r"<(figure|table|pre|figcaption)[ >]", page)


def test_text_cannot_become_markup() -> None:
    evil = "<script>alert(1)</script>"
    section = Section(evil, evil, table=pd.DataFrame({evil: [evil]}), table_caption=evil, command=evil)
    page = render_page(evil, [section], subtitle=evil)
    assert "<script" not in page
    assert sum(text == evil for _, text in read_texts(page)) == 9


def test_only_synthetic_pages_carry_the_banner() -> None:
    assert "SYNTHETIC" in dict(read_texts(render_page("t", [], synthetic=True)))["div"]
    assert "SYNTHETIC" not in render_page("t", [])


def test_a_page_loads_nothing_from_elsewhere() -> None:
    page = render_page("t", [make_section()], synthetic=True)
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:|#)", page)
    assert "url(" not in page and "@import" not in page


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = write_page(tmp_path / "new" / "report.html", "one")
    assert write_page(path, "two").read_text() == "two"
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    with pytest.raises(UnicodeEncodeError):
        write_page(path, "\ud800")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"] and path.read_text() == "two"
