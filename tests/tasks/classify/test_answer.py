"""Answers to film files: the same from the command, from Python and from the network itself."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import chess_cxr
from chess_cxr.encoders.contract import compute_contract_sha256
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.film_jpeg import encode_film
from chess_cxr.records import ImageRecord, UsageError
from chess_cxr.sources.phantom.film import MAX_PIXEL, draw_anatomy, draw_exposure, render_film
from chess_cxr.store import Store, StoredFilm, open_store, write_store
from chess_cxr.tasks.answer import FilmAnswer
from chess_cxr.tasks.classify.answer import answer_films, describe_answer, list_columns, read_films
from chess_cxr.tasks.classify.model import load_classifier
from chess_cxr.tasks.classify.operating import POINTS
from chess_cxr.tasks.classify.train import finetune_classifier
from command_line import run


@pytest.fixture(scope="module")
def grey_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """240 grey pictures, bright or dark with some doubt, half of their labels known; sex, age and view as well."""
    rng = np.random.default_rng(0)

    def draw() -> Iterator[StoredFilm]:
        for number in range(240):
            bright = float(number % 2)
            grey = 0.4 + 0.15 * bright + rng.normal(0, 0.08) + rng.normal(0, 0.03, (40, 40))
            split = ("train", "val", "test")[number // 2 % 3]
            labels = {"bright": bright, "odd": float(rng.random() < 0.5)}
            record = ImageRecord(
                f"{number:032x}", f"p{number // 2}", split=split, labels=labels,
                sex="FM"[number // 6 % 2], age_years=20 + number // 6, view=("PA", "AP")[number // 12 % 2],
            )  # fmt: skip
            yield StoredFilm(record, *encode_film(np.clip(grey, 0, 1).astype(np.float32), 40))

    path = tmp_path_factory.mktemp("grey") / "grey.lance"
    write_store(path, draw(), ["bright", "odd"], "grey pictures (SYNTHETIC)")
    return open_store(path)


@pytest.fixture(scope="module")
def model(grey_store: Store, tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "findings"
    finetune_classifier(tiny_encoder, grey_store, folder)
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A chest, a negative of it, a picture without contrast and a broken file.  SYNTHETIC."""
    folder = tmp_path_factory.mktemp("films")
    made = render_film(draw_anatomy(3), draw_exposure(3), "normal", 256)
    grey = np.rint(made.pixels / MAX_PIXEL * 255).astype(np.uint8)
    cv2.imwrite(str(folder / "chest.png"), grey)
    cv2.imwrite(str(folder / "negative.png"), 255 - grey)
    cv2.imwrite(str(folder / "flat.png"), np.clip(grey, 127, 129))
    (folder / "broken.png").write_bytes(b"no picture")
    return [folder / f"{name}.png" for name in ("chest", "negative", "flat", "broken")]


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_the_command_says_what_python_says_to_the_last_digit(runtime: str, model: Path, films: list[Path]) -> None:
    loaded = load_classifier(model, runtime=runtime)  # type: ignore[arg-type]
    answers = list(answer_films(loaded, films, "sensitivity_90"))
    words = ("predict", model, *films, "--point", "sensitivity_90", "--runtime", runtime, "--device", "cpu", "--quiet")
    records = json.loads(run(*words, "--json").out)
    assert [record["film"] for record in records] == [str(film) for film in films]
    for record, answer, film in zip(records, answers, films, strict=True):
        assert record == json.loads(json.dumps(describe_answer(film, answer)))
        for finding in answer.findings:
            assert record[finding.label] == finding.probability
            assert record[f"{finding.label} positive"] is (finding.probability >= record[f"{finding.label} threshold"])
    rows = list(csv.DictReader(run(*words).out.splitlines()))
    assert tuple(rows[0]) == list_columns(loaded.labels)
    assert tuple(rows[0])[:4] == ("film", "bright", "odd", "reason")
    for row, answer in zip(rows, answers, strict=True):
        for finding in answer.findings:
            assert row[finding.label] == f"{finding.probability:.6f}"
            assert row[f"{finding.label} positive"] == ("yes" if finding.positive else "no")
    python = chess_cxr.predict(
        model, films, point="sensitivity_90", runtime=runtime, device="cpu",  # type: ignore[arg-type]
    )  # fmt: skip
    assert json.loads(json.dumps(python)) == records


def test_an_answer_is_the_networks_calibrated_by_hand(model: Path, films: list[Path]) -> None:
    loaded = load_classifier(model)
    [answer] = answer_films(loaded, films[:1])
    [film] = read_films(films[:1])
    assert film.film_HW is not None
    config = json.loads((model / "config.json").read_text())
    operating = config["operating"]
    assert operating["method"] == "platt" and operating["calibrated"] == [True, True] and answer.calibrated
    score = loaded.network(loaded.contract.prepare(film.film_HW)[None]).detach().numpy()[0].astype(np.float64)
    expected = 1 / (1 + np.exp(-(np.array(operating["slope"]) * score + operating["offset"])))
    assert [finding.probability for finding in answer.findings] == pytest.approx(expected, abs=1e-5)
    assert [finding.threshold for finding in answer.findings] == operating["thresholds"]["youden"]
    assert answer.model == "findings" and answer.model_sha256 == config["files"]["model.safetensors"]["sha256"]
    assert answer.contract_sha256 == compute_contract_sha256(loaded.contract) and answer.operating_point == "youden"


