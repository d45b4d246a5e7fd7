"""Draw the page of a search: each film with the films most like it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from chess_cxr.film_jpeg import decode_stored, encode_film
from chess_cxr.report.page import load_template, write_page
from chess_cxr.report.pictures import embed_picture
from chess_cxr.search.query import Answer, tell_labels, tell_patient
from chess_cxr.store import Store

THUMBNAIL = 192


def write_search_page(answers: Sequence[Answer], store: Store, told: str, out: Path, thumbnails: bool) -> Path:
    """Write a self-contained page; return its path.

    told: what was searched, with what.  thumbnails: whether the page shows films of patients.  Names of files, which
    may name patients, are left out.
    """
    pictures = {}
    if thumbnails:
        numbers = sorted({n.number for answer in answers for n in answer.neighbours})
        pictures = {number: shrink_jpeg(store.read_jpegs([number])[0], THUMBNAIL) for number in numbers}
    queries = [shrink_jpeg(a.query.jpeg, THUMBNAIL) if thumbnails and a.query.jpeg else b"" for a in answers]
    template = load_template("chess_cxr.search", "search.html", picture=partial(embed_picture, kind="jpeg"))
    page = template.render(
        answers=answers, queries=queries, pictures=pictures, told=told, thumbnails=thumbnails,
        store=store.path.name, tell_labels=tell_labels, tell_patient=tell_patient,
        synthetic="SYNTHETIC" in store.dataset_name,
    )  # fmt: skip
    return write_page(out, page)


def shrink_jpeg(jpeg: bytes, side: int) -> bytes:
    """Return a film as a smaller JPEG."""
    return encode_film(decode_stored(jpeg, side).astype("float32") / 255, side)[0]
