"""Embed the films of a store, and write their features to a file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from chess_cxr.encoders.contract import compute_contract_sha256
from chess_cxr.encoders.encoder import Encoder, compute_state_sha256
from chess_cxr.encoders.film_features import FilmEncoder, iterate_features, shorten_key
from chess_cxr.encoders.load import load_encoder
from chess_cxr.files.whole import write_atomically
from chess_cxr.records import OnCount, UsageError
from chess_cxr.store import StoreLike, get_store
from chess_cxr.views import resize_film

CPU_BATCH, GPU_BATCH = 16, 64  # films a call of the network
EncoderLike = Encoder | Path | str


def embed(
    encoder: EncoderLike,
    store: StoreLike,
    rows: Sequence[int] | np.ndarray | None = None,
    on_films: OnCount | None = None,
    device: str = "auto",
) -> np.ndarray:
    """Embed the films of a store, or some of its rows: float32 [N, D].

    encoder: an `Encoder`, any name that `load_encoder` takes, or "pixels:32" for the pixels of a 32 x 32 film.
    on_films: called now and then with the number of films done and of all films.
    device: for an encoder given by name.
    """
    opened = get_store(store)
    rows = np.arange(len(opened)) if rows is None else np.asarray(rows)
    parts, done = [], 0
    for part in iterate_features(open_encoder(encoder, device), opened, rows):
        parts.append(part)
        done += len(part)
        if on_films:
            on_films(done, len(rows))
    if not parts:
        raise UsageError(f"there is no film of {opened.path.name} to embed")
    return np.concatenate(parts)


def write_features(
    encoder: EncoderLike, store: StoreLike, out: Path, on_films: OnCount | None = None, device: str = "auto"
) -> Path:
    """Write the uid and feature vector of every film to a Parquet file, whole or not at all; return its path."""
    if out.exists():
        raise UsageError(f"{out} exists already; choose another --out or remove it")
    opened = get_store(store)
    feature_ND = embed(encoder, opened, on_films=on_films, device=device)
    column = pa.FixedSizeListArray.from_arrays(pa.array(feature_ND.ravel()), feature_ND.shape[1])
    content = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"uid": pa.array(opened.films["uid"]), "feature": column}), content)
    write_atomically(out, content.getvalue())
    return out


def tell_seen(name: str, encoder: EncoderLike, uids: Sequence[str] | np.ndarray) -> str:
    """Return a sentence on how many of these films the encoder was pre-trained on, "" for none."""
    seen = len(encoder.training_uids.intersection(uids)) if isinstance(encoder, Encoder) else 0
    return f"{name} was pre-trained, without labels, on {seen} of these {len(uids)} films." if seen else ""


def open_encoder(encoder: EncoderLike, device: str = "auto") -> FilmEncoder:
    """Load an encoder, unless it is loaded, for the films of stores."""
    if isinstance(encoder, str) and encoder.startswith("pixels:"):
        side = _parse_side(encoder)

        def shrink(films: Sequence[np.ndarray]) -> np.ndarray:
            return np.stack([resize_film(film, side).ravel() for film in films]).astype(np.float32) / 255

        return FilmEncoder(encoder, shorten_key(f"pixels:{side}"), shrink, lambda pixels_ND: pixels_ND)
    loaded = encoder if isinstance(encoder, Encoder) else load_encoder(encoder, device=device)
    key = shorten_key(compute_state_sha256(loaded.module) + compute_contract_sha256(loaded.contract))
    batch = CPU_BATCH if loaded.device.type == "cpu" else GPU_BATCH
    return FilmEncoder(
        loaded.name, key,
        lambda films: loaded.prepare([film.astype(np.float32) / 255 for film in films]),
        lambda input_NCSS: loaded.embed_prepared(input_NCSS, batch),
    )  # fmt: skip


def _parse_side(name: str) -> int:
    side = name.removeprefix("pixels:")
    if not side.isdecimal() or not 1 <= int(side) <= 512:
        raise UsageError(f"{name!r} should be pixels:SIDE with a side of 1 to 512, such as pixels:32")
    return int(side)
