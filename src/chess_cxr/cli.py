"""The command line: one dict of command names and functions.

Results go to stdout, progress and messages to stderr.  Exit codes: 0 done, 1 the work failed, 2 wrong use.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from chess_cxr.progress import ProgressBar
from chess_cxr.records import ChessError

Positional = tyro.conf.Positional


def demo(out: Path = Path("demo"), quiet: bool = False) -> None:
    """Walk the whole path on generated films, in minutes, and open the door to the report.

    Generated DICOM films -> store -> pre-training -> encoder -> classification -> report.html.
    Everything is SYNTHETIC: it shows that the software works.

    Example: chess-cxr demo --out demo

    Args:
        out: folder for all that is made; an interrupted demo continues there.
        quiet: no progress on stderr.
    """
    from chess_cxr.demo import run_demo

    print(run_demo(out, quiet))


def ingest(
    sources: Positional[tuple[Path, ...]],
    out: Path,
    table: Path | None = None,
    columns: tuple[str, ...] = (),
    dataset: str = "",
    longest_side: int = 512,
    val: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    key_file: Path | None = None,
    id_map: Path | None = None,
    workers: int | None = None,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Turn folders of films (DICOM, PNG, JPEG, TIFF, WebP) into a store.

    Each film is decoded once, identifiers become keyed hashes, patients are split into train, val and test.  What
    cannot be read stands in OUT's quarantine file with its reason.

    Example: chess-cxr ingest films/ --out films.lance --table labels.csv --columns patient=PatientID class=Diagnosis

    Args:
        sources: folders or files.
        out: the store to write, such as films.lance.
        table: CSV, TSV or Parquet with one row a film.
        columns: FIELD=COLUMN pairs; fields are path, uid, patient, study, view, age, sex, split, class, labels.
        dataset: name of the data set.
        longest_side: of the stored films, in pixels.
        val: fraction of the patients for validation, where the table gives no split.
        test: fraction of the patients for the test.
        seed: of the split.
        key_file: secret key of the identifier hashes; by default CHESS_CXR_ID_KEY or a file of your own made once.
        id_map: write uid and path of every film there, for your eyes only.
        workers: processes; by default one a core.
        json: print the summary as JSON.
        quiet: no progress on stderr.
    """
    from chess_cxr.ingest.deidentify import read_id_key
    from chess_cxr.ingest.pipeline import IngestOptions, ingest_films
    from chess_cxr.ingest.workers import build_pool
    from chess_cxr.sources.folder import read_folder

    films = read_folder(sources, table, parse_pairs(columns))
    options = IngestOptions(
        read_id_key(key_file), id_map, dataset=dataset, longest_side=longest_side, val=val, test=test, seed=seed
    )
    with build_pool(workers) as pool, ProgressBar("ingest", len(films), "films", quiet) as bar:
        summary = ingest_films(films, out, options, pool, bar.advance)
    _print(vars(summary) if json else summary.as_text(), json)


def pretrain(
    stores: Positional[tuple[Path, ...]],
    out: Path,
    preset: str = "cpu_small",
    config: Path | None = None,
    quiet: bool = False,
) -> None:
    """Pre-train an encoder on the films of some stores, without labels; the same command again continues a run.

    Films of the val and test splits are never trained on.  Several GPUs or machines: torchrun … -m chess_cxr pretrain …

    Example: chess-cxr pretrain films.lance --preset cpu_small --out runs/first

    Args:
        stores: stores to train on.
        out: the run folder.
        preset: chess_paper, cpu_small or demo.
        config: a JSON file like a run's config.json instead of a preset.
        quiet: no progress on stderr.
    """
    from chess_cxr.api import build_config, read_config_file
    from chess_cxr.api import pretrain as run_pretrain

    chosen = read_config_file(config) if config else build_config(preset)
    steps = chosen.training.steps
    with ProgressBar("pretrain", steps, "steps", quiet or int(os.environ.get("RANK", "0")) > 0) as bar:
        print(run_pretrain(stores, out, chosen, build_step_note(bar)))


def export(run: Positional[Path], out: Path, licence: str = "not stated", data: str = "") -> None:
    """Write a run's encoder as a folder that timm, and everybody, can load.

    Example: chess-cxr export runs/first --out encoders/first --licence Apache-2.0 --data "5,000 films of hospital A"

    Args:
        run: a run folder.
        out: the encoder folder to write.
        licence: of the weights.
        data: what the films were, for the model card.
    """
    from chess_cxr.api import export as write

    print(write(run, out, licence, data))


def import_weights(file: Positional[Path], out: Path) -> None:
    """Turn a checkpoint in the published CheSS layout into an encoder folder.

    Only plain tensors are read: a file with code in it is refused.

    Example: chess-cxr weights import chess.pth.tar --out encoders/chess

    Args:
        file: the published .pth.tar file, or an extract of it.
        out: the encoder folder to write.
    """
    from chess_cxr.weights import import_chess

    print(import_chess(file, out))


def show_weights(encoder: Positional[Path]) -> None:
    """Print what an encoder folder says of itself, as JSON.

    Example: chess-cxr weights show encoders/chess

    Args:
        encoder: an encoder folder.
    """
    from chess_cxr.weights import show_encoder

    _print(show_encoder(encoder), True)


def embed(encoder: Positional[str], store: Positional[Path], out: Path) -> None:
    """Write the feature vector of every film of a store to a Parquet file, beside its uid.

    Example: chess-cxr embed encoders/first films.lance --out features.parquet

    Args:
        encoder: an encoder folder, or a name such as imagenet:tf_efficientnet_lite0.
        store: a store.
        out: the Parquet file to write.
    """
    from chess_cxr.api import write_features

    print(write_features(encoder, store, out))


