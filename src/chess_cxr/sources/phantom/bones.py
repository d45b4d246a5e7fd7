"""Compute the skeleton of a generated patient, in cm of compact bone along each ray.  Everything here is SYNTHETIC."""

from __future__ import annotations

import math
from collections.abc import Iterable

import cv2
import numpy as np

from chess_cxr.sources.phantom.anatomy import (
    CAGE,
    MEAN_WIDTH,
    Anatomy,
    Canvas,
    Map,
    Points,
    blur,
    ellipsoid,
    ramp,
    smooth_noise,
    splat,
    spline,
    tube,
)

# Ribs 1 to 12: height at the spine (cm), depth of the ring (cm), greatest half-width (cm), angle at which bone ends
_RIBS = (
    (-0.80, 11.0, 6.3, 2.50),
    (0.82, 13.0, 9.9, 2.50),
    (2.54, 14.5, 11.8, 2.48),
    (4.66, 15.5, 99.0, 2.42),
    (6.78, 16.5, 99.0, 2.38),
    (8.90, 17.3, 99.0, 2.32),
    (11.02, 17.8, 99.0, 2.25),
    (13.14, 18.0, 99.0, 2.15),
    (15.26, 18.0, 99.0, 2.05),
    (17.38, 17.0, 99.0, 1.90),
    (19.50, 15.0, 99.0, 1.35),
    (21.62, 13.0, 99.0, 0.95),
)


def _rib_curve(anatomy: Anatomy, number: int, side: int, rng: np.random.Generator) -> Points:
    """Compute the centre line (x, y, r, stretch) of one rib, a ring around the chest whose front end hangs lower."""
    scale = anatomy.lung_length / 25.5
    start, depth_cm, widest, end = _RIBS[number]
    depth = depth_cm * anatomy.cage_depth / 17
    drop = depth * math.tan(anatomy.rib_tilt + rng.normal(0, 0.012)) * (0.92 if number == 0 else 1.0)
    top = start * scale
    lateral = min((top + 0.5 * drop) / anatomy.lung_length, 1.3)
    width = min(anatomy.cage_width * float(CAGE(lateral)) + 0.15, widest * anatomy.cage_width / MEAN_WIDTH)
    angle = np.linspace(math.asin(1.9 / width), end + rng.normal(0, 0.03), 200)
    x = width * np.sin(angle)
    y = top + drop * (1 - np.cos(angle)) / 2 + 0.018 * drop * np.sin(2.2 * angle + rng.normal(0, 0.3))
    z = -depth / 2 * np.cos(angle)
    flat = np.hypot(np.gradient(x), np.gradient(y))
    front = np.clip((angle - 1.7) / 0.9, 0, 1)
    # At the side of the chest, rays run along the rib and meet more bone; the front end fades into cartilage.
    gain = np.minimum(np.hypot(flat, np.gradient(z)) / flat, 2.4) * (1 - 0.42 * front)
    gain *= np.clip((angle[-1] - angle) / 0.10, 0, 1) * (0.8 if number < 2 else 1)
    radius = anatomy.rib_radius * (0.82 if number in (0, 11) else 1.0) * (1 + 0.18 * front)
    return np.stack([side * x + _spine_x(anatomy, y), y, radius, gain], axis=1)


def _spine_x(anatomy: Anatomy, y: Points | Map) -> Points:
    return np.asarray(anatomy.scoliosis * np.sin(np.clip(y / anatomy.lung_length, -0.2, 1.2) * math.pi), np.float64)


def _limb_curves(anatomy: Anatomy, side: int, rng: np.random.Generator) -> list[tuple[Points, float, float]]:
    """Compute clavicle, scapula edges and humerus of one side, each with its shell (cm) and marrow density."""
    wide = anatomy.cage_width / 13.4
    inner, rise = 4.5 + rng.normal(0, 0.2), anatomy.clavicle_rise + rng.normal(0, 0.25)
    out = anatomy.scapula_shift + rng.normal(0, 0.2)
    drop = anatomy.shoulder_drop

    def knots(rows: Iterable[tuple[float, float, float, float]]) -> Points:
        return spline((side * x * wide, y, radius, gain) for x, y, radius, gain in rows)

    clavicle = knots(
        [(1.9, inner, 0.95, 0.8), (3.4, inner - 0.5, 0.72, 1), (6.2, inner - 0.32 * rise, 0.56, 1.15),
         (9.4, inner - 0.80 * rise, 0.54, 1.15), (12.6, inner - rise, 0.60, 1), (15.6, inner - rise + 0.1, 0.72, 0.3)]
    )  # fmt: skip
    base = inner - rise + drop * 0.3
    ridge = knots(
        [(10.6 + out, base + 3.6, 0.30, 0.3), (13.0 + out, base + 2.3, 0.45, 0.7), (15.4 + out, base + 0.9, 0.62, 0.8),
         (17.6 + out, base + 0.5, 0.80, 0.2)]
    )  # fmt: skip
    medial = knots(
        [(11.0 + out, base + 1.6, 0.16, 0.5), (10.7 + out, base + 5.0, 0.20, 0.6), (11.2 + out, base + 9.0, 0.22, 0.6),
         (12.4 + out, base + 12.6, 0.34, 0.6)]
    )  # fmt: skip
    lateral = knots(
        [(12.4 + out, base + 12.6, 0.34, 0.6), (13.7 + out, base + 9.3, 0.42, 0.9), (15.0 + out, base + 6.0, 0.52, 0.9),
         (15.8 + out, base + 3.9, 0.95, 0.25)]
    )  # fmt: skip
    coracoid = knots(
        [(14.6 + out, base + 2.6, 0.55, 0.5), (14.2 + out, base + 1.6, 0.6, 0.7), (15.2 + out, base + 2.0, 0.5, 0.6)]
    )
    tilt = math.tan(anatomy.arm_angle)
    humerus = knots(
        [(18.2 + out, base + 2.2, 1.2, 0.5), (18.3 + out, base + 3.4, 2.25, 0.7), (18.5 + out, base + 4.8, 2.2, 0.7),
         (18.8 + out + tilt, base + 7.0, 1.35, 1), (18.9 + out + 5 * tilt, base + 12, 1.15, 1.1),
         (18.9 + out + 17 * tilt, base + 26, 1.1, 1.1)]
    )  # fmt: skip
    shells = (0.16, 0.3), (0.16, 0.35), (0.3, 0.3), (0.14, 0.35), (0.12, 0.4), (0.28, 0.36)
    curves = clavicle, ridge, medial, lateral, coracoid, humerus
    return [(curve, *shell) for curve, shell in zip(curves, shells, strict=True)]


