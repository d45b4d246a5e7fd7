"""Model folders in the node: the numbers of `predict`, and the bone films of `predict`."""

import tarfile
from pathlib import Path

import numpy as np
import pydicom
import pytest

from chess_cxr.decode.film import decode_film
from chess_cxr.files.whole import compute_sha256
from chess_cxr.serve.model import load_bones_model, load_findings_model
from chess_cxr.serve.results import BoneChange, ModelAnswer, build_results
from chess_cxr.tasks.bones.model import load_bone_suppressor, suppress_files
from chess_cxr.tasks.classify.answer import answer_films
from chess_cxr.tasks.classify.model import load_classifier
from pacs_node import write_radiograph
from served import write_findings_model

ARCHIVE = Path(__file__).parents[1] / "earlier" / "v0.1.tar.xz"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_a_classifier_says_in_dicom_what_predict_says(models: Path, tmp_path: Path) -> None:
    film, folder = write_radiograph(tmp_path / "film.dcm"), models / "classifier_linear"
    answer = load_findings_model(folder).answer(film)
    [expected] = answer_films(load_classifier(folder), [film])
    assert answer == expected and answer.findings
    assert answer.model_sha256 == compute_sha256(folder / "model.safetensors") and not answer.calibrated
    [report] = build_results(film, [ModelAnswer(answer)], None)
    (tmp_path / "report.dcm").write_bytes(report)
    numbers = [
        float(item.MeasuredValueSequence[0].FloatingPointValue)
        for group in pydicom.dcmread(tmp_path / "report.dcm").ContentSequence[-1].ContentSequence
        for item in group.ContentSequence
        if item.ValueType == "NUM"
    ]
    assert numbers == [finding.probability for finding in expected.findings]


def test_the_heat_map_lies_over_the_film_and_names_its_finding(tmp_path: Path) -> None:
    film, folder = write_radiograph(tmp_path / "film.dcm"), write_findings_model(tmp_path / "findings")
    model = load_findings_model(folder)
    assert model.draw_heat_map is not None
    drawn_HW3 = model.draw_heat_map(film)
    assert drawn_HW3 is not None and drawn_HW3.dtype == np.uint8 and drawn_HW3.shape[2] == 3
    assert (drawn_HW3[..., 0] != drawn_HW3[..., 2]).any()
    [_, picture] = build_results(film, [ModelAnswer(model.answer(film), drawn_HW3)], None)
    (tmp_path / "map.dcm").write_bytes(picture)
    assert pydicom.dcmread(tmp_path / "map.dcm").PhotometricInterpretation == "RGB"


def test_a_film_that_cannot_be_read_is_refused_with_the_reason_of_predict(models: Path, tmp_path: Path) -> None:
    film, folder = write_radiograph(tmp_path / "film.dcm", PixelData=b"\0" * 100), models / "classifier_linear"
    answer = load_findings_model(folder).answer(film)
    [expected] = answer_films(load_classifier(folder), [film])
    assert answer == expected and answer.reason and answer.findings == ()


def test_a_film_without_bone_is_the_one_of_predict(models: Path, tmp_path: Path) -> None:
    film, folder = write_radiograph(tmp_path / "film.dcm"), models / "bones"
    model = load_bones_model(folder)
    [made] = build_results(film, [], BoneChange(model.name, model.sha256, model.find_change(film)))
    (tmp_path / "made.dcm").write_bytes(made)
    [expected] = suppress_files(load_bone_suppressor(folder), [film], tmp_path / "out")
    assert expected.out is not None
    assert np.array_equal(decode_film(tmp_path / "made.dcm").pixels, decode_film(expected.out).pixels)
