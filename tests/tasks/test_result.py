import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from chess_cxr.evaluation.film_means import FilmMean
from chess_cxr.evaluation.intervals import Interval
from chess_cxr.tasks.bones.train import BonesResult
from chess_cxr.tasks.result import TaskResult, blank_unknown, list_kinds


@dataclass(frozen=True, kw_only=True)
class ToyResult(TaskResult):
    films: int

    def describe_basis(self) -> str:
        return f"{self.films} films"

    def list_notes(self) -> Sequence[str]:
        return ["a note"]


def test_a_task_adds_its_own_part_to_what_results_share() -> None:
    result = ToyResult(metrics={"psnr": Interval(30.0, 29.5, math.inf)}, encoder="mine", seed=3, films=5)
    assert result.as_text().splitlines() == [
        f"{'psnr':26s} 30.000 [29.500, inf]", "(5 films; 95 % bootstrap by patient, seed 3)", "a note",
    ]  # fmt: skip
    described = result.as_json()
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert (described["films"], described["encoder"], described["metrics"]["psnr"]["high"]) == (5, "mine", None)


def test_bones_are_compared_with_the_film_as_it_is() -> None:
    means = {name: FilmMean(value, value - 1, value + 1) for name, value in (("psnr", 30.0), ("ssim", 2.0))}
    before = {"psnr": FilmMean(20.0, 0.0, 0.0), "ssim": FilmMean(math.nan, 0.0, 0.0)}
    result = BonesResult(
        metrics=means, before=before, pairs={"train": 9, "test": 2}, kinds=("jsrt", "phantom"), encoder="mine",
        perceptual="none", seed=0,
    )  # fmt: skip
    lines = result.as_text().splitlines()
    assert lines[1].endswith("31.000]  20.000") and lines[2].rstrip().endswith("3.000]")
    assert (
        lines[3] == "(2 test pairs: jsrt, phantom (SYNTHETIC); trained on 9 pairs; 95 % bootstrap by patient, seed 0)"
    )
    assert result.as_json()["before"]["ssim"]["value"] is None


def test_kinds_without_a_phantom_are_not_synthetic() -> None:
    assert list_kinds(["jsrt", "node21"]) == "jsrt, node21"


def test_what_is_no_number_is_none_in_json() -> None:
    assert blank_unknown({"a": [float("nan"), 1.0, (float("inf"), "x")]}) == {"a": [None, 1.0, [None, "x"]]}
