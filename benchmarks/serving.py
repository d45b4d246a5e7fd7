"""Time a served classifier: ONNX Runtime against torch, what a request costs around the network, many clients at once.

usage: python benchmarks/serving.py [NETWORK@SIZE …] [--clients N] [--seconds S] [--soak MINUTES] [--requests N]
       [--threads N]

Writes a classifier of 14 findings with weights by chance, serves it by `chess-cxr serve` on loopback, once by ONNX
Runtime and once by torch, and posts a film of 512 x 512 as PNG.
"""

import argparse
import contextlib
import http.client
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from chess_cxr.encoders.contract import PixelContract, draw_golden_film
from chess_cxr.encoders.encoder import build_network
from chess_cxr.sources.phantom.film import MAX_PIXEL, draw_anatomy, draw_exposure, render_film
from chess_cxr.tasks.classify.model import load_classifier
from chess_cxr.tasks.classify.objective import Classify
from chess_cxr.tasks.classify.shape import HeadShape
from chess_cxr.tasks.model_folder import describe_files, pack_tensors
from chess_cxr.tasks.runtime import build_runtime_files
from memory import read_memory_mib

LABELS = [f"finding {number}" for number in range(14)]


def write_model(folder: Path, architecture: str, side: int) -> None:
    contract = PixelContract(side, (0.5,), (0.25,))
    torch.manual_seed(0)
    encoder = build_network(architecture, 1)
    shape = HeadShape("linear", "multilabel", int(encoder.num_features), len(LABELS))
    network = Classify(encoder, shape).eval()
    files, missing = build_runtime_files(network, contract.prepare_array)
    assert not missing, missing
    weights = pack_tensors(network.state_dict())
    config = {
        "task": "classify", "head": asdict(shape), "labels": LABELS, "architecture": architecture,
        "contract": asdict(contract), "files": describe_files({"model.safetensors": weights, **files}),
    }  # fmt: skip
    folder.mkdir()
    for name, content in {"model.safetensors": weights, **files}.items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text(json.dumps(config))


def draw_film() -> bytes:
    """Draw a phantom film (SYNTHETIC)."""
    film_HW = render_film(draw_anatomy(3), draw_exposure(3), "normal", 512).pixels / MAX_PIXEL
    written = io.BytesIO()
    Image.fromarray(np.rint(255 * film_HW).astype(np.uint8)).save(written, "PNG")
    return written.getvalue()


