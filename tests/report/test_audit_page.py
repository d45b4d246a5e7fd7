import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
from PIL import Image

from chess_cxr.report.audit_page import AuditTable, FilmPicture, PairPicture, render_audit

VOID = {"meta", "link", "br", "img"}


class Outline(HTMLParser):
    """Open tags must close in order; keeps the headings and what is written around them."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], " ".join(data.split())))


def read_texts(page: str) -> list[tuple[str, str]]:
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    return outline.texts


def make_jpeg(grey: int) -> bytes:
    written = io.BytesIO()
    Image.fromarray(np.full((16, 16), grey, np.uint8)).save(written, "JPEG")
    return written.getvalue()


def make_pair(leak: str, laid: bytes = b"") -> PairPicture:
    first = FilmPicture("a.lance, train", "1f" * 12, make_jpeg(10))
    second = FilmPicture("b.lance, test", "2e" * 12, make_jpeg(200))
    return PairPicture(leak, ("near duplicate", "similarity 0.98", "turned 90°"), first, second, laid)


def render(pairs: list[PairPicture], in_all: int, leaks: int = 1, notes: tuple[str, ...] = ()) -> str:
    tables = [AuditTable("What is shared", pd.DataFrame({"": ["patients"], "across splits": [3]}), "A caption.")]
    return render_audit("Audit of a.lance", "3 leaks were found.", leaks, tables, pairs, in_all, notes)


def test_both_films_and_the_laid_one_stand_side_by_side_with_what_is_known() -> None:
    page = render([make_pair("Films shared across splits", make_jpeg(99))], 1)
    texts = read_texts(page)
    for expected in [
        ("h2", "Films shared across splits"),
        ("strong", "near duplicate"),
        ("p", "· similarity 0.98 · turned 90°"),
        ("figcaption", "a.lance, train"),
        ("code", "1f" * 12),
        ("figcaption", "the first, laid on the second"),
        ("figcaption", "b.lance, test"),
        ("code", "2e" * 12),
    ]:
        assert expected in texts
    pictures = [base64.b64decode(data) for data in re.findall(r"data:image/jpeg;base64,([^\"]+)", page)]
    assert pictures == [make_jpeg(10), make_jpeg(99), make_jpeg(200)]


def test_pairs_keep_their_order_under_one_heading_a_leak() -> None:
    page = render([make_pair("worst"), make_pair("worst"), make_pair("better")], 3)
    assert [text for tag, text in read_texts(page) if tag == "h2"] == ["What is shared", "worst", "better"]
    assert "more pair" not in page


def test_the_page_says_how_many_pairs_it_leaves_out() -> None:
    assert "41 more pairs of less weight stand in pairs.csv" in render([make_pair("worst")], 42)
    assert "1 more pair of less weight stands in pairs.csv" in render([make_pair("worst")], 2)


def test_only_leaks_colour_the_verdict_and_only_notes_make_a_list() -> None:
    assert 'class="verdict leak"' in render([], 0, leaks=1)
    clean = render([], 0, leaks=0)
    assert 'class="verdict"' in clean and "<li>" not in clean
    assert ("li", "No key.") in read_texts(render([], 0, notes=("No key.",)))


def test_a_page_loads_nothing_from_elsewhere_and_text_cannot_become_markup() -> None:
    evil = "<script>alert(1)</script>"
    film = FilmPicture(evil, evil, make_jpeg(1))
    tables = [AuditTable(evil, pd.DataFrame({evil: [evil]}), evil)]
    page = render_audit(evil, evil, 1, tables, [PairPicture(evil, (evil, evil), film, film)], 9, [evil])
    assert "<script" not in page
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:|#)", page)
    assert "url(" not in page and "@import" not in page
