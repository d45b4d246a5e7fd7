"""A PACS node in a process of its own, with a model whose answers follow from the pixels, and an Orthanc beside it.

python pacs_node.py '{"spool": …, "results_to": …, …}' [SECONDS_A_FILM]
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import DigitalXRayImageStorageForPresentation

from chess_cxr.film_jpeg import decode_stored
from chess_cxr.ingest.encoding import EncodeOptions, encode_in_child
from chess_cxr.records import Undecodable
from chess_cxr.serve.options import PacsOptions
from chess_cxr.serve.queue import Queue
from chess_cxr.serve.work import BonesModel, FindingsModel, start
from chess_cxr.tasks.answer import FilmAnswer, FindingAnswer
from chess_cxr.workers.child import Limits

NODE, PACS = "CHESS_CXR", "ORTHANC"
SHA, BONES_SHA = hashlib.sha256(b"weights").hexdigest(), hashlib.sha256(b"bones").hexdigest()
ORTHANC_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def read_film(path: Path) -> np.ndarray:
    film = encode_in_child(path, EncodeOptions(), Limits())
    if film.reason:
        raise Undecodable(film.reason)
    return decode_stored(film.jpeg)


def answer_by_grey(path: Path) -> FilmAnswer:
    """An answer that only these pixels give."""
    try:
        film_HW = read_film(path)
    except Undecodable as error:
        return FilmAnswer("grey", SHA, SHA, reason=str(error))
    grey = float(film_HW.mean() / 255)
    findings = (
        FindingAnswer("Effusion", grey, 0.25, grey >= 0.25),
        FindingAnswer("Pleural_Thickening", grey**2, 0.9, grey**2 >= 0.9),
    )
    return FilmAnswer("grey", SHA, SHA, flags=("small",), findings=findings, operating_point="youden")


def draw_colours(path: Path) -> np.ndarray:
    return np.ascontiguousarray(cv2.applyColorMap(read_film(path), cv2.COLORMAP_JET)[..., ::-1])


def find_change(path: Path) -> np.ndarray:
    film = pydicom.dcmread(path, stop_before_pixels=True)
    return np.full((film.Rows, film.Columns), -0.05, np.float32)


def build_model(seconds: float = 0) -> FindingsModel:
    def answer(path: Path) -> FilmAnswer:
        time.sleep(seconds)
        return answer_by_grey(path)

    return FindingsModel(SHA, answer, draw_colours)


BONES = BonesModel("grey bones", BONES_SHA, find_change)


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_until(true: Callable[[], Any], seconds: float = 60, spool: Path | None = None) -> Any:
    """Wait until it is true; if it does not happen, tell what is in the spool and in its log."""
    until = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < until, f"it did not happen in {seconds} seconds\n{tell_spool(spool)}"
        time.sleep(0.05)
    return found


def tell_spool(spool: Path | None) -> str:
    """What a node has done: its films, why some failed, the end of its log."""
    if spool is None:
        return ""
    with contextlib.closing(sqlite3.connect(spool / "queue.sqlite")) as database:
        database.row_factory = sqlite3.Row
        rows = [dict(row) for row in database.execute("SELECT * FROM films WHERE state != 'sent'")]
    log = spool.parent / f"{spool.name}.log"
    lines = log.read_text().splitlines()[-80:] if log.exists() else []
    return "\n".join([f"{time.time():.1f} {count(spool)}", *map(str, rows), *lines])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def find_tool(name: str) -> str:
    """Return the path of a program of the system; pynetdicom installs others by dcmtk's names beside Python."""
    own, path = Path(sys.executable).parent, f"{os.environ.get('PATH', '')}:/usr/sbin"
    return shutil.which(name, path=":".join(part for part in path.split(":") if Path(part) != own)) or name


def is_absent(*tools: str) -> bool:
    """Whether one of these programs or files is missing; in CI none may be, so that the tests run and fail."""
    return not os.environ.get("CI") and not all(Path(find_tool(tool)).exists() for tool in tools)


def run_tool(*command: object) -> str:
    """Run a tool of others; it must succeed."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=120, errors="replace"
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout + done.stderr


def find_errors(*command: object) -> list[str]:
    """The errors that a checker of others finds."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=120, errors="replace"
    )
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


