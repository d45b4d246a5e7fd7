"""The map: its layout and table, and its page in a real browser: click, lasso, filter, keys, from file:// alone."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from browser import CHROMIUM, Browser, open_browser
from chess_cxr.evaluation.neighbours import find_nearest_of_all
from chess_cxr.search.archive import build_archive
from chess_cxr.search.layout import lay_out
from chess_cxr.store import Store
from command_line import run

BOX = "by('canvas').getBoundingClientRect()"
SOFTWARE = ("--enable-unsafe-swiftshader", "--use-angle=swiftshader")  # draws WebGL on the CPU


@pytest.fixture(scope="module")
def folder(embedded: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("map") / "map"
    words = ("--encoder", "pixels:8", "--layout", "pca", "--thumbnails", "--quiet", "--out", out)
    answer = run("map", embedded.path, *words)
    assert (answer.code, answer.out) == (0, f"{out / 'index.html'}\n"), answer.err
    return out


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("needs Chromium")
    with open_browser(tmp_path_factory.mktemp("browser"), *SOFTWARE) as opened:
        opened.own = ("data:", "file:", "about:", "blob:")
        yield opened


@pytest.fixture(params=[1280, 400])
def page(folder: Path, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Browser]:
    browser.open(folder / "index.html", request.param)
    wait(browser)
    assert browser.evaluate("Boolean(plot)")
    yield browser
    # the driver that draws on the CPU tells how fast it reads pixels
    assert [text for text in browser.complaints if "GL Driver Message" not in text] == []


def wait(page: Browser) -> None:
    page.evaluate("new Promise((done) => setTimeout(() => drawn.then(() => setTimeout(() => done(1), 300)), 100))")


def read(page: Browser, expression: str) -> Any:
    return json.loads(page.evaluate(f"JSON.stringify({expression})"))


def place(page: Browser, film: int) -> tuple[float, float]:
    """Where a film's point is in the window."""
    x, y, left, top = page.evaluate(
        f"(() => {{ by('canvas').scrollIntoView({{block: 'center'}}); const b = by('canvas').getBoundingClientRect();"
        f"return [...plot.getScreenPosition({film}), b.left, b.top]; }})()"
    )
    return left + x, top + y


def mouse(page: Browser, kind: str, x: float, y: float, shift: bool = False) -> None:
    pressed = kind != "mouseMoved" or shift
    page.call(
        "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left" if pressed else "none",
        buttons=int(pressed), clickCount=1, modifiers=8 if shift else 0,
    )  # fmt: skip
    time.sleep(0.03)


def press(page: Browser, key: str) -> None:
    text = {"text": key} if len(key) == 1 else {}
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, **(text if kind == "keyDown" else {}))
    wait(page)


def test_the_table_holds_points_neighbours_and_columns(folder: Path, embedded: Store) -> None:
    table = pyarrow.parquet.read_table(folder / "map.parquet")
    assert table.column_names[:4] == ["uid", "x", "y", "neighbours"]
    assert {"stripes", "spots", "split"} <= set(table.column_names) and "patient" not in table.column_names
    unit_ND = build_archive(embedded, embedded.read_embedding(next(iter(embedded.embeddings)))).unit_ND
    near_NK, cosine_NK = find_nearest_of_all(unit_ND, 15)
    for row, found in enumerate(table["neighbours"].to_pylist()):
        cosine_N = unit_ND @ unit_ND[row]
        cosine_N[row] = -2
        np.testing.assert_allclose(cosine_NK[row], np.sort(cosine_N)[::-1][:15], atol=1e-6)
        assert found["ids"] == near_NK[row].tolist() and row not in found["ids"]
        np.testing.assert_allclose(found["distances"], 1 - cosine_NK[row], atol=1e-6)
    point_N2 = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1)
    singular = np.linalg.svd(unit_ND, full_matrices=False)[2][:2]
    shape = np.abs(np.corrcoef((unit_ND @ singular.T).T, point_N2.T)[:2, 2:])
    np.testing.assert_allclose(shape.diagonal(), 1, atol=1e-3)
    assert np.abs(point_N2).max() == pytest.approx(0.95)


