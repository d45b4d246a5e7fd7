"""Known films: the films of a store that an encoder finds most like a new one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chess_cxr.records import UsageError
from chess_cxr.store import Store, open_store

if TYPE_CHECKING:
    from chess_cxr.encoders.encoder import Encoder
    from chess_cxr.encoders.film_features import FilmEncoder
    from chess_cxr.encoders.onnx_encoder import OnnxEncoder
    from chess_cxr.search.archive import Archive

MOST_SHOWN = 50


@dataclass(frozen=True)
class KnownFilms:
    """An archive as the server shows it."""

    archive: Archive

    @property
    def store(self) -> Store:
        """Return the store of the films."""
        return self.archive.store

    def find_nearest(self, feature_D: np.ndarray, count: int) -> list[dict[str, Any]]:
        """Return the nearest films with their cosine, keyed hash, labels, and number in the store."""
        from chess_cxr.search.archive import read_labels

        rows, cosines = self.archive.find_nearest(feature_D, min(count, MOST_SHOWN))
        films = self.store.films.iloc[rows].to_dict("records")
        return [
            {
                "number": int(row),
                "uid": str(film["uid"]),
                "cosine": float(cosine),
                "labels": read_labels(film, self.store.label_names),
            }
            for row, cosine, film in zip(rows, cosines, films, strict=True)
        ]

    def read_jpeg(self, number: int) -> bytes:
        """Return a film of the store; raises `UsageError` if there is none of this number."""
        if not 0 <= number < len(self.store):
            raise UsageError("the store has no film of this number")
        return self.store.read_jpegs([number])[0]


def embed_known(location: Path, encoder: Encoder | OnnxEncoder) -> KnownFilms:
    """Take the features of a store's films from the store, or embed the films."""
    from chess_cxr.search.archive import embed_archive

    return KnownFilms(embed_archive(open_store(location), _open(encoder)))


def _open(encoder: Encoder | OnnxEncoder) -> FilmEncoder:
    """Open an encoder for the films of stores; one of ONNX Runtime without torch."""
    from chess_cxr.encoders.onnx_encoder import OnnxEncoder

    if isinstance(encoder, OnnxEncoder):
        return encoder.open_for_films()
    from chess_cxr.encoders.embed import open_encoder

    return open_encoder(encoder)
