import base64
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from browser import CHROMIUM
from chess_cxr.audit.page import AuditTable, FilmPicture, PairPicture, render_audit
from pages import lay_out, read_texts

ENTRIES = """
  films: [...document.querySelectorAll("figure:not(.laid) img")].map(width),
  numbers: [...document.querySelectorAll("tbody td")].filter(e => /^\\d+$/.test(e.textContent)).map(e => {
    const text = document.createRange(); text.selectNodeContents(e); return text.getClientRects().length; }),
  tops: [...document.querySelectorAll("figure img")].map(e => Math.round(e.getBoundingClientRect().top)),
"""


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
        ("figcaption", "the first, laid on the second, its contrast stretched"),
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


def make_full_page() -> str:
    """A page with every kind of table, long names of one word, and a pair with and one without a laid film."""
    uid, name = "1f" * 12, "a_store_with_a_very_long_name_of_one_word.lance"
    films = [FilmPicture(f"{name}, {split}", uid, make_jpeg(9)) for split in ("train", "test")]
    pairs = [
        PairPicture("Films", ("near duplicate", "mirrored, turned 17°"), *films, laid) for laid in (make_jpeg(9), b"")
    ]
    shared = pd.DataFrame({"": ["hints at one patient under two ids"], "across splits": [12345], "across stores": [0]})
    shared["within a split"] = 123
    where = f"{name}: train, {name}: test"
    patients = pd.DataFrame({"leak": ["across splits"], "patient": [uid], "where": [where], "films": [1234]})
    lists = {"leak": "as expected", "training_list": name, "store": name, "split": "no split", "films": 12345}
    listed = pd.DataFrame([lists | {"matched_by": "pixel hash"}])
    tables = [AuditTable(f"Table {n}", table, "Caption.") for n, table in enumerate((shared, patients, listed))]
    return render_audit(
        f"Leak audit of {name} (1,234,567 films)", "9 leaks.", 9, tables, pairs, 2, [f"{name}: a note."]
    )


@pytest.mark.skipif(not CHROMIUM, reason="no browser to lay the page out")
def test_on_a_phone_nothing_is_cut_off_and_two_films_stand_side_by_side(tmp_path: Path) -> None:
    told = lay_out(make_full_page(), tmp_path, 400, ENTRIES)
    assert told["window"] == 400
    assert told["page"] <= 400 and told["outside"] == [] and told["hidden"] == 0
    assert told["numbers"] == [1] * 5
    assert len(told["films"]) == 4 and min(told["films"]) > 150
    first, laid, second, *others = told["tops"]
    assert first == second < laid and others[0] == others[1]


@pytest.mark.skipif(not CHROMIUM, reason="no browser to lay the page out")
@pytest.mark.parametrize("width", [900, 1280])
def test_on_a_screen_the_laid_film_stands_between_its_two(tmp_path: Path, width: int) -> None:
    told = lay_out(make_full_page(), tmp_path, width, ENTRIES)
    assert told["page"] <= width and told["outside"] == []
    assert told["numbers"] == [1] * 5
    assert len(set(told["tops"][:3])) == 1
