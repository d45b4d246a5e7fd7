"""The texts of a page, and how a browser lays it out."""

import html
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from browser import CHROMIUM

VOID = {"meta", "link", "br", "img"}
# What runs off the page, what is cut off inside it, and further entries of an object in JavaScript.
MEASURE = """<script>
const every = [...document.body.querySelectorAll("*")].filter(e => !e.closest("svg") || e.tagName == "svg");
const width = e => Math.round(e.getBoundingClientRect().width);
const told = {
  window: innerWidth, page: document.documentElement.scrollWidth,
  hidden: every.filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX != "visible").length,
  outside: every.filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.tagName),
  ENTRIES
};
parent.document.title = JSON.stringify(told);
</script>"""


class Outline(HTMLParser):
    """Open tags must close in order; keeps every text with the tag around it."""

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


def lay_out(page: str, folder: Path, width: int, entries: str) -> dict[str, Any]:
    """What a browser makes of the page in a window of that width: `MEASURE` with more entries."""
    # In a frame: a browser's own window has a least width.
    inner = html.escape(page.replace("</body>", f"{MEASURE.replace('ENTRIES', entries)}</body>"))
    file = folder / f"{width}.html"
    file.write_text(
        f'<title></title><iframe srcdoc="{inner}" style="width: {width}px; height: 900px; border: 0">', "utf-8"
    )
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=2000"]
    options += [f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000", "--dump-dom", file.as_uri()]
    written = subprocess.run([CHROMIUM, *options], capture_output=True, text=True, timeout=120).stdout
    title = re.search(r"<title>(.*?)</title>", written, re.DOTALL)
    assert title, written[-500:]
    told: dict[str, Any] = json.loads(html.unescape(title[1]))
    return told
