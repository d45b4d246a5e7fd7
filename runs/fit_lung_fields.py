"""Fit the lung network of chess_cxr.tasks.nodules.lungs on SYNTHETIC films, and measure it on real JSRT films.

usage: python runs/fit_lung_fields.py JSRT [--measure]

JSRT holds images, masks (bits 1 and 2: right and left lung) and cases.csv.  No real film is trained on and none chooses
anything; all but the low_contrast ones are measured.  The weights go where the package keeps them, in half precision.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import safetensors.torch
import torch
from scipy.stats import bootstrap

from chess_cxr.decode.film import decode_film
from chess_cxr.sources.phantom.film import CLASSES, draw_anatomy, draw_exposure, render_film
from chess_cxr.tasks.nodules import lungs as lung_fields
from chess_cxr.tasks.nodules.lungs import SIDE, LungNet, compute_grey_ranks, find_lung_fields

FILMS = 500
STEPS = 300
SEED = 20
BATCH = 16
RATE = 4e-3
EFFUSION = "pleural_effusion"  # fluid hides the lung under it, which readers do not outline
FINDINGS = tuple(name for name in CLASSES if name != EFFUSION)


def render_films(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Render films and lung fields at 160 pixels, so that a crop still has detail."""
    films = []
    for number in range(count):
        exposure = draw_exposure(SEED * 10_000 + number)
        film = render_film(draw_anatomy(SEED * 10_000 + number), exposure, FINDINGS[number % len(FINDINGS)], 160)
        films.append((film.pixels.astype(np.float32) / 4095, film.lung_mask.astype(np.float32)))
    return films


def draw_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Draw smooth noise of about unit variance [S, S]."""
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)


def draw_warp(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw where each pixel of a distorted film comes from: turn, stretch, shift and a smooth bend."""
    turn = rng.normal(0, 0.09)
    stretch = np.exp(rng.normal(0, 0.12)) * np.exp(np.array([1, -1]) * rng.normal(0, 0.08))
    y, x = (np.mgrid[:SIDE, :SIDE].astype(np.float32) + 0.5) / SIDE - 0.5
    u = (np.cos(turn) * x - np.sin(turn) * y) / stretch[0] + rng.normal(0, 0.05)
    v = (np.sin(turn) * x + np.cos(turn) * y) / stretch[1] + rng.normal(0, 0.05)
    u, v = (axis + 0.012 * draw_noise(rng, int(rng.integers(4, 8))) for axis in (u, v))
    if rng.random() < 0.1:
        u = -u
    return ((u + 0.5) * side - 0.5).astype(np.float32), ((v + 0.5) * side - 0.5).astype(np.float32)


def distort(film: np.ndarray, lung: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return ranks and lung field [S, S] of a film, distorted as if by another position, exposure and machine."""
    warp = draw_warp(rng, film.shape[0])
    border = cv2.BORDER_REFLECT_101 if rng.random() < 0.5 else cv2.BORDER_CONSTANT
    fill = float(rng.choice([0.0, 0.1, 0.95, 1.0]))
    grey = cv2.remap(film, *warp, cv2.INTER_LINEAR, borderMode=border, borderValue=fill)
    field = cv2.remap(lung, *warp, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    detail = grey - cv2.GaussianBlur(grey, (0, 0), rng.uniform(1, 6))
    grey = grey + rng.uniform(-0.7, 1.5) * detail
    inside = field * rng.uniform(-0.10, 0.22)  # hazy or very clear lungs
    grey = grey + cv2.GaussianBlur(inside, (0, 0), 1.5)
    for cells, strength in ((3, 0.06), (6, 0.04), (16, 0.025)):
        grey = grey + rng.uniform(0, strength) * draw_noise(rng, cells)
    grey = grey + rng.uniform(0, 0.02) * rng.standard_normal(grey.shape).astype(np.float32)
    grey = cv2.GaussianBlur(grey, (0, 0), rng.uniform(0.3, 1.2))
    for _ in range(int(rng.integers(0, 4))):  # labels, shutters and collimators
        add_block(grey, rng)
    if rng.random() < 0.25:
        local = cv2.createCLAHE(rng.uniform(1, 4), (4, 4))
        grey = local.apply((np.clip(grey, 0, 1) * 255).astype(np.uint8)).astype(np.float32) / 255
    return compute_grey_ranks(np.clip(grey, 0, 1.2).astype(np.float32)), (field > 0.5).astype(np.float32)


def add_block(grey: np.ndarray, rng: np.random.Generator) -> None:
    """Blacken or whiten a corner or a strip at an edge of the film."""
    value = float(rng.choice([0.0, 0.0, 1.1]))
    tall, wide = rng.integers(2, 14), rng.integers(2, 30)
    if rng.random() < 0.5:
        tall, wide = int(rng.integers(1, 8)), SIDE
    block = grey if rng.random() < 0.7 else grey.T
    block = block[:, ::-1] if rng.random() < 0.5 else block
    start = 0 if rng.random() < 0.7 else SIDE - tall
    block[start : start + tall, :wide] = value


def fit(films: list[tuple[np.ndarray, np.ndarray]], steps: int) -> LungNet:
    """Fit by cross-entropy and soft Dice; the rate falls along a cosine."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    net = LungNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-4)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (0.5 + 0.5 * np.cos(np.pi * step / steps)) * min(1.0, (step + 1) / 50)
        drawn = [distort(*films[int(i)], rng) for i in rng.integers(0, len(films), BATCH)]
        rank, field = (torch.from_numpy(np.stack(part))[:, None] for part in zip(*drawn, strict=True))
        logit = net(rank)
        share_lung = logit.sigmoid()
        dice = 2 * (share_lung * field).sum((1, 2, 3)) / (share_lung + field).sum((1, 2, 3)).clamp_min(1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, field) + 1 - dice.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(
                f"step {step}: loss {float(loss.detach()):.3f}, soft Dice {float(dice.detach().mean()):.3f}", flush=True
            )
    return net.eval()


def measure(jsrt: Path) -> pd.DataFrame:
    """Measure the Dice coefficient of the lung fields of each real film that is not low in contrast."""
    rows = []
    for case in pd.read_csv(jsrt / "cases.csv").query("low_contrast == 0").itertuples():
        film = decode_film(jsrt / str(case.file)).pixels
        truth = (cv2.imread(str(jsrt / "masks" / f"{case.case}.png"), cv2.IMREAD_UNCHANGED) & 3) > 0
        found = find_lung_fields(film)
        dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
        rows.append((case.case, dice, (found & truth).sum() / truth.sum(), (found & truth).sum() / found.sum()))
    return pd.DataFrame(rows, columns=["case", "dice", "sensitivity", "precision"])


def main() -> None:
    """Fit, write the weights, measure."""
    jsrt = Path(sys.argv[1])
    if "--measure" not in sys.argv:
        torch.set_num_threads(1)
        net = fit(render_films(FILMS), STEPS)
        path = Path(lung_fields.__file__).with_name(lung_fields.WEIGHTS)
        state = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
        safetensors.torch.save_file(state, path)
    table = measure(jsrt)
    for name in ("dice", "sensitivity", "precision"):
        values = table[name].to_numpy()
        interval = bootstrap((values,), np.mean, n_resamples=2000, rng=np.random.default_rng(0)).confidence_interval
        print(f"{name}: mean {values.mean():.4f} [{interval.low:.4f}, {interval.high:.4f}], least {values.min():.3f}")
    print(f"{len(table)} real JSRT films; worst: {', '.join(table.nsmallest(8, 'dice')['case'])}")


if __name__ == "__main__":
    main()
