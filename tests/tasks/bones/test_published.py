"""The published bone model: found by its name, the same by torch and ONNX Runtime, and less bone in its results."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from chess_cxr.evaluation.image_metrics import compute_psnr
from chess_cxr.serve.models import load_models
from chess_cxr.serve.rest_options import RestOptions
from chess_cxr.tasks.bones.model import load_bone_suppressor
from chess_cxr.tasks.bones.pairs import draw_phantom_pair
from command_line import run
from places import CHECKOUT

FOLDER = CHECKOUT / "weights" / "bones-small"
UNSEEN = 91_000  # a patient of another seed than the training's


@pytest.mark.parametrize("finding", ["normal", "nodule"])
def test_a_generated_film_of_another_patient_comes_nearer_to_its_truth(finding: str) -> None:
    pair = draw_phantom_pair(UNSEEN, 4, 512, finding)
    result = load_bone_suppressor(FOLDER).suppress(pair.film_HW)
    assert compute_psnr(result, pair.bone_free_HW) > compute_psnr(pair.film_HW, pair.bone_free_HW) + 2


def test_both_runtimes_give_one_bone_image() -> None:
    film_HW = draw_phantom_pair(UNSEEN, 4, 300, "normal").film_HW
    by_torch, by_onnx = (load_bone_suppressor(FOLDER, runtime=it).predict_bone(film_HW) for it in ("torch", "onnx"))
    np.testing.assert_allclose(by_onnx, by_torch, atol=1e-4)
    assert by_torch.max() > 0.05


def test_the_command_finds_it_by_its_name(tmp_path: Path) -> None:
    film = np.rint(255 * draw_phantom_pair(UNSEEN, 4, 256, "normal").film_HW).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "film.png"), film)
    answer = run("predict", "bones-small", tmp_path / "film.png", "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    made = cv2.imread(str(tmp_path / "out" / "film.png"), cv2.IMREAD_GRAYSCALE)
    assert made.shape == film.shape and (made <= film).all() and (made < film).any()


def test_python_finds_it_by_its_name_as_its_card_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_bone_suppressor("bones-small").sha256 == load_bone_suppressor(FOLDER).sha256
    assert 'load_bone_suppressor("bones-small")' in (FOLDER / "README.md").read_text()


def test_its_card_says_what_it_may_not_be_used_for() -> None:
    card = (FOLDER / "README.md").read_text()
    assert "not a medical device" in card and "Research only" in card and "THIS_FOLDER" not in card


def test_it_is_served_by_its_name() -> None:
    models = load_models(["bones-small"], RestOptions())
    assert list(models.bones) == ["bones-small"] and models.bones["bones-small"].sha256
