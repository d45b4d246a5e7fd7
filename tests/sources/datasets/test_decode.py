"""From a tree in published layout to pixels and to a store."""

import math
from pathlib import Path

import numpy as np
import pytest

from catalog_trees import ABSENT, TREES
from chess_cxr.decode.film import Undecodable, decode_film
from chess_cxr.film_jpeg import encode_film
from chess_cxr.records import ImageRecord
from chess_cxr.sources.datasets.catalog import DATASETS, read_dataset
from chess_cxr.store import StoredFilm, open_store, write_store


@pytest.mark.parametrize("name", DATASETS)
def test_every_film_of_a_tree_decodes_and_those_on_no_disk_are_refused(tmp_path: Path, name: str) -> None:
    refused = 0
    for film in read_dataset(name, TREES[name](tmp_path)):
        try:
            pixels = decode_film(film.path).pixels
        except Undecodable as error:
            assert str(error) == "file not found"
            refused += 1
            continue
        assert pixels.ndim == 2
        assert 0.0 <= pixels.min() < pixels.max() <= 1.0
    assert refused == ABSENT.get(name, 0)


@pytest.mark.parametrize("name", ["vindr-cxr", "padchest", "chexpert"])
def test_a_store_keeps_labels_of_any_name_and_uncertain_as_its_own_value(tmp_path: Path, name: str) -> None:
    listing = read_dataset(name, TREES[name](tmp_path))
    grey = np.linspace(0, 1, 48 * 48, dtype=np.float32).reshape(48, 48)
    films = (
        StoredFilm(ImageRecord(f"{n:032x}", f"p{n}", labels=film.labels), *encode_film(grey, 48))
        for n, film in enumerate(listing)
    )
    write_store(tmp_path / "films.lance", films, listing.label_names, name)
    stored = open_store(tmp_path / "films.lance").films
    for film, row in zip(listing, stored.to_dict("records"), strict=True):
        for label, value in film.labels.items():
            assert row[label] == value or (math.isnan(value) and math.isnan(row[label]))
