"""A fifth task: how bright are the pictures of a NumPy file?  It shows what a task has to bring, and no more."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tyro.conf import Positional

from chess_cxr.arguments import Flat, print_result
from chess_cxr.tasks.table import Predictions, PredictOptions, Task

TASK = Task("toy_task:finetune_toy", "toy_task:load_toy", "toy_task:describe_toy", "toy_task:predict_films")


@dataclass(frozen=True)
class ToyConfig:
    """How the toy is trained.

    Args:
        steps: optimisation steps.
        learning_rate: of SGD.
    """

    steps: int = 60
    learning_rate: float = 0.5


def finetune_toy(
    pictures: Annotated[Positional[Path], tyro.conf.arg(metavar="PICTURES")],
    out: Path,
    config: Flat[ToyConfig] = ToyConfig(),  # noqa: B008
    json: bool = False,
) -> None:
    """Train a network that says how bright a picture is.

    Example: chess-cxr finetune toy pictures.npy --out models/toy

    Args:
        pictures: a NumPy file with float32 pictures [N, H, W].
        out: the model folder to write.
        config: how it is trained.
        json: print the results as JSON.
    """
    import torch

    from chess_cxr.tasks.model_folder import refuse_foreign_folder, write_model
    from chess_cxr.tasks.run import read_task_batches
    from chess_cxr.training.loop import TrainingConfig
    from chess_cxr.training.run import RunInputs, describe, train_in_folder
    from chess_cxr.training.watch import RunWatch

    refuse_foreign_folder(out)
    picture_NHW, method = np.load(pictures), build_toy()
    training = TrainingConfig(config.steps, batch=8, learning_rate=config.learning_rate, weight_decay=0)
    inputs = RunInputs(
        [str(number) for number in range(len(picture_NHW))],
        lambda first_step, rank: read_task_batches(
            list(picture_NHW), lambda chosen, _: torch.from_numpy(np.stack(chosen)), training, first_step, rank
        ),
        lambda log, rank: RunWatch(log, training, lambda _step: {}),
    )
    train_in_folder(out / "run", method, training, inputs, {"task": "toy", "toy": describe(config)})
    result = {"weight": float(method.weight), "pictures": len(picture_NHW)}
    write_model(out, method.state_dict(), {"task": "toy", "config": asdict(config)}, result)
    print_result(result if json else f"weight {result['weight']:.3f}", json)


def build_toy() -> Any:
    import torch
    from torch import Tensor, nn

    class Toy(nn.Module):
        """Brightness = weight x mean; the weight should become 1."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))
            self.signals: Mapping[str, float] = {}

        def get_parameters(self) -> Mapping[str, list[nn.Parameter]]:
            return {"toy": [self.weight]}

        def losses(self, batch: Tensor) -> Generator[tuple[str, Tensor], None, None]:
            mean_B = batch.mean((1, 2))
            yield "toy", (self.weight * mean_B - mean_B).square().mean()

        def after_step(self) -> None:
            pass

    return Toy()


def load_toy(folder: Path, device: str = "auto") -> Any:
    from chess_cxr.device import choose_device
    from chess_cxr.tasks.model_folder import read_tensors

    toy = build_toy()
    toy.load_state_dict(read_tensors(folder / "model.safetensors", toy.state_dict()))
    return toy.to(choose_device(device))


def describe_toy(model: Any) -> str:
    return f"toy of weight {float(model.weight):.2f}"


def predict_films(folder: Path, locations: Iterable[Path | str], options: PredictOptions) -> Predictions:
    model = load_toy(folder, options.device)
    from chess_cxr.decode.film import decode_film

    records = ({"film": str(it), "brightness": float(model.weight) * float(decode_film(it).pixels.mean()), "reason": ""}
               for it in locations)  # fmt: skip
    return Predictions(("film", "brightness", "reason"), records)
