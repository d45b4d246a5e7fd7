"""Render chest radiographs from attenuation, with findings of exactly known place and size.

Every film is SYNTHETIC.  Each ray has two line integrals, soft tissue (`tissue`) and bone (`bones`); a finding changes
the former (`findings`).  Beer-Lambert, scatter, quantum noise and the detector's logarithm turn them into a film.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

from chess_cxr.records import UsageError
from chess_cxr.sources.phantom.anatomy import Anatomy, Canvas, Map, Mask, blur, draw_anatomy
from chess_cxr.sources.phantom.bones import compute_bone
from chess_cxr.sources.phantom.findings import COMPUTE_CHANGE
from chess_cxr.sources.phantom.tissue import LUNG_DENSITY, compute_chest

CLASSES = tuple(COMPUTE_CHANGE)
MAX_PIXEL = 4095
_MARGIN = 0.06  # share of the film computed beyond each edge, so that a rotated patient still fills it

Pixels = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Exposure:
    """Pose, beam and detector of one film.

    rotation in radians; shift and inspiration in cm; photons_per_cm2 at the detector without a patient; scatter as a
    share of the blurred primary beam; blur_mm: standard deviation of detector and focal spot; range_margin: margin
    below and above the patient's grey levels; shutter: blackened share of the film at left, top, right and bottom.
    """

    seed: int
    rotation: float
    shift: tuple[float, float]
    magnification: float
    inspiration: float
    kvp: float
    photons_per_cm2: float
    scatter: float
    blur_mm: float
    range_margin: tuple[float, float]
    noise: bool = True
    marker: bool = True
    shutter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class PhantomFilm:
    """Film with its ground truth; every array is (size, size).

    pixels: 0..4095, bone bright (MONOCHROME2).  without_bone: same patient, scatter, noise and grey scale, but no bone;
    None unless requested.  soft_cm, bone_cm: line integrals of the exposure.  scatter: addition to the primary beam, as
    a share of the beam without a patient.  nodule_centre_px: (column, row).
    """

    pixels: Pixels
    without_bone: Pixels | None
    finding: str
    finding_mask: Mask
    lung_mask: Mask
    soft_cm: Map
    bone_cm: Map
    scatter: Map
    log_range: tuple[float, float]
    spacing_mm: float
    nodule_centre_px: tuple[float, float] | None = None
    diameter_mm: float | None = None


def draw_exposure(film_seed: int) -> Exposure:
    """Draw pose, beam and detector of one film; the same seed gives the same exposure, noise included."""
    rng = np.random.default_rng([film_seed, 2])
    uniform = rng.uniform
    shutter = (uniform(0, 0.03), uniform(0, 0.03), uniform(0, 0.03), uniform(0, 0.03))
    return Exposure(
        seed=film_seed,
        rotation=float(np.clip(rng.normal(0, 0.018), -0.06, 0.06)),
        shift=(float(np.clip(rng.normal(0, 0.5), -1.5, 1.5)), float(np.clip(rng.normal(0, 0.5), -1.2, 1.2))),
        magnification=uniform(0.97, 1.05),
        inspiration=float(np.clip(rng.normal(0, 0.8), -2, 1.5)),
        kvp=uniform(95, 125),
        photons_per_cm2=math.exp(uniform(math.log(5e6), math.log(4e7))),
        scatter=uniform(0.25, 0.45),
        blur_mm=uniform(0.25, 0.55),
        range_margin=(uniform(0.0, 0.12), uniform(0.0, 0.10)),
        marker=bool(rng.random() < 0.6),
        shutter=shutter if rng.random() < 0.25 else (0.0, 0.0, 0.0, 0.0),
    )


def compute_attenuation(kvp: float) -> tuple[float, float]:
    """Return the effective linear attenuation of soft tissue and of compact bone, per cm, for a filtered chest beam."""
    return 0.200 - 0.0006 * (kvp - 110), 0.470 - 0.0022 * (kvp - 110)


def render_film(
    anatomy: Anatomy, exposure: Exposure, finding: str = "normal", size: int = 512, *, with_bone_free: bool = False
) -> PhantomFilm:
    """Expose one film of a patient with a finding of `CLASSES`, size x size pixels.

    Raises `UsageError` for an unknown finding or a size below 64.
    """
    if finding not in COMPUTE_CHANGE:
        raise UsageError(f"Unknown phantom finding {finding!r}: use one of {', '.join(CLASSES)}.")
    _check_size(size)
    canvas, film_of_canvas = _place_patient(anatomy, exposure, size)
    chest = compute_chest(canvas)
    change = COMPUTE_CHANGE[finding](canvas, chest, np.random.default_rng([anatomy.seed, exposure.seed, 6]))

    def project(values: Map) -> Map:
        edge = cv2.BORDER_REPLICATE
        film = cv2.warpAffine(values, film_of_canvas, (size, size), flags=cv2.INTER_LINEAR, borderMode=edge)
        return np.asarray(film, np.float32)

    texture = 1 + (chest.texture - 1) * change.vessels_left
    aerated = chest.lung * (1 - LUNG_DENSITY * texture)
    soft = chest.body - aerated - chest.airway + (1 - LUNG_DENSITY) * chest.vessels * change.vessels_left + change.soft
    soft_film = np.maximum(project(soft.astype(np.float32)), 0)
    bone_film = np.maximum(project(compute_bone(canvas)), 0)
    scatter, log_range = _compute_scatter(soft_film, bone_film, exposure, canvas.spacing)
    bones = (bone_film, np.zeros_like(bone_film)) if with_bone_free else (bone_film,)
    exposed = [_expose(soft_film, b, scatter, log_range, exposure, canvas.spacing) for b in bones]
    centre_px = None
    if change.centre is not None:
        at = canvas.to_px(np.array([change.centre]))[0]
        column, row = film_of_canvas @ np.array([at[0], at[1], 1.0])
        centre_px = (float(column), float(row))
    return PhantomFilm(
        pixels=exposed[0],
        without_bone=exposed[1] if with_bone_free else None,
        finding=finding,
        finding_mask=project(change.mask.astype(np.float32)) > 0.5,
        lung_mask=project(chest.lung_mask.astype(np.float32)) > 0.5,
        soft_cm=soft_film,
        bone_cm=bone_film,
        scatter=scatter,
        log_range=log_range,
        spacing_mm=10 * canvas.spacing / exposure.magnification,
        nodule_centre_px=centre_px,
        diameter_mm=None if change.diameter is None else 10 * change.diameter,
    )


def _check_size(size: int) -> None:
    if size < 64:
        raise UsageError(f"A phantom film of {size} pixels is too small to show anything: use at least 64.")


def _place_patient(anatomy: Anatomy, exposure: Exposure, size: int) -> tuple[Canvas, npt.NDArray[np.float64]]:
    """Lay a canvas around the patient; return it with the 2x3 affine map from canvas pixels to film pixels."""
    breathing = replace(
        anatomy,
        lung_length=anatomy.lung_length + exposure.inspiration,
        rib_tilt=anatomy.rib_tilt - 0.012 * exposure.inspiration,
    )
    spacing = anatomy.field_cm / size
    pixels = round(size * (1 + 2 * _MARGIN))
    middle = (pixels - 1) / 2
    steps = ((np.arange(pixels) - middle) * spacing).astype(np.float32)
    centre_y = (0.5 - 0.095) * anatomy.field_cm
    canvas = Canvas(breathing, steps[None, :], (steps + np.float32(centre_y))[:, None], spacing)
    turn = math.cos(exposure.rotation) * exposure.magnification, math.sin(exposure.rotation) * exposure.magnification
    matrix = np.array([[turn[0], -turn[1]], [turn[1], turn[0]]])
    offset = (size - 1) / 2 + np.array(exposure.shift) / spacing - matrix @ np.array([middle, middle])
    return canvas, np.column_stack([matrix, offset])


def _compute_scatter(soft: Map, bone: Map, exposure: Exposure, spacing_cm: float) -> tuple[Map, tuple[float, float]]:
    """Compute the scatter of the whole film, and the logarithmic exposures of black and white."""
    mu_soft, mu_bone = compute_attenuation(exposure.kvp)
    primary = np.exp(-(mu_soft * soft + mu_bone * bone)).astype(np.float32)
    small = cv2.resize(primary, None, fx=0.125, fy=0.125, interpolation=cv2.INTER_AREA)
    # Open air would scatter over the whole patient, but a collimator and the grid keep most of it out.
    wide = cv2.GaussianBlur(np.minimum(small, 0.25), (0, 0), 3.5 / (8 * spacing_cm), borderType=cv2.BORDER_REPLICATE)
    scatter: Map = exposure.scatter * cv2.resize(wide, soft.shape[::-1], interpolation=cv2.INTER_CUBIC)
    scatter = np.maximum(scatter, 1e-4).astype(np.float32)
    signal = -np.log(primary + scatter)[soft > 5.0][::7]
    low, high = (float(v) for v in np.percentile(signal, (2.0, 98.5)))
    span = max(high - low, 0.5)
    return scatter, (low - (0.03 + exposure.range_margin[0]) * span, high + (0.02 + exposure.range_margin[1]) * span)


def _expose(
    soft: Map, bone: Map, scatter: Map, log_range: tuple[float, float], exposure: Exposure, spacing_cm: float
) -> Pixels:
    """Apply Beer-Lambert, scatter, quantum noise, blur and logarithm; quantise to 12 bits."""
    mu_soft, mu_bone = compute_attenuation(exposure.kvp)
    light = np.exp(-(mu_soft * soft + mu_bone * bone)) + scatter
    if exposure.noise:
        # A pixel collects at least hundreds of photons; the normal limit of Poisson lets both films share one draw.
        counts = np.float32(exposure.photons_per_cm2 * spacing_cm**2)
        draw = np.random.default_rng([exposure.seed, 7]).standard_normal(light.shape, dtype=np.float32)
        light = np.maximum(light + draw * np.sqrt(light / counts), 1 / counts)
    light = blur(light.astype(np.float32), 0.1 * exposure.blur_mm / spacing_cm)
    low, high = log_range
    grey = np.clip((-np.log(light) - low) / (high - low), 0, 1) * MAX_PIXEL
    return _frame(np.rint(grey).astype(np.uint16), exposure)


def _frame(pixels: Pixels, exposure: Exposure) -> Pixels:
    """Add side marker and shutters, in place."""
    size = pixels.shape[0]
    if exposure.marker:
        place = (round(0.925 * size), round(0.075 * size))
        lead = np.zeros(pixels.shape, np.uint8)
        cv2.putText(lead, "L", place, cv2.FONT_HERSHEY_SIMPLEX, size / 512, 255, max(1, size // 256), cv2.LINE_AA)
        pixels = np.maximum(pixels, lead.astype(np.uint16) * np.uint16(16))
    left, top, right, bottom = (round(share * size) for share in exposure.shutter)
    pixels[:, :left] = pixels[:top] = pixels[:, size - right :] = pixels[size - bottom :] = 0
    return pixels


# ---------------------------------------------------------------- files


def write_phantom_films(
    folder: Path,
    patients: int,
    films_per_patient: int,
    seed: int,
    size: int = 512,
    executor: Executor | None = None,
    on_film: Callable[[], None] | None = None,
) -> Path:
    """Write films of generated patients as DICOM, one folder a patient; return the path of `labels.csv`.

    labels.csv: file (relative, with /), patient, label (one of `CLASSES`), diameter_mm (blank unless a nodule).
    The classes have equal numbers of films, within one.  The pixels depend only on seed and size.  The files mix
    MONOCHROME1 and MONOCHROME2, and JPEG 2000 lossless and uncompressed pixels.  on_film: called after each film.
    Raises `UsageError` for counts below 1 or a size below 64.
    """
    if patients < 1 or films_per_patient < 1:
        raise UsageError(f"Asked for {patients} patients with {films_per_patient} films each: both must be 1 or more.")
    _check_size(size)
    folder.mkdir(parents=True, exist_ok=True)
    orders = list(_list_orders(folder, patients, films_per_patient, seed, size))
    rows = []
    written = executor.map(_write_film, orders, chunksize=4) if executor else map(_write_film, orders)
    for order, diameter in zip(orders, written, strict=True):
        rows.append((order.path.relative_to(folder).as_posix(), f"PHANTOM{order.patient:04d}", order.finding, diameter))
        if on_film:
            on_film()
    table = folder / "labels.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "patient", "label", "diameter_mm"), *rows])
    return table


@dataclass(frozen=True)
class _Order:
    """Order of one film, complete for another process."""

    path: Path
    patient: int
    film: int
    finding: str
    seed: int
    size: int


def _list_orders(folder: Path, patients: int, films_per_patient: int, seed: int, size: int) -> Iterator[_Order]:
    total = patients * films_per_patient
    findings = np.random.default_rng([seed, 9]).permutation(np.arange(total) % len(CLASSES))
    for number, finding in enumerate(findings):
        patient, film = divmod(number, films_per_patient)
        path = folder / f"patient{patient:04d}" / f"film{film:02d}.dcm"
        yield _Order(path, patient, film, CLASSES[finding], seed, size)


def _write_film(order: _Order) -> str:
    """Write one film; return its diameter_mm as text, blank unless it shows a nodule."""
    anatomy = draw_anatomy(_derive_seed(order.seed, order.patient))
    film_seed = _derive_seed(order.seed, order.patient, order.film)
    film = render_film(anatomy, draw_exposure(film_seed), order.finding, order.size)
    order.path.parent.mkdir(parents=True, exist_ok=True)
    _build_dataset(order, anatomy, film).save_as(order.path, enforce_file_format=True)
    return "" if film.diameter_mm is None else f"{film.diameter_mm:.2f}"


def _derive_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _build_dataset(order: _Order, anatomy: Anatomy, film: PhantomFilm) -> FileDataset:
    """Build a Digital X-Ray Image for presentation (PS3.3 A.26), every third one as MONOCHROME1."""
    entropy = ["chess-cxr phantom", str(order.seed), str(order.patient)]
    dark_bone = (order.patient + order.film) % 3 == 1
    stored = (MAX_PIXEL - film.pixels) if dark_bone else film.pixels
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[*entropy, str(order.film), "image"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(str(order.path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID = generate_uid(entropy_srcs=[*entropy, str(order.film), "study"])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[*entropy, str(order.film), "series"])
    ds.PatientID, ds.PatientName = f"PHANTOM{order.patient:04d}", f"SYNTHETIC^{order.patient:04d}"
    ds.PatientAge, ds.PatientSex = f"{anatomy.age_years:03d}Y", anatomy.sex
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber = f"2000{1 + order.film % 12:02d}01", "120000", ""
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition, ds.PatientOrientation = "DX", "CHEST", "PA", ["L", "F"]
    ds.PresentationIntentType, ds.ImageLaterality, ds.BurnedInAnnotation = "FOR PRESENTATION", "U", "NO"
    ds.Manufacturer, ds.ImageComments = "chess-cxr phantom (SYNTHETIC)", "SYNTHETIC"
    ds.ImageType = ["DERIVED", "PRIMARY", "", "SYNTHETIC"]
    ds.InstanceNumber, ds.SeriesNumber = 1, 1
    ds.PixelSpacing = ds.ImagerPixelSpacing = [f"{film.spacing_mm:.5f}"] * 2
    ds.Rows, ds.Columns, ds.SamplesPerPixel = *film.pixels.shape, 1
    ds.PhotometricInterpretation = "MONOCHROME1" if dark_bone else "MONOCHROME2"
    ds.PresentationLUTShape = "INVERSE" if dark_bone else "IDENTITY"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "US"
    ds.WindowCenter, ds.WindowWidth = (2196, 3800) if dark_bone else (1900, 3800)
    ds.PixelData = stored.astype("<u2").tobytes()
    if (order.patient + order.film) % 4 == 3:
        meta.TransferSyntaxUID = JPEG2000Lossless
        codestream = imagecodecs.jpeg2k_encode(stored, codecformat="j2k", bitspersample=12, reversible=True, level=0)
        ds.PixelData = encapsulate([codestream])
    return ds