class Server:
    """`chess-cxr serve` in a process of its own."""

    def __init__(self, model: Path, runtime: str, threads: int, *words: str) -> None:
        with socket.socket() as plug:
            plug.bind(("127.0.0.1", 0))
            self.port = int(plug.getsockname()[1])
        command = [sys.executable, "-m", "chess_cxr", "serve", str(model), "--port", str(self.port)]
        begun, environment = time.perf_counter(), os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [*command, "--runtime", runtime, *words], stderr=subprocess.DEVNULL, env=environment
        )
        while not self.is_ready():
            assert self.process.poll() is None, "the server ended"
            time.sleep(0.02)
        self.seconds, self.cpu_seconds = time.perf_counter() - begun, self.get_cpu_seconds()

    def is_ready(self) -> bool:
        """Whether it takes requests."""
        try:
            return self.ask("GET", "/ready")[0] == 200
        except OSError:
            return False

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str | None]:
        """Return the status of an answer, and its Retry-After."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            connection.request(method, path, body, {"Content-Type": "image/png"})
            reply = connection.getresponse()
            reply.read()
            return reply.status, reply.headers["Retry-After"]
        finally:
            connection.close()

    def get_cpu_seconds(self) -> float:
        """Return the seconds of CPU that the server has taken, without its children."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def get_memory_mib(self) -> int:
        """Return the resident memory of the server and its children, in MiB."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        children = {pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()}
        return sum(map(read_resident_mib, (str(self.process.pid), *children)))

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(60)


def read_resident_mib(pid: str) -> int:
    """Return the resident memory of a process, in MiB; 0 if it has ended."""
    with contextlib.suppress(OSError):
        return int(read_memory_mib("VmRSS", pid))
    return 0


def soak(server: Server, film: bytes, minutes: int) -> None:
    """Let two clients post films for some minutes; tell the memory after each."""
    memory, kinds = list[int](), Counter[str]()
    for _ in range(minutes):
        kinds += crowd(server, film, 2, 60)[1]
        memory.append(server.get_memory_mib())
    print(f"  soak of {minutes} minutes: {dict(kinds)}, MiB after each minute {memory}")


def time_network(model: Path, runtime: str, rounds: int) -> float:
    """Return the median milliseconds that a film takes from array to probabilities, in this process."""
    loaded, film = load_classifier(model, "cpu", runtime), draw_golden_film(410).astype(np.float32)
    taken = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        loaded.predict([film])
        taken.append(1000 * (time.perf_counter() - begun))
    return statistics.median(taken[1:])


def time_requests(server: Server, film: bytes, requests: int) -> float:
    taken = []
    for _ in range(requests + 1):  # the first starts the child
        begun = time.perf_counter()
        assert server.ask("POST", "/v1/predict", film)[0] == 200
        taken.append(1000 * (time.perf_counter() - begun))
    return statistics.median(taken[1:])


def crowd(server: Server, film: bytes, clients: int, seconds: float) -> tuple[list[float], Counter[str]]:
    """Let many clients post films for some seconds; return the milliseconds of answers, and what there was besides."""
    taken, kinds, end = list[float](), Counter[str](), time.perf_counter() + seconds

    def post() -> None:
        while (begun := time.perf_counter()) < end:
            try:
                status, wait = server.ask("POST", "/v1/predict", film)
            except OSError as error:
                kinds[type(error).__name__] += 1
                continue
            kinds[str(status)] += 1
            if status == 200:
                taken.append(1000 * (time.perf_counter() - begun))
            elif status == 503:
                kinds["503 without Retry-After"] += not wait
                time.sleep(float(wait or 1))

    threads = [threading.Thread(target=post) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken, kinds


def report(name: str, options: argparse.Namespace, folder: Path) -> None:
    architecture, _, side = name.partition("@")
    model, film = folder / architecture, draw_film()
    write_model(model, architecture, int(side))
    network = {
        runtime: time_network(model, runtime, options.requests) for runtime in ("torch", "onnx", "torch", "onnx")
    }
    print(f"{name}, {options.threads} thread(s), medians of {options.requests}; load {os.getloadavg()[0]:.1f}")
    for runtime in ("torch", "onnx"):
        server = Server(model, runtime, options.threads)
        whole = time_requests(server, film, options.requests)
        around = whole - network[runtime]
        print(
            f"  {runtime:5s} network {network[runtime]:8.1f} ms, request {whole:8.1f} ms: {around:6.1f} ms around it "
            f"({100 * around / whole:.0f} %); ready after {server.seconds:.1f} s, "
            f"{server.cpu_seconds:.1f} s of CPU"
        )
        if runtime == "onnx" and options.soak:
            soak(server, film, options.soak)
        if runtime == "onnx" and options.clients:
            before = server.get_memory_mib()
            taken, kinds = crowd(server, film, options.clients, options.seconds)
            mean, late = statistics.mean(taken), float(np.quantile(taken, 0.99))
            print(
                f"  {options.clients} clients for {options.seconds:g} s: {dict(kinds)}, "
                f"mean {mean:.0f} ms, p99 {late:.0f} ms"
            )
            print(
                f"  p99 is {late / whole / options.clients:.2f} times one request's time times the clients; memory "
                f"{before} MiB before, {server.get_memory_mib()} MiB after"
            )
        server.stop()
        if runtime == "onnx" and options.clients:
            server = Server(model, runtime, options.threads, "--most-requests", "8")
            print(f"  with --most-requests 8: {dict(crowd(server, film, options.clients, options.seconds / 3)[1])}")
            server.stop()
    print(f"  onnx is {network['torch'] / network['onnx']:.2f} times as fast as torch")


def main() -> None:
    """Time each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["regnetx_002@96", "resnet50@512"])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--soak", type=int, default=0)
    parser.add_argument("--requests", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            report(name, options, Path(folder))


if __name__ == "__main__":
    main()
