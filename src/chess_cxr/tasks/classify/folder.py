"""Write the folder of a classifier: weights, calibration, operating points, golden films, ONNX, results, card."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from chess_cxr.encoders.encoder import Encoder, compute_state_sha256
from chess_cxr.tasks.card import CARD_FILE, render_card
from chess_cxr.tasks.classify.config import FinetuneConfig
from chess_cxr.tasks.classify.fit import Fitted
from chess_cxr.tasks.classify.objective import Classify
from chess_cxr.tasks.classify.operating import Operating, describe_operating
from chess_cxr.tasks.classify.score import ClassifierResult
from chess_cxr.tasks.model_folder import WEIGHTS_FILE, describe_files, pack_tensors, write_model
from chess_cxr.tasks.runtime import build_runtime_files


def write_classifier(
    out: Path,
    encoder: Encoder,
    fitted: Fitted,
    operating: Operating,
    config: FinetuneConfig,
    result: ClassifierResult,
) -> ClassifierResult:
    """Write a classifier's folder whole or not at all; return its result, with a note if there is no `model.onnx`."""
    with torch.random.fork_rng(devices=[]):  # a new head draws weights
        network = Classify(copy.deepcopy(encoder.module).cpu(), fitted.shape)
    network.load_state_dict({name: tensor.cpu() for name, tensor in fitted.tensors.items()})
    network.eval()
    files, missing = build_runtime_files(network, encoder.contract.prepare_array)
    if missing:
        result = replace(result, deployment=(*result.deployment, missing))
    described = _describe(encoder, fitted, operating, config, result)
    described["files"] = describe_files({WEIGHTS_FILE: pack_tensors(fitted.tensors), **files})
    files[CARD_FILE] = render_card(described, result.as_json()).encode()
    write_model(out, fitted.tensors, described, result.as_json(), ("tensorboard", "wandb"), files)
    return result


def _describe(
    encoder: Encoder, fitted: Fitted, operating: Operating, config: FinetuneConfig, result: ClassifierResult
) -> dict[str, Any]:
    return {
        "task": "classify",
        "head": asdict(fitted.shape),
        "labels": list(result.labels),
        "architecture": encoder.architecture,
        "encoder": encoder.name,
        "encoder_sha256": compute_state_sha256(encoder.module),
        "contract": asdict(encoder.contract),
        "operating": describe_operating(operating),
        "finetune": asdict(config),
    }
