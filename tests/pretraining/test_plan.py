"""Plans: arithmetic by hand, published speeds, real memory, and this machine's calibration."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chess_cxr.encoders.encoder import build_encoder
from chess_cxr.methods.byol import BYOLConfig
from chess_cxr.methods.moco import MoCo
from chess_cxr.pretraining.calibrate import (
    Calibration,
    calibrate,
    find_calibration,
    read_calibration,
    write_calibration,
)
from chess_cxr.pretraining.gpus import GPUS, SHORT_NAMES, parse_gpus
from chess_cxr.pretraining.plan import (
    SentBytes,
    count_sent_bytes,
    estimate_gpu_seconds,
    estimate_sending_seconds,
    estimate_step_memory,
    plan,
    tell_bytes,
    tell_hours,
)
from chess_cxr.pretraining.presets import PretrainConfig, chess_paper, demo
from chess_cxr.records import UsageError
from chess_cxr.training.speed import count_step_cost

CALIBRATION = Calibration(
    machine="a machine", date="2026-01-01", preset="demo", method="moco_v2", architecture="test_resnet", size=64,
    batch=64, precision="float32", threads=1, data="10 films of films.lance", steps=20, step_flops=10**9,
    peak_gflops=100.0, step_seconds=0.1, probe_seconds=2.0, checkpoint_seconds=1.0, start_seconds=5.0,
    pairs_a_core_second=1000.0, film_bytes=20_000.0,
)  # fmt: skip


def shrink(config: PretrainConfig) -> PretrainConfig:
    return replace(config, training=replace(config.training, batch=16, steps=1000, probe_every=100))


def choose_half_resnet18() -> PretrainConfig:
    paper = chess_paper()
    method = replace(paper.method, architecture="resnet18")
    return replace(paper, method=method, training=replace(paper.training, precision="bfloat16"))


class Classifier(nn.Module):
    """ResNet-50 on colour pictures of 224 x 224, as the published speeds were measured."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = build_encoder("resnet50")
        self.encoder.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.head = nn.Linear(2048, 1000)
        self.signals: dict[str, float] = {}

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"all": list(self.parameters())}

    def losses(self, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield "all", F.cross_entropy(self.head(self.encoder(batch)), torch.zeros(len(batch), dtype=torch.long))

    def after_step(self) -> None:
        pass


@pytest.mark.parametrize(
    ("gpu", "precision", "published"),
    [
        # images/s of one GPU: NVIDIA DeepLearningExamples, PyTorch ResNet50 v1.5, README, NGC 21.03
        ("A100-SXM4-80GB", "float16", 2470),
        ("A100-SXM4-80GB", "float32", 938),
        ("V100-SXM2-32GB", "float16", 1156),
        ("V100-SXM2-32GB", "float32", 356),
    ],
)
def test_published_speeds_of_resnet50_are_met_within_36_percent(gpu: str, precision: str, published: int) -> None:
    with torch.device("meta"):
        method = Classifier()
    method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    cost = count_step_cost(method, (128, 3, 224, 224), precision)
    weights = sum(4 * parameter.numel() for parameter in method.parameters())
    seconds = sum(estimate_gpu_seconds(cost, weights, parse_gpus(gpu).gpu, precision))
    assert 128 / seconds == pytest.approx(published, rel=0.36)


def test_gpus_are_read_with_nodes_counts_and_short_names() -> None:
    fleet = parse_gpus("4x8xH100")
    assert (fleet.nodes, fleet.gpus_a_node, fleet.ranks, fleet.gpu.name) == (4, 8, 32, "H100-SXM5-80GB")
    assert parse_gpus("a100").ranks == 1 and parse_gpus("2xl4").gpu.memory_gb == 24
    assert parse_gpus("8xA100-SXM4-40GB").gpu.memory_gb == 40
    assert {name.lower() for name in SHORT_NAMES.values()} <= {gpu.name.lower() for gpu in GPUS}


@pytest.mark.parametrize("text", ["8xH900", "xH100", "8x", "0xH100", "-1xH100", "8 H100", "8xH100x2"])
def test_an_unknown_gpu_is_refused_in_one_line_that_names_the_known(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_gpus(text)
    assert "\n" not in str(caught.value) and ("H100" in str(caught.value))


def test_the_run_of_the_paper_on_eight_gpus_adds_up() -> None:
    made = plan(chess_paper(), 4_800_000, "8xH100", price=3.0)
    assert made.steps == 3_750_000 and made.passes == pytest.approx(200)
    assert made.store_bytes == pytest.approx(4.8e6 * 39e3)
    assert made.step_seconds == made.compute_seconds + made.memory_seconds + made.traffic_seconds
    assert made.hours == pytest.approx(made.steps * made.step_seconds / 3600)
    assert made.cost == pytest.approx(3 * made.gpu_hours) == pytest.approx(24 * made.hours)
    assert 1e9 < made.memory_bytes < made.memory_limit_bytes == 80e9
    assert not made.measured and "calculated, not measured" in made.as_text()
    json.dumps(made.as_dict())


def test_more_gpus_are_faster_and_send_more_gradients() -> None:
    config = choose_half_resnet18()
    one, eight, many = (plan(config, 10**6, gpus, network_gbit=3200) for gpus in ("H100", "8xH100", "4x8xH100"))
    assert one.step_seconds > eight.step_seconds > many.step_seconds
    assert one.gradient_bytes == one.gathered_bytes == one.traffic_seconds == 0
    assert many.gradient_bytes > eight.gradient_bytes > 0
    assert eight.gathered_bytes > many.gathered_bytes > 0  # views stay within the node, and each rank has fewer


def test_ranks_with_as_few_films_as_there_are_norm_groups_can_be_planned() -> None:
    planned = plan(chess_paper(), 4_800_000, "4x8xA100")
    assert planned.batch // planned.ranks == chess_paper().method.norm_groups == 8


def test_a_slow_network_makes_more_gpus_no_faster() -> None:
    config = choose_half_resnet18()
    fast, slow = (plan(config, 10**6, "4x8xH100", network_gbit=gbit) for gbit in (100, 10))
    assert slow.traffic_seconds > 5 * fast.traffic_seconds
    assert slow.step_seconds > plan(config, 10**6, "8xH100").step_seconds


def test_what_ranks_send_is_that_of_rings_written_out() -> None:
    config, ranks = chess_paper(), 8
    sent = count_sent_bytes(config, 80, ranks)
    assert sent.gradients == 2 * (80 / ranks) * (ranks - 1)
    view, key = 512 * 512, 128 * 4
    assert sent.within_node == (ranks - 1) * 32 * (view + key) and sent.embeddings == (ranks - 1) * 32 * key
    symmetric = replace(config, method=replace(config.method, symmetric=True))
    twice = count_sent_bytes(symmetric, 80, ranks)
    assert (twice.within_node, twice.embeddings) == (2 * sent.within_node, sent.embeddings)
    assert count_sent_bytes(config, 80, 1) == SentBytes(0, 0, 0)
    assert count_sent_bytes(config, 80, ranks, a_node=4).within_node == 3 * 32 * (view + key)
    single = replace(config, method=replace(config.method, norm_groups=1))
    assert count_sent_bytes(single, 80, ranks, a_node=1).within_node == 7 * 32 * (view + key)
    assert count_sent_bytes(replace(config, method=BYOLConfig()), 80, ranks).within_node == 0


def test_gradients_are_sent_while_backward_runs_and_views_within_the_node() -> None:
    fleet, bucket = parse_gpus("2x4xH100"), 25 * 2**20
    network, link = 0.7 * 100 / 8 * 1e9, 0.7 * 450e9
    many = SentBytes(40 * 2 * bucket, 1e9, 1e6)
    beside = 1e9 / link + 1e6 / network
    hidden = estimate_sending_seconds(many, fleet, 100, computing=1000.0)
    assert hidden == pytest.approx(2 * bucket / network + beside)  # all but the last of 40 buckets
    seen = estimate_sending_seconds(many, fleet, 100, computing=0.1)
    assert seen == pytest.approx(40 * 2 * bucket / network - 0.05 + beside)
    assert estimate_sending_seconds(SentBytes(1000.0, 0, 0), fleet, 100, 1.0) == pytest.approx(1000 / network)
    assert estimate_sending_seconds(SentBytes(0, 0, 0), fleet, 100, 1.0) == 0


def test_epochs_take_the_place_of_steps() -> None:
    assert plan(chess_paper(), 1_000_001, "8xH100", epochs=2).steps == 7813  # 2,000,002 films in batches of 256


def test_this_machine_takes_start_steps_probes_and_checkpoints() -> None:
    config = shrink(demo())
    made = plan(config, 500, calibration=CALIBRATION)
    step = 0.1 * made.step_flops / 10**9
    events = 1000 / 100 * 2.0 + 1000 / config.training.checkpoint_every * 1.0
    assert made.step_seconds == pytest.approx(step) and made.measured
    assert made.hours * 3600 == pytest.approx(5 + 1000 * step + events)
    assert made.store_bytes == 500 * 20_000 and made.loader_cores == pytest.approx(16 / step / 1000)
    assert "scaled by FLOPs" not in made.as_text()
    other = replace(config, views=replace(config.views, size=96))
    assert "scaled by FLOPs" in plan(other, 500, calibration=CALIBRATION).as_text()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"images": 0}, "--images must be 1 or more"),
        ({"price": -1.0}, "must be 0 or more"),
        ({"price": float("nan")}, "must be 0 or more"),
        ({"network_gbit": 0.0}, "above 0"),
        ({"gpus": "7xH100"}, "a batch of 256 films cannot be shared by 7 GPUs"),
        ({"gpus": ""}, "chess-cxr plan --calibrate"),
    ],
)
def test_what_cannot_be_planned_is_refused(asked: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(chess_paper(), **({"images": 100, "gpus": "8xH100"} | asked))  # type: ignore[arg-type]


def test_memory_counts_weights_gradients_moments_and_queue() -> None:
    config = shrink(demo())
    method = MoCo(config.method)
    memory = estimate_step_memory(method, (2, 16, 1, 64, 64), config.training)
    weights = sum(4 * it.numel() for group in method.get_parameters().values() for it in group)
    assert memory.parameters == memory.gradients == memory.followers == weights
    assert memory.optimizer == 2 * weights  # AdamW
    assert memory.buffers >= 4 * config.method.queue * config.method.embedding
    assert memory.batch == 2 * 16 * 64 * 64 * (4 + 1)
    assert memory.total == sum(vars(memory).values())
    sgd = replace(config.training, optimizer="sgd", momentum=0.0)
    assert estimate_step_memory(method, (2, 16, 1, 64, 64), sgd).optimizer == 0


def test_a_calibration_is_a_short_real_run_and_comes_back_from_its_file(small_store: Path, tmp_path: Path) -> None:
    measured = calibrate(shrink(demo()), small_store, seconds=0)
    assert measured.steps >= 20 and measured.data == "96 films of small.lance"
    for name in ("peak_gflops", "step_seconds", "probe_seconds", "start_seconds", "pairs_a_core_second", "film_bytes"):
        assert getattr(measured, name) > 0
    path = write_calibration(measured, tmp_path / "deep" / "calibration.json")
    assert read_calibration(path) == measured
    assert plan(shrink(demo()), 96, calibration=measured).step_seconds == pytest.approx(measured.step_seconds)


def test_the_calibration_stands_in_the_users_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert find_calibration() == tmp_path / "chess-cxr" / "calibration.json"
    with pytest.raises(UsageError, match="is absent: measure this machine with: chess-cxr plan --calibrate"):
        read_calibration()
    find_calibration().parent.mkdir()
    find_calibration().write_text('{"machine": 1}')
    with pytest.raises(UsageError, match="no calibration of this version"):
        read_calibration()


def test_numbers_are_told_with_units() -> None:
    told = [tell_bytes(count) for count in (0, 999, 1000, 187e9, 5.3e15)]
    assert told == ["0 B", "999 B", "1 kB", "187 GB", "5,300 TB"]
    assert [tell_hours(hours) for hours in (0.5, 10, 100)] == ["30.0 minutes", "10.0 hours", "100 hours (4 days)"]
