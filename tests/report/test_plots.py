import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest

from chess_cxr.report.plots import COLOURS, draw_efficiency_bands, draw_film

SVG = "{http://www.w3.org/2000/svg}"


def read_texts(svg: str) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def read_points(svg: str, colour: str) -> list[tuple[float, float]]:
    """The vertices of the one curve of a colour that has the most of them, in SVG coordinates (y points down)."""
    curves = [
        re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", node.get("d", ""))
        for node in ElementTree.fromstring(svg).iter(f"{SVG}path")
        if node.get("clip-path") and f"stroke: {colour}" in node.get("style", "")
    ]
    return [(float(x), float(y)) for x, y in max(curves, key=len)]


def make_table(encoders: tuple[str, ...] = ("ours", "random")) -> pd.DataFrame:
    rows = [
        {
            "encoder": encoder,
            "subset": f"{100 * share:g} %",
            "n_train_films": 3000 * share,
            "metric": metric,
            "value": 0.6 + 0.1 * place + 0.05 * step,
            "low": 0.55 + 0.1 * place + 0.05 * step,
            "high": 0.65 + 0.1 * place + 0.05 * step,
        }
        for place, encoder in enumerate(encoders)
        for step, share in enumerate((0.01, 0.1, 1.0))
        for metric in ("accuracy", "auroc")
    ]
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, metric: str = "auroc") -> str:
    return draw_efficiency_bands(table, metric, list(dict.fromkeys(table["encoder"])))


def test_each_encoder_has_a_line_in_its_colour_and_a_name_in_the_legend() -> None:
    svg = draw(make_table(), "auroc")
    texts = read_texts(svg)
    assert {"ours", "random", "AUROC", "labelled training films", "30", "300", "3,000"} <= set(texts)
    for colour in COLOURS[:2]:
        points = read_points(svg, colour)
        assert len(points) == 3
        assert all(x < nx and y > ny for (x, y), (nx, ny) in zip(points, points[1:], strict=False))
    assert COLOURS[2] not in svg


def test_each_curve_lies_within_the_band_of_its_intervals() -> None:
    svg = draw(make_table(("ours",)), "accuracy")
    group = ElementTree.fromstring(svg).find(f".//{SVG}g[@id='FillBetweenPolyCollection_1']")
    assert group is not None
    [path], [use] = group.iter(f"{SVG}path"), group.iter(f"{SVG}use")
    assert f"fill: {COLOURS[0]}" in use.get("style", "")
    edges = [(float(x), float(y)) for x, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path.get("d", ""))]
    for x, y in read_points(svg, COLOURS[0]):
        heights = {float(use.get("y", "")) + other for at, other in edges if at == pytest.approx(x, abs=0.01)}
        assert len(heights) == 2 and sum(heights) / 2 == pytest.approx(y, abs=0.01) != max(heights)


def test_another_metric_draws_other_values() -> None:
    table = make_table(("ours",))
    table.loc[(table["metric"] == "accuracy") & (table["subset"] == "10 %"), "value"] = 0.2
    assert draw(table, "auroc") != draw(table, "accuracy")
    assert "accuracy" in read_texts(draw(table, "accuracy"))


def test_a_value_that_does_not_exist_leaves_a_gap_and_no_warning() -> None:
    table = make_table()
    table.loc[table["encoder"] == "random", ["value", "low", "high"]] = math.nan
    assert "random" in read_texts(draw(table))


def test_a_film_is_drawn_under_its_title_inside_the_page() -> None:
    svg = draw_film(np.tile(np.arange(64, dtype=np.uint8), (64, 1)), "nodule & <more>")
    assert "nodule & <more>" in read_texts(svg)
    (image,) = ElementTree.fromstring(svg).iter(f"{SVG}image")
    assert image.get("{http://www.w3.org/1999/xlink}href", "").startswith("data:image/png;base64,")


def test_drawings_say_what_they_are_and_repeat_to_the_byte() -> None:
    svg = draw(make_table())
    assert svg == draw(make_table())
    assert ElementTree.fromstring(svg).get("aria-label") == "AUROC against the number of labelled training films"
    assert "<metadata" not in svg and "<?xml" not in svg


def test_drawing_leaves_the_settings_of_matplotlib_and_its_pyplot_alone() -> None:
    code = (
        "import sys; from matplotlib import rcParams\n"
        "read = lambda: {name: rcParams[name] for name in rcParams if name != 'backend'}  # reading it loads pyplot\n"
        "before = read()\n"
        "import numpy; from chess_cxr.report.plots import draw_film\n"
        "draw_film(numpy.zeros((8, 8), 'uint8'), 'film')\n"
        "print('matplotlib.pyplot' in sys.modules, read() == before)"
    )
    answer = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "True"]
