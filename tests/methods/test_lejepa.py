"""LeJEPA against slow manual oracles."""

import cmath
import math
from statistics import fmean

import pytest
import torch

from chess_cxr.methods.lejepa import LeJEPA, LeJEPAConfig, compute_sigreg
from chess_cxr.records import UsageError
from tiny_methods import build_tiny, give


def test_sigreg_is_the_statistic_of_epps_and_pulley_written_out() -> None:
    generator = torch.Generator().manual_seed(1)
    embedded = torch.randn(3, 7, 4, generator=generator) * 1.5 + 0.3
    direction = torch.nn.functional.normalize(torch.randn(4, 5, generator=generator), dim=0)
    knots, reach, statistics = 9, 4.0, []
    step = reach / (knots - 1)
    for view in embedded:
        for column in direction.T:
            projected = [float(film @ column) for film in view]
            total = 0.0
            for place in range(-(knots - 1), knots):  # from -reach to reach, the ends by half
                t = place * step
                mean = fmean(math.cos(t * x) for x in projected) + 1j * fmean(math.sin(t * x) for x in projected)
                squared = abs(mean - cmath.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2)
                total += squared * step * (0.5 if abs(place) == knots - 1 else 1)
            statistics.append(len(projected) * total)
    assert compute_sigreg(embedded, direction, knots, reach).item() == pytest.approx(fmean(statistics), rel=1e-4)


def test_sigreg_is_small_for_a_gaussian_and_large_for_a_point_and_for_a_line() -> None:
    generator = torch.Generator().manual_seed(2)
    normal = torch.randn(1, 4000, 8, generator=generator)
    direction = torch.nn.functional.normalize(torch.randn(8, 64, generator=generator), dim=0)
    line = normal[..., :1] * torch.ones(8)
    good, point, flat = (compute_sigreg(it, direction, 17, 5.0).item() for it in (normal, 0 * normal, line))
    assert good < 2 < 100 * good < min(point, flat)


def test_the_loss_weighs_prediction_and_sigreg(phantom_pairs: torch.Tensor) -> None:
    method = build_tiny("lejepa + local")
    ((_, loss),) = method.losses(give("local", phantom_pairs))
    views = give("local", phantom_pairs)
    with torch.no_grad():
        embedded = [method.head(method.encoder(view)) for view in views.global_GB1SS]
        local = method.head(method.encoder(views.local_LB1ss.flatten(0, 1))).view(2, 16, -1)
    middle = (embedded[0] + embedded[1]) / 2
    prediction = fmean(((view - middle) ** 2).mean().item() for view in [*embedded, *local])
    assert method.signals["prediction"] == pytest.approx(prediction, rel=1e-3)
    assert loss.item() == pytest.approx(0.8 * prediction + 0.2 * method.signals["sigreg"], rel=1e-3)


def test_directions_are_the_steps_own(phantom_pairs: torch.Tensor) -> None:
    method = build_tiny("lejepa")
    found = []
    for _ in range(3):
        list(method.losses(phantom_pairs))
        found.append(method.signals["sigreg"])
        if len(found) == 2:
            method.after_step()
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"regularisation": 1.5}, "regularisation must be from 0 to 1"),
        ({"knots": 1}, "knots 2 or more"),
        ({"reach": 0.0}, "reach above 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(changed: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        LeJEPA(LeJEPAConfig("test_resnet", 8, **changed))


def test_a_film_alone_is_refused(phantom_pairs: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="at least 2 films"):
        list(build_tiny("lejepa").eval().losses(phantom_pairs[:, :1]))
