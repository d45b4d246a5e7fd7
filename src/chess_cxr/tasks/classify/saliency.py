"""Saliency maps of a classifier: Grad-CAM and occlusion by captum, mapped back onto the film.

A saliency map shows what moved a score, not what is ill.  `chess_cxr.tasks.classify.pointing` measures how often its
brightest point lies in a known finding, against chance.

Shape suffixes: B films, C channels, S side of the network's input, L classes or findings, H, W pixels of the film.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.encoder import Encoder
from chess_cxr.evaluation.linear_probe import LinearProbe
from chess_cxr.records import UsageError, import_extra
from chess_cxr.tasks.classify.losses import Task
from chess_cxr.tasks.classify.objective import Classify, HeadShape

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
    network.eval()
    chosen = find_spatial_layer(network, contract) if how == "grad_cam" and layer is None else layer
    device = next(network.parameters()).device
    maps = []
    for film_HW in films:
        input_1CSS = contract.prepare(film_HW)[None].to(device)
        if how == "grad_cam":
            map_BSS = compute_grad_cam(network, chosen, input_1CSS, target)
        else:
            map_BSS = compute_occlusion(network, input_1CSS, target, window)
        maps.append(_scale(lay_on_film(map_BSS[0], contract, *film_HW.shape)))
    return maps


def choose_method(network: nn.Module, contract: PixelContract) -> HowToLook:
    """Return Grad-CAM for a network with feature maps, occlusion for any other."""
    try:
        find_spatial_layer(network, contract)
    except UsageError:
        return "occlusion"
    return "grad_cam"


def find_spatial_layer(network: nn.Module, contract: PixelContract, least_side: int = LEAST_SIDE) -> nn.Module:
    """Return the last part of a network whose maps [B, channels, h, w] have at least this many cells a side.

    It is the default of Grad-CAM: deep enough to know classes, fine enough to tell places apart.  Layers inside a part
    with coarser maps are its side branches, whose gradient may vanish, and are skipped.
    Raises UsageError for networks without such maps (transformers); occlusion works with any network.
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


def compute_grad_cam(network: nn.Module, layer: nn.Module | None, input_BCSS: Tensor, target: int) -> np.ndarray:
    """Return Grad-CAM (Selvaraju et al. 2017) of a class at `layer`, float32 [B, S, S], enlarged bilinearly.

    Works also if all weights are frozen.
    """
    if layer is None:
        raise UsageError("Grad-CAM needs the layer to look at: see find_spatial_layer")
    captum = import_extra("captum.attr", "saliency", "saliency")
    with torch.enable_grad():
        looked_at = input_BCSS.detach().requires_grad_(True)
        coarse_B1hw = captum.LayerGradCam(network, layer).attribute(looked_at, target=target, relu_attributions=True)
    size = tuple(input_BCSS.shape[-2:])
    fine_B1SS = captum.LayerAttribution.interpolate(coarse_B1hw.detach().float(), size, "bilinear")
    map_BSS: np.ndarray = fine_B1SS[:, 0].cpu().numpy()
    return map_BSS


def compute_occlusion(network: nn.Module, input_BCSS: Tensor, target: int, window: int = 0) -> np.ndarray:
    """Return by how much the score falls when a square is covered (Zeiler & Fergus 2014), float32 [B, S, S].

    window: side of the square in pixels of the network's input, an eighth of it by default, moved by half its side.
    The cover is 0 in the network's input, the mean grey of its training films.  The map is 0 where covering raises the
    score.
    """
    side = input_BCSS.shape[-1]
    window = window or max(2, side // 8)
    if not 0 < window <= side:
        raise UsageError(f"a window of {window} pixels does not fit an input of {side}")
    captum = import_extra("captum.attr", "saliency", "saliency")
    channels, step = input_BCSS.shape[1], max(1, window // 2)
    with torch.no_grad():
        drop_BCSS = captum.Occlusion(network).attribute(
            input_BCSS,
            sliding_window_shapes=(channels, window, window),
            strides=(channels, step, step),
            target=target,
            baselines=0.0,
            perturbations_per_eval=32,
        )
    map_BSS: np.ndarray = drop_BCSS.mean(1).clamp(min=0).float().cpu().numpy()
    return map_BSS


def lay_on_film(map_SS: np.ndarray, contract: PixelContract, height: int, width: int) -> np.ndarray:
    """Map a saliency map back to the film's shape: float32 [height, width]; 0 in parts that the contract crops off."""
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