@pytest.mark.long  # compiles for minutes when it is first run
def test_umap_puts_neighbours_near_and_is_seeded(embedded: Store) -> None:
    pytest.importorskip("umap", reason="needs the extra map")
    unit_ND = build_archive(embedded, embedded.read_embedding(next(iter(embedded.embeddings)))).unit_ND
    near_NK, cosine_NK = find_nearest_of_all(unit_ND, 15)
    first, again, other = (lay_out(unit_ND, near_NK, cosine_NK, "umap", seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    gap = np.linalg.norm(first[:, None] - first[near_NK[:, :3]], axis=2).mean()
    assert gap < 0.5 * np.linalg.norm(first[:, None] - first[None], axis=2).mean()


def test_embedding_atlas_opens_the_table(folder: Path) -> None:
    atlas = pytest.importorskip("embedding_atlas.cli", reason="embedding-atlas is not installed")
    testing = pytest.importorskip("click.testing")
    started = list[int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atlas.uvicorn, "run", lambda *_, **__: started.append(1))  # would serve until it is stopped
        words = [str(folder / "map.parquet"), "--x", "x", "--y", "y", "--neighbors", "neighbours"]
        result = testing.CliRunner().invoke(atlas.main, words)
    assert result.exit_code == 0 and started, result.output


def test_no_identifier_is_in_the_folder(folder: Path, embedded: Store) -> None:
    texts = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
    assert not any(patient.encode() in text for text in texts for patient in set(embedded.films["patient"]))
    assert not any(str(embedded.path.parent).encode() in text for text in texts)


def test_without_thumbnails_no_film_is_in_the_folder(embedded: Store, tmp_path: Path, browser: Browser) -> None:
    assert (
        run("map", embedded.path, "--encoder", "pixels:8", "--layout", "pca", "--quiet", "--out", tmp_path / "m").code
        == 0
    )
    assert not list((tmp_path / "m").rglob("*.jpg"))
    browser.open(tmp_path / "m" / "index.html", 1280)
    browser.evaluate("choose([3])")
    wait(browser)
    assert not browser.evaluate("document.querySelector('.thumbnail, [role=note]')")
    assert len(browser.evaluate("by('film').innerText").splitlines()) > 8


def test_a_click_shows_the_film_its_neighbours_and_its_row(page: Browser, embedded: Store) -> None:
    x, y = place(page, 17)
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        mouse(page, kind, x, y)
    wait(page)
    chosen = page.evaluate("state.chosen")
    near = read(page, "[...plot.getScreenPosition(17)].map((v, i) => v - plot.getScreenPosition(state.chosen)[i])")
    assert chosen >= 0 and max(map(abs, near)) < 8  # the film itself, or one drawn on top of it
    assert page.evaluate("document.querySelector('#film code').textContent") == embedded.films["uid"][chosen]
    assert page.evaluate("document.querySelectorAll('#film .near button').length") == 8
    assert page.evaluate("document.querySelector('tr.chosen').dataset.film") == str(chosen)
    label = embedded.films["stripes"][chosen]
    assert np.isnan(label) or f"stripes {label:g}" in page.evaluate("by('film').innerText")
    own = [film for film in range(96) if film // 2 == chosen // 2]
    buttons = "[...document.querySelectorAll('.near button')]"
    badges = read(page, f"{buttons}.map((b, i) => [map.near[state.chosen * 8 + i], !!b.querySelector('b')])")
    assert all(is_same == (film in own) for film, is_same in badges)
    page.evaluate("document.querySelector('.near button').click()")
    wait(page)
    assert page.evaluate(f"map.near[{chosen} * 8] == state.chosen")


def test_the_picture_of_a_film_is_that_film(page: Browser, embedded: Store, folder: Path) -> None:
    import cv2

    page.evaluate("choose([50])")
    told = read(page, "(({backgroundImage, backgroundPosition, width}) => [backgroundImage, backgroundPosition, width])"
                "(document.querySelector('#film .thumbnail').style)")  # fmt: skip
    image, position, width = map(str, told)
    sheet = cv2.imread(str(folder / image.split('"')[1]), cv2.IMREAD_GRAYSCALE)
    left, top = (round(-float(part.removesuffix("px")) * 96 / float(width[:-2])) for part in position.split())
    film = cv2.resize(embedded.read_films([50])[0], (80, 96)).astype(float)  # the store's films are 48 x 40
    shown = sheet[top : top + 96, left + 8 : left + 88].astype(float)
    assert np.corrcoef(film.ravel(), shown.ravel())[0, 1] > 0.97


def test_a_lasso_lists_the_films_inside(page: Browser) -> None:
    page.evaluate("goHome()")
    wait(page)
    place(page, 0)
    box = read(page, "(({left, top, width, height}) => [left, top, width, height])(BOX)".replace("BOX", BOX))
    left, top, width, height = box
    across = read(page, "Array.from(every, (film) => plot.getScreenPosition(film)[0])")
    corners = [(2, 2), (width / 2, 2), (width / 2, height - 2), (2, height - 2), (2, 4)]
    mouse(page, "mousePressed", left + 2, top + 2, shift=True)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:], strict=False):
        for part in np.linspace(0.1, 1, 10):
            mouse(page, "mouseMoved", left + x0 + (x1 - x0) * part, top + y0 + (y1 - y0) * part, shift=True)
    mouse(page, "mouseReleased", left + 2, top + 4, shift=True)
    wait(page)
    selected = read(page, "state.selected ? [...state.selected].sort((a, b) => a - b) : null")
    for film, x in enumerate(across):
        if abs(x - width / 2) > 25:  # the line that was drawn is not quite the one that was meant
            assert (film in selected) == (x < width / 2), (film, x)
    assert page.evaluate("by('copy').textContent") == f"Copy {len(selected)} uids"
    assert page.evaluate("listUids().length") == len(selected)
    rows = read(page, "[...document.querySelectorAll('#rows tr[data-film]')].map((row) => +row.dataset.film)")
    assert rows == selected[: len(rows)] and len(rows) > 10
    press(page, "Escape")
    assert read(page, "state.selected") is None and "96 films" in page.evaluate("by('status').textContent")


def test_filters_by_value_and_range_take_points_and_rows_away(page: Browser, embedded: Store) -> None:
    page.evaluate("by('add').value = 'split'; by('add').onchange()")
    page.evaluate(
        "[...document.querySelectorAll('.filter label')].find((l) => l.textContent.trim() == 'train').click()"
    )
    wait(page)
    kept = np.flatnonzero(embedded.films["split"] != "train").tolist()
    assert read(page, "[...state.listed]") == kept == sorted(read(page, "plot.get('filteredPoints')"))
    assert f"{len(kept)} pass the filters" in page.evaluate("by('status').textContent")
    page.evaluate("document.querySelector('.filter button').click()")
    wait(page)
    assert page.evaluate("state.listed.length") == 96 and not page.evaluate("plot.get('isPointsFiltered')")


def test_colours_follow_the_column_and_unknown_is_told(page: Browser) -> None:
    page.evaluate("by('colour').value = 'stripes'; by('colour').onchange()")
    wait(page)
    assert read(page, "[...document.querySelectorAll('#legend li')].map((e) => e.textContent)") == ["0", "1", "unknown"]
    assert page.evaluate("plot.get('pointColor').length") == 3


def test_keys_go_from_film_to_film(page: Browser) -> None:
    page.evaluate("choose([5]); by('canvas').focus()")
    wait(page)
    press(page, "n")
    assert page.evaluate("state.chosen == map.near[5 * 8]")
    before = page.evaluate("state.chosen")
    for key, axis, sign in (
        ("ArrowRight", "x", 1),
        ("ArrowUp", "y", 1),
        ("ArrowLeft", "x", -1),
        ("ArrowDown", "y", -1),
    ):
        press(page, key)
        after = page.evaluate("state.chosen")
        assert after == before or sign * page.evaluate(f"map.{axis}[{after}] - map.{axis}[{before}]") > 0
        before = after
    page.evaluate("choose([5]); by('table').focus()")
    press(page, "ArrowDown")
    assert page.evaluate("state.chosen") == 6
    press(page, "l")
    assert page.evaluate("plot.get('mouseMode')") == "lasso" and page.evaluate("by('lasso').ariaPressed") == "true"
    press(page, "l")


def test_the_page_fits_and_every_control_has_a_name(page: Browser) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    unnamed = """[...document.querySelectorAll("input, select, button, canvas, section, [role]")]
      .filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map(e => e.id)"""
    assert [name for name in page.evaluate(unnamed) if name != "status"] == []


def test_wrong_use_is_told_in_one_line(embedded: Store, store: Store, tmp_path: Path, folder: Path) -> None:
    bad = {
        ("map", "--encoder", "pixels:8", "--out", tmp_path / "m"): "name at least one store",
        ("map", store.path, "--encoder", "pixels:8", "--out", tmp_path / "m"): "chess-cxr embed pixels:8",
        ("map", embedded.path, "--encoder", "pixels:8", "--out", folder): "exists already",
    }
    for words, told in bad.items():
        answer = run(*words)
        assert answer.code == 2 and told in answer.err and answer.err.count("\n") == 1, (words, answer)
    assert not (tmp_path / "m").exists()
