"""Commands that compare encoders: evaluate, benchmark."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from chess_cxr.arguments import (
    Device,
    StorePath,
    check_device_name,
    check_seed,
    check_workers,
    parse_encoders,
    print_result,
    refuse_existing,
)
from chess_cxr.encoders.names import check_encoder_name
from chess_cxr.progress import StageBars
from chess_cxr.records import ChessError, UsageError


def evaluate(
    store: StorePath,
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
    device: Device = "auto",
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Compare encoders by linear probes at several label fractions.

    Prints a table with intervals over patients and label draws.

    Example: chess-cxr evaluate films.lance --encoders mine=encoders/first random:regnetx_002@96 pixels:32 --out result

    Args:
        store: a store with labels.
        encoders: [NAME=]ENCODER: encoder folders, random:NETWORK@SIZE, imagenet:tf_efficientnet_lite0, pixels:SIDE.
        out: folder for results.csv, draws.csv, differences.csv, table.md and report.html.
        labels: names of the labels; by default all.
        fractions: label fractions, as shares of the training patients.
        films: additional label subsets, by number of films, one film per patient.
        draws: number of label draws per fraction.
        first_draw: a 0/1 column that marks the first draw of an additional label subset.
        on: the split to score.
        metric: the metric of the printed table.
        seed: random seed of draws and bootstrap.
        replicates: number of bootstrap replicates.
        reference: the encoder to compare the others with; by default the first.
        synthetic: label the page SYNTHETIC, for generated films.
        device: auto, cpu, cuda, cuda:N or mps.
        json: print all numbers as JSON, one record per encoder, subset and metric.
        quiet: show no progress.
    """
    named = parse_encoders(encoders)
    check_device_name(device)
    check_seed(seed)
    if min(draws, replicates) < 1:
        raise UsageError("--draws and --replicates must be 1 or more")
    reference = reference or next(iter(named))
    if reference not in named:
        raise UsageError(f"the reference {reference!r} is none of the encoders {', '.join(named)}")
    if out:
        refuse_existing(out)
    for name in named.values():
        check_encoder_name(name)
    from chess_cxr.store import open_store
    from chess_cxr.tasks.classify.labels import METRICS, select_labelled

    opened = open_store(store)
    known = METRICS[select_labelled(opened, labels).task]
    if metric not in known:
        raise UsageError(f"no metric named {metric!r} for these labels; there are {', '.join(known)}")
    from chess_cxr.benchmarking.evaluate import evaluate as compare
    from chess_cxr.benchmarking.page.comparison import write_comparison

    with StageBars(quiet) as bars:
        comparison = compare(
            opened,
            named,
            labels,
            fractions=fractions,
            film_counts=films,
            draws=draws,
            first_draw=first_draw,
            evaluate_on=on,
            seed=seed,
            replicates=replicates,
            device=device,
            on_progress=bars.show,
        )
    if out:
        write_comparison(comparison, out, reference, shlex.join(["chess-cxr", *sys.argv[1:]]), synthetic)
    print(comparison.table().to_json(orient="records", indent=1) if json else comparison.as_markdown(metric).rstrip())


