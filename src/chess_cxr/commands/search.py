"""Commands that look at an archive through an encoder: search, map, select."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from chess_cxr.arguments import (
    Device,
    Location,
    Stores,
    check_device_name,
    check_seed,
    parse_location,
    print_result,
    refuse_existing,
)
from chess_cxr.encoders.names import check_encoder_name
from chess_cxr.progress import StageBars
from chess_cxr.records import ChessError, UsageError


def search(
    store: Location,
    films: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILM…")],
    encoder: str,
    k: int = 20,
    where: str = "",
    index: bool = False,
    page: Path | None = None,
    thumbnails: bool = False,
    device: Device = "auto",
    json: bool = False,
) -> None:
    """Find the stored films that look most like given ones, and tell what their labels say.

    The store must hold the encoder's features: chess-cxr embed ENCODER STORE.  Cosines are of features less the mean of
    all.  Reads files as ingest does.  Research software, not a medical device.

    Example: chess-cxr search films.lance new/film.dcm --encoder encoders/first --where "age_years > 60"

    Args:
        store: a store, or the URL of one.
        films: film files (DICOM, PNG, JPEG, …), URLs, or uids of stored films.
        encoder: the encoder that has embedded the store: a folder, or a name such as cxr-small.
        k: number of films to find for each.
        where: search only films that meet a condition in SQL, such as "sex = 'F' and Effusion = 1".
        index: search by the index that embed --index has written, not exactly; the default above a million films, if \
there is one.
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
    if index and where:
        raise UsageError("an --index knows no columns; leave --index or --where out")
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
    from chess_cxr.search.index import Index, choose_archive
    from chess_cxr.search.query import answer_query, read_queries
    from chess_cxr.workers.child import Limits
    from chess_cxr.workers.pool import build_ingest_pool

    loaded = open_encoder(encoder, device)
    archive = choose_archive(opened, loaded, encoder, index, bool(where))
    with build_ingest_pool(1) as pool:
        queries = read_queries(films, opened, pool, Limits())
        answers = [answer_query(archive, loaded, query, k, rows) for query in queries]
    if isinstance(archive, Index):
        print(archive.tell(), file=sys.stderr)
    searched = len(opened) if rows is None else len(rows)
    if json:
        told: dict[str, Any] = {"store": str(opened.location), "encoder": encoder, "key": loaded.key, "where": where}
        print_result(told | {"searched": searched, "films": [answer.as_json() for answer in answers]}, True)
    else:
        print("\n\n".join(answer.as_text() for answer in answers))
    if page:
        from chess_cxr.search.page import write_search_page

        about = f"{searched} of {len(opened)} films searched" + (f" ({where})" if where else "")
        written = write_search_page(answers, opened, f"{about}; the encoder “{Path(encoder).name}”", page, thumbnails)
        if not json:
            print(written)
    if failed := sum(bool(answer.query.reason) for answer in answers):
        raise ChessError(f"{failed} of {len(answers)} films could not be read; the output gives the reasons")


def select(
    store: Location,
    encoder: str,
    films: int,
    out: Path,
    by: Literal["kmeans++", "core-set", "random"] = "kmeans++",
    balance: str = "",
    where: str = "split in ('train', '')",
    duplicates: float = 0.98,
    seed: int = 0,
    device: Device = "auto",
    quiet: bool = False,
) -> None:
    """Write a list of films that differ, for pretrain --films and ingest --films.

    Leaves near duplicates out, then spreads the films over the features of an encoder, which must have embedded the
    store: chess-cxr embed ENCODER STORE.

    Example: chess-cxr select films.lance --encoder encoders/first --films 4000 --balance site --out third.csv

    Args:
        store: a store, or the URL of one.
        encoder: the encoder that has embedded the store: a folder, or a name such as cxr-small.
        films: number of films to select.
        out: the CSV file to write: one hashed uid a line.
        by: kmeans++ draws films by their squared distance to those chosen; core-set takes the farthest, outliers \
first; random is for comparison.
        balance: a column of whose values as many films each are selected, as far as there are.
        where: select among the films that meet a condition in SQL; by default val and test films are left out.
        duplicates: cosine from which the later of two films is left out.
        seed: random seed.
        device: auto, cpu, cuda, cuda:N or mps.
        quiet: show no progress.
    """
    refuse_existing(out)
    check_seed(seed)
    if not 0 < duplicates <= 2:
        raise UsageError("--duplicates is a cosine; films with more than 1 do not exist, so 2 leaves all in")
    check_encoder_name(encoder)
    check_device_name(device)
    from chess_cxr.store import open_store

    opened = open_store(parse_location(store))
    from chess_cxr.search.where import select_rows

    rows = select_rows(opened.films, where)
    if not len(rows):
        raise UsageError(f"no film of {opened.path.name} meets the condition {where!r}")
    from chess_cxr.encoders.embed import open_encoder
    from chess_cxr.search.archive import read_archive
    from chess_cxr.search.select import select_films, write_selection

    archive = read_archive(opened, open_encoder(encoder, device), encoder)
    with StageBars(quiet) as bars:
        chosen = select_films(archive, films, rows, by, balance, duplicates, seed, bars.show)
    print(write_selection(opened.films["uid"].iloc[chosen].tolist(), out))


def draw_map(
    stores: Stores,
    encoder: str,
    out: Path,
    thumbnails: bool = False,
    layout: Literal["auto", "umap", "pca"] = "auto",
    seed: int = 0,
    device: Device = "auto",
    quiet: bool = False,
) -> None:
    """Write a page that shows all films of stores as points, like films near each other.

    Works offline and from file://: colour and filter by any column, zoom, click a film, lasso films and take their
    uids.  Beside it stands map.parquet, which embedding-atlas opens.  The encoder must have embedded the stores:
    chess-cxr embed ENCODER STORE.

    Example: chess-cxr map films.lance --encoder encoders/first --out map --thumbnails

    Args:
        stores: stores whose films to show.
        encoder: the encoder that has embedded them: a folder, or a name such as cxr-small.
        out: the folder to write; open its index.html.
        thumbnails: show the films themselves, small; they then lie in the folder.
        layout: umap (needs chess-cxr[map]) or pca; by default umap if it is installed.
        seed: random seed of UMAP.
        device: auto, cpu, cuda, cuda:N or mps.
        quiet: show no progress.
    """
    refuse_existing(out)
    check_seed(seed)
    if not stores:
        raise UsageError("name at least one store to map")
    if len({store.resolve() for store in stores}) < len(stores):
        raise UsageError("a store is given twice; name each once")
    check_encoder_name(encoder)
    check_device_name(device)
    from chess_cxr.search.layout import choose_layout
    from chess_cxr.store import open_store

    chosen = choose_layout(layout)
    opened = [open_store(store) for store in stores]
    from chess_cxr.encoders.embed import open_encoder
    from chess_cxr.search.archive import read_features
    from chess_cxr.search.map import build_map, write_map

    loaded = open_encoder(encoder, device)
    features = [read_features(store, loaded, encoder) for store in opened]
    with StageBars(quiet) as bars:
        film_map = build_map(opened, features, chosen, seed, bars.show)
        how = {"umap": f"UMAP, seed {seed}", "pca": "PCA"}[chosen]
        about = f"{len(film_map.films)} films by the encoder “{Path(encoder).name}”; {how}"
        print(write_map(film_map, opened, out, about, thumbnails, bars.show))
