"""Encoders and classifiers behind the interface of torchxrayvision's models."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from chess_cxr.device import choose_device
from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.load import load_encoder
from chess_cxr.files.whole import read_json
from chess_cxr.records import UsageError
from chess_cxr.tasks.classify.model import load_classifier
from chess_cxr.tasks.classify.objective import Classify, compute_probabilities

HIGHEST = 1024.0  # films of torchxrayvision lie in -1024 … 1024


class XrvModel(nn.Module):
    """A network that takes films as torchxrayvision does: float [B, 1, H, W] in [-1024, 1024], bone bright, any size.

    pathologies, targets: the labels of a classifier in the order of its outputs, [] for an encoder.
    The films go through the pixel contract of the network, so no gradient reaches them; the weights can be trained.
    """

    def __init__(self, network: nn.Module, contract: PixelContract, pathologies: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.network, self.contract = network, contract
        self.pathologies = self.targets = list(pathologies)

    def features(self, film_B1HW: Tensor) -> Tensor:
        """Return the pooled features: float32 [B, D]."""
        encoder = self.network.encoder if isinstance(self.network, Classify) else self.network
        assert isinstance(encoder, nn.Module)
        feature_BD: Tensor = encoder(self._prepare(film_B1HW))
        return feature_BD

    def forward(self, film_B1HW: Tensor) -> Tensor:
        """Return the probabilities of a classifier's labels, float32 [B, L], or the features of an encoder."""
        if not isinstance(self.network, Classify):
            return self.features(film_B1HW)
        return compute_probabilities(self.network(self._prepare(film_B1HW)), self.network.shape)

    def _prepare(self, film_B1HW: Tensor) -> Tensor:
        if film_B1HW.ndim != 4 or film_B1HW.shape[1] != 1:
            raise UsageError(f"films of torchxrayvision are [B, 1, H, W], not {list(film_B1HW.shape)}")
        if bool((film_B1HW.abs() > HIGHEST + 1).any()):
            raise UsageError(
                "films of torchxrayvision lie in -1024 … 1024; torchxrayvision.datasets.normalize scales them"
            )
        films_BHW = ((film_B1HW[:, 0].detach().float().cpu() / HIGHEST + 1) / 2).clamp(0, 1).numpy()
        device = next(self.network.parameters()).device
        input_BCSS = torch.stack([self.contract.prepare(film_HW) for film_HW in films_BHW])
        return input_BCSS.to(device, memory_format=torch.channels_last)


def load_as_xrv(name_or_folder: str | Path, device: str = "cpu") -> XrvModel:
    """Load an encoder or a classifier with the interface of torchxrayvision's models: `features`, `pathologies`.

    name_or_folder: what `finetune classify` wrote, or any name that `load_encoder` takes.
    """
    if read_json(Path(name_or_folder) / "config.json").get("task") == "classify":
        model = load_classifier(name_or_folder, str(choose_device(device)))
        return XrvModel(model.network, model.contract, model.labels).eval()
    encoder = load_encoder(name_or_folder, device=device)
    return XrvModel(encoder.module, encoder.contract).eval()
