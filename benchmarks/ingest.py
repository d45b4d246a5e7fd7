"""Films a second and core from file to store, against the plain script that people write and the bare decoder.

usage: OMP_NUM_THREADS=1 python benchmarks/ingest.py DATA [--films 8] [--rounds 5]     DATA: holds jsrt/images

Real films are enlarged to 2048 x 2048 (12 bits, with noise as a detector adds it, so that codecs have work to do) and
written once in every format.  One thread, all sides in turn in each round, medians of the rounds; the last lines run
the whole ingest with one and with two workers.

ours:    decode, shrink to 512, judge quality, hash, encode (`encode_film_file`).
plain:   pydicom's pixel_array or Pillow, min-max to 8 bits, Pillow resize to 512, PNG.
decoder: what reads the full pixels fastest and nothing else.
"""

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pydicom
import simplejpeg
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
)

from chess_cxr.ingest.encoding import EncodedFilm, EncodeOptions, encode_film_file
from chess_cxr.ingest.options import IngestOptions
from chess_cxr.ingest.pipeline import ingest_films
from chess_cxr.records import SourceFilm
from chess_cxr.sources.folder import read_folder
from chess_cxr.workers.child import ENVIRONMENT
from chess_cxr.workers.pool import build_ingest_pool

SIDE = 2048


def build_film(path: Path, number: int) -> np.ndarray:
    """Return a film of 12 bits, uint16 [2048, 2048]."""
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    large = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC).astype(np.float32) * 16
    noise = np.random.default_rng(number).normal(0, 6, large.shape)
    return np.clip(large + noise, 0, 4095).astype(np.uint16)


def write_dicom(path: Path, pixels: np.ndarray, syntax: str, content: bytes) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientID, dataset.Modality = path.stem, "DX"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelData = content
    if syntax != ExplicitVRLittleEndian:
        dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path, enforce_file_format=True)


def write_films(folder: Path, source: Path, count: int) -> dict[str, list[Path]]:
    """Write the films in every format; return the files of each."""
    files: dict[str, list[Path]] = {}
    for number, path in enumerate(sorted(source.glob("*.png"))[:count]):
        pixels = build_film(path, number)
        grey = (pixels >> 4).astype(np.uint8)
        lossless = imagecodecs.ljpeg_encode(pixels, bitspersample=12)
        jpeg2000 = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", bitspersample=12, reversible=True)
        written = {
            "DICOM uncompressed": (ExplicitVRLittleEndian, pixels.tobytes()),
            "DICOM JPEG lossless": (JPEGLosslessSV1, encapsulate([lossless])),
            "DICOM JPEG 2000 lossless": (JPEG2000Lossless, encapsulate([jpeg2000])),
        }
        for name, (syntax, content) in written.items():
            files.setdefault(name, []).append(folder / name / f"{number}.dcm")
            files[name][-1].parent.mkdir(exist_ok=True)
            write_dicom(files[name][-1], pixels, syntax, content)
        for name, suffix in (("PNG 8 bit", ".png"), ("JPEG", ".jpg")):
            files.setdefault(name, []).append(folder / name / f"{number}{suffix}")
            files[name][-1].parent.mkdir(exist_ok=True)
            Image.fromarray(grey).save(files[name][-1], **({"quality": 92} if suffix == ".jpg" else {}))
    return files


def run_ours(path: Path) -> None:
    encoded = encode_film_file(path, EncodeOptions())
    if encoded.reason:
        sys.exit(f"{path.name}: {encoded.reason}")


