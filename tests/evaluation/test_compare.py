import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from chess_cxr.evaluation.compare import Comparison, compare_encoders
from chess_cxr.evaluation.holm import correct_holm
from chess_cxr.records import UsageError

NAMES = ("bacteria", "normal", "virus")


def make_study(seed: int = 0, films: int = 360) -> dict[str, np.ndarray]:
    """Three films a patient; "good" features hold the class, "bad" ones hardly."""
    generator = np.random.default_rng(seed)
    patient = np.arange(films) // 3
    label = generator.integers(0, 3, films // 3)[patient]
    noise = generator.normal(size=(films, 12))
    signal = np.eye(3)[label] @ generator.normal(size=(3, 12))
    split = np.where(patient % 4 == 0, "test", np.where(patient % 4 == 1, "val", "train"))
    return {
        "good": (noise + 1.5 * signal).astype(np.float32),
        "bad": (noise + 0.2 * signal).astype(np.float32),
        "label": label,
        "patient": np.array([f"p{code:03d}" for code in patient]),
        "split": split,
    }


def compare(study: dict[str, np.ndarray], **options: object) -> Comparison:
    settings: dict[str, object] = {"data_set": "made-up films", "fractions": (0.1, 1.0), "draws": 3, "replicates": 200}
    return compare_encoders(
        {"good": study["good"], "bad": study["bad"]},
        study["label"],
        NAMES,
        study["patient"],
        study["split"],
        **(settings | options),
    )


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare(make_study(), film_counts=(20, 30), one_film_per_patient=True, first_draw=list_published())


def list_published() -> np.ndarray:
    """The training films 0..29: of ten patients, unlike the random draws of 30 films of 30 patients."""
    return np.flatnonzero(make_study()["split"] == "train")[:30]


def test_every_row_says_where_its_number_comes_from(comparison: Comparison) -> None:
    table = comparison.table()
    assert len(table) == 2 * 4 * 11
    assert not table.drop(columns=["value", "low", "high"]).isna().any().any()
    assert set(table["split"]) == {"test"} and set(table["data_set"]) == {"made-up films"}
    assert set(table["n_test"]) == {90} and set(table["n_test_patients"]) == {30}
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()


def test_subsets_have_the_films_and_draws_asked_for(comparison: Comparison) -> None:
    table = comparison.table().drop_duplicates("subset").set_index("subset")
    assert list(table.index) == ["10 %", "20 films", "30 films", "100 %"]
    assert table["draws"].tolist() == [3, 3, 3, 1]
    assert table["n_train_films"].tolist() == [18, 20, 30, 180]
    assert table["n_train_patients"].tolist() == pytest.approx([6, 20, (10 + 30 + 30) / 3, 60])
    assert table["interval_covers"].tolist() == [*["patients and draws"] * 3, "patients"]
    assert table["fraction"].tolist() == pytest.approx([0.1, 20 / 180, 30 / 180, 1.0])


def test_a_published_subset_is_the_first_draw_of_its_size_and_of_no_other(comparison: Comparison) -> None:
    random = compare(make_study(), film_counts=(20, 30), one_film_per_patient=True)
    for subset in comparison.subsets:
        pairs = zip(comparison.cells["good", subset], random.cells["good", subset], strict=True)
        same = [np.array_equal(one.draw.film_index, other.draw.film_index) for one, other in pairs]
        assert same == ([False, True, True] if subset == "30 films" else [True] * len(same))
    first = comparison.cells["good", "30 films"][0].draw
    assert first.film_index.tolist() == list_published().tolist() and first.draw == 0


def test_all_encoders_learn_from_the_same_draws(comparison: Comparison) -> None:
    for subset in comparison.subsets:
        good, bad = comparison.cells["good", subset], comparison.cells["bad", subset]
        for one, other in zip(good, bad, strict=True):
            assert one.draw is other.draw or np.array_equal(one.draw.film_index, other.draw.film_index)


def test_the_value_is_the_mean_over_draws(comparison: Comparison) -> None:
    draws = comparison.draw_table().groupby(["encoder", "subset"])["auroc"].mean()
    table = comparison.table().query("metric == 'auroc'").set_index(["encoder", "subset"])["value"]
    assert draws.to_dict() == pytest.approx(table.to_dict())


def test_the_better_encoder_is_found_better(comparison: Comparison) -> None:
    gap = comparison.differences("bad").query("metric == 'auroc'").set_index("subset")
    assert set(gap["encoder"]) == {"good"}
    assert (gap["low"] > 0).all() and (gap["p"] < 0.05).all()
    table = comparison.table().query("metric == 'auroc' and subset == '100 %'").set_index("encoder")["value"]
    assert gap.loc["100 %", "value"] == pytest.approx(table["good"] - table["bad"])


def test_differences_turn_round_with_the_reference(comparison: Comparison) -> None:
    one = comparison.differences("bad").set_index(["subset", "metric"])
    other = comparison.differences("good").set_index(["subset", "metric"])
    assert one["value"].to_dict() == pytest.approx((-other["value"]).to_dict())
    assert one["low"].to_dict() == pytest.approx((-other["high"]).to_dict())


def test_p_values_are_corrected_for_all_encoders_and_subsets_of_a_metric(comparison: Comparison) -> None:
    table = comparison.differences("bad")
    for _, family in table.groupby("metric"):
        assert len(family) == 4
        assert family["p_holm"].to_numpy() == pytest.approx(correct_holm(family["p"]))
    assert (table["p_holm"] >= table["p"]).all() and (table["p_holm"] > table["p"]).any()


def test_an_encoder_does_not_differ_from_itself() -> None:
    study = make_study()
    study["bad"] = study["good"]
    assert set(compare(study).differences("bad")["p"]) == {1.0}


def test_the_markdown_table_has_a_row_an_encoder_and_says_what_it_shows(comparison: Comparison) -> None:
    caption, _, head, rule, good, bad = comparison.as_markdown("accuracy").splitlines()
    assert "made-up films, test split: 90 films of 30 patients" in caption and "seed 0" in caption
    assert head.startswith("| encoder | 10 % (18 films, 3 draws) | 20 films (20 films, 3 draws) |")
    assert rule.count("---") == 5
    row = comparison.table().query("encoder == 'good' and subset == '10 %' and metric == 'accuracy'").iloc[0]
    assert good.startswith(f"| good | {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}] |")
    assert bad.startswith("| bad |")


def test_test_films_choose_nothing() -> None:
    study = make_study()
    before = compare(study)
    test = study["split"] == "test"
    study["label"] = np.where(test, (study["label"] + 1) % 3, study["label"])
    after = compare(study)
    for key, cells in before.cells.items():
        for one, other in zip(cells, after.cells[key], strict=True):
            assert np.array_equal(one.score_MC, other.score_MC)


def test_validation_films_can_be_scored_instead() -> None:
    study = make_study()
    found = compare(study, evaluate_on="val")
    assert found.patient_M.tolist() == study["patient"][study["split"] == "val"].tolist()
    assert set(found.table()["split"]) == {"val"}


def test_an_executor_changes_nothing_in_the_numbers() -> None:
    study = make_study()
    seen: list[tuple[int, int]] = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        pooled = compare(study, executor=executor, on_probe=lambda done, total: seen.append((done, total)))
    pd.testing.assert_frame_equal(pooled.table(), compare(study).table())
    assert seen == [(done, 8) for done in range(1, 9)]


def test_findings_are_compared_with_unknown_labels() -> None:
    study = make_study()
    finding = np.eye(3)[study["label"]]
    finding[np.random.default_rng(0).random(finding.shape) < 0.3] = np.nan
    study["label"] = finding
    found = compare(study, task="multilabel", fractions=(0.2,))
    value = found.table().set_index(["encoder", "metric"])["value"]
    assert value["good", "auroc"] > value["bad", "auroc"] + 0.1
    assert {"auprc", "auroc/virus", "auprc/virus"} <= set(found.table()["metric"])


def test_what_a_probe_could_not_learn_is_noted_with_its_draw() -> None:
    study = make_study()
    single = np.flatnonzero((study["split"] == "train") & (study["label"] == 1))
    found = compare(study, fractions=(), draws=1, film_counts=(len(single),), first_draw=single).draw_table()
    assert (found["notes"].str.contains("virus: no training film")).all()
    assert found["auroc"].tolist() == [0.5, 0.5]
    assert all(math.isnan(strength) for strength in found["strength"])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"good": np.zeros((5, 2))}, {}, "good: 5 rows do not fit 360"),
        ({"split": np.full(360, "train")}, {}, "both the train and the test split"),
        ({"patient": np.full(360, "same")}, {}, "1 patient in both train and test"),
        ({}, {"evaluate_on": "train"}, "val or test"),
        ({}, {"draws": 0}, "at least one draw"),
        ({}, {"first_draw": [0], "film_counts": (1,)}, "training films only: 1 of 1"),
        ({}, {"first_draw": list_published(), "film_counts": (20,)}, "30 films, which is none of the film counts"),
        ({}, {"film_counts": (20, 20)}, "same name"),
        ({}, {"fractions": (0.1, 0.1)}, "same name"),
    ],
)
def test_unfair_or_impossible_comparisons_are_refused(
    change: dict[str, np.ndarray], options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        compare(make_study() | change, **options)


def test_unknown_names_are_refused(comparison: Comparison) -> None:
    with pytest.raises(UsageError, match="no encoder named 'chess'"):
        comparison.differences("chess")
    with pytest.raises(UsageError, match="no metric named 'f2'"):
        comparison.as_markdown("f2")


@pytest.mark.real_films
def test_raw_pixels_of_real_films_tell_pneumonia_from_normal(real_films: Path) -> None:
    folder = real_films / "kermany3"
    table = pd.read_csv(folder / "labels.csv").query("split == 'val' or one_percent == 1").reset_index(drop=True)
    films = [cv2.imread(str(folder / file), cv2.IMREAD_GRAYSCALE) for file in table["file"]]
    pixel = np.stack([cv2.resize(film, (32, 32), interpolation=cv2.INTER_AREA).ravel() for film in films])
    found = compare_encoders(
        {"raw pixels": pixel},
        table["label"].map(NAMES.index),
        NAMES,
        table["patient"],
        table["split"],
        data_set="kermany3",
        fractions=(1.0,),
        evaluate_on="val",
        replicates=300,
    )
    row = found.table().set_index("metric").loc["auroc/normal"]
    assert row["n_test"] == 467
    assert row["low"] > 0.75
