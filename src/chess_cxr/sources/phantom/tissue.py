"""Compute soft tissue and air of a generated chest, in cm along each ray.  Everything here is SYNTHETIC."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.interpolate import PchipInterpolator

from chess_cxr.sources.phantom.anatomy import (
    CAGE,
    MEAN_LENGTH,
    MEAN_WIDTH,
    Canvas,
    Map,
    Mask,
    Points,
    blur,
    ellipsoid,
    ramp,
    smooth_noise,
    splat,
    spline,
    tube,
)

LUNG_DENSITY = 0.26  # g/ml at full inspiration, soft tissue = 1
_PIECE = 0.33  # cm, length of the straight pieces of vessels

# Depth of the rib cage as a share of its maximum, and medial border of the lung (cm), against y / lung length
_DEPTH = PchipInterpolator(
    (-0.3, 0, 0.03, 0.08, 0.15, 0.3, 0.5, 0.8, 1.0, 1.1, 1.2, 1.5), (0, 0, 0.2, 0.4, 0.6, 0.84, 1, 1, 0.9, 0.6, 0, 0)
)
# Borders of heart and great vessels (cm, mean adult), towards the patient's right and left
_BORDER_K = (-0.3, 0.05, 0.2, 0.3, 0.38, 0.45, 0.52, 0.58, 0.64, 0.7, 0.76, 0.82, 0.9, 1.0, 1.4)
_RIGHT = np.array((1.6, 1.8, 1.9, 2.1, 2.4, 2.7, 3.1, 3.7, 4.05, 4.2, 4.05, 3.7, 3.3, 3.0, 2.0))
_LEFT = np.array((1.6, 1.8, 2.0, 2.5, 3.3, 3.9, 4.9, 6.1, 7.3, 8.3, 8.8, 8.8, 8.2, 7.0, 3.0))
_MEDIAL = PchipInterpolator((-0.3, 0, 0.03, 0.06, 0.1, 0.15, 0.3, 1.5), (5, 4.6, 3.0, 2.3, 1.7, 1.4, 1.1, 1.0))


@dataclass(frozen=True)
class Chest:
    """Maps (H, W) on a canvas: cm of tissue along each ray, depth of the cage, and mask of the lung."""

    body: Map
    lung: Map
    vessels: Map
    texture: Map
    cage: Map
    airway: Map
    dome_y: Map
    lung_mask: Mask


def _fourth(values: Map) -> Map:
    squares = values * values
    return np.asarray(squares * squares, np.float32)


def _compute_body(canvas: Canvas) -> Map:
    """Compute chords through neck, shoulders, arms, trunk and breasts, as if the chest were solid (cm)."""
    a, x, y = canvas.anatomy, np.abs(canvas.x_1W), canvas.y_H1
    k = y / a.lung_length
    half = (a.cage_width * np.maximum(CAGE(np.clip(k, -0.3, 1.4)), 0.86) + a.wall).astype(np.float32)
    depth = (a.cage_depth + 1.1 * a.wall + 1.6) * (0.5 + 0.5 * ramp(k, -0.12, 0.33))
    ratio = np.minimum(x / half, 1)
    trunk = depth * np.sqrt(1 - (ratio * ratio) ** 2) * ramp(y, -4.0, 3.0)
    neck = 11.5 * np.sqrt(np.maximum(1 - (x / a.neck) ** 2, 0)) * ramp(y, 7.0, 0.0)
    top = (
        0.6 + a.shoulder_drop * 0.5 - 7.5 * np.exp(-np.maximum(x - a.neck, 0) / 3.6) + 0.10 * np.maximum(x - 14, 0) ** 2
    )
    below = np.clip((y - top) / 4.5, 0, 1)
    shoulder = (12.0 + 0.6 * a.wall) * np.sqrt(below * (2 - below)) * ramp(y - 0.8 * np.maximum(x - half, 0), 11.0, 6.5)
    shoulder = shoulder * ramp(x, 24.5, 19.0)
    slope = math.tan(a.arm_angle)
    away = (x - (20.6 * a.cage_width / 13.4 + a.scapula_shift * 0.7 + slope * (y - 6.0))) * math.cos(a.arm_angle)
    radius = 3.6 + 0.45 * a.wall
    arm = 2 * np.sqrt(np.maximum(radius**2 - away * away, 0)) * ramp(y, 3.0, 9.0)
    body = np.maximum(trunk * ramp(y - top, 0, 4), neck)
    # A sum of fourth powers acts as a maximum without creases between trunk, shoulder and arm.
    body = np.sqrt(np.sqrt(_fourth(shoulder) + _fourth(arm) + _fourth(body)))
    for side in (-1, 1):
        muscle = ellipsoid(canvas, (side * 10.0, 7.6), (8.5, 5.2, 0.5), -0.5 * side)
        body = body + (1.2 + 0.1 * a.wall) * muscle * muscle * muscle
        if a.breast:
            sag = 0.70 + 0.018 * a.breast
            axes = (4.6 + 0.5 * a.breast, 4.2 + 0.55 * a.breast, 0.34 * a.breast)
            gland = ellipsoid(canvas, (side * 8.4, sag * a.lung_length), axes, 0.35 * side)
            body = body + gland * ramp(y, sag * a.lung_length - axes[1], sag * a.lung_length + 0.5 * axes[1])
    return np.asarray(body, np.float32)


def _compute_mediastinum(canvas: Canvas) -> Map:
    """Compute chords through heart, great vessels and the tissue between the lungs (cm)."""
    a = canvas.anatomy
    length, width = a.lung_length, a.heart_width
    x, y = canvas.x_1W, canvas.y_H1
    k = np.clip(y / length, -0.3, 1.4)
    jitter = np.random.default_rng([a.seed, 8]).normal(0, 0.12, (2, len(_BORDER_K)))
    gain = np.where(np.array(_BORDER_K) > 0.4, width / 6.3, 1.0)
    right, left = (
        PchipInterpolator(_BORDER_K, knots * gain + noise)(k).astype(np.float32)
        for knots, noise in zip((_RIGHT, _LEFT), jitter, strict=True)
    )
    depth = 4.6 + 2.8 * ramp(k, 0.36, 0.62)
    across = (2 * x + right - left) / (right + left)
    shapes = [
        2 * depth * np.sqrt(np.maximum(1 - across * across, 0)),
        ellipsoid(canvas, (1.95, 0.27 * length), (a.aorta, a.aorta * 1.15, 3.6)),
        ellipsoid(canvas, (2.0, 0.40 * length), (2.1, 1.75, 2.4), 0.9),
    ]
    column = 10.5 * np.maximum(1 - (x / 2.8) ** 2, 0)
    aorta_x = 2.0 + 0.5 * a.scoliosis - 0.06 * np.maximum(y - 0.3 * length, 0)
    descending = (
        2.0 * np.sqrt(np.maximum(a.aorta**2 * 0.8 - (x - aorta_x) ** 2, 0)) * ramp(y, 0.25 * length, 0.3 * length)
    )
    squares = sum((shape * shape for shape in shapes), start=column**2 + descending**2)
    return np.asarray(np.sqrt(squares), np.float32)


def _compute_dome(canvas: Canvas) -> Map:
    """Compute the height (y, cm) of the diaphragm over each column, both sides."""
    a = canvas.anatomy
    x = canvas.x_1W
    crest = np.where(x < 0, 0.40, 0.44) * a.cage_width
    out = np.clip((np.abs(x) - crest) / (a.cage_width * 1.04 - crest), 0, 1.25)
    fall = (a.dome_height - np.where(x < 0, 0, 0.4)) * out**2.2
    medial = 0.9 * np.clip((crest - np.abs(x)) / crest, 0, 1) ** 2
    top = a.dome_right * a.lung_length + a.dome_gap * ramp(x, -2.0, 3.0)
    dome: Map = (top + fall + medial).astype(np.float32)
    return dome


def _compute_airway(canvas: Canvas) -> Map:
    """Compute the air in trachea and main bronchi along each ray (cm)."""
    carina = 0.31 * canvas.anatomy.lung_length
    curves = [
        spline([(0.0, -8, 0.85), (-0.15, 2, 0.85), (-0.3, carina - 1, 0.95), (-0.3, carina + 0.4, 0.8)]),
        spline(
            [(-0.5, carina, 0.72), (-2.2, carina + 2.3, 0.66), (-3.2, carina + 4.4, 0.5), (-3.7, carina + 6.5, 0.3)]
        ),
        spline([(0.0, carina, 0.66), (2.3, carina + 2.2, 0.6), (4.1, carina + 3.6, 0.48), (4.9, carina + 5.6, 0.3)]),
    ]
    solid = [np.concatenate([curve, np.ones((len(curve), 1))], axis=1) for curve in curves]
    sampled = [tube(canvas, curve, 5.0, 1.0) for curve in solid]
    air = splat(canvas.shape, np.concatenate([p for p, _ in sampled]), np.concatenate([m for _, m in sampled]))
    return blur(air * np.float32(1.5), 0.09 / canvas.spacing)


@lru_cache(maxsize=8)
def _grow_vessels(seed: int, gain: float) -> Points:
    """Grow arteries and veins in a chest of mean size: rows (x, y, radius, dx, dy) of straight pieces, in cm."""
    rng = np.random.default_rng([seed, 4])
    roots, rows = 68, []
    side = np.repeat((-1.0, 1.0), roots // 2)
    hilum = np.stack([np.where(side < 0, -3.2, 4.1), np.where(side < 0, 0.44, 0.40) * MEAN_LENGTH, 0 * side], 1)
    around = np.tile(np.linspace(-1.45, 1.5, roots // 2), 2) + rng.normal(0, 0.08, roots)
    lift = rng.normal(0, 0.55, roots)
    heading = np.stack([side * np.cos(around) * np.cos(lift), np.sin(around) * np.cos(lift), np.sin(lift)], 1)
    place = hilum + np.stack([rng.normal(0, 0.45, roots), 1.7 * np.sin(around), 1.5 * lift], 1)
    radius = (0.16 + 0.32 * rng.random(roots) ** 1.5) * (1 + 0.22 * np.sin(around)) * math.sqrt(gain)
    tips = np.column_stack([place, heading, hilum, radius, side])
    reach_k = np.linspace(-0.3, 1.4, 120)
    reach_cm = MEAN_WIDTH * CAGE(reach_k)
    for _ in range(64):
        place, heading, radius = tips[:, :3], tips[:, 3:6], tips[:, 9]
        outward = place - tips[:, 6:9]
        heading += rng.normal(0, 0.11, heading.shape) + 0.035 * outward / np.maximum(_norm(outward), 1.0)
        heading /= _norm(heading)
        rows.append(np.column_stack([place[:, :2], radius, _PIECE * heading[:, :2]]))
        place += _PIECE * heading
        radius *= rng.uniform(0.965, 0.995, len(radius))
        forks = rng.random(len(tips)) < np.where(radius > 0.2, 0.22, 0.14)
        young = tips[forks]
        share = rng.uniform(0.35, 0.8, len(young))
        young[:, 3:6] += rng.normal(0, 0.55, (len(young), 3))
        # Murray's law: the flow of the branches adds up to that of the trunk.
        young[:, 9] *= share ** (1 / 2.6)
        radius[forks] *= (1 - 0.62 * share) ** (1 / 2.6)
        tips = np.concatenate([tips, young])
        reach = np.interp(tips[:, 1] / MEAN_LENGTH, reach_k, reach_cm)
        half = 8.5 * np.sqrt(np.maximum(1 - (tips[:, 0] / reach) ** 2, 0))
        alive = (tips[:, 9] > 0.03) & (np.abs(tips[:, 2]) < half - 0.15) & (tips[:, 10] * tips[:, 0] > 0.8)
        tips = tips[alive & (np.abs(tips[:, 0]) < reach - 0.5)]
    return np.concatenate(rows)


def _norm(vectors_N3: Points) -> Points:
    return np.asarray(np.sqrt((vectors_N3 * vectors_N3).sum(axis=1, keepdims=True)), np.float64)


def _compute_vessels(canvas: Canvas) -> Map:
    """Compute the blood in the vessels of the lung along each ray (cm)."""
    a = canvas.anatomy
    scale = a.cage_width / MEAN_WIDTH, a.lung_length / MEAN_LENGTH
    pieces = _grow_vessels(a.seed, a.vessel_gain) * (*scale, 1.0, *scale)
    total = np.zeros(canvas.shape, np.float32)
    edges = (0.0, 0.045, 0.075, 0.12, 0.19, 9.0)
    for low, high in zip(edges, edges[1:], strict=False):
        chosen = pieces[(pieces[:, 2] >= low) & (pieces[:, 2] < high)]
        if not len(chosen):
            continue
        parts = math.ceil(_PIECE / (0.6 * canvas.spacing))
        along = (np.arange(parts) + 0.5) / parts
        points = canvas.to_px((chosen[:, None, :2] + along[:, None] * chosen[:, None, 3:]).reshape(-1, 2))
        mass = np.repeat(math.pi * chosen[:, 2] ** 2 * _PIECE / parts / canvas.spacing**2, parts)
        total += blur(splat(canvas.shape, points, mass), 0.55 * float(chosen[:, 2].mean()) / canvas.spacing)
    for centre, tilt in (((-3.7, 0.46 * a.lung_length), 1.15), ((4.2, 0.405 * a.lung_length), 1.9)):
        total += 0.7 * ellipsoid(canvas, centre, (2.3, 1.0, 0.8), tilt) ** 2
    return total


def compute_chest(canvas: Canvas) -> Chest:
    """Compute the soft tissue of a patient on a canvas, before any finding."""
    a = canvas.anatomy
    rng = np.random.default_rng([a.seed, 5])
    x, y = np.abs(canvas.x_1W), canvas.y_H1
    k = np.clip(y / a.lung_length, -0.3, 1.4)
    reach = (a.cage_width * CAGE(k)).astype(np.float32)
    ratio = np.minimum(x / reach, 1)
    medial = np.clip((x - _MEDIAL(k).astype(np.float32)) / (1.6 + 4.3 * ramp(k, 0.3, 0.6)), 0, 1)
    cage = (a.cage_depth * _DEPTH(k)).astype(np.float32) * np.sqrt(1 - ratio * ratio * ratio)
    dome = _compute_dome(canvas)
    liver = 2 * np.sqrt(2 * 15.0 * np.maximum(y - dome, 0))
    free = cage * medial * (2 - medial)
    lung = np.maximum(free - np.maximum(_compute_mediastinum(canvas), liver), 0)
    texture = 1 + 0.05 * smooth_noise(rng, canvas.shape, 3.0 / canvas.spacing)
    for cell, strength in ((0.9, 0.04), (0.35, 0.05), (0.16, 0.05)):
        if cell > canvas.spacing:
            texture += np.float32(strength) * smooth_noise(rng, canvas.shape, cell / canvas.spacing)
    presence = np.clip(lung / 5.0, 0, 1)
    body = _compute_body(canvas) * (1 + 0.008 * smooth_noise(rng, canvas.shape, 4.0 / canvas.spacing))
    if a.gas:
        crest = a.dome_right * a.lung_length + a.dome_gap
        bubble = ellipsoid(canvas, (0.5 * a.cage_width, crest + 2.6), (2.9 * a.gas, 1.5 * a.gas, 2.2 * a.gas), 0.15)
        body = body - bubble * ramp(y, crest + 3.4, crest + 3.2)
    return Chest(
        body=body.astype(np.float32),
        lung=lung.astype(np.float32),
        vessels=1.25 * _compute_vessels(canvas) * presence,
        texture=texture.astype(np.float32),
        cage=cage.astype(np.float32),
        airway=_compute_airway(canvas),
        dome_y=dome,
        lung_mask=(lung > 0.55 * cage) & (lung > 2.0) & (y < dome),
    )
