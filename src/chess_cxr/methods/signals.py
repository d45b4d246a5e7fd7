"""Numbers that tell, while a method trains, whether its embeddings are healthy.

They stay tensors until somebody asks: turning one into a number makes an accelerator wait.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from chess_cxr.methods.full_precision import full_precision, normalise

FILMS = 256  # of a batch that are looked at: enough for a mean, and the pairs of a batch grow with its square


def read_signals(measured: Mapping[str, Tensor]) -> dict[str, float]:
    """Turn measured signals into numbers."""
    return {name: float(value) for name, value in measured.items()}


@torch.no_grad()
def measure_pairs(first_BD: Tensor, second_BD: Tensor) -> dict[str, Tensor]:
    """Measure the embeddings of the two views of this rank's films (at most `FILMS`); lengths do not matter.

    A single film has only what its own two views say.
    positive_similarity: mean cosine of the two views of a film, -1 … 1.
    negative_similarity: mean cosine of views of different films.
    embedding_std: 0 where all embeddings are one, about 1 where they fill the sphere.
    alignment: mean squared distance of the two views of a film on the unit sphere, 0 … 4, smaller is closer.
    uniformity: log of the mean of exp(-2 squared distance) over pairs of films (Wang & Isola 2020, eq. 2): 0
    where all embeddings are one, nearly -4 where they fill the sphere.
    """
    first_BD, second_BD = (normalise(view[:FILMS]) for view in (first_BD, second_BD))
    films, width = first_BD.shape
    positive_B = (first_BD * second_BD).sum(1)
    measured = {"positive_similarity": positive_B.mean(), "alignment": 2 - 2 * positive_B.mean()}
    if films == 1:
        return measured
    pairs = films * (films - 1)
    with full_precision(first_BD.device):
        similar_BB = first_BD @ first_BD.T
        negative = first_BD.sum(0) @ second_BD.sum(0) - positive_B.sum()
    # a film's distance to itself is 0 and counts exp(0) = 1: it is taken out of the sum
    spread = (torch.exp(4 * similar_BB - 4).sum() - torch.exp(4 * similar_BB.diagonal() - 4).sum()) / pairs
    return measured | {
        "negative_similarity": negative / pairs,
        "embedding_std": first_BD.std(0).mean() * width**0.5,
        "uniformity": spread.log(),
    }
