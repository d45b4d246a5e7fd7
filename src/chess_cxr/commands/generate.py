"""Paint nodules into films: generate."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from chess_cxr.arguments import Device, check_device_name, parse_size_range, print_films
from chess_cxr.progress import ProgressBar, StageBars
from chess_cxr.records import ChessError, UsageError
from chess_cxr.workers.child import Limits

_COLUMNS = ("source", "film", "mask", "x", "y", "width", "height", "reason")


def generate(
    model: Annotated[Positional[str], tyro.conf.arg(metavar="MODEL")],
    films: tuple[str, ...],
    out: Path,
    mask: Path | None = None,
    random: int = 0,
    size_mm: str = "",
    spacing_mm: float | None = None,
    like: Path | None = None,
    like_mask: Path | None = None,
    layout: Literal["films", "node21"] = "films",
    lungs: Path | None = None,
    compare_with: str = "",
    judge: str = "vgg16@64",
    device: Device = "auto",
    limits: Limits = Limits(),  # noqa: B008
    seed: int = 0,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Paint nodules into films: SYNTHETIC films, each with mask, box and provenance.

    Makes derived DICOM with Synthetic Data set from DICOM, and PNG from other files.  OUT's generated.csv has one row
    per film with box, diameter, hashes of source and model, and seed.  The same command makes the same films.  If a
    film fails, its row gives the reason, and the exit code is 1.

    Example: chess-cxr generate models/nodules --films healthy/ --random 20 --size-mm 5-30 --out synthetic

    Args:
        model: a model folder from finetune nodules; or insertion:FOLDER, to insert real CT nodules from FOLDER's \
pictures and nodules.csv (nodule, mask, series_uid).
        films: film files or folders to paint nodules into.
        out: folder for the films.
        mask: a mask of the film's size, 0 and one other level; or a folder with a mask of the same name for each film.
        random: number of films to make with a nodule of random size at a random place in the lung.
        size_mm: smallest and largest diameter of random nodules; by default 5-30, or about that in --like.
        spacing_mm: pixel spacing of films that do not state it, such as PNG and JPEG.
        like: a film with the nodule that all made ones shall resemble, in contrast and style.
        like_mask: the mask of that nodule, of the film's size.
        layout: films writes films as they came; node21 writes images/*.mha, metadata.csv and nodules.json like NODE21.
        lungs: folder with a lung mask for each film; by default a small network finds the lungs.
        compare_with: folder of films with marked nodules, as for finetune nodules; prints their Fréchet distance and \
KID from the generated nodules on stderr, and writes them to OUT's distance.json.
        judge: network of these distances: vgg16@SIZE, lite0, inception, random:NETWORK@SIZE or an encoder folder.
        device: auto, cpu, cuda, cuda:N or mps.
        limits: limits of time and memory per film.
        seed: random seed; film N has seed + N.
        json: print JSON, one record per film.
        quiet: show no progress.
    """
    sizes = parse_size_range(size_mm or "5-30")
    check_device_name(device)
    if spacing_mm is not None and not 0.01 <= spacing_mm <= 10:
        raise UsageError("--spacing-mm is a number from 0.01 to 10")
    if like_mask and not like:
        raise UsageError("--like-mask marks the nodule in a film; name the film with --like")
    if random < 0:
        raise UsageError("--random, the number of films to make, must be 1 or more")
    listed = _list_films(films, out)
    from chess_cxr.tasks.nodules.distance import compare_made, read_real_nodules
    from chess_cxr.tasks.nodules.orders import (
        MadeFile,
        generate_files,
        imitate,
        load_painter,
        plan_orders,
        read_example,
    )

    orders = plan_orders(listed, mask, random, seed)
    painter = load_painter(model, device, limits)
    example = read_example(like, like_mask, spacing_mm or math.nan, limits) if like else None
    if example:
        painter = imitate(painter, example)
        if not size_mm and math.isfinite(example.diameter_mm):
            sizes = 0.9 * example.diameter_mm, 1.1 * example.diameter_mm
    with StageBars(quiet) as bars:
        real = read_real_nodules(compare_with, judge, orders, limits, bars.show) if compare_with else None
    made = list[MadeFile]()

    def describe(one: MadeFile) -> dict[str, Any]:
        made.append(one)
        values = (str(one.order.location), str(one.film or ""), str(one.mask or ""), *one.box, one.reason)
        return dict(zip(_COLUMNS, values, strict=True))

    sha256 = example.sha256 if example else ""
    files = generate_files(painter, orders, out, sizes, spacing_mm or math.nan, lungs, limits, layout, sha256)
    with ProgressBar("generate", len(orders), "films", quiet) as bar:
        failed = print_films(_COLUMNS, map(describe, files), json, bar)
    if real:
        print(compare_made(made, real, out, limits, seed), file=sys.stderr)
    if failed:
        raise ChessError(f"{failed} of {len(orders)} films could not be made; the table gives the reasons")


def _list_films(films: Sequence[str], out: Path) -> list[Path]:
    """List the films to paint into; raises `UsageError` if `out` lies among them."""
    from chess_cxr.sources.folder import read_folder

    for place in map(Path, films):
        if place.is_dir() and out.resolve().is_relative_to(place.resolve()):
            raise UsageError(f"{out} lies inside {place} and its films would pass for sources; choose another --out")
    return [Path(film.path) for film in read_folder([Path(film) for film in films])]
