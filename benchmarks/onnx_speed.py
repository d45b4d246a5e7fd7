"""Time a classifier of 14 findings for one film: torch eager against ONNX Runtime, and three ways to make its maps.

usage: OMP_NUM_THREADS=1 python benchmarks/onnx_speed.py [NETWORK@SIZE …] [--rounds N]

maps: Grad-CAM of all 14 findings in torch; by captum, finding by finding; as second output of the ONNX graph, for
which the head must be linear on the mean of the last feature map, and the map is that of the last layer.
"""

import argparse
import io
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.encoder import build_network
from chess_cxr.encoders.onnx_network import OPSET, export_onnx
from chess_cxr.encoders.onnx_session import OnnxSession
from chess_cxr.records import import_extra
from chess_cxr.tasks.classify.objective import Classify
from chess_cxr.tasks.classify.saliency import compute_grad_cam, find_spatial_layer
from chess_cxr.tasks.classify.shape import HeadShape
from peers import import_peer

captum = import_peer("captum.attr")
LABELS = 14


class WithMaps(nn.Module):
    """A classifier whose second output says where each score comes from (Zhou et al. 2016), [B, L, h, w]."""

    def __init__(self, network: Classify) -> None:
        super().__init__()
        self.network = network

    def forward(self, film_BCSS: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and maps."""
        assert self.network.encoder is not None
        map_BDhw = self.network.encoder.forward_features(film_BCSS)
        weight_LD11 = self.network.head.weight[:, :, None, None]
        return self.network.head(map_BDhw.mean((2, 3))), nn.functional.conv2d(map_BDhw, weight_LD11).relu()


def build(architecture: str) -> Classify:
    torch.manual_seed(0)
    encoder = build_network(architecture, 1)
    network = Classify(encoder, HeadShape("linear", "multilabel", int(encoder.num_features), LABELS))
    nn.init.normal_(network.head.weight, std=0.1)
    return network.to(memory_format=torch.channels_last).eval()


def open_with_maps(network: Classify, film: Tensor) -> Callable[[Tensor], list[np.ndarray]]:
    onnxruntime = import_extra("onnxruntime", "onnx", "this benchmark")
    written, options = io.BytesIO(), onnxruntime.SessionOptions()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        names = {"input_names": ["pixels"], "output_names": ["score", "map"]}
        torch.onnx.export(WithMaps(network).eval(), (film,), written, dynamo=False, opset_version=OPSET, **names)
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(written.getvalue(), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": pixels.numpy()})


def use_captum(network: Classify, layer: nn.Module, film: Tensor) -> Tensor:
    found = [
        captum.LayerGradCam(network, layer).attribute(film, target=n, relu_attributions=True) for n in range(LABELS)
    ]
    return captum.LayerAttribution.interpolate(torch.cat(found).detach(), tuple(film.shape[-2:]), "bilinear")[:, 0]


def time_all(name: str, rounds: int) -> None:
    architecture, _, side = name.partition("@")
    network, contract = build(architecture), PixelContract(int(side), (0.5,), (0.25,))
    film = torch.randn(1, 1, contract.size, contract.size)
    onnx, with_maps = OnnxSession(export_onnx(network, film), threads=1), open_with_maps(network, film)
    layer = find_spatial_layer(network, contract)

    def run_torch() -> Tensor:
        with torch.inference_mode():
            return network(film.to(memory_format=torch.channels_last))

    ways: dict[str, Callable[[], Any]] = {
        "torch": run_torch,
        "onnx": lambda: onnx.run(film.numpy()),
        "maps torch": lambda: compute_grad_cam(network, layer, film, range(LABELS)),
        "maps onnx": lambda: with_maps(film),
        "maps captum": lambda: use_captum(network, layer, film),
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):  # the first round warms up
        for way, call in ways.items():
            started = time.perf_counter()
            call()
            if number:
                taken[way].append(1000 * (time.perf_counter() - started))
    print(f"{name}, one film, one thread, median of {rounds} alternating rounds")
    for way, milliseconds in taken.items():
        print(f"  {way:12s} {statistics.median(milliseconds):9.2f} ms   least {min(milliseconds):9.2f}")
    print(
        f"  onnx is {statistics.median(taken['torch']) / statistics.median(taken['onnx']):.2f} times as fast as torch"
    )
    tell_agreement(network, contract, layer, film, with_maps(film)[1])


def tell_agreement(network: Classify, contract: PixelContract, layer: nn.Module, film: Tensor, map_1Lhw: Any) -> None:
    size = film.shape[-2:]
    ours_LSS = torch.from_numpy(compute_grad_cam(network, layer, film, range(LABELS)))
    graph_LSS = nn.functional.interpolate(torch.from_numpy(map_1Lhw), size, mode="bilinear")[0]
    ours, graph = ours_LSS / ours_LSS.max(), graph_LSS / graph_LSS.max()
    cells = "x".join(map(str, map_1Lhw.shape[2:]))
    print(f"  maps of torch and of the graph ({cells} cells) differ by up to {float((ours - graph).abs().max()):.2g}")
    miss = float((use_captum(network, layer, film) - ours_LSS).abs().max())
    print(f"  maps of torch and of captum differ by up to {miss:.2g}")


def main() -> None:
    """Time each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["regnetx_002@96", "resnet50@512"])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.networks:
        time_all(name, options.rounds)


if __name__ == "__main__":
    main()