def _scapula_blade(canvas: Canvas, side: int, medial: Points, lateral: Points) -> Map:
    outline = canvas.to_px(np.concatenate([medial[:, :2], lateral[:, :2]]))
    blade = np.zeros(canvas.shape, np.float32)
    cv2.fillPoly(blade, [np.round(outline * 8).astype(np.int32)], 0.16, cv2.LINE_8, 3)
    return blur(blade, 0.12 / canvas.spacing)


def _compute_spine(canvas: Canvas) -> Map:
    """Compute vertebral bodies, discs, pedicles and spinous processes (cm of bone)."""
    anatomy = canvas.anatomy
    pitch = 2.12 * anatomy.lung_length / 25.5
    level = (canvas.y_H1 + 1.7 * pitch / 2.12) / pitch + 0.5
    phase = level - np.floor(level) - 0.5
    x = canvas.x_1W - _spine_x(anatomy, canvas.y_H1).astype(np.float32)
    half = np.clip(1.35 + 0.075 * level, 1.2, 2.5) * (1 + 0.10 * (2 * np.abs(phase)) ** 3)
    inside = np.maximum(1 - (x / half) ** 2, 0)
    disc = ramp(np.abs(phase), 0.36, 0.47)
    end_plate = np.exp(-(((np.abs(phase) - 0.37) / 0.045) ** 2))
    body = np.sqrt(inside) * (0.8 + 0.25 * end_plate - 0.25 * disc)
    arch = 0.45 * ramp(np.abs(x), half * 1.25, half * 0.9) * ramp(np.abs(phase + 0.05), 0.48, 0.2)
    ring = np.sqrt(((np.abs(x) - 0.66 * half) / 0.34) ** 2 + ((phase + 0.16) * pitch / 0.5) ** 2)
    pedicle = 0.45 * np.exp(-(((ring - 0.8) / 0.3) ** 2)) + 0.15 * (ring < 0.8)
    spinous = 0.6 * np.exp(-((x / 0.28) ** 2) - ((phase - 0.2) * pitch / 0.62) ** 2)
    transverse = 0.28 * np.exp(-(((phase + 0.1) * pitch / 0.42) ** 2)) * ramp(np.abs(x), half + 1.4, half + 0.6)
    spine: Map = (0.32 * body + 0.22 * arch + 0.4 * pedicle + 0.5 * spinous + 0.7 * transverse).astype(np.float32)
    return spine


def compute_bone(canvas: Canvas) -> Map:
    """Compute the bone along each ray, in cm of compact bone."""
    anatomy = canvas.anatomy
    rng = np.random.default_rng([anatomy.seed, 3])
    sampled: list[tuple[Points, Points]] = []
    blades = np.zeros(canvas.shape, np.float32)
    for side in (-1, 1):
        sampled += [tube(canvas, _rib_curve(anatomy, n, side, rng), 0.11, 0.20) for n in range(12)]
        limbs = _limb_curves(anatomy, side, rng)
        sampled += [tube(canvas, curve, shell, marrow) for curve, shell, marrow in limbs]
        blades += _scapula_blade(canvas, side, limbs[2][0], limbs[3][0])
    tubes = splat(canvas.shape, np.concatenate([p for p, _ in sampled]), np.concatenate([m for _, m in sampled]))
    tubes = blur(tubes, max(0.55, 0.025 / canvas.spacing))
    trabecular = 1 + 0.06 * smooth_noise(rng, canvas.shape, 0.25 / canvas.spacing)
    manubrium = 0.12 * ellipsoid(canvas, (0, 7.0), (2.6, 3.2, 1.4))
    bone: Map = (1.3 * tubes + _compute_spine(canvas) + blades + manubrium) * trabecular * anatomy.bone_density
    return bone.astype(np.float32)
