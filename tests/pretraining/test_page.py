import base64
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser import CHROMIUM
from chess_cxr.pretraining.page import (
    LARGEST_VIEW,
    MOST_POINTS,
    RunFacts,
    draw_run_curves,
    list_numbers,
    render_run_page,
    shrink_view,
    thin_curve,
)
from chess_cxr.report.pictures import encode_png
from chess_cxr.training.config import flatten_config
from pages import lay_out, read_texts

ENTRIES = """
  figures: [...document.querySelectorAll("svg")].map(width),
  letters: Math.min(...[...document.querySelectorAll("svg text")].map(e => e.getBoundingClientRect().height)),
  views: [...document.querySelectorAll("img")].map(width),
  tops: [...document.querySelectorAll("img")].map(e => Math.round(e.getBoundingClientRect().top)),
  columns: getComputedStyle(document.querySelector(".figures")).gridTemplateColumns.split(" ").length,
"""


def make_metrics(lines: int = 30) -> list[dict[str, float]]:
    metrics: list[dict[str, float]] = []
    for number in range(1, lines + 1):
        line = {"step": 20 * number, "time": 1e9 + number, "loss/encoder": 7 - number / lines, "learning_rate": 1e-3}
        line |= {
            "embedding_std": 0.9,
            "positive_similarity": 0.8,
            "negative_similarity": 0.1,
            "images_per_second": 200.0,
        }
        line |= {"data_wait_share": 0.015, "gemm_peak_share": 0.2, "skipped_steps": 0}
        if number % 10 == 0:
            auroc = 0.8 if number == 20 else 0.7
            line |= {"probe/knn_auroc": auroc, "probe/knn_auroc/nodule": auroc + 0.1, "probe/effective_rank": 45.0}
            line |= {"probe/linear_auroc": 0.75, "probe/alignment": 0.3, "probe/uniformity": -2.0}
        metrics.append(line)
    return metrics


def make_facts(**more: Any) -> RunFacts:
    config = {"preset": "cpu_small", "method": {"name": "moco_v2", "queue": 1024}, "splits": ["train", ""]}
    environment = {"python": "3.11", "threads": 2}
    return replace(RunFacts("first", "finished, 600 of 600 steps", make_metrics(), config, environment), **more)


def make_views(films: int = 3, side: int = 24) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (2, films, side, side), np.uint8)


def read_pictures(page: str) -> list[np.ndarray]:
    found = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    return [np.asarray(Image.open(io.BytesIO(png))) for png in found]


def test_the_page_tells_the_newest_numbers_and_the_best_probe() -> None:
    assert list_numbers(make_metrics()) == [
        ("kNN AUROC", "0.700", "best 0.800 at step 400"),
        ("linear probe AUROC", "0.750", "best 0.750 at step 600"),
        ("effective rank", "45", "of the features; near 1 is collapse"),
        ("spread of embeddings", "0.90", "0 … 1; near 0 is collapse"),
        ("images a second", "200", "newest"),
        ("waiting for data", "1.5%", "of a step's time"),
        ("share of the GEMM peak", "20%", "of the machine's measured matrix product"),
        ("skipped steps", "0", "loss or gradient not finite"),
        ("loss, encoder", "6.000", "nats"),
    ]
    texts = read_texts(render_run_page(make_facts()))
    assert ("dt", "kNN AUROC") in texts and ("dd", "0.700") in texts and ("p", "finished, 600 of 600 steps") in texts


def test_every_number_that_was_measured_has_its_curve_and_no_other() -> None:
    figures = list(draw_run_curves(make_metrics()).values())
    spoken = [re.search(r'aria-label="([^"]+)"', figure)[1] for figure in figures]  # type: ignore[index]
    assert len(spoken) == 8 and spoken[0] == "Loss against the steps"
    texts = " ".join(text for _, text in read_texts(render_run_page(make_facts())))
    for label in ("loss, nats", "nodule", "chance", "different films", "alignment, features", "GEMM peak, % (right)"):
        assert label in texts
    few = draw_run_curves([{"step": 1, "loss/encoder": 3.0}])
    assert list(few) == ["loss"] and "loss, nats" in few["loss"] and "chance" not in few["loss"]
    assert "chance" in draw_run_curves([{"step": 1, "loss/encoder": 3.0}], chance_loss=6.2)["loss"]
    assert draw_run_curves([]) == {}


def test_configuration_and_environment_stand_in_flat_tables() -> None:
    texts = read_texts(render_run_page(make_facts(metrics=[])))
    for expected in [("th", "method.queue"), ("td", "1024"), ("td", '["train", ""]'), ("th", "threads")]:
        assert expected in texts
    assert flatten_config({"a": {"b": None}}) == {"a.b": "null"}


def test_views_arrive_to_the_bit_and_side_by_side() -> None:
    views = make_views()
    page = render_run_page(make_facts(metrics=[]), views)
    expected = [view for pair in zip(views[0], views[1], strict=True) for view in pair]
    for found, view in zip(read_pictures(page), expected, strict=True):
        np.testing.assert_array_equal(found, view)
    assert "Two random views of each of 3 films" in page
    assert "<img" not in render_run_page(make_facts(metrics=[]))


