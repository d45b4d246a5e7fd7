import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from chess_cxr.evaluation.holm import correct_holm
from chess_cxr.evaluation.intervals import paired_bootstrap_by_patient
from chess_cxr.evaluation.subgroups import CHILD_EDGES, compute_age_bands, compute_subgroups
from chess_cxr.records import UsageError

NAMES = ("Edema", "Mass")


def draw_films(seed: int, patients: int = 300, worse: float = 0.0) -> dict[str, np.ndarray]:
    """Two films a patient; scores of women are worse by `worse`."""
    generator = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), 2)
    sex = np.where(generator.random(patients) < 0.5, "F", "M")[patient]
    age = generator.integers(18, 95, patients)[patient]
    label = (generator.random((len(patient), 2)) < 0.35).astype(float)
    gain = np.where(sex == "F", 1.6 - worse, 1.6)[:, None]
    score = gain * label + generator.normal(size=label.shape)
    return {"label": label, "score": score, "patient": patient, "sex": sex, "age": compute_age_bands(age)}


def compute(films: dict[str, np.ndarray], attribute: str = "sex", **options: object) -> pd.DataFrame:
    settings: dict[str, object] = {"replicates": 200}
    table = compute_subgroups(
        films["label"],
        [films["score"]],
        NAMES,
        "multilabel",
        films["patient"],
        {attribute: films[attribute]},
        **(settings | options),
    )
    return table.set_index("group")


def test_ages_fall_into_bands() -> None:
    ages = [0, 17, 17.9, 18, 39, 40, 59.5, 60, 79, 80, 90, math.nan]
    want = ["0-17"] * 3 + ["18-39"] * 2 + ["40-59"] * 2 + ["60-79"] * 2 + ["80+"] * 2 + [""]
    assert compute_age_bands(ages).tolist() == want
    assert compute_age_bands([0.5, 1, 2, 5, 12, 30], CHILD_EDGES).tolist() == ["0", "1-2", "1-2", "3-5", "12-17", "18+"]
    for wrong in ([40, 18], [], [0, 5], [18, 18], [1.5]):
        with pytest.raises(UsageError, match="rising whole years"):
            compute_age_bands([1], wrong)
    with pytest.raises(UsageError, match="below 0"):
        compute_age_bands([-1])


def test_values_and_gaps_are_those_of_the_films_of_the_group() -> None:
    films = draw_films(0)
    found = compute(films)
    women = films["sex"] == "F"

    def score(rows: np.ndarray) -> float:
        return float(np.mean([roc_auc_score(films["label"][rows, j], films["score"][rows, j]) for j in range(2)]))

    assert found.loc["F", "value"] == pytest.approx(score(women)) and found.loc["F", "rest"] == pytest.approx(
        score(~women)
    )
    assert found.loc["F", "gap"] == pytest.approx(score(women) - score(~women))
    assert found.loc["F", "films"] == women.sum() and found.loc["F", "patients"] == women.sum() / 2
    assert found.loc["F", "positives"] == films["label"][women].sum(axis=0).min()
    assert found.loc["F", "negatives"] == (1 - films["label"][women]).sum(axis=0).min()


def test_the_gap_is_paired_on_the_same_resampled_patients_as_a_slow_bootstrap() -> None:
    films = draw_films(1, patients=60)
    women = films["sex"] == "F"

    def score(rows: np.ndarray):
        def of(index: np.ndarray) -> dict[str, float]:
            chosen = index[rows[index]]
            label, given = films["label"][chosen, 0], films["score"][chosen, 0]
            return {"auroc": roc_auc_score(label, given)}

        return of

    want = paired_bootstrap_by_patient(films["patient"], score(women), score(~women), replicates=60, seed=3)["auroc"]
    row = compute(films, metric="auroc/Edema", replicates=60, seed=3).loc["F"]
    assert (row["gap"], row["gap_low"], row["gap_high"]) == pytest.approx((want.value, want.low, want.high))
    assert row["p"] == pytest.approx(want.p)


def test_a_group_that_fares_worse_is_found_and_one_that_does_not_is_not() -> None:
    worse = compute(draw_films(2, worse=1.0)).loc["F"]
    assert worse["gap_high"] < 0 and worse["p_holm"] < 0.05 and worse["warning"] == ""
    equal = compute(draw_films(2)).loc["F"]
    assert equal["gap_low"] < 0 < equal["gap_high"] and equal["p_holm"] > 0.05


def test_two_groups_are_one_test_and_more_are_corrected() -> None:
    films = draw_films(3)
    by_sex = compute(films)
    assert (by_sex["p_holm"] == by_sex["p"]).all()
    assert by_sex.loc["F", "gap"] == pytest.approx(-by_sex.loc["M", "gap"])
    by_age = compute(films, "age")
    assert list(by_age.index) == ["18-39", "40-59", "60-79", "80+"]
    assert by_age["p_holm"].to_numpy() == pytest.approx(correct_holm(by_age["p"]))
    assert (by_age["p_holm"] > by_age["p"]).any()


