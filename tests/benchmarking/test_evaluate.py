"""Encoders compared on one store, and the tables that say how they did."""

import copy
import json
import math
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chess_cxr.benchmarking.comparison import Comparison
from chess_cxr.benchmarking.evaluate import evaluate
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.evaluation.holm import correct_holm
from chess_cxr.records import UsageError
from chess_cxr.store import Store
from study import ENCODERS, FILMS, KINDS, draw_classes, list_splits, write_study

TRAIN = np.flatnonzero(list_splits() == "train")
PUBLISHED = tuple(TRAIN[:30].tolist())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_study(tmp_path_factory.mktemp("study") / "study.lance", marked=PUBLISHED)


def compare(store: Store, **options: object) -> Comparison:
    settings: dict[str, object] = {"fractions": (0.1, 1.0), "draws": 3, "replicates": 200}
    return evaluate(store, ENCODERS, KINDS, **(settings | options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def comparison(study: Store) -> Comparison:
    return compare(study, film_counts=(20,), first_draw="marked")


def test_every_row_says_where_its_number_comes_from(comparison: Comparison) -> None:
    table = comparison.table()
    assert len(table) == 2 * 4 * 11
    assert not table.drop(columns=["value", "low", "high"]).isna().any().any()
    assert set(table["split"]) == {"test"} and set(table["data_set"]) == {"made-up films"}
    assert set(table["n_test"]) == {90} and set(table["n_test_patients"]) == {30}
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()
    assert len(json.loads(table.to_json(orient="records"))) == len(table)


def test_subsets_stand_from_small_to_large_with_their_films_and_draws(comparison: Comparison) -> None:
    table = comparison.table().drop_duplicates("subset").set_index("subset")
    assert tuple(table.index) == comparison.subsets == ("10 %", "20 films", "30 films", "100 %")
    assert table["draws"].tolist() == [3, 3, 3, 1]
    assert table["n_train_films"].tolist() == [18, 20, 30, 180]
    assert table["n_train_patients"].tolist() == pytest.approx([6, 20, (10 + 30 + 30) / 3, 60])
    assert table["interval_covers"].tolist() == [*["patients and draws"] * 3, "patients"]
    assert table["fraction"].tolist() == pytest.approx([0.1, 20 / 180, 30 / 180, 1.0])


def test_a_column_marks_the_first_draw_of_its_size(study: Store, comparison: Comparison) -> None:
    with_it, without = (
        one.draw_table().query("encoder == 'good'").set_index(["subset", "draw"])
        for one in (comparison, compare(study, film_counts=(20, 30)))
    )
    changed = [place for place in with_it.index if with_it.loc[place, "auroc"] != without.loc[place, "auroc"]]
    assert changed == [("30 films", 0)]
    assert comparison.results.select_draws("evaluate", "good", "linear", "30 films")[0].n_train_patients == 10


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


def test_an_encoder_does_not_differ_from_itself_and_has_no_difference_alone(study: Store) -> None:
    twins = evaluate(study, {"one": "pixels:4", "other": "pixels:4"}, KINDS, fractions=(0.2,), draws=2, replicates=50)
    assert set(twins.differences("one")["p"]) == {1.0}
    alone = evaluate(study, ["pixels:4"], KINDS, fractions=(1.0,), replicates=10)
    assert alone.differences("pixels:4").empty


def test_the_markdown_table_has_a_row_an_encoder_and_says_what_it_shows(comparison: Comparison) -> None:
    caption, _, head, rule, good, bad = comparison.as_markdown("accuracy").splitlines()
    assert "made-up films, test split: 90 films of 30 patients" in caption and "seed 0" in caption
    assert head.startswith("| encoder | 10 % (18 films, 3 draws) | 20 films (20 films, 3 draws) |")
    assert rule.count("---") == 5
    row = comparison.table().query("encoder == 'good' and subset == '10 %' and metric == 'accuracy'").iloc[0]
    assert good.startswith(f"| good | {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}] |")
    assert bad.startswith("| bad |")


def test_test_films_choose_nothing(study: Store, tmp_path: Path) -> None:
    kind_N = np.where(list_splits() == "test", (draw_classes() + 1) % 3, draw_classes())
    other = write_study(tmp_path / "other.lance", np.eye(3)[kind_N])
    before, after = compare(study, replicates=10), compare(other, replicates=10)
    assert before.table()["value"].tolist() != after.table()["value"].tolist()
    for one, its_twin in zip(before.results.sets, after.results.sets, strict=True):
        assert (one.encoder, one.subset, one.draw) == (its_twin.encoder, its_twin.subset, its_twin.draw)
        assert np.array_equal(one.test_MC, its_twin.test_MC)


def test_validation_films_can_be_scored_instead_and_test_films_are_not_needed(study: Store, tmp_path: Path) -> None:
    found = compare(study, evaluate_on="val", replicates=10)
    assert found.split == "val" and set(found.table()["split"]) == {"val"}
    scored = found.results.tasks["evaluate"].test.patient_M.tolist()
    assert scored == study.films.loc[study.films["split"] == "val", "patient"].tolist()
    without = write_study(tmp_path / "study.lance", split_N=np.where(list_splits() == "test", "val", list_splits()))
    assert set(compare(without, evaluate_on="val", replicates=10).table()["n_test"]) == {180}
    shared = write_study(tmp_path / "shared.lance", split_N=np.where(np.arange(FILMS) % 3, list_splits(), "test"))
    with pytest.raises(UsageError, match="stands in two splits"):
        compare(shared)


def test_an_executor_changes_nothing_in_the_numbers(study: Store, comparison: Comparison) -> None:
    seen: list[tuple[str, int, int]] = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        pooled = compare(
            study, film_counts=(20,), first_draw="marked", executor=executor,
            on_progress=lambda *stage: seen.append(stage),
        )  # fmt: skip
        pd.testing.assert_frame_equal(pooled.table(), comparison.table())
        pd.testing.assert_frame_equal(pooled.draw_table(), comparison.draw_table())
        assert [stage for stage in seen if stage[0] == "probe"] == [("probe", done, 20) for done in range(21)]
        with pytest.raises(UsageError, match="the bootstrap needs at least one replicate"):
            compare(study, replicates=0, executor=executor)


def test_findings_are_compared_with_unknown_labels(tmp_path: Path) -> None:
    kind_N = draw_classes()
    finding_NL = np.stack([kind_N == 0, kind_N != 1, kind_N == 2], axis=1).astype(float)
    finding_NL[np.random.default_rng(0).random(finding_NL.shape) < 0.3] = np.nan
    found = compare(write_study(tmp_path / "study.lance", finding_NL), fractions=(0.2,))
    value = found.table().set_index(["encoder", "metric"])["value"]
    assert value["good", "auroc"] > value["bad", "auroc"] + 0.1
    single = [f"{area}/{kind}" for area in ("auroc", "auprc") for kind in KINDS]
    assert value["good"].index.tolist() == ["auroc", "auprc", *single]


def test_what_a_probe_could_not_learn_is_noted_with_its_draw(tmp_path: Path) -> None:
    single = TRAIN[draw_classes()[TRAIN] == 1][:20]
    store = write_study(tmp_path / "study.lance", marked=tuple(single.tolist()))
    found = compare(store, fractions=(), draws=1, first_draw="marked").draw_table()
    assert (found["notes"].str.contains("virus: no training film")).all()
    assert found["auroc"].tolist() == [0.5, 0.5]
    assert all(math.isnan(strength) for strength in found["strength"])
    assert set(found["n_train_films"]) == {20}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"split_N": np.full(FILMS, "train")}, {}, "study.lance has no labelled film in its test split"),
        ({"split_N": np.full(FILMS, "test")}, {}, "study.lance has no labelled film in its train split"),
        ({"patient_N": np.zeros(FILMS, int)}, {}, "a patient of study.lance stands in two splits"),
        ({}, {"evaluate_on": "train"}, "val or test"),
        ({}, {"draws": 0}, "at least one draw"),
        ({}, {"replicates": 0}, "at least one replicate"),
        ({}, {"fractions": (0.1, 0.1)}, "same name"),
        ({}, {"first_draw": "marked"}, "column 'marked' of study.lance marks no labelled film of the train split"),
        ({}, {"first_draw": "one_percent"}, "study.lance has no column 'one_percent'; it has bacteria, normal"),
    ],
)
def test_unfair_or_impossible_comparisons_are_refused(
    change: dict[str, np.ndarray], options: dict[str, object], message: str, tmp_path: Path
) -> None:
    store = write_study(tmp_path / "study.lance", **change)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        compare(store, **options)


