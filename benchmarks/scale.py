"""Seconds and peak memory of every step on a SIMULATED archive of millions of films, each in a process of its own.

usage: OMP_NUM_THREADS=1 python benchmarks/scale.py [--rows 5000000] [--folder FOLDER] [--steps NAME...]

The rows are made up: three films a patient, 12 sites of unequal size, 6 labels.  There are no pixels: each film is one
JPEG of 16 x 16, and its hash is drawn from a normal distribution.  1,000 films are copies of others: every second has
equal pixels, the others a hash with a cosine of 0.97 and the same picture of 256 x 256.

write    writes the store at once, column by column
open     opens it and reads all columns but pixels and hashes
sample   the films to train on; a step's batch far into the run, as it comes and balanced by site; pairs within
         patients; 2,048 films read from random rows
train    pre-trains the smallest network and kills itself after the checkpoint of step 2
go on    the same command again, from the checkpoint to the end
audit    chess-cxr audit: patients, equal pixels, hashes, pictures of films with near hashes; with --tables 4 by 4 of
         the 24 tables of hashes, each of which takes equally long

list     lists a table of as many films
split    divides the patients, with balanced labels
ingest   chess-cxr ingest of the table, with splits, hashed identifiers and its usual commits, but with workers that
         take no time; kills itself after half of the films
resume   the same ingest again, to the end

"CPU s" is the time of all threads of the process; "added" is the peak of resident memory beyond that after the imports.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.csv

from chess_cxr.film_jpeg import encode_film
from chess_cxr.ingest.encoding import EncodedFilm
from chess_cxr.ingest.hashes import HASH_BYTES, HASH_VERSION
from chess_cxr.records import FilmListing
from chess_cxr.sources.folder import read_folder
from chess_cxr.sources.phantom.anatomy import draw_anatomy
from chess_cxr.sources.phantom.film import draw_exposure, render_film
from chess_cxr.store import begin_store, open_store
from memory import read_memory_mib

ROWS = 5_000_000
COPIES, COSINE = 1000, 0.97
SITES, LABELS = 12, 6
SITE_SHARE = 0.7 ** np.arange(SITES) / (0.7 ** np.arange(SITES)).sum()
PREVALENCE = np.geomspace(0.2, 0.002, LABELS)
KEY = bytes(16)
TABLES = "SCALE_TABLES"  # how many tables of hashes a step's process searches
PART = 100_000

# ---------------------------------------------------------------- the archive


def name_copies(rows: int) -> np.ndarray:
    """Return rows of films and of their copies, int64 [COPIES, 2]; copies belong to other patients."""
    rng = np.random.default_rng(1)
    half = rows // 2
    return np.stack([rng.choice(half, COPIES, replace=False), half + rng.choice(half, COPIES, replace=False)], 1)


def write_table(folder: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    number = np.arange(rows)
    patient = number // 3
    columns = {
        "file": np.strings.mod("a/%08d.dcm", number),
        "patient": np.strings.mod("p%08d", patient),
        "age": patient % 90,
        "sex": np.array(["F", "M"])[patient % 2],
        "site": np.strings.mod("site %d", rng.choice(SITES, rows, p=SITE_SHARE)),
        "view": np.array(["PA", "AP", "LATERAL"])[number % 3],
    }
    columns |= {f"Label{place}": (rng.random(rows) < part).astype(np.int8) for place, part in enumerate(PREVALENCE)}
    pyarrow.csv.write_csv(pa.table(columns), folder / "films.csv")


def write_hashes(folder: Path, rows: int) -> None:
    rng = np.random.default_rng(3)
    hash_ND = np.lib.format.open_memmap(folder / "hashes.npy", "w+", np.int8, (rows, HASH_BYTES - 1))
    for start in range(0, rows, PART):
        hash_ND[start : start + PART] = np.clip(
            np.rint(40 * rng.standard_normal(hash_ND[start : start + PART].shape)), -127, 127
        )
    for number, (film, copy) in enumerate(name_copies(rows)):
        noise = rng.standard_normal(hash_ND.shape[1]) * 40 * (1 - COSINE**2) ** 0.5
        hash_ND[copy] = hash_ND[film] if number % 2 else np.clip(np.rint(COSINE * hash_ND[film] + noise), -127, 127)


def list_table(folder: Path) -> FilmListing:
    labels = ",".join(map("Label{}".format, range(LABELS)))
    return read_folder([folder], folder / "films.csv", {"labels": labels, "site": "site"})


class NoPixels(Executor):
    """Workers that take no time and return what was made up for a film."""

    def __init__(self, folder: Path, rows: int) -> None:
        self._hash_ND = np.load(folder / "hashes.npy", mmap_mode="r")
        grey = render_film(draw_anatomy(0), draw_exposure(0), size=256).pixels.astype(np.float32)
        self._small, _, _ = encode_film(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16), 16)
        self._large, _, _ = encode_film(grey / grey.max(), 256)
        self._copied = {
            film for number, pair in enumerate(name_copies(rows).tolist()) if number % 2 == 0 for film in pair
        }
        self._original = {copy: film for number, (film, copy) in enumerate(name_copies(rows).tolist()) if number % 2}

    def submit(self, function: Any, *arguments: Any, **named: Any) -> Future[Any]:
        """Answer at once."""
        future: Future[Any] = Future()
        future.set_result([self.encode(int(Path(path).stem)) for path in arguments[1]])
        return future

    def encode(self, film: int) -> EncodedFilm:
        """Return the made-up film of a row."""
        jpeg, side = (self._large, 256) if film in self._copied else (self._small, 16)
        perceptual = bytes([HASH_VERSION]) + self._hash_ND[film].tobytes()
        return EncodedFilm(
            jpeg=jpeg,
            height=side,
            width=side,
            pixel_hash=f"{self._original.get(film, film):032x}",
            perceptual_hash=perceptual,
        )


def write_rows(folder: Path, rows: int) -> None:
    """Write a complete store of made-up rows, column by column, in the schema of every store."""
    place, names = folder / "rows.lance", [f"Label{number}" for number in range(LABELS)]
    rng = np.random.default_rng(2)
    patients = hash_numbers(rng, rows // 3 + 1)
    split = rng.choice(["train", "val", "test"], len(patients), p=[0.7, 0.1, 0.2])
    films = NoPixels(folder, rows)
    schema = begin_store(place, names, "SIMULATED")._schema

    def build_parts() -> Iterator[pa.RecordBatch]:
        for start in range(0, rows, PART):
            number = np.arange(start, min(start + PART, rows))
            encoded = [films.encode(film) for film in number.tolist()]
            column = {
                "uid": hash_numbers(rng, len(number)),
                "patient": patients[number // 3],
                "view": np.array(["PA", "AP", "LATERAL"])[number % 3],
                "sex": np.array(["F", "M"])[number // 3 % 2],
                "site": np.strings.mod("site %d", rng.choice(SITES, len(number), p=SITE_SHARE)),
                "split": split[number // 3],
                "age_years": (number // 3 % 90).astype(np.float32),
                **{name: [getattr(film, name) for film in encoded] for name in ("height", "width", "jpeg")},
                **{name: [getattr(film, name) for film in encoded] for name in ("pixel_hash", "perceptual_hash")},
            }
            column |= {"study": column["uid"], "manufacturer": np.full(len(number), "")}
            column |= {
                f"label:{name}": (rng.random(len(number)) < part).astype(np.float32)
                for name, part in zip(names, PREVALENCE, strict=True)
            }
            unknown = {"bool": np.zeros(len(number), bool), "float": np.full(len(number), np.nan, np.float32)}
            arrays = [pa.array(column.get(field.name, unknown.get(str(field.type))), field.type) for field in schema]
            yield pa.record_batch(arrays, schema=schema)

    lance.write_dataset(pa.RecordBatchReader.from_batches(schema, build_parts()), place, mode="append")
    begin_store(place, names, "SIMULATED").finish()


def hash_numbers(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return random identifiers that look as hashed ones do, 24 hexadecimal digits."""
    return np.frombuffer(rng.bytes(12 * count).hex().encode(), "S24").astype(str)