# ---------------------------------------------------------------- films


def write_radiograph(path: Path, number: int = 1, study: int = 1, **changes: object) -> Path:
    """Write a digital radiograph in which the checkers find no fault, one of patient "DOE^JANE"."""
    film = Dataset()
    film.SpecificCharacterSet, film.ImageType = "ISO_IR 100", ["ORIGINAL", "PRIMARY", ""]
    film.SOPClassUID, film.SOPInstanceUID = DigitalXRayImageStorageForPresentation, f"1.2.826.0.1.7.{study}.1.{number}"
    film.StudyInstanceUID, film.SeriesInstanceUID = f"1.2.826.0.1.7.{study}", f"1.2.826.0.1.7.{study}.1"
    film.PatientName, film.PatientID, film.PatientBirthDate, film.PatientSex = "DOE^JANE", "MRN-4711", "19600102", "F"
    film.StudyDate, film.StudyTime, film.StudyID = f"{time.strftime('%Y%m%d')}", "101112", "7"
    film.AccessionNumber, film.ReferringPhysicianName = "ACC815", "WARD^A"
    film.Modality, film.SeriesNumber, film.InstanceNumber = "DX", 1, number
    film.PresentationIntentType, film.Manufacturer = "FOR PRESENTATION", "ACME"
    film.BodyPartExamined, film.ViewPosition, film.PatientOrientation = "CHEST", "PA", ["L", "F"]
    film.AnatomicRegionSequence = [_code("816094009", "SCT", "Chest")]
    film.ImageLaterality, film.BurnedInAnnotation, film.LossyImageCompression = "U", "NO", "00"
    film.AcquisitionDate, film.AcquisitionTime = film.StudyDate, "101112"
    film.ContentDate, film.ContentTime = film.StudyDate, "101112"
    film.DetectorType, film.PositionerType, film.AcquisitionContextSequence = "DIRECT", "NONE", []
    film.ImagerPixelSpacing, film.ViewCodeSequence = ["0.5", "0.5"], [_code("399348003", "SCT", "antero-posterior")]
    film.ViewCodeSequence[0].ViewModifierCodeSequence = []
    film.PixelIntensityRelationship, film.PixelIntensityRelationshipSign = "LOG", -1
    film.RescaleIntercept, film.RescaleSlope, film.RescaleType = "0", "1", "US"
    film.PresentationLUTShape, film.WindowCenter, film.WindowWidth = "IDENTITY", "2048", "4096"
    pixels = draw_chest(number)
    film.Rows, film.Columns, film.SamplesPerPixel, film.PhotometricInterpretation = *pixels.shape, 1, "MONOCHROME2"
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 16, 12, 11, 0
    film.add_new(0x7FE00010, "OW", pixels.tobytes())
    for name, value in changes.items():
        setattr(film, name, value)
    film.file_meta = pydicom.dataset.FileMetaDataset()
    film.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    film.save_as(path, enforce_file_format=True)
    return path


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def draw_chest(seed: int, side: int = 256) -> np.ndarray:
    """Two dark lungs in a bright body, 12 bits."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = np.clip(1.2 - np.hypot(x / 1.1, y / 1.4), 0, 1)
    lungs = np.exp(-(((np.abs(x) - 0.4) / 0.24) ** 4) - (y / 0.6) ** 4)
    grey = 0.15 + 0.75 * body * (1 - 0.7 * lungs) + rng.normal(0, 0.01, x.shape)
    return (4095 * np.clip(grey + 0.01 * (seed % 7), 0, 1)).astype("<u2")


# ---------------------------------------------------------------- processes


@contextmanager
def run_node(spool: Path, results_to: str, seconds: float = 0, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a node in its own process until the block ends."""
    node = start_node(spool, results_to, seconds, **options)
    try:
        yield node
    finally:
        end(node)


def start_node(spool: Path, results_to: str, seconds: float = 0, **options: Any) -> subprocess.Popen[bytes]:
    told = {"spool": str(spool), "results_to": results_to, "calling": [PACS, "STORESCU"]} | options
    command = [sys.executable, __file__, json.dumps(told), str(seconds)]
    log = (spool.parent / f"{spool.name}.log").open("ab")
    node = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    log.close()
    wait_until(lambda: node.poll() is not None or (spool / "ready").exists() and listens_if_asked(told))
    assert node.poll() is None, (spool.parent / f"{spool.name}.log").read_text()
    return node


