"""Search: the nearest films of a film, whose they are, what their labels say, and how it is refused."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from browser import CHROMIUM, Browser, open_browser
from chess_cxr.encoders.embed import open_encoder
from chess_cxr.evaluation.intervals import interval_of_rate
from chess_cxr.records import UsageError
from chess_cxr.search.archive import Archive, find_largest, read_archive
from chess_cxr.search.where import select_rows
from chess_cxr.store import Store
from command_line import Answer, run


@pytest.fixture(scope="module")
def archive(embedded: Store) -> Archive:
    return read_archive(embedded, open_encoder("pixels:8"), "pixels:8")


def search(store: Store, *words: object) -> Answer:
    return run("search", store.path, *words, "--encoder", "pixels:8")


def test_the_nearest_films_are_those_of_the_largest_cosine(archive: Archive) -> None:
    feature_ND = archive.store.read_embedding(next(iter(archive.store.embeddings))).astype(np.float64)
    centred_ND = feature_ND - feature_ND.mean(0)
    cosine_N = [
        float(row @ centred_ND[5]) / math.sqrt(float(row @ row) * float(centred_ND[5] @ centred_ND[5]))
        for row in centred_ND
    ]
    rows, cosines = archive.find_nearest(feature_ND[5], 7)
    assert rows.tolist() == sorted(range(96), key=lambda row: -cosine_N[row])[:7] and rows[0] == 5
    np.testing.assert_allclose(cosines, np.sort(cosine_N)[::-1][:7], atol=1e-5)
    some = np.array([3, 90, 17])
    chosen, _ = archive.find_nearest(feature_ND[5], 2, some)
    assert chosen.tolist() == sorted(some.tolist(), key=lambda row: -cosine_N[row])[:2]


def test_of_equal_values_the_first_comes_first() -> None:
    assert find_largest(np.array([1.0, 3, 2, 3, 0]), 3).tolist() == [1, 3, 2]
    assert find_largest(np.array([1.0, 3]), 5).tolist() == [1, 0]


def test_a_stored_film_finds_others_and_its_own_patient_does_not_vote(embedded: Store) -> None:
    uid, patient = embedded.films["uid"][6], embedded.films["patient"]
    answer = search(embedded, uid, "--json", "--k", 95)
    assert answer.code == 0, answer.err
    [told] = json.loads(answer.out)["films"]
    near = told["neighbours"]
    assert len(near) == 95 and uid not in [film["uid"] for film in near]
    assert [film["number"] for film in near if film["same_patient"]] == [7]
    [vote] = [vote for vote in told["votes"] if vote["label"] == "stripes"]
    labels = embedded.films["stripes"]
    known = {patient[n]: labels[n] for n in range(95, -1, -1) if not math.isnan(labels[n]) and patient[n] != patient[6]}
    assert (vote["positive"], vote["known"]) == (sum(known.values()), len(known))
    wilson = interval_of_rate(list(known.values()), list(known))
    assert (vote["share"], vote["low"], vote["high"]) == pytest.approx((wilson.value, wilson.low, wilson.high))


def test_a_file_with_the_pixels_of_a_stored_film_is_recognised(embedded: Store, film_file: Path) -> None:
    from chess_cxr.film_jpeg import encode_film
    from chess_cxr.ingest.hashes import compute_hashes
    from chess_cxr.records import ImageRecord
    from chess_cxr.search.column import write_embedding
    from chess_cxr.store import StoredFilm, open_store, write_store

    films = embedded.read_films([7, 8, 9])
    place = film_file.with_name("three.lance")
    stored = [
        StoredFilm(ImageRecord(f"{n:032x}", "ab"[n // 2]), *encode_film(film / np.float32(255), 48),
                   pixel_hash=compute_hashes(film / np.float32(255)).pixel)
        for n, film in enumerate(films)
    ]  # fmt: skip
    write_store(place, stored, [], "three")
    write_embedding("pixels:8", open_encoder("pixels:8"), open_store(place))
    answer = run("search", place, film_file, "--encoder", "pixels:8", "--json")
    [told] = json.loads(answer.out)["films"]
    badges = {film["number"]: (film["same_film"], film["same_patient"]) for film in told["neighbours"]}
    assert badges == {0: (True, True), 1: (False, True), 2: (False, False)}


def test_unknown_values_meet_no_condition(embedded: Store) -> None:
    films = embedded.films
    one = films["stripes"] == 1
    assert select_rows(films, "stripes = 1").tolist() == np.flatnonzero(one).tolist()
    assert set(select_rows(films, "not stripes = 1")) == set(np.flatnonzero(films["stripes"] == 0))
    assert len(select_rows(films, "age_years > 0")) == 0  # all are NaN
    both = select_rows(films, """split = 'test' and "flag:inverted" = 0 and patient like 'p0%'""")
    assert both.tolist() == np.flatnonzero(films["split"] == "test").tolist()


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("strips = 1", "no column strips; there are uid, patient"),
        ('split = "test"', "texts stand in single quotes"),
        ("stripes = ", "incomplete input|syntax error"),
        ("1) ; drop table films; --", "one statement"),
        ("uid in (select name from sqlite_master where load_extension('x'))", "no such function|not authorized"),
    ],
)
def test_a_condition_that_cannot_be_read_is_refused(embedded: Store, where: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        select_rows(embedded.films, where)


def test_wrong_use_is_told_in_one_line(embedded: Store, store: Store, film_file: Path, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"no film")
    bad = {
        ("search", store.path, film_file, "--encoder", "pixels:8"): f"chess-cxr embed pixels:8 {store.path}",
        ("search", embedded.path, film_file, "--encoder", "pixels:4"): "no embedding of pixels:4; it has those of",
        ("search", embedded.path, tmp_path / "absent.dcm", "--encoder", "pixels:8"): "neither a film file nor the uid",
        ("search", embedded.path, "--encoder", "pixels:8"): "no film is given",
        ("search", embedded.path, film_file, "--encoder", "pixels:8", "--where", "split = 'x'"): "no film of films",
        ("search", embedded.path, film_file, "--encoder", "pixels:8", "--thumbnails"): "--page",
        ("search", embedded.path, film_file, "--encoder", "pixels:8", "--k", "0"): "--k must",
    }
    for words, told in bad.items():
        answer = run(*words)
        assert answer.code == 2 and told in answer.err and answer.err.count("\n") == 1, (words, answer)
    answer = search(embedded, tmp_path / "no.png", embedded.films["uid"][0], "--k", 2)
    assert answer.code == 1 and "no.png: " in answer.out and "1 of 2 films" in answer.err


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("needs Chromium")
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_shows_films_only_if_asked(
    embedded: Store, film_file: Path, tmp_path: Path, page: Browser, width: int
) -> None:
    plain, shown = tmp_path / "plain.html", tmp_path / "shown.html"
    words = (film_file, embedded.films["uid"][0], "--k", 6, "--page")
    assert search(embedded, *words, plain).code == 0
    assert search(embedded, *words, shown, "--thumbnails").code == 0
    for file in (plain, shown):
        assert "Quentin" not in file.read_text("utf-8") and str(embedded.path.parent) not in file.read_text("utf-8")
    page.open(plain, width)
    assert page.evaluate("document.images.length") == 0 and "patient" not in page.evaluate("document.title")
    page.open(shown, width)
    assert page.evaluate("[...document.images].every(picture => picture.naturalWidth > 0)")
    assert page.evaluate("document.images.length") == 14
    assert page.evaluate("document.querySelector('[role=note]').textContent").startswith("This page shows")
    assert page.evaluate("document.documentElement.scrollWidth") <= width and page.complaints == []
