"""The page in a real browser: drop a DICOM film, see the answer, move the sliders, read why a file is refused."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import CHROMIUM, Browser, open_browser
from chess_cxr.records import FLAGS
from chess_cxr.tasks.classify.operating import POINTS
from pacs_node import write_radiograph
from served import Served, serve, unpack_earlier, write_findings_model

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
SET = """(() => {
  const control = document.getElementById(ID);
  if (control.type == "checkbox") control.checked = VALUE; else control.value = VALUE;
  for (const kind of ["input", "change"]) control.dispatchEvent(new Event(kind, {bubbles: true}));
})()"""
UNNAMED = """[...document.querySelectorAll("input, select, button, canvas, nav, section")]
  .filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map(e => e.id)"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    write_radiograph(folder / "film.dcm")
    (folder / "bad.dcm").write_bytes(b"no film")
    write_radiograph(folder / "doubtful.dcm", BurnedInAnnotation="YES")
    unpack_earlier(folder)
    with serve(
        folder,
        write_findings_model(folder / "findings"),
        folder / "bones",
        folder / "encoder",
        "--store",
        folder / "films.lance",
    ) as running:
        yield running


@pytest.fixture(scope="module")
def page(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        own = f"http://127.0.0.1:{served.port}/"
        browser.own = (own, f"blob:{own}")
        browser.open(own, 1280)
        yield browser


def drop(page: Browser, file: Path) -> None:
    data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.call("Input.dispatchDragEvent", type=kind, x=200, y=110, data=data)


def wait(page: Browser, expression: str) -> None:
    deadline = time.monotonic() + 90
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, page.evaluate("document.body.innerText")
        time.sleep(0.05)


def turn(page: Browser, control: str, value: int | bool | str) -> None:
    page.evaluate(SET.replace("ID", json.dumps(control)).replace("VALUE", json.dumps(value)))


def read_status(page: Browser) -> str:
    return str(page.evaluate("document.getElementById('status').textContent"))


def show_film(page: Browser, served: Served) -> None:
    """Drop a film unless the page shows one already: any worker may run any of these tests first."""
    if not page.evaluate("document.querySelectorAll('#films button').length"):
        drop(page, served.log.parent / "film.dcm")
        wait(page, "document.getElementById('status').textContent == '1 film answered.'")


def test_a_film_that_is_dropped_is_shown_and_answered(page: Browser, served: Served) -> None:
    film = served.log.parent / "film.dcm"
    drop(page, film)
    wait(page, "document.getElementById('status').textContent == '1 film answered.'")
    [answer] = served.post("/v1/predict", film.read_bytes()).json()["answers"]
    shown = page.evaluate("[...document.querySelectorAll('td.number')].map(cell => [cell.title, cell.textContent])")
    assert [float(title) for title, _ in shown] == [finding["probability"] for finding in answer["findings"]]
    said = page.evaluate("[...document.querySelectorAll('tbody tr')].map(row => row.lastChild.textContent)")
    yes = [finding["positive"] for finding in answer["findings"]]
    assert [text.startswith("yes") for text in said] == yes
    assert page.evaluate("document.querySelectorAll('.mark').length") == len(yes)
    assert page.evaluate("document.getElementById('film').width") > 100


def test_the_nearest_known_films_are_shown(page: Browser, served: Served) -> None:
    show_film(page, served)
    wait(page, "document.querySelectorAll('.alike img').length == 6")
    wait(page, "[...document.querySelectorAll('.alike img')].every(picture => picture.naturalWidth > 0)")


def test_doubts_and_points_are_told_in_words(page: Browser, served: Served) -> None:
    known = "import('/page/words.js').then(words => [Object.keys(words.FLAGS), Object.keys(words.POINTS)])"
    assert page.evaluate(known) == [list(FLAGS), list(POINTS)]
    show_film(page, served)
    count = page.evaluate("document.querySelectorAll('#films button').length")
    drop(page, served.log.parent / "doubtful.dcm")
    wait(page, f"document.querySelectorAll('#films button').length == {count + 1}")
    doubts = "[...document.querySelectorAll('.flags li')].map(doubt => doubt.textContent)"
    assert "Text may be burned into the film." in page.evaluate(doubts)
    page.evaluate("document.querySelector('#films button').click()")
    assert "Text may be burned into the film." not in page.evaluate(doubts)


def test_sliders_change_the_picture(page: Browser, served: Served) -> None:
    show_film(page, served)
    grey = "document.getElementById('film').toDataURL()"
    first = page.evaluate(grey)
    turn(page, "centre", 20)
    windowed = page.evaluate(grey)
    assert windowed != first
    turn(page, "centre", 50)
    assert page.evaluate(grey) == first
    turn(page, "strength", 60)
    wait(page, "!document.getElementById('heat').hidden && document.getElementById('heat').naturalWidth > 0")
    assert page.evaluate("document.getElementById('heat').style.opacity") == "0.6"
    turn(page, "side", True)
    wait(page, "!document.getElementById('beside').hidden && document.getElementById('boneless').width > 100")
    turn(page, "blend", 50)
    wait(page, "document.getElementById('caption').textContent.startsWith('Film, 50 % of the bone removed')")
    assert page.evaluate(grey) != first
    narrow = page.evaluate("document.querySelector('.stage').clientWidth")
    turn(page, "zoom", 200)
    assert page.evaluate("document.querySelector('.stage').clientWidth") == 2 * narrow
    page.evaluate("document.getElementById('reset').click()")
    assert page.evaluate("document.getElementById('zoom-told').value") == "100 %"


@pytest.mark.parametrize("width", [400, 800, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_says_always_what_it_is_not(page: Browser, width: int, scheme: str) -> None:
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    notice = page.evaluate("document.querySelector('.notice').getBoundingClientRect().toJSON()")
    assert 0 <= notice["top"] < 100 and notice["right"] <= width
    assert "Not a medical device" in page.evaluate("document.querySelector('.notice').textContent")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 24, 29)"
    assert dark == (scheme == "dark")
    assert len(page.take_screenshot()) > 10_000


def test_controls_have_names_and_take_the_keyboard(page: Browser, served: Served) -> None:
    assert page.evaluate(UNNAMED) == []
    show_film(page, served)
    page.evaluate("document.getElementById('reset').click()")
    page.evaluate("document.getElementById('zoom').focus()")
    for kind in ("rawKeyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39)
    wait(page, "document.getElementById('zoom-told').value == '125 %'")


def test_nothing_was_asked_of_others_and_the_console_is_clean(page: Browser) -> None:
    assert page.complaints == []


def test_a_file_that_is_no_film_is_refused_in_words(page: Browser, served: Served) -> None:
    drop(page, served.log.parent / "bad.dcm")
    wait(page, "document.getElementById('status').classList.contains('bad')")
    assert "bad.dcm: not a DICOM, PNG" in read_status(page)
    assert all("422" in complaint for complaint in page.complaints)  # the browser notes the status itself


def test_a_server_with_a_token_is_asked_with_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-of-twenty-letters")
    film = write_radiograph(tmp_path / "film.dcm")
    words = (write_findings_model(tmp_path / "findings"), "--token-file", "token")
    with serve(tmp_path, *words) as served, open_browser(tmp_path / "browser") as page:
        page.open(f"http://127.0.0.1:{served.port}/", 800)
        wait(page, "!document.getElementById('login').hidden")
        for token, is_right in (("a-guess", False), ("a-token-of-twenty-letters", True)):
            turn(page, "token", token)
            page.evaluate("document.getElementById('status').textContent = 'asked'")
            page.evaluate("document.querySelector('#login button').click()")
            wait(page, "document.getElementById('status').textContent != 'asked'")
            assert page.evaluate("document.getElementById('login').hidden") == is_right
        drop(page, film)
        wait(page, "document.getElementById('status').textContent == '1 film answered.'")
