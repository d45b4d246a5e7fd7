"""`finetune nodules` and `generate` as their users meet them: exit codes, what is printed, what is written."""

import csv
import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image

from chess_cxr.decode.film import decode_film
from chess_cxr.doctor import places
from chess_cxr.doctor.check import Request, take
from chess_cxr.sources.phantom.film import write_phantom_films
from chess_cxr.tasks.nodules.config import NodulesConfig
from chess_cxr.tasks.nodules.files import list_nodule_films
from chess_cxr.tasks.nodules.films import read_nodule_films
from chess_cxr.tasks.nodules.insertion import draw_analytic_nodule
from chess_cxr.tasks.nodules.train import finetune_nodules
from command_line import Answer, run

ENCODER = "random:regnetx_002@64"
TINY = NodulesConfig(size=64, film_size=128, width=4, latent=8, steps=1, batch=2)
SPACING = ("--spacing-mm", "2.7")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "nodules"
    finetune_nodules(ENCODER, ["phantom:12@128"], out, TINY)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generated films as PNG, with their nodules' masks and lungs by the same name; spacing 2.7 mm or so."""
    folder = tmp_path_factory.mktemp("data")
    for film in read_nodule_films("phantom:2@128#9")[::2]:
        for part, pixels in (("films", film.film_HW), ("masks", film.mask_HW), ("lungs", film.lung_HW)):
            write_png(folder / part / f"{film.name}.png", np.rint(255 * np.asarray(pixels, np.float32)))
    return folder


@pytest.fixture(scope="module")
def film(data: Path) -> Path:
    return min((data / "films").iterdir())


def write_png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels.astype(np.uint8))
    return path


