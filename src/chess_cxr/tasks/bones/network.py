"""A network that predicts the bone image of a film."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chess_cxr.encoders.encoder import Encoder, build_grey_network, parse_architecture
from chess_cxr.records import UsageError
from chess_cxr.tasks.bones.tiles import blend_tiles

DECODERS = {"tiny": (64, 48, 32, 24, 16), "full": (256, 128, 64, 32, 16)}
_SHARPNESS = 20.0  # of the softplus, in 1 / grey level: separates a bone of 0.05 from none
_LEAST_SPREAD = 1e-4  # of grey
_STRIDE = 32


@dataclass(frozen=True)
class BoneNetworkShape:
    """What is needed to build a bone network again.

    architecture: timm's name of the encoder.  mean, std: subtracted from grey levels in [0, 1], then divided by.
    decoder: "tiny" or "full".  spread: whether the network also says how far its bone image may be off.
    score_grey: grey of bone that a score of 1 stands for; 0: bone is the softplus of the score, as in version 0.1.
    """

    architecture: str
    mean: float = 0.5
    std: float = 0.25
    decoder: str = "tiny"
    spread: bool = False
    score_grey: float = 0.0

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise UsageError(f"a bone network's decoder is {' or '.join(DECODERS)}, not {self.decoder!r}")
        if not (-100 <= self.mean <= 100 and 1e-4 <= self.std <= 100):
            raise UsageError("a bone network's mean must lie within ±100 and its std from 0.0001 to 100")
        if not 0 <= self.score_grey <= 1:
            raise UsageError("a bone network's score_grey must lie from 0 to 1")


class BoneNetwork(nn.Module):
    """A U-Net (Ronneberger et al. 2015) on a timm encoder that predicts the grey that bone adds to a film.

    The bone image is never negative and is only subtracted, so nothing can be added to a film.
    """

    def __init__(self, shape: BoneNetworkShape) -> None:
        super().__init__()
        self.shape = shape
        parse_architecture(shape.architecture)
        widths = DECODERS[shape.decoder]
        try:
            unet: Any = smp.Unet(
                f"tu-{shape.architecture}", encoder_weights=None, in_channels=1, classes=1, decoder_channels=widths
            )
        except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(f"{shape.architecture} cannot be the encoder of a U-Net: {reason}") from None
        self.encoder, self.decoder = unet.encoder, unet.decoder
        # The decoder's last skip is at half size; the film itself restores the edges of bones
        self.head = nn.Sequential(
            nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1), nn.ReLU(), nn.Conv2d(widths[-1], 1, 3, padding=1)
        )
        nn.init.constant_(self.head[-1].bias, 0.0 if shape.score_grey else -2 / _SHARPNESS)  # type: ignore[arg-type]
        if shape.score_grey:
            nn.init.zeros_(self.head[-1].weight)  # type: ignore[arg-type]
        self.spread_head = nn.Sequential()
        if shape.spread:
            self.spread_head = nn.Sequential(
                nn.Conv2d(widths[-1] + 2, widths[-1], 3, padding=1), nn.ReLU(), nn.Conv2d(widths[-1], 1, 3, padding=1)
            )

    def forward(self, film_B1HW: Tensor) -> Tensor:
        """Return the bone image of films in [0, 1] with bone bright: grey levels, 0 or more in use, [B, 1, H, W].

        With a spread, [B, 2, H, W]: the second channel is the expected absolute error of the first.  It is learnt on
        the features as they are and does not change them.
        """
        height, width = film_B1HW.shape[-2:]
        input_B1HW = self._prepare(film_B1HW)
        detail_BCHW = self.decoder(self.encoder(input_B1HW))
        seen_BCHW = torch.cat([detail_BCHW, input_B1HW], 1)
        bone_B1HW = self._read_score(self.head(seen_BCHW))
        if self.shape.spread:
            scaled_B1HW = bone_B1HW / self.shape.std
            score_B1HW: Tensor = self.spread_head(torch.cat([seen_BCHW, scaled_B1HW], 1).detach())
            bone_B1HW = torch.cat([bone_B1HW, F.softplus(score_B1HW - 4) + _LEAST_SPREAD], 1)
        found_BCHW: Tensor = bone_B1HW[..., :height, :width]
        return found_BCHW

    def encode(self, film_B1HW: Tensor) -> list[Tensor]:
        """Return the features of the encoder's stages."""
        stages: list[Tensor] = self.encoder(self._prepare(film_B1HW))
        return stages

    def _read_score(self, score_B1HW: Tensor) -> Tensor:
        """Return the bone of scores, 0 or more; in training, that of a linear head may be negative.

        A floor would have no slope.  Most of a film has no bone, so that the first steps would push all scores below
        the floor, and the network would find no bone anywhere and stay there.
        """
        if not self.shape.score_grey:
            return F.softplus(score_B1HW, beta=_SHARPNESS)
        bone_B1HW = self.shape.score_grey * score_B1HW
        return bone_B1HW if self.training else bone_B1HW.clamp(min=0)

    def _prepare(self, film_B1HW: Tensor) -> Tensor:
        height, width = film_B1HW.shape[-2:]
        margins = (0, -width % _STRIDE, 0, -height % _STRIDE)
        return F.pad((film_B1HW - self.shape.mean) / self.shape.std, margins, mode="replicate")