def run_plain(path: Path) -> None:
    pixels = pydicom.dcmread(path).pixel_array if path.suffix == ".dcm" else np.asarray(Image.open(path))
    pixels = pixels.astype(np.float32)
    grey = ((pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255).astype(np.uint8)
    Image.fromarray(grey).resize((512, 512)).save(io.BytesIO(), "PNG")


def run_decoder(path: Path) -> None:
    if path.suffix == ".dcm":
        dataset = pydicom.dcmread(path)
        if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            np.frombuffer(dataset.PixelData, dtype="<u2").reshape(SIDE, SIDE).max()
            return
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        if dataset.file_meta.TransferSyntaxUID == JPEGLosslessSV1:
            imagecodecs.ljpeg_decode(frame)
        else:
            imagecodecs.jpeg2k_decode(frame)
    elif path.suffix == ".png":
        cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    else:
        simplejpeg.decode_jpeg(path.read_bytes(), colorspace="GRAY")


SIDES: dict[str, Callable[[Path], None]] = {"ours": run_ours, "plain": run_plain, "decoder": run_decoder}


def time_films(run: Callable[[Path], None], files: list[Path]) -> float:
    """Return the milliseconds that one film takes."""
    started = time.perf_counter()
    for path in files:
        run(path)
    return (time.perf_counter() - started) / len(files) * 1000


def compare_sides(files: dict[str, list[Path]], rounds: int) -> None:
    print(f"{'one thread, 2048 x 2048':26} {'ours':>8} {'plain':>8} {'decoder':>8}   films/s  plain/ours  ours/decoder")
    for name, paths in files.items():
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(rounds):
            for side, run in SIDES.items():
                times[side].append(time_films(run, paths))
        ours, plain, decoder = (statistics.median(times[side]) for side in SIDES)
        print(
            f"{name:26} {ours:6.1f} ms {plain:5.0f} ms {decoder:5.1f} ms   {1000 / ours:7.1f}  {plain / ours:10.2f}"
            f"  {ours / decoder:12.2f}",
            flush=True,
        )


def compare_workers(files: dict[str, list[Path]], folder: Path, rounds: int) -> None:
    """Time the whole ingest of 200 films with one and with two workers."""
    many = folder / "many"
    many.mkdir()
    paths = files["DICOM JPEG lossless"]
    for number in range(200):
        (many / f"{number:03d}.dcm").hardlink_to(paths[number % len(paths)])
    times: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds):
        for workers in times:
            with build_ingest_pool(workers) as pool:
                warm_up(pool, paths[0], folder / f"warm-{turn}-{workers}.lance")
                started = time.perf_counter()
                films = read_folder([many])
                out = folder / f"{turn}-{workers}.lance"
                ingest_films(films, out, IngestOptions(bytes(16)), pool)
                times[workers].append(200 / (time.perf_counter() - started))
    one, two = (statistics.median(times[workers]) for workers in times)
    print(f"whole ingest, JPEG lossless: {one:.1f} films/s with 1 worker, {two:.1f} with 2: {two / one:.2f} times")


class InstantExecutor(Executor):
    """Workers that take no time: every film comes back as one that was encoded beforehand."""

    def __init__(self, encoded: EncodedFilm) -> None:
        self._encoded = encoded

    def submit(self, function: Any, *arguments: Any, **named: Any) -> Future[Any]:
        """Answer at once."""
        future: Future[Any] = Future()
        future.set_result([self._encoded] * len(arguments[1]))
        return future


def measure_writer(files: dict[str, list[Path]], folder: Path, count: int = 20_000) -> None:
    """Time the one process that hashes, collects and writes what all workers send: the limit of a cluster."""
    encoded = encode_film_file(files["JPEG"][0], EncodeOptions())
    films = [SourceFilm(path=f"{number}.dcm", uid=str(number)) for number in range(count)]
    started = time.perf_counter()
    ingest_films(films, folder / "writer.lance", IngestOptions(bytes(16)), InstantExecutor(encoded))
    seconds = time.perf_counter() - started
    kilobytes = len(encoded.jpeg) / 1000
    print(f"writer: {count / seconds:.0f} films/s of {kilobytes:.0f} KB, {count * kilobytes / seconds / 1e3:.0f} MB/s")


def warm_up(pool: object, path: Path, out: Path) -> None:
    """Start the decoding processes."""
    folder = out.with_suffix("")
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.dcm").hardlink_to(path)
    ingest_films(read_folder([folder]), out, IngestOptions(bytes(16)), pool)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--films", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    if not os.environ.items() >= ENVIRONMENT.items():  # all sides run as our decoding processes do
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)
    warnings.simplefilter("ignore")
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = write_films(Path(folder), asked.data / "jsrt" / "images", asked.films)
        compare_sides(files, asked.rounds)
        measure_writer(files, Path(folder))
        compare_workers(files, Path(folder), 3)


if __name__ == "__main__":
    main()
