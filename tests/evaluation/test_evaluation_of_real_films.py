"""The whole of the evaluation on real films: bare pixels, a linear probe, adult NIH films with several a patient."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy import special
from sklearn.metrics import log_loss, roc_auc_score

from chess_cxr.evaluation.delong import compare_areas, estimate_area_interval
from chess_cxr.evaluation.intervals import bootstrap_draws_by_patient, paired_bootstrap_draws_by_patient
from chess_cxr.evaluation.linear_probe import fit_linear_probe
from chess_cxr.evaluation.metrics import build_multilabel_statistic
from chess_cxr.evaluation.operating_points import compute_operating_points
from chess_cxr.evaluation.reliability import compute_reliability, fit_platt, fit_temperature
from chess_cxr.evaluation.subgroups import compute_age_bands, compute_subgroups

pytestmark = pytest.mark.real_films

NAMES = ("Pneumonia", "Effusion")


@pytest.fixture(scope="module")
def nih(real_films: Path) -> dict[str, dict[str, np.ndarray]]:
    """Labels and probabilities of two findings, by pixels of 32 and of 4 a side, for val and test patients."""
    folder = real_films / "nih_covid"
    table = pd.read_csv(folder / "labels.csv").query("class3 != 'covid'").reset_index(drop=True)
    films = [cv2.imread(str(folder / file), cv2.IMREAD_GRAYSCALE) for file in table["file"]]
    # Every third patient tests, every third validates.
    part = pd.factorize(table["patient"])[0] % 3
    label = table[list(NAMES)].to_numpy(float)
    splits = {
        name: {
            "label": label[part == number],
            "patient": table["patient"].to_numpy(str)[part == number],
            "sex": table["sex"].to_numpy(str)[part == number],
            "view": table["view"].to_numpy(str)[part == number],
            "age": table["age"].to_numpy(float)[part == number],
        }
        for number, name in enumerate(("train", "val", "test"))
    }
    for side in (32, 4):
        pixel = np.stack([cv2.resize(film, (side, side), interpolation=cv2.INTER_AREA).ravel() for film in films])
        train = part == 0
        probe = fit_linear_probe(pixel[train], label[train], table["patient"].to_numpy(str)[train], names=NAMES)
        for number, name in enumerate(("train", "val", "test")):
            splits[name][f"pixels{side}"] = special.expit(probe.predict_scores(pixel[part == number]))
    return splits


def test_delong_and_the_bootstrap_agree_on_real_patients(nih: dict[str, dict[str, np.ndarray]]) -> None:
    test = nih["test"]
    assert len(np.unique(test["patient"])) < len(test["patient"])
    first, second = ([build_multilabel_statistic(test["label"], test[key], NAMES)] for key in ("pixels32", "pixels4"))
    alone = bootstrap_draws_by_patient(test["patient"], first)
    gaps = paired_bootstrap_draws_by_patient(test["patient"], first, second)
    for j, name in enumerate(NAMES):
        positive = test["label"][:, j] == 1
        area = estimate_area_interval(positive, test["pixels32"][:, j], test["patient"])
        assert area.value == pytest.approx(roc_auc_score(positive, test["pixels32"][:, j]))
        assert alone[f"auroc/{name}"].value == pytest.approx(area.value)
        width = alone[f"auroc/{name}"].high - alone[f"auroc/{name}"].low
        assert area.high - area.low == pytest.approx(width, rel=0.15)
        gap = gaps[f"auroc/{name}"]
        tested = compare_areas(positive, test["pixels32"][:, j], test["pixels4"][:, j], test["patient"])
        assert tested.clustered and tested.value == pytest.approx(gap.value)
        assert tested.high - tested.low == pytest.approx(gap.high - gap.low, rel=0.15)
        assert abs(tested.p - gap.p) < 0.1


def test_scaling_fitted_on_validation_patients_never_worsens_them(nih: dict[str, dict[str, np.ndarray]]) -> None:
    val, test = nih["val"], nih["test"]
    for scaling in (
        fit_temperature(val["label"], val["pixels32"], NAMES, "multilabel"),
        fit_platt(val["label"], val["pixels32"], NAMES),
    ):
        losses = [log_loss(val["label"][:, j], scaling.apply(val["pixels32"])[:, j]) for j in range(2)]
        assert scaling.after == pytest.approx(np.mean(losses), rel=1e-4) and scaling.after < scaling.before
        points = compute_reliability(
            test["label"], scaling.apply(test["pixels32"]), NAMES, test["patient"], "multilabel", bins=5
        )
        assert points.groupby("name")["films"].sum().to_dict() == dict.fromkeys(NAMES, len(test["label"]))
        assert ((points["low"] <= points["rate"]) & (points["rate"] <= points["high"])).all()


def test_thresholds_of_validation_patients_are_held_against_test_patients(
    nih: dict[str, dict[str, np.ndarray]],
) -> None:
    val, test = nih["val"], nih["test"]
    table = compute_operating_points(
        val["label"], val["pixels32"], test["label"], test["pixels32"], test["patient"], NAMES, "multilabel"
    ).set_index(["name", "rule"])
    row = table.loc[("Pneumonia", "sensitivity 0.9")]
    assert row["val_sensitivity"] >= 0.9 and row["test_positives"] == test["label"][:, 0].sum()
    assert row["specificity_low"] < row["specificity"] < row["specificity_high"]
    assert (table["warning"] == "").all()


def test_real_subgroups_have_values_gaps_and_warnings(nih: dict[str, dict[str, np.ndarray]]) -> None:
    test = nih["test"]
    groups = {"sex": test["sex"], "view": test["view"], "age_band": compute_age_bands(test["age"])}
    table = compute_subgroups(
        test["label"],
        [test["pixels32"]],
        NAMES,
        "multilabel",
        test["patient"],
        groups,
        metric="auroc/Pneumonia",
        replicates=200,
    ).set_index(["attribute", "group"])
    women = test["sex"] == "F"
    want = roc_auc_score(test["label"][women, 0], test["pixels32"][women, 0])
    assert table.loc[("sex", "F"), "value"] == pytest.approx(want)
    assert table.loc["sex"]["films"].sum() == len(women)
    assert set(table.loc["view"].index) == {"AP", "PA"}
    few = table["positives"] < 10
    assert few.any() and (table[few]["warning"] != "").all() and table[few]["p"].isna().all()
