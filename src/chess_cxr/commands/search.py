"""Commands that look at an archive through an encoder: search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from chess_cxr.arguments import Device, Location, check_device_name, parse_location, print_result, refuse_existing
from chess_cxr.encoders.names import check_encoder_name
from chess_cxr.records import ChessError, UsageError


def search(
    store: Location,
    films: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILM…")],
    encoder: str,
    k: int = 20,
    where: str = "",
    page: Path | None = None,
    thumbnails: bool = False,
    device: Device = "auto",
    json: bool = False,
) -> None:
    """Find the films of a store that an encoder finds most like given ones, and what their labels say.

    The store must hold the encoder's features: chess-cxr embed ENCODER STORE.  Cosines are of features less the mean of
    all.  Reads files as ingest does.  Research software, not a medical device.

    Example: chess-cxr search films.lance new/film.dcm --encoder encoders/first --where "age_years > 60"

    Args:
        store: a store, or the URL of one.
        films: film files (DICOM, PNG, JPEG, …), URLs, or uids of stored films.
        encoder: the encoder that has embedded the store: a folder, or a name such as cxr-small.
        k: number of films to find for each.
        where: search only films that meet a condition in SQL, such as "sex = 'F' and Effusion = 1".
        page: an HTML page to write.
        thumbnails: show the films on the page.
        device: auto, cpu, cuda, cuda:N or mps.
        json: print JSON.
    """
    if page:
        refuse_existing(page)
    if thumbnails and not page:
        raise UsageError("--thumbnails are for a page; name one with --page")
    if not films:
        raise UsageError("no film is given: name a film file, or the uid of a stored film")
    if k < 1:
        raise UsageError("--k must be 1 or more")
    check_encoder_name(encoder)
    check_device_name(device)
    from chess_cxr.store import open_store

    opened = open_store(parse_location(store))
    from chess_cxr.search.query import find_queries

    find_queries(films, opened.films)
    from chess_cxr.search.where import select_rows

    rows = select_rows(opened.films, where) if where else None
    if rows is not None and not len(rows):
        raise UsageError(f"no film of {opened.path.name} meets the condition {where!r}")
    from chess_cxr.encoders.embed import open_encoder
    from chess_cxr.search.archive import read_archive
    from chess_cxr.search.query import answer_query, read_queries
    from chess_cxr.workers.child import Limits
    from chess_cxr.workers.pool import build_ingest_pool

    loaded = open_encoder(encoder, device)
    archive = read_archive(opened, loaded, encoder)
    with build_ingest_pool(1) as pool:
        queries = read_queries(films, archive, pool, Limits())
        answers = [answer_query(archive, loaded, query, k, rows) for query in queries]
    searched = len(opened) if rows is None else len(rows)
    if json:
        told: dict[str, Any] = {"store": str(opened.location), "encoder": encoder, "key": loaded.key, "where": where}
        print_result(told | {"searched": searched, "films": [answer.as_json() for answer in answers]}, True)
    else:
        print("\n\n".join(answer.as_text() for answer in answers))
    if page:
        from chess_cxr.search.page import write_search_page

        about = f"{searched} of {len(opened)} films searched" + (f" ({where})" if where else "")
        written = write_search_page(answers, opened, f"{about}; encoder {Path(encoder).name}", page, thumbnails)
        if not json:
            print(written)
    if failed := sum(bool(answer.query.reason) for answer in answers):
        raise ChessError(f"{failed} of {len(answers)} films could not be read; the output gives the reasons")
