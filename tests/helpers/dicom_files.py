"""DICOM files for tests, written attribute by attribute."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRBigEndian, ExplicitVRLittleEndian

NAME, NUMBER = "DOE^JANE", "MRN-4711"


def write_dicom(path: Path, stored: np.ndarray, syntax: str = ExplicitVRLittleEndian, **tags: object) -> Path:
    """Write a digital radiograph with these stored values; `tags` are set last and may say anything."""
    film = Dataset()
    film.SOPClassUID, film.SOPInstanceUID = DigitalXRayImageStorageForPresentation, "1.2.3.4"
    film.StudyInstanceUID, film.PatientName, film.PatientID = "1.2.3", NAME, NUMBER
    film.Rows, film.Columns = stored.shape[:2]
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
    film.BitsAllocated = 8 * stored.dtype.itemsize
    film.BitsStored = 12 if stored.dtype.itemsize == 2 else 8
    film.PixelRepresentation = int(stored.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    film.PixelData = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    for name, value in tags.items():
        setattr(film, name, value)
    film.HighBit = tags.get("HighBit", film.BitsStored - 1)
    film["PixelData"].VR = "OW" if film.BitsAllocated > 8 else "OB"
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = syntax
    film.file_meta.MediaStorageSOPClassUID = film.SOPClassUID
    film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID or "1.2.3.4"  # never empty
    film.save_as(path, enforce_file_format=True)
    return path
