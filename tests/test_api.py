import json
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet
import pytest
import torch

from chess_cxr.api import (
    FILMS_AT_ONCE,
    build_config,
    embed,
    evaluate,
    export,
    pretrain,
    read_config_file,
    read_metrics,
    write_features,
)
from chess_cxr.models.contract import PixelContract
from chess_cxr.presets import PRESETS
from chess_cxr.records import ImageRecord, UsageError
from chess_cxr.store import Store, StoredFilm, open_store, write_store
from chess_cxr.training.checkpoint import find_checkpoint, read_checkpoint
from chess_cxr.weights import Encoder, load_encoder
from tiny_runs import build_tiny_config


@pytest.fixture(scope="module")
def exported(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(pretrained, tmp_path_factory.mktemp("encoders") / "first", "Apache-2.0", "Small pictures. SYNTHETIC.")


def test_an_exported_encoder_is_the_query_network_of_the_newest_checkpoint(pretrained: Path, exported: Path) -> None:
    newest = find_checkpoint(pretrained / "checkpoints")
    assert newest is not None
    step, _, tensors = read_checkpoint(newest)
    assert step == 4
    state = load_encoder(exported).module.state_dict()
    assert {f"method.encoder.{name}" for name in state} == {n for n in tensors if n.startswith("method.encoder.")}
    assert all(torch.equal(tensor, tensors[f"method.encoder.{name}"]) for name, tensor in state.items())


def test_an_exported_encoder_says_what_it_was_trained_on(pretrained: Path, exported: Path, store: Store) -> None:
    encoder = load_encoder(exported)
    assert encoder.contract == PixelContract(32, (0.5,), (0.25,))
    assert encoder.training_uids == set(store.films.loc[store.films["split"] == "train", "uid"])
    assert (encoder.training.steps, encoder.training.images) == (4, len(encoder.training_uids))
    assert encoder.training.data == "Small pictures. SYNTHETIC." and encoder.licence == "Apache-2.0"
    config = {name: value for name, value in encoder.training.config.items() if name != "data"}
    assert config == json.loads(json.dumps(asdict(build_tiny_config())))


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


def test_pixels_are_an_encoder_like_any_other(store: Store) -> None:
    feature_ND = embed("pixels:8", store, [5, 0])
    film = cv2.resize(store.read_films([5])[0], (8, 8), interpolation=cv2.INTER_AREA)
    assert feature_ND.dtype == np.float32 and feature_ND.shape == (2, 64)
    np.testing.assert_allclose(feature_ND[0], film.ravel() / 255, atol=1e-6)


def test_embedding_keeps_the_order_of_the_rows(store: Store, tiny_encoder: Encoder) -> None:
    whole = embed(tiny_encoder, store.path)
    assert whole.shape == (96, tiny_encoder.feature_count)
    np.testing.assert_allclose(embed(tiny_encoder, store, [7, 3, 7]), whole[[7, 3, 7]], atol=1e-5)
    expected = tiny_encoder.embed([film.astype(np.float32) / 255 for film in store.read_films([3])])
    np.testing.assert_allclose(whole[3], expected[0], atol=1e-5)


def test_embedding_reports_each_part(store: Store) -> None:
    seen: list[tuple[int, int]] = []
    rows = np.arange(FILMS_AT_ONCE + 3) % 96
    assert len(embed("pixels:4", store, rows, lambda done, total: seen.append((done, total)))) == len(rows)
    assert seen == [(FILMS_AT_ONCE, len(rows)), (len(rows), len(rows))]


def test_features_are_written_beside_their_uids(store: Store, tmp_path: Path) -> None:
    path = write_features("pixels:4", store, tmp_path / "new" / "features.parquet")
    table = pyarrow.parquet.read_table(path)
    assert table["uid"].to_pylist() == store.films["uid"].tolist()
    np.testing.assert_array_equal(np.stack(table["feature"].to_pylist()), embed("pixels:4", store))
    with pytest.raises(UsageError, match="exists already"):
        write_features("pixels:4", store, path)


def test_encoders_are_compared_on_the_labelled_films(store: Store, tiny_encoder: Encoder) -> None:
    seen: list[tuple[str, int, int]] = []
    comparison = evaluate(
        store,
        {"ours": tiny_encoder, "pixels": "pixels:12"},
        fractions=(0.5, 1.0),
        draws=2,
        replicates=40,
        on_progress=lambda *stage: seen.append(stage),
    )
    assert comparison.data_set == "small pictures (SYNTHETIC)" and comparison.notes == ()
    assert comparison.encoders == ("ours", "pixels") and comparison.subsets == ("50 %", "100 %")
    value = comparison.table().query("metric == 'auroc' and subset == '100 %'").set_index("encoder")["value"]
    assert value["pixels"] > 0.8
    assert seen == [("embed ours", 90, 90), ("embed pixels", 90, 90), *[("probe", n, 6) for n in range(1, 7)]]


def test_encoders_without_names_are_named_after_themselves(store: Store) -> None:
    comparison = evaluate(store, ["pixels:4", "pixels:8"], fractions=(1.0,), replicates=10, evaluate_on="val")
    assert comparison.encoders == ("pixels:4", "pixels:8") and comparison.split == "val"


def test_a_column_can_mark_the_first_draw(small_store: Path, tmp_path: Path) -> None:
    store = mark_films(small_store, tmp_path, marked=range(0, 96, 10))
    comparison = evaluate(
        store, ["pixels:4"], ("stripes", "spots"), fractions=(), first_draw="marked", draws=3, replicates=10
    )
    known = [row for row in range(96) if row % 17]
    expected = [n for n, row in enumerate(known) if row % 10 == 0 and (row // 2) % 5 < 3]
    assert comparison.subsets == (f"{len(expected)} films",)
    first, *others = [cell.draw.film_index.tolist() for cell in comparison.cells["pixels:4", comparison.subsets[0]]]
    assert first == expected
    assert len(others) == 2 and all(len(draw) == len(expected) and draw != expected for draw in others)


def mark_films(small_store: Path, folder: Path, marked: range) -> Store:
    old = open_store(small_store)
    films = []
    for number, (row, jpeg) in enumerate(
        zip(old.films.to_dict("records"), old.read_jpegs(range(len(old))), strict=True)
    ):
        labels = {name: row[name] for name in ("stripes", "spots")} | {"marked": float(number in marked)}
        record = ImageRecord(row["uid"], row["patient"], split=row["split"], labels=labels)
        films.append(StoredFilm(record, jpeg, row["height"], row["width"]))
    write_store(folder / "marked.lance", films, ["stripes", "spots", "marked"], "")
    return open_store(folder / "marked.lance")


def test_a_column_that_marks_nothing_is_refused(small_store: Path, tmp_path: Path) -> None:
    store = mark_films(small_store, tmp_path, marked=range(0))
    with pytest.raises(UsageError, match="marks no labelled film of the train split"):
        evaluate(store, ["pixels:4"], ("stripes", "spots"), first_draw="marked")
    with pytest.raises(UsageError, match="no column 'one_percent'"):
        evaluate(store, ["pixels:4"], ("stripes", "spots"), first_draw="one_percent")


def test_pre_training_on_scored_films_is_said_under_every_table(store: Store, tiny_encoder: Encoder) -> None:
    test_uids = store.films.loc[store.films["split"] == "test", "uid"].tolist()
    seen = replace(tiny_encoder, read_uids=lambda: frozenset(test_uids[:2]))
    comparison = evaluate(store, {"ours": seen, "pixels": "pixels:4"}, fractions=(1.0,), replicates=10)
    scored = len(comparison.patient_M)
    assert comparison.notes == (f"ours was pre-trained, without labels, on 2 of these {scored} films.",)
    assert comparison.as_markdown().endswith(f"\n\n{comparison.notes[0]}\n")


@pytest.mark.parametrize("name", ["pixels:", "pixels:0", "pixels:513", "pixels:4x4"])
def test_a_wrong_side_is_refused(name: str, store: Store) -> None:
    with pytest.raises(UsageError, match="pixels:SIDE"):
        embed(name, store)


def test_what_is_no_run_cannot_be_exported_or_read(tmp_path: Path) -> None:
    for read in (lambda: export(tmp_path, tmp_path / "out"), lambda: read_metrics(tmp_path)):
        with pytest.raises(UsageError, match="is not a run"):
            read()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="no checkpoint yet"):
        export(tmp_path, tmp_path / "out")


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
        (None, "no readable JSON"),
        ("{", "no readable JSON"),
        ("[]", "one JSON object"),
        ("{}", "configuration: preset: Field required"),
    ],
)
def test_a_broken_configuration_is_refused_in_one_line(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        read_config_file(path)
    assert "\n" not in str(error.value)
