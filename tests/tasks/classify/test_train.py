import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from chess_cxr.encoders.embed import embed
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.evaluation.linear_probe import fit_linear_probe
from chess_cxr.evaluation.metrics import compute_multiclass
from chess_cxr.ingest.options import IngestOptions
from chess_cxr.ingest.pipeline import ingest_films
from chess_cxr.records import UNCERTAIN, ChessError, ImageRecord, SourceFilm, UsageError
from chess_cxr.store import Store, open_store, write_store
from chess_cxr.tasks.classify.answer import answer_films
from chess_cxr.tasks.classify.config import FinetuneConfig
from chess_cxr.tasks.classify.labels import select_labelled
from chess_cxr.tasks.classify.model import load_classifier
from chess_cxr.tasks.classify.train import finetune_classifier
from grey_films import draw_grey_films, list_stored

NAMES = ("bright", "dark")
ORDER = ["dark", "middle", "bright"]
FULL = FinetuneConfig("full", steps=12, batch=8, learning_rate=2e-3, layer_decay=1.0)
HEADS = {mode: FinetuneConfig(mode, steps=80, batch=16, learning_rate=1e-2) for mode in ("mlp", "attentive")}


def write_films(path: Path, splits: dict[str, int], findings: bool = False) -> Store:
    """Films of uniform grey: bright ones are "bright"; as findings, every third label is unknown."""
    films = []
    for split, number in [(split, number) for split, count in splits.items() for number in range(count)]:
        bright = number % 2
        labels = {"bright": float(bright), "dark": 1.0 - bright}
        if findings:
            labels = {"bright": math.nan if number % 3 == 2 else float(bright), "odd": float(number % 4 > 1)}
        record = ImageRecord(f"{split}{number:04d}", f"{split}{number // 2}", split=split, labels=labels)
        films.append((record, 0.3 + 0.4 * bright))
    names = ["bright", "odd"] if findings else ["bright", "dark"]
    write_store(path, draw_grey_films(films), names, "grey films (SYNTHETIC)")
    return open_store(path)


def predict(folder: Path, store: Store, rows: np.ndarray) -> np.ndarray:
    return load_classifier(folder).predict([film.astype(np.float32) / 255 for film in store.read_films(rows)])


def test_the_written_network_gives_the_probabilities_of_the_probe(
    tiny_encoder: Encoder, store: Store, tmp_path: Path
) -> None:
    result = finetune_classifier(tiny_encoder, store, tmp_path / "model")
    chosen = select_labelled(store)
    feature = embed(tiny_encoder, store, chosen.rows)
    train, test = chosen.split == "train", chosen.split == "test"
    probe = fit_linear_probe(feature[train], chosen.label[train], chosen.patient[train], names=chosen.names)
    expected = probe.predict_scores(feature[test])
    found = predict(tmp_path / "model", store, chosen.rows[test])
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert np.ptp(expected) > 0.1
    values = compute_multiclass(chosen.label[test], expected, chosen.names, probabilities=True)
    assert {name: interval.value for name, interval in result.metrics.items()} == pytest.approx(values, abs=1e-5)


def test_a_result_says_what_it_was_measured_on(tiny_encoder: Encoder, store: Store, tmp_path: Path) -> None:
    result = finetune_classifier(tiny_encoder, store, tmp_path / "model")
    chosen = select_labelled(store)
    counts = {split: int((chosen.split == split).sum()) for split in ("train", "val", "test")}
    assert result.films == counts and sum(counts.values()) == 90
    text = result.as_text()
    patients = len(set(chosen.patient[chosen.split == "test"]))
    assert f"small pictures (SYNTHETIC), test split: {counts['test']} films of {patients} patients" in text
    assert all(interval.replicates == 1000 and interval.low <= interval.high for interval in result.metrics.values())
    assert json.loads((tmp_path / "model" / "result.json").read_text()) == json.loads(json.dumps(result.as_json()))
    assert text.count("ece") and result.test_units == f"{counts['test']} films"
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "README.md", "config.json", "golden.safetensors", "model.onnx", "model.safetensors", "result.json",
    }  # fmt: skip


