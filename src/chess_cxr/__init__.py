"""Chest X-ray encoders: pre-trained without labels, published, measured.

The names below load what they need when first used, so that `import chess_cxr` costs nothing.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from chess_cxr.workers.cores import share_cores

if TYPE_CHECKING:
    from chess_cxr.audit.audit import audit_stores
    from chess_cxr.audit.options import AuditOptions
    from chess_cxr.audit.page import write_audit
    from chess_cxr.benchmarking.benchmark import benchmark
    from chess_cxr.benchmarking.evaluate import evaluate
    from chess_cxr.decode.film import decode_film
    from chess_cxr.encoders.embed import embed
    from chess_cxr.encoders.load import import_chess, load_encoder
    from chess_cxr.encoders.onnx import write_onnx
    from chess_cxr.ingest.options import IngestOptions
    from chess_cxr.ingest.pipeline import ingest_films
    from chess_cxr.pretraining.export import export
    from chess_cxr.pretraining.page import write_run_page
    from chess_cxr.pretraining.presets import PRESETS
    from chess_cxr.pretraining.pretrain import continue_from, pretrain
    from chess_cxr.records import ChessError, UsageError
    from chess_cxr.sources.folder import read_folder
    from chess_cxr.sources.phantom.film import write_phantom_films
    from chess_cxr.store import open_store
    from chess_cxr.tasks.bones.config import BonesConfig
    from chess_cxr.tasks.bones.model import load_bone_suppressor
    from chess_cxr.tasks.bones.train import finetune_bones
    from chess_cxr.tasks.classify.config import FinetuneConfig
    from chess_cxr.tasks.classify.model import load_classifier
    from chess_cxr.tasks.classify.train import finetune_classifier
    from chess_cxr.tasks.classify.xrv import load_as_xrv
    from chess_cxr.tasks.nodules.config import NodulesConfig
    from chess_cxr.tasks.nodules.model import load_nodule_generator
    from chess_cxr.tasks.nodules.train import finetune_nodules
    from chess_cxr.tasks.table import predict
    from chess_cxr.training.config import TrackingConfig

__all__ = [
    "PRESETS",
    "AuditOptions",
    "BonesConfig",
    "ChessError",
    "FinetuneConfig",
    "IngestOptions",
    "NodulesConfig",
    "TrackingConfig",
    "UsageError",
    "audit_stores",
    "benchmark",
    "continue_from",
    "decode_film",
    "embed",
    "evaluate",
    "export",
    "finetune_bones",
    "finetune_classifier",
    "finetune_nodules",
    "import_chess",
    "ingest_films",
    "load_as_xrv",
    "load_bone_suppressor",
    "load_classifier",
    "load_encoder",
    "load_nodule_generator",
    "open_store",
    "predict",
    "pretrain",
    "read_folder",
    "write_audit",
    "write_onnx",
    "write_phantom_films",
    "write_run_page",
]

_HOMES = {
    "PRESETS": "pretraining.presets",
    "AuditOptions": "audit.options",
    "BonesConfig": "tasks.bones.config",
    "ChessError": "records",
    "FinetuneConfig": "tasks.classify.config",
    "IngestOptions": "ingest.options",
    "NodulesConfig": "tasks.nodules.config",
    "TrackingConfig": "training.config",
    "UsageError": "records",
    "audit_stores": "audit.audit",
    "benchmark": "benchmarking.benchmark",
    "continue_from": "pretraining.pretrain",
    "decode_film": "decode.film",
    "embed": "encoders.embed",
    "evaluate": "benchmarking.evaluate",
    "export": "pretraining.export",
    "finetune_classifier": "tasks.classify.train",
    "finetune_bones": "tasks.bones.train",
    "finetune_nodules": "tasks.nodules.train",
    "import_chess": "encoders.load",
    "ingest_films": "ingest.pipeline",
    "load_as_xrv": "tasks.classify.xrv",
    "load_bone_suppressor": "tasks.bones.model",
    "load_classifier": "tasks.classify.model",
    "load_encoder": "encoders.load",
    "load_nodule_generator": "tasks.nodules.model",
    "open_store": "store",
    "predict": "tasks.table",
    "pretrain": "pretraining.pretrain",
    "read_folder": "sources.folder",
    "write_audit": "audit.page",
    "write_onnx": "encoders.onnx",
    "write_phantom_films": "sources.phantom.film",
    "write_run_page": "pretraining.page",
}

# Names of version 0.1, for one more version.
_RENAMED = {"finetune": "finetune_classifier"}

share_cores()


if not TYPE_CHECKING:  # or a type checker would believe in any name

    def __getattr__(name: str) -> Any:
        if name in _RENAMED:
            warnings.warn(f"chess_cxr.{name} is now called {_RENAMED[name]}", DeprecationWarning, stacklevel=2)
            name = _RENAMED[name]
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
