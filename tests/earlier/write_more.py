"""Write the folders of v0.1_more.tar.xz with the code of version 0.1.

usage: git worktree add OLD 50f113f
       PYTHONPATH=OLD/src OMP_NUM_THREADS=1 python tests/earlier/write_more.py FOLDER     FOLDER: v0.1.tar.xz, unpacked
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

METHODS = ("simclr", "byol", "vicreg", "moco_v3")
KEY = bytes(16)


def write_pictures(folder: Path) -> None:
    """Write 12 noisy ramps of four patients as PNG, and six as DICOM."""
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    (folder / "dicom").mkdir()
    for number in range(12):
        grey = np.add.outer(np.arange(64), np.arange(64)) + rng.integers(0, 100, (64, 64))
        Image.fromarray(grey.astype(np.uint8)).save(folder / "pictures" / f"{number}.png")
        if number < 6:
            write_dicom(folder / "dicom" / f"{number}.dcm", grey.astype(np.uint16) * 16, number)


def write_dicom(path: Path, stored: np.ndarray, number: int) -> None:
    film = Dataset()
    film.SOPClassUID, film.SOPInstanceUID = DigitalXRayImageStorageForPresentation, f"1.2.3.{number}"
    film.StudyInstanceUID, film.SeriesInstanceUID, film.Modality = "1.2.3", "1.2.4", "DX"
    film.PatientName, film.PatientID = "DOE^JANE", "MRN-4711"
    film.Rows, film.Columns = stored.shape
    film.SamplesPerPixel, film.PhotometricInterpretation, film.PixelRepresentation = 1, "MONOCHROME2", 0
    film.BitsAllocated, film.BitsStored, film.HighBit = 16, 12, 11
    film.PixelData = stored.tobytes()
    film["PixelData"].VR = "OW"
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.file_meta.MediaStorageSOPClassUID, film.file_meta.MediaStorageSOPInstanceUID = (
        film.SOPClassUID,
        film.SOPInstanceUID,
    )
    film.save_as(path, enforce_file_format=True)


def begin_ingest() -> None:
    from chess_cxr.ingest.quality_options import QualityOptions

    from chess_cxr.ingest.pipeline import IngestOptions, ingest_films
    from chess_cxr.records import SourceFilm

    # An ingest knows its films by their paths; those that read_folder gives are absolute.
    films = [
        SourceFilm(f"pictures/{n}.png", f"{n}.png", f"p{n // 3}", age_years=40.0 + n, labels={"finding": float(n % 2)})
        for n in range(12)
    ]
    options = IngestOptions(
        KEY, films_a_commit=4, in_flight=1, quality=QualityOptions(quarantine_not_chest=False, contrast_reject=0)
    )
    ingest_films(films, Path("ingest_begun.lance"), options, on_film=build_killer(7))


def begin_copies() -> None:
    from chess_cxr.ingest.dicom_copies import DeidentifyOptions, deidentify_files

    from chess_cxr.sources.folder import read_folder

    deidentify_files(
        read_folder([Path("dicom")]), Path("copies_begun"), DeidentifyOptions(KEY, in_flight=1), None, build_killer(3)
    )


def begin_runs() -> None:
    import torch
    from chess_cxr.presets import PRESETS

    from chess_cxr.methods import METHODS as CONFIGS

    torch.set_num_threads(1)
    import chess_cxr

    demo = PRESETS["demo"]()
    training = replace(
        demo.training, steps=4, batch=8, log_every=2, probe_every=4, checkpoint_every=2, keep_checkpoints=1,
        optimizer="sgd",
    )  # fmt: skip
    for name in METHODS:
        config_class = CONFIGS[name][0]
        small = {"hidden": 16} if name in ("byol", "moco_v3") else {}
        method = config_class("test_convnext", 16, **small)
        config = replace(demo, method=method, views=replace(demo.views, size=32), training=training)
        with contextlib.suppress(StopAfter):
            chess_cxr.pretrain(Path("films.lance"), Path(f"run_{name}"), config, StopAfter(3))


class StopAfter(Exception):
    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, report: object, *_: object) -> None:
        if getattr(report, "step", 0) >= self.step:
            raise self


def build_killer(after: int) -> Callable[..., None]:
    seen: list[int] = []

    def count(*_: object) -> None:
        seen.append(1)
        if len(seen) == after:
            os._exit(0)

    return count


def write_expected() -> None:
    from chess_cxr.nodule_models import load_nodule_generator

    import chess_cxr

    read = chess_cxr.open_store(Path("films.lance")).read_films(np.arange(1))
    film_HW = read[0].astype(np.float32) / 255
    mask_HW = np.zeros(film_HW.shape, bool)
    middle = film_HW.shape[0] // 2, film_HW.shape[1] // 2
    mask_HW[middle[0] - 6 : middle[0] + 6, middle[1] - 6 : middle[1] + 6] = True
    np.savez_compressed(
        "expected_more.npz",
        bones=chess_cxr.load_bone_suppressor(Path("bones")).suppress(film_HW),
        nodules=load_nodule_generator(Path("nodules")).paint(film_HW, mask_HW, 3),
    )


def main() -> None:
    os.chdir(sys.argv[1])
    if sys.argv[2:]:
        globals()[sys.argv[2]]()
        return
    write_pictures(Path())
    for step in ("begin_ingest", "begin_copies", "write_expected"):
        subprocess.run([sys.executable, os.path.abspath(sys.argv[0]), ".", step], check=True)
    begin_runs()


if __name__ == "__main__":
    main()
