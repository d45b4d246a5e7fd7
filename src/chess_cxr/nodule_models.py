"""A nodule generator at work: from a model folder and film files to SYNTHETIC films."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import math
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import safetensors
import safetensors.torch
import torch
from PIL import Image, PngImagePlugin

from chess_cxr.ingest.child import Limits
from chess_cxr.ingest.decode import decode_film, read_film_content
from chess_cxr.ingest.decoded import Undecodable
from chess_cxr.ingest.workers import build_ingest_pool, call_in_child
from chess_cxr.models.bone_network import resize_longest
from chess_cxr.models.embedding import parse_device
from chess_cxr.models.lung_fields import find_lung_fields
from chess_cxr.models.spade import PAPER_WIDTH
from chess_cxr.nodule_films import NoduleFilm, square_film
from chess_cxr.nodule_requests import MAX_OUTSIDE, check_request_mask, draw_random_request, read_request_mask
from chess_cxr.records import ChessError, UsageError
from chess_cxr.runs import read_json
from chess_cxr.synthetic_films import write_synthetic_film
from chess_cxr.tasks.generate_nodules import (
    GenerateConfig,
    GenerateNodules,
    Mode,
    NoduleBatch,
    check_generate_config,
    generate,
    generate_film,
)
from chess_cxr.tasks.nodule_region import compute_region
from chess_cxr.training.checkpoint import write_atomically

TABLE = "generated.csv"
COLUMNS = ("film", "mask", "x", "y", "width", "height", "diameter_mm", "source_sha256", "model_sha256", "seed")
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
        if self.mode == "film":
            return self._paint_film(film_HW, mask_HW, seed, lung_HW)
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
    folder, target = Path(folder), parse_device(device)
    config = read_json(folder / "config.json")
    if config.get("task") != "nodules":
        raise UsageError(f"{folder} is no nodule generator; make one with: chess-cxr finetune nodules")
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
    check_generate_config(planned)
    if planned.width > PAPER_WIDTH or planned.latent > MOST_LATENT:
        raise ChessError(f"{folder}: a generator has a width of {PAPER_WIDTH} and a latent of {MOST_LATENT} at most")
    task = GenerateNodules(planned)
    file = folder / "model.safetensors"
    try:
        task.averaged.load_state_dict(safetensors.torch.load_file(file))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ChessError(f"{file} does not hold this model: {first[:200]}") from None
    task.to(device=target, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return NoduleGenerator(task, film_size, digest)


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
    if mask is None:
        return [NoduleOrder(films[number % len(films)], None, seed + number) for number in range(count)]
    if mask.is_file():
        if len(films) != 1:
            raise UsageError(f"one mask is given for {len(films)} films; give a folder with a mask for each")
        return [NoduleOrder(films[0], mask, seed)]
    if not mask.is_dir():
        raise UsageError(f"there is no mask {mask}")
    masks = {path.stem.lower(): path for path in sorted(mask.iterdir()) if path.is_file()}
    if absent := [film.name for film in films if film.stem.lower() not in masks]:
        raise UsageError(f"{mask} has no mask for {len(absent)} of {len(films)} films, such as {absent[0]}")
    return [NoduleOrder(film, masks[film.stem.lower()], seed + n) for n, film in enumerate(films)]


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
    if (out / TABLE).exists():
        raise UsageError(f"{out / TABLE} exists already; choose another --out")
    limits = limits or Limits()
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow((*COLUMNS, "synthetic"))
    # a child knows one task: with one for each, none has to be started anew for every film
    with build_ingest_pool(1) as readers, build_ingest_pool(1) as writers:
        for order in orders:
            try:
                decoded = readers.submit(call_in_child, decode_film, limits, order.location).result()
                own = decoded.spacing_mm if math.isfinite(decoded.spacing_mm) else spacing_mm
                lung_HW = _find_lungs(order.location, decoded.pixels, lungs)
                mask_HW, diameter = _find_mask(order, lung_HW, own, size_mm)
                made_HW = generator.paint(decoded.pixels, mask_HW, order.seed, lung_HW)
                done = _write_made(generator, order, decoded.pixels, made_HW, mask_HW, diameter, out, writers, limits)
            except (Undecodable, UsageError) as error:
                yield MadeFile(order, reason=str(error))
                continue
            assert done.film and done.mask
            facts = (f"{done.diameter_mm:.2f}", done.source_sha256, generator.sha256, order.seed, "yes")
            writer.writerow((done.film.name, done.mask.name, *done.box, *facts))
            write_atomically(out / TABLE, rows.getvalue().encode())
            yield done


def _find_lungs(location: Path, film_HW: np.ndarray, lungs: Path | None) -> np.ndarray:
    if lungs is None:
        return find_lung_fields(film_HW)
    for path in sorted(lungs.glob("*")):
        if path.stem.lower() == location.stem.lower():
            return read_request_mask(path, (film_HW.shape[0], film_HW.shape[1]))
    raise UsageError(f"{lungs} has no lung mask for {location.name}")


def _find_mask(
    order: NoduleOrder, lung_HW: np.ndarray, spacing_mm: float, size_mm: tuple[float, float]
) -> tuple[np.ndarray, float]:
    """Return the mask that is asked for, or a random one, and the nodule's diameter in mm (NaN where unknown)."""
    if order.mask is None:
        if not math.isfinite(spacing_mm):
            raise UsageError(f"{order.location.name} does not say its pixel spacing; give it with --spacing-mm")
        request = draw_random_request(lung_HW, spacing_mm, size_mm, np.random.default_rng([order.seed, 23]))
        if (request.mask_HW & ~lung_HW).sum() > MAX_OUTSIDE * request.mask_HW.sum():
            raise UsageError(f"a nodule of {request.diameter_mm:.0f} mm is larger than the lung is wide; ask for less")
        return request.mask_HW, request.diameter_mm
    mask_HW = read_request_mask(order.mask, (lung_HW.shape[0], lung_HW.shape[1]))
    check_request_mask(mask_HW, lung_HW)
    return mask_HW, 2 * math.sqrt(float(mask_HW.sum()) / math.pi) * spacing_mm


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
        written = _write_png(_find_free(out, f"{order.location.stem}_{order.seed}"), made_HW, facts)
    mask = _write_png(_find_free(out, f"{written.stem}_mask"), mask_HW.astype(np.float32), {})
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    box = (
        (int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1) if len(rows) else (0, 0, 0, 0)
    )
    return MadeFile(order, written, mask, box, diameter_mm, source)


def _find_free(out: Path, stem: str) -> Path:
    """Return a PNG's name that is free: films of two folders may share theirs, and none is overwritten."""
    names = (f"{stem}.png" if number == 1 else f"{stem}-{number}.png" for number in itertools.count(1))
    return next(out / name for name in names if not (out / name).exists())


def _write_png(path: Path, picture_HW: np.ndarray, facts: Mapping[str, str]) -> Path:
    told = PngImagePlugin.PngInfo()
    for name, text in facts.items():
        told.add_text(name, text)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(255 * picture_HW).astype(np.uint8)).save(buffer, "PNG", pnginfo=told)
    write_atomically(path, buffer.getvalue())
    return path
