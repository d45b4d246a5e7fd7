"""Pre-training as Python users call it: beginnings, positives, collapse, where numbers go, the page of a run."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chess_cxr.encoders.load import load_encoder
from chess_cxr.film_jpeg import encode_film
from chess_cxr.methods import METHODS, build_method
from chess_cxr.methods.simclr import SimCLRConfig
from chess_cxr.pretraining.export import export
from chess_cxr.pretraining.page import write_run_page
from chess_cxr.pretraining.presets import PRESETS, PretrainConfig, build_config, read_pretrain_config
from chess_cxr.pretraining.pretrain import RunPlan, continue_from, pretrain, pretrain_run
from chess_cxr.pretraining.runs import read_metrics
from chess_cxr.records import ChessError, ImageRecord, UsageError
from chess_cxr.store import StoredFilm, open_store, write_store
from chess_cxr.training.checkpoint import find_checkpoint
from chess_cxr.training.config import TrackingConfig
from chess_cxr.training.loop import StepReport
from chess_cxr.training.run import describe, read_run_config
from chess_cxr.views import ViewConfig
from same_end import Enough, stop_after
from tiny_runs import build_tiny_config


@pytest.fixture(scope="module")
def encoder(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(pretrained, tmp_path_factory.mktemp("first") / "encoder")


def read_weights(encoder: Path) -> dict[str, torch.Tensor]:
    return load_encoder(encoder).module.state_dict()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_configuration_away(name: str, small_store: Path, tmp_path: Path) -> None:
    tiny = build_tiny_config(2)
    groups = {"norm_groups": 2} if name == "moco_v2" else {}
    method = METHODS[name][0](architecture="test_resnet", embedding=16, **groups)
    config = replace(tiny, method=method, training=replace(tiny.training, probe_every=2))
    assert read_pretrain_config(describe(config)) == config
    run = pretrain(small_store, tmp_path / "run", config)
    line = read_metrics(run)[-1]
    names = ("loss/encoder", "probe/alignment", "probe/uniformity", "probe/effective_rank", "positive_similarity")
    assert line["step"] == 2 and np.isfinite([line[name] for name in names]).all()
    assert name.split("_")[0] in load_encoder(export(run, tmp_path / "encoder")).training.method.lower()


def test_a_run_tells_what_share_of_its_machine_it_reaches(small_store: Path, tmp_path: Path) -> None:
    line = read_metrics(pretrain(small_store, tmp_path / "run", build_tiny_config()))[-1]
    assert line["gflop_per_second"] > 0 and 0 < line["gemm_peak_share"] < 1.2


def test_a_run_without_a_method_name_is_moco(small_store: Path) -> None:
    described = describe(build_tiny_config())
    del described["method"]["name"]
    assert read_pretrain_config(described) == build_tiny_config()


def test_a_run_that_begins_from_an_encoder_begins_with_its_weights(
    encoder: Path, small_store: Path, tmp_path: Path
) -> None:
    tiny = build_tiny_config()
    only_heads = replace(tiny, training=replace(tiny.training, frozen_steps=4))
    run = pretrain(small_store, tmp_path / "run", only_heads, begin_from=str(encoder))
    after = export(run, tmp_path / "encoder")
    before, same = read_weights(encoder), read_weights(after)
    assert [name for name in before if not torch.equal(before[name], same[name])] == []
    assert load_encoder(after).training.method == "MoCo v2, preset demo, begun from encoder"
    assert len(read_run_config(run)["data"]["begun_from_sha256"]) == 64


def test_a_run_that_begins_from_an_encoder_keeps_it_still_while_its_head_is_new_and_continues(
    encoder: Path, small_store: Path, tmp_path: Path
) -> None:
    config = continue_from(build_tiny_config(), str(encoder))
    assert config.training.frozen_steps == 0 and config.begin_from == str(encoder)  # it brings its head along
    other = replace(build_tiny_config(), method=SimCLRConfig("test_resnet"))
    assert continue_from(other, str(encoder)).training.frozen_steps == 1
    run = pretrain(small_store, tmp_path / "run", config)
    before, after = read_weights(encoder), read_weights(export(run, tmp_path / "encoder"))
    assert [name for name in before if before[name].ndim == 4 and torch.equal(before[name], after[name])] == []
    assert pretrain(small_store, run, build_tiny_config(), begin_from=str(encoder)) == run
    with pytest.raises(UsageError, match="begin_from"):
        pretrain(small_store, run, build_tiny_config())


def test_pre_training_begins_from_imagenet_with_one_grey_channel(small_store: Path, tmp_path: Path) -> None:
    tiny = build_tiny_config(2)
    run = pretrain(small_store, tmp_path / "run", tiny, begin_from="imagenet:tf_efficientnet_lite0")
    begun = load_encoder(export(run, tmp_path / "encoder"))
    assert (begun.architecture, begun.contract.channels) == ("tf_efficientnet_lite0", 1)
    assert (begun.contract.mean, begun.contract.std) == ((0.5,), (0.5,))


def test_an_encoder_of_another_network_is_no_beginning(encoder: Path, small_store: Path, tmp_path: Path) -> None:
    config = replace(build_tiny_config(), begin_from="random:regnetx_002@32")
    with pytest.raises(UsageError, match="is a regnetx_002, not a test_resnet"):
        pretrain(small_store, tmp_path / "run", config)


def test_positives_of_a_patient_reach_the_run(small_store: Path, tmp_path: Path) -> None:
    of_film = build_tiny_config(2)
    of_patient = replace(of_film, positives="patient")
    losses = [
        read_metrics(pretrain(small_store, tmp_path / config.positives, config))[0]["loss/encoder"]
        for config in (of_film, of_patient)
    ]
    assert losses[0] != losses[1]


# Collapse


@pytest.fixture(scope="module")
def one_picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of one picture, over and over: whatever a network makes of it is collapsed."""
    path = tmp_path_factory.mktemp("store") / "one.lance"
    picture = np.linspace(0, 1, 48 * 40, dtype=np.float32).reshape(48, 40)

    def list_films() -> Iterator[StoredFilm]:
        for number in range(16):
            record = ImageRecord(uid=f"{number:032x}", patient=f"p{number}", split="train")
            yield StoredFilm(record, *encode_film(picture, 48))

    write_store(path, list_films(), [], "one picture (SYNTHETIC)")
    return path