def evaluate(
    store: Positional[Path],
    encoders: tuple[str, ...],
    out: Path | None = None,
    labels: tuple[str, ...] = (),
    fractions: tuple[float, ...] = (0.01, 0.1, 1.0),
    films: tuple[int, ...] = (),
    draws: int = 10,
    first_draw: str = "",
    on: Literal["val", "test"] = "test",
    metric: str = "auroc",
    seed: int = 0,
    replicates: int = 1000,
    reference: str = "",
    synthetic: bool = False,
    quiet: bool = False,
) -> None:
    """Compare encoders by linear probes at several label fractions, with intervals by patient; print the table.

    Example: chess-cxr evaluate films.lance --encoders mine=encoders/first random:regnetx_002@96 pixels:32 --out result

    Args:
        store: a store with labels.
        encoders: [NAME=]ENCODER: encoder folders, random:NETWORK@SIZE, imagenet:tf_efficientnet_lite0, pixels:SIDE.
        out: folder for results.csv, draws.csv, differences.csv, table.md and report.html.
        labels: names of the labels; all by default.
        fractions: parts of the training patients that are labelled.
        films: further label subsets, by number of films, one of each patient.
        draws: label draws a fraction.
        first_draw: a 0/1 column that marks the first draw of a subset of its own size.
        on: the split that is scored.
        metric: of the printed table.
        seed: of draws and bootstrap.
        replicates: of the bootstrap.
        reference: encoder that differences are taken to; the first by default.
        synthetic: say on the page that the films were generated.
        quiet: no progress on stderr.
    """
    from chess_cxr.api import evaluate as compare
    from chess_cxr.api import write_comparison

    named = parse_encoders(encoders)
    with ProgressBar("embed", len(named), "encoders", quiet) as bar:
        comparison = compare(
            store,
            named,
            labels,
            fractions=fractions,
            film_counts=films,
            draws=draws,
            first_draw=first_draw,
            evaluate_on=on,
            seed=seed,
            replicates=replicates,
            on_encoder=lambda name: bar.advance(note=name),
        )
    if out:
        command = "chess-cxr " + " ".join(sys.argv[1:])
        write_comparison(comparison, out, reference or next(iter(named)), command, synthetic)
    print(comparison.as_markdown(metric))


def finetune_classify(
    encoder: Positional[str],
    store: Positional[Path],
    out: Path,
    labels: tuple[str, ...] = (),
    mode: Literal["linear", "full"] = "linear",
    steps: int = 300,
    batch: int = 32,
    learning_rate: float = 3e-4,
    seed: int = 0,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Train a classifier on a store's labels and print its test results with 95 % intervals by patient.

    linear: a probe on cached features, in seconds.  full: all weights, from the val split's best moment.

    Example: chess-cxr finetune classify encoders/first films.lance --out models/findings

    Args:
        encoder: an encoder folder, or a name such as random:regnetx_002@96.
        store: a store with labels; at least its train and test splits.
        out: the model folder to write.
        labels: names of the labels; all by default.
        mode: linear or full.
        steps: optimisation steps of full fine-tuning.
        batch: films a step.
        learning_rate: of full fine-tuning (AdamW).
        seed: of everything random.
        json: print the results as JSON.
        quiet: no progress on stderr.
    """
    from chess_cxr.finetuning import FinetuneConfig, finetune

    chosen = FinetuneConfig(mode, steps, batch, learning_rate, seed=seed)
    with ProgressBar("finetune", steps if mode == "full" else 1, "steps", quiet) as bar:
        result = finetune(encoder, store, out, labels, chosen, lambda: bar.advance())
    _print(result.as_json() if json else result.as_text(), json)


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "ingest": ingest,
    "pretrain": pretrain,
    "export": export,
    "weights import": import_weights,
    "weights show": show_weights,
    "embed": embed,
    "evaluate": evaluate,
    "finetune classify": finetune_classify,
}


def parse_pairs(texts: Sequence[str]) -> dict[str, str]:
    """Parse FIELD=COLUMN texts."""
    from chess_cxr.records import UsageError

    wrong = [text for text in texts if "=" not in text]
    if wrong:
        raise UsageError(f"{wrong[0]!r} should be FIELD=COLUMN, such as patient=PatientID")
    return dict(text.split("=", 1) for text in texts)


def parse_encoders(texts: Sequence[str]) -> dict[str, str]:
    """Parse [NAME=]ENCODER texts into encoders by name."""
    named = {}
    for text in texts:
        name, found, encoder = text.partition("=")
        named[name if found else text.rstrip("/")] = encoder if found else text
    return named


def build_step_note(bar: ProgressBar) -> Callable[[Any, Mapping[str, float]], None]:
    """Return a callback that shows a run's steps on a progress bar."""
    shown = 0

    def on_step(report: Any, probe: Mapping[str, float]) -> None:
        nonlocal shown
        note = f"loss {next(iter(report.losses.values())):.3f}"
        if "probe/knn_auroc" in probe:
            note += f"  kNN AUROC {probe['probe/knn_auroc']:.3f}  rank {probe['probe/effective_rank']:.0f}"
        bar.advance(report.step - shown, note)
        shown = report.step

    return on_step


def _print(result: Any, as_json: bool) -> None:
    print(json.dumps(result, indent=1, default=str) if as_json else result)


def main() -> None:
    """Run the command line."""
    words = sys.argv[1:]
    if " ".join(words[:2]) in COMMANDS:  # such as: weights import
        words = [" ".join(words[:2]), *words[2:]]
    try:
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="chess-cxr", args=words)
    except ChessError as error:
        print(f"chess-cxr: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("chess-cxr: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