def benchmark(
    suite: Annotated[Positional[str], tyro.conf.arg(metavar="SUITE")],
    out: Path,
    stores: tuple[str, ...] = (),
    encoders: tuple[str, ...] = (),
    pairs: tuple[str, ...] = (),
    nodules: tuple[str, ...] = (),
    heads: tuple[Literal["linear", "knn", "mlp", "attentive", "attentive8", "full"], ...] = (),
    cells: Path | None = None,
    workers: int | None = None,
    cluster: str = "",
    device: Device = "",
    card: tuple[str, ...] = (),
    pictures: bool = True,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Compare encoders on several tasks and label fractions; write tables and a page.

    If interrupted, the same command continues: each finished cell is kept in the folder of cells.  If a cell fails, the
    others go on, and the exit code is 1.

    Example: chess-cxr benchmark suite.toml --out result

    Args:
        suite: a TOML file, or the name of a preset: paper, or paper-small, which needs no films.
        out: folder for results.parquet, summary.csv, differences.csv, predictions/, table.md and report.html.
        stores: for a preset: stores, each a task with all its labels.
        encoders: for a preset: NAME=ENCODER, such as CheSS=chess:chess.pth.tar ours=encoders/first.
        pairs: for a preset: folders of pairs for bone suppression.
        nodules: for a preset: folders of films with marked nodules for nodule generation.
        heads: for a preset: what is fitted to the encoders; full trains all weights.
        cells: folder of finished cells, which suites can share; by default OUT.cells.
        workers: number of processes; by default one per core.
        cluster: address of a Dask scheduler, such as tcp://10.0.0.1:8786, whose workers see the same files.
        device: auto, cpu, cuda, cuda:N or mps; by default as in the suite.
        card: the encoder that card_section.md describes, by default the reference; and files of task cards: another
            split, label or protocol than theirs is refused.
        pictures: show films on the page; with `--no-pictures` it may go where films may not.
        json: print summary, differences and failures as JSON.
        quiet: show no progress.
    """
    refuse_existing(out)
    check_workers(workers, cluster)
    if device:
        check_device_name(device)
    from chess_cxr.benchmarking.benchmark import benchmark as run_suite
    from chess_cxr.benchmarking.benchmark import choose_suite

    named = parse_encoders(encoders) if encoders else {}
    chosen = choose_suite(suite, stores, named, pairs, nodules, heads)  # before anything is connected
    with contextlib.ExitStack() as stack:
        bars = stack.enter_context(StageBars(quiet))
        executor, count = None, workers
        if cluster:
            from chess_cxr.workers.cluster import connect_cluster

            executor, count = stack.enter_context(connect_cluster(cluster))
        written = run_suite(
            chosen,
            out,
            cells=cells,
            workers=count,
            executor=executor,
            device=device,
            card=card,
            pictures=pictures,
            command=shlex.join(["chess-cxr", *sys.argv[1:]]),
            on_progress=bars.show,
        )
    print_result(written.as_json() if json else written.as_text(), json)
    if failed := len(written.run.results.failures):
        again = f"to try again remove {out}: finished cells are kept"
        parts = "part" if failed == 1 else "parts"
        raise ChessError(f"{failed} {parts} of the benchmark failed, {out / 'failures.csv'} says why; {again}")


def write_task_cards(
    suite: Annotated[Positional[str], tyro.conf.arg(metavar="SUITE")],
    out: Path,
    stores: tuple[str, ...] = (),
    encoders: tuple[str, ...] = (),
    json: bool = False,
) -> None:
    """Write a card of each task of a suite: data, splits as hashes, labels, protocol.

    Two labs whose cards have one identity measure the same; benchmark --card refuses anything else.

    Example: chess-cxr benchmark card suite.toml --out cards

    Args:
        suite: a TOML file, or the name of a preset.
        out: folder for TASK.json and TASK.md.
        stores: for a preset, as in benchmark.
        encoders: for a preset, as in benchmark.
        json: print the cards as JSON.
    """
    refuse_existing(out)
    from chess_cxr.benchmarking.benchmark import choose_suite
    from chess_cxr.benchmarking.cards import identify_card, write_cards
    from chess_cxr.benchmarking.phantoms import write_phantom_stores

    chosen = choose_suite(suite, stores, parse_encoders(encoders) if encoders else {})
    cards = write_cards(write_phantom_stores(chosen, out.with_name(f"{out.name}.cells")), out)
    if json:
        print_result(cards, json)
    else:
        print("\n".join(f"{out / name}.json: {identify_card(card)}" for name, card in cards.items()))


def merge_benchmarks(
    results: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RESULT…")], out: Path, json: bool = False
) -> None:
    """Merge results of several benchmarks into one leaderboard page.

    Results stand in one table where their task cards have one identity.

    Example: chess-cxr benchmark merge result theirs/leaderboard.json --out leaderboard

    Args:
        results: folders of benchmarks, or their files leaderboard.json.
        out: folder for leaderboard.json, leaderboard.csv, table.md and report.html.
        json: print tasks and entries as JSON.
    """
    refuse_existing(out)
    from chess_cxr.benchmarking.leaderboard import merge_results

    merged = merge_results(results, out)
    print_result(merged.as_json() if json else merged.as_text(), json)