def build_collapsed_config(stop: bool) -> PretrainConfig:
    tiny = build_tiny_config(12)
    training = replace(tiny.training, log_every=1, warmup=0.0, stop_on_collapse=stop, checkpoint_every=100)
    return replace(tiny, views=ViewConfig(size=32), training=training)


def test_collapse_is_said_once_and_the_run_goes_on(one_picture: Path, tmp_path: Path) -> None:
    said: list[str] = []
    run = pretrain(one_picture, tmp_path / "run", build_collapsed_config(stop=False), say=said.append)
    assert [line[:21] for line in said] == ["collapse: at step 3 t"]
    assert read_metrics(run)[-1]["step"] == 12
    assert "collapse: at step 3 " in write_run_page(run).read_text("utf-8")


def test_collapse_can_end_the_run_with_its_checkpoint_written(one_picture: Path, tmp_path: Path) -> None:
    with pytest.raises(ChessError, match="stopped at step 3 of 12: collapse") as error:
        pretrain(one_picture, tmp_path / "run", build_collapsed_config(stop=True), say=lambda line: None)
    assert error.value.exit_code == 1
    newest = find_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest is not None and newest.name == "step_00000003.safetensors"


# BatchNorm's groups


def test_one_process_that_would_normalise_keys_with_their_queries_is_refused_before_it_begins(
    small_store: Path, tmp_path: Path
) -> None:
    tiny = build_tiny_config()
    one_group = replace(tiny, method=replace(tiny.method, norm_groups=1))
    with pytest.raises(UsageError, match=r"set method\.norm_groups to 8"):
        pretrain(small_store, tmp_path / "run", one_group)
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_begun_with_one_group_still_continues(small_store: Path, tmp_path: Path) -> None:
    tiny = build_tiny_config(4)
    config = replace(tiny, method=replace(tiny.method, norm_groups=1))
    method = build_method(config.method, steps=4)
    plan = RunPlan(config.training, config.views, config.pixels)

    class Stop(Exception):
        pass

    def stop_after_two(report: StepReport, _probe: object) -> None:
        if report.step == 3:
            raise Stop

    with pytest.raises(Stop):
        pretrain_run(
            tmp_path / "run", method, [open_store(small_store)], plan, describe(config), stop_after_two
        )  # fmt: skip
    assert find_checkpoint(tmp_path / "run" / "checkpoints") is not None
    assert read_metrics(pretrain(small_store, tmp_path / "run", config))[-1]["step"] == 4