def listens_if_asked(told: dict[str, Any]) -> bool:
    return not told.get("dicom_port") or listens(told["dicom_port"])


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(60)


def count(spool: Path) -> dict[str, int]:
    return dict(Queue(spool).count())


@contextmanager
def run_store(folder: Path, port: int, *words: object) -> Iterator[Path]:
    """Run dcmtk's storescp, which keeps what it receives in a folder."""
    folder.mkdir(exist_ok=True)
    with subprocess.Popen(
        [find_tool("storescp"), "-od", str(folder), "-aet", "STORE", "+uf", *map(str, words), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as store:
        try:
            wait_until(lambda: listens(port))
            yield folder
        finally:
            store.kill()


@contextmanager
def run_orthanc(folder: Path, node_port: int, lua: str = "", **changes: Any) -> Iterator["Orthanc"]:
    """Run a real Orthanc with DICOMweb that knows the node as "chess"."""
    folder.mkdir(exist_ok=True)
    (folder / "route.lua").write_text(lua)
    orthanc = Orthanc(changes.get("DicomPort") or find_port(), changes.get("HttpPort") or find_port())
    told = {
        "Name": "TEST", "DicomAet": PACS, "DicomPort": orthanc.dicom_port, "HttpPort": orthanc.http_port,
        "StorageDirectory": str(folder / "db"), "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True, "StableAge": 1, "DicomScuTimeout": 30,
        "Plugins": [str(ORTHANC_PLUGIN)], "LuaScripts": [str(folder / "route.lua")],
        "DicomModalities": {"chess": [NODE, "127.0.0.1", node_port]},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(told | changes))
    log = (folder / "orthanc.log").open("ab")
    binary = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
    process = subprocess.Popen([binary, str(folder / "orthanc.json")], stdout=log, stderr=log)
    log.close()
    try:
        wait_until(lambda: process.poll() is not None or orthanc.answers())
        assert process.poll() is None, (folder / "orthanc.log").read_text()
        yield orthanc
    finally:
        end(process)


class Orthanc:
    """A running Orthanc."""

    def __init__(self, dicom_port: int, http_port: int) -> None:
        self.dicom_port, self.http_port = dicom_port, http_port
        self.url = f"http://127.0.0.1:{http_port}"

    def answers(self) -> bool:
        try:
            return bool(self.ask("/system"))
        except (urllib.error.URLError, ConnectionError):
            return False

    def get(self, path: str, body: bytes | None = None) -> bytes:
        with urllib.request.urlopen(self.url + path, body, timeout=60) as answer:
            return bytes(answer.read())

    def ask(self, path: str, body: bytes | None = None) -> Any:
        return json.loads(self.get(path, body))

    def store(self, film: Path) -> str:
        """Store a film as its web page does; return the id of its study."""
        return str(self.ask("/instances", film.read_bytes())["ParentStudy"])

    def count_instances(self) -> int:
        return int(self.ask("/statistics")["CountInstances"])

    def fetch(self, study: str, folder: Path) -> dict[str, Path]:
        """Fetch all objects of a study; return their files by modality."""
        folder.mkdir(parents=True, exist_ok=True)
        files = {}
        for instance in self.ask(f"/studies/{study}/instances"):
            path = folder / f"{instance['ID']}.dcm"
            path.write_bytes(self.get(f"/instances/{instance['ID']}/file"))
            film = pydicom.dcmread(path, stop_before_pixels=True)
            files[film.Modality if "DERIVED" not in film.get("ImageType", "") else f"{film.Modality} derived"] = path
        return files


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before threads start
    logging.basicConfig(level=logging.DEBUG, format="%(message)s")
    given = json.loads(sys.argv[1])
    for name in ("spool", "token_file", "tls_certificate", "tls_key", "tls_clients"):
        if name in given:
            given[name] = Path(given[name])
    given["calling"] = tuple(given["calling"])
    running = start(PacsOptions(**given), [build_model(float(sys.argv[2]))], BONES)
    (given["spool"] / "ready").touch()
    signal.sigwait([signal.SIGTERM])
    running.stop()
