"""Ingest only the films of a list of hashed uids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from chess_cxr.deidentify.identity import hash_id
from chess_cxr.records import FilmListing, SourceFilm


def keep_listed(films: FilmListing, uids: frozenset[str], id_key: bytes) -> FilmListing:
    """Return a listing of the films whose uids, hashed with the key, are in a list."""

    def list_films() -> Iterator[SourceFilm]:
        return (film for film in films if hash_id(id_key, "uid", film.uid) in uids)

    return replace(films, list_films=list_films, count=lambda: sum(1 for _ in list_films()))
