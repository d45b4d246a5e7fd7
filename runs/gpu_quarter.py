"""Use a quarter of an hour of one CUDA card: pre-train ResNet-50 at 224 px, judge it, test, bring the weights home.

usage: python runs/gpu_quarter.py pack STORE PACK.parquet [--megabytes 60] [--side 224]
       python runs/gpu_quarter.py go PACK.parquet OUT --minutes 13 [--do train judge tests speed] [--config FILE]
                                      [--work WORK]
       python runs/gpu_quarter.py join OUT ENCODER --licence TEXT --data TEXT

pack, anywhere: the films of a store with labels and splits in one file, as JPEG of the best quality that fits; where a
quality of 40 does not fit, the films shrink.

go, where the card is, with this repository and the pack alone (runs/gpu_quarter.sh): installs nothing.  Times a few
steps, then trains as many as fit; what stops it early loses a checkpoint's steps only.  Writes OUT/weights.NN, pieces
of at most 16 MB with the encoder and its heads in half precision, OUT/manifest.json with their SHA-256 and all else
that an encoder folder says, and OUT/report.txt: the encoder by linear probe on the packed labels (val films), the
CUDA tests, and benchmarks/training_step.py.  WORK, by default out/gpu_quarter, keeps the run, so that a second
call goes on: `--do train` first, then `--do judge tests speed`.

join, at home: checks every piece, writes the encoder folder, and checks that it embeds the test film as it did there.
"""

import argparse
import hashlib
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NEEDED = ("torch", "timm", "safetensors", "lance", "pyarrow", "pandas", "scipy", "cv2", "simplejpeg", "pydantic")
NEEDED += ("jinja2", "matplotlib", "rich", "tyro", "threadpoolctl")
PARTS = ("train", "judge", "tests", "speed")
PIECE_BYTES = 16_000_000
TRAINING_SHARE = 0.7  # of the minutes, if other parts follow
QUALITIES = tuple(range(95, 35, -5))
TEXTS = ("uid", "patient", "study", "view", "sex", "site", "split", "manufacturer")
NUMBERS = ("age_years", "year", "study_day", "spacing_mm")


# ---------------------------------------------------------------- pack


