"""Load a bone model, and write films without bones as derived films."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from chess_cxr.decode.film import decode_film
from chess_cxr.derive.film import write_new_file
from chess_cxr.encoders.names import locate_model
from chess_cxr.encoders.onnx_session import OnnxSession
from chess_cxr.evaluation.image_metrics import LEAST_SIDE
from chess_cxr.files.whole import compute_sha256, read_json
from chess_cxr.progress import say_on_stderr
from chess_cxr.records import ChessError, Undecodable, UsageError
from chess_cxr.tasks.bones.familiar import FamiliarFilms, read_familiar
from chess_cxr.tasks.bones.tiles import blend_tiles, prepare_film
from chess_cxr.tasks.bones.written import write_suppressed_film
from chess_cxr.tasks.model_folder import WEIGHTS_FILE, check_described, read_tensors
from chess_cxr.tasks.runtime import check_network, choose_runtime, has_onnx, load_onnx
from chess_cxr.tasks.table import Predictions, PredictOptions, Runtime
from chess_cxr.views import resize_longest
from chess_cxr.workers.child import Limits
from chess_cxr.workers.pool import build_ingest_pool, call_in_child

if TYPE_CHECKING:
    from chess_cxr.tasks.bones.network import BoneNetwork

FAINTEST = 1 / 512  # less bone, below half a grey level of 255, leaves stored values unchanged
BURNED_IN = "BONE-SUPPRESSED, DERIVED"
SHEET_SIDE = 1024  # a panel has fewer pixels
LARGEST_SPREAD = 0.1  # of grey: white in a map of the spread
LARGEST_SIDE = 4096  # of films at the network's scale
SHAPE = {"architecture", "mean", "std", "decoder", "spread", "score_grey"}  # what `BoneNetworkShape` has


@dataclass(frozen=True)
class BoneSuppressor:
    """A bone network and the scale at which it works.

    size: longest side of its films in pixels.  tile: side of the squares it sees.  sha256: hash of its file.
    network: None if onnx computes in its place.  spread: whether it says how far its bone image may be off.
    spread_scale: factor that calibrates that.  caution: how many times it is left of the bone.  familiar: the films
    that the network has learnt from, if they are known.
    """

    network: BoneNetwork | None
    size: int
    tile: int
    sha256: str = ""
    onnx: OnnxSession | None = None
    spread: bool = False
    spread_scale: float = 1.0
    caution: float = 0.0
    familiar: FamiliarFilms | None = None

    def predict_bone(self, film_HW: np.ndarray) -> np.ndarray:
        """Return the grey that is taken from a film as bone, float32 [H, W], at most the film itself."""
        bone_HW: np.ndarray = self.predict_maps(film_HW)[0]
        return bone_HW

    def predict_maps(self, film_HW: np.ndarray) -> np.ndarray:
        """Return the bone, and the expected absolute error of the bone image if the network gives it, [C, H, W]."""
        if self.network is None:
            assert self.onnx is not None
            map_CHW = blend_tiles(self.onnx.run, film_HW, self.size, self.tile)
        else:
            from chess_cxr.tasks.bones.network import predict_maps

            map_CHW = predict_maps(self.network, film_HW, self.size, self.tile)
        map_CHW[1:] *= self.spread_scale
        left_HW = self.caution * map_CHW[1] if len(map_CHW) > 1 else 0.0
        map_CHW[0] = np.clip(map_CHW[0] - left_HW, 0, film_HW)
        return map_CHW

    def doubt(self, film_HW: np.ndarray) -> tuple[str, ...]:
        """Return why the network may not know a film; nothing if it is like its training films."""
        return self.familiar.doubt(film_HW) if self.familiar else ()

    def suppress(self, film_HW: np.ndarray) -> np.ndarray:
        """Return a film, float32 [H, W] in [0, 1] with bone bright, without its bones."""
        suppressed: np.ndarray = film_HW - self.predict_bone(film_HW)
        return suppressed


def load_bone_suppressor(folder: Path | str, device: str = "cpu", runtime: Runtime = "torch") -> BoneSuppressor:
    """Load a model folder of `finetune_bones`, or a published model by its name, and check it on its golden films.

    runtime: as in `load_classifier`.  A model of version 0.1 has no golden films and no `model.onnx`.
    Raises UsageError if `folder` is not such a model, ChessError if it is broken or not what it claims to be.
    """
    folder = locate_model(Path(folder))
    config = read_json(folder / "config.json")
    described = config.get("files")
    by_onnx = choose_runtime(device, runtime, has_onnx(described))
    if config.get("task") != "bones":
        raise UsageError(f"{folder} is no bone model; make one with: chess-cxr finetune bones")
    shape, sides = config.get("network"), (config.get("size"), config.get("tile"))
    size, tile = (side if type(side) is int else 0 for side in sides)
    whole = LEAST_SIDE <= tile <= size <= LARGEST_SIDE
    if isinstance(shape, Mapping):
        shape = {"spread": False, "score_grey": 0.0, **shape}  # version 0.1 knew neither
    if not (isinstance(shape, Mapping) and set(shape) == SHAPE and whole):
        raise ChessError(f"{folder}: the network of a bone model has {', '.join(sorted(SHAPE))}, size and tile")
    if not all(type(shape[name]) in (int, float) for name in ("mean", "std", "score_grey")):
        raise ChessError(f"{folder}: mean, std and score_grey of a bone model are numbers")
    if type(shape["spread"]) is not bool:
        raise ChessError(f"{folder}: spread of a bone model is true or false")
    if not all(type(shape[name]) is str for name in ("architecture", "decoder")):
        raise ChessError(f"{folder}: architecture and decoder of a bone model are names")
    network = None if by_onnx else _load_network(folder, shape, device)
    sha256 = check_described(folder, WEIGHTS_FILE, described) or compute_sha256(folder / WEIGHTS_FILE)
    scale, caution = (config.get(name, standard) for name, standard in (("spread_scale", 1.0), ("caution", 0.0)))
    if not all(type(factor) in (int, float) and 0 <= factor < 1e6 for factor in (scale, caution)):
        raise ChessError(f"{folder}: spread_scale and caution of a bone model are numbers of 0 or more")
    familiar = read_familiar(config.get("familiar"), folder)
    onnx = load_onnx(folder, described, prepare_film) if network is None else None
    if network is not None:
        check_network(folder, described, network, prepare_film, next(network.parameters()).device)
    return BoneSuppressor(network, size, tile, sha256, onnx, shape["spread"], float(scale), float(caution), familiar)


def _load_network(folder: Path, shape: Mapping[str, Any], device: str) -> BoneNetwork:
    import torch

    from chess_cxr.device import choose_device
    from chess_cxr.tasks.bones.network import BoneNetwork, BoneNetworkShape

    target = choose_device(device)
    try:
        with torch.device("meta"):  # without memory, to check the file against
            expected = BoneNetwork(BoneNetworkShape(**shape)).state_dict()
    except (UsageError, ValueError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ChessError(f"{folder}: {first[:200]}") from None
    tensors = read_tensors(folder / WEIGHTS_FILE, expected)
    network = BoneNetwork(BoneNetworkShape(**shape))
    network.load_state_dict(tensors)
    network.to(device=target, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return network


def find_change(model: BoneSuppressor, film_HW: np.ndarray) -> np.ndarray:
    """Return what removes the bone from a film when it is added, float32 [H, W]: 0 where there is hardly any."""
    return _find_change(model.predict_bone(film_HW))


def _find_change(bone_HW: np.ndarray) -> np.ndarray:
    return np.where(bone_HW < FAINTEST, 0, -bone_HW).astype(np.float32)


def _shrink_for_sheet(film_HW: np.ndarray) -> np.ndarray:
    return resize_longest(film_HW, SHEET_SIDE) if max(film_HW.shape) > SHEET_SIDE else film_HW


@dataclass(frozen=True)
class SuppressedFile:
    """The new file of a film, or the reason why there is none.  doubts: see `BoneSuppressor.doubt`."""

    location: Path | str
    out: Path | None = None
    reason: str = ""
    doubts: tuple[str, ...] = ()


def suppress_files(
    model: BoneSuppressor,
    locations: Iterable[Path | str],
    out: Path,
    *,
    name: str = "",
    burn_in: bool = False,
    sheets: bool = False,
    sure_map: bool = False,
    limits: Limits | None = None,
) -> Generator[SuppressedFile, None, None]:
    """Write each film without its bones into `out`, and yield the results in order.

    A DICOM film becomes a derived DICOM image, any other a PNG; see `write_derived_film`.  Where there is no bone,
    stored values are unchanged.  name: of the model, for the files; its hash by default.
    burn_in: write `BURNED_IN` into a corner.
    sheets: also write film, result and bone side by side as NAME_sheet.png, or NAME_sheet-2.png if that exists.
    sure_map: also write NAME_sure.png, the expected absolute error of the bone image: black for 0, white for
    `LARGEST_SPREAD` of the film's grey range or more.
    Raises UsageError for a map that the network does not give.
    """
    if sure_map and not model.spread:
        raise UsageError("this bone model does not say how sure it is; train it anew for --sure-map")
    limits, text, name = limits or Limits(), BURNED_IN if burn_in else "", name or model.sha256[:16]
    # A child runs one task: with one child for each, none is restarted for every film
    with build_ingest_pool(1) as readers, build_ingest_pool(1) as writers:
        for location in locations:
            try:
                film = readers.submit(call_in_child, decode_film, limits, location).result()
                map_CHW = model.predict_maps(film.pixels)
                change_HW = _find_change(map_CHW[0])
                written = writers.submit(
                    call_in_child,
                    write_suppressed_film,
                    limits,
                    location,
                    change_HW,
                    out,
                    text,
                    name or model.sha256[:16],
                ).result()
                if sheets:
                    from chess_cxr.tasks.bones.sheet import render_suppression_sheet

                    before_HW, after_HW = (_shrink_for_sheet(p) for p in (film.pixels, film.pixels + change_HW))
                    sheet = render_suppression_sheet([(written.name, before_HW, after_HW, None)], synthetic=None)
                    write_new_file(out, f"{written.stem}_sheet", ".png", sheet)
                if sure_map:
                    write_new_file(out, f"{written.stem}_sure", ".png", _pack_spread(map_CHW[1]))
                yield SuppressedFile(location, written, doubts=model.doubt(film.pixels))
            except Undecodable as error:
                yield SuppressedFile(location, reason=str(error))


def _pack_spread(spread_HW: np.ndarray) -> bytes:
    level_HW = np.rint(255 * np.minimum(spread_HW / LARGEST_SPREAD, 1)).astype(np.uint8)
    _, content = cv2.imencode(".png", level_HW)
    return bytes(content)


def predict_films(folder: Path, locations: Sequence[Path | str], options: PredictOptions) -> Predictions:
    """Write film files without their bones, and return the names of the new files."""
    if options.out is None:
        raise UsageError("a bone model writes films; name a folder for them with --out")
    if options.point or options.saliency is not None:
        raise UsageError("--point and --saliency are for classifiers; a bone model writes films")
    model = load_bone_suppressor(folder, options.device, options.runtime)
    done = suppress_files(
        model, locations, options.out, burn_in=options.burn_in, sheets=options.sheets, sure_map=options.sure_map,
        limits=options.limits,
    )  # fmt: skip
    return Predictions(("film", "out", "reason"), map(_record, done))


def _record(done: SuppressedFile) -> dict[str, Any]:
    """Return the record of a film, and tell the user on stderr of a film that the network may not know."""
    for doubt in done.doubts:
        say_on_stderr(f"{done.location}: {doubt}; check the result with care")
    out = str(done.out) if done.out else ""
    return {"film": str(done.location), "out": out, "reason": done.reason, "doubts": list(done.doubts)}


def describe_bone_suppressor(model: BoneSuppressor) -> str:
    """Describe a model in a few words."""
    return f"bone suppression, films of {model.size} pixels"