# ---------------------------------------------------------------- steps


def step_write(folder: Path, rows: int) -> str:
    write_rows(folder, rows)
    held = sum(file.stat().st_size for file in (folder / "rows.lance").rglob("*") if file.is_file())
    return f"{held / rows:.0f} bytes a film"


def step_list(folder: Path, rows: int) -> str:
    listed = sum(1 for _ in list_table(folder))
    return f"{listed:,} films"


def step_split(folder: Path, rows: int) -> str:
    from chess_cxr.ingest.split import assign_stratified_splits

    splits = list(assign_stratified_splits(list_table(folder), 0, 0.1, 0.2).values())
    return ", ".join(f"{name} {splits.count(name):,}" for name in ("train", "val", "test")) + " patients"


def step_ingest(folder: Path, rows: int) -> str:
    return ingest(folder, rows, die_after=rows // 2)


def step_resume(folder: Path, rows: int) -> str:
    return ingest(folder, rows, die_after=rows + 1)


def ingest(folder: Path, rows: int, die_after: int) -> str:
    from chess_cxr.ingest.options import IngestOptions
    from chess_cxr.ingest.pipeline import ingest_films

    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if done == die_after:
            die(f"killed after {done:,} films")

    options = IngestOptions(KEY, in_flight=64)
    summary = ingest_films(list_table(folder), folder / "films.lance", options, NoPixels(folder, rows), count)
    return f"{summary.resumed:,} films had been done, {summary.films:,} stored of {summary.patients:,} patients"


def step_open(folder: Path, rows: int) -> str:
    store = open_store(folder / "rows.lance")
    held = store.films.memory_usage(deep=True).sum() / 2**20
    return f"{len(store):,} films, {len(store.get_rows('train')):,} to train on, {held:,.0f} MiB of columns"


def step_sample(folder: Path, rows: int) -> str:
    from chess_cxr.pretraining.films import build_film_pool, build_groups, build_reader, build_siblings
    from chess_cxr.training.order import compute_balanced_batch, compute_batch

    clock.start()

    def time_it(function: Callable[[], Any]) -> tuple[Any, float]:
        began = time.process_time()
        return function(), time.process_time() - began

    pool, seconds = time_it(lambda: build_film_pool([open_store(folder / "rows.lance")], ("train", "")))
    far = 10 * len(pool) // 256 + 3
    said = [f"pool {seconds:.1f}"]
    (film_B, _), seconds = time_it(lambda: compute_batch(len(pool), 256, far, 0))
    _, again = time_it(lambda: compute_batch(len(pool), 256, far + 1, 0))
    said.append(f"step {far:,} {seconds:.2f}, the next {again:.4f}")
    groups, seconds = time_it(lambda: build_groups(pool, "site"))
    said.append(f"{len(groups)} sites {seconds:.1f}")
    _, seconds = time_it(lambda: compute_balanced_batch(groups, 256, far, 0))
    _, again = time_it(lambda: compute_balanced_batch(groups, 256, far + 1, 0))
    said.append(f"balanced step {seconds:.2f}, the next {again:.4f}")
    siblings, seconds = time_it(lambda: build_siblings(pool, "patient"))
    siblings.draw(film_B, np.arange(256), 0)
    said.append(f"pairs within patients {seconds:.1f}")
    read = build_reader(pool, most_bytes=0)
    chosen = np.random.default_rng(0).integers(len(pool), size=2048)
    _, seconds = time_it(lambda: [read(chosen[start : start + 256]) for start in range(0, 2048, 256)])
    said.append(f"a random film {seconds / 2048 * 1e6:.0f} µs")
    return "CPU s: " + "; ".join(said)


def step_train(folder: Path, rows: int) -> str:
    return run_pretraining(folder, die_after=2)


def step_go_on(folder: Path, rows: int) -> str:
    return run_pretraining(folder, die_after=0)


def run_pretraining(folder: Path, die_after: int) -> str:
    from chess_cxr.pretraining.presets import build_config
    from chess_cxr.pretraining.pretrain import pretrain

    clock.start()

    config = build_config("demo", folder / "run")
    training = replace(config.training, steps=4, batch=32, checkpoint_every=2, log_every=1)
    views = replace(config.views, size=32)
    steps: list[int] = []

    def die_at(report: Any, *_: Any) -> None:
        steps.append(report.step)
        if report.step == die_after + 1:
            die(f"killed after step {report.step}")

    config = replace(config, training=training, views=views)
    pretrain(folder / "rows.lance", folder / "run", config, die_at, device="cpu")
    return f"steps {steps[0]} to {steps[-1]}"


def step_audit(folder: Path, rows: int) -> str:
    from chess_cxr.audit import near
    from chess_cxr.audit.audit import audit_stores

    near.TABLES = int(os.environ.get(TABLES, near.TABLES))
    clock.start()

    stages: dict[str, float] = {}

    def show(stage: str, done: int, total: int) -> None:
        stages[stage] = time.process_time()

    began = time.process_time()
    result = audit_stores([open_store(folder / "rows.lance")], on_progress=show)
    pairs = ", ".join(f"{count:,} {kind}" for kind, count in result.pairs["kind"].value_counts().items())
    ends = [began, *stages.values()]
    told = ", ".join(f"{name} until {end - began:.0f}" for name, end in zip(stages, ends[1:], strict=True))
    return f"{pairs}, {near.TABLES} tables; CPU s: {told}"


STEPS = {
    "write": step_write,
    "open": step_open,
    "sample": step_sample,
    "train": step_train,
    "go on": step_go_on,
    "audit": step_audit,
    "list": step_list,
    "split": step_split,
    "ingest": step_ingest,
    "resume": step_resume,
}

# ---------------------------------------------------------------- measuring


class Clock:
    """What a step's process has taken since its imports."""

    def start(self) -> None:
        """Begin anew, after further imports."""
        self.before_mib, self.wall, self.cpu = read_memory_mib("VmRSS"), time.perf_counter(), time.process_time()

    def tell(self, said: str) -> None:
        """Print what was taken, as JSON."""
        spent = {"wall": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu}
        peak_mib = read_memory_mib("VmHWM")
        print(json.dumps(spent | {"peak": peak_mib, "added": peak_mib - self.before_mib, "said": said}), flush=True)


clock = Clock()


def die(said: str) -> None:
    """Tell what was measured, then end as if the power had failed."""
    clock.tell(said)
    os.kill(os.getpid(), signal.SIGKILL)


def run_step(folder: Path, name: str, rows: int) -> None:
    """Run a step in a process of its own and print its line."""
    command = [sys.executable, __file__, "measure", str(folder), name, str(rows)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if ended.returncode not in (0, -signal.SIGKILL) or not ended.stdout:
        sys.exit(f"the step {name} ended with {ended.returncode}")
    told = json.loads(ended.stdout.splitlines()[-1])
    numbers = " | ".join(f"{told[key]:,.0f}" for key in ("wall", "cpu", "peak", "added"))
    print(f"| {name} | {numbers} | {told['said']} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--folder", type=Path, help="keep the archive here; by default in a folder that goes")
    parser.add_argument("--tables", type=int, help="search so many tables of hashes; by default all")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    asked = parser.parse_args()
    if asked.rows < 20 * COPIES:
        parser.error(f"--rows must be {20 * COPIES} or more")
    if asked.tables:
        os.environ[TABLES] = str(asked.tables)
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "hashes.npy").exists():
            write_hashes(folder, asked.rows)
        if not (folder / "films.csv").exists() and {"list", "split", "ingest"} & set(asked.steps):
            write_table(folder, asked.rows)
        print(f"SIMULATED archive, {asked.rows:,} films", flush=True)
        print("| step | s | CPU s | peak MiB | added MiB | |\n| --- | --- | --- | --- | --- | --- |", flush=True)
        for name in asked.steps:
            run_step(folder, name, asked.rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        folder, name, rows = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
        clock.start()
        clock.tell(STEPS[name](folder, rows))
    else:
        main()
