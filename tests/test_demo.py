import re
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from chess_cxr.demo import DemoSize, run_demo
from chess_cxr.methods.moco import MoCoConfig
from chess_cxr.presets import PRESETS, PretrainConfig
from chess_cxr.weights import load_encoder

SMALL = DemoSize(patients=24, films_per_patient=2, film_size=64, fractions=(0.5, 1.0), draws=2, replicates=30)


def build_small_config() -> PretrainConfig:
    demo = PRESETS["demo"]()
    training = replace(demo.training, steps=3, batch=8, log_every=1, checkpoint_every=3)
    return replace(
        demo, method=MoCoConfig("test_resnet", 16, 32), views=replace(demo.views, size=32), training=training
    )


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


def test_the_report_says_everywhere_that_it_is_synthetic(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert "<title>chess-cxr demo (SYNTHETIC)</title>" in page
    sections = re.findall(r"<section>.*?</section>", page, re.DOTALL)
    assert len(sections) == 5
    assert all("SYNTHETIC" in section for section in sections)


def test_the_report_shows_films_curves_and_intervals(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 6 + 12 + 3 + 2
    assert "48 films of 24 patients" in page and "0 could not be read" in page
    number = r"(?:\d\.\d{3}|nan)"
    assert len(re.findall(rf"<td>{number} \[{number}, {number}\]</td>", page)) == 2 * 2 * 2


def test_the_report_loads_nothing_from_elsewhere(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    links = re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']*)", page)
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"url\((?!#)|@import|<script", page)


def test_a_finished_demo_makes_nothing_twice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert " minutes.</p>" in (folder / "report.html").read_text()
    made = [*(folder / "films").rglob("*"), *(folder / "encoder").iterdir(), folder / "run" / "metrics.jsonl"]
    before = {path: path.stat().st_mtime_ns for path in made}
    run_demo(folder, size=SMALL, config=build_small_config())
    assert {path: path.stat().st_mtime_ns for path in made} == before
    shown = capsys.readouterr()
    stations = [line.split(":")[0] for line in shown.err.splitlines()]
    said, *stations = stations
    assert said == "chess-cxr" and "is finished already" in shown.err
    assert stations == ["3/5 pretrain", "4/5 export", "5/5 embed pre-trained", "5/5 embed untrained", "5/5 probe"]
    assert shown.out == ""
    assert " minutes.</p>" not in (folder / "report.html").read_text()
