"""DICOM results: what others' checkers say of them, and that they hold the very numbers of the answer."""

from collections.abc import Callable
from pathlib import Path

import highdicom.sr
import numpy as np
import pydicom
import pytest
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.sr._concepts_dict import concepts

from chess_cxr.decode.film import decode_film
from chess_cxr.records import Undecodable
from chess_cxr.serve.codes import FINDINGS, build_private_code, find_code
from chess_cxr.serve.results import BoneChange, ModelAnswer, build_results
from chess_cxr.serve.source import check_film
from chess_cxr.tasks.answer import FilmAnswer, FindingAnswer
from pacs_node import find_errors, is_absent, run_tool, write_radiograph

SHA, OTHER = "a" * 64, "b" * 64
ANSWER = FilmAnswer(
    "chest findings",
    SHA,
    OTHER,
    flags=("lateral", "small"),
    findings=(
        FindingAnswer("Effusion", 0.12345678901234567, 0.5, False),
        FindingAnswer("Pleural_Thickening", float(np.float32(0.7)), 1 / 3, True),
        FindingAnswer("Enlarged Cardiomediastinum", 1e-9),
    ),
    calibrated=True,
    operating_point="sensitivity 0.9",
)
needs_checkers = pytest.mark.skipif(is_absent("dcentvfy"), reason="no dciodvfy (Debian: dicom3tools)")
needs_dcmtk = pytest.mark.skipif(is_absent("dsrdump"), reason="no dsrdump (Debian: dcmtk)")


def build(film: Path, out: Path, answer: FilmAnswer = ANSWER) -> list[Path]:
    """Report, heat map and film without bone of a film, as files."""
    heat_map_HWC = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    bones = BoneChange("bones", OTHER, np.full(decode_film(film).pixels.shape, -0.05, np.float32))
    out.mkdir(exist_ok=True)
    paths = []
    for number, content in enumerate(build_results(film, [ModelAnswer(answer, heat_map_HWC)], bones)):
        paths.append(out / f"{number}.dcm")
        paths[-1].write_bytes(content)
    return paths


def read_findings(report: Path) -> tuple[FindingAnswer, ...]:
    """Read a report back with highdicom."""
    document = highdicom.sr.ComprehensiveSR.from_dataset(pydicom.dcmread(report))
    findings = []
    for group in document.content.get_image_measurement_groups():
        numbers = {measured.name.meaning: measured.value for measured in group.get_measurements()}
        if "Probability" not in numbers:
            continue
        judged = [told.value.meaning == "Present" for told in group.get_qualitative_evaluations()]
        findings.append(
            FindingAnswer(
                group.tracking_identifier,
                numbers["Probability"],
                numbers.get("Threshold"),
                judged[0] if judged else None,
            )
        )
    return tuple(findings)


def list_groups(report: Path) -> list[Dataset]:
    """The measurement groups, read with pydicom alone."""
    [measurements] = [item for item in pydicom.dcmread(report).ContentSequence if _name(item) == "Imaging Measurements"]
    return list(measurements.ContentSequence)


def _name(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning)


@needs_checkers
def test_checkers_of_others_find_no_error(tmp_path: Path) -> None:
    film = write_radiograph(tmp_path / "film.dcm")
    results = build(film, tmp_path / "out")
    assert len(results) == 3
    assert [find_errors("dciodvfy", path) for path in (film, *results)] == [[]] * 4
    assert find_errors("dcentvfy", film, *results) == []


@needs_checkers
def test_the_checkers_do_look(tmp_path: Path) -> None:
    film = write_radiograph(tmp_path / "film.dcm")
    report, heat_map, _ = build(film, tmp_path / "out")
    broken, other = pydicom.dcmread(report), pydicom.dcmread(heat_map)
    del broken.ContentSequence[0].ConceptNameCodeSequence, broken.CompletionFlag
    broken.save_as(report)
    other.PatientName = "ROE^RICHARD"
    other.save_as(heat_map)
    assert find_errors("dciodvfy", report)
    assert find_errors("dcentvfy", film, heat_map)


@needs_checkers
def test_no_result_of_a_real_film_has_an_error_that_the_film_had_not(real_films: Path, tmp_path: Path) -> None:
    for number, film in enumerate(sorted((real_films / "dicom").glob("*.dcm"))):
        known = set(find_errors("dciodvfy", film))
        for result in build(film, tmp_path / str(number)):
            assert set(find_errors("dciodvfy", result)) <= known, film.name
        assert find_errors("dcentvfy", film, *(tmp_path / str(number)).iterdir()) == [], film.name


@needs_dcmtk
def test_dcmtk_reads_the_report(tmp_path: Path) -> None:
    report, *_ = build(write_radiograph(tmp_path / "film.dcm"), tmp_path / "out")
    told = run_tool("dsrdump", "+Pl", report)
    for line in (
        'CODE:(,,"Finding")=(60046008,SCT,"Pleural effusion")',
        '99CHESS,"Pleural_Thickening")',
        'TEXT:(,,"Algorithm Name")="chest findings"',
        f'TEXT:(,,"Algorithm Parameters")="weights SHA-256 {SHA}"',
        'TEXT:(,,"Algorithm Parameters")="operating point sensitivity 0.9"',
        'CODE:(,,"Presence of property")=(121053,DCM,"Present")',
        'NUM:(,,"Probability")="0.12345678901235" (1,UCUM,"no units")',
    ):
        assert line in told


