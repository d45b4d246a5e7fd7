"""Folders written by version 0.1 load, say the same, and what was begun then is finished now."""

import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import chess_cxr
from chess_cxr import BonesConfig, NodulesConfig, cli
from chess_cxr.deidentify.copies import deidentify_files
from chess_cxr.deidentify.options import DeidentifyOptions
from chess_cxr.ingest.options import IngestOptions, QualityOptions
from chess_cxr.ingest.pipeline import ingest_films
from chess_cxr.methods import METHODS
from chess_cxr.pretraining.presets import PRESETS
from chess_cxr.records import SourceFilm
from chess_cxr.sources.folder import read_folder
from tiny_runs import build_tiny_config

ARCHIVES = [Path(__file__).parent / "earlier" / f"{name}.tar.xz" for name in ("v0.1", "v0.1_more")]
KEY = bytes(16)
Capture = pytest.CaptureFixture[str]
BONES = BonesConfig(size=32, crop=32, decoder="tiny", perceptual="none", steps=4, batch=2, checkpoint_every=2)
NODULES = NodulesConfig(
    size=64, film_size=96, width=4, latent=8, steps=4, batch=2, perceptual="none", checkpoint_every=2
)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    for path in ARCHIVES:
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def films(earlier: Path) -> list[np.ndarray]:
    read = chess_cxr.open_store(earlier / "films.lance").read_films(np.arange(4))
    return [film.astype(np.float32) / 255 for film in read]


def assert_same_weights(made: Path, expected: Path) -> None:
    """Weights may differ by what another processor's sums round differently."""
    ours, theirs = (safetensors.numpy.load_file(folder / "model.safetensors") for folder in (made, expected))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, rtol=1e-3, atol=1e-4, err_msg=name)


def test_an_earlier_encoder_says_the_same(earlier: Path, films: list[np.ndarray]) -> None:
    said = chess_cxr.load_encoder(earlier / "encoder").embed(films)
    np.testing.assert_allclose(said, np.load(earlier / "expected.npz")["encoder"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["linear", "mlp", "attentive", "full"])
def test_an_earlier_classifier_says_the_same(mode: str, earlier: Path, films: list[np.ndarray]) -> None:
    said = chess_cxr.load_classifier(earlier / f"classifier_{mode}").predict(films)
    np.testing.assert_allclose(said, np.load(earlier / "expected.npz")[f"classifier_{mode}"], rtol=1e-4, atol=1e-5)


def test_a_pretraining_run_begun_earlier_is_finished(earlier: Path) -> None:
    run = chess_cxr.pretrain(earlier / "films.lance", earlier / "run_begun", build_tiny_config())
    exported = chess_cxr.export(run, earlier / "exported")
    assert_same_weights(exported, earlier / "encoder")


def test_a_bone_model_begun_earlier_is_finished(earlier: Path, films: list[np.ndarray]) -> None:
    out = earlier / "bones_begun"
    chess_cxr.finetune_bones(str(earlier / "encoder"), ["phantom:8@64#2"], out, BONES, test=0.25)
    assert_same_weights(out, earlier / "bones")
    new, old = (chess_cxr.load_bone_suppressor(folder) for folder in (out, earlier / "bones"))
    np.testing.assert_allclose(new.suppress(films[0]), old.suppress(films[0]), atol=1e-3)


def test_a_nodule_generator_begun_earlier_is_finished(earlier: Path) -> None:
    out = earlier / "nodules_begun"
    chess_cxr.finetune_nodules(str(earlier / "encoder"), ["phantom:12@96"], out, NODULES)
    assert_same_weights(out, earlier / "nodules")
    chess_cxr.load_nodule_generator(earlier / "nodules")


@pytest.mark.parametrize("name", ["simclr", "byol", "vicreg", "moco_v3"])
def test_a_run_of_every_method_begun_earlier_is_finished(name: str, earlier: Path, tmp_path: Path) -> None:
    demo = PRESETS["demo"]()
    training = replace(
        demo.training, steps=4, batch=8, log_every=2, probe_every=4, checkpoint_every=2, keep_checkpoints=1,
        optimizer="sgd",
    )  # fmt: skip
    small = {"hidden": 16} if name in ("byol", "moco_v3") else {}
    method = METHODS[name][0]("test_convnext", 16, **small)
    config = replace(demo, method=method, views=replace(demo.views, size=32), training=training)
    steps: list[int] = []
    run = chess_cxr.pretrain(
        earlier / "films.lance", earlier / f"run_{name}", config, lambda report, _: steps.append(report.step)
    )
    assert steps == [3, 4]
    chess_cxr.load_encoder(chess_cxr.export(run, tmp_path / "encoder"))


def test_earlier_models_make_the_same_pictures(earlier: Path, films: list[np.ndarray]) -> None:
    expected = np.load(earlier / "expected_more.npz")
    made = chess_cxr.load_bone_suppressor(earlier / "bones").suppress(films[0])
    np.testing.assert_allclose(made, expected["bones"], atol=1e-4)
    row, column = films[0].shape[0] // 2, films[0].shape[1] // 2
    mask_HW = np.zeros(films[0].shape, bool)
    mask_HW[row - 6 : row + 6, column - 6 : column + 6] = True
    painted = chess_cxr.load_nodule_generator(earlier / "nodules").paint(films[0], mask_HW, 3)
    np.testing.assert_allclose(painted, expected["nodules"], atol=1e-4)
    assert np.abs(painted - films[0]).max() > 1e-3


def test_an_ingest_begun_earlier_is_finished(earlier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(earlier)
    listing = [
        SourceFilm(f"pictures/{n}.png", f"{n}.png", f"p{n // 3}", age_years=40.0 + n, labels={"finding": float(n % 2)})
        for n in range(12)
    ]
    options = IngestOptions(KEY, quality=QualityOptions(quarantine_not_chest=False, contrast_reject=0))
    summary = ingest_films(listing, Path("ingest_begun.lance"), options)
    assert (summary.resumed, summary.films, summary.patients) == (4, 12, 4)
    films = chess_cxr.open_store("ingest_begun.lance").films
    assert films["age_years"].tolist() == list(range(40, 52)) and films["finding"].tolist() == [0, 1] * 6


def test_copies_begun_earlier_are_finished(earlier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(earlier)
    before = {path: path.read_bytes() for path in Path("copies_begun").rglob("*.dcm")}
    summary = deidentify_files(read_folder([Path("dicom")]), Path("copies_begun"), DeidentifyOptions(KEY))
    copies = {path: path.read_bytes() for path in Path("copies_begun").rglob("*.dcm")}
    assert (len(before), summary.copied, len(copies)) == (3, 6, 6) and before.items() <= copies.items()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("weights show encoder", "test_resnet"),
        ("runs run_begun", "run_begun"),
        ("predict classifier_linear film.png", "film.png"),
        ("predict bones film.png --out clear", "film.png"),
        ("embed encoder films.lance", "96 films embedded"),
        ("audit films.lance", "96 films"),
        ("select films.lance --encoder encoder --films 4 --out some.csv", "some.csv"),
    ],
)
def test_commands_take_earlier_folders(
    words: str, answer: str, earlier: Path, films: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(earlier)
    Image.fromarray(np.rint(255 * films[0]).astype(np.uint8)).save("film.png")
    code = cli.run(words.split())
    told = capsys.readouterr()
    assert code == 0, told.err
    assert answer in told.out