def test_unknown_names_are_refused(study: Store, comparison: Comparison) -> None:
    with pytest.raises(UsageError, match="no encoder named 'chess'"):
        comparison.differences("chess")
    with pytest.raises(UsageError, match="no metric named 'f2'"):
        comparison.as_markdown("f2")
    with pytest.raises(UsageError, match="at least one encoder"):
        evaluate(study, [])


def test_an_encoder_that_has_diverged_is_refused_and_no_cell_stays(
    study: Store, tiny_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    module = copy.deepcopy(tiny_encoder.module)
    for weight in module.parameters():
        weight.data.fill_(math.nan)
    with pytest.raises(UsageError, match="features hold NaN or infinity: the encoder has diverged"):
        evaluate(study, {"broken": replace(tiny_encoder, module=module)}, KINDS)
    assert list(tmp_path.iterdir()) == []


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
    assert seen == [
        ("embed ours", 90, 90),
        ("embed pixels", 90, 90),
        *[("probe", done, 6) for done in range(7)],
        *[("bootstrap", done, 4) for done in range(5)],
    ]


def test_encoders_without_names_are_named_after_themselves(store: Store) -> None:
    comparison = evaluate(store, ["pixels:4", "pixels:8"], fractions=(1.0,), replicates=10, evaluate_on="val")
    assert comparison.encoders == ("pixels:4", "pixels:8") and comparison.split == "val"


def test_pre_training_on_scored_films_is_said_under_every_table(store: Store, tiny_encoder: Encoder) -> None:
    test_uids = store.films.loc[store.films["split"] == "test", "uid"].tolist()
    seen = replace(tiny_encoder, read_uids=lambda: frozenset(test_uids[:2]))
    comparison = evaluate(store, {"ours": seen, "pixels": "pixels:4"}, fractions=(1.0,), replicates=10)
    scored = len(comparison.results.tasks["evaluate"].test.uid_M)
    assert comparison.notes == (f"ours was pre-trained, without labels, on 2 of these {scored} films.",)
    assert comparison.as_markdown().endswith(f"\n\n{comparison.notes[0]}\n")


@pytest.mark.real_films
def test_raw_pixels_of_real_films_tell_pneumonia_from_normal(film_store: Path) -> None:
    found = evaluate(film_store, {"raw pixels": "pixels:32"}, KINDS, fractions=(1.0,), replicates=300)
    row = found.table().set_index("metric").loc["auroc/normal"]
    assert row["n_test"] == 48
    assert row["low"] > 0.6
