"""Draw generated patients, the grid of rays, and the shapes of bodies.

Everything here is SYNTHETIC.  Lengths are centimetres in the patient's coronal plane unless a name says otherwise.
x grows towards the right of the picture (the patient's left), y downwards; (0, 0) is the midline at the lung apex.
Suffixes of arrays: H, W rows and columns of a canvas, N points, 1 a broadcast axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator

MEAN_WIDTH, MEAN_LENGTH = 13.4, 25.5  # cm, half-width of the rib cage and length of the lung

Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]

# Half-width of the rib cage as a share of its maximum, against y / lung length
CAGE = PchipInterpolator(
    (-0.3, 0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.7, 0.8, 0.9, 1.0, 1.15, 1.4),
    (0.38, 0.40, 0.60, 0.715, 0.79, 0.845, 0.91, 0.945, 0.975, 1.0, 1.03, 1.045, 1.03, 0.97, 0.93),
)


@dataclass(frozen=True)
class Anatomy:
    """Body of one patient, shared by all of its films; lengths in cm, angles in radians."""

    seed: int
    sex: str
    age_years: int
    field_cm: float
    cage_width: float
    lung_length: float
    cage_depth: float
    wall: float
    breast: float
    neck: float
    shoulder_drop: float
    arm_angle: float
    heart_width: float
    heart_tilt: float
    aorta: float
    dome_right: float
    dome_gap: float
    dome_height: float
    rib_tilt: float
    rib_radius: float
    clavicle_rise: float
    scapula_shift: float
    bone_density: float
    scoliosis: float
    vessel_gain: float
    gas: float


@dataclass(frozen=True)
class Canvas:
    """Pixel grid in the patient's frame, x_1W and y_H1 in cm."""

    anatomy: Anatomy
    x_1W: Map
    y_H1: Map
    spacing: float

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""
        return self.y_H1.size, self.x_1W.size

    def to_px(self, points_N2: Points) -> Points:
        """Convert points (x, y) in cm to (column, row) of this canvas."""
        return (points_N2 - np.array((self.x_1W[0, 0], self.y_H1[0, 0]), dtype=points_N2.dtype)) / self.spacing


def draw_anatomy(patient_seed: int) -> Anatomy:
    """Draw the body of one patient; the same seed gives the same body."""
    rng = np.random.default_rng([patient_seed, 1])
    female = bool(rng.random() < 0.5)
    age = int(rng.integers(22, 86))
    build = rng.normal(0, 1)
    size = 0.94 if female else 1.02
    uniform = rng.uniform
    width = size * 13.4 * (1 + 0.035 * build) + rng.normal(0, 0.25)
    length = size * 25.2 + rng.normal(0, 1.2) - 0.4 * build
    return Anatomy(
        seed=patient_seed,
        sex="F" if female else "M",
        age_years=age,
        field_cm=max(2.44 * width, 1.27 * length) * uniform(0.98, 1.12),
        cage_width=width,
        lung_length=length,
        cage_depth=size * 16.8 + 0.9 * build + rng.normal(0, 0.7),
        wall=float(np.clip(2.6 + 0.7 * build + rng.normal(0, 0.3), 1.7, 5.0)),
        breast=float(np.clip(rng.normal(2.6, 1.1) + 0.6 * build, 0.6, 5.5)) if female else 0.0,
        neck=uniform(5.2, 6.6) * size,
        shoulder_drop=uniform(-0.8, 1.6),
        arm_angle=uniform(0.3, 0.7),
        heart_width=size * 6.3 + 0.35 * build + rng.normal(0, 0.35) + 0.012 * (age - 50),
        heart_tilt=uniform(0.5, 0.85) - 0.06 * build,
        aorta=1.35 + 0.007 * (age - 40) + rng.normal(0, 0.12),
        dome_right=uniform(0.775, 0.835),
        dome_gap=uniform(0.4, 1.7),
        dome_height=uniform(3.9, 5.6),
        rib_tilt=uniform(0.52, 0.72),
        rib_radius=uniform(0.56, 0.70) * size,
        clavicle_rise=uniform(1.4, 4.2),
        scapula_shift=uniform(-1.2, 1.8),
        bone_density=(1.12 - 0.0035 * (age - 22)) * uniform(0.88, 1.1),
        scoliosis=rng.normal(0, 0.35),
        vessel_gain=uniform(0.8, 1.25),
        gas=float(rng.random() < 0.65) * uniform(0.6, 1.3),
    )


