import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest

from chess_cxr.report.plots import COLOURS, INK, draw_film, draw_label_efficiency, draw_training_curves

SVG = "{http://www.w3.org/2000/svg}"


def read_texts(svg: str) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def count_lines(svg: str, colour: str) -> int:
    """Drawn curves of a colour: paths of several points outside legends and markers."""
    paths = [node for node in ElementTree.fromstring(svg).iter(f"{SVG}path") if node.get("clip-path")]
    return sum(f"stroke: {colour};" in node.get("style", "") + ";" and "L" in node.get("d", "") for node in paths)


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


def make_metrics(steps: int = 12) -> list[dict[str, float]]:
    lines: list[dict[str, float]] = []
    for step in range(10, 10 * steps + 1, 10):
        lines.append({"step": step, "loss/encoder": 7 - step / 50, "embedding_std": 0.9, "positive_similarity": 0.5})
        lines.append({"step": step, "probe/knn_auroc": 0.7, "probe/knn_auroc/nodule": 0.8, "probe/effective_rank": 30})
    return lines


def test_each_encoder_has_a_line_in_its_colour_and_a_name_in_the_legend() -> None:
    svg = draw_label_efficiency(make_table(), "auroc")
    texts = read_texts(svg)
    assert {"ours", "random", "AUROC", "labelled training films", "30", "300", "3,000"} <= set(texts)
    for colour in COLOURS[:2]:
        points = read_points(svg, colour)
        assert len(points) == 3
        assert all(x < nx and y > ny for (x, y), (nx, ny) in zip(points, points[1:], strict=False))
    assert COLOURS[2] not in svg


def test_each_value_has_a_bar_for_its_interval() -> None:
    svg = draw_label_efficiency(make_table(("ours",)), "accuracy")
    drawn = ElementTree.fromstring(svg).find(f".//{SVG}g[@id='LineCollection_1']")
    assert drawn is not None
    bars = [node.get("d", "") for node in drawn.iter(f"{SVG}path")]
    centres = [y for _, y in read_points(svg, COLOURS[0])]
    assert len(bars) == 3
    for bar, centre in zip(bars, centres, strict=True):
        ends = [float(y) for _, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", bar)]
        assert min(ends) < centre < max(ends) and sum(ends) / 2 == pytest.approx(centre, abs=0.01)


def test_another_metric_draws_other_values() -> None:
    table = make_table(("ours",))
    table.loc[(table["metric"] == "accuracy") & (table["subset"] == "10 %"), "value"] = 0.2
    assert draw_label_efficiency(table, "auroc") != draw_label_efficiency(table, "accuracy")
    assert "accuracy" in read_texts(draw_label_efficiency(table, "accuracy"))


def test_a_value_that_does_not_exist_leaves_a_gap_and_no_warning() -> None:
    table = make_table()
    table.loc[table["encoder"] == "random", ["value", "low", "high"]] = math.nan
    assert "random" in read_texts(draw_label_efficiency(table))


def test_training_curves_show_loss_probe_and_collapse() -> None:
    loss, knn, collapse = draw_training_curves(make_metrics(), chance_loss=math.log(513))
    assert {"encoder", "chance", "loss, nats", "step"} <= set(read_texts(loss))
    assert {"mean", "nodule", "chance"} <= set(read_texts(knn))
    assert {"spread of embeddings", "similarity of views", "effective rank (right)"} <= set(read_texts(collapse))
    assert [y for _, y in read_points(loss, COLOURS[0])] == sorted(y for _, y in read_points(loss, COLOURS[0]))
    assert count_lines(knn, COLOURS[0]) == count_lines(knn, INK) == 1
    assert count_lines(knn, COLOURS[1]) == 0
    assert all(count_lines(collapse, colour) == 1 for colour in COLOURS[:3])


def test_a_run_without_labels_has_no_probe_to_draw() -> None:
    metrics = [{name: value for name, value in line.items() if "knn" not in name} for line in make_metrics()]
    _, knn, _ = draw_training_curves(metrics)
    assert "mean" not in read_texts(knn)
    assert count_lines(knn, INK) == 0


def test_a_run_of_no_step_is_drawn_empty() -> None:
    for svg in draw_training_curves([]):
        assert ElementTree.fromstring(svg).tag == f"{SVG}svg"


def test_a_film_is_drawn_under_its_title_inside_the_page() -> None:
    svg = draw_film(np.tile(np.arange(64, dtype=np.uint8), (64, 1)), "nodule & <more>")
    assert "nodule & <more>" in read_texts(svg)
    (image,) = ElementTree.fromstring(svg).iter(f"{SVG}image")
    assert image.get("{http://www.w3.org/1999/xlink}href", "").startswith("data:image/png;base64,")


def test_drawings_say_what_they_are_and_repeat_to_the_byte() -> None:
    svg = draw_label_efficiency(make_table())
    assert svg == draw_label_efficiency(make_table())
    assert ElementTree.fromstring(svg).get("aria-label") == "AUROC against the number of labelled training films"
    assert "<metadata" not in svg and "<?xml" not in svg


def test_drawing_leaves_the_settings_of_matplotlib_and_its_pyplot_alone() -> None:
    code = (
        "import sys; from matplotlib import rcParams\n"
        "read = lambda: {name: rcParams[name] for name in rcParams if name != 'backend'}  # reading it loads pyplot\n"
        "before = read()\n"
        "from chess_cxr.report.plots import draw_training_curves\n"
        "draw_training_curves([{'step': 1, 'loss/encoder': 2.0}])\n"
        "print('matplotlib.pyplot' in sys.modules, read() == before)"
    )
    answer = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "True"]
