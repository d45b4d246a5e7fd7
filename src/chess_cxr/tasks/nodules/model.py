"""A nodule generator at work: from a model folder and film files to SYNTHETIC films."""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from chess_cxr.decode.film import read_film_content
from chess_cxr.derive.film import write_new_file
from chess_cxr.device import choose_device
from chess_cxr.encoders.published import compute_sha256
from chess_cxr.files.whole import explain_full_disk, read_json
from chess_cxr.records import ChessError, Undecodable, UsageError
from chess_cxr.tasks.model_folder import read_tensors
from chess_cxr.tasks.nodules.films import NoduleFilm, square_film
from chess_cxr.tasks.nodules.lungs import find_lung_fields
from chess_cxr.tasks.nodules.masks import MAX_OUTSIDE, check_request_mask, draw_random_request
from chess_cxr.tasks.nodules.objective import (
    GENERATOR_VERSION,
    GenerateConfig,
    GenerateNodules,
    Mode,
    NoduleBatch,
    check_generate_config,
    generate,
    generate_film,
)
from chess_cxr.tasks.nodules.region import compute_region
from chess_cxr.tasks.nodules.spade import PAPER_WIDTH
from chess_cxr.tasks.nodules.written import read_film_and_masks, write_synthetic_film
from chess_cxr.views import resize_longest
from chess_cxr.workers.child import Limits, check_limits
from chess_cxr.workers.pool import build_ingest_pool, call_in_child

TABLE = "generated.csv"
COLUMNS = ("film", "mask", "x", "y", "width", "height", "diameter_mm", "source_sha256", "model_sha256", "seed")
MOST_FILMS, MOST_SEED = 100_000, 1 << 62
MOST_LATENT = 4096  # of a model that a stranger made: no giant is built


@dataclass(frozen=True)
class NoduleGenerator:
    """A generator and the scale it works at.

    film_size: longest side of the films it paints into.  sha256: of its file.
    """

    task: GenerateNodules
    film_size: int
    sha256: str = ""

    @property
    def mode(self) -> Mode:
        """What it makes: the region of a nodule, or whole films."""
        return self.task.config.mode

    def paint(
        self, film_HW: np.ndarray, mask_HW: np.ndarray, seed: int, lung_HW: np.ndarray | None = None
    ) -> np.ndarray:
        """Make a SYNTHETIC film with a nodule where the mask says, float32 of the film's size in [0, 1].

        Mode "inpaint": outside the region around the mask every pixel stays the film's, to the bit.  The nodule is made
        at the scale the generator has learned at; what it changes is brought to the film's own.
        Mode "film": a film of the generator's size in this film's style.
        """
        paint = self._paint_film if self.mode == "film" else self._paint_region
        made_HW = paint(film_HW, mask_HW, seed, lung_HW)
        if not np.isfinite(made_HW).all():
            raise UsageError("the model makes no picture of finite greys; train it again, with a lower learning rate")
        return made_HW

    def _paint_region(
        self, film_HW: np.ndarray, mask_HW: np.ndarray, seed: int, _lung_HW: np.ndarray | None
    ) -> np.ndarray:
        config = self.task.config
        small_HW = resize_longest(film_HW, self.film_size)
        asked_HW = resize_longest(mask_HW.astype(np.float32), self.film_size) > 0.5
        if not asked_HW.any():
            raise UsageError(
                f"the nodule asked for is too small to be seen at {self.film_size} pixels; ask for a larger one"
            )
        change_HW = generate_film(self.task, small_HW, asked_HW, seed) - small_HW
        whole_HW = cv2.resize(change_HW, film_HW.shape[::-1], interpolation=cv2.INTER_LINEAR)
        scale = max(film_HW.shape) / self.film_size
        region_HW = compute_region(mask_HW, config.margin, max(1, round(config.margin_px * scale)))
        painted: np.ndarray = np.where(region_HW, np.clip(film_HW + whole_HW, 0, 1), film_HW).astype(np.float32)
        return painted

    def _paint_film(
        self, film_HW: np.ndarray, mask_HW: np.ndarray, seed: int, lung_HW: np.ndarray | None
    ) -> np.ndarray:
        size = self.task.config.size
        small = square_film(NoduleFilm("", film_HW, mask_HW, lung_HW, "", None, ""), size)
        if not small.mask_HW.any():
            raise UsageError(f"the nodule asked for is too small to be seen at {size} pixels; ask for a larger one")
        # Whether it lies in the lung is the caller's to judge: real nodules cross its edge, and some lungs are unknown
        film, mask, lung = (
            torch.from_numpy(np.asarray(part, np.float32))[None, None].to(self.task.steps.device)
            for part in (small.film_HW, small.mask_HW, small.lung_HW)
        )
        return generate(self.task, NoduleBatch(film, mask, lung), [seed])[0, 0].cpu().numpy()