def test_unknown_films_stand_on_neither_side() -> None:
    films = draw_films(4)
    some = films["patient"] % 3 == 0
    films["sex"] = np.where(some, "", films["sex"])
    known = {name: values[~some] for name, values in films.items()}
    found, want = compute(films), compute(known)
    assert list(found.index) == ["F", "M"]
    assert found[["value", "rest", "gap", "films"]].to_numpy() == pytest.approx(
        want[["value", "rest", "gap", "films"]].to_numpy()
    )


def test_a_mean_is_over_the_same_findings_here_and_there() -> None:
    films = draw_films(5)
    women = films["sex"] == "F"
    films["label"][women, 1] = 0.0
    row = compute(films).loc["F"]
    assert row["classes"] == "Edema"
    assert row["rest"] == pytest.approx(roc_auc_score(films["label"][~women, 0], films["score"][~women, 0]))


def test_a_group_too_small_is_warned_of_and_not_tested() -> None:
    films = draw_films(6)
    films["view"] = np.where(films["patient"] < 6, "AP", np.where(films["patient"] < 30, "LATERAL", "PA"))
    lateral = films["view"] == "LATERAL"
    films["score"][lateral] += np.random.default_rng(1).normal(0, 3, (lateral.sum(), 2))
    found = compute(films, "view")
    assert "only 6 patients here" in found.loc["AP", "warning"] and math.isnan(found.loc["AP", "p"])
    assert math.isnan(found.loc["AP", "p_holm"]) and not math.isnan(found.loc["AP", "value"])
    assert "value and the gap is wider than 0.2" in found.loc["LATERAL", "warning"]
    assert not math.isnan(found.loc["LATERAL", "p"])
    assert "of the gap is wider" in found.loc["PA", "warning"]


def test_few_positives_are_warned_of_whatever_the_number_of_patients() -> None:
    films = draw_films(7)
    sick = np.flatnonzero((films["sex"] == "F") & (films["label"][:, 0] == 1))
    films["label"][sick[4:], 0] = 0.0
    row = compute(films, metric="auroc/Edema").loc["F"]
    assert row["positives"] == 4 and "only 4 films" in row["warning"] and math.isnan(row["p"])


def test_one_group_alone_has_no_rest() -> None:
    films = draw_films(8)
    films["sex"] = np.full(len(films["patient"]), "F")
    row = compute(films).loc["F"]
    assert math.isnan(row["gap"]) and math.isnan(row["p"]) and "in the rest" in row["warning"]


def test_nothing_known_gives_no_row() -> None:
    films = draw_films(9)
    table = compute_subgroups(
        films["label"], [films["score"]], NAMES, "multilabel", films["patient"], {"site": np.full(600, "")}
    )
    assert len(table) == 0


def test_draws_are_averaged() -> None:
    films = draw_films(10)
    other = films["score"] + np.random.default_rng(0).normal(size=films["score"].shape)
    options = {"groups": {"sex": films["sex"]}, "replicates": 50}
    both, first, second = (
        compute_subgroups(films["label"], scores, NAMES, "multilabel", films["patient"], **options)
        for scores in ([films["score"], other], [films["score"]], [other])
    )
    assert both["value"].to_numpy() == pytest.approx((first["value"] + second["value"]).to_numpy() / 2)
    assert both["gap"].to_numpy() == pytest.approx((first["gap"] + second["gap"]).to_numpy() / 2)


def test_classes_have_an_accuracy_by_group() -> None:
    generator = np.random.default_rng(11)
    label, sex = generator.integers(0, 3, 300), np.where(np.arange(300) % 2, "F", "M")
    score = np.eye(3)[label] + generator.normal(size=(300, 3))
    table = compute_subgroups(
        label, [score], ("a", "b", "c"), "multiclass", np.arange(300), {"sex": sex}, metric="accuracy", replicates=50
    )
    women = sex == "F"
    assert table.loc[0, "value"] == accuracy_score(label[women], score[women].argmax(axis=1))
    assert math.isnan(table.loc[0, "positives"]) and table.loc[0, "classes"] == ""


def test_wrong_use_is_refused() -> None:
    films = draw_films(12, patients=20)
    with pytest.raises(UsageError, match="no metric named 'auroc/Nodule'"):
        compute(films, metric="auroc/Nodule")
    with pytest.raises(UsageError, match="no metric named 'kappa'"):
        compute(films, metric="kappa")
    with pytest.raises(UsageError, match="no set of scores"):
        compute_subgroups(films["label"], [], NAMES, "multilabel", films["patient"], {})
    with pytest.raises(UsageError, match="sex: 3 texts"):
        compute(films | {"sex": np.array(["F", "M", "F"])})
