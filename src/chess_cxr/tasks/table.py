"""The table of tasks; a new task is a folder, an entry here and its tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

from chess_cxr.arguments import Device
from chess_cxr.encoders.names import locate_model
from chess_cxr.files.whole import read_json
from chess_cxr.records import UsageError
from chess_cxr.workers.child import Limits

Runtime = Literal["torch", "onnx", "auto"]


@dataclass(frozen=True)
class PredictOptions:
    """The options of `chess-cxr predict`: saliency for classifiers; out, burn_in and sheets for models that make films.

    Args:
        out: folder for the films that a bone model makes.
        burn_in: write "BONE-SUPPRESSED, DERIVED" into a corner of these films.
        sheets: also write a picture of film, result and removed bone.
        sure_map: also write a map of the expected error of the bone image, white where it is large.
        saliency: folder for pictures of a classifier's saliency for each film and label (Grad-CAM).
        point: operating point of a classifier: youden (default), sensitivity_90 or specificity_90.
        runtime: torch; onnx, ONNX Runtime on the CPU; or auto, onnx on the CPU if the model and this machine have it.
        device: auto, cpu, cuda, cuda:N or mps.
        workers: number of decoding processes; by default one per core.
        limits: limits of time and memory per film.
    """

    out: Path | None = None
    burn_in: bool = False
    sheets: bool = False
    sure_map: bool = False
    saliency: Path | None = None
    point: str = ""
    runtime: Runtime = "auto"
    device: Device = "auto"
    workers: int | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Predictions:
    """The results of a model: one record per film, computed on demand; a failed film has a `reason`."""

    columns: tuple[str, ...]
    records: Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Task:
    """The functions of a task as MODULE:NAME, imported at first use.

    finetune: the command `chess-cxr finetune TASK`, in a module that does not import torch.
    load: (folder, device) -> the model that the command wrote.
    describe: (model) -> a description in a few words.
    predict: (folder, locations, PredictOptions) -> Predictions; "" if the model has its own command.
    use: then, what the model is, and this command.
    """

    finetune: str
    load: str
    describe: str
    predict: str = ""
    use: str = ""


TASKS = {
    "classify": Task(
        "chess_cxr.tasks.classify.command:finetune_classify",
        "chess_cxr.tasks.classify.model:load_classifier",
        "chess_cxr.tasks.classify.model:describe_classifier",
        "chess_cxr.tasks.classify.answer:predict_films",
    ),
    "bones": Task(
        "chess_cxr.tasks.bones.command:finetune_bones",
        "chess_cxr.tasks.bones.model:load_bone_suppressor",
        "chess_cxr.tasks.bones.model:describe_bone_suppressor",
        "chess_cxr.tasks.bones.model:predict_films",
    ),
    "nodules": Task(
        "chess_cxr.tasks.nodules.command:finetune_nodules",
        "chess_cxr.tasks.nodules.model:load_nodule_generator",
        "chess_cxr.tasks.nodules.model:describe_nodule_generator",
        use="a nodule generator; use it with: chess-cxr generate {model} --films …",
    ),
}


def list_finetune_commands() -> dict[str, Callable[..., None]]:
    """Return the finetune command of each task, by its words."""
    return {f"finetune {name}": resolve_name(task.finetune) for name, task in TASKS.items()}


def find_task(model: Path) -> Task:
    """Return the task of a model folder; raises `UsageError` for any other path."""
    if not model.exists():
        raise UsageError(f"there is no {model}; name the folder of a model, which chess-cxr finetune makes")
    file = model / "config.json"
    described = read_json(file)
    if file.is_file() and not described:
        raise UsageError(f"{file} is damaged: it is no JSON object; copy the model again")
    named = described.get("task")
    if isinstance(named, str) and named not in TASKS:
        raise UsageError(f"{model} is a model of another version: it has the task {named[:40]!r}")
    if "chess_cxr" in described:
        raise UsageError(f"{model} is an encoder; chess-cxr finetune classify {model} STORE makes a model of it")
    if named not in TASKS:
        raise UsageError(f"{model} is no model; make one with: chess-cxr finetune")
    return TASKS[named]


def load_model(folder: Path, device: str = "auto") -> Any:
    """Load a model folder of a finetune command onto a device."""
    return resolve_name(find_task(folder).load)(folder, device)


def predict_films(model: Path, locations: Iterable[Path | str], options: PredictOptions) -> Predictions:
    """Apply a model to film files.

    Raises `UsageError` if the model has its own command, or if an option does not apply to its task.
    """
    predictions: Predictions = resolve_name(find_predictor(model))(model, list(locations), options)
    return predictions


def find_predictor(model: Path) -> str:
    """Return what a model folder predicts with; raise `UsageError` if it has a command of its own."""
    task = find_task(model)
    if not task.predict:
        raise UsageError(f"{model} is {task.use.format(model=model)}")
    return task.predict


def predict(
    model: Path | str,
    films: Iterable[Path | str],
    *,
    out: Path | str | None = None,
    burn_in: bool = False,
    sheets: bool = False,
    saliency: Path | str | None = None,
    device: str = "auto",
    workers: int | None = None,
    limits: Limits | None = None,
    point: str = "",
    runtime: Runtime = "auto",
    sure_map: bool = False,
) -> list[dict[str, Any]]:
    """Apply a model to film files; return one record per film.

    model: a folder from `finetune_classifier` or `finetune_bones`, or the name of a published model.
    films: files (DICOM, PNG, JPEG, …) or URLs.
    out: folder for the films that a bone model makes.  burn_in, sheets, sure_map, saliency, point, runtime: as in
    `chess-cxr predict`.
    A classifier's record holds the columns of the command, such as `film`, a probability for each label, `reason` and
    `flags`, and the hashes of the model; a bone model's `film`, `out`, `reason` and `doubts`.  A failed film has a
    reason and no result.
    Raises `UsageError` if `model` is not a model, or if an option does not apply to its task.
    """
    made, seen = (Path(folder) if folder else None for folder in (out, saliency))
    options = PredictOptions(made, burn_in, sheets, sure_map, seen, point, runtime, device, workers, limits or Limits())
    return [dict(record) for record in predict_films(locate_model(Path(model)), films, options).records]