def ramp(values: Map, start: float, stop: float) -> Map:
    """Compute a smooth step from 0 at start to 1 at stop (start may be the larger)."""
    t = np.clip((values - np.float32(start)) / np.float32(stop - start), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def ellipsoid(canvas: Canvas, centre: tuple[float, float], axes: tuple[float, float, float], tilt: float = 0) -> Map:
    """Compute chords (cm) through an ellipsoid of half-axes (along, across, depth); tilt turns `along` clockwise."""
    dx, dy = canvas.x_1W - np.float32(centre[0]), canvas.y_H1 - np.float32(centre[1])
    c, s = math.cos(tilt), math.sin(tilt)
    along, across = (dx * c + dy * s) / axes[0], (dy * c - dx * s) / axes[1]
    chord: Map = np.float32(2 * axes[2]) * np.sqrt(np.maximum(1 - along * along - across * across, 0))
    return chord.astype(np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell_px: float) -> Map:
    """Draw unit-variance noise with grains about cell_px wide."""
    cells = (max(4, round(shape[1] / cell_px)), max(4, round(shape[0] / cell_px)))
    coarse = rng.standard_normal((cells[1], cells[0]), dtype=np.float32)
    fine = np.asarray(cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC), np.float32)
    return fine / np.float32(fine.std())


def splat(shape: tuple[int, int], points_N2: Points, mass_N: Points) -> Map:
    """Add masses to the nearest pixels; points must lie closer than a pixel for an even result."""
    column, row = np.rint(points_N2[:, 0]).astype(np.int64), np.rint(points_N2[:, 1]).astype(np.int64)
    inside = (column >= 0) & (column < shape[1]) & (row >= 0) & (row < shape[0])
    total = np.bincount(row[inside] * shape[1] + column[inside], mass_N[inside], shape[0] * shape[1])
    return total.reshape(shape).astype(np.float32)


def blur(image: Map, sigma_px: float) -> Map:
    """Apply a Gaussian blur; a sigma below a seventh of a pixel changes nothing."""
    return image if sigma_px < 0.15 else np.asarray(cv2.GaussianBlur(image, (0, 0), sigma_px), np.float32)


def _resample(points_N2: Points, step: float) -> Points:
    """Resample a polyline at equal steps."""
    length = np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(points_N2, axis=0), axis=1))))
    at = np.linspace(0, length[-1], max(4, math.ceil(length[-1] / step)))
    return np.stack([np.interp(at, length, points_N2[:, k]) for k in range(points_N2.shape[1])], axis=1)


def spline(knots: Iterable[tuple[float, ...]]) -> Points:
    """Interpolate a smooth curve through knots (x, y, ...)."""
    knots_K = np.array(list(knots), dtype=np.float64)
    fine = np.linspace(0, 1, 160)
    return np.asarray(PchipInterpolator(np.linspace(0, 1, len(knots_K)), knots_K)(fine))


def tube(canvas: Canvas, curve_N4: Points, shell: float, marrow: float) -> tuple[Points, Points]:
    """Sample a bone tube, a cortical shell (cm) around lighter marrow; curve_N4: x, y, radius and ray stretch."""
    step = 0.5 * canvas.spacing
    line = _resample(curve_N4, step).astype(np.float32)
    tangent = np.gradient(line[:, :2], axis=0)
    ds = np.linalg.norm(tangent, axis=1)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) / np.maximum(ds, 1e-9)[:, None]
    across = np.linspace(-1, 1, max(5, math.ceil(2 * float(line[:, 2].max()) / step)))[None]
    radius = line[:, 2:3]
    outer = np.sqrt(np.maximum(1 - across**2, 0)) * radius
    inner = np.sqrt(np.maximum((radius - shell) ** 2 - (across * radius) ** 2, 0)) * 0.95
    thickness = 1.3 * (outer - (1 - marrow) * inner) * line[:, 3:4]
    points = line[:, None, :2] + normal[:, None] * (across * radius)[..., None]
    area = ds[:, None] * radius * (across[0, 1] - across[0, 0])
    return canvas.to_px(points.reshape(-1, 2)), (thickness * area / canvas.spacing**2).reshape(-1)
