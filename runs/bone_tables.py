"""Tables of runs/bone_proof.py: means over films and seeds, with intervals over films; differences paired by film.

Run: python runs/bone_tables.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

METRICS = {
    "psnr": "PSNR, dB", "ssim": "SSIM", "rmse": "RMSE of 255", "bsr": "BSR", "rib_residual": "rib contrast left",
    "nodule_contrast_of_truth": "nodule contrast / true", "vessel_energy_of_truth": "vessel detail / true",
    "lpips": "LPIPS",
}  # fmt: skip
REPLICATES = 2000


def resample(value_FS: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean over films F and seeds S, with its 95 % interval over films; NaN if no film has a value."""
    value_FS = value_FS[np.isfinite(value_FS).any(axis=1)]
    if not len(value_FS):
        return (np.nan,) * 3
    film_F = np.nanmean(value_FS, axis=1)
    rng = np.random.default_rng(seed)
    drawn = film_F[rng.integers(0, len(film_F), (REPLICATES, len(film_F)))].mean(1)
    return float(film_F.mean()), *(float(v) for v in np.percentile(drawn, (2.5, 97.5)))


def pivot(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return films by seeds of one metric."""
    if metric not in rows:
        return pd.DataFrame(np.nan, index=rows["film"].unique(), columns=[0])
    return rows.replace([np.inf, -np.inf], np.nan).pivot_table(
        index="film", columns="seed", values=metric, dropna=False
    )


def say_seeds(value_FS: pd.DataFrame, sign: str = "") -> str:
    """Return the mean of each seed, "" unless each of several seeds has a value of every film."""
    if len(value_FS.columns) < 2 or value_FS.isna().to_numpy().any():
        return ""
    return "; by seed " + ", ".join(f"{value:{sign}.2f}" for value in value_FS.mean())


def write_table(rows: pd.DataFrame, lines: list[str]) -> None:
    """Write one row a recipe, and CXR against ImageNet."""
    known = {m: title for m, title in METRICS.items() if m in rows and rows[m].notna().any()}
    lines += ["| perceptual network | " + " | ".join(known.values()) + " |", "| --- |" + " --- |" * len(known)]
    for recipe in dict.fromkeys(rows["recipe"]):
        part = rows[rows["recipe"] == recipe]
        cells = []
        for metric in known:
            value, low, high = resample(pivot(part, metric).to_numpy(float))
            seeds = say_seeds(pivot(part, metric)) if metric == "psnr" else ""
            cells.append("" if np.isnan(value) else f"{value:.3f} [{low:.3f}, {high:.3f}]{seeds}")
        lines.append(f"| {recipe} | " + " | ".join(cells) + " |")
    for one, other in (
        ("CXR, published weights", "ImageNet, published weights"),
        ("CXR, unit features", "ImageNet, unit features"),
        ("CXR, published weights", "ImageNet, as strong as CXR"),
        ("CXR, published weights", "none"),
        ("CXR, unit features", "none"),
        ("CXR, balanced", "ImageNet, balanced"),
        ("CXR, balanced", "random, balanced"),
        ("CXR, balanced", "none, linear head"),
        ("none", "film as it is"),
    ):
        both = [rows[rows["recipe"] == name] for name in (one, other)]
        if all(len(part) for part in both):
            first, second = (pivot(part, "psnr") for part in both)
            value, low, high = resample((first.mean(axis=1) - second.mean(axis=1)).to_numpy(float)[:, None])
            seeds = say_seeds(first - second, "+")
            lines.append("")
            lines.append(f"PSNR, {one} − {other}: {value:+.2f} dB [{low:+.2f}, {high:+.2f}]{seeds}")
    lines.append("")


def main() -> None:
    """Read what the proof wrote and print Markdown."""
    out = Path(sys.argv[1])
    lines = list[str]()
    if (out / "phantom.csv").exists():
        phantom = pd.read_csv(out / "phantom.csv")
        films, seeds = (phantom[name].nunique() for name in ("film", "seed"))
        lines += [f"### Phantoms (SYNTHETIC), {films} held-out patients, {seeds} seeds", ""]
        write_table(phantom, lines)
    if (out / "real.csv").exists():
        real = pd.read_csv(out / "real.csv")
        itself = real[real["recipe"] == "film as it is"]
        for data in real["data"].dropna().unique():
            part = pd.concat([itself, real[real["data"] == data]])
            for name, chosen in (("all", part), ("dual energy", part[part["film"].str.startswith("bone_")])):
                lines += [f"### Real pairs ({name}, {chosen['film'].nunique()}), trained on {data}", ""]
                write_table(chosen, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
