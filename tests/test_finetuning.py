import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from chess_cxr.api import embed
from chess_cxr.evaluation.linear_probe import fit_linear_probe
from chess_cxr.evaluation.metrics import compute_multiclass
from chess_cxr.film_jpeg import encode_film
from chess_cxr.finetuning import FinetuneConfig, finetune
from chess_cxr.labelled import select_labelled
from chess_cxr.models.contract import PixelContract, parse_contract
from chess_cxr.models.embedding import build_network
from chess_cxr.records import ImageRecord, UsageError
from chess_cxr.store import Store, StoredFilm, open_store, write_store
from chess_cxr.tasks.classify import Classify
from chess_cxr.weights import Encoder, build_random_encoder

NAMES = ("bright", "dark")
FULL = FinetuneConfig("full", steps=12, batch=8, learning_rate=2e-3)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build_random_encoder("test_resnet", PixelContract(32, (0.5,), (0.25,)))


@pytest.fixture(scope="module")
def store(small_store: Path) -> Store:
    return open_store(small_store)


def write_films(path: Path, splits: dict[str, int], findings: bool = False) -> Store:
    """Films of uniform grey: bright ones are "bright"; as findings, every third label is unknown."""
    rng = np.random.default_rng(0)

    def draw() -> list[StoredFilm]:
        films = []
        for split, count in splits.items():
            for number in range(count):
                bright = number % 2
                pixels = np.clip(0.3 + 0.4 * bright + rng.normal(0, 0.05, (40, 40)), 0, 1).astype(np.float32)
                labels = {"bright": float(bright), "dark": 1.0 - bright}
                if findings:
                    labels = {"bright": math.nan if number % 3 == 2 else float(bright), "odd": float(number % 4 > 1)}
                record = ImageRecord(f"{split}{number:04d}", f"{split}{number // 2}", split=split, labels=labels)
                films.append(StoredFilm(record, *encode_film(pixels, 40)))
        return films

    write_store(path, draw(), ["bright", "odd"] if findings else ["bright", "dark"], "grey films (SYNTHETIC)")
    return open_store(path)


def load_classifier(folder: Path) -> tuple[Classify, PixelContract, dict[str, object]]:
    """Build the classifier from nothing but its folder."""
    config = json.loads((folder / "config.json").read_text())
    contract = parse_contract(config["contract"])
    network = build_network(config["architecture"], contract.channels)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    labels, features = tensors["head.weight"].shape
    assert labels == len(config["labels"])
    task = Classify(network, features, labels, config["kind"])
    task.load_state_dict(tensors)
    return task, contract, config


def predict(folder: Path, store: Store, rows: np.ndarray) -> np.ndarray:
    task, contract, _ = load_classifier(folder)
    films = [contract.prepare(film.astype(np.float32) / 255) for film in store.read_films(rows)]
    return task.predict(torch.stack(films))


def test_the_written_network_gives_the_probabilities_of_the_probe(
    encoder: Encoder, store: Store, tmp_path: Path
) -> None:
    result = finetune(encoder, store, tmp_path / "model")
    chosen = select_labelled(store)
    feature = embed(encoder, store, chosen.rows)
    train, test = chosen.split == "train", chosen.split == "test"
    probe = fit_linear_probe(feature[train], chosen.label[train], chosen.patient[train], names=chosen.names)
    expected = probe.predict_scores(feature[test])
    found = predict(tmp_path / "model", store, chosen.rows[test])
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert np.ptp(expected) > 0.1
    values = compute_multiclass(chosen.label[test], expected, chosen.names)
    assert {name: interval.value for name, interval in result.metrics.items()} == pytest.approx(values)


def test_a_result_says_what_it_was_measured_on(encoder: Encoder, store: Store, tmp_path: Path) -> None:
    result = finetune(encoder, store, tmp_path / "model")
    chosen = select_labelled(store)
    counts = {split: int((chosen.split == split).sum()) for split in ("train", "val", "test")}
    assert result.films == counts and sum(counts.values()) == 90
    text = result.as_text()
    patients = len(set(chosen.patient[chosen.split == "test"]))
    assert f"small pictures (SYNTHETIC), test split: {counts['test']} films of {patients} patients" in text
    assert all(interval.replicates == 1000 and interval.low <= interval.high for interval in result.metrics.values())
    assert json.loads((tmp_path / "model" / "result.json").read_text()) == json.loads(json.dumps(result.as_json()))
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors", "result.json"}


def test_validation_films_are_not_needed_and_not_used_by_the_probe(encoder: Encoder, tmp_path: Path) -> None:
    with_val = write_films(tmp_path / "with.lance", {"train": 24, "test": 12, "val": 8})
    without = write_films(tmp_path / "without.lance", {"train": 24, "test": 12})
    one, other = (finetune(encoder, it, tmp_path / it.path.stem) for it in (with_val, without))
    assert one.metrics == other.metrics
    assert (one.films["val"], other.films["val"]) == (8, 0)


