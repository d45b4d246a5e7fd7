"""Make nodules in film files: SYNTHETIC films with masks, boxes and provenance."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image, PngImagePlugin

from chess_cxr.decode.film import read_film_content
from chess_cxr.derive.film import write_new_file
from chess_cxr.files.whole import explain_full_disk
from chess_cxr.records import ChessError, Undecodable, UsageError
from chess_cxr.tasks.nodules.insertion import load_insertion
from chess_cxr.tasks.nodules.lungs import find_lung_fields
from chess_cxr.tasks.nodules.masks import MAX_OUTSIDE, check_request_mask, draw_random_request, list_pieces
from chess_cxr.tasks.nodules.model import NoduleGenerator, load_nodule_generator
from chess_cxr.tasks.nodules.node21 import IMAGES, Box, encode_mha, write_node21_tables
from chess_cxr.tasks.nodules.written import read_film_and_masks, write_synthetic_film
from chess_cxr.workers.child import Limits, check_limits
from chess_cxr.workers.pool import build_ingest_pool, call_in_child

TABLE = "generated.csv"
COLUMNS = ("film", "mask", "x", "y", "width", "height", "diameter_mm", "source_sha256", "model_sha256", "seed")
MOST_FILMS, MOST_SEED = 100_000, 1 << 62
Layout = Literal["films", "node21"]
INSERTION = "insertion:"  # before the folder of CT nodules


class Painter(Protocol):
    """Anything that makes nodules: a `NoduleGenerator` or a `CtInsertion`."""

    @property
    def mode(self) -> Literal["inpaint", "film"]:
        """Whether it changes films or makes whole films."""

    @property
    def sha256(self) -> str:
        """Hash of everything it is made from."""

    def make(
        self, film_HW: np.ndarray, mask_HW: np.ndarray, seed: int, lung_HW: np.ndarray, spacing_mm: float, /
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a SYNTHETIC film with nodules at the mask, and the mask of these nodules.

        spacing_mm: NaN if unknown.  Raises `UsageError` if no nodule can be made.
        """


def load_painter(model: str, device: str = "cpu", limits: Limits | None = None) -> Painter:
    """Load a model folder, or the CT nodules of "insertion:FOLDER" (see `load_insertion`)."""
    if model.startswith(INSERTION):
        return load_insertion(Path(model.removeprefix(INSERTION)), limits)
    return load_nodule_generator(model, device)


@dataclass(frozen=True)
class Example:
    """A nodule that others shall resemble.  diameter_mm: NaN if unknown.  sha256: hash of its film."""

    film_HW: np.ndarray
    mask_HW: np.ndarray
    diameter_mm: float
    sha256: str


def read_example(film: Path, mask: Path | None, spacing_mm: float = math.nan, limits: Limits | None = None) -> Example:
    """Read a film and the mask of its nodule, in a process with limits; raises `ChessError` if that fails.

    spacing_mm: for a film that does not state its spacing.
    """
    if mask is None:
        raise UsageError("say which nodule to imitate: --like-mask FILE")
    try:
        with build_ingest_pool(1) as pool:
            task = pool.submit(call_in_child, read_film_and_masks, limits or Limits(), film, mask, None)
            decoded, mask_HW, _ = task.result()
    except Undecodable as error:
        raise ChessError(f"{film} cannot be decoded: {error}") from None
    assert mask_HW is not None
    check_request_mask(mask_HW, None)
    own = decoded.spacing_mm if math.isfinite(decoded.spacing_mm) else spacing_mm
    sha256 = hashlib.sha256(read_film_content(film)).hexdigest()
    return Example(decoded.pixels, mask_HW, 2 * math.sqrt(float(mask_HW.sum()) / math.pi) * own, sha256)


def imitate(painter: Painter, example: Example) -> Painter:
    """Bind a generator to an example; raises UsageError for anything else than a generator of mode inpaint."""
    if not isinstance(painter, NoduleGenerator):
        raise UsageError("only a trained generator can imitate a nodule; leave out --like")
    return painter.imitate(example.film_HW, example.mask_HW)


@dataclass(frozen=True)
class NoduleOrder:
    """A film to make: its source, and the file of its mask, or None for a nodule of random place and size."""

    location: Path
    mask: Path | None
    seed: int


@dataclass(frozen=True)
class MadeFile:
    """The new files of an order, or the reason why there are none.

    box: x, y, width and height in pixels, of all nodules; boxes: of each.
    """

    order: NoduleOrder
    film: Path | None = None
    mask: Path | None = None
    box: Box = (0, 0, 0, 0)
    diameter_mm: float = math.nan
    source_sha256: str = ""
    reason: str = ""
    boxes: tuple[Box, ...] = ()