def read_rows(out: Path) -> list[dict[str, str]]:
    with (out / "generated.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def find_box(path: Path) -> tuple[int, int, int, int]:
    """One pixel at a time."""
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert set(np.unique(mask)) == {0, 255}
    marked = [(x, y) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
    columns, rows = [x for x, _ in marked], [y for _, y in marked]
    return min(columns), min(rows), max(columns) - min(columns) + 1, max(rows) - min(rows) + 1


def check_rows(out: Path, model: Path, sources: list[Path], seeds: list[int]) -> None:
    """Every row tells the truth of its film, and none says where the source lies."""
    rows, model_sha256 = read_rows(out), hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    assert len(rows) == len(sources)
    for row, source, seed in zip(rows, sources, seeds, strict=True):
        assert find_box(out / row["mask"]) == tuple(int(row[name]) for name in ("x", "y", "width", "height"))
        assert row["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
        assert (row["model_sha256"], row["seed"], row["synthetic"]) == (model_sha256, str(seed), "yes")
        assert (out / row["film"]).is_file()
    text = (out / "generated.csv").read_text()
    assert "/" not in text and str(sources[0].parent) not in text


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_png(path: Path) -> tuple[tuple[int, int], str]:
    """Return a PNG's size and all of its text."""
    with Image.open(path) as image:
        return image.size, " ".join(map(str, image.text.values()))  # type: ignore[attr-defined]


def assert_refused(answer: Answer, *parts: str) -> None:
    assert (answer.code, answer.out) == (2, ""), answer
    [line] = answer.err.splitlines()
    assert line.startswith("chess-cxr: ") and all(part in line for part in parts), line


def test_predict_says_where_a_generator_is_used(model: Path, tmp_path: Path) -> None:
    assert_refused(run("predict", model, tmp_path / "film.png"), f"use it with: chess-cxr generate {model}")
    assert_refused(run("predict", model, tmp_path / "film.png", "--out", tmp_path / "out"), "is a nodule generator")


# ---------------------------------------------------------------- finetune nodules


def test_the_doctor_opens_the_generator(model: Path) -> None:
    [check] = map(take, places.list_network_steps(Request((str(model),))))
    assert (check.finding.status, check.finding.value) == ("ok", "nodule generator; loads on cpu")


def test_a_generator_is_trained_by_the_command_and_says_synthetic(tmp_path: Path) -> None:
    words = ("finetune", "nodules", ENCODER, "phantom:12@128", "--out", tmp_path / "model", "--width", "4")
    rest = ("--steps", "1", "--batch", "2", "--film-size", "128", "--quiet")
    done = run(*words, *rest)
    assert (done.code, done.err) == (0, "")
    assert "contrast_made" in done.out and "phantom (SYNTHETIC)" in done.out
    assert "not judged: a distance between made and real nodules takes 24 films" in done.out
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert files == {
        "README.md",
        "model.safetensors",
        "config.json",
        "result.json",
        "test_films.png",
        "test_seeds.png",
        "metrics.jsonl",
    }


@pytest.mark.usefixtures("vgg16_file")
def test_made_and_real_nodules_of_enough_test_films_are_judged(tmp_path: Path) -> None:
    words = ("finetune", "nodules", ENCODER, "phantom:40@128", "--out", tmp_path / "model", "--width", "4")
    rest = ("--steps", "1", "--batch", "2", "--film-size", "128", "--test", "0.7", "--quiet")
    done = run(*words, *rest)
    assert (done.code, done.err) == (0, "")
    result = json.loads((tmp_path / "model" / "result.json").read_text())
    count = result["films"]["scored"]["films"]
    assert count >= 24 and result["judged"]["distance"]["count"] == result["judged"]["distance"]["other_count"] == count
    assert result["judged"]["distance"]["network"] == "vgg16@64" and result["judged"]["notes"] == []
    assert f"{count} against {count} films: Fréchet" in done.out and "KID" in done.out
    assert "held-out films; " in done.out and "training films" in done.out


def test_a_hostile_film_ends_the_training_in_one_line_before_it_begins(data: Path, film: Path, tmp_path: Path) -> None:
    folder = tmp_path / "marked"
    for part in ("films", "masks"):
        shutil.copytree(data / part, folder / part)
    words = ("finetune", "nodules", ENCODER, folder, "--out", tmp_path / "model", "--workers", "2", "--quiet")
    late = run(*words, "--limits.film-seconds", "0.0001")
    (folder / "films" / film.name).write_bytes(film.read_bytes()[:2000])
    broken = run(*words)
    for answer, reason in ((late, "not decoded within 0.0001 seconds"), (broken, "")):
        [line] = answer.err.splitlines()
        assert answer.code == 1 and answer.out == ""
        assert line.startswith(f"chess-cxr: film 1 of 2 by name cannot be decoded: {reason}")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("phantom:12@128", "--workers", "0"), "--workers must be 1 or more"),
        (("phantom:12@128", "--perceptual", "pixels:32"), "bare pixels are no perceptual network"),
        (("phantom:12@128", "--film-size", "32"), "size <= film_size"),
        (("phantom:0",), "is not phantom:PATIENTS"),
        (("phantom:1@128", "--test", "0"), "leave no nodule"),
        ((), "name a folder of films with marked nodules"),
    ],
)
def test_training_that_cannot_be_is_refused(words: tuple[str, ...], part: str, tmp_path: Path) -> None:
    assert_refused(run("finetune", "nodules", ENCODER, *words, "--out", tmp_path / "model", "--quiet"), part)
    assert not (tmp_path / "model").exists()


def test_a_folder_with_a_model_is_not_overwritten(model: Path) -> None:
    before = read_all(model)
    assert_refused(run("finetune", "nodules", ENCODER, "phantom:12@128", "--out", model), "exists already")
    assert read_all(model) == before


# ---------------------------------------------------------------- generate


def test_random_nodules_come_with_mask_box_and_provenance_and_come_again(
    model: Path, data: Path, tmp_path: Path
) -> None:
    words = ("generate", model, "--films", data / "films", "--random", "3", "--size-mm", "20-30", *SPACING, "--quiet")
    answer = run(*words, "--seed", "5", "--out", tmp_path / "a")
    assert (answer.code, answer.err) == (0, "")
    sources = sorted((data / "films").iterdir())
    check_rows(tmp_path / "a", model, [sources[0], sources[1], sources[0]], [5, 6, 7])
    for row in read_rows(tmp_path / "a"):
        size, text = read_png(tmp_path / "a" / row["film"])
        assert size == (128, 128) and "SYNTHETIC" in text
        area = int((cv2.imread(str(tmp_path / "a" / row["mask"]), cv2.IMREAD_UNCHANGED) > 0).sum())
        assert 20 <= float(row["diameter_mm"]) <= 30
        assert 2 * np.sqrt(area / np.pi) * 2.7 == pytest.approx(float(row["diameter_mm"]), rel=0.02)
    assert run(*words, "--seed", "5", "--out", tmp_path / "b").code == 0
    assert read_all(tmp_path / "a") == read_all(tmp_path / "b")
    assert run(*words, "--seed", "9", "--out", tmp_path / "c").code == 0
    assert not set(read_all(tmp_path / "c").values()) & set(read_all(tmp_path / "a").values())


