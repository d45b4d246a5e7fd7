import base64
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from benchmark_results import drop_sets, make_results, make_tables, make_thumbnails
from browser import CHROMIUM, Browser, open_browser
from chess_cxr.benchmarking.errors import find_worst_errors
from chess_cxr.benchmarking.page.details import build_error_block
from chess_cxr.benchmarking.page.findings import (
    describe_findings,
    find_weakness,
    judge_difference,
    say_p,
    summarise_findings,
)
from chess_cxr.benchmarking.page.grids import build_paper_grid, build_result_grid
from chess_cxr.benchmarking.page.page import render_benchmark_page, write_benchmark_page
from chess_cxr.benchmarking.predictions import BenchmarkResults

COMMAND = "chess-cxr benchmark suite.toml --out result"
EVIL = "<script>alert(1)</script>"
LONG = "an_encoder_whose_name_is_one_very_long_word_without_end"


@pytest.fixture(scope="module")
def results() -> BenchmarkResults:
    return make_results(replicates=300)


@pytest.fixture(scope="module")
def tables(results: BenchmarkResults) -> dict[str, pd.DataFrame]:
    return make_tables(results)


@pytest.fixture(scope="module")
def page(results: BenchmarkResults, tables: dict[str, pd.DataFrame]) -> str:
    return render_benchmark_page(results, tables, COMMAND, make_thumbnails(results))


def test_the_parts_stand_in_order_and_the_contents_lead_to_each(page: str) -> None:
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        "What was compared, and what was found",
        "Fewest and all labels",
        "pneumonia",
        "findings",
        "Failures, notes and origin",
    ]
    links = re.findall(r'<li><a href="#([^"]+)">(.*?)</a></li>', page)
    assert [text for _, text in links] == headings
    assert [anchor for anchor, _ in links] == re.findall(r'<section id="([^"]+)"', page)
    task = page[page.index('id="task-0"') : page.index('id="task-1"')]
    assert re.findall(r"<h3>(.*?)</h3>", task) == [
        "Label efficiency, linear head",
        "Accuracy, linear head",
        "AUROC, linear head",
        "AUROC of each class, linear head",
        "ROC curves",
        "Calibration",
        "Operating points",
        "Thresholds carried to another site",
        "Subgroups",
        "Most surely wrong",
    ]


def test_failures_notes_and_the_command_stand_on_the_page(page: str) -> None:
    assert "the weights are not there: see the documentation" in page
    assert "Mass: too few patients to choose a strength (ours, ImageNet, scratch: 6 prediction sets)" in page
    assert COMMAND in page and "seed 0; 300 bootstrap replicates" in page
    assert "pneumonia is a made-up task." in page


@pytest.fixture(scope="module")
def strange_page(results: BenchmarkResults, tables: dict[str, pd.DataFrame]) -> str:
    """A page of generated films with markup in every text that comes from outside."""
    failed = tuple(replace(failure, reason=EVIL) for failure in results.failures)
    task = replace(results.tasks["pneumonia"], data_set=EVIL, notes=(EVIL,))
    strange = replace(results, failures=failed, tasks={"pneumonia": task}, synthetic=True)
    return render_benchmark_page(strange, tables, EVIL, make_thumbnails(results))


def test_a_page_loads_nothing_from_elsewhere_and_text_cannot_become_markup(strange_page: str) -> None:
    assert "<script" not in strange_page and strange_page.count("&lt;script&gt;") >= 4
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:|#)", strange_page)
    assert not re.search(r"url\((?!#)", strange_page) and "@import" not in strange_page


def test_only_synthetic_benchmarks_carry_the_banner_and_only_films_of_people_the_warning(
    page: str, strange_page: str
) -> None:
    assert "SYNTHETIC" not in page and "films of people" in page
    assert strange_page.count("SYNTHETIC") == 2 and "films of people" not in strange_page


def test_no_whole_uid_and_no_patient_stands_on_the_page(results: BenchmarkResults, page: str) -> None:
    for task in results.tasks.values():
        for name in (*task.test.uid_M.tolist(), *task.test.patient_M.tolist()):
            assert name not in page