def plan_orders(films: Sequence[Path], mask: Path | None, count: int, seed: int) -> list[NoduleOrder]:
    """List the films to make: one for each mask, or `count` films that take the sources in turn.

    mask: a file for a single film, or a folder with a mask of the same name for every film.
    """
    if (mask is None) == (count < 1):
        raise UsageError("say where to put the nodules: --mask FILE or FOLDER, or --random N")
    if count > MOST_FILMS:
        raise UsageError(f"--random is how many films to make: {MOST_FILMS} at most")
    if not 0 <= seed <= MOST_SEED:
        raise UsageError(f"--seed is a whole number from 0 to {MOST_SEED}")
    if mask is None:
        return [NoduleOrder(films[number % len(films)], None, seed + number) for number in range(count)]
    if mask.is_file():
        if len(films) != 1:
            raise UsageError(f"one mask is given for {len(films)} films; give a folder with a mask for each")
        return [NoduleOrder(films[0], mask, seed)]
    if not mask.is_dir():
        raise UsageError(f"there is no mask {mask}")
    masks = list_masks(mask)
    if absent := [film.name for film in films if film.stem.lower() not in masks]:
        raise UsageError(f"{mask} has no mask for {len(absent)} of {len(films)} films, such as {absent[0]}")
    return [NoduleOrder(film, masks[film.stem.lower()], seed + n) for n, film in enumerate(films)]


def list_masks(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by their names in lower case without extension, hidden ones left out."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder of masks {folder}")
    masks: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        if (stem := path.stem.lower()) in masks:
            raise UsageError(f"{path} and {masks[stem].name} are masks for films of the same name; keep one")
        masks[stem] = path
    return masks


def generate_files(
    painter: Painter,
    orders: Sequence[NoduleOrder],
    out: Path,
    size_mm: tuple[float, float] = (5.0, 30.0),
    spacing_mm: float = math.nan,
    lungs: Path | None = None,
    limits: Limits | None = None,
    layout: Layout = "films",
    like_sha256: str = "",
) -> Generator[MadeFile, None, None]:
    """Make SYNTHETIC films in `out`, each with its mask, and `generated.csv` with boxes and provenance; yield each.

    spacing_mm: for films that do not state their spacing.  lungs: folder with a lung mask for each film; by default,
    `find_lung_fields` finds the lungs.  A film depends only on model, source, mask, seed and the nodule it is like.
    layout: "node21" writes images/*.mha, and metadata.csv and nodules.json at the end.  like_sha256: hash of the film
    with the nodule that the painter imitates.
    """
    limits, lung_of = limits or Limits(), {} if lungs is None else list_masks(lungs)
    check_limits(limits)
    # A child runs one task: with one child for each, none is restarted for every film
    more, node21 = ((like_sha256,) if like_sha256 else ()), list[tuple[str, Sequence[Box]]]()
    with (
        _begin_table(out, ("like_sha256",) if more else ()) as write_row,
        build_ingest_pool(1) as readers,
        build_ingest_pool(1) as writers,
    ):
        for order in orders:
            try:
                lung = lung_of.get(order.location.stem.lower())
                if lungs is not None and lung is None:
                    raise UsageError(f"{lungs} has no lung mask for {order.location.name}")
                film, given_HW, lung_HW = readers.submit(
                    call_in_child, read_film_and_masks, limits, order.location, order.mask, lung
                ).result()
                own = film.spacing_mm if math.isfinite(film.spacing_mm) else spacing_mm
                lung_HW = find_lung_fields(film.pixels) if lung_HW is None else lung_HW
                mask_HW, diameter = _find_mask(order, given_HW, lung_HW, own, size_mm)
                made_HW, mask_HW = painter.make(film.pixels, mask_HW, order.seed, lung_HW, own)
                if layout == "node21":
                    done = _write_node21(painter, order, made_HW, mask_HW, own, diameter, out)
                else:
                    done = _write_made(painter, order, film.pixels, made_HW, mask_HW, diameter, out, writers, limits)
            except (Undecodable, UsageError) as error:
                yield MadeFile(order, reason=str(error))
                continue
            assert done.film and done.mask
            facts = (f"{done.diameter_mm:.2f}", done.source_sha256, painter.sha256, order.seed, "yes")
            write_row((done.film.name, done.mask.name, *done.box, *facts, *more))
            node21.append((done.film.name, done.boxes))
            yield done
        if layout == "node21" and node21:
            write_node21_tables(out, node21)


