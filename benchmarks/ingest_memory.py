"""Peak memory of the process that lists, hashes and writes, by the number of films: it should not grow with them.

usage: OMP_NUM_THREADS=1 python benchmarks/ingest_memory.py [--films 10000 100000] [--workers 2]

Every film is a link to one small picture in a folder of 1,000, so that decoding takes next to nothing; each size is
ingested by a process of its own.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from memory import read_memory_mib


def build_tree(folder: Path, films: int) -> None:
    """Write one picture a folder and link it until there are `films`: file systems limit the links of a file."""
    ramp = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    for number in range(films):
        path = folder / "films" / f"{number // 1000:05d}" / f"{number:08d}.png"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
            picture = path
            Image.fromarray(ramp).save(picture)
        else:
            path.hardlink_to(picture)


def ingest_tree(folder: Path, workers: int) -> None:
    """Ingest the tree and print films, seconds and this process's own peak memory in MB."""
    from chess_cxr.ingest.options import IngestOptions
    from chess_cxr.ingest.pipeline import ingest_films
    from chess_cxr.sources.folder import read_folder
    from chess_cxr.workers.pool import build_ingest_pool

    started = time.monotonic()
    with build_ingest_pool(workers) as pool:
        summary = ingest_films(
            read_folder([folder / "films"]), folder / "s.lance", IngestOptions(bytes(16), in_flight=256), pool
        )
    seconds = time.monotonic() - started
    rate = summary.films / seconds
    print(f"{summary.films:9,d} films  {seconds:6.0f} s  {rate:6.0f} films/s  {read_memory_mib():6.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tree", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.tree:
        ingest_tree(asked.tree, asked.workers)
        return
    with tempfile.TemporaryDirectory() as folder:
        for films in asked.films:
            tree = Path(folder) / str(films)
            build_tree(tree, films)
            subprocess.run([sys.executable, __file__, "--tree", tree, "--workers", str(asked.workers)], check=True)


if __name__ == "__main__":
    main()
