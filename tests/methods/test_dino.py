"""DINO against slow manual oracles."""

import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch

from chess_cxr.methods import build_method
from chess_cxr.methods.dino import DINO, DINOConfig, compute_dino_loss
from chess_cxr.records import UsageError
from tiny_methods import CONFIGS, build_tiny, give


def soften(scores: list[float], temperature: float) -> list[float]:
    powers = [math.exp(score / temperature) for score in scores]
    return [power / sum(powers) for power in powers]


def test_the_loss_is_the_cross_entropy_of_all_pairs_of_different_views() -> None:
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(4, 3, 5, generator=generator), torch.randn(2, 3, 5, generator=generator)
    centre = torch.randn(5, generator=generator)
    terms = []
    for of in range(2):
        for view in range(4):
            for film in range(3):
                if view == of:
                    continue
                target = soften((teacher[of, film] - centre).tolist(), 0.05)
                said = soften(student[view, film].tolist(), 0.1)
                terms.append(-sum(t * math.log(s) for t, s in zip(target, said, strict=True)))
    assert compute_dino_loss(student, teacher, centre, 0.1, 0.05).item() == pytest.approx(fmean(terms), rel=1e-4)


def test_the_centre_follows_the_teachers_scores(phantom_pairs: torch.Tensor) -> None:
    method = build_tiny("dino")
    with torch.no_grad():
        scores = torch.stack([method.teacher_head(method.teacher_encoder(view)) for view in phantom_pairs])
    list(method.losses(phantom_pairs))
    method.after_step()
    torch.testing.assert_close(method.centre_P, 0.1 * scores.mean((0, 1)), rtol=1e-3, atol=1e-5)


def test_the_teacher_sees_global_views_alone(phantom_pairs: torch.Tensor) -> None:
    method = build_tiny("dino + local")
    seen = []
    method.teacher_encoder.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[-1]))
    list(method.losses(give("local", phantom_pairs)))
    assert seen == [32, 32]


def test_temperature_and_prototypes_follow_the_run(phantom_pairs: torch.Tensor) -> None:
    config = replace(CONFIGS["dino"], teacher_temperature=0.08, teacher_warmup=0.5, frozen_prototypes=0.25)
    method = build_method(config, steps=8)
    assert isinstance(method, DINO)
    assert [round(method._compute_temperature(step), 4) for step in (0, 2, 4, 8)] == [0.04, 0.06, 0.08, 0.08]
    moved = []
    for _ in range(4):
        method.zero_grad()
        ((_, loss),) = method.losses(phantom_pairs)
        loss.backward()
        moved.append(method.head.prototype_PD.grad is not None)
        method.after_step()
    assert moved == [False, False, True, True]


def test_entropies_tell_a_sure_teacher_from_a_collapsed_one(phantom_pairs: torch.Tensor) -> None:
    method = build_tiny("dino")
    sure = torch.eye(12).repeat(2, 1, 1) * 5
    told = method._measure_entropy(sure, 0.05)
    assert told["teacher_entropy"] < 0.01 and told["used_entropy"] > 0.99
    collapsed = torch.zeros(2, 12, 12)
    collapsed[..., 3] = 5
    assert method._measure_entropy(collapsed, 0.05)["used_entropy"] < 0.01


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"student_temperature": 0.0}, "temperatures must be above 0"),
        ({"prototypes": 1}, "prototypes must be 2 or more"),
        ({"teacher_warmup": 2.0}, "shares of the run"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(changed: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        DINO(DINOConfig("test_resnet", 8, **changed))