def test_a_preset_continues_a_run_that_an_earlier_version_of_it_began(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = build_tiny_config()
    earlier = replace(tiny, method=replace(tiny.method, norm_groups=4))
    run = pretrain(small_store, tmp_path / "run", replace(earlier, preset="demo"))
    monkeypatch.setitem(PRESETS, "demo", lambda: tiny)
    assert build_config("demo", run) == earlier and build_config("demo", tmp_path / "other") == tiny
    assert pretrain(small_store, run, "demo") == run
    with pytest.raises(UsageError, match=r"method\.norm_groups was 4, is 2"):
        pretrain(small_store, run, tiny)


# Where numbers go


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_numbers_go_to_every_tracker_that_is_asked_for(small_store: Path, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'tracked.db'}"
    tracking = TrackingConfig(("tensorboard", "mlflow", "wandb"), mlflow_uri=database)
    run = pretrain(small_store, tmp_path / "run", build_tiny_config(), tracking=tracking)
    import mlflow  # takes seconds, and one test needs it

    client = mlflow.MlflowClient(database)
    [tracked] = client.search_runs([client.get_experiment_by_name("chess-cxr").experiment_id])
    assert tracked.info.status == "FINISHED" and tracked.data.params["training.steps"] == "4"
    last = read_metrics(run)[-1]
    for name in ("loss/encoder", "probe/effective_rank"):
        history = client.get_metric_history(tracked.info.run_id, name)
        assert (history[-1].step, history[-1].value) == (4, last[name])
    assert list((run / "tensorboard").iterdir()) and list((run / "wandb").glob("offline-run-*/run-*.wandb"))


def test_a_run_may_be_continued_with_other_trackers(small_store: Path, tmp_path: Path) -> None:
    run = pretrain(small_store, tmp_path / "run", build_tiny_config())
    assert pretrain(small_store, run, build_tiny_config(), tracking=TrackingConfig(())) == run


# The page of a run


def test_a_runs_page_shows_the_views_of_its_first_step(small_store: Path, tmp_path: Path) -> None:
    run = pretrain(small_store, tmp_path / "run", build_tiny_config())
    page = write_run_page(run, [small_store], films=3, synthetic=True)
    text = page.read_text("utf-8")
    assert page == run / "report.html" and text.count("data:image/png;base64,") == 6
    assert "finished, 4 of 4 steps" in text and "SYNTHETIC" in text
    assert write_run_page(run).read_text("utf-8").count("data:image/png") == 0
    with pytest.raises(UsageError, match="is not a run"):
        write_run_page(tmp_path)


# What cannot work


@pytest.mark.parametrize(
    ("part", "entry", "value", "message"),
    [
        ("training", "learning_rate", math.inf, "learning rate above 0"),
        ("training", "momentum", 1.0, "momentum of 0 or more, below 1"),
        ("training", "weight_decay", -1.0, "weight decay of 0 or more"),
        ("training", "steps", 10**15, "at most"),
        ("training", "seed", 2**63, "below 2"),
        ("method", "temperature", math.nan, "temperature above 0"),
        ("method", "embedding", 0, "embedding must be at least 1"),
        ("method", "norm_groups", 8, "norm_group of one film"),
    ],
)
def test_numbers_that_no_run_can_have_are_refused_before_it_begins(
    part: str, entry: str, value: float, message: str, small_store: Path, tmp_path: Path
) -> None:
    tiny = build_tiny_config()
    config = replace(tiny, **{part: replace(getattr(tiny, part), **{entry: value})})
    with pytest.raises(UsageError, match=message):
        pretrain(small_store, tmp_path / "run", config)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"size": 0}, "size must be 1 to"),
        ({"size": 32, "gamma": (0.0, 1.0)}, "gamma must be above 0"),
        ({"size": 32, "noise": (5.0, 1.0)}, "noise should be its smallest and its largest"),
        ({"size": 32, "tone_p": 1.5}, "tone_p is a probability"),
        ({"size": 32, "shift": math.nan}, "shift must be a finite number"),
        ({"size": 32, "crop_area": (0.5, 2.0)}, "crop_area no more than 1"),
    ],
)
def test_views_that_cannot_be_are_refused(views: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ViewConfig(**views)


@pytest.mark.parametrize("splits", [(), ("train", "test"), ("val",)])
def test_held_out_films_cannot_be_trained_on_by_configuration(splits: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="val and test never are"):
        replace(build_tiny_config(), splits=splits)


def test_a_store_that_is_named_twice_is_not_trained_on_twice(small_store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="occurs more than once"):
        pretrain([small_store, small_store.parent / "." / small_store.name], tmp_path / "run", build_tiny_config())


def test_fewer_films_than_a_batch_are_said_and_one_film_is_refused(one_picture: Path, tmp_path: Path) -> None:
    tiny, said = build_tiny_config(1), list[str]()
    large = replace(tiny, training=replace(tiny.training, batch=32))
    pretrain(one_picture, tmp_path / "run", large, say=said.append)
    assert said == ["the 16 films are fewer than a batch of 32, which then holds films twice"]
    record = ImageRecord(uid="0" * 32, patient="p", split="train")
    jpeg = encode_film(np.full((40, 40), 0.5, np.float32), 40)
    write_store(tmp_path / "lone.lance", [StoredFilm(record, *jpeg)], [], "")
    with pytest.raises(UsageError, match="one film to train on"):
        pretrain(tmp_path / "lone.lance", tmp_path / "other", tiny)


def test_a_finished_run_says_so(small_store: Path, tmp_path: Path) -> None:
    run, said = pretrain(small_store, tmp_path / "run", build_tiny_config()), list[str]()
    pretrain(small_store, run, build_tiny_config(), say=said.append)
    assert said == [f"{run} is finished already, at step 4; nothing was trained"]


def test_broken_lines_of_a_log_are_counted_and_left_out(small_store: Path, tmp_path: Path) -> None:
    short = build_tiny_config()
    longer = replace(short, training=replace(short.training, checkpoint_every=3))
    said: list[str] = []

    with pytest.raises(Enough):
        pretrain(small_store, tmp_path / "run", longer, stop_after(4))
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text("nonsense\n[]\n" + metrics.read_text())
    pretrain(small_store, tmp_path / "run", longer, say=said.append)
    assert said == [f"2 lines of {metrics} are broken and are left out"]
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [2, 4]


def test_a_page_shows_no_views_of_films_that_the_run_does_not_know(
    small_store: Path, one_picture: Path, tmp_path: Path
) -> None:
    run = pretrain(small_store, tmp_path / "run", build_tiny_config())
    with pytest.raises(UsageError, match="trained on other films than these"):
        write_run_page(run, [one_picture])


def test_where_an_encoder_and_a_list_of_films_lay_does_not_travel_with_the_weights(
    encoder: Path, small_store: Path, tmp_path: Path
) -> None:
    films = tmp_path / "films.csv"
    open_store(small_store).films[["uid"]].to_csv(films, index=False)
    config = replace(build_tiny_config(), films=str(films))
    run = pretrain(small_store, tmp_path / "run", config, begin_from=f"{encoder}/")
    assert read_run_config(run)["begin_from"] == str(encoder)
    exported = load_encoder(export(run, tmp_path / "encoder"))
    assert (exported.training.config["begin_from"], exported.training.config["films"]) == ("encoder", "films.csv")
    written = "".join((tmp_path / "encoder" / name).read_text() for name in ("config.json", "README.md"))
    assert str(encoder.parent) not in written and str(tmp_path) not in written
