import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PosixPath

import numpy as np
import pytest
from PIL import Image

from chess_cxr.ingest.workers import WORKER_DIED, EncodedFilm, build_pool, decode_for_store, decode_in_order
from chess_cxr.records import SourceFilm


class PathThatKillsItsReader(PosixPath):
    """A file that takes the whole process with it, as one does that crashes a decoder written in C."""

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        os._exit(1)


class CountingExecutor(ThreadPoolExecutor):
    """An executor that knows how many films it was given."""

    given = 0

    def submit(self, *arguments: object, **named: object) -> Future[EncodedFilm]:
        self.given += 1
        return super().submit(*arguments, **named)


def write_films(folder: Path, count: int, side: int = 64) -> list[SourceFilm]:
    """Write films with a grey ramp of their own, each as wide as its number plus `side`."""
    films = []
    for number in range(count):
        ramp = np.linspace(0, 255, side * (side + number)).reshape(side, side + number).astype(np.uint8)
        path = folder / f"{number}.png"
        Image.fromarray(ramp).save(path)
        films.append(SourceFilm(path=path, uid=path.name))
    return films


def list_widths(pairs: Iterator[tuple[SourceFilm, EncodedFilm]]) -> list[tuple[str, int]]:
    return [(film.uid, encoded.width) for film, encoded in pairs]


def test_films_come_out_in_the_order_they_went_in(tmp_path: Path) -> None:
    films = write_films(tmp_path, 20)
    expected = [(film.uid, 64 + number) for number, film in enumerate(films)]
    assert list_widths(decode_in_order(films, 512, None, 4)) == expected
    with ThreadPoolExecutor(4) as pool:
        assert list_widths(decode_in_order(films, 512, pool, 4)) == expected


def test_no_more_films_are_under_way_than_asked_for(tmp_path: Path) -> None:
    films = write_films(tmp_path, 12)
    with CountingExecutor(2) as pool:
        for done, _ in enumerate(decode_in_order(iter(films), 512, pool, 5)):
            assert pool.given - done <= 5
    assert pool.given == 12


def test_the_spacing_grows_as_the_film_shrinks(tmp_path: Path, real_films: Path) -> None:
    encoded = decode_for_store(real_films / "dicom" / "siim_850819.dcm", 256)
    assert (encoded.height, encoded.width) == (256, 256)
    assert encoded.spacing_mm == pytest.approx(0.168 * 4)
    assert decode_for_store(real_films / "dicom" / "siim_850819.dcm", 4096).spacing_mm == pytest.approx(0.168)


def test_a_film_that_kills_its_process_is_named_and_no_other_film_is_lost(tmp_path: Path) -> None:
    films = write_films(tmp_path, 9)
    films[4] = SourceFilm(path=PathThatKillsItsReader(films[4].path), uid=films[4].uid)
    with build_pool(1) as pool:
        pairs = list(decode_in_order(films, 512, pool, 3))
    assert [film.uid for film, _ in pairs] == [film.uid for film in films]
    assert [encoded.reason for _, encoded in pairs] == ["", "", "", "", WORKER_DIED, "", "", "", ""]
