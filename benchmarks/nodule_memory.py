"""Peak memory of the process that trains a nodule generator on as many films of 1024² as NODE21 has.

usage: OMP_NUM_THREADS=1 python benchmarks/nodule_memory.py [--films 4882] [--marked 1134] [--mode film] [--workers 2]

The films (SYNTHETIC) are links to 32 generated MetaImage files in the layout of NODE21; one step is trained.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from memory import read_memory_mib
from peers import import_peer

SimpleITK = import_peer("SimpleITK")

PICTURES, SIDE = 32, 1024


def build_tree(folder: Path, films: int, marked: int) -> None:
    """Write NODE21's folder; the first films by name have a nodule."""
    from chess_cxr.tasks.nodules.films import read_nodule_films

    (folder / "images").mkdir(parents=True)
    rows = ["height,img_name,label,width,x,y"]
    drawn = read_nodule_films(f"phantom:{PICTURES}@{SIDE}#1")[::2]
    for number in range(films):
        path = folder / "images" / f"n{number:04d}.mha"
        film, picture = drawn[number % PICTURES], folder / "images" / f"n{number % PICTURES:04d}.mha"
        if path == picture:
            stored = SimpleITK.GetImageFromArray(np.rint(4095 * film.film_HW).astype(np.int16))
            SimpleITK.WriteImage(stored, str(path))
        else:
            path.hardlink_to(picture)
        spans = [np.flatnonzero(film.mask_HW.any(axis)) for axis in (1, 0)] if number < marked else []
        box = [int(spans[0].size), int(spans[1].size), int(spans[1][0]), int(spans[0][0])] if spans else [0] * 4
        rows.append(f"{box[0]},{path.name},{int(bool(spans))},{box[1]},{box[2]},{box[3]}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")


def train(folder: Path, mode: str, workers: int) -> None:
    """Train one step and print seconds and this process's own peak memory."""
    from chess_cxr.tasks.nodules.config import NodulesConfig
    from chess_cxr.tasks.nodules.train import finetune_nodules
    from chess_cxr.workers.pool import build_ingest_pool

    config = NodulesConfig(mode=mode, width=4, latent=8, steps=1, batch=2, perceptual="none")
    started, read = time.monotonic(), 0.0

    def show(stage: str, done: int, total: int) -> None:
        nonlocal read
        if stage.startswith("read") and done == total:
            read = time.monotonic() - started
            print(f"read {total:,} films: {read:.0f} s, peak {read_memory_mib():.0f} MB", flush=True)

    with build_ingest_pool(workers) as pool:
        result = finetune_nodules(
            "random:regnetx_002@64", [str(folder / "node21")], folder / "model", config, on_stage=show, executor=pool
        )
    test = result.films["scored"]["films"]
    print(f"and trained a step, tested {test} films: peak {read_memory_mib():.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=4882)
    parser.add_argument("--marked", type=int, default=1134)
    parser.add_argument("--mode", choices=("inpaint", "film"), default="inpaint")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tree", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.tree:
        train(asked.tree, asked.mode, asked.workers)
        return
    with tempfile.TemporaryDirectory() as folder:
        build_tree(Path(folder) / "node21", asked.films, asked.marked)
        words = [sys.executable, __file__, "--tree", folder, "--mode", asked.mode, "--workers", str(asked.workers)]
        subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