def test_the_worst_errors_have_their_pictures_and_those_without_one_are_named(
    results: BenchmarkResults, page: str
) -> None:
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 24
    assert struct.unpack(">II", base64.b64decode(pictures[0])[16:24]) == (64, 48)
    bare = build_error_block(results, results.tasks["pneumonia"], {})
    assert bare is not None and [picture.source for picture in bare.pictures] == [""] * 12
    worst = find_worst_errors(results, "pneumonia", 1)[0]
    said = (f"called {worst.name}, {worst.probability:.0%}", f"is {worst.truth}", worst.uid[:10])
    assert bare.pictures[0].lines == said


def test_the_paper_table_has_the_numbers_of_the_tables(
    results: BenchmarkResults, tables: dict[str, pd.DataFrame]
) -> None:
    grid = build_paper_grid(results, tables, "linear")
    assert [cell.text for cell in grid.heads] == ["encoder", "pneumonia", "pneumonia", "findings", "findings"]
    assert [cell.small[0] for cell in grid.heads[1:]] == ["10 %", "100 %"] * 2
    assert [row[0].text for row in grid.rows] == ["ours", "ImageNet", "scratch"]  # CheSS has no number
    where = "task == 'findings' and encoder == 'scratch' and subset == '100 %' and metric == 'auroc'"
    value, gap = (tables[name].query(where).iloc[0] for name in ("summary", "differences"))
    cell = grid.rows[2][4]
    assert cell.text == f"{value['value']:.3f}"
    assert cell.small[0] == f"[{value['low']:.3f}, {value['high']:.3f}]"
    assert cell.tone == "behind" and cell.small[1].startswith("▼ Δ −")
    assert cell.small[1].endswith(f"{gap['value']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]".replace("-", "−"))
    assert cell.small[2] == f"p ≤ {gap['p_holm']:.3f}"
    assert grid.rows[0][1].small == (grid.rows[0][1].small[0],)  # the reference has no difference to itself


def make_difference(value: float, p_holm: float, **others: float) -> Any:
    row = {"value": value, "low": value - 0.1, "high": value + 0.1, "p": 0.5, "p_holm": p_holm}
    return next(pd.DataFrame([row | {"replicates": 999, "undefined": 0} | others]).itertuples())


def test_a_difference_is_shown_only_where_the_corrected_p_is_small() -> None:
    assert judge_difference(make_difference(0.3, 0.049), 0.95) == "ahead"
    assert judge_difference(make_difference(-0.3, 0.049), 0.95) == "behind"
    assert judge_difference(make_difference(0.3, 0.05), 0.95) == ""
    assert judge_difference(make_difference(0.3, float("nan")), 0.95) == ""


def test_a_p_that_the_replicates_cannot_resolve_is_an_upper_bound() -> None:
    assert say_p(make_difference(0.3, 0.012, p=0.002), "p_holm") == "≤ 0.012"
    assert say_p(make_difference(0.3, 0.024, p=0.004), "p_holm") == "= 0.024"
    assert say_p(make_difference(0.3, 0.024, p=0.002, undefined=500), "p_holm") == "≤ 0.024"
    assert say_p(make_difference(0.3, 1.0, p=0.002), "p_holm") == "= 1.000"
    assert say_p(make_difference(0.3, float("nan")), "p_holm") == "unknown"


def test_the_findings_say_who_is_ahead_as_the_differences_do(
    results: BenchmarkResults, tables: dict[str, pd.DataFrame]
) -> None:
    told = describe_findings(results, tables, "pneumonia")
    assert len(told) == 2 and told[1].startswith("with 400 labelled films (100 %, 1 draw, linear head) ours has AUROC")
    where = "task == 'pneumonia' and subset == '100 %' and metric == 'auroc' and encoder == 'scratch'"
    gap = tables["differences"].query(where).iloc[0]
    lead = f"scratch by {-gap['value']:.3f} [{-gap['high']:+.3f}, {-gap['low']:+.3f}]"
    assert "it is ahead of " in told[1] and lead in told[1]