def build_bone_network(
    encoder: Encoder, decoder: str = "tiny", seed: int = 0, spread: bool = False, score_grey: float = 0.0
) -> BoneNetwork:
    """Build a bone network on the weights of `encoder`; the decoder's weights are drawn from the seed.

    With a score_grey, the network begins with no bone at all.
    """
    grey, mean, std = build_grey_network(encoder)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = BoneNetwork(BoneNetworkShape(encoder.architecture, mean, std, decoder, spread, score_grey))
    known = grey.state_dict()
    wanted = network.encoder.state_dict()
    begun = {name: known.get(name.removeprefix("model.")) for name in wanted}
    if absent := [name for name, tensor in begun.items() if tensor is None or tensor.shape != wanted[name].shape]:
        raise UsageError(f"{encoder.name} lacks {absent[0]}: it cannot be the encoder of a U-Net")
    network.encoder.load_state_dict(begun)
    return network


def begin_from(network: BoneNetwork, begun: BoneNetwork) -> None:
    """Copy the weights of another network, and the scale of its bone; raise UsageError if it is of another shape."""
    told, asked = _describe_shape(begun.shape), _describe_shape(network.shape)
    if told != asked:
        raise UsageError(f"the bone model to begin from has {told}; this training asks for {asked}")
    network.load_state_dict(begun.state_dict())
    network.shape = begun.shape


def _describe_shape(shape: BoneNetworkShape) -> str:
    head = "linear" if shape.score_grey else "softplus"
    spread = "a spread" if shape.spread else "no spread"
    return f"an encoder {shape.architecture}, a {shape.decoder} decoder, a {head} head and {spread}"


def predict_bone(network: nn.Module, film_HW: np.ndarray, size: int, tile: int) -> np.ndarray:
    """Return the bone image of a film at the film's size, float32 [H, W]; see `blend_tiles`."""
    bone_HW: np.ndarray = predict_maps(network, film_HW, size, tile)[0]
    return bone_HW


@torch.inference_mode()
def predict_maps(network: nn.Module, film_HW: np.ndarray, size: int, tile: int) -> np.ndarray:
    """Return the network's maps of a film, float32 [C, H, W]: bone, and its spread if it has one; see `blend_tiles`."""
    device = next((tensor.device for tensor in network.eval().parameters()), torch.device("cpu"))

    def run(part_11TT: np.ndarray) -> np.ndarray:
        on_device = torch.from_numpy(part_11TT).to(device, memory_format=torch.channels_last)
        found: np.ndarray = network(on_device).float().cpu().numpy()
        return found

    return blend_tiles(run, film_HW, size, tile)
