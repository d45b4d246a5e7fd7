import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from chess_cxr.demo.run import PLANNED_SECONDS, Stations, run_demo
from chess_cxr.encoders.load import load_encoder
from places import HELPERS
from tiny_demo import SMALL, build_small_config

INTERRUPTED = """
from pathlib import Path
from tiny_demo import SMALL, build_small_config
from chess_cxr.demo.run import run_demo
if __name__ == "__main__":  # its pools import this file again
    print(run_demo(Path(__import__("sys").argv[1]), size=SMALL, config=build_small_config()))
"""
NUMBER = r"(?:-?\d+\.\d{2,3}|nan)"


def find_section(page: str, heading: str) -> str:
    found = re.search(rf"<section>\s*<h2>{heading}</h2>.*?</section>", page, re.DOTALL)
    assert found, heading
    return found[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    assert run_demo(out, quiet=True, size=SMALL, config=build_small_config()) == out / "report.html"
    return out


def test_every_station_leaves_what_it_made(folder: Path) -> None:
    films = sorted((folder / "films").rglob("*.dcm"))
    assert len(films) == 48
    header = pydicom.dcmread(films[0])
    assert header.ImageComments == "SYNTHETIC" and (header.Rows, header.Columns) == (64, 64)
    assert load_encoder(folder / "encoder").training.steps == 3
    assert (folder / "run" / "metrics.jsonl").exists() and (folder / "films.lance").is_dir()
    for task in ("bones", "nodules"):
        for perceptual, network in (("none", "none"), ("pre-trained", "same")):
            described = json.loads((folder / task / perceptual / "config.json").read_text())
            assert described["finetune"]["perceptual"] == network
            assert described["encoder"] == "encoder"


def test_the_report_says_everywhere_that_it_is_synthetic(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert "<title>chess-cxr demo (SYNTHETIC)</title>" in page
    sections = re.findall(r"<section>.*?</section>", page, re.DOTALL)
    assert len(sections) == 8
    assert all("SYNTHETIC" in section for section in sections)


def test_the_report_shows_films_curves_and_intervals(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 6 + 12 + 3 + 2 + 3 + 3
    assert "48 films of 24 patients" in page and "0 could not be read" in page
    probes = "".join(re.findall(r"<h2>Linear probe.*?</section>", page, re.DOTALL))
    assert len(re.findall(rf"<td>{NUMBER} \[{NUMBER}, {NUMBER}\]</td>", probes)) == 2 * 2 * 2


def test_the_last_table_has_all_four_tasks_with_and_without_pre_training(folder: Path) -> None:
    last = re.findall(r"<section>.*?</section>", (folder / "report.html").read_text(), re.DOTALL)[-1]
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</th><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", last)
    assert [(task, measure.split(" (")[0]) for task, measure, *_ in rows] == [
        ("classification, 50 % of the labels", "accuracy"),
        ("classification, 100 % of the labels", "accuracy"),
        ("classification, 50 % of the labels", "macro AUROC"),
        ("classification, 100 % of the labels", "macro AUROC"),
        ("bone suppression", "PSNR, dB"),
        ("bone suppression", "SSIM"),
        ("bone suppression", "RMSE, of 255"),
        ("nodule generation", "Fréchet distance × 1000"),
    ]
    assert all(re.fullmatch(rf"{NUMBER} \[{NUMBER}, {NUMBER}\]", cell) for row in rows for cell in row[2:])
    scored = json.loads((folder / "bones" / "pre-trained" / "result.json").read_text())["metrics"]["psnr"]
    assert rows[4][3] == "{value:.3f} [{low:.3f}, {high:.3f}]".format(**scored)
    told = json.loads((folder / "nodules" / "distances.json").read_text())["distances"]["none"]
    assert rows[7][2] == "{:.2f} [{:.2f}, {:.2f}]".format(*(1000 * told[key] for key in ("value", "low", "high")))


def test_the_distances_name_their_judge_and_what_chance_leaves(folder: Path) -> None:
    section = find_section((folder / "report.html").read_text(), "Nodule generation")
    assert "random:resnet18@64#7" in section and "untrained network" in section
    told = json.loads((folder / "nodules" / "distances.json").read_text())
    assert told["count"] == SMALL.judged_nodules
    assert len(set(json.dumps(found) for found in told["distances"].values())) == 4


def test_the_report_loads_nothing_from_elsewhere(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    links = re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']*)", page)
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"url\((?!#)|@import|<script", page)


def list_made(folder: Path) -> dict[Path, int]:
    made = [*(folder / "films").rglob("*"), *(folder / "encoder").iterdir(), folder / "run" / "metrics.jsonl"]
    made += [*(folder / "bones").rglob("*"), *(folder / "nodules").rglob("*")]
    return {path: path.stat().st_mtime_ns for path in made}


def test_a_finished_demo_makes_nothing_twice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert " minutes.</p>" in (folder / "report.html").read_text()
    before = list_made(folder)
    run_demo(folder, size=SMALL, config=build_small_config())
    assert list_made(folder) == before
    shown = capsys.readouterr()
    stations = [line for line in shown.err.splitlines() if line.startswith("station")]
    assert len(stations) == len(PLANNED_SECONDS)
    again = [line for line in stations if not line.endswith("done before")]
    assert [line.split(" (")[0] for line in again] == ["station 4 of 9: classify", "station 9 of 9: judge the nodules"]
    assert shown.out == ""
    assert " minutes.</p>" not in (folder / "report.html").read_text()


@pytest.fixture
def interrupted(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A demo in a process of its own that has just finished its encoder."""
    out = tmp_path / "demo"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HELPERS), *sys.path])}
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    with subprocess.Popen(
        [sys.executable, str(script), str(out)], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 300
        while not (out / "encoder").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        yield out, process
        process.kill()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_demo_goes_on_where_it_was(
    interrupted: tuple[Path, subprocess.Popen[str]], number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out, process = interrupted
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0 and not (out / "report.html").exists()
    films = {path: path.stat().st_mtime_ns for path in (out / "films").rglob("*")}
    run_demo(out, size=SMALL, config=build_small_config())
    assert (out / "report.html").exists()
    assert {path: path.stat().st_mtime_ns for path in (out / "films").rglob("*")} == films
    assert capsys.readouterr().err.count("done before") >= 3


def test_the_time_left_follows_the_pace_of_the_finished_stations(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 20.0, 20.0, 25.0])
    monkeypatch.setattr("chess_cxr.demo.run.time.monotonic", lambda: next(clock))
    stations = Stations({"first": 10.0, "second": 30.0, "third": 60.0}, quiet=False)
    for name in ("first", "third"):
        with stations.enter(name):
            pass
        if name == "first":
            stations.skip("second")
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "station 1 of 3: first (about 1:40 left in all)",
        "station 2 of 3: second: done before",
        "station 3 of 3: third (about 2:00 left in all)",
    ]