def test_the_report_reads_back_to_the_same_numbers(tmp_path: Path) -> None:
    report, *_ = build(write_radiograph(tmp_path / "film.dcm"), tmp_path / "out")
    assert read_findings(report) == ANSWER.findings
    values = [
        item.MeasuredValueSequence[0].FloatingPointValue
        for group in list_groups(report)
        for item in group.ContentSequence
        if item.ValueType == "NUM" and _name(item) == "Probability"
    ]
    assert values == [finding.probability for finding in ANSWER.findings]


def test_the_report_names_algorithm_flags_and_film(tmp_path: Path) -> None:
    film = pydicom.dcmread(write_radiograph(tmp_path / "film.dcm"))
    report, *_ = build(tmp_path / "film.dcm", tmp_path / "out")
    quality, *findings = list_groups(report)
    flags = [
        item.ConceptCodeSequence[0].CodeMeaning for item in quality.ContentSequence if _name(item) == "Quality Finding"
    ]
    assert flags == list(ANSWER.flags)
    for group in findings:
        told = [item.TextValue for item in group.ContentSequence if item.ValueType == "TEXT"]
        assert {"chest findings", f"weights SHA-256 {SHA}", "probabilities calibrated"} <= set(told)
        assert "Research software, not a medical device" in told
        [image] = [item for item in group.ContentSequence if item.ValueType == "IMAGE"]
        assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == film.SOPInstanceUID


@needs_checkers
def test_a_refused_film_is_reported_with_its_reason_and_no_finding(tmp_path: Path) -> None:
    film = write_radiograph(tmp_path / "film.dcm")
    report, *_ = build(film, tmp_path / "out", FilmAnswer("m", SHA, OTHER, reason="almost no contrast"))
    assert read_findings(report) == ()
    [group] = list_groups(report)
    [told] = [item for item in group.ContentSequence if _name(item) == "Quality Finding"]
    assert told.ConceptCodeSequence[0].CodeMeaning == "almost no contrast"
    assert find_errors("dciodvfy", report) == []


def test_results_belong_to_the_study_and_say_from_what_they_come(tmp_path: Path) -> None:
    film = pydicom.dcmread(write_radiograph(tmp_path / "film.dcm"))
    results = [pydicom.dcmread(path) for path in build(tmp_path / "film.dcm", tmp_path / "out")]
    for result in results:
        for name in ("StudyInstanceUID", "PatientID", "PatientName", "PatientBirthDate", "AccessionNumber"):
            assert result[name].value == film[name].value
        assert result.SeriesInstanceUID != film.SeriesInstanceUID
    assert len({result.SeriesInstanceUID for result in results}) == 3
    for image in results[1:]:
        assert image.SourceImageSequence[0].ReferencedSOPInstanceUID == film.SOPInstanceUID
        assert image.ImageType[0] == "DERIVED" and image.ContentQualification == "RESEARCH"
    grey = [decode_film(path).pixels for path in (tmp_path / "film.dcm", tmp_path / "out" / "2.dcm")]
    assert np.abs(np.clip(grey[0] - 0.05, 0, 1) - grey[1]).max() < 1e-3


def test_the_heat_map_holds_the_picture(tmp_path: Path) -> None:
    _, heat_map, _ = build(write_radiograph(tmp_path / "film.dcm"), tmp_path / "out")
    drawn_HWC = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    assert np.array_equal(pydicom.dcmread(heat_map).pixel_array, drawn_HWC)


def test_uids_depend_on_film_model_and_kind_alone(tmp_path: Path) -> None:
    def list_uids(film: Path, answer: FilmAnswer = ANSWER) -> list[str]:
        return [
            uid
            for path in build(film, tmp_path / "out", answer)
            for uid in (pydicom.dcmread(path).SOPInstanceUID, pydicom.dcmread(path).SeriesInstanceUID)
        ]

    first, second = (write_radiograph(tmp_path / f"{n}.dcm", n) for n in (1, 2))
    again = list_uids(first, FilmAnswer("renamed", SHA, OTHER, findings=(FindingAnswer("Mass", 0.9),)))
    assert list_uids(first) == again
    assert len({*again, *list_uids(second), *list_uids(first, FilmAnswer("m", OTHER, OTHER, reason="r"))}) == 16


@needs_checkers
@pytest.mark.parametrize(
    ("characters", "name"),
    [("ISO_IR 100", "Müller^Jörg"), ("ISO_IR 192", "Wang^XiaoDong=王^小东"), ("ISO_IR 144", "Люкceмбypг")],
)
def test_names_of_all_alphabets_come_through(characters: str, name: str, tmp_path: Path) -> None:
    film = write_radiograph(tmp_path / "film.dcm", SpecificCharacterSet=characters, PatientName=name)
    for path in build(film, tmp_path / "out"):
        result = pydicom.dcmread(path)
        assert str(result.PatientName) == name and find_errors("dciodvfy", path) == []