def test_masks_of_a_file_or_a_folder_are_painted_where_they_are(
    model: Path, data: Path, film: Path, tmp_path: Path
) -> None:
    lungs = ("--lungs", data / "lungs", "--quiet")
    one = run(
        "generate", model, "--films", film, "--mask", data / "masks" / film.name, "--out", tmp_path / "one", *lungs
    )
    many = run(
        "generate", model, "--films", data / "films", "--mask", data / "masks", "--out", tmp_path / "many", *lungs
    )
    assert (one.code, one.err, many.code, many.err) == (0, "", 0, "")
    check_rows(tmp_path / "one", model, [film], [0])
    check_rows(tmp_path / "many", model, sorted((data / "films").iterdir()), [0, 1])
    mask, before, after = (
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        for path in (data / "masks" / film.name, film, tmp_path / "one" / film.name)
    )
    assert np.array_equal(cv2.imread(str(tmp_path / "one" / f"{film.stem}_mask.png"), cv2.IMREAD_UNCHANGED), mask)
    near = cv2.dilate(mask, np.ones((41, 41), np.uint8)) > 0
    assert (before != after)[mask > 0].any() and np.array_equal(before[~near], after[~near])
    assert read_rows(tmp_path / "one")[0]["diameter_mm"] == "nan"  # nothing tells this film's spacing
    assert (tmp_path / "many" / film.name).read_bytes() == (tmp_path / "one" / film.name).read_bytes()


def test_dicom_becomes_synthetic_dicom_and_tells_its_own_spacing(model: Path, tmp_path: Path) -> None:
    write_phantom_films(tmp_path / "in", 1, 1, seed=3, size=128)
    [source] = (tmp_path / "in").rglob("*.dcm")
    words = ("generate", model, "--films", source, "--random", "1", "--size-mm", "25-30", "--quiet")
    for out in ("a", "b"):
        answer = run(*words, "--out", tmp_path / out)
        assert (answer.code, answer.err) == (0, "")
    check_rows(tmp_path / "a", model, [source], [0])
    assert read_all(tmp_path / "a") == read_all(tmp_path / "b")
    before, after = pydicom.dcmread(source), pydicom.dcmread(tmp_path / "a" / f"{source.stem}.dcm")
    assert after.SyntheticData == "YES" and after.SOPInstanceUID != before.SOPInstanceUID
    found = decode_film(tmp_path / "a" / f"{source.stem}.dcm").pixels != decode_film(source).pixels
    mask = cv2.imread(str(tmp_path / "a" / f"{source.stem}_mask.png"), cv2.IMREAD_UNCHANGED)
    near = cv2.dilate(mask, np.ones((41, 41), np.uint8)) > 0
    assert found[mask > 0].any() and not found[~near].any()


def test_nodules_like_another_are_of_its_size_in_the_layout_of_node21(
    model: Path, data: Path, film: Path, tmp_path: Path
) -> None:
    like = ("--like", film, "--like-mask", data / "masks" / film.name)
    words = ("--films", data / "films", "--lungs", data / "lungs", "--random", "2", *SPACING, "--quiet")
    answer = run("generate", model, *words, *like, "--layout", "node21", "--out", tmp_path / "out")
    assert (answer.code, answer.err) == (0, "")
    example = cv2.imread(str(data / "masks" / film.name), cv2.IMREAD_UNCHANGED) > 0
    wide_mm = 2 * np.sqrt(example.sum() / np.pi) * 2.7
    entries = list_nodule_films(tmp_path / "out")
    assert len(entries) == len(read_rows(tmp_path / "out")) == 2
    for row, entry in zip(read_rows(tmp_path / "out"), entries, strict=True):
        assert 0.9 * wide_mm <= float(row["diameter_mm"]) <= 1.1 * wide_mm
        assert row["like_sha256"] == hashlib.sha256(film.read_bytes()).hexdigest()
        assert entry.boxes == (find_box(tmp_path / "out" / row["mask"]),)
        content = entry.film.read_bytes()
        assert f"SYNTHETIC nodule in {row['source_sha256']}".encode() in content and b"2.7 2.7" in content
    for rest, part in (
        (("--like", film), "say which nodule to imitate: --like-mask FILE"),
        (("--like-mask", film), "name the film with --like"),
    ):
        assert_refused(run("generate", model, *words, *rest, "--out", tmp_path / "no"), part)
    insertion = f"insertion:{write_ct_nodules(tmp_path / 'ct')}"
    assert_refused(run("generate", insertion, *words, *like, "--out", tmp_path / "no"), "only a trained generator")