def test_full_fine_tuning_learns_and_leaves_the_given_encoder_alone(
    encoder: Encoder, store: Store, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in encoder.module.state_dict().items()}
    steps: list[tuple[str, int, int]] = []
    result = finetune(encoder, store, tmp_path / "model", config=FULL, on_progress=lambda *seen: steps.append(seen))
    assert steps == [("finetune", step, 12) for step in range(1, 13)]
    assert result.metrics["auroc"].value > 0.7
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.module.state_dict().items())
    task, _, config = load_classifier(tmp_path / "model")
    moved = [name for name, tensor in task.encoder.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(moved) > len(before) / 2
    assert config["finetune"] == {
        "mode": "full",
        "steps": 12,
        "batch": 8,
        "learning_rate": 2e-3,
        "weight_decay": 0.05,
        "seed": 0,
    }


def test_full_fine_tuning_keeps_the_moment_that_is_best_on_validation_films(encoder: Encoder, tmp_path: Path) -> None:
    """The val labels are swapped: the less was learned, the better, so that the first check must win."""
    store = write_films(tmp_path / "films.lance", {"train": 24, "test": 12})
    swapped = [
        StoredFilm(
            ImageRecord(f"val{n}", f"val{n}", split="val", labels={"bright": float(n % 2 == 0), "dark": float(n % 2)}),
            *encode_film(np.full((40, 40), 0.3 + 0.4 * (n % 2), np.float32), 40),
        )
        for n in range(8)
    ]
    rows = zip(store.films.to_dict("records"), store.read_jpegs(range(len(store))), strict=True)
    known = [
        StoredFilm(
            ImageRecord(row["uid"], row["patient"], split=row["split"], labels={n: row[n] for n in ("bright", "dark")}),
            jpeg,
            row["height"],
            row["width"],
        )
        for row, jpeg in rows
    ]
    write_store(tmp_path / "swapped.lance", [*known, *swapped], ["bright", "dark"], "")
    config = FinetuneConfig("full", steps=10, batch=12, learning_rate=5e-3)
    result = finetune(encoder, tmp_path / "swapped.lance", tmp_path / "early", config=config)
    late = finetune(encoder, store, tmp_path / "late", config=config)
    assert result.notes == ("weights of step 1 of 10 (smallest loss on 8 val films)",)
    assert late.notes == ("weights of step 10 of 10 (no val film to choose by)",)
    assert late.metrics["auroc"].value == 1.0


def test_full_fine_tuning_is_the_same_twice_and_another_with_another_seed(
    encoder: Encoder, store: Store, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    mine = torch.get_rng_state()
    short = FinetuneConfig("full", steps=3, batch=8)
    heads = []
    for name, config in {"a": short, "b": short, "c": FinetuneConfig("full", steps=3, batch=8, seed=1)}.items():
        finetune(encoder, store, tmp_path / name, config=config)
        heads.append(safetensors.torch.load_file(tmp_path / name / "model.safetensors")["head.weight"])
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert torch.equal(torch.get_rng_state(), mine)


@pytest.mark.parametrize("config", [FinetuneConfig(), FULL], ids=["linear", "full"])
def test_findings_with_unknown_labels_can_be_learned(config: FinetuneConfig, encoder: Encoder, tmp_path: Path) -> None:
    store = write_films(tmp_path / "films.lance", {"train": 24, "val": 12, "test": 24}, findings=True)
    result = finetune(encoder, store, tmp_path / "model", config=config)
    assert result.task == "multilabel" and result.labels == ("bright", "odd")
    assert result.metrics["auroc/bright"].value > 0.9
    assert set(result.metrics) == {f"{metric}{of}" for metric in ("auroc", "auprc") for of in ("", "/bright", "/odd")}
    score = predict(tmp_path / "model", store, np.arange(5))
    assert score.shape == (5, 2) and not np.allclose(score.sum(axis=1), 1)


def test_a_number_that_does_not_exist_is_null_in_json(encoder: Encoder, tmp_path: Path) -> None:
    store = write_films(tmp_path / "films.lance", {"train": 24, "test": 1})
    result = finetune(encoder, store, tmp_path / "model")
    assert math.isnan(result.metrics["auroc"].value)
    text = (tmp_path / "model" / "result.json").read_text()
    assert json.loads(text)["metrics"]["auroc"]["value"] is None and "NaN" not in text


def test_pre_training_on_the_test_films_is_said(encoder: Encoder, store: Store, tmp_path: Path) -> None:
    chosen = select_labelled(store)
    uids = store.films["uid"].to_numpy()[chosen.rows[chosen.split == "test"]]
    seen = replace(encoder, read_uids=lambda: frozenset([*uids[:3], "f" * 32]))
    result = finetune(seen, store, tmp_path / "model")
    assert f"pre-trained, without labels, on 3 of these {len(uids)} films." in result.as_text()
    assert finetune(encoder, store, tmp_path / "other").notes == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["stripes", "nodule"]}, "has no label 'nodule'; it has stripes, spots"),
        ({"config": FinetuneConfig("full", steps=0)}, "at least 1 step"),
        ({"config": FinetuneConfig("full", learning_rate=-1.0)}, "learning rate above 0"),
        ({"encoder": "random:test_resnet@1"}, "random:NETWORK@SIZE"),
    ],
)
def test_what_cannot_work_is_refused_and_leaves_nothing(
    options: dict[str, object], message: str, encoder: Encoder, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        finetune(**({"encoder": encoder, "store": store, "out": tmp_path / "model"} | options))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(encoder: Encoder, store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        finetune(encoder, store, tmp_path)


@pytest.mark.parametrize("missing", ["train", "test"])
def test_train_and_test_films_are_needed(missing: str, encoder: Encoder, tmp_path: Path) -> None:
    splits = {"train": 6, "val": 6, "test": 6}
    del splits[missing]
    store = write_films(tmp_path / "films.lance", splits)
    with pytest.raises(UsageError, match=f"no labelled film in its {missing} split"):
        finetune(encoder, store, tmp_path / "model")
