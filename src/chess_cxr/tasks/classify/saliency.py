"""Saliency maps of a classifier: Grad-CAM and occlusion, mapped back onto the film.

A saliency map shows what moved a score, not what is ill.  `chess_cxr.tasks.classify.pointing` measures how often its
brightest point lies in a known finding, against chance.

Shape suffixes: B films, C channels, S side of the network's input, L classes or findings, T those to explain, H, W
pixels of the film.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.evaluation.linear_probe import LinearProbe
from chess_cxr.records import UsageError
from chess_cxr.tasks.classify.losses import Task
from chess_cxr.tasks.classify.objective import Classify, compute_probabilities
from chess_cxr.tasks.classify.shape import HeadShape

HowToLook = Literal["grad_cam", "occlusion"]
LEAST_SIDE = 4  # a layer of fewer cells a side can hardly point at anything


def build_probe_network(encoder: Encoder, probe: LinearProbe) -> Classify:
    """Join an encoder and its linear probe in a network, [B, C, S, S] -> scores [B, L] before softmax or sigmoid.

    Its last layer includes the probe's standardisation.  The encoder's module is shared, not copied.
    """
    task_name: Task = "multilabel" if probe.multilabel else "multiclass"
    task = Classify(encoder.module, HeadShape("linear", task_name, encoder.feature_count, len(probe.intercept_C)))
    weight_LD, bias_L = probe.fold_scaling()
    head = {"weight": torch.from_numpy(weight_LD).float(), "bias": torch.from_numpy(bias_L).float()}
    task.head.load_state_dict(head)
    return task.to(encoder.device).eval()


def compute_saliency(
    network: nn.Module,
    contract: PixelContract,
    films: Sequence[np.ndarray],
    target: int,
    how: HowToLook = "grad_cam",
    *,
    layer: nn.Module | None = None,
    window: int = 0,
) -> list[np.ndarray]:
    """Return a map for each film, float32 [H, W] like the film, in [0, 1]; 0 where nothing supports the class.

    network: [B, C, S, S] -> scores [B, L] before softmax or sigmoid.  films: float [H, W] in [0, 1], bone bright.
    target: number of the class or finding.  layer, window: see `compute_grad_cam` and `compute_occlusion`.
    Each map is divided by its largest value; a map of zeros stays unchanged.
    """
    return [explain_film(network, contract, film_HW, [target], how, layer=layer, window=window)[0] for film_HW in films]


class LabelScores(nn.Module):
    """A classifier whose scores [B, L] each speak for one label, whatever its task."""

    def __init__(self, network: Classify) -> None:
        super().__init__()
        self.network = network

    def forward(self, film_BCSS: Tensor) -> Tensor:
        """Score films: of an order the log-probability of each class, of a third class present against absent."""
        score: Tensor = self.network(film_BCSS)
        if self.network.shape.task == "ordinal":
            return compute_probabilities(score, self.network.shape).clamp_min(1e-12).log()
        return score[..., 1] - score[..., 0] if self.network.shape.third_class else score


def compute_label_maps(network: Classify, contract: PixelContract, film_HW: np.ndarray) -> np.ndarray:
    """Return a map for each label of a classifier, float32 [L, H, W] as in `compute_saliency`.

    Grad-CAM, or occlusion for a network without feature maps, see `choose_method`.
    """
    scores = LabelScores(network)
    return explain_film(scores, contract, film_HW, range(network.shape.labels), choose_method(scores, contract))


def explain_film(
    network: nn.Module,
    contract: PixelContract,
    film_HW: np.ndarray,
    targets: Sequence[int],
    how: HowToLook = "grad_cam",
    *,
    layer: nn.Module | None = None,
    window: int = 0,
) -> np.ndarray:
    """Return a map for each of some classes of one film, float32 [T, H, W]; arguments as in `compute_saliency`."""
    network.eval()
    input_1CSS = contract.prepare(film_HW)[None].to(next(network.parameters()).device)
    if how == "grad_cam":
        chosen = layer or find_spatial_layer(network, contract)
        map_TSS = compute_grad_cam(network, chosen, input_1CSS, targets)
    else:
        map_TSS = compute_occlusion(network, input_1CSS, targets, window)
    return np.stack([_scale(lay_on_film(map_SS, contract, *film_HW.shape)) for map_SS in map_TSS])


def choose_method(network: nn.Module, contract: PixelContract) -> HowToLook:
    """Return Grad-CAM for a network with feature maps, occlusion for any other."""
    try:
        find_spatial_layer(network, contract)
    except UsageError:
        return "occlusion"
    return "grad_cam"


def find_spatial_layer(network: nn.Module, contract: PixelContract, least_side: int = LEAST_SIDE) -> nn.Module:
    """Return the last part of a network that still gives maps [B, channels, h, w] of at least this many cells a side.

    Grad-CAM looks there by default: deep enough to know classes, fine enough to tell places.  Layers inside a part that
    itself gives coarser maps are side branches of it, whose gradient may be nothing, and are passed over.
    Raises UsageError for networks without such maps (transformers): occlusion takes any network.
    """
    cells: dict[str, int] = {}  # in the order in which the parts end; a side of each map

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def remember(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                cells[name] = min(output.shape[2:])

        return module.register_forward_hook(remember)

    hooks = [watch(name, module) for name, module in network.named_modules() if name]
    try:
        blank_1CSS = torch.zeros(1, contract.channels, contract.size, contract.size)
        with torch.no_grad():
            network(blank_1CSS.to(next(network.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    fine = [name for name, side in cells.items() if side >= least_side]
    coarse = [f"{name}." for name, side in cells.items() if side < least_side]
    trunk = [name for name in fine if not name.startswith(tuple(coarse))]
    if not fine:
        raise UsageError(f"the network has no layer with maps of {least_side} x {least_side} cells: use occlusion")
    return network.get_submodule((trunk or fine)[-1])


def compute_grad_cam(network: nn.Module, layer: nn.Module, input_1CSS: Tensor, targets: Sequence[int]) -> np.ndarray:
    """Grad-CAM (Selvaraju et al. 2017): float32 [T, S, S], what speaks for each class at `layer`, enlarged bilinearly.

    Runs the network once, and back to the layer for each class.  Works also where all weights are frozen.
    """
    seen = list[Tensor]()
    hook = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        with torch.enable_grad():
            score_1L = network(input_1CSS.detach().requires_grad_(True))
    finally:
        hook.remove()
    map_1Dhw, maps = seen[-1], []
    for target in targets:
        [slope_1Dhw] = torch.autograd.grad(score_1L[0, target], map_1Dhw, retain_graph=True, allow_unused=True)
        weight_1D11 = torch.zeros(()) if slope_1Dhw is None else slope_1Dhw.mean((2, 3), keepdim=True)
        maps.append((weight_1D11 * map_1Dhw.detach()).sum(1, keepdim=True).relu())
    fine_T1SS = F.interpolate(torch.cat(maps).float(), input_1CSS.shape[-2:], mode="bilinear")
    map_TSS: np.ndarray = fine_T1SS[:, 0].cpu().numpy()
    return map_TSS


@torch.no_grad()
def compute_occlusion(
    network: nn.Module, input_1CSS: Tensor, targets: Sequence[int], window: int = 0, batch: int = 32
) -> np.ndarray:
    """Occlusion (Zeiler & Fergus 2014): float32 [T, S, S], the mean fall of a score over squares that cover a pixel.

    window: side of the square in pixels of the network's input, an eighth of it by default, moved by half its side.
    The cover is 0 in the network's input, the mean grey of its training films.  Where covering raises the score, 0.
    """
    side = input_1CSS.shape[-1]
    window = window or max(2, side // 8)
    if not 0 < window <= side:
        raise UsageError(f"a window of {window} pixels does not fit an input of {side}")
    step = max(1, window // 2)
    starts = range(0, side - window + step, step)  # the last square may reach over the edge
    squares = [(..., slice(top, top + window), slice(left, left + window)) for top in starts for left in starts]
    whole_1L = network(input_1CSS)
    fall_TSS, covers_SS = np.zeros((len(targets), side, side), np.float32), np.zeros((side, side), np.float32)
    for begin in range(0, len(squares), batch):
        part = squares[begin : begin + batch]
        covered_BCSS = input_1CSS.repeat(len(part), 1, 1, 1)
        for film_CSS, square in zip(covered_BCSS, part, strict=True):
            film_CSS[square] = 0
        fall_BT = (whole_1L - network(covered_BCSS))[:, list(targets)].float().cpu().numpy()
        for fall_T, square in zip(fall_BT, part, strict=True):
            fall_TSS[square] += fall_T[:, None, None]
            covers_SS[square[1:]] += 1
    mean_TSS: np.ndarray = np.maximum(fall_TSS / covers_SS, 0)
    return mean_TSS


def lay_on_film(map_SS: np.ndarray, contract: PixelContract, height: int, width: int) -> np.ndarray:
    """Undo what the contract did to a film's shape: float32 [height, width]; 0 where a crop had cut the film off."""
    short, long = min(height, width), max(height, width)
    if contract.fit == "crop":
        top, left = (height - short) // 2, (width - short) // 2
        laid_HW = np.zeros((height, width), np.float32)
        laid_HW[top : top + short, left : left + short] = _resize(map_SS, short, short)
        return laid_HW
    if contract.fit == "pad":
        top, left = (long - height) // 2, (long - width) // 2
        return _resize(map_SS, long, long)[top : top + height, left : left + width]
    return _resize(map_SS, height, width)


def _resize(map_SS: np.ndarray, height: int, width: int) -> np.ndarray:
    resized: np.ndarray = cv2.resize(map_SS.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return resized


def _scale(map_HW: np.ndarray) -> np.ndarray:
    most = float(map_HW.max())
    scaled: np.ndarray = map_HW / most if most > 0 else np.zeros_like(map_HW)
    return scaled