def pack(store: Path, out: Path, megabytes: float, side: int) -> None:
    """Write the films of a store to one Parquet file of at most so many megabytes; print what it came to."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet

    from chess_cxr.store import open_store

    opened = open_store(store)
    sample = np.linspace(0, len(opened) - 1, min(len(opened), 1000)).astype(int)
    side, quality = choose_size(opened.read_films(sample), len(opened), 0.97 * 1e6 * megabytes, side)
    columns = [*TEXTS, *NUMBERS, *opened.label_names]
    table = pa.Table.from_pandas(opened.films[columns], preserve_index=False)
    jpegs: list[bytes] = []
    for start in range(0, len(opened), 256):
        rows = range(start, min(start + 256, len(opened)))
        jpegs += [encode(film, side, quality) for film in opened.read_films(list(rows))]
    table = table.append_column("jpeg", pa.array(jpegs, pa.binary()))
    about = {"labels": opened.label_names, "dataset": opened.dataset_name, "side": side, "quality": quality}
    table = table.replace_schema_metadata({"pack": json.dumps(about)})
    pyarrow.parquet.write_table(table, out, compression="zstd", use_dictionary=list(TEXTS))
    size = out.stat().st_size / 1e6
    print(f"{out}: {len(jpegs)} films, longest side {side}, JPEG quality {quality}, {size:.1f} MB")
    if size > megabytes:
        out.unlink()
        sys.exit(f"that is more than {megabytes:g} MB, and nothing was kept; give --megabytes a smaller number")


def choose_size(sample: Sequence[Any], count: int, most: float, side: int) -> tuple[int, int]:
    """Return the largest side, and with it the best quality, of JPEG that should fit, judged by a sample of films."""
    for smaller in range(side, 31, -16):
        for quality in QUALITIES:
            if sum(len(encode(film, smaller, quality)) for film in sample) / len(sample) * count <= most:
                return smaller, quality
    sys.exit("the films do not fit, however small")


def encode(film_HW: Any, side: int, quality: int) -> bytes:
    """Encode a film as grey JPEG whose longest side is at most `side`."""
    import numpy as np
    import simplejpeg

    from chess_cxr.film_jpeg import shrink_film

    small_HW1 = np.ascontiguousarray(shrink_film(film_HW, side))[..., None]
    jpeg: bytes = simplejpeg.encode_jpeg(small_HW1, quality, colorspace="GRAY")
    return jpeg


def unpack(file: Path, out: Path) -> Path:
    """Turn a pack into a store, unless that is done already; return its path."""
    import pyarrow.parquet

    from chess_cxr.film_jpeg import decode_stored
    from chess_cxr.records import ImageRecord
    from chess_cxr.store import StoredFilm, write_store

    if out.exists():
        return out
    table = pyarrow.parquet.read_table(file)
    about = json.loads(table.schema.metadata[b"pack"])

    def read_films() -> Iterator[StoredFilm]:
        for row in table.to_pylist():
            known = {name: row[name] if row[name] is not None else math.nan for name in (*NUMBERS, *about["labels"])}
            labels = {name: known.pop(name) for name in about["labels"]}
            film_HW = decode_stored(row["jpeg"])
            record = ImageRecord(**{name: row[name] for name in TEXTS}, **known, labels=labels)
            yield StoredFilm(record, row["jpeg"], *film_HW.shape)

    write_store(out, read_films(), about["labels"], about["dataset"])
    return out


# ---------------------------------------------------------------- go


def go(file: Path, out: Path, work: Path, minutes: float, do: Sequence[str], config: Path | None, device: str) -> None:
    """Do the parts in their order within the minutes; what does not fit any more is cut off, and the report says so."""
    deadline = time.monotonic() + 60 * minutes
    out, work = out.resolve(), work.resolve()
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        sys.exit(f"missing here, and nothing is installed: {', '.join(missing)}")
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA card here")
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    store = unpack(file, work / "pool.lance")
    if "train" in do:
        share = TRAINING_SHARE if len(do) > 1 else 0.9  # the rest goes to the export
        train(store, work, deadline - (1 - share) * 60 * minutes, config, device)
        write_pieces(work / "encoder", out)
    for part, command in list_commands(store, work, device).items():
        if part in do:
            run_until(deadline, part, command, out / "report.txt")


def train(store: Path, work: Path, deadline: float, config: Path | None, device: str) -> None:
    """Pre-train until the deadline, with as many steps as fit, and export the encoder to WORK/encoder."""
    from chess_cxr.pretraining.export import export
    from chess_cxr.pretraining.presets import read_config_file
    from chess_cxr.training.stop import Stopped

    chosen = read_config_file(config) if config else build_config()
    known = work / "config.json"  # a second call goes on with the same steps
    if not known.exists():
        step = time_steps(store, work / "timing", chosen, device)
        steps = max(20, int((deadline - time.monotonic()) * 0.95 / step))
        print(f"{step:.3f} seconds a step of {chosen.training.batch} films: {steps} steps until the end", flush=True)
        # no probes: a probe of thousands of films would take half a minute of the card, and the encoder is judged below
        training = replace(chosen.training, steps=steps, probe_every=10**6, checkpoint_every=max(1, steps // 4))
        known.write_text(json.dumps(asdict(replace(chosen, training=training))))
    try:
        pretrain_until(deadline, store, work / "run", read_config_file(known), device)
    except Stopped as stopped:
        print(stopped, flush=True)
    shutil.rmtree(work / "encoder", ignore_errors=True)
    export(work / "run", work / "encoder")


def build_config() -> Any:
    """Return ResNet-50 at 224 px in bfloat16, from scratch, with the views of `cpu_small`."""
    from chess_cxr.methods.moco import MoCoConfig
    from chess_cxr.pretraining.presets import PRESETS

    small = PRESETS["cpu_small"]()
    training = replace(small.training, batch=256, precision="bfloat16", loader_threads=os.cpu_count() or 1)
    method = MoCoConfig("resnet50", queue=2048, key_momentum=0.99)
    views = replace(small.views, size=224, quick_noise=True)
    return replace(small, preset="gpu_quarter", method=method, views=views, training=training)


def time_steps(store: Path, folder: Path, config: Any, device: str, steps: int = 40) -> float:
    """Return the seconds of a step: the mean of the later half of a short run.

    Both ends of that half are logged steps, at which the loop waits for the card.
    """
    ends: list[float] = []
    training = replace(config.training, steps=steps, log_every=steps // 2, probe_every=10**6, checkpoint_every=10**6)
    run_pretrain(store, folder, replace(config, training=training), device, lambda *_: ends.append(time.monotonic()))
    return (ends[-1] - ends[steps // 2 - 1]) / (steps // 2)


def pretrain_until(deadline: float, store: Path, folder: Path, config: Any, device: str) -> None:
    """Pre-train, or go on with it; after the deadline the next step writes a checkpoint and raises `Stopped`."""

    def look_at_the_clock(*_: Any) -> None:
        if time.monotonic() > deadline:
            signal.raise_signal(signal.SIGTERM)

    run_pretrain(store, folder, config, device, look_at_the_clock)


def run_pretrain(store: Path, folder: Path, config: Any, device: str, on_step: Any) -> None:
    """Pre-train without trackers, which may be missing here."""
    from chess_cxr.pretraining.pretrain import pretrain
    from chess_cxr.training.config import TrackingConfig

    pretrain(store, folder, config, on_step, tracking=TrackingConfig(trackers=()), device=device)


def list_commands(store: Path, work: Path, device: str) -> dict[str, list[str]]:
    """Return the command of each part that is a process of its own."""
    python, speed = sys.executable, HERE.parent / "benchmarks" / "training_step.py"
    return {
        "judge": [python, __file__, "judge", str(store), str(work), "--device", device],
        "tests": [python, "-m", "pytest", "-q", "-m", "cuda", "-rs", "tests/cuda", "tests/training/test_ahead.py"],
        "speed": [python, str(speed), "resnet50@224/8", "--device", device, "--rounds", "3", "--batch", "256"],
    }


def run_until(deadline: float, part: str, command: Sequence[str], report: Path) -> None:
    """Run a command from the root of the repository, print its output and add it to the report."""
    left = max(1.0, deadline - time.monotonic())
    environment = os.environ | {"PYTHONPATH": str(HERE.parent / "src")}
    try:
        done = subprocess.run(
            command, cwd=HERE.parent, env=environment, timeout=left, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        text, end = done.stdout, f"exit code {done.returncode}"
    except subprocess.TimeoutExpired as late:
        text = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
        end = f"cut off after {left:.0f} seconds"
    told = f"\n=== {part}: {end}\n{text}"
    print(told, flush=True)
    with report.open("a") as file:
        file.write(told)


def judge(store: Path, work: Path, device: str) -> None:
    """Print macro AUROC of a linear probe on the encoder and on bare pixels, on val films."""
    import tomllib

    from chess_cxr.benchmarking.benchmark import benchmark
    from chess_cxr.benchmarking.suite import Suite, TaskSpec
    from chess_cxr.store import open_store

    labels = set(open_store(store).label_names)
    tasks = dict[str, TaskSpec]()
    for name, described in tomllib.loads((HERE / "judge_suite.toml").read_text())["tasks"].items():
        if labels >= set(described["labels"]):
            task = TaskSpec(**{key: tuple(v) if isinstance(v, list) else v for key, v in described.items()})
            first = task.first_draw if task.first_draw in labels else ""
            tasks[name] = replace(task, store=str(store), heads=("linear",), first_draw=first)
    tasks = tasks or {"all labels": TaskSpec(str(store))}
    encoders = {"ours": str(work / "encoder"), "pixels": "pixels:32"}
    suite = Suite(encoders, tasks, (0.1, 1.0), draws=1, on="val", reference="ours", replicates=200, device=device)
    folder = work / f"judged_{time.time_ns()}"
    benchmark(suite, folder, cells=work / "cells", pictures=False)
    subprocess.run([sys.executable, HERE / "judge_table.py", folder], check=True)


# ---------------------------------------------------------------- pieces


def write_pieces(encoder: Path, out: Path) -> None:
    """Write an encoder folder in half precision as pieces, with a manifest that says everything else."""
    import safetensors.torch
    import torch

    from chess_cxr.encoders.folder import HEADS_FILE, UIDS_FILE, WEIGHTS_FILE, load_folder, show_encoder

    tensors = dict[str, Any]()
    for part, file in (("encoder", encoder / WEIGHTS_FILE), ("heads", encoder / HEADS_FILE)):
        found = safetensors.torch.load_file(file) if file.exists() else {}
        tensors |= {f"{part}.{name}": halve(tensor) for name, tensor in found.items()}
    content = safetensors.torch.save(tensors)
    parts = [content[start : start + PIECE_BYTES] for start in range(0, len(content), PIECE_BYTES)]
    names = [f"weights.{number:02d}" for number in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        (out / name).write_bytes(part)
    halved = load_folder(encoder, torch.device("cpu"), check=False)
    halved.module.load_state_dict(take_part(tensors, "encoder."))
    manifest = {
        "pieces": {name: hashlib.sha256(part).hexdigest() for name, part in zip(names, parts, strict=True)},
        "encoder": show_encoder(encoder),
        "golden": embed_golden_film(halved),
        "uids": (encoder / UIDS_FILE).read_text().split(),
    }
    (out / "manifest.json").write_text(json.dumps(manifest))
    print(f"{len(parts)} pieces, {len(content) / 1e6:.1f} MB", flush=True)


def halve(tensor: Any) -> Any:
    """Store weights in half precision; biases and statistics of normalisation, which can be large, stay as they are."""
    return tensor.half() if tensor.ndim > 1 and tensor.is_floating_point() else tensor


def take_part(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the tensors of one part under their own names, in full precision."""
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}


