"""Seconds and peak memory of listing films: 10 k, 100 k and 1 M of them, each case in a process of its own.

nested: empty files, 100 a folder, folders of 100 folders.  flat: all in one folder.  table: a CSV of five columns, two
labels among them, three films a patient.  split: the same table, listed and divided by patient with balanced labels.
"added" is the peak of resident memory beyond that of the process after its imports.

usage: OMP_NUM_THREADS=1 python benchmarks/listing_memory.py [ENTRIES...]
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from chess_cxr.ingest.split import assign_stratified_splits
from chess_cxr.records import FilmListing
from chess_cxr.sources.folder import read_folder
from memory import read_memory_mib

KINDS = ("nested", "flat", "table", "split")
ENTRIES = (10_000, 100_000, 1_000_000)
FOLDER_ENTRIES = 100


def make_files(root: Path, kind: str, entries: int) -> None:
    for start in range(0, entries, FOLDER_ENTRIES):
        number = start // FOLDER_ENTRIES
        folder = root / f"p{number // 100:04d}" / f"s{number % 100:02d}" if kind == "nested" else root
        folder.mkdir(parents=True, exist_ok=True)
        for entry in range(start, start + FOLDER_ENTRIES):
            (folder / f"{entry:08d}.dcm").touch()


def make_table(root: Path, entries: int) -> None:
    with (root / "films.csv").open("w") as file:
        file.write("file,patient,age,Edema,Mass\n")
        for entry in range(entries):
            file.write(
                f"a/{entry:08d}.dcm,p{entry // 3:08d},{entry // 3 % 90},{entry % 11 == 0:d},{entry % 97 == 0:d}\n"
            )


def list_source(root: Path, kind: str) -> FilmListing:
    if kind in ("table", "split"):
        return read_folder([root], root / "films.csv", {"labels": "Edema,Mass"})
    return read_folder([root])


def measure(root: Path, kind: str, entries: int) -> None:
    """Measure one case in this process; print it as JSON."""
    before_mib, started = read_memory_mib(), time.perf_counter()
    listing = list_source(root, kind)
    if kind == "split":
        assign_stratified_splits(listing, 0, 0.1, 0.2)
    else:
        assert sum(1 for _ in listing) == entries
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "before": before_mib, "peak": read_memory_mib()}))


def main() -> None:
    if sys.argv[1:2] == ["measure"]:
        measure(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
        return
    print(f"{'kind':8}{'entries':>10}{'seconds':>10}{'entries/s':>12}{'peak MiB':>10}{'added MiB':>11}")
    for kind in KINDS:
        for entries in [int(text) for text in sys.argv[1:]] or ENTRIES:
            root = Path(tempfile.mkdtemp())
            try:
                make_table(root, entries) if kind in ("table", "split") else make_files(root, kind, entries)
                command = [sys.executable, __file__, "measure", str(root), kind, str(entries)]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            finally:
                shutil.rmtree(root)
            rate, added = entries / found["seconds"], found["peak"] - found["before"]
            print(
                f"{kind:8}{entries:10,}{found['seconds']:10.2f}{rate:12,.0f}{found['peak']:10.0f}{added:11.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
