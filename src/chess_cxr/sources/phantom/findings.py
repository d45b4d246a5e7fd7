"""Compute findings of generated films as changes of the tissue along each ray.  Everything here is SYNTHETIC."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from chess_cxr.sources.phantom.anatomy import Canvas, Map, Mask, blur, ramp, smooth_noise
from chess_cxr.sources.phantom.tissue import LUNG_DENSITY, Chest


@dataclass(frozen=True)
class Change:
    """Change of a chest by a finding, as maps (H, W).

    soft: added soft tissue (cm; negative where air replaces it).  vessels_left: visible share of the lung's vessels and
    texture, 0..1.  mask: place of the finding.  centre: (x, y) in cm, diameter: in cm; nodules only.
    """

    soft: Map
    vessels_left: Map
    mask: Mask
    centre: tuple[float, float] | None = None
    diameter: float | None = None


def _compute_normal(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> Change:
    shape = canvas.shape
    return Change(np.zeros(shape, np.float32), np.ones(shape, np.float32), np.zeros(shape, np.bool_))


def _pick_point(allowed: Mask, canvas: Canvas, rng: np.random.Generator) -> tuple[float, float]:
    row, column = np.unravel_index(int(rng.choice(np.flatnonzero(allowed))), allowed.shape)
    return float(canvas.x_1W[0, column]), float(canvas.y_H1[row, 0])


def _compute_depth_inside(mask: Mask, canvas: Canvas) -> Map:
    """Compute the distance (cm) from each pixel of the mask to the nearest pixel outside."""
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    return np.asarray(distance * canvas.spacing, np.float32)


def _polar(canvas: Canvas, centre: tuple[float, float]) -> tuple[Map, Map]:
    dx, dy = canvas.x_1W - np.float32(centre[0]), canvas.y_H1 - np.float32(centre[1])
    return np.hypot(dx, dy), np.arctan2(dy, dx)


def _compute_nodule(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> Change:
    """Draw a lobulated ball of 0.6 to 3 cm with a few spicules; the mask is its shadow without the spicules."""
    diameter = rng.uniform(0.6, 3.0)
    depth = _compute_depth_inside(chest.lung_mask, canvas)
    allowed = depth > min(0.62 * diameter + 0.15, 0.9 * float(depth.max()))
    centre = _pick_point(allowed, canvas, rng)
    soft, mask = draw_nodule_shadow(*_polar(canvas, centre), diameter, rng)
    return Change(blur(soft, 0.04 / canvas.spacing), np.ones_like(soft), mask, centre, diameter)


def draw_nodule_shadow(radius: Map, angle: Map, diameter: float, rng: np.random.Generator) -> tuple[Map, Mask]:
    """Draw a nodule around the origin of polar coordinates (cm, radians): added soft tissue in cm, and its mask."""
    edge = np.full(radius.shape, diameter / 2, np.float32)
    for lobes in (2, 3, 5):
        edge *= 1 + rng.uniform(0, 0.07) * np.cos(lobes * angle + rng.uniform(0, 2 * math.pi))
    inside = radius / edge
    # Tumours bulge more than a ball, so the edge is steeper; some hold calcium, so they weigh up to 2.6 times as much.
    chord = diameter * np.maximum(1 - inside**2, 0) ** 0.42
    spikes = np.maximum(np.cos(rng.integers(7, 15) * angle + 2 * np.sin(3 * angle)), 0) ** 6
    halo = rng.uniform(0, 0.16) * diameter * spikes * np.exp(-np.maximum(inside - 1, 0) * 5) * (inside > 0.9)
    soft = rng.uniform(1.0, 2.6) * (1 - LUNG_DENSITY) * (chord + halo)
    return soft.astype(np.float32), inside < 1


def _compute_consolidation(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> Change:
    """Draw one or two fluffy patches of filled alveoli with open bronchi (air bronchograms)."""
    field = np.zeros(canvas.shape, np.float32)
    centre = _pick_point(_compute_depth_inside(chest.lung_mask, canvas) > 1.2, canvas, rng)
    for _ in range(int(rng.integers(1, 3))):
        spread = rng.uniform(2.2, 4.6), rng.uniform(2.0, 4.2)
        dx, dy = canvas.x_1W - np.float32(centre[0]), canvas.y_H1 - np.float32(centre[1])
        field = np.maximum(field, np.exp(-((dx / spread[0]) ** 2 + (dy / spread[1]) ** 2) / 1.4))
        centre = centre[0] + rng.uniform(-2, 2), centre[1] + rng.uniform(-3, 3)
    side = np.sign(canvas.x_1W) == np.sign(centre[0])
    rough = 0.17 * smooth_noise(rng, canvas.shape, 1.8 / canvas.spacing)
    rough += 0.08 * smooth_noise(rng, canvas.shape, 0.6 / canvas.spacing)
    filled = ramp(field + rough, 0.28, 0.80) * ramp(chest.lung, 0.5, 3.0) * side
    strength = rng.uniform(0.35, 0.85)
    hilum = (math.copysign(2.8, centre[0]), 0.43 * canvas.anatomy.lung_length)
    radius, angle = _polar(canvas, hilum)
    fan = np.cos(9 * angle + 1.1 * np.sin(0.9 * radius) + rng.uniform(0, 6))
    bronchi = 0.35 * np.exp(-((np.arccos(np.clip(fan, -1, 1)) * radius / 9 / 0.16) ** 2)) * (radius > 1.5)
    soft = (1 - LUNG_DENSITY) * strength * filled * chest.lung * (1 - 0.4 * bronchi)
    return Change(soft.astype(np.float32), 1 - 0.9 * filled, (filled > 0.3) & chest.lung_mask)


def _compute_interstitial(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> Change:
    """Draw a net of fine lines and small knots in both lungs, mostly at the bases and the periphery."""
    a = canvas.anatomy
    basal = ramp(canvas.y_H1, rng.uniform(-0.3, 0.3) * a.lung_length, rng.uniform(0.6, 0.9) * a.lung_length)
    outer = 0.55 + 0.45 * ramp(np.abs(canvas.x_1W), 3.0, 0.8 * a.cage_width)
    where = (basal * outer).astype(np.float32) * ramp(chest.lung, 1.0, 5.0)
    net = np.zeros(canvas.shape, np.float32)
    for cell, width in ((1.0, 0.09), (0.7, 0.12), (0.5, 0.16), (0.42, 0.18)):
        wall = smooth_noise(rng, canvas.shape, max(cell / canvas.spacing, 2.0))
        net += np.exp(-((wall / (2 * width)) ** 2))
    knots = np.maximum(smooth_noise(rng, canvas.shape, max(0.32 / canvas.spacing, 1.6)) - 1.3, 0)
    haze = 1 + 0.35 * smooth_noise(rng, canvas.shape, 2.5 / canvas.spacing)
    strength = rng.uniform(0.5, 1.4)
    soft = strength * where * (0.55 * net + 0.8 * knots + 0.9 * haze)
    return Change(soft.astype(np.float32), np.ones_like(soft), (where > 0.25) & chest.lung_mask)


def _compute_effusion(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> Change:
    """Draw fluid at one base; its upper border rises towards the chest wall (meniscus)."""
    a = canvas.anatomy
    side = -1.0 if rng.random() < 0.5 else 1.0
    height = rng.uniform(1.2, 9.0)
    u = np.clip(canvas.x_1W * side / (1.03 * a.cage_width), 0, 1)
    bottom = (a.dome_right + 0.17) * a.lung_length
    level = bottom - height - (1.0 + 0.45 * height) * u**4 - 0.10 * height * (1 - u) ** 4 + 0.9
    level = level + 0.12 * smooth_noise(rng, canvas.shape, 3.5 / canvas.spacing)
    soft_edge = 0.5 + 0.16 * height
    fill = ramp(canvas.y_H1 - level, -soft_edge, soft_edge) * (canvas.x_1W * side > 0.5)
    soft = (1 - LUNG_DENSITY) * fill * chest.lung * rng.uniform(0.8, 1.0)
    return Change(soft.astype(np.float32), 1 - fill, (fill > 0.3) & (chest.lung > 1.0))


def _compute_pneumothorax(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> Change:
    """Draw air between chest wall and lung, widest at the apex, bounded by the thin line of the visceral pleura."""
    a = canvas.anatomy
    side = -1.0 if rng.random() < 0.5 else 1.0
    cavity = (chest.cage > 0.25 * a.cage_depth) & (canvas.x_1W * side > 0) & (canvas.y_H1 < 1.05 * a.lung_length)
    wall = cavity | ((np.abs(canvas.x_1W) < 3.0) & (canvas.y_H1 > 1.5)) | (canvas.y_H1 > 0.9 * a.lung_length)
    inside = _compute_depth_inside(wall, canvas)
    gap = rng.uniform(0.9, 3.2)
    down = ramp(canvas.y_H1, -0.05 * a.lung_length, rng.uniform(0.7, 1.1) * a.lung_length)
    edge = gap * (1.5 - 1.25 * down) + 0.06 * smooth_noise(rng, canvas.shape, 3.0 / canvas.spacing)
    edge = edge * (canvas.x_1W * side > 0)
    rim = ramp(inside - edge, 0.05, -0.05) * (canvas.x_1W * side > 0)
    line = np.exp(-(((inside - edge - 0.06) / 0.07) ** 2)) * (canvas.x_1W * side > 0) * ramp(edge, 0.1, 0.5)
    collapse = rng.uniform(0.10, 0.25) * (1 - rim) * (canvas.x_1W * side > 0.5)
    share = ramp(chest.lung, 0.3, 2.0)
    soft = chest.lung * LUNG_DENSITY * (-0.95 * rim + 0.6 * collapse) + 0.55 * line * share
    return Change(soft.astype(np.float32), 1 - rim, (rim > 0.5) & chest.lung_mask)


COMPUTE_CHANGE: Mapping[str, Callable[[Canvas, Chest, np.random.Generator], Change]] = {
    "normal": _compute_normal,
    "nodule": _compute_nodule,
    "consolidation": _compute_consolidation,
    "interstitial_opacity": _compute_interstitial,
    "pleural_effusion": _compute_effusion,
    "pneumothorax": _compute_pneumothorax,
}