@contextlib.contextmanager
def _begin_table(out: Path, more: Sequence[str] = ()) -> Iterator[Callable[[Sequence[object]], None]]:
    """Begin the table, which refuses any other run in this folder; remove it if no film was made."""
    table, is_new, rows = out / TABLE, not out.exists(), 0
    if not (is_new or out.is_dir()):
        raise UsageError(f"{out} is no folder; choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = table.open("x", encoding="utf-8", errors="surrogateescape", newline="", buffering=1)
    except FileExistsError:
        raise UsageError(f"{table} exists already; choose another --out") from None
    except OSError as error:
        raise ChessError(f"cannot write into {out} ({error.strerror}); choose another --out") from None

    def write_row(row: Sequence[object]) -> None:
        nonlocal rows
        with explain_full_disk(f"{table}"):
            writer.writerow(row)
        rows += 1

    try:
        with file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow((*COLUMNS, "synthetic", *more))
            yield write_row
    finally:
        if not rows:
            table.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                if is_new:
                    out.rmdir()


def _find_mask(
    order: NoduleOrder,
    given_HW: np.ndarray | None,
    lung_HW: np.ndarray,
    spacing_mm: float,
    size_mm: tuple[float, float],
) -> tuple[np.ndarray, float]:
    """Return the given mask or a random one, and the nodule's diameter in mm (NaN if unknown)."""
    if given_HW is None:
        if not math.isfinite(spacing_mm):
            raise UsageError(f"{order.location.name} does not say its pixel spacing; give it with --spacing-mm")
        request = draw_random_request(lung_HW, spacing_mm, size_mm, np.random.default_rng([order.seed, 23]))
        if (request.mask_HW & ~lung_HW).sum() > MAX_OUTSIDE * request.mask_HW.sum():
            raise UsageError(f"a nodule of {request.diameter_mm:.0f} mm is larger than the lung is wide; ask for less")
        return request.mask_HW, request.diameter_mm
    check_request_mask(given_HW, lung_HW)
    return given_HW, 2 * math.sqrt(float(given_HW.sum()) / math.pi) * spacing_mm


def _write_made(
    painter: Painter,
    order: NoduleOrder,
    film_HW: np.ndarray,
    made_HW: np.ndarray,
    mask_HW: np.ndarray,
    diameter_mm: float,
    out: Path,
    writers: Executor,
    limits: Limits,
) -> MadeFile:
    source = hashlib.sha256(read_film_content(order.location)).hexdigest()
    model = painter.sha256[:16]
    if painter.mode == "inpaint":
        change_HW = (made_HW - film_HW).astype(np.float32)
        written = writers.submit(
            call_in_child, write_synthetic_film, limits, order.location, change_HW, out, model, order.seed
        ).result()
    else:
        facts = {"chess-cxr": f"SYNTHETIC film, style of {source}, model {model}, seed {order.seed}"}
        written = write_new_file(out, order.location.stem, f"_{order.seed}.png", _encode_png(made_HW, facts))
    mask = write_new_file(out, written.stem, "_mask.png", _encode_png(mask_HW.astype(np.float32), {}))
    return MadeFile(order, written, mask, _find_box(mask_HW), diameter_mm, source)


def _write_node21(
    painter: Painter,
    order: NoduleOrder,
    made_HW: np.ndarray,
    mask_HW: np.ndarray,
    spacing_mm: float,
    diameter_mm: float,
    out: Path,
) -> MadeFile:
    source = hashlib.sha256(read_film_content(order.location)).hexdigest()
    comment = f"SYNTHETIC nodule in {source}, model {painter.sha256[:16]}, seed {order.seed}"
    own_mm = spacing_mm if painter.mode == "inpaint" else math.nan
    content = encode_mha(made_HW, own_mm, comment)
    written = write_new_file(out / IMAGES, order.location.stem, f"_{order.seed}.mha", content)
    mask = write_new_file(out, written.stem, "_mask.png", _encode_png(mask_HW.astype(np.float32), {}))
    boxes = tuple(_find_box(piece_HW) for piece_HW in list_pieces(mask_HW))
    return MadeFile(order, written, mask, _find_box(mask_HW), diameter_mm, source, boxes=boxes)


def _find_box(mask_HW: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


def _encode_png(picture_HW: np.ndarray, facts: Mapping[str, str]) -> bytes:
    told = PngImagePlugin.PngInfo()
    for name, text in facts.items():
        told.add_text(name, text)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(255 * picture_HW).astype(np.uint8)).save(buffer, "PNG", pnginfo=told)
    return buffer.getvalue()