def test_a_reference_that_is_worse_is_said_to_be_behind(tables: dict[str, pd.DataFrame]) -> None:
    worse = replace(make_results(replicates=300), reference="scratch")
    swapped = make_tables(worse)
    text = describe_findings(worse, swapped, "pneumonia")[1]
    assert "it is behind ours by 0." in text and "ahead" not in text.split("it is behind")[0]
    whole = summarise_findings(worse, swapped["differences"])
    assert whole[0].startswith("scratch against ours: behind in ") and "of 6 comparisons" in whole[0]


def test_too_few_replicates_for_any_difference_are_warned_of(
    results: BenchmarkResults, tables: dict[str, pd.DataFrame]
) -> None:
    assert find_weakness(results, tables["differences"]) == ""
    few = find_weakness(replace(results, replicates=200), tables["differences"])
    assert few.startswith("200 replicates cannot show a difference after Holm: with 6 comparisons")
    needed = int(re.findall(r"at least (\d+)", few)[0])
    assert find_weakness(replace(results, replicates=needed), tables["differences"]) == ""
    assert find_weakness(replace(results, replicates=needed - 1), tables["differences"])


def test_a_missing_cell_is_a_dash_and_a_missing_reference_leaves_values_alone(results: BenchmarkResults) -> None:
    part = drop_sets(results, task="pneumonia", encoder="ours", subset="100 %")
    grid = build_result_grid(part, make_tables(part), "linear", "auroc", [("pneumonia", "100 %")])
    assert [row[0].text for row in grid.rows] == ["ImageNet", "scratch"]
    assert all(len(row[1].small) == 1 for row in grid.rows)


def test_a_benchmark_of_which_nothing_was_computed_still_has_a_page(results: BenchmarkResults) -> None:
    nothing = replace(results, sets=())
    page = render_benchmark_page(nothing, make_tables(nothing), COMMAND)
    assert page.count("Nothing was computed for this task") == 2 and "see the documentation" in page
    assert "No two encoders can be compared" in page


def test_a_task_without_val_films_says_what_cannot_be_chosen(results: BenchmarkResults) -> None:
    task = results.tasks["pneumonia"]
    empty = replace(task.val, uid_M=task.val.uid_M[:0], patient_M=task.val.patient_M[:0], label=task.val.label[:0])
    sets = tuple(replace(one, val_MC=one.val_MC[:0]) for one in results.sets if one.task == "pneumonia")
    alone = replace(results, tasks={"pneumonia": replace(task, val=empty)}, sets=sets)
    page = render_benchmark_page(alone, make_tables(alone))
    assert "no val film to fit a temperature on" in page and "no val film to choose a threshold on" in page


# In a real browser

MEASURE = """(() => {
  const every = [...document.body.querySelectorAll("*")];
  const boxed = e => e.closest(".scroll") !== null;
  const tall = e => e.getBoundingClientRect();
  return {
    window: innerWidth, page: document.scrollingElement.scrollWidth,
    outside: every.filter(e => !boxed(e) && tall(e).right > innerWidth + 0.5).map(e => e.tagName),
    wide: [...document.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth + 1)
      .map(e => e.getAttribute("aria-label")),
    boxes: [...document.querySelectorAll(".scroll")].filter(e => tall(e).right > innerWidth + 0.5).length,
    missing: [...document.images].filter(e => !e.complete || e.naturalWidth == 0).length,
    images: document.images.length,
    figures: [...document.querySelectorAll(".figures svg")].map(e => Math.round(tall(e).width)),
    letters: Math.min(...every.filter(e => e.children.length == 0 && e.textContent.trim() && !e.closest("svg"))
      .map(e => parseFloat(getComputedStyle(e).fontSize))),
    over: [...document.querySelectorAll("tbody tr")].filter(row => [...row.cells].some((cell, place) => place &&
      [...row.cells[place - 1].children].some(e => { const text = document.createRange(); text.selectNodeContents(e);
        return text.getBoundingClientRect().right > tall(cell).left + 1; }))).length,
    lost: [...document.querySelectorAll("nav a")].filter(e => !document.querySelector(e.hash)).length,
  };
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if not CHROMIUM:
        pytest.fail("no chromium: the page must be looked at in a browser (Debian: apt-get install chromium)")
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of one task with names of one long word, as they come."""
    results = make_results({"ours": 1.6, LONG: 1.0, "scratch": 0.1}, replicates=60)
    results = replace(
        results,
        encoders=results.encoders | {LONG: "what it is, told at length, " * 6},
        tasks={"findings": results.tasks["findings"]},
        sets=tuple(one for one in results.sets if one.task == "findings"),
    )
    out = tmp_path_factory.mktemp("page") / "report.html"
    return write_benchmark_page(results, make_tables(results), out, COMMAND + f" {LONG}" * 3, make_thumbnails(results))


