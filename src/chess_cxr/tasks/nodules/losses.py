"""Losses of the nodule generator and its discriminator, computed in float32.

Scores and features are those of `MultiScaleDiscriminator`: a list of layers for each scale, of which the last scores
patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chess_cxr.tasks.perceptual import compute_distance

Layers = Sequence[Sequence[Tensor]]


def compute_generator_hinge(fake: Layers) -> Tensor:
    """Return minus the mean score of generated patches, mean over the scales (Lim & Ye 2017)."""
    return torch.stack([-layers[-1].float().mean() for layers in fake]).mean()


def compute_discriminator_hinge(fake: Layers, real: Layers) -> Tensor:
    """Return the hinge loss that pushes real patches above 1 and generated ones below -1; mean over the scales."""
    losses = [
        (1 - true[-1].float()).relu().mean() + (1 + made[-1].float()).relu().mean()
        for made, true in zip(fake, real, strict=True)
    ]
    return torch.stack(losses).mean()


def compute_feature_matching(fake: Layers, real: Layers, where_B1SS: Tensor | None = None) -> Tensor:
    """Return the L1 distance of the discriminator's features, summed over the layers except the scores.

    Mean over the scales (Wang et al. 2018, pix2pixHD, eq. 4).  No gradient flows to the real film's features.
    where_B1SS: 0 to 1, weight of each place; None for all alike.
    """
    losses = [
        compute_distance(one.float(), other.detach().float(), where_B1SS)
        for made, true in zip(fake, real, strict=True)
        for one, other in zip(made[:-1], true[:-1], strict=True)
    ]
    return torch.stack(losses).sum() / len(fake)


def compute_kl_divergence(mean_BZ: Tensor, log_variance_BZ: Tensor, free: float = 0.0) -> Tensor:
    """Return the divergence of latents from the standard normal, in nats, mean over films (Kingma & Welling 2014).

    Summed over the latent, not over the batch, so that its weight does not depend on the batch size.
    free: nats of each dimension that cost nothing (free bits, Kingma et al. 2016).
    """
    mean_BZ, log_variance_BZ = mean_BZ.float(), log_variance_BZ.float()
    nats_BZ = (mean_BZ.square() + log_variance_BZ.exp() - 1 - log_variance_BZ) / 2
    return (nats_BZ.mean(0) - free).relu().sum() if free else nats_BZ.sum(1).mean()


def compute_gradient_penalty(film_B1SS: Tensor, scores: Layers) -> Tensor:
    """Return half the squared gradient of the mean score of each film, mean over films (R1, Mescheder et al. 2018).

    film_B1SS: the films that gave `scores`; they must require a gradient.
    """
    total = torch.stack([layers[-1].float().flatten(1).mean(1).sum() for layers in scores]).mean()
    (gradient_B1SS,) = torch.autograd.grad(total, film_B1SS, create_graph=True)
    return gradient_B1SS.float().square().flatten(1).sum(1).mean() / 2