def test_validation_films_are_not_needed_and_not_used_by_the_probe(tiny_encoder: Encoder, tmp_path: Path) -> None:
    with_val = write_films(tmp_path / "with.lance", {"train": 24, "test": 12, "val": 8})
    without = write_films(tmp_path / "without.lance", {"train": 24, "test": 12})
    one, other = (finetune_classifier(tiny_encoder, it, tmp_path / it.path.stem) for it in (with_val, without))
    assert one.metrics == other.metrics
    assert (one.films["val"], other.films["val"]) == (8, 0)


def test_full_fine_tuning_learns_and_leaves_the_given_encoder_alone(
    tiny_encoder: Encoder, store: Store, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_encoder.module.state_dict().items()}
    steps: list[tuple[str, int, int]] = []
    result = finetune_classifier(
        tiny_encoder, store, tmp_path / "model", config=FULL, on_progress=lambda *seen: steps.append(seen)
    )
    assert steps == [("finetune", step, 12) for step in range(1, 13)]
    assert result.metrics["auroc"].value > 0.7
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_encoder.module.state_dict().items())
    network = load_classifier(tmp_path / "model").network.encoder
    assert network is not None
    moved = [name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(moved) > len(before) / 2
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["finetune"] == json.loads(json.dumps(asdict(FULL)))


def test_full_fine_tuning_keeps_the_moment_that_is_best_on_validation_films(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    """The val labels are swapped: the less was learned, the better, so that the first check must win."""
    store = write_films(tmp_path / "films.lance", {"train": 24, "test": 12})
    labels = [{"bright": float(n % 2 == 0), "dark": float(n % 2)} for n in range(8)]
    records = [ImageRecord(f"val{n}", f"val{n}", split="val", labels=labels[n]) for n in range(8)]
    swapped = draw_grey_films([(record, 0.3 + 0.4 * (n % 2)) for n, record in enumerate(records)], noise=0)
    write_store(tmp_path / "swapped.lance", [*list_stored(store, NAMES), *swapped], list(NAMES), "")
    config = FinetuneConfig("full", steps=10, batch=12, learning_rate=5e-3, layer_decay=1.0, patience=4)
    result = finetune_classifier(tiny_encoder, tmp_path / "swapped.lance", tmp_path / "early", config=config)
    late = finetune_classifier(tiny_encoder, store, tmp_path / "late", config=config)
    assert result.notes == ("weights of step 1 of 10 (smallest loss on 8 val films)",)
    [note] = late.notes
    assert note.endswith("training films held out, as there is no val film)")
    assert late.metrics["auroc"].value == 1.0


@pytest.mark.parametrize("mode", ["mlp", "full"])
def test_fine_tuning_is_the_same_twice_and_another_with_another_seed(
    mode: str, tiny_encoder: Encoder, store: Store, tmp_path: Path
) -> None:
    short, heads = FinetuneConfig(mode, steps=3, batch=8), []
    for name, config in {"a": short, "b": short, "c": replace(short, seed=1)}.items():
        torch.manual_seed(ord(name))
        mine = torch.get_rng_state()
        finetune_classifier(tiny_encoder, store, tmp_path / name, config=config)
        tensors = safetensors.torch.load_file(tmp_path / name / "model.safetensors")
        heads.append(torch.cat([it.flatten() for key, it in tensors.items() if key.startswith("head.")]))
        assert torch.equal(torch.get_rng_state(), mine)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("config", [FinetuneConfig(), HEADS["mlp"], HEADS["attentive"], FULL], ids=lambda it: it.mode)
def test_findings_with_unknown_labels_can_be_learned(
    config: FinetuneConfig, tiny_encoder: Encoder, tmp_path: Path
) -> None:
    store = write_films(tmp_path / "films.lance", {"train": 24, "val": 12, "test": 24}, findings=True)
    result = finetune_classifier(tiny_encoder, store, tmp_path / "model", config=config)
    assert result.task == "multilabel" and result.labels == ("bright", "odd")
    assert result.metrics["auroc/bright"].value > 0.9
    metrics = ("auroc", "auprc", "brier", "ece")
    assert set(result.metrics) == {f"{metric}{of}" for metric in metrics for of in ("", "/bright", "/odd")}
    score = predict(tmp_path / "model", store, np.arange(5))
    assert score.shape == (5, 2) and not np.allclose(score.sum(axis=1), 1)


def test_a_number_that_does_not_exist_is_null_in_json(tiny_encoder: Encoder, tmp_path: Path) -> None:
    store = write_films(tmp_path / "films.lance", {"train": 24, "test": 1})
    result = finetune_classifier(tiny_encoder, store, tmp_path / "model")
    assert math.isnan(result.metrics["auroc"].value)
    text = (tmp_path / "model" / "result.json").read_text()
    assert json.loads(text)["metrics"]["auroc"]["value"] is None and "NaN" not in text


def test_pre_training_on_the_test_films_is_said(tiny_encoder: Encoder, store: Store, tmp_path: Path) -> None:
    chosen = select_labelled(store)
    uids = store.films["uid"].to_numpy()[chosen.rows[chosen.split == "test"]]
    seen = replace(tiny_encoder, read_uids=lambda: frozenset([*uids[:3], "f" * 32]))
    result = finetune_classifier(seen, store, tmp_path / "model")
    assert f"pre-trained, without labels, on 3 of these {len(uids)} films." in result.as_text()
    assert finetune_classifier(tiny_encoder, store, tmp_path / "other").notes == ()


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
    options: dict[str, object], message: str, tiny_encoder: Encoder, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        finetune_classifier(**({"encoder": tiny_encoder, "store": store, "out": tmp_path / "model"} | options))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(tiny_encoder: Encoder, store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        finetune_classifier(tiny_encoder, store, tmp_path)


@pytest.mark.parametrize("missing", ["train", "test"])
def test_train_and_test_films_are_needed(missing: str, tiny_encoder: Encoder, tmp_path: Path) -> None:
    splits = {"train": 6, "val": 6, "test": 6}
    del splits[missing]
    store = write_films(tmp_path / "films.lance", splits)
    with pytest.raises(UsageError, match=f"no labelled film in its {missing} split"):
        finetune_classifier(tiny_encoder, store, tmp_path / "model")


# Heads on cached features


@pytest.mark.parametrize("mode", HEADS)
def test_a_head_learns_on_cached_features_and_the_written_model_says_the_same(
    mode: str, tiny_encoder: Encoder, store: Store, tmp_path: Path
) -> None:
    stages: list[str] = []
    result = finetune_classifier(
        tiny_encoder, store, tmp_path / "model", config=HEADS[mode], on_progress=lambda stage, *_: stages.append(stage)
    )
    assert list(dict.fromkeys(stages)) == ["embed", "finetune"]
    assert result.metrics["auroc"].value > 0.8
    chosen = select_labelled(store)
    test = chosen.split == "test"
    found = predict(tmp_path / "model", store, chosen.rows[test])
    values = compute_multiclass(chosen.label[test], found, chosen.names)
    assert values["auroc"] == pytest.approx(result.metrics["auroc"].value, abs=0.02)
    network = load_classifier(tmp_path / "model").network.encoder
    assert network is not None
    before = tiny_encoder.module.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_training_ends_when_held_out_films_gain_no_more(tiny_encoder: Encoder, store: Store, tmp_path: Path) -> None:
    steps: list[int] = []

    def watch(stage: str, done: int, _total: int) -> None:
        if stage == "finetune":
            steps.append(done)

    impatient = replace(HEADS["mlp"], steps=400, learning_rate=0.1, patience=2)
    finetune_classifier(tiny_encoder, store, tmp_path / "model", config=impatient, on_progress=watch)
    assert 40 <= steps[-1] < 400
    steps.clear()
    finetune_classifier(
        tiny_encoder, store, tmp_path / "other", config=replace(impatient, patience=0), on_progress=watch
    )
    assert steps[-1] == 400


def test_lower_stages_of_the_encoder_move_less(tiny_encoder: Encoder, store: Store, tmp_path: Path) -> None:
    config = replace(FULL, layer_decay=0.3, weight_decay=0.0, steps=4)
    finetune_classifier(tiny_encoder, store, tmp_path / "model", config=config)
    network = load_classifier(tmp_path / "model").network.encoder
    assert network is not None
    before, after = tiny_encoder.module.state_dict(), network.state_dict()
    kernels = [name for name, tensor in before.items() if tensor.ndim == 4]
    first, last = ((after[name] - before[name]).abs().mean().item() for name in (kernels[0], kernels[-1]))
    assert 0 < first < 0.2 * last


# An order


def write_order(path: Path) -> Store:
    """Films of three greys, "dark" < "middle" < "bright"."""
    films = []
    for split, count in {"train": 30, "val": 12, "test": 30}.items():
        for number in range(count):
            labels = {name: float(number % 3 == place) for place, name in enumerate(ORDER)}
            record = ImageRecord(f"{split}{number:04d}", f"{split}{number}", split=split, labels=labels)
            films.append((record, 0.2 + 0.25 * (number % 3)))
    write_store(path, draw_grey_films(films, noise=0.03), ORDER, "greys in an order (SYNTHETIC)")
    return open_store(path)


def test_an_order_of_classes_is_learned_as_an_order(tiny_encoder: Encoder, tmp_path: Path) -> None:
    store = write_order(tmp_path / "films.lance")
    config = replace(HEADS["mlp"], task="ordinal", imbalance="inverse", steps=200)
    result = finetune_classifier(tiny_encoder, store, tmp_path / "model", ["dark", "middle", "bright"], config)
    assert result.task == "ordinal" and result.metrics["weighted_kappa"].value > 0.7
    assert result.metrics["rank_error"].value < 0.5
    probability = predict(tmp_path / "model", store, np.arange(6))
    assert probability.sum(1) == pytest.approx(1, abs=1e-5) and (probability >= 0).all()
    with pytest.raises(UsageError, match="the linear probe has no ordinal task"):
        finetune_classifier(tiny_encoder, store, tmp_path / "other", config=FinetuneConfig(task="ordinal"))
    with pytest.raises(UsageError, match="at least three labels"):
        finetune_classifier(
            tiny_encoder, store, tmp_path / "other", ["dark", "bright"], replace(config, task="ordinal")
        )


# Labels that are uncertain, studies, classes of different size


def write_uncertain(path: Path) -> Store:
    """Bright films have the finding; every third label is uncertain, and all films of a study are alike."""
    films = []
    for split, count in {"train": 48, "val": 16, "test": 32}.items():
        for number in range(count):
            bright, study = number // 2 % 2, number // 2
            labels = {"edema": UNCERTAIN if number % 3 == 2 else float(bright)}
            record = ImageRecord(f"{split}{number:04d}", f"{split}{study}", f"s{study}", split=split, labels=labels)
            films.append((record, 0.3 + 0.4 * bright))
    write_store(path, draw_grey_films(films), ["edema"], "grey films (SYNTHETIC)")
    return open_store(path)


@pytest.mark.parametrize("policy", ["ignore", "ones", "zeros", "smooth_ones", "smooth_zeros", "third_class"])
def test_uncertain_labels_teach_as_they_are_told_and_are_never_scored(
    policy: str, tiny_encoder: Encoder, tmp_path: Path
) -> None:
    store = write_uncertain(tmp_path / "films.lance")
    config = replace(HEADS["mlp"], uncertain={"edema": policy})
    result = finetune_classifier(tiny_encoder, store, tmp_path / "model", config=config)
    assert result.task == "binary" and result.films["test"] == 22
    assert "31 labels are uncertain; those of the test split are not scored" in result.notes
    assert result.metrics["auroc"].value > 0.9
    shape = json.loads((tmp_path / "model" / "config.json").read_text())["head"]
    assert shape["third_class"] == (policy == "third_class")


@pytest.mark.parametrize("policy", ["ones", "zeros"])
def test_the_probe_learns_uncertain_labels_as_plain_ones(policy: str, tiny_encoder: Encoder, tmp_path: Path) -> None:
    store = write_uncertain(tmp_path / "films.lance")
    mean = {
        it: predict(tmp_path / it, store, np.arange(96)).mean()
        for it in ("ignore", policy)
        if finetune_classifier(tiny_encoder, store, tmp_path / it, config=FinetuneConfig(uncertain=it))
    }
    assert (mean[policy] > mean["ignore"]) == (policy == "ones")
    with pytest.raises(UsageError, match="labels of 0 and 1 only"):
        finetune_classifier(tiny_encoder, store, tmp_path / "other", config=FinetuneConfig(uncertain="smooth_ones"))


def test_films_of_a_study_are_scored_together(tiny_encoder: Encoder, tmp_path: Path) -> None:
    store = write_uncertain(tmp_path / "films.lance")
    films, studies = (
        finetune_classifier(tiny_encoder, store, tmp_path / how, config=FinetuneConfig(aggregate=how))
        for how in ("none", "mean")
    )
    assert films.test_units == "22 films" and studies.test_units == "16 studies (mean of 22 films)"
    assert "test split: 16 studies (mean of 22 films) of 16 patients" in studies.as_text()


def test_rare_classes_are_found_more_often_when_they_weigh_more(tiny_encoder: Encoder, tmp_path: Path) -> None:
    films = []
    for split, count in {"train": 120, "test": 60}.items():
        for number in range(count):
            rare = number % 12 == 0
            labels = {"common": 1.0 - rare, "rare": float(rare)}
            record = ImageRecord(f"{split}{number:04d}", f"{split}{number}", split=split, labels=labels)
            films.append((record, 0.4 + 0.04 * rare))
    drawn = draw_grey_films(films, jitter=0.02, seed=1)
    write_store(tmp_path / "films.lance", drawn, ["common", "rare"], "grey films (SYNTHETIC)")
    found = {
        how: predict(tmp_path / how, open_store(tmp_path / "films.lance"), np.arange(120))[:, 1].mean()
        for how in ("none", "inverse", "logit_adjustment")
        if finetune_classifier(
            tiny_encoder, tmp_path / "films.lance", tmp_path / how, config=replace(HEADS["mlp"], imbalance=how)
        )
    }
    assert found["inverse"] > 1.5 * found["none"] and found["logit_adjustment"] > 1.5 * found["none"]
    with pytest.raises(UsageError, match="has no --imbalance"):
        finetune_classifier(
            tiny_encoder, tmp_path / "films.lance", tmp_path / "other", config=FinetuneConfig(imbalance="focal")
        )


def test_a_class_that_no_training_film_has_is_said(tiny_encoder: Encoder, tmp_path: Path) -> None:
    store = write_order(tmp_path / "films.lance")
    stored = list_stored(store, ORDER)
    kept = [film for film in stored if film.record.split != "train" or not film.record.labels["bright"]]
    write_store(tmp_path / "kept.lance", kept, ORDER, "")
    result = finetune_classifier(
        tiny_encoder, tmp_path / "kept.lance", tmp_path / "model", ORDER, replace(HEADS["mlp"], steps=20)
    )
    assert "no training film has bright: its scores mean nothing" in result.notes


# A written model at work


def test_a_model_answers_alike_whatever_the_size_of_a_film(tiny_encoder: Encoder, store: Store, tmp_path: Path) -> None:
    finetune_classifier(tiny_encoder, store, tmp_path / "model")
    model = load_classifier(tmp_path / "model")
    film = store.read_films([3])[0].astype(np.float32) / 255
    small, large = film, np.kron(film, np.ones((3, 3), np.float32))
    answers = model.predict([small, large])
    assert answers[0] == pytest.approx(answers[1], abs=0.05) and answers.shape == (2, 2)


@pytest.mark.real_films
def test_files_are_answered_as_the_ingested_films_are(
    tiny_encoder: Encoder, store: Store, real_films: Path, tmp_path: Path
) -> None:
    finetune_classifier(tiny_encoder, store, tmp_path / "model")
    model = load_classifier(tmp_path / "model")
    paths = sorted((real_films / "jsrt" / "images").iterdir())[:2]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    first, second, third = answer_films(model, [*paths, broken])
    ingest_films([SourceFilm(path, path.name) for path in paths], tmp_path / "two.lance", IngestOptions(bytes(16)))
    films = [film.astype(np.float32) / 255 for film in open_store(tmp_path / "two.lance").read_films([0, 1])]
    expected = model.predict(films)
    found = np.array([[it.probability for it in answer.findings] for answer in (first, second)])
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(expected, axis=0), atol=1e-6)
    assert third.findings == () and third.reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "bones"}, "is no classifier"),
        ({"head": {}}, "the head of a classifier has"),
        ({"labels": []}, "has a list of labels"),
        ({"labels": ["a", "b", "c"]}, "head of this classifier is not valid"),
        ({"architecture": "nothing"}, "timm has no network"),
        ({"architecture": "test_efficientnet"}, "does not hold this model"),
    ],
)
def test_a_model_that_is_not_what_it_says_is_refused(
    change: dict[str, object], message: str, tiny_encoder: Encoder, store: Store, tmp_path: Path
) -> None:
    finetune_classifier(tiny_encoder, store, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ChessError, match=message):
        load_classifier(tmp_path / "model")
