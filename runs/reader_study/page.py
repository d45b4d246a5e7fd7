"""One self-contained page on which a reader tells real films from SYNTHETIC ones without knowing which is which."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.image import imread

from chess_cxr.records import UsageError
from chess_cxr.report.page import write_page
from chess_cxr.report.pictures import encode_png
from scores import FORMAT, MAX_TEXT, SUREST

MAX_FILMS = 1000


@dataclass(frozen=True)
class ReaderItem:
    """A film of the page.  picture: grey PNG.  name: shown with the score, never before."""

    picture: bytes
    is_synthetic: bool
    name: str


def write_reader_page(
    items: Sequence[ReaderItem], path: Path, seed: int = 0, title: str = "Real or SYNTHETIC?"
) -> Path:
    """Write the page and return its path.

    The films come in an order that `seed` draws.  For each the reader says real or synthetic and how sure, 1 to 5; the
    score follows the last one, and a file of answers that `scores.py` reads.  Pictures are encoded anew
    without metadata and filled up to one length, so that no size in the file tells them apart; what they are stands in
    it scrambled: the page is blinded, not secret.  Differences in the pixels themselves, such as traces of a JPEG that
    only the real films once were, are the caller's to avoid.

    Raises UsageError for fewer than one film of each kind or more than 1,000, for films of different sizes, colour, or
    names that are not told apart or longer than a line of 200 characters.
    """
    _check_items(items)
    pictures = [_encode(_read_grey(item), item) for item in items]
    if len({size for _, size in pictures}) > 1:
        raise UsageError("the pictures of a reader page must be of one size, or the size tells what they are")
    rng = np.random.default_rng([seed, 17])
    order = rng.permutation(len(items))
    shown = [items[place] for place in order]
    longest = max(len(png) for png, _ in pictures)
    filled = [png + rng.bytes(longest - len(png)) for png, _ in (pictures[place] for place in order)]
    truth = json.dumps([[item.name, item.is_synthetic] for item in shown]).encode("ascii")
    key = rng.bytes(len(truth))
    told = {
        "format": FORMAT,
        "page": hashlib.sha256(b"".join(filled) + truth).hexdigest()[:24],
        "title": title,
        "surest": SUREST,
        "pictures": [_embed(png) for png in filled],
        "sealed": _embed(bytes(a ^ b for a, b in zip(truth, key, strict=True))),
        "key": _embed(key),
    }
    template = Path(__file__).with_name("reader.html").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    height, width = pictures[0][1]
    page = environment.from_string(template).render(
        title=title, told=told, films=len(items), surest=SUREST, height=height, width=width
    )
    return write_page(path, page)


def _check_items(items: Sequence[ReaderItem]) -> None:
    kinds = {item.is_synthetic for item in items}
    if len(kinds) < 2 or len(items) > MAX_FILMS:
        raise UsageError(f"a reader page takes real and synthetic films, at most {MAX_FILMS} in all")
    names = {item.name for item in items}
    if len(names) < len(items):
        raise UsageError("two films of a reader page have the same name")
    if not all(name.isprintable() and 0 < len(name) <= MAX_TEXT for name in names):
        raise UsageError(f"the name of a film must be one line of at most {MAX_TEXT} characters")


def _read_grey(item: ReaderItem) -> np.ndarray:
    """Return uint8 [H, W]."""
    try:
        pixels = np.asarray(imread(io.BytesIO(item.picture), format="png"), dtype=np.float32)
    except Exception as error:
        raise UsageError(f"the picture {item.name} is no PNG that can be read ({type(error).__name__})") from None
    if pixels.ndim == 3:
        if not (pixels[..., :3] == pixels[..., :1]).all():
            raise UsageError(f"the picture {item.name} is in colour: films are grey")
        pixels = pixels[..., 0]
    grey: np.ndarray = np.rint(255 * pixels).astype(np.uint8)
    return grey


def _encode(grey_HW: np.ndarray, item: ReaderItem) -> tuple[bytes, tuple[int, int]]:
    """Write 8 bits of grey as PNG and nothing else; return it with height and width."""
    return encode_png(grey_HW), grey_HW.shape


def _embed(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
