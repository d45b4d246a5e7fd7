"""Films for all methods."""

import pytest
import torch

from chess_cxr.sources.phantom.film import draw_anatomy, draw_exposure, render_film
from chess_cxr.views import ViewConfig, draw_view_pairs

VIEWS = ViewConfig(size=32, crop_area=(0.6, 1.0), contrast=(-0.2, 0.2), brightness=(-0.1, 0.1), tone_p=1.0)


@pytest.fixture(scope="session")
def phantom_pairs() -> torch.Tensor:
    """View pairs of 16 generated films of as many patients, normalised float32 [2, 16, 1, 32, 32]; SYNTHETIC."""
    films = [render_film(draw_anatomy(n), draw_exposure(n), size=64).pixels // 16 for n in range(16)]
    pairs = draw_view_pairs([film.astype("uint8") for film in films], range(16), 0, VIEWS)
    return (torch.from_numpy(pairs).float() / 255 - 0.5) / 0.25
