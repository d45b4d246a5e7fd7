"""Counts the canaries that libraries leave in one film; a script, for docs/proof/deidentification.md.

pip install dicom-anonymizer deid; python tests/helpers/deidentify_libraries.py
"""

import io
import tempfile
import warnings
from collections import Counter
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pydicom
from deid.config import DeidRecipe
from deid.dicom import replace_identifiers
from dicomanonymizer.simpledicomanonymizer import anonymize_dataset, initialize_actions

from chess_cxr.deidentify.film import deidentify_dicom
from chess_cxr.deidentify.profile import VITAL
from chess_cxr.records import SourceFilm
from dicom_films import build_film, find_canaries, plant_canaries, write_film


def count_canaries(dataset: pydicom.Dataset, inside: str = "at the top") -> Counter[str]:
    counts: Counter[str] = Counter()
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                counts += count_canaries(item, "in sequences")
        else:
            text = element.value if isinstance(element.value, bytes) else str(element.value).encode()
            counts[inside] += bool(find_canaries(text))
    return counts


def main() -> None:
    warnings.simplefilter("ignore")
    film = build_film()
    plant_canaries(film, spared=VITAL | {"SOPClassUID", "PixelData", "BurnedInAnnotation"})
    content = write_film(film)
    print("source", dict(count_canaries(pydicom.dcmread(io.BytesIO(content)))))
    dataset = pydicom.dcmread(io.BytesIO(content))
    anonymize_dataset(dataset, base_rules_gen=partial(initialize_actions, "dicomfields_2026c"))
    print("dicom-anonymizer", version("dicom-anonymizer"), dict(count_canaries(dataset)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.dcm"
        path.write_bytes(content)
        (replaced,) = replace_identifiers([str(path)], deid=DeidRecipe(), save=False, strip_sequences=False)
    print("deid", version("deid"), dict(count_canaries(replaced)))
    copied = deidentify_dicom(content, SourceFilm(Path("film"), "film"), b"k" * 32).content
    print("chess-cxr", dict(count_canaries(pydicom.dcmread(io.BytesIO(copied)))))


if __name__ == "__main__":
    main()