def test_large_views_are_shrunk_by_means_of_blocks() -> None:
    view = make_views(1, 515)[0, 0]
    small = shrink_view(view)
    assert small.shape == (171, 171) and max(small.shape) <= LARGEST_VIEW
    assert small[3, 5] == round(float(view[9:12, 15:18].mean()))
    np.testing.assert_array_equal(shrink_view(view[:256, :100]), view[:256, :100])
    assert encode_png(view).startswith(b"\x89PNG")


def test_a_run_of_weeks_makes_a_page_of_a_few_hundred_points_a_curve() -> None:
    metrics = make_metrics(20_000)
    thin = thin_curve(metrics, "loss/encoder")
    assert len(thin) == MOST_POINTS and thin[-1]["step"] == 400_000
    assert thin[0]["loss/encoder"] == pytest.approx(np.mean([line["loss/encoder"] for line in metrics[:50]]))
    page = render_run_page(make_facts(metrics=metrics))
    assert len(page) < 600_000 and "Points are means of neighbouring steps." in page
    assert "Points are means" not in render_run_page(make_facts(metrics=metrics[:2]))


def test_numbers_that_are_not_finite_break_no_curve() -> None:
    metrics = [*make_metrics(), {"step": 640, "loss/encoder": float("nan"), "images_per_second": float("inf")}]
    assert [line["step"] for line in thin_curve(metrics, "loss/encoder")][-1] == 600
    assert len(draw_run_curves(metrics)) == 8


def test_what_must_not_be_overlooked_stands_at_the_top() -> None:
    page = render_run_page(
        make_facts(metrics=[], notes=("collapse: at step 20 …",), synthetic=True, probed="500 val films."), make_views()
    )
    texts = [text for _, text in read_texts(page)]
    assert "first (SYNTHETIC)" in texts and "collapse: at step 20 …" in texts
    assert next(text for text in texts if text.startswith("SYNTHETIC:"))
    assert "500 val films. One draw, no interval: a guide while training, not a result." in texts
    assert "films of people" not in page and "films of people" in render_run_page(make_facts(metrics=[]), make_views())


def test_a_run_without_numbers_has_a_page() -> None:
    assert ("p", "Nothing has been measured yet.") in read_texts(render_run_page(make_facts(metrics=[])))


def test_a_page_loads_nothing_from_elsewhere_and_text_cannot_become_markup() -> None:
    evil = "<script>alert(1)</script>"
    metrics = [
        {"step": 20 * n, f"loss/{evil}": 1.0, f"probe/knn_auroc/{evil}": 0.5, "probe/knn_auroc": 0.5} for n in (1, 2)
    ]
    facts = RunFacts(evil, evil, metrics, {evil: evil}, {evil: [evil]}, (evil,), evil)
    page = render_run_page(facts, make_views(), evil)
    assert "<script" not in page
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:|#)", page)
    assert not re.search(r"url\((?!#)", page) and "@import" not in page


def make_full_page() -> str:
    """A page with all that a page can hold, and long words."""
    config = {"data": {"stores": [{"store": "a_store_with_a_very_long_name_of_one_word.lance", "films": 1234567}]}}
    config["data"]["uids_sha256"] = "1f" * 32  # type: ignore[assignment]
    metrics = [line | {"probe/knn_auroc/Enlarged Cardiomediastinum": 0.6} for line in make_metrics()]
    facts = make_facts(
        title="a_run_with_a_very_long_name_of_one_word_" * 2, metrics=metrics, config=config, synthetic=True
    )
    return render_run_page(
        replace(facts, notes=("collapse: " + "x" * 60,)), make_views(6, 64), "chess-cxr pretrain " * 9
    )


@pytest.mark.skipif(not CHROMIUM, reason="no browser to lay the page out")
def test_on_a_phone_nothing_is_cut_off_and_the_two_views_stand_side_by_side(tmp_path: Path) -> None:
    told = lay_out(make_full_page(), tmp_path, 400, ENTRIES)
    assert told["window"] == 400
    assert told["page"] <= 400 and told["outside"] == [] and told["hidden"] == 0
    assert told["columns"] == 1 and min(told["figures"]) > 300 and told["letters"] >= 9
    assert len(told["views"]) == 12 and min(told["views"]) > 150
    assert told["tops"][0] == told["tops"][1] < told["tops"][2]


@pytest.mark.skipif(not CHROMIUM, reason="no browser to lay the page out")
def test_on_a_screen_three_curves_stand_side_by_side(tmp_path: Path) -> None:
    told = lay_out(make_full_page(), tmp_path, 1280, ENTRIES)
    assert told["page"] <= 1280 and told["outside"] == [] and told["hidden"] == 0
    assert told["columns"] == 3 and min(told["figures"]) > 300 and told["letters"] >= 9
    assert len(set(told["tops"])) == 2
