import base64
import io
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from browser import CHROMIUM, Browser, open_browser
from chess_cxr.records import ChessError, UsageError
from page import ReaderItem, write_reader_page
from scores import read_answers, score_reader, score_readers

FILMS = 12


def draw_film(number: int, side: int = 64) -> np.ndarray:
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:side, :side] / side
    rough = 40 if number % 3 == 0 else 2  # so that their PNG files differ in length
    return np.clip(60 + 20 * number * x * y + rng.normal(0, rough, (side, side)), 0, 255).astype(np.uint8)


def write_png(pixels: np.ndarray, **words: str) -> bytes:
    told, written = PngInfo(), io.BytesIO()
    for name, text in words.items():
        told.add_text(name, text)
    Image.fromarray(pixels).save(written, "PNG", pnginfo=told)
    return written.getvalue()


def make_items(side: int = 64) -> list[ReaderItem]:
    """Every third film is SYNTHETIC."""
    names = [f"{'true' if number % 3 else 'fake'}{number}" for number in range(FILMS)]
    return [
        ReaderItem(write_png(draw_film(number, side), Comment=name), number % 3 == 0, name)
        for number, name in enumerate(names)
    ]


def read_told(page: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(page.split('type="application/json">')[1].split("</script>")[0])
    return told


# ---------------------------------------------------------------- what stands in the file


def test_nothing_in_the_file_tells_real_from_synthetic(tmp_path: Path) -> None:
    page = write_reader_page(make_items(), tmp_path / "page.html", seed=1).read_text("utf-8")
    told = read_told(page)
    pngs = [base64.b64decode(picture) for picture in told["pictures"]]
    assert len({len(png) for png in pngs}) == 1
    lengths = {png.index(b"IEND") for png in pngs}
    assert len(lengths) > 1  # they were filled up: without that the rough ones were longer
    for png in pngs:
        assert re.findall(b"IHDR|IDAT|IEND|tEXt|eXIf|tIME|pHYs|gAMA", png[: png.index(b"IEND") + 4]) == [
            b"IHDR", b"IDAT", b"IEND",
        ]  # fmt: skip
    outside = page.replace(json.dumps(told["pictures"]), "")
    assert not re.search(r"fake\d|true\d", outside)
    for place in range(FILMS):
        name = ["fake", "true"][place % 3 > 0] + str(place)
        assert base64.b64encode(name.encode()).decode().rstrip("=")[:5] not in told["sealed"]
    assert "blinded, not secret" in page


def test_every_film_is_shown_once_with_the_very_pixels_it_had_in_an_order_of_the_seed(tmp_path: Path) -> None:
    items = make_items()

    def list_order(seed: int) -> list[int]:
        told = read_told(write_reader_page(items, tmp_path / "page.html", seed=seed).read_text("utf-8"))
        shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in told["pictures"]]
        return [next(n for n in range(FILMS) if np.array_equal(draw_film(n), one)) for one in shown]

    first = list_order(1)
    assert sorted(first) == list(range(FILMS)) and first != sorted(first)
    assert list_order(1) == first != list_order(2)
    one, other = (write_reader_page(items, tmp_path / f"{n}.html", seed=1).read_bytes() for n in range(2))
    assert one == other