@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser_nothing_is_missing_cut_off_or_complained_of(
    browser: Browser, page_file: Path, width: int
) -> None:
    browser.complaints.clear()
    browser.open(page_file, width)
    told = browser.evaluate(MEASURE)
    assert browser.complaints == []
    assert told["window"] == width and told["page"] <= width
    assert told["outside"] == [] and told["boxes"] == 0 and told["over"] == 0
    assert told["images"] == 12 and told["missing"] == 0 and told["lost"] == 0
    assert len(told["figures"]) == 9 and min(told["figures"]) >= 200
    assert told["letters"] >= 11


def test_tables_of_many_labels_tasks_and_classes_fit_a_page_of_1280_pixels(browser: Browser, tmp_path: Path) -> None:
    results = make_results({"ours": 1.6, "ImageNet": 1.0, "scratch": 0.1}, replicates=40)
    subsets = ("1 %", "5 %", "10 %", "25 %", "50 %", "75 %", "100 %")
    one = [one for one in results.sets if one.subset == "100 %"]
    sets = tuple(replace(s, subset=name, n_train_films=4 + at) for s in one for at, name in enumerate(subsets))
    tasks = {f"task {at}": replace(results.tasks["findings"], name=f"task {at}") for at in range(7)}
    many = [replace(s, task=task) for task in tasks for s in sets if s.task == "findings"]
    wide = replace(results, tasks=tasks, sets=tuple(many), failures=())
    out = write_benchmark_page(wide, make_tables(wide), tmp_path / "report.html", COMMAND, {})
    browser.open(out, 1280)
    told = browser.evaluate(MEASURE)
    assert told["wide"] == [] and told["over"] == 0 and told["page"] <= 1280
    browser.open(out, 400)
    assert browser.evaluate(MEASURE)["outside"] == []


@pytest.mark.parametrize("width", [1280, 400])
def test_a_screenshot_of_the_page_is_not_blank(browser: Browser, page_file: Path, width: int, tmp_path: Path) -> None:
    browser.open(page_file, width)
    shot = tmp_path / "shot.png"
    shot.write_bytes(browser.take_screenshot())
    grey = imread(shot)[..., :3].mean(2)
    assert grey.shape[1] == width and grey.shape[0] > 3000
    bands = np.array_split(grey, 12)
    assert all((band < 0.5).mean() > 0.002 and (band > 0.9).mean() > 0.3 for band in bands)


def test_the_page_prints_on_a4_with_every_task_on_a_new_sheet(browser: Browser, page_file: Path) -> None:
    browser.open(page_file, 1280)
    printed = browser.print_pdf()
    assert printed.startswith(b"%PDF")
    assert 4 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 25


def test_the_browser_would_tell_of_a_missing_picture_and_an_error(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text('<body><img src="gone.png"><script>console.error("a"); throw 1</script><p style="width:999px">x')
    browser.complaints.clear()
    browser.open(bad, 400)
    told = browser.evaluate(MEASURE)
    assert told["missing"] == 1 and told["page"] > 400
    assert len(browser.complaints) >= 3
    browser.complaints.clear()
