import json
from dataclasses import asdict
from pathlib import Path

import pytest

from chess_cxr.pretraining.presets import PRESETS, build_config, read_config_file
from chess_cxr.pretraining.pretrain import pretrain
from chess_cxr.pretraining.runs import read_metrics
from chess_cxr.records import UsageError
from chess_cxr.store import Store
from tiny_runs import build_tiny_config


def test_the_same_call_again_continues_and_another_configuration_is_refused(pretrained: Path, store: Store) -> None:
    before = (pretrained / "metrics.jsonl").read_bytes()
    assert pretrain([store], pretrained, build_tiny_config()) == pretrained
    assert (pretrained / "metrics.jsonl").read_bytes() == before
    with pytest.raises(UsageError, match=r"training\.steps was 4, is 5"):
        pretrain(store, pretrained, build_tiny_config(5))


def test_progress_tells_every_step(store: Store, tmp_path: Path) -> None:
    steps: list[int] = []
    pretrain(store.path, tmp_path / "run", build_tiny_config(3), lambda report, probe: steps.append(report.step))
    assert steps == [1, 2, 3]
    assert {"loss/encoder", "embedding_std"} <= set(read_metrics(tmp_path / "run")[-1])


def test_a_half_written_last_line_is_not_read(pretrained: Path, tmp_path: Path) -> None:
    whole = read_metrics(pretrained)
    (tmp_path / "metrics.jsonl").write_text((pretrained / "metrics.jsonl").read_text() + '{"step": 5, "lo')
    assert read_metrics(tmp_path) == whole


def test_pre_training_needs_a_store_and_a_known_preset(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one store"):
        pretrain([], tmp_path / "run", build_tiny_config())
    with pytest.raises(UsageError, match="named 'huge'; there are chess_paper, chess_strong, cpu_small, demo"):
        pretrain(store, tmp_path / "run", "huge")
    with pytest.raises(UsageError, match="is not a store"):
        pretrain(tmp_path, tmp_path / "run", build_tiny_config())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("preset", PRESETS)
def test_a_configuration_survives_the_way_through_json(preset: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(asdict(build_config(preset)) | {"data": [{"store": "films.lance"}]}))
    assert read_config_file(path) == build_config(preset)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the configuration .*config.json: No such file"),
        ("{", "config.json is not JSON: Expecting property name"),
        ("[]", "one JSON object"),
        ("{}", "config.json: preset: is missing"),
    ],
)
def test_a_broken_configuration_is_refused_in_one_line(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        read_config_file(path)
    assert "\n" not in str(error.value)