def test_film_mode_writes_whole_films_with_their_mask(data: Path, tmp_path: Path) -> None:
    config = NodulesConfig(mode="film", size=64, width=4, latent=8, steps=1, batch=2)
    finetune_nodules(ENCODER, ["phantom:12@128"], tmp_path / "model", config)
    words = ("--random", "2", "--size-mm", "20-30", *SPACING, "--lungs", data / "lungs", "--quiet")
    answer = run("generate", tmp_path / "model", "--films", data / "films", *words, "--out", tmp_path / "out")
    assert (answer.code, answer.err) == (0, "")
    check_rows(tmp_path / "out", tmp_path / "model", sorted((data / "films").iterdir()), [0, 1])
    for row in read_rows(tmp_path / "out"):
        size, text = read_png(tmp_path / "out" / row["film"])
        assert size == read_png(tmp_path / "out" / row["mask"])[0] == (64, 64) and "SYNTHETIC film" in text


def write_ct_nodules(folder: Path) -> Path:
    """Three drawn nodules in the form of the projected CT nodules."""
    rows = ["nodule,mask,series_uid"]
    for number, diameter in enumerate((18.0, 22.0, 26.0)):
        nodule = draw_analytic_nodule(diameter, np.random.default_rng(number))
        for part, pixels in (("nodule", nodule.density_YX), ("mask", nodule.mask_YX)):
            write_png(
                folder / part / f"{number}.png", np.rint(255 * cv2.resize(np.float32(pixels), None, fx=0.5, fy=0.5))
            )
        rows.append(f"nodule/{number}.png,mask/{number}.png,1.2.{number}")
    (folder / "nodules.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_ct_nodules_are_inserted_in_the_place_of_a_model(data: Path, tmp_path: Path) -> None:
    insertion = f"insertion:{write_ct_nodules(tmp_path / 'ct')}"
    words = ("--lungs", data / "lungs", *SPACING, "--size-mm", "20-30", "--quiet")
    for out in ("a", "b"):
        answer = run("generate", insertion, "--films", data / "films", "--random", "4", *words, "--out", tmp_path / out)
        assert (answer.code, answer.err) == (0, "")
    assert read_all(tmp_path / "a") == read_all(tmp_path / "b")
    sources = 2 * sorted((data / "films").iterdir())
    assert len({row["model_sha256"] for row in read_rows(tmp_path / "a")}) == 1
    for row, source, seed in zip(read_rows(tmp_path / "a"), sources, range(4), strict=True):
        assert find_box(tmp_path / "a" / row["mask"]) == tuple(int(row[n]) for n in ("x", "y", "width", "height"))
        assert (row["seed"], row["synthetic"], len(row["model_sha256"])) == (str(seed), "yes", 64)
        assert "SYNTHETIC" in read_png(tmp_path / "a" / row["film"])[1]
        before, after, mask = (
            cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(int)
            for path in (source, tmp_path / "a" / row["film"], tmp_path / "a" / row["mask"])
        )
        near = cv2.dilate((mask > 0).astype(np.uint8), np.ones((13, 13), np.uint8)) > 0
        assert (after - before)[mask > 0].mean() > 3 and np.array_equal(before[~near], after[~near])


def test_an_insertion_without_nodules_or_spacing_is_refused(data: Path, film: Path, tmp_path: Path) -> None:
    words = ("--films", film, "--mask", data / "masks" / film.name, "--lungs", data / "lungs", "--quiet")
    assert_refused(run("generate", "insertion:nowhere", *words, "--out", tmp_path / "out"), "nodules.csv")
    answer = run("generate", f"insertion:{write_ct_nodules(tmp_path / 'ct')}", *words, "--out", tmp_path / "out")
    assert_failed(answer, 1, 1, "does not say its pixel spacing; give it with --spacing-mm")


def test_made_nodules_are_compared_with_real_ones_and_too_few_are_refused_before(data: Path, tmp_path: Path) -> None:
    insertion, films = f"insertion:{write_ct_nodules(tmp_path / 'ct')}", tmp_path / "films"
    films.mkdir()
    for number, film in enumerate(read_nodule_films("phantom:4@128#8")[1::2]):
        write_png(films / f"{number}.png", np.rint(255 * film.film_HW))
    words = (
        "generate",
        insertion,
        "--films",
        films,
        *SPACING,
        "--size-mm",
        "20-30",
        "--judge",
        "random:regnetx_002@64",
    )
    few = run(*words, "--random", "3", "--compare-with", "phantom:30@128", "--out", tmp_path / "out", "--quiet")
    assert_refused(few, "takes 24 films of 4 patients on each side; 3 made of 3 are too few")
    real = run(*words, "--random", "24", "--compare-with", "phantom:9@128", "--out", tmp_path / "out", "--quiet")
    assert_refused(real, "9 real of 9 are too few")
    assert not (tmp_path / "out").exists()
    done = run(*words, "--random", "24", "--compare-with", "phantom:30@128", "--out", tmp_path / "out", "--quiet")
    [line] = done.err.splitlines()
    assert done.code == 0 and len(done.out.splitlines()) == 25
    assert line.startswith(f"made against real nodules: {ENCODER}") and "24 against 30 films" in line
    told = json.loads((tmp_path / "out" / "distance.json").read_text())
    assert (told["count"], told["other_count"]) == (24, 30) and f"Fréchet {told['frechet']['value']:.4g} [" in line


def test_masks_of_films_that_share_a_name_are_not_overwritten(
    model: Path, data: Path, film: Path, tmp_path: Path
) -> None:
    write_phantom_films(tmp_path / "in", 1, 1, seed=3, size=128)
    [dicom] = (tmp_path / "in").rglob("*.dcm")
    twin = tmp_path / "twins" / f"{film.stem}.dcm"
    twin.parent.mkdir()
    twin.write_bytes(dicom.read_bytes())
    words = ("--random", "2", "--size-mm", "20-30", *SPACING, "--quiet")
    assert run("generate", model, "--films", film, twin, *words, "--out", tmp_path / "out").code == 0
    check_rows(tmp_path / "out", model, [film, twin], [0, 1])
    assert len({row["mask"] for row in read_rows(tmp_path / "out")}) == 2


@pytest.mark.real_films
def test_a_real_film_is_painted_into_its_lung_which_is_found(model: Path, real_films: Path, tmp_path: Path) -> None:
    source = real_films / "jsrt" / "images" / "JPCNN002.png"
    words = ("--random", "1", "--size-mm", "20-30", "--spacing-mm", "0.7", "--quiet")
    answer = run("generate", model, "--films", source, *words, "--out", tmp_path / "out")
    assert (answer.code, answer.err) == (0, "")
    check_rows(tmp_path / "out", model, [source], [0])
    mask = cv2.imread(str(tmp_path / "out" / "JPCNN002_mask.png"), cv2.IMREAD_UNCHANGED) > 0
    organs = cv2.imread(str(real_films / "jsrt" / "masks" / "JPCNN002.png"), cv2.IMREAD_UNCHANGED)
    assert ((organs & 3) > 0)[mask].mean() > 0.5


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "--mask FILE or FOLDER, or --random N"),
        (("--random", "1", "--mask", "MASK"), "--mask FILE or FOLDER, or --random N"),
        (("--random", "-1"), "1 or more"),
        (("--random", "1", "--size-mm", "30-5"), "--size-mm '30-5' should be a range"),
        (("--random", "1", "--size-mm", "5"), "--size-mm '5' should be a range"),
        (("--random", "1", "--spacing-mm", "0"), "--spacing-mm is a number"),
        (("--mask", "/nowhere/mask.png"), "there is no mask"),
        (("--mask", "EMPTY"), "has no mask for 1 of 1 films"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(
    words: tuple[str, ...], part: str, model: Path, data: Path, film: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"MASK": data / "masks" / film.name, "EMPTY": tmp_path / "empty"}
    words_given = [places.get(word, word) for word in words]
    assert_refused(run("generate", model, "--films", film, *words_given, "--out", tmp_path / "out"), part)
    assert not (tmp_path / "out").exists()


def test_one_mask_for_many_films_no_model_and_an_out_that_is_used_are_refused(
    model: Path, data: Path, film: Path, tmp_path: Path
) -> None:
    mask, out = data / "masks" / film.name, tmp_path / "out"
    assert_refused(run("generate", model, "--films", data / "films", "--mask", mask, "--out", out), "one mask is given")
    assert_refused(run("generate", tmp_path, "--films", film, "--mask", mask, "--out", out), "is no nodule generator")
    out.mkdir()
    (out / "generated.csv").write_text("kept")
    answer = run("generate", model, "--films", film, "--mask", mask, "--out", out, "--quiet")
    assert answer.code == 2 and "generated.csv exists already" in answer.err and len(answer.err.splitlines()) == 1
    assert read_all(out) == {"generated.csv": b"kept"}


def draw_disc(row: int, column: int, radius: int, side: int = 128) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return 255 * (np.hypot(y - row, x - column) <= radius)


@pytest.mark.parametrize(
    ("mask", "part"),
    [
        (np.zeros((128, 128)), "the mask is empty"),
        (draw_disc(40, 40, 5, 100), "the mask has 100 x 100 pixels, the film 128 x 128"),
        (draw_disc(60, 40, 5) // np.arange(1, 129), "the mask is not binary"),
        (draw_disc(8, 8, 5), "lies outside the lung"),
        (np.full((128, 128), 255), "is larger than the lung"),
    ],
    ids=["empty", "size", "grey", "outside", "giant"],
)
def test_a_mask_that_nothing_can_be_made_for_has_its_reason_in_its_row(
    mask: np.ndarray, part: str, model: Path, data: Path, film: Path, tmp_path: Path
) -> None:
    place = write_png(tmp_path / "mask.png", mask)
    words = ("--mask", place, "--lungs", data / "lungs", "--quiet")
    answer = run("generate", model, "--films", film, *words, "--out", tmp_path / "out")
    assert_failed(answer, 1, 1, part)
    assert not (tmp_path / "out").exists()


def assert_failed(answer: Answer, failed: int, count: int, part: str) -> None:
    assert answer.code == 1
    assert answer.err == (f"chess-cxr: {failed} of {count} films could not be made; the table gives the reasons\n")
    rows = list(csv.DictReader(answer.out.splitlines()))
    reasons = [row["reason"] for row in rows if row["reason"]]
    assert len(rows) == count and len(reasons) == failed and all(part in reason for reason in reasons), reasons


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--size-mm", "200-200", *SPACING), "larger than the lung is wide"),
        (("--size-mm", "100-100", *SPACING), "ask for"),
        (("--size-mm", "5-30"), "does not say its pixel spacing; give it with --spacing-mm"),
    ],
)
def test_a_random_nodule_that_cannot_be_has_its_reason_in_its_row(
    words: tuple[str, ...], part: str, model: Path, data: Path, film: Path, tmp_path: Path
) -> None:
    given = ("--random", "1", "--lungs", data / "lungs", *words, "--quiet")
    assert_failed(run("generate", model, "--films", film, *given, "--out", tmp_path / "out"), 1, 1, part)


def test_a_broken_film_among_good_ones_costs_the_good_ones_nothing(
    model: Path, data: Path, film: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(film.read_bytes()[:200])
    words = ("--random", "2", "--size-mm", "20-30", *SPACING, "--quiet")
    answer = run("generate", model, "--films", broken, film, *words, "--out", tmp_path / "out", "--json")
    assert answer.code == 1 and answer.err.startswith("chess-cxr: 1 of 2 films could not be made")
    records = json.loads(answer.out)
    assert [bool(record["reason"]) for record in records] == [True, False]
    check_rows(tmp_path / "out", model, [film], [1])