def test_a_header_that_breaks_the_rules_gives_results_for_the_same_patient(tmp_path: Path) -> None:
    broken = {
        "PatientID": "X" * 80,
        "PatientBirthDate": "unknown",
        "PatientSex": "W",
        "StudyTime": "noon",
        "StudyID": "S" * 40,
    }
    with config.disable_value_validation():
        film = write_radiograph(tmp_path / "film.dcm", **broken)
    for path in build(film, tmp_path / "out")[:2]:
        with config.disable_value_validation():
            result = pydicom.dcmread(path)
            result.decode()
        assert result.PatientID == "X" * 80 and result.StudyID == "S" * 40
        assert not result.PatientBirthDate and not result.PatientSex and not result.StudyTime


@needs_checkers
def test_a_film_with_a_bare_header_gets_results_too(tmp_path: Path) -> None:
    film = pydicom.dcmread(write_radiograph(tmp_path / "film.dcm"))
    kept = {"SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PixelData", "Rows", "Columns"}
    kept |= {
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "SamplesPerPixel",
        "PixelRepresentation",
        "PhotometricInterpretation",
    }
    for element in list(film):
        if element.keyword not in kept:
            del film[element.tag]
    film.save_as(tmp_path / "bare.dcm")
    assert check_film(tmp_path / "bare.dcm")
    report, heat_map, _ = build(tmp_path / "bare.dcm", tmp_path / "out")
    assert read_findings(report) == ANSWER.findings
    assert find_errors("dciodvfy", report) == find_errors("dciodvfy", heat_map) == []


def test_a_result_is_no_film_to_answer(tmp_path: Path) -> None:
    film = write_radiograph(tmp_path / "film.dcm")
    assert check_film(film)
    assert [check_film(path) for path in build(film, tmp_path / "out")] == [False] * 3


@pytest.mark.parametrize(
    "spoil", [lambda c: b"\x89PNG" + c[4:], lambda c: c[:200], lambda c: c.replace(b"1.2.826.0.1.7", b"")]
)
def test_what_no_result_can_refer_to_is_refused(spoil: Callable[[bytes], bytes], tmp_path: Path) -> None:
    content = spoil(write_radiograph(tmp_path / "film.dcm").read_bytes())
    (tmp_path / "spoilt.dcm").write_bytes(b"\0" * 200 if content.startswith(b"\x89") else content)
    with pytest.raises(Undecodable):
        check_film(tmp_path / "spoilt.dcm")


# ---------------------------------------------------------------- codes


def test_codes_of_the_standard_are_the_standards() -> None:
    """pydicom carries PS3.16 with its context groups; a code that it knows must mean the same there."""
    known = {(scheme, code) for scheme, named in concepts.items() for codes in named.values() for code in codes}
    ours = {(code.scheme_designator, code.value) for code in FINDINGS.values()}
    standard = {("SCT", "60046008"), ("SCT", "36118008"), ("SCT", "19242006"), ("SCT", "27925004"), ("SCT", "4147007")}
    assert standard | {("DCM", "112121"), ("DCM", "112001")} <= ours & known


def test_snomed_identifiers_have_valid_check_digits() -> None:
    """The last digit of a concept identifier is a Verhoeff check digit: a mistyped one fails here."""
    for code in FINDINGS.values():
        if code.scheme_designator == "SCT":
            assert _check_verhoeff(code.value), code
    assert not _check_verhoeff("46621008")


def _check_verhoeff(digits: str) -> bool:
    table = [[(a + b) % 5 if a < 5 and b < 5 else 0 for b in range(10)] for a in range(10)]
    for a in range(10):
        for b in range(10):
            if a < 5 <= b:
                table[a][b] = 5 + (a + b) % 5
            elif b < 5 <= a:
                table[a][b] = 5 + (a - b) % 5
            elif a >= 5 and b >= 5:
                table[a][b] = (a - b) % 5
    permuted = [list(range(10)), [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]]
    while len(permuted) < 8:
        permuted.append([permuted[-1][permuted[1][n]] for n in range(10)])
    check = 0
    for place, digit in enumerate(reversed(digits)):
        check = table[check][permuted[place % 8][int(digit)]]
    return check == 0


def test_labels_of_the_usual_data_sets_find_their_code() -> None:
    assert find_code("Effusion") == find_code("Pleural Effusion") == find_code("pleural_effusion")
    assert find_code("Edema").value == "19242006"
    for label in ("Hernia", "No Finding", "Support Devices", "Pleural_Thickening"):
        assert find_code(label).scheme_designator == "99CHESS" and find_code(label).meaning == label


def test_private_codes_fit_and_differ() -> None:
    long = [build_private_code(f"a label that is much longer than a code value {n}" * 2) for n in range(2)]
    assert long[0].value != long[1].value
    for code in (*long, build_private_code("ä"), build_private_code("a\\b"), build_private_code(" ")):
        assert 0 < len(code.value) <= 16 and 0 < len(code.meaning) <= 64 and "\\" not in code.value + code.meaning
