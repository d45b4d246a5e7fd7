"""Put the help of commands into pages of the site, where a page says <!-- help: COMMAND -->."""

import os
import re
import subprocess
import sys
import textwrap
from typing import Any

MARK = re.compile(r"<!-- help:([a-z ]*) -->")
WIDTH = 74  # letters a line, as many as a page shows


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each mark by what the command prints (an event of mkdocs)."""
    return MARK.sub(lambda found: f"```text\n{print_help(found[1])}\n```", markdown)


def print_help(command: str) -> str:
    """Return what `chess-cxr COMMAND --help` prints, no line wider than a page."""
    words = [sys.executable, "-m", "chess_cxr", *command.split(), "--help"]
    environment = os.environ | {"COLUMNS": str(WIDTH), "NO_COLOR": "1"}
    printed = subprocess.run(words, check=True, capture_output=True, text=True, env=environment).stdout.strip()
    return "\n".join(
        wrapped
        for line in printed.splitlines()
        for wrapped in textwrap.wrap(line, WIDTH, subsequent_indent="  ", drop_whitespace=False) or [""]
    )
