"""Measure how many altered copies of real films an audit finds by hashes, by features as well, and thoroughly.

usage: OMP_NUM_THREADS=1 python runs/audit_features.py STORE ENCODER OUT [FILMS] [COPIES]

Takes FILMS films of the store, and beside them copies of COPIES of them, altered in four ways that a hash may miss: a
crop of 60 to 80 % of each side, the same moved and turned by up to 8 degrees, another exposure (gamma, contrast and
noise) and another exposure that is cropped.  Prints, for each way, the share of copies that each search pairs with its
original, the pairs that name two other films, and seconds.  Writes the pairs that features alone find to
OUT/only_by_features.csv and the pages of all searches.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from chess_cxr.audit.audit import audit_stores
from chess_cxr.audit.options import AuditOptions
from chess_cxr.audit.page import write_audit
from chess_cxr.encoders.embed import embed
from chess_cxr.encoders.load import load_encoder
from chess_cxr.film_jpeg import encode_film
from chess_cxr.ingest.hashes import compute_hashes
from chess_cxr.records import ImageRecord
from chess_cxr.store import Store, StoredFilm, open_store, write_store

WAYS = ("crop", "crop and turn", "exposure", "exposure and crop")


def alter(film_HW: np.ndarray, way: str, rng: np.random.Generator) -> np.ndarray:
    """Return a copy of a film, float32 in [0, 1], that shows the same picture in another way."""
    height, width = film_HW.shape
    if "exposure" in way:
        film_HW = np.clip(film_HW ** rng.uniform(0.6, 1.6) * rng.uniform(0.7, 1.1) + rng.uniform(-0.05, 0.1), 0, 1)
        film_HW = np.clip(film_HW + rng.normal(0, 0.03, film_HW.shape), 0, 1)
    if "turn" in way:
        turned = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-8, 8), 1)
        film_HW = cv2.warpAffine(film_HW.astype(np.float32), turned, (width, height))
    if "crop" in way:
        tall, wide = (round(side * rng.uniform(0.6, 0.8)) for side in (height, width))
        top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
        film_HW = film_HW[top : top + tall, left : left + wide]
    return film_HW.astype(np.float32)


def list_films(store: Store, rows: np.ndarray, ways: list[str], split: str) -> Iterator[StoredFilm]:
    """Yield films of a store, altered if there are ways; the uid of a copy ends in its way."""
    rng = np.random.default_rng(1)
    for number, row in enumerate(rows.tolist()):
        uid = store.films["uid"].iat[row]
        film_HW = store.read_films([row])[0].astype(np.float32) / 255
        for way in ways or [""]:
            made = alter(film_HW, way, rng) if way else film_HW
            hashes = compute_hashes(made)
            record = ImageRecord(uid=f"{uid}{way and ' '}{way}", patient=f"{number}{way}", split=split)
            yield StoredFilm(record, *encode_film(made, 512), hashes.pixel, hashes.perceptual)


def main(store: Path, encoder: str, out: Path, films: int = 2000, copies: int = 100) -> None:
    """Write originals and copies, audit them in three ways, and print what was found."""
    out.mkdir(parents=True)
    source = open_store(store)
    rows = np.random.default_rng(0).permutation(len(source))[:films]
    write_store(out / "originals.lance", list_films(source, rows, [], "train"), [], "originals")
    write_store(out / "copies.lance", list_films(source, rows[:copies], list(WAYS), "test"), [], "copies")
    stores = [open_store(out / name) for name in ("originals.lance", "copies.lance")]
    loaded = load_encoder(encoder)
    features = [embed(loaded, one) for one in stores]
    found: dict[str, set[tuple[str, str]]] = {}
    for name, options, given in (
        ("hashes", AuditOptions(thorough=False, threads=1), []),
        ("hashes and features", AuditOptions(thorough=False, threads=1, shown=200), features),
        ("thorough", AuditOptions(thorough=True, threads=1), []),
    ):
        begun = time.process_time()
        result = audit_stores(stores, options=options, features=given)
        seconds = time.process_time() - begun
        write_audit(result, out / name.replace(" ", "_"))
        pairs = result.pairs[result.pairs["kind"] != "one patient?"]
        found[name] = set(zip(pairs["first_uid"], pairs["second_uid"], strict=True))
        right = {(a, b) for a, b in found[name] if a.split()[0] == b.split()[0]}
        shares = []
        for way in WAYS:
            here = {b for a, b in right if a == b.split()[0] and b.partition(" ")[2] == way}
            shares.append(f"{way} {len(here) / copies:.2f}")
        other = len(found[name]) - len(right)
        print(f"{name}: {', '.join(shares)}; {other} pairs of other films; {seconds:.0f} CPU s", flush=True)
    only = sorted(found["hashes and features"] - found["hashes"])
    (out / "only_by_features.csv").write_text("".join(f"{a},{b}\n" for a, b in only), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:]))