def load_nodule_generator(folder: Path | str, device: str = "cpu") -> NoduleGenerator:
    """Load what `finetune_nodules` wrote.

    Raises UsageError where `folder` is no such model, ChessError where it is broken or not what it claims to be.
    """
    folder, target = Path(folder), choose_device(device)
    config = read_json(folder / "config.json")
    if config.get("task") != "nodules":
        raise UsageError(f"{folder} is no nodule generator; make one with: chess-cxr finetune nodules")
    if config.get("version") != GENERATOR_VERSION:
        raise UsageError(f"{folder} was made by another version of chess-cxr; make it again")
    described, film_size = config.get("generator"), config.get("film_size")
    kinds = {item.name: type(item.default) for item in fields(GenerateConfig)}
    if not isinstance(described, Mapping) or set(described) != set(kinds):
        raise ChessError(f"{folder}: the generator has {', '.join(kinds)}")
    numbers = {name: value for name, value in described.items() if name != "mode"}
    whole = all(
        type(value) in ((int, float) if kinds[name] is float else (kinds[name],)) for name, value in numbers.items()
    )
    if not (whole and described["mode"] in get_args(Mode) and type(film_size) is int and 32 <= film_size <= 4096):
        raise ChessError(f"{folder}: the generator is none that exists")
    planned = GenerateConfig(**described)
    try:
        check_generate_config(planned)
    except UsageError as error:
        raise ChessError(f"{folder}: {error}") from None
    if planned.width > PAPER_WIDTH or planned.latent > MOST_LATENT:
        raise ChessError(f"{folder}: a generator has a width of {PAPER_WIDTH} and a latent of {MOST_LATENT} at most")
    if max(planned.margin, planned.margin_px) > film_size:
        raise ChessError(f"{folder}: a generator has margins of {film_size} at most")
    file = folder / "model.safetensors"
    tensors = read_tensors(file, _list_expected_tensors(planned))
    task = GenerateNodules(planned)
    task.averaged.load_state_dict(tensors)
    task.to(device=target, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return NoduleGenerator(task, film_size, compute_sha256(file))


@functools.lru_cache(8)
def _list_expected_tensors(planned: GenerateConfig) -> Mapping[str, Tensor]:
    """Return a generator's tensors without memory behind them, until a file is known to fit.

    Kept for the next model of the same kind: the power iterations of the spectral norms take seconds even so.
    """
    with torch.device("meta"):
        return GenerateNodules(planned).averaged.state_dict()


@dataclass(frozen=True)
class NoduleOrder:
    """A film to be made: which file it is from, and the mask's file, or None for a nodule of random place and size."""

    location: Path
    mask: Path | None
    seed: int


@dataclass(frozen=True)
class MadeFile:
    """What became of an order: the new files, or why there are none.  box: x, y, width and height, in pixels."""

    order: NoduleOrder
    film: Path | None = None
    mask: Path | None = None
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    diameter_mm: float = math.nan
    source_sha256: str = ""
    reason: str = ""


def plan_orders(films: Sequence[Path], mask: Path | None, count: int, seed: int) -> list[NoduleOrder]:
    """List what is to be made: one film for each mask, or `count` films, taking the given ones in turn.

    mask: a file for a single film, or a folder with a mask of the same name for every film.
    """
    if (mask is None) == (count < 1):
        raise UsageError("say where nodules shall be: --mask FILE or FOLDER, or --random N")
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
    generator: NoduleGenerator,
    orders: Sequence[NoduleOrder],
    out: Path,
    size_mm: tuple[float, float] = (5.0, 30.0),
    spacing_mm: float = math.nan,
    lungs: Path | None = None,
    limits: Limits | None = None,
) -> Generator[MadeFile, None, None]:
    """Make SYNTHETIC films in `out`, each with its mask, and `generated.csv` with boxes and provenance; yield each.

    spacing_mm: of the films that do not say it themselves.  lungs: folder with a lung mask for each film; found by
    `find_lung_fields` without.  A film depends on the model, its source, its mask and its seed only.
    """
    limits, lung_of = limits or Limits(), {} if lungs is None else list_masks(lungs)
    check_limits(limits)
    # a child knows one task: with one for each, none has to be started anew for every film
    with _begin_table(out) as write_row, build_ingest_pool(1) as readers, build_ingest_pool(1) as writers:
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
                made_HW = generator.paint(film.pixels, mask_HW, order.seed, lung_HW)
                done = _write_made(generator, order, film.pixels, made_HW, mask_HW, diameter, out, writers, limits)
            except (Undecodable, UsageError) as error:
                yield MadeFile(order, reason=str(error))
                continue
            assert done.film and done.mask
            facts = (f"{done.diameter_mm:.2f}", done.source_sha256, generator.sha256, order.seed, "yes")
            write_row((done.film.name, done.mask.name, *done.box, *facts))
            yield done


@contextlib.contextmanager
def _begin_table(out: Path) -> Iterator[Callable[[Sequence[object]], None]]:
    """Begin the table, by which any other run in this folder is refused; it goes again where no film was made."""
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
            writer.writerow((*COLUMNS, "synthetic"))
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
    """Return the mask that is asked for, or a random one, and the nodule's diameter in mm (NaN where unknown)."""
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
    generator: NoduleGenerator,
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
    model = generator.sha256[:16]
    if generator.mode == "inpaint":
        change_HW = (made_HW - film_HW).astype(np.float32)
        written = writers.submit(
            call_in_child, write_synthetic_film, limits, order.location, change_HW, out, model, order.seed
        ).result()
    else:
        mask_HW = square_film(NoduleFilm("", film_HW, mask_HW, None, "", None, ""), made_HW.shape[0]).mask_HW
        facts = {"chess-cxr": f"SYNTHETIC film, style of {source}, model {model}, seed {order.seed}"}
        written = write_new_file(out, order.location.stem, f"_{order.seed}.png", _encode_png(made_HW, facts))
    mask = write_new_file(out, written.stem, "_mask.png", _encode_png(mask_HW.astype(np.float32), {}))
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    box = (
        (int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1) if len(rows) else (0, 0, 0, 0)
    )
    return MadeFile(order, written, mask, box, diameter_mm, source)


def _encode_png(picture_HW: np.ndarray, facts: Mapping[str, str]) -> bytes:
    told = PngImagePlugin.PngInfo()
    for name, text in facts.items():
        told.add_text(name, text)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(255 * picture_HW).astype(np.uint8)).save(buffer, "PNG", pnginfo=told)
    return buffer.getvalue()


def describe_nodule_generator(_model: NoduleGenerator) -> str:
    """Say in a few words what a model is."""
    return "nodule generator"
