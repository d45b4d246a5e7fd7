"""Commands about encoders: export, weights, embed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from chess_cxr.arguments import (
    Device,
    EncoderName,
    Location,
    check_device_name,
    parse_location,
    print_result,
    read_text,
    refuse_existing,
)
from chess_cxr.encoders.names import check_encoder_name, list_known, locate_encoder
from chess_cxr.progress import ProgressBar
from chess_cxr.records import UsageError


def export(
    run: Positional[Path],
    out: Path,
    licence: str = "not stated",
    data: str = "",
    which: Literal["trained", "averaged"] = "trained",
    without_onnx: bool = False,
) -> None:
    """Export a run's encoder as a folder that timm alone can load.

    Writes model.onnx beside the weights if the extra onnx is installed.

    Example: chess-cxr export runs/first --out encoders/first --licence Apache-2.0 --data "5,000 films of hospital A"

    Args:
        run: a run folder.
        out: the encoder folder to write.
        licence: licence of the weights.
        data: description of the training films, for the model card.
        which: the trained encoder, or its moving average (momentum encoder), if the method has one.
        without_onnx: do not write model.onnx, which is as large as the weights; chess-cxr weights onnx writes it later.
    """
    refuse_existing(out)
    from chess_cxr.pretraining.runs import check_run

    check_run(run)
    from chess_cxr.encoders.onnx_network import tell_missing
    from chess_cxr.encoders.onnx_session import ONNX_FILE
    from chess_cxr.pretraining.export import export as write

    print(write(run, out, licence, data, which, not without_onnx))
    if not without_onnx and not (out / ONNX_FILE).exists():
        print(tell_missing() or f"no {ONNX_FILE}: torch cannot write this network as ONNX", file=sys.stderr)


def import_weights(file: Positional[Path], out: Path) -> None:
    """Convert a checkpoint in the published CheSS layout into an encoder folder.

    Reads plain tensors only, and refuses files that contain code.

    Example: chess-cxr weights import chess.pth.tar --out encoders/chess

    Args:
        file: the published .pth.tar file, or an extract of it.
        out: the encoder folder to write.
    """
    refuse_existing(out)
    if not file.is_file():
        raise UsageError(f"{file} is not a file")
    from chess_cxr.encoders.load import import_chess

    print(import_chess(file, out))


def show_weights(encoder: EncoderName) -> None:
    """Print the description of an encoder folder as JSON.

    Example: chess-cxr weights show encoders/chess

    Args:
        encoder: an encoder folder, or the name of a published encoder on this machine.
    """
    folder = Path(locate_encoder(encoder))
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "is no encoder folder"
        raise UsageError(f"{encoder} {what}; published encoders on this machine: {list_known()}")
    from chess_cxr.encoders.folder import show_encoder

    print_result(show_encoder(folder), True)


def write_weights_card(encoder: Positional[Path], evaluation: tuple[Path, ...], limits: Path | None = None) -> None:
    """Rewrite the model card of an encoder folder with tables of its evaluation.

    The rest of the card comes from the folder's config.json.

    Example: chess-cxr weights card encoders/first --evaluation result/card_section.md --limits limits.md

    Args:
        encoder: an encoder folder.
        evaluation: files in Markdown, such as card_section.md of a benchmark or what runs/judge_table.py prints.
        limits: a Markdown file: what this encoder is known to do badly.
    """
    if not encoder.is_dir():
        raise UsageError(f"there is no folder {encoder}; a card is rewritten in place, so give the folder's path")
    if not evaluation:
        raise UsageError("--evaluation needs at least one file, such as result/card_section.md")
    texts = [read_text(file).strip() for file in evaluation]
    known = read_text(limits) if limits else ""
    from chess_cxr.encoders.folder import write_card

    print(write_card(encoder, "\n\n".join(texts), known))


def write_weights_onnx(encoder: EncoderName, out: Path) -> None:
    """Write an encoder as an ONNX file, checked with ONNX Runtime.

    Needs chess-cxr[onnx].  The input is what the pixel contract makes of films; the file's metadata hold the contract.

    Example: chess-cxr weights onnx encoders/first --out first.onnx

    Args:
        encoder: an encoder folder, or a name such as imagenet:tf_efficientnet_lite0.
        out: the file to write.
    """
    refuse_existing(out)
    check_encoder_name(encoder)
    from chess_cxr.encoders.onnx import write_onnx

    print(write_onnx(encoder, out))


def embed(
    encoder: EncoderName,
    store: Location,
    out: Path | None = None,
    device: Device = "auto",
    cluster: str = "",
    index: bool = False,
    quiet: bool = False,
) -> None:
    """Write the feature vectors of a store's films into the store, or to a Parquet file.

    In the store they are a column of this encoder, which search, map, select, audit and serve read.  If interrupted,
    the same command continues.

    Example: chess-cxr embed encoders/first films.lance

    Args:
        encoder: an encoder folder, or a name such as imagenet:tf_efficientnet_lite0.
        store: a store, or the URL of one.
        out: a Parquet file to write instead.
        device: auto, cpu, cuda, cuda:N or mps.
        cluster: address of a Dask scheduler, such as tcp://10.0.0.1:8786, whose workers see the same files.
        index: also write an index beside the store, for searches among more than a million films.
        quiet: show no progress.
    """
    if out:
        refuse_existing(out)
    check_encoder_name(encoder)
    check_device_name(device)
    if out and (cluster or index):
        raise UsageError("--cluster and --index are for features in the store; leave --out out")
    if cluster:
        from chess_cxr.workers.cluster import check_address

        check_address(cluster)
    from chess_cxr.store import open_store

    opened = open_store(parse_location(store))
    from chess_cxr.encoders.embed import open_encoder, write_features

    with ProgressBar("embed", len(opened), "films", quiet) as bar:
        if out:
            print(write_features(encoder, opened, out, lambda done, _: bar.advance_to(done), device))
            return
        from chess_cxr.search.column import count_embedded, write_embedding

        loaded = open_encoder(encoder, "cpu" if cluster else device)
        bar.start_from(len(opened) if loaded.key in opened.embeddings else count_embedded(opened, loaded.key))
        with _connect(cluster) as (executor, threads):
            opened = write_embedding(
                encoder, loaded, opened, lambda done, _: bar.advance_to(done), executor, 16 * threads, device
            )
    print(f"{opened.location}: {len(opened)} films embedded by {encoder}, key {loaded.key}")
    if index:
        from chess_cxr.search.archive import read_archive
        from chess_cxr.search.index import write_index

        print(write_index(read_archive(opened, loaded, encoder), loaded.key).tell())


@contextlib.contextmanager
def _connect(cluster: str) -> Iterator[tuple[Executor | None, int]]:
    """Yield the executor of a cluster and its number of threads, or None and 0."""
    if not cluster:
        yield None, 0
        return
    from chess_cxr.workers.cluster import connect_cluster

    with connect_cluster(cluster) as connected:
        yield connected
