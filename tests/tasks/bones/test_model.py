"""Bone models: from pairs to a folder with results, and from film files to derived films."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
import safetensors.torch

import chess_cxr
from chess_cxr.decode.film import decode_film
from chess_cxr.doctor.check import Request, take
from chess_cxr.doctor.places import list_network_steps
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.records import ChessError, UsageError
from chess_cxr.tasks.bones.config import BonesConfig
from chess_cxr.tasks.bones.familiar import describe_familiar
from chess_cxr.tasks.bones.model import BoneSuppressor, load_bone_suppressor, suppress_files
from chess_cxr.tasks.bones.pairs import read_pairs
from chess_cxr.tasks.bones.train import BonesResult, finetune_bones

TINY = BonesConfig(size=64, crop=64, decoder="tiny", perceptual="none", steps=4, batch=2, checkpoint_every=2)
PLACES = ["phantom:8@64#2"]


@pytest.fixture(scope="module")
def trained(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BonesResult]:
    out = tmp_path_factory.mktemp("bones") / "model"
    return out, finetune_bones(encoder, PLACES, out, TINY, test=0.25)


@pytest.fixture(scope="module")
def model(trained: tuple[Path, BonesResult]) -> BoneSuppressor:
    return load_bone_suppressor(trained[0])


# From pairs to a model


def test_a_model_folder_holds_the_model_its_results_and_a_picture(trained: tuple[Path, BonesResult]) -> None:
    out, result = trained
    names = {"model.safetensors", "config.json", "result.json", "test_pairs.png", "metrics.jsonl"}
    names |= {"golden.safetensors", "model.onnx", "README.md"}
    assert {path.name for path in out.iterdir()} == names
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result.as_json()))
    assert result.pairs == {"train": 5, "val": 1, "test": 2} and result.kinds == ("phantom",)
    text = result.as_text()
    assert "2 test pairs: phantom (SYNTHETIC); trained on 5 pairs; 95 % bootstrap by patient, seed 0" in text
    of_the_network = {"added_nodule_kept", "added_nodule_kept_small", "added_nodule_dimmed"}
    of_the_network |= {"spread_of_error", "unsure_error"}
    assert set(result.metrics) - set(result.before) == of_the_network and set(result.before) < set(result.metrics)
    assert {"psnr", "ssim", "rmse"} <= set(result.metrics)


def test_the_card_gives_the_numbers_of_the_result_and_is_for_research_only(trained: tuple[Path, BonesResult]) -> None:
    card, psnr = (trained[0] / "README.md").read_text(), trained[1].metrics["psnr"]
    before = trained[1].before["psnr"].value
    assert f"| psnr | {psnr.value:.3f} [{psnr.low:.3f}, {psnr.high:.3f}] | {before:.3f} [" in card
    assert "train 5, val 1, test 2" in card and "(phantoms are SYNTHETIC)" in card and "not a medical device" in card
    assert json.loads((trained[0] / "config.json").read_text())["files"]["model.onnx"]["sha256"] in card


def test_a_model_that_was_loaded_says_what_the_trained_one_said(
    trained: tuple[Path, BonesResult], model: BoneSuppressor
) -> None:
    from chess_cxr.tasks.bones.pairs import split_pairs
    from chess_cxr.tasks.bones.score import score_pairs

    test = split_pairs(read_pairs(PLACES[0]), 0.1, 0.25, 0)["test"]
    psnr = np.mean([score["psnr"] for score in score_pairs(model, test)])
    assert psnr == pytest.approx(trained[1].metrics["psnr"].value, abs=1e-6)


def test_the_same_call_goes_on_after_an_end_at_any_point(
    encoder: Encoder, trained: tuple[Path, BonesResult], tmp_path: Path
) -> None:
    class End(Exception):
        pass

    def end_at(wanted: str) -> Callable[..., None]:
        def watch(*seen: Any) -> None:
            if (wanted == "step" and hasattr(seen[0], "step") and seen[0].step == 3) or seen[0] == wanted:
                raise End

        return watch

    out = tmp_path / "model"
    with pytest.raises(End):
        finetune_bones(encoder, PLACES, out, TINY, test=0.25, on_step=end_at("step"))
    with pytest.raises(UsageError, match="another configuration"):
        finetune_bones(encoder, PLACES, out, replace(TINY, learning_rate=0.1), test=0.25)
    with pytest.raises(End):
        finetune_bones(encoder, PLACES, out, TINY, test=0.25, on_stage=end_at("test"))
    # as an end leaves it between the last two files
    (out / "run" / "metrics.jsonl").rename(out / "metrics.jsonl")
    result = finetune_bones(encoder, PLACES, out, TINY, test=0.25)
    assert result == trained[1]
    assert (out / "model.safetensors").read_bytes() == (trained[0] / "model.safetensors").read_bytes()
    assert (out / "metrics.jsonl").is_file() and not (out / "run").exists()


def test_nothing_is_overwritten_and_nothing_foreign_touched(
    encoder: Encoder, trained: tuple[Path, BonesResult], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    (tmp_path / "link").symlink_to(trained[0])
    for out in (trained[0], tmp_path / "mine", tmp_path / "file", tmp_path / "link"):
        with pytest.raises(UsageError, match="exists already"):
            finetune_bones(encoder, PLACES, out, TINY)


def test_what_cannot_work_is_refused_and_leaves_nothing(encoder: Encoder, tmp_path: Path) -> None:
    out = tmp_path / "model"
    for places, options, part in (
        (["phantom:8@64#2", "phantom:4@64#2"], {}, "the pair phantom 2-0 occurs twice"),
        (["phantom:1@64"], {}, "1 pairs leave none for test"),
        (PLACES, {"test": 0.0}, "8 pairs leave none for test"),
        (PLACES, {"val": 0.9}, "leave something to train on"),
        ([str(tmp_path / "absent")], {}, "there is no folder"),
        (PLACES, {"config": replace(TINY, crop=100)}, "crop <= size"),
        (PLACES, {"config": replace(TINY, perceptual="chess:absent")}, "there is no file absent"),
    ):
        with pytest.raises(UsageError, match=part):
            finetune_bones(encoder, places, out, **({"config": TINY} | options))  # type: ignore[arg-type]
        assert not out.exists()


@pytest.mark.real_films
def test_real_pairs_are_learned_from_and_what_was_mended_is_told(
    encoder: Encoder, real_films: Path, tmp_path: Path
) -> None:
    result = finetune_bones(encoder, [str(real_films / "bone_pairs")], tmp_path / "model", TINY)
    assert result.pairs == {"train": 11, "val": 2, "test": 3} and result.kinds == ("folder",)
    assert "(SYNTHETIC)" not in result.as_text()
    assert "JPCLN139_1: bone was dark in both films; both were inverted" in result.notes
    assert result.corrected["bone was dark in both films; both were inverted"] == 6
    lines = [line for line in result.as_text().splitlines() if "inverted" in line]
    assert len(lines) == 1 and "6 of 16 pairs: bone was dark in both films; both were inverted" in lines[0]


# Hostile folders


def copy_model(trained: tuple[Path, BonesResult], to: Path, **changes: Any) -> Path:
    shutil.copytree(trained[0], to)
    config = json.loads((to / "config.json").read_text())
    network = config["network"] | changes.pop("network", {})
    (to / "config.json").write_text(json.dumps(config | {"network": network} | changes))
    return to


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 10**9},
        {"size": "64"},
        {"size": True, "tile": True},
        {"tile": 0},
        {"tile": 65},
        {"network": {"architecture": "no_such_network"}},
        {"network": {"architecture": ["resnet18"]}},
        {"network": {"architecture": "vit_giant_patch14_224"}},
        {"network": {"architecture": "regnety_2560"}},
        {"network": {"architecture": "resnet18"}},
        {"network": {"decoder": "full"}},
        {"network": {"decoder": "huge"}},
        {"network": {"decoder": ["tiny"]}},
        {"network": {"mean": "0"}},
        {"network": {"mean": float("nan")}},
        {"network": {"std": 0}},
        {"network": {"std": 10**400}},
        {"network": {"more": 1}},
        {"network": {"spread": 1}},
    ],
    ids=str,
)
def test_a_hostile_configuration_is_told_in_one_line(
    changes: dict[str, Any], trained: tuple[Path, BonesResult], tmp_path: Path
) -> None:
    folder = copy_model(trained, tmp_path / "model", **changes)
    with pytest.raises(ChessError) as caught:
        load_bone_suppressor(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value) and len(str(caught.value)) < 500


def test_other_weights_are_told_in_one_line(trained: tuple[Path, BonesResult], tmp_path: Path) -> None:
    folder = copy_model(trained, tmp_path / "model")
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    first = "head.0.weight"
    for content, part in (
        (b"no weights", "does not hold this model"),
        (path.read_bytes()[:-1000], "does not hold this model"),
        (safetensors.torch.save({k: v for k, v in tensors.items() if k != first}), f"{first} is missing"),
        (safetensors.torch.save(tensors | {"more": tensors[first].clone()}), "'more' is not part of it"),
        (safetensors.torch.save(tensors | {first: tensors[first][:1].clone()}), f"{first} is "),
    ):
        path.write_bytes(content)
        with pytest.raises(ChessError, match=part) as caught:
            load_bone_suppressor(folder)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(ChessError, match="does not hold this model"):
        load_bone_suppressor(folder)


def test_a_folder_that_is_no_bone_model_is_wrong_use(tmp_path: Path) -> None:
    for content in (None, "{", "[1]", "{}", '{"task": "multilabel"}'):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(UsageError, match="is no bone model; make one with: chess-cxr finetune bones"):
            load_bone_suppressor(tmp_path)


# At work


def write_film(path: Path, size: int) -> Path:
    film = read_pairs("phantom:2@128#4")[0].film_HW
    assert cv2.imwrite(str(path), (cv2.resize(film, (size, size)) * 65535).round().astype(np.uint16))
    return path


def test_png_films_keep_their_size_and_depth_and_become_nowhere_brighter(model: BoneSuppressor, tmp_path: Path) -> None:
    """Where there is no bone, their stored values stay to the bit."""
    sizes = (64, 1024, 2048)
    sources = [write_film(tmp_path / f"film{size}.png", size) for size in sizes]
    for size, source, done in zip(sizes, sources, suppress_files(model, sources, tmp_path / "out"), strict=True):
        assert done.out == tmp_path / "out" / source.name and done.reason == ""
        before, after = (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (source, done.out))
        assert after.dtype == np.uint16 and after.shape == before.shape == (size, size)
        assert (after <= before).all() and (after < before).any()
        unchanged = model.predict_bone(decode_film(source).pixels) < 1 / 512
        assert unchanged.any() and np.array_equal(before[unchanged], after[unchanged])


@pytest.mark.real_films
def test_dicom_gives_derived_dicom_beside_its_source(model: BoneSuppressor, real_films: Path, tmp_path: Path) -> None:
    source = real_films / "dicom" / "RG3_J2KR.dcm"
    [done] = suppress_files(model, [source], tmp_path / "out", name="tiny")
    assert done.out and done.out.suffix == ".dcm"
    before, after = pydicom.dcmread(source), pydicom.dcmread(done.out)
    assert after.SOPInstanceUID != before.SOPInstanceUID and after.StudyInstanceUID == before.StudyInstanceUID
    assert after.ImageType[0] == "DERIVED" and "SourceImageSequence" in after
    assert after.SourceImageSequence[0].ReferencedSOPInstanceUID == before.SOPInstanceUID
    for name in ("Rows", "Columns", "BitsStored", "PhotometricInterpretation"):
        assert after[name].value == before[name].value
    film, result = decode_film(source).pixels, decode_film(done.out).pixels
    expected = film - model.predict_bone(film)
    assert np.abs(result - expected).mean() < 0.005 and (result <= film + 0.002).all()


@pytest.mark.real_films
def test_a_broken_film_among_good_ones_has_its_reason_and_the_others_are_written(
    model: BoneSuppressor, real_films: Path, tmp_path: Path
) -> None:
    good = [write_film(tmp_path / name, 64) for name in ("a.png", "z.png")]
    broken = [real_films / "nasty" / "image" / name for name in ("bomb_60000x60000.png", "truncated.png")]
    done = list(suppress_files(model, [good[0], *broken, tmp_path / "absent.png", good[1]], tmp_path / "out"))
    assert [each.out.name if each.out else "" for each in done] == ["a.png", "", "", "", "z.png"]
    assert all(each.reason and "\n" not in each.reason for each in done[1:4])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "z.png"}


def test_films_of_one_name_do_not_overwrite_each_other(model: BoneSuppressor, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    films = [write_film(tmp_path / "film.png", 64), write_film(tmp_path / "more" / "film.png", 80)]
    done = list(suppress_files(model, films, tmp_path / "out"))
    assert [each.out.name for each in done if each.out] == ["film.png", "film-2.png"]


def test_sheets_and_burned_in_text_are_made_only_where_they_are_asked_for(
    model: BoneSuppressor, tmp_path: Path
) -> None:
    film = write_film(tmp_path / "film.png", 512)
    [plain] = suppress_files(model, [film], tmp_path / "plain")
    [burned] = suppress_files(model, [film], tmp_path / "burned", burn_in=True, sheets=True)
    assert plain.out and burned.out
    assert [path.name for path in (tmp_path / "plain").iterdir()] == ["film.png"]
    assert {path.name for path in (tmp_path / "burned").iterdir()} == {"film.png", "film_sheet.png"}
    one, other = (cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(float) for path in (plain.out, burned.out))
    changed = np.abs(one - other) > 0
    assert 0 < changed.mean() < 0.1
    sheet = cv2.imread(str(tmp_path / "burned" / "film_sheet.png"))
    assert sheet.shape[1] > 1.5 * sheet.shape[0]


def test_a_map_of_the_expected_error_is_written_where_it_is_asked_for(
    trained: tuple[Path, BonesResult], model: BoneSuppressor, tmp_path: Path
) -> None:
    film = write_film(tmp_path / "film.png", 200)
    [done] = suppress_files(model, [film], tmp_path / "out", sure_map=True)
    assert done.out and {path.name for path in (tmp_path / "out").iterdir()} == {"film.png", "film_sure.png"}
    level = cv2.imread(str(tmp_path / "out" / "film_sure.png"), cv2.IMREAD_UNCHANGED)
    spread = model.predict_maps(decode_film(film).pixels)[1]
    assert level.dtype == np.uint8 and np.abs(level - np.minimum(255, 2550 * spread)).max() <= 0.51
    assert model.spread_scale == json.loads((trained[0] / "config.json").read_text())["spread_scale"] != 1
    with pytest.raises(UsageError, match="does not say how sure it is"):
        list(suppress_files(replace(model, spread=False), [film], tmp_path / "none", sure_map=True))


def test_a_film_unlike_the_training_films_is_told_on_stderr_and_written(
    trained: tuple[Path, BonesResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film, noise = write_film(tmp_path / "film.png", 128), tmp_path / "noise.png"
    assert cv2.imwrite(str(noise), np.random.default_rng(0).integers(0, 65536, (128, 128)).astype(np.uint16))
    # five training films would allow for nearly anything
    films = [pair.film_HW for pair in read_pairs("phantom:24@64#1")]
    folder = copy_model(trained, tmp_path / "model", familiar=describe_familiar(films).as_json())
    known, strange = chess_cxr.predict(folder, [film, noise], out=tmp_path / "out")
    assert known["doubts"] == [] and len(strange["doubts"]) == 1 and Path(strange["out"]).is_file()
    err = capsys.readouterr().err
    assert f"{noise}: unlike the training films" in err and str(film) not in err


@pytest.mark.parametrize("change", [{"spread_scale": -1}, {"caution": "1"}, {"familiar": {"mean": [1]}}], ids=str)
def test_other_entries_that_make_no_sense_are_told(
    change: dict[str, Any], trained: tuple[Path, BonesResult], tmp_path: Path
) -> None:
    with pytest.raises(ChessError):
        load_bone_suppressor(copy_model(trained, tmp_path / "model", **change))


def test_weights_that_are_not_finite_are_refused(trained: tuple[Path, BonesResult], tmp_path: Path) -> None:
    shutil.copytree(trained[0], tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name].view(-1)[0] = float("nan")
    safetensors.torch.save_file(tensors, file)
    with pytest.raises(ChessError, match=f"{name} holds numbers that are not finite"):
        load_bone_suppressor(tmp_path / "model")


def test_the_doctor_opens_the_model_and_finds_one_that_is_cut_off(
    trained: tuple[Path, BonesResult], tmp_path: Path
) -> None:
    shutil.copytree(trained[0], tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    whole, cut = map(take, list_network_steps(Request((str(trained[0]), str(tmp_path / "model")))))
    assert (whole.name, whole.finding.status) == (f"model {trained[0]}", "ok")
    assert cut.finding.status == "broken" and "does not hold this model" in cut.finding.value


def test_weights_that_are_a_pipe_are_not_waited_for(trained: tuple[Path, BonesResult], tmp_path: Path) -> None:
    shutil.copytree(trained[0], tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "model" / "model.safetensors")
    with pytest.raises(ChessError, match="there is no such file"):
        load_bone_suppressor(tmp_path / "model")


def test_a_batch_that_fits_no_machine_is_refused_before_pairs_are_read(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lower --batch"):
        finetune_bones(encoder, PLACES, tmp_path / "model", replace(TINY, batch=1 << 20))


def test_models_are_not_written_among_the_pairs(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lies inside the pairs"):
        finetune_bones(encoder, [str(tmp_path)], tmp_path / "model", TINY)