def test_a_doubtful_film_is_answered_with_its_flag_and_a_refused_one_with_its_reason(
    model: Path, films: list[Path]
) -> None:
    chest, negative, flat, broken = answer_films(load_classifier(model), films)
    assert chest.reason == negative.reason == "" and len(chest.findings) == len(negative.findings) == 2
    assert "inverted" in negative.flags and "inverted" not in chest.flags
    assert flat.reason == "almost no contrast" and flat.findings == ()
    assert broken.reason and broken.findings == () and broken.model_sha256 == chest.model_sha256


def test_every_point_gives_its_own_threshold_and_an_unknown_one_is_one_line(model: Path, films: list[Path]) -> None:
    loaded = load_classifier(model)
    answers = {point: next(answer_films(loaded, films[:1], point)) for point in POINTS}
    assert len({answer.findings[0].threshold for answer in answers.values()}) == 3
    assert len({answer.findings[0].probability for answer in answers.values()}) == 1
    with pytest.raises(UsageError, match="no operating point named 'high'"):
        next(answer_films(loaded, films[:1], "high"))
    refused = run("predict", model, films[0], "--point", "high", "--quiet")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == (
        "chess-cxr: no operating point named 'high'; there are youden, sensitivity_90, specificity_90\n"
    )


def test_results_hold_points_subgroups_prevalence_and_the_card_tells_them(model: Path) -> None:
    result, card = json.loads((model / "result.json").read_text()), (model / "README.md").read_text()
    assert {row["point"] for row in result["operating_points"]} == set(POINTS)
    groups = {(row["attribute"], row["group"]) for row in result["subgroups"]}
    assert {("sex", "F"), ("sex", "M"), ("view", "AP"), ("view", "PA"), ("age", "18-39")} <= groups
    assert result["prevalence"]["bright"] == {split: {"with": 40, "without": 40} for split in ("train", "val", "test")}
    assert set(result["calibration"]["val_log_loss"]) == {"before", "after"}
    for words in (
        "research only",
        "not a medical device",
        "grey pictures (SYNTHETIC)",
        "| sex F |",
        "40 of 80 (50.0%)",
    ):
        assert words in card
    config = json.loads((model / "config.json").read_text())
    assert config["encoder_sha256"] in card and config["files"]["model.onnx"]["sha256"] in card


def test_a_model_with_too_few_val_films_says_so_and_gives_uncalibrated_numbers_under_that_name(
    small_store: Path, tiny_encoder: Encoder, films: list[Path], tmp_path: Path
) -> None:
    result = finetune_classifier(tiny_encoder, small_store, tmp_path / "model")
    [note] = result.deployment
    assert "among 17 val films" in note and "10 without a label are enough, of 20 in all" in note
    assert result.as_text().splitlines()[-1] == note and note in (tmp_path / "model" / "README.md").read_text()
    [answer] = answer_films(load_classifier(tmp_path / "model"), films[:1])
    assert not answer.calibrated and answer.operating_point == ""
    assert [finding.threshold for finding in answer.findings] == [None, None]
    [row] = csv.DictReader(run("predict", tmp_path / "model", films[0], "--quiet").out.splitlines())
    assert row["uncalibrated"] == "stripes; spots" and row["stripes threshold"] == row["stripes positive"] == ""


def test_a_label_named_like_a_column_keeps_its_probability() -> None:
    from chess_cxr.tasks.answer import FindingAnswer

    answer = FilmAnswer("m", "a" * 64, "b" * 64, findings=(FindingAnswer("flags", 0.25), FindingAnswer("point", 0.75)))
    record = describe_answer("film.png", answer)
    assert (record["flags"], record["point"]) == (0.25, 0.75)


def test_a_model_of_version_0_1_answers_without_calibration(model: Path, films: list[Path], tmp_path: Path) -> None:
    """Its folder has neither operating points nor golden films nor hashes."""
    old = shutil.copytree(model, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    for name in ("operating", "files", "encoder_sha256"):
        del config[name]
    (old / "config.json").write_text(json.dumps(config))
    for name in ("model.onnx", "golden.safetensors", "README.md"):
        (old / name).unlink()
    loaded, new = load_classifier(old), load_classifier(model)
    [answer], [calibrated] = (list(answer_films(it, films[:1])) for it in (loaded, new))
    assert not answer.calibrated and calibrated.calibrated
    assert answer.model_sha256 == calibrated.model_sha256
    assert answer.findings[0].probability != calibrated.findings[0].probability
