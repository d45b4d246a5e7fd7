"""CPU seconds, peak memory and missed copies of the search for near hashes among many films, on SYNTHETIC hashes.

usage: OMP_NUM_THREADS=1 python benchmarks/audit.py [--films 10000 100000 1000000] [--seed 0] [--like STORE]

The hashes are drawn from a normal distribution with the mean and covariance of a store's hashes, or, without one, of
500 generated films.  500 of them are then made noisy copies of others, in all poses in turn, with a cosine of 0.95,
0.97 or 0.99.  exact: all pairs are compared (what the audit does up to 100,000 films).  buckets: what it does above.
Each case runs in a process of its own; "added" is the peak of resident memory beyond what the hashes themselves and the
imports take.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from chess_cxr.audit.near import POSES, find_near_hashes, pose_hashes, unpack_hashes
from chess_cxr.ingest.hashes import compute_hashes
from chess_cxr.sources.phantom.anatomy import draw_anatomy
from chess_cxr.sources.phantom.film import draw_exposure, render_film
from chess_cxr.store import open_store
from memory import read_memory_mib

COPIES = 500
COSINES = (0.95, 0.97, 0.99)
EXACT_UP_TO = 100_000
GENERATED = 500


def read_hashes(store: Path | None) -> np.ndarray:
    """Return the hashes of a store, or of generated films, float32 [N, D]."""
    if store:
        return unpack_hashes([text for text in open_store(store).read_hashes()["perceptual_hash"] if text])
    films = (render_film(draw_anatomy(n), draw_exposure(n), size=128).pixels for n in range(GENERATED))
    return unpack_hashes([compute_hashes(film.astype(np.float32) / film.max()).perceptual for film in films])


def draw_hashes(like_ND: np.ndarray, films: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw hashes like others, plant copies; returns float32 [films, D] and the copies' rows, int64 [`COPIES`, 2]."""
    rng = np.random.default_rng(seed)
    width = like_ND.shape[1]
    mean, root = like_ND.mean(0), np.linalg.cholesky(np.cov(like_ND.T) + 1e-9 * np.eye(width))
    hash_ND = np.empty((films, width), np.float32)
    for start in range(0, films, 100_000):
        part = hash_ND[start : start + 100_000]
        part[:] = mean + rng.normal(size=part.shape) @ root.T
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    half = films // 2
    pair_C2 = np.stack([rng.choice(half, COPIES, replace=False), half + rng.choice(half, COPIES, replace=False)], 1)
    for number, (original, copy) in enumerate(pair_C2):
        turned = pose_hashes(hash_ND[original : original + 1], number % POSES)[0]
        noise = rng.normal(size=width)
        noise -= turned * (noise @ turned)
        cosine = COSINES[number % len(COSINES)]
        hash_ND[copy] = cosine * turned + np.sqrt(1 - cosine**2) * noise / np.linalg.norm(noise)
    return hash_ND, pair_C2


def measure(hashes: Path, films: int, seed: int, exact: bool) -> None:
    """Measure one case in this process; print it as JSON."""
    hash_ND, pair_C2 = draw_hashes(np.load(hashes), films, seed)
    before_mib, started = read_memory_mib(), time.process_time()
    near = find_near_hashes(hash_ND, exact_below=films if exact else 0)
    seconds = time.process_time() - started
    found = set(zip(near.first.tolist(), near.second.tolist(), strict=True))
    kept = np.array([tuple(pair) in found for pair in pair_C2.tolist()])
    recall = [float(kept[number :: len(COSINES)].mean()) for number in range(len(COSINES))]
    told = {"seconds": seconds, "pairs": len(found), "recall": recall}
    print(json.dumps(told | {"before": before_mib, "peak": read_memory_mib()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--like", type=Path)
    options = parser.parse_args()
    if min(options.films) < 2 * COPIES:
        parser.error(f"--films must be {2 * COPIES} or more")
    with tempfile.TemporaryDirectory() as folder:
        hashes = Path(folder) / "hashes.npy"
        like = read_hashes(options.like)
        np.save(hashes, like)
        source = f"{len(like):,} films of {options.like.name}" if options.like else f"{len(like)} generated films"
        print(f"SYNTHETIC hashes with the mean and covariance of {source}; seed {options.seed}; copies found by cosine")
        print(
            f"{'films':>10}  {'search':8}{'CPU s':>9}{'films/s':>9}{'peak MiB':>10}{'added':>7}{'pairs':>11}"
            + "".join(f"{cosine:>7}" for cosine in COSINES)
        )
        for films in options.films:
            for exact in [True, False] if films <= EXACT_UP_TO else [False]:
                words = [str(hashes), str(films), str(options.seed), str(int(exact))]
                command = [sys.executable, __file__, "measure", *words]
                told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                line = f"{films:10,}  {'exact' if exact else 'buckets':8}{told['seconds']:9.1f}"
                line += f"{films / told['seconds']:9,.0f}{told['peak']:10.0f}{told['peak'] - told['before']:7.0f}"
                print(line + f"{told['pairs']:11,}" + "".join(f"{share:7.3f}" for share in told["recall"]), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "1")
    else:
        main()
