"""Signals: numbers that show during training whether the embeddings are healthy.

They remain tensors until they are read, as converting one to a number makes an accelerator wait.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from chess_cxr.methods.full_precision import full_precision, normalise
from chess_cxr.training.late import read_numbers

FILMS = 256  # most films of a batch to measure: enough for a mean, and the number of pairs grows with its square


def read_signals(measured: Mapping[str, Tensor]) -> dict[str, float]:
    """Convert measured signals to numbers."""
    return read_numbers(measured)


@torch.no_grad()
def measure_pairs(first_BD: Tensor, second_BD: Tensor) -> dict[str, Tensor]:
    """Measure the embeddings of the two views of this rank's films (at most `FILMS`), normalised here.

    positive_similarity: mean cosine of the two views of a film, -1 … 1.
    alignment: mean squared distance of the two views of a film on the unit sphere, 0 … 4, smaller is closer.
    Only with two films or more:
    negative_similarity: mean cosine of views of different films.
    embedding_std: 0 if all embeddings are equal, about 1 if they fill the sphere.
    uniformity: log of the mean of exp(-2 squared distance) over pairs of films (Wang & Isola 2020, eq. 2): 0 if all
    embeddings are equal, nearly -4 if they fill the sphere.
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
    # leave out the distance of each film to itself
    spread = (torch.exp(4 * similar_BB - 4).sum() - torch.exp(4 * similar_BB.diagonal() - 4).sum()) / pairs
    return measured | {
        "negative_similarity": negative / pairs,
        "embedding_std": first_BD.std(0).mean() * width**0.5,
        "uniformity": spread.log(),
    }
