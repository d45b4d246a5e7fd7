"""Load a nodule generator and paint nodules into films."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import torch
from torch import Tensor

from chess_cxr.device import choose_device
from chess_cxr.files.whole import compute_sha256, read_json
from chess_cxr.records import ChessError, UsageError
from chess_cxr.tasks.model_folder import read_tensors
from chess_cxr.tasks.nodules.canvas import Mode, NoduleBatch, generate_film
from chess_cxr.tasks.nodules.films import NoduleFilm, square_film
from chess_cxr.tasks.nodules.flow import FlowConfig, check_flow_config
from chess_cxr.tasks.nodules.masks import check_mask
from chess_cxr.tasks.nodules.objective import GENERATOR_VERSION, GenerateConfig, check_generate_config
from chess_cxr.tasks.nodules.plan import NoduleMethod, build_generator
from chess_cxr.tasks.nodules.region import compute_region, find_window
from chess_cxr.tasks.nodules.spade import PAPER_WIDTH
from chess_cxr.views import resize_longest

MOST_LATENT = 4096  # a foreign model must not build a huge network


@dataclass(frozen=True)
class NoduleGenerator:
    """A generator and the scale at which it works.

    film_size: longest side in pixels of the films at this scale.  sha256: hash of its file.  like: a square with the
    nodule that all it makes shall resemble, see `imitate`.
    """

    task: NoduleMethod
    film_size: int
    sha256: str = ""
    like: NoduleBatch | None = None

    @property
    def mode(self) -> Mode:
        """Whether it makes the region of a nodule or whole films."""
        return self.task.config.mode

    def paint(
        self, film_HW: np.ndarray, mask_HW: np.ndarray, seed: int, lung_HW: np.ndarray | None = None
    ) -> np.ndarray:
        """Make a SYNTHETIC film with nodules at the mask, float32 of the film's size in [0, 1].

        Mode "inpaint": every pixel outside the region around the mask keeps its bits.  The nodule is made at the
        generator's scale, and the change is resized to the film's.
        Mode "film": a film of the generator's size in this film's style.
        """
        paint = self._paint_film if self.mode == "film" else self._paint_region
        made_HW = paint(film_HW, mask_HW, seed, lung_HW)
        if not np.isfinite(made_HW).all():
            raise UsageError("the model makes no picture of finite greys; train it again, with a lower learning rate")
        return made_HW

    def make(
        self, film_HW: np.ndarray, mask_HW: np.ndarray, seed: int, lung_HW: np.ndarray, _spacing_mm: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what `paint` makes, and the mask of its nodules, bool of the same size."""
        made_HW = self.paint(film_HW, mask_HW, seed, lung_HW)
        if self.mode == "film":
            mask_HW = square_film(NoduleFilm("", film_HW, mask_HW, None, "", None, ""), len(made_HW)).mask_HW
        return made_HW, mask_HW

    def imitate(self, film_HW: np.ndarray, mask_HW: np.ndarray) -> NoduleGenerator:
        """Return this generator bound to the style and the contrast of the nodule at the mask.

        The film has the greys of `paint`.  Raises UsageError in mode "film", and for a nodule that does not fit.
        """
        if self.mode == "film":
            raise UsageError("a generator of whole films takes its style from each film, not from another nodule")
        check_mask(mask_HW, film_HW.shape)
        config = self.task.config
        small_HW, asked_HW = self._shrink(film_HW, mask_HW)
        if not asked_HW.any():
            raise UsageError(f"the nodule to imitate is too small to be seen at {self.film_size} pixels")
        window = find_window(compute_region(asked_HW, config.margin, config.margin_px), config.size)
        film_11SS, mask_11SS = (
            torch.from_numpy(part[window].astype(np.float32))[None, None].to(self.task.steps.device)
            for part in (small_HW, asked_HW)
        )
        return replace(self, like=NoduleBatch(film_11SS, mask_11SS))

    def _shrink(self, film_HW: np.ndarray, mask_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Resize a film and a mask to the generator's scale."""
        asked_HW = resize_longest(mask_HW.astype(np.float32), self.film_size) > 0.5
        return resize_longest(film_HW, self.film_size), np.asarray(asked_HW)

    def _paint_region(
        self, film_HW: np.ndarray, mask_HW: np.ndarray, seed: int, _lung_HW: np.ndarray | None
    ) -> np.ndarray:
        config = self.task.config
        small_HW, asked_HW = self._shrink(film_HW, mask_HW)
        if not asked_HW.any():
            raise UsageError(
                f"the nodule asked for is too small to be seen at {self.film_size} pixels; ask for a larger one"
            )
        change_HW = generate_film(self.task, small_HW, asked_HW, seed, like=self.like) - small_HW
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
        # The caller judges whether it lies in the lung: real nodules cross its edge, and some lungs are unknown
        film, mask, lung = (
            torch.from_numpy(np.asarray(part, np.float32))[None, None].to(self.task.steps.device)
            for part in (small.film_HW, small.mask_HW, small.lung_HW)
        )
        return self.task.make(NoduleBatch(film, mask, lung), [seed])[0, 0].cpu().numpy()


def load_nodule_generator(folder: Path | str, device: str = "cpu") -> NoduleGenerator:
    """Load a model folder of `finetune_nodules`.

    Raises UsageError if `folder` is not such a model, ChessError if it is broken or not what it claims to be.
    """
    folder, target = Path(folder), choose_device(device)
    config = read_json(folder / "config.json")
    if config.get("task") != "nodules":
        raise UsageError(f"{folder} is no nodule generator; make one with: chess-cxr finetune nodules")
    if config.get("version") != GENERATOR_VERSION:
        raise UsageError(f"{folder} was made by another version of chess-cxr; make it again")
    planned, film_size = _parse_generator(config, folder), config["film_size"]
    file = folder / "model.safetensors"
    tensors = read_tensors(file, _list_expected_tensors(planned))
    task = build_generator(planned)
    task.averaged.load_state_dict(tensors)
    task.to(device=target, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return NoduleGenerator(task, film_size, compute_sha256(file))


def _parse_generator(config: Mapping[str, Any], folder: Path) -> GenerateConfig | FlowConfig:
    """Check a generator's description, which may be anybody's, and return its configuration."""
    known: dict[str, type[GenerateConfig | FlowConfig]] = {"spade": GenerateConfig, "flow": FlowConfig}
    kind = known.get(str(config.get("network", "spade")))  # earlier versions knew spade alone
    if kind is None:
        raise ChessError(f"{folder}: the network of a generator is {' or '.join(known)}")
    described, film_size = config.get("generator"), config.get("film_size")
    if kind is GenerateConfig and isinstance(described, Mapping):
        described = {"vary": False, **described}  # earlier versions did not know it
    kinds = {item.name: type(item.default) for item in fields(kind)}
    if not isinstance(described, Mapping) or set(described) != set(kinds):
        raise ChessError(f"{folder}: the generator has {', '.join(kinds)}")
    numbers = {name: value for name, value in described.items() if name != "mode"}
    whole = all(
        type(value) in ((int, float) if kinds[name] is float else (kinds[name],)) for name, value in numbers.items()
    )
    mode = described.get("mode", "inpaint")
    if not (whole and mode in get_args(Mode) and type(film_size) is int and 32 <= film_size <= 4096):
        raise ChessError(f"{folder}: the generator is not valid")
    planned = kind(**described)
    try:
        check_generate_config(planned) if isinstance(planned, GenerateConfig) else check_flow_config(planned)
    except UsageError as error:
        raise ChessError(f"{folder}: {error}") from None
    if isinstance(planned, GenerateConfig) and (planned.width > PAPER_WIDTH or planned.latent > MOST_LATENT):
        raise ChessError(f"{folder}: a generator has a width of {PAPER_WIDTH} and a latent of {MOST_LATENT} at most")
    if max(planned.margin, planned.margin_px) > film_size:
        raise ChessError(f"{folder}: a generator has margins of {film_size} at most")
    return planned


@functools.lru_cache(8)
def _list_expected_tensors(planned: GenerateConfig | FlowConfig) -> Mapping[str, Tensor]:
    """Return a generator's tensors without memory, to check a file against.

    Cached for models of the same kind: even so, the power iterations of the spectral norms take seconds.
    """
    with torch.device("meta"):
        return build_generator(planned).averaged.state_dict()


def describe_nodule_generator(_model: NoduleGenerator) -> str:
    """Describe a model in a few words."""
    return "nodule generator"
