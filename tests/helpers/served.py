"""Models to serve, and a server in a process of its own."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch

from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.encoder import build_network
from chess_cxr.encoders.facts import TrainingSummary
from chess_cxr.encoders.folder import write_encoder
from chess_cxr.tasks.bones.network import BoneNetwork, BoneNetworkShape
from chess_cxr.tasks.bones.tiles import prepare_film
from chess_cxr.tasks.classify.objective import Classify
from chess_cxr.tasks.classify.operating import POINTS
from chess_cxr.tasks.classify.shape import HeadShape
from chess_cxr.tasks.model_folder import describe_files
from chess_cxr.tasks.runtime import build_runtime_files

LABELS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Pleural_Thickening", "Pneumothorax")
ARCHIVE = Path(__file__).parents[1] / "earlier" / "v0.1.tar.xz"


def write_findings_model(folder: Path) -> Path:
    """Write a classifier with weights by chance, calibration and thresholds."""
    shape, count = HeadShape("linear", "multilabel", 96, len(LABELS)), len(LABELS)
    torch.manual_seed(1)
    network = Classify(build_network("test_resnet", 1), shape)
    torch.nn.init.normal_(network.head.weight, std=2.0)
    folder.mkdir()
    safetensors.torch.save_file(network.state_dict(), folder / "model.safetensors")
    thresholds = {point: [0.25 + 0.05 * number for number in range(count)] for point in POINTS}
    operating = {"method": "platt", "slope": [0.7] * count, "offset": [-0.2] * count, "calibrated": [True] * count}
    config = {
        "task": "classify",
        "head": asdict(shape),
        "labels": list(LABELS),
        "architecture": "test_resnet",
        "contract": asdict(PixelContract(64, (0.5,), (0.25,))),
        "operating": operating | {"thresholds": thresholds, "notes": []},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_onnx_models(folder: Path) -> list[Path]:
    """Write a classifier, a bone model and an encoder with weights by chance, each with `model.onnx`."""
    findings = write_findings_model(folder / "findings")
    config = json.loads((findings / "config.json").read_text())
    network = Classify(build_network("test_resnet", 1), HeadShape(**config["head"])).eval()
    network.load_state_dict(safetensors.torch.load_file(findings / "model.safetensors"))
    prepare = PixelContract(64, (0.5,), (0.25,)).prepare_array
    _add_files(findings, config, build_runtime_files(network, prepare)[0])
    torch.manual_seed(2)
    bone_network, bones = BoneNetwork(BoneNetworkShape("regnetx_002")).eval(), folder / "bones"
    bones.mkdir()
    safetensors.torch.save_file(bone_network.state_dict(), bones / "model.safetensors")
    config = {"task": "bones", "network": asdict(bone_network.shape), "size": 64, "tile": 64}
    _add_files(bones, config, build_runtime_files(bone_network, prepare_film, any_size=True)[0])
    state, contract = build_network("test_resnet", 1, 3).state_dict(), PixelContract(32, (0.5,), (0.25,))
    summary = TrainingSummary("Drawn.  SYNTHETIC.")
    encoder = write_encoder(folder / "encoder", state, "test_resnet", contract, "MIT", summary, onnx=True)
    return [findings, bones, encoder]


def _add_files(folder: Path, config: dict[str, object], files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    weights = {"model.safetensors": (folder / "model.safetensors").read_bytes()}
    (folder / "config.json").write_text(json.dumps(config | {"files": describe_files(files | weights)}))


def unpack_earlier(folder: Path) -> Path:
    """Unpack the models of version 0.1: "bones", "encoder", "classifier_linear" and others."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@dataclass(frozen=True)
class Reply:
    """What the server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict:  # type: ignore[type-arg]
        return json.loads(self.body)  # type: ignore[no-any-return]


@dataclass
class Served:
    """A running server; log: what it and its libraries printed."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def ask(self, method: str, path: str, body: bytes | Iterator[bytes] | None = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            reply = connection.getresponse()
            return Reply(reply.status, {key.lower(): value for key, value in reply.headers.items()}, reply.read())
        finally:
            connection.close()

    def post(self, path: str, body: bytes, kind: str = "application/dicom", **headers: str) -> Reply:
        return self.ask("POST", path, body, Content_Type=kind, **headers)


def check_problem(reply: Reply, status: int, part: str = "") -> None:
    assert reply.status == status and reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert problem["status"] == status and problem["detail"] and "\n" not in problem["detail"]
    assert part in problem["detail"]


def pack_parts(*films: tuple[str, bytes]) -> tuple[bytes, str]:
    """Return a multipart/form-data body of (file name, content), and its type."""
    parts = [
        f'--cut\r\nContent-Disposition: form-data; name="film"; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in films
    ]
    return b"".join(parts) + b"--cut--\r\n", "multipart/form-data; boundary=cut"


def find_port() -> int:
    with socket.socket() as plug:
        plug.bind(("127.0.0.1", 0))
        return int(plug.getsockname()[1])


@contextmanager
def serve(folder: Path, *words: str | Path, **environment: str) -> Iterator[Served]:
    """Run `chess-cxr serve` with these words until the block ends."""
    port, log = find_port(), folder / "server.log"
    command = [sys.executable, "-m", "chess_cxr", "serve", *map(str, words), "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment
        )
    served = Served(port, process, log)
    try:
        deadline = time.monotonic() + 180
        while b"is ready" not in log.read_bytes():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield served
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM), log.read_text()
