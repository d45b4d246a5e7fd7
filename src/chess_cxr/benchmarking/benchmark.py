"""Compare encoders on several tasks and label fractions, from a suite to a folder of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

from chess_cxr.benchmarking.cards import check_cards
from chess_cxr.benchmarking.output import WrittenBenchmark, write_benchmark
from chess_cxr.benchmarking.phantoms import write_phantom_stores
from chess_cxr.benchmarking.run import run_benchmark
from chess_cxr.benchmarking.suite import Head, Suite, build_suite, read_suite
from chess_cxr.device import choose_device
from chess_cxr.records import OnProgress, UsageError
from chess_cxr.workers.cores import count_usable_cores


def benchmark(
    suite: Suite | Path | str,
    out: Path | str,
    *,
    stores: Sequence[Path | str] = (),
    encoders: Mapping[str, str] | None = None,
    pairs: Sequence[str] = (),
    nodules: Sequence[str] = (),
    heads: Sequence[Head] = (),
    cells: Path | str | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    device: str = "",
    card: str | Sequence[str] = "",
    pictures: bool = True,
    command: str = "",
    on_progress: OnProgress | None = None,
) -> WrittenBenchmark:
    """Compute the cells of a suite, each once, and write tables and a page to the new folder `out`.

    suite: a `Suite`, a TOML file, or the name of a preset, which takes `stores`, `encoders` by name, and `pairs`,
    `nodules` and `heads`, see `build_suite`.
    cells: folder of finished cells, which suites can share; by default OUT.cells.  workers: number of processes; by
    default one per core.  executor: runs the cells elsewhere, `workers` at a time.  device: in place of the suite's.
    card: the encoder that card_section.md describes, and task cards (files) that the suite has to fit.
    pictures: show films on the page.  command: stated in the output.
    The same call continues an interrupted run.  Cells that fail are listed in the result's `run.results.failures`.
    Raises `UsageError` for a suite that makes no sense or where `out` exists.
    """
    chosen = choose_suite(suite, stores, encoders or {}, pairs, nodules, heads)
    if device:
        chosen = replace(chosen, device=device)
    if executor is None:
        choose_device(chosen.device)  # refused before any film is embedded
    show, place = on_progress or (lambda _stage, _done, _total: None), Path(out)
    if place.exists() or place.is_symlink():
        raise UsageError(f"{place} exists already; choose another --out or remove it")
    folder = Path(cells) if cells else place.with_name(f"{place.name}.cells")
    chosen = write_phantom_stores(chosen, folder)
    described = _choose_card([card] if isinstance(card, str) and card else list(card), chosen)
    done = run_benchmark(
        chosen, folder, workers=workers or count_usable_cores(), executor=executor, on_progress=on_progress
    )
    show("write", 0, 1)
    written = write_benchmark(done, place, command, described, pictures)
    show("write", 1, 1)
    return written


def _choose_card(cards: Sequence[str], suite: Suite) -> str:
    """Check the suite against the task cards among `cards`; return the encoder among them, "" for none."""
    files = [Path(card) for card in cards if card not in suite.encoders]
    if absent := [str(path) for path in files if not path.is_file()]:
        there = ", ".join(suite.encoders)
        raise UsageError(f"--card {absent[0]!r} is none of the encoders {there}, and no file of a task card")
    check_cards(suite, files)
    encoders = [card for card in cards if card in suite.encoders]
    if len(encoders) > 1:
        raise UsageError(f"--card names two encoders, {encoders[0]} and {encoders[1]}; card_section.md is of one")
    return encoders[0] if encoders else ""


def choose_suite(
    suite: Suite | Path | str,
    stores: Sequence[Path | str],
    encoders: Mapping[str, str],
    pairs: Sequence[str] = (),
    nodules: Sequence[str] = (),
    heads: Sequence[Head] = (),
) -> Suite:
    """Return a suite that is given, read from a file, or built from a preset; raises `UsageError` for mixtures."""
    if isinstance(suite, Suite):
        return suite
    if str(suite).endswith(".toml") or Path(suite).is_file():
        if stores or encoders:
            raise UsageError("--stores and --encoders are for presets; a suite file names its own")
        if pairs or nodules or heads:
            raise UsageError("--pairs, --nodules and --heads are for presets; a suite file names its own")
        return read_suite(Path(suite))
    named = {Path(store).stem: str(store) for store in stores}
    if len(named) < len(stores):
        raise UsageError("two stores have the same name; rename one, as tables name tasks by them")
    return build_suite(str(suite), named, encoders, pairs, nodules, heads)