def test_a_title_cannot_become_markup_and_nothing_is_loaded(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    items = [*make_items(), ReaderItem(write_png(draw_film(99)), True, evil)]
    page = write_reader_page(items, tmp_path / "page.html", title=evil).read_text("utf-8")
    assert "<img src=x" not in page
    assert page.count("</script>") == 2
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)""", page) and "default-src 'none'" in page


def write_rgb(pixels: np.ndarray, *, coloured: bool) -> bytes:
    rgb = np.repeat(pixels[..., None], 3, axis=2)
    rgb[..., 2] //= 2 if coloured else 1
    return write_png(rgb)


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([item for item in make_items() if item.is_synthetic], "real and synthetic"),
        ([*make_items(), ReaderItem(write_png(draw_film(1, 65)), True, "x")], "one size"),
        ([*make_items(), make_items()[0]], "same name"),
        ([*make_items(), ReaderItem(b"no picture", True, "x")], "no PNG"),
        ([*make_items(), ReaderItem(write_rgb(draw_film(1), coloured=True), True, "x")], "colour"),
        ([*make_items(), ReaderItem(write_png(draw_film(1)), True, "two\nlines")], "one line"),
    ],
)
def test_films_that_would_tell_by_themselves_are_refused(tmp_path: Path, items: list[ReaderItem], reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        write_reader_page(items, tmp_path / "page.html")
    assert "\n" not in str(caught.value) and not (tmp_path / "page.html").exists()


def test_grey_in_three_channels_is_grey(tmp_path: Path) -> None:
    items = [*make_items(), ReaderItem(write_rgb(draw_film(50), coloured=False), True, "x")]
    told = read_told(write_reader_page(items, tmp_path / "page.html").read_text("utf-8"))
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in told["pictures"]]
    assert any(np.array_equal(draw_film(50), one) for one in shown)


# ---------------------------------------------------------------- a whole session in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("no browser to open the page in")
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened
        assert opened.complaints == []


def press(browser: Browser, *keys: str) -> None:
    for key in keys:
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key if len(key) == 1 else "")
        browser.call("Input.dispatchKeyEvent", type="keyUp", key=key)


def read_text(browser: Browser, selector: str) -> str:
    text: str = browser.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
    return " ".join(text.split())


def find_page(browser: Browser) -> str:
    name: str = browser.evaluate("[...document.querySelectorAll('main')].filter(e => !e.hidden).map(e => e.id).join()")
    return name


# What the reader says of each film in turn; the truth is in the order that the seed draws.
SAID = [(at % 2 == 0, 1 + at % 5) for at in range(FILMS)]


def test_a_session_goes_on_after_a_reload_and_its_score_is_what_python_makes_of_the_file(
    tmp_path: Path, browser: Browser
) -> None:
    file = write_reader_page(make_items(), tmp_path / "page.html", seed=4)
    browser.open(file, 1280)
    assert find_page(browser) == "start"
    browser.evaluate("byId('reader').value = 'A. B. <i>'; byId('begin').click()")
    for at, (says_synthetic, confidence) in enumerate(SAID):
        assert read_text(browser, "#progress") == f"Film {at + 1} of {FILMS}"
        if at == 2:
            press(browser, "3")  # not before real or synthetic is said
            assert read_text(browser, "#progress") == "Film 3 of 12"
        if at == 5:
            press(browser, "r", "1", "Backspace")  # a slip, taken back
            browser.open(file, 1280)
            assert read_text(browser, "#progress") == "Film 6 of 12"
        if at == 8:
            browser.open(file, 1280)
            assert read_text(browser, "#progress") == "Film 9 of 12"
        if at % 3 == 0:
            browser.evaluate(f"byId('{'synthetic' if says_synthetic else 'real'}').click()")
            browser.evaluate(f"document.querySelector('[data-sure=\"{confidence}\"]').click()")
        else:
            press(browser, "s" if says_synthetic else "R", str(confidence))
    assert find_page(browser) == "answered"
    browser.evaluate("byId('reopen').click()")
    assert read_text(browser, "#progress") == "Film 12 of 12"
    press(browser, "s" if SAID[-1][0] else "r", str(SAID[-1][1]))
    browser.evaluate("byId('finish').click()")
    browser.open(file, 1280)
    assert find_page(browser) == "score"
    check_score(browser, tmp_path)


def check_score(browser: Browser, folder: Path) -> None:
    """The page's own figures, its list of misses and the file that it saves agree with Python's."""
    saved = save_answers(browser, folder)
    given = read_answers(saved)
    assert given.reader == "A. B. i"
    truth = {item.name: item.is_synthetic for item in make_items()}
    assert {answer.film: answer.is_synthetic for answer in given.answers} == truth
    assert [(answer.says_synthetic, answer.confidence) for answer in given.answers] == SAID
    score = score_reader(given)
    figures = read_text(browser, "#figures")
    right = FILMS - len(score.misses)
    interval = f"{score.accuracy.value:.3f} [{score.accuracy.low:.3f}, {score.accuracy.high:.3f}]"
    assert f"Accuracy {interval}, {right} of 12 right" in figures
    assert f"AUROC of the confidence {score.auroc.value:.3f}" in figures
    assert f"d′ {score.d_prime:.3f}" in figures
    assert f"SYNTHETIC films called synthetic {round(score.hit_rate * 4)} of 4" in figures
    assert f"Real films called synthetic {round(score.false_alarm_rate * 8)} of 8" in figures
    missed: list[str] = browser.evaluate("[...document.querySelectorAll('#misses b')].map(e => e.textContent)")
    assert sorted(missed) == sorted(answer.film for answer in score.misses)
    assert read_text(browser, "#whose") == "of A. B. i"


def save_answers(browser: Browser, folder: Path) -> Path:
    """Press the button, and wait for the file it saves."""
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    browser.evaluate("byId('save').click()")
    browser.evaluate("""new Promise(done => setTimeout(done, 1500))""")
    (saved,) = folder.glob("answers-A-B-i-*.json")
    return saved


@pytest.mark.parametrize(("right", "films"), [(0, 7), (7, 7), (3, 7), (499, 1000)])
def test_the_page_computes_intervals_as_scipy_does(tmp_path: Path, browser: Browser, right: int, films: int) -> None:
    from scipy import stats

    browser.open(write_reader_page(make_items(), tmp_path / "page.html"), 1280)
    found = browser.evaluate(f"computeInterval({right}, {films})")
    exact = stats.binomtest(right, films).proportion_ci(0.95, method="exact")
    np.testing.assert_allclose(found, [exact.low, exact.high], atol=1e-9)
    for share in (0.001, 0.3, 0.5, 0.98):
        assert browser.evaluate(f"invertNormal({share})") == pytest.approx(stats.norm.ppf(share), abs=1e-9)


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (400, 740)])
def test_film_and_buttons_fit_the_window_and_the_score_fits_its_width(
    tmp_path: Path, browser: Browser, width: int, height: int
) -> None:
    file = write_reader_page(make_items(512), tmp_path / "page.html", seed=width)
    browser.open(file, width, height)
    measure = """JSON.stringify([document.documentElement.scrollWidth, document.documentElement.scrollHeight,
        byId("film").getBoundingClientRect().width, byId("back").getBoundingClientRect().bottom])"""
    assert json.loads(browser.evaluate(measure))[0] <= width
    browser.evaluate("byId('begin').click()")
    wide, high, film, bottom = json.loads(browser.evaluate(measure))
    assert wide <= width and high <= height and bottom <= height
    assert film >= 0.7 * width
    keep_picture(browser, f"reading_{width}")
    for at in range(FILMS):
        press(browser, "sr"[at % 2], "1")
    browser.evaluate("byId('finish').click()")
    assert json.loads(browser.evaluate(measure))[0] <= width
    keep_picture(browser, f"score_{width}")


def keep_picture(browser: Browser, name: str) -> None:
    if folder := os.environ.get("CHESS_CXR_SCREENSHOTS"):
        (Path(folder) / f"{name}.png").write_bytes(browser.take_screenshot())


# ---------------------------------------------------------------- scores in Python


def make_file(path: Path, reader: str = "A", flipped: int = 0, **changes: object) -> Path:
    """Ten films, of which four are SYNTHETIC; the reader takes `flipped` of them for the other kind."""
    answers = [
        {"film": f"f{n}", "is_synthetic": n < 4, "says_synthetic": (n < 4) != (n < flipped), "confidence": 1 + n % 5}
        for n in range(10)
    ]
    told = {"format": "chess-cxr reader answers 1", "page": "abc", "reader": reader, "answers": answers}
    path.write_text(json.dumps(told | changes), "utf-8")
    return path


def test_scores_are_those_of_slow_definitions(tmp_path: Path) -> None:
    given = read_answers(make_file(tmp_path / "a.json", flipped=2))
    score = score_reader(given)
    signed = [(a.confidence if a.says_synthetic else -a.confidence, a.is_synthetic) for a in given.answers]
    pairs = [(s > r) + 0.5 * (s == r) for s, kind in signed if kind for r, other in signed if not other]
    assert score.auroc.value == pytest.approx(sum(pairs) / len(pairs))
    assert (score.accuracy.value, score.hit_rate, score.false_alarm_rate) == (0.8, 0.5, 0.0)
    # Bounds at which 8 right of 10 or more, and 8 or fewer, have a chance of 2.5 %
    low = sum(math.comb(10, k) * score.accuracy.low**k * (1 - score.accuracy.low) ** (10 - k) for k in range(8, 11))
    high = sum(math.comb(10, k) * score.accuracy.high**k * (1 - score.accuracy.high) ** (10 - k) for k in range(9))
    assert (low, high) == (pytest.approx(0.025), pytest.approx(0.025))
    assert score.d_prime == pytest.approx(0.0 - -1.4652338, abs=1e-6)  # 2.5 of 5 and 0.5 of 7 on the normal scale
    assert [answer.film for answer in score.misses] == ["f0", "f1"]


def test_readers_of_one_page_are_scored_together_and_of_two_are_not(tmp_path: Path) -> None:
    files = [make_file(tmp_path / f"{n}.json", f"reader {n}", n) for n in range(3)]
    table = score_readers(files)
    assert table.reader.tolist() == ["reader 0", "reader 1", "reader 2", "mean of 3 readers"]
    assert table.accuracy.tolist() == pytest.approx([1.0, 0.9, 0.8, 0.9])
    half = 4.302653 * 0.1 / math.sqrt(3)  # Student's t with 2 degrees of freedom
    assert table.accuracy_high[3] - 0.9 == pytest.approx(half, abs=1e-6)
    with pytest.raises(UsageError, match="different reader pages"):
        score_readers([files[0], make_file(tmp_path / "b.json", page="other")])
    with pytest.raises(UsageError, match="same answers"):
        score_readers([files[0], make_file(tmp_path / "c.json")])
    with pytest.raises(UsageError, match="no file"):
        score_readers([])


ONE = {"film": "a", "is_synthetic": True, "says_synthetic": True, "confidence": 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"format": NaN}', "no JSON"),
        ("[]", "does not hold answers"),
        (json.dumps({"answers": [ONE]}), "does not hold answers"),
        ({"answers": []}, "1 to 10000"),
        ({"answers": [ONE] * 2}, "twice"),
        ({"answers": [ONE | {"confidence": 6}]}, "confidence"),
        ({"answers": [ONE | {"confidence": True}]}, "confidence"),
        ({"answers": [ONE | {"says_synthetic": "yes"}]}, "neither real nor"),
        ({"answers": [ONE | {"film": "x" * 201}]}, "film"),
        ({"answers": [3]}, "none"),
        ({"reader": "two\nlines"}, "reader"),
        ({"reader": None}, "reader"),
        (" " * (4 << 20) + "[]", "larger"),
    ],
)
def test_a_file_that_is_none_of_the_page_is_refused_in_one_line(
    tmp_path: Path, content: str | dict[str, object], reason: str
) -> None:
    path = tmp_path / "a.json"
    if isinstance(content, str):
        path.write_text(content, "utf-8")
    else:
        make_file(path, **content)
    with pytest.raises(ChessError, match=reason) as caught:
        read_answers(path)
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


def test_pipes_folders_and_absent_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "absent"):
        with pytest.raises(ChessError):
            read_answers(path)