def embed_golden_film(encoder: Any) -> list[float]:
    """Embed the fixed test film on the CPU."""
    from chess_cxr.encoders.contract import draw_golden_film

    feature_D: list[float] = encoder.embed([draw_golden_film(encoder.contract.size)])[0].tolist()
    return feature_D


def join(folder: Path, out: Path, licence: str, data: str) -> None:
    """Put the pieces together, check them, and write an encoder folder."""
    import numpy as np
    import safetensors.torch

    from chess_cxr.encoders.contract import parse_contract
    from chess_cxr.encoders.encoder import TrainingSummary
    from chess_cxr.encoders.folder import CPU_TOLERANCE, write_encoder
    from chess_cxr.encoders.load import load_encoder

    manifest = json.loads((folder / "manifest.json").read_text())
    content = b""
    for name, expected in manifest["pieces"].items():
        part = (folder / name).read_bytes()
        if hashlib.sha256(part).hexdigest() != expected:
            sys.exit(f"{folder / name} is not the piece that the manifest names: fetch it again")
        content += part
    tensors, said = safetensors.torch.load(content), manifest["encoder"]
    training = replace(TrainingSummary(**said["training"]), data=data)
    heads = take_part(tensors, "heads.")
    write_encoder(
        out, take_part(tensors, "encoder."), said["architecture"], parse_contract(said["contract"]), licence, training,
        manifest["uids"], heads=heads,
    )  # fmt: skip
    found_D, golden_D = np.array(embed_golden_film(load_encoder(out))), np.array(manifest["golden"])
    miss = np.linalg.norm(found_D - golden_D) / np.linalg.norm(golden_D)
    print(f"{out}: the test film is embedded as there, within {miss:.1e} of its length")
    if not miss <= 10 * CPU_TOLERANCE:
        sys.exit("that is too much: something was lost on the way")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("store", type=Path)
    packing.add_argument("out", type=Path)
    packing.add_argument("--megabytes", type=float, default=60.0)
    packing.add_argument("--side", type=int, default=224)
    going = commands.add_parser("go")
    going.add_argument("file", type=Path)
    going.add_argument("out", type=Path)
    going.add_argument("--minutes", type=float, required=True)
    going.add_argument("--work", type=Path, default=Path("out/gpu_quarter"))
    going.add_argument("--do", nargs="+", default=PARTS, choices=PARTS)
    going.add_argument("--config", type=Path, help="of a run, instead of ResNet-50 at 224 px; its steps are replaced")
    going.add_argument("--device", default="cuda")
    judging = commands.add_parser("judge")
    judging.add_argument("store", type=Path)
    judging.add_argument("work", type=Path)
    judging.add_argument("--device", default="cuda")
    joining = commands.add_parser("join")
    joining.add_argument("folder", type=Path)
    joining.add_argument("out", type=Path)
    joining.add_argument("--licence", required=True)
    joining.add_argument("--data", required=True, help="which films, from where, under which terms (Markdown)")
    given = vars(parser.parse_args())
    {"pack": pack, "go": go, "judge": judge, "join": join}[given.pop("command")](**given)


if __name__ == "__main__":
    main()
