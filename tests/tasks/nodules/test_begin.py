"""Training on CT nodules, and going on from there."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy

from chess_cxr.records import UsageError
from chess_cxr.tasks.nodules.config import NodulesConfig
from chess_cxr.tasks.nodules.films import list_sources, read_source
from chess_cxr.tasks.nodules.model import load_nodule_generator
from chess_cxr.tasks.nodules.score import measure_nodule
from chess_cxr.tasks.nodules.train import finetune_nodules
from same_end import Enough, stop_after

ENCODER = "random:regnetx_002@64"
FLOW = NodulesConfig(network="flow", size=64, film_size=128, width=2, steps=2, batch=2, perceptual="none")


@pytest.fixture(scope="module")
def some_ct(real_films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 24 CT nodules."""
    folder, whole = tmp_path_factory.mktemp("ct"), real_films / "ct_nodules"
    table = pd.read_csv(whole / "nodules.csv").head(24)
    table.to_csv(folder / "nodules.csv", index=False)
    for name in [*table["nodule"], *table["mask"]]:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(whole / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "first"
    finetune_nodules(ENCODER, ["phantom:12@128"], out, FLOW)
    return out


@pytest.mark.real_films
def test_ct_nodules_become_films_of_their_patients(real_films: Path) -> None:
    sources = list_sources(str(real_films / "ct_nodules"), 128)
    assert len(sources) == 855
    films = [read_source(source) for source in sources[:8]]
    assert sum(film.has_nodule for film in films) >= 4  # the others are smaller than 20 pixels of 1 mm, or vessels
    for film, again in zip(films, map(read_source, sources[:8]), strict=True):
        assert film.film_HW.shape == (128, 128) and film.kind == "ct" and film.group.startswith("1.3.6.1.4.1.14519")
        assert np.array_equal(film.film_HW, again.film_HW) and np.array_equal(film.mask_HW, again.mask_HW)
        if film.has_nodule:
            assert film.lung_HW is not None and film.lung_HW[film.mask_HW].mean() > 0.7
    contrasts = [measure_nodule(film.film_HW, film.mask_HW).contrast for film in films if film.has_nodule]
    assert np.median(contrasts) > 0.01 and len({film.film_HW.tobytes() for film in films}) == 8


@pytest.mark.real_films
def test_a_flow_learns_from_ct_nodules_and_says_synthetic(some_ct: Path, tmp_path: Path) -> None:
    result = finetune_nodules(ENCODER, [str(some_ct)], tmp_path / "ct", FLOW, val=0)
    assert result.kinds == ("ct",) and "ct (SYNTHETIC)" in result.as_text()
    assert result.metrics["background_equal"].value == 1 and result.spread is not None


def test_a_model_begun_from_another_starts_with_its_weights_and_goes_on_to_the_bit(begun: Path, tmp_path: Path) -> None:
    still = replace(FLOW, begin_from=str(begun), learning_rate=1e-12, seed=1)
    result = finetune_nodules(ENCODER, ["phantom:12@128#5"], tmp_path / "still", still)
    first, second = (
        safetensors.numpy.load_file(folder / "model.safetensors") for folder in (begun, tmp_path / "still")
    )
    for name in first:
        if name not in ("line_2", "spread_Q", "kinds_2"):  # these are of the new films
            np.testing.assert_allclose(second[name], first[name], atol=1e-7, err_msg=name)
    assert result.begun_from == load_nodule_generator(begun).sha256
    assert json.loads((tmp_path / "still/config.json").read_text())["finetune"]["begin_from"] == "first"

    config = replace(FLOW, begin_from=str(begun), steps=4, checkpoint_every=2)
    finetune_nodules(ENCODER, ["phantom:12@128"], tmp_path / "whole", config)

    with pytest.raises(Enough):
        finetune_nodules(ENCODER, ["phantom:12@128"], tmp_path / "parts", config, on_step=stop_after(3))
    with pytest.raises(UsageError, match="another configuration|differs|begun_from"):
        finetune_nodules(ENCODER, ["phantom:12@128"], tmp_path / "parts", replace(config, begin_from=""))
    finetune_nodules(ENCODER, ["phantom:12@128"], tmp_path / "parts", config)
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


@pytest.mark.parametrize("change", [{"width": 3}, {"network": "spade", "width": 4}])
def test_a_model_of_another_shape_is_no_beginning(change: dict[str, object], begun: Path, tmp_path: Path) -> None:
    config = replace(FLOW, begin_from=str(begun), **change)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="to begin from is of the network flow, mode inpaint, size 64, width 2"):
        finetune_nodules(ENCODER, ["phantom:12@128"], tmp_path / "out", config)
