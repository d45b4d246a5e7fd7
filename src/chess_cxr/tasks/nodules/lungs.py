"""Find the lungs in a frontal film with a small U-Net (Ronneberger et al. 2015) on grey ranks.

runs/fit_lung_fields.py fitted its weights, `lung_fields.safetensors`, on SYNTHETIC films alone, whose lung fields are
known exactly; docs/proof/nodules.md gives the results on real films.
"""

from __future__ import annotations

import functools
from importlib import resources

import cv2
import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import nn

from chess_cxr.records import UsageError

# Suffixes: B batch, 1 channel, H, W film, S the side of the network's input, N components.
SIDE = 128
WEIGHTS = "lung_fields.safetensors"
_WIDTHS = (16, 24, 32, 40)
_LEVELS = 1024
_MIN_SHARE = 0.2  # a piece smaller than this share of the larger lung is no lung
_FILM_SHARES = (0.03, 0.75)  # of a film that its lungs may fill
_MIN_RANGE = 2 / 255  # a film with less contrast is blank


def _build_block(channels_in: int, channels_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (channels_in, channels_out):
        layers += [nn.Conv2d(before, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()]
    return nn.Sequential(*layers)


def _double(maps: torch.Tensor) -> torch.Tensor:
    return nn.functional.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)


class LungNet(nn.Module):
    """Map grey ranks [B, 1, 128, 128] in [-1, 1] to the log odds of lung, of the same shape.

    It works on blocks of 2 x 2 pixels, at a quarter of the cost; a lung has no finer border.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(_build_block(a, b) for a, b in zip((4, *_WIDTHS[:-1]), _WIDTHS, strict=True))
        self.up = nn.ModuleList(
            _build_block(deep + fine, fine) for deep, fine in zip(_WIDTHS[:0:-1], _WIDTHS[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(_WIDTHS[0], 1, 1)

    def forward(self, rank_B1SS: torch.Tensor) -> torch.Tensor:
        """Return log odds [B, 1, S, S]."""
        passed, maps = [], nn.functional.pixel_unshuffle(rank_B1SS, 2)
        for number, block in enumerate(self.down):
            maps = block(nn.functional.max_pool2d(maps, 2) if number else maps)
            passed.append(maps)
        for block, fine in zip(self.up, passed[-2::-1], strict=True):
            maps = block(torch.cat([_double(maps), fine], dim=1))
        return _double(self.head(maps))


@functools.cache
def load_lung_net() -> LungNet:
    """Load the network of the package in evaluation mode, once per process."""
    content = resources.files("chess_cxr.tasks.nodules").joinpath(WEIGHTS).read_bytes()
    net = LungNet()
    net.load_state_dict({name: value.float() for name, value in safetensors.torch.load(content).items()})
    return net.eval()


def compute_grey_ranks(film_HW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Shrink a film to 128 x 128 and replace each grey by its rank, from -1 (darkest) to 1; float32 [S, S].

    Ranks do not depend on window or gamma.
    """
    small_SS = cv2.resize(np.ascontiguousarray(film_HW, np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    low, high = float(small_SS.min()), float(small_SS.max())
    level_SS = np.rint((small_SS - low) * ((_LEVELS - 1) / max(high - low, 1e-6))).astype(np.int64)
    count_N = np.bincount(level_SS.ravel(), minlength=_LEVELS)
    rank_N = ((2 * count_N.cumsum() - count_N) / small_SS.size - 1).astype(np.float32)
    return np.asarray(rank_N[level_SS], np.float32)


def find_lung_fields(film_HW: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return the lung fields of a frontal film, bool [H, W], without heart and mediastinum.

    film_HW: float32 in [0, 1], bone bright.  The fields have at most two pieces, without holes.  Raises `UsageError` if
    the film is blank, or the area found is too small or too large for lungs; images of other kinds may pass.
    """
    with torch.inference_mode():
        logit_SS = load_lung_net()(torch.from_numpy(compute_grey_ranks(film_HW))[None, None])[0, 0].numpy()
    height, width = film_HW.shape
    field_HW = cv2.resize(logit_SS, (width, height), interpolation=cv2.INTER_LINEAR) > 0
    lungs_HW = _keep_two_pieces(field_HW)
    is_blank = float(np.ptp(film_HW)) < _MIN_RANGE
    if is_blank or not _FILM_SHARES[0] <= lungs_HW.mean() <= _FILM_SHARES[1]:
        raise UsageError("no lung is found on the film; it must be a frontal chest film with bone bright")
    return lungs_HW


def _keep_two_pieces(field_HW: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Keep the two largest pieces and close their holes."""
    edge_HW = np.pad(field_HW, 1).astype(np.uint8)
    outlines, _ = cv2.findContours(edge_HW, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    by_area = sorted(outlines, key=cv2.contourArea, reverse=True)[:2]
    kept = [line for line in by_area if cv2.contourArea(line) > _MIN_SHARE * cv2.contourArea(by_area[0])]
    return np.asarray(cv2.drawContours(np.zeros_like(edge_HW), kept, -1, 1, cv2.FILLED)[1:-1, 1:-1] > 0)
