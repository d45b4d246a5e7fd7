"""Chest X-ray encoders: pre-trained without labels, published, measured.

The names below load what they need when first used, so that `import chess_cxr` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from chess_cxr.cores import share_cores

if TYPE_CHECKING:
    from chess_cxr.api import continue_from, embed, evaluate, export, pretrain, write_run_page
    from chess_cxr.audit import AuditOptions, audit_stores, write_audit
    from chess_cxr.bone_models import finetune_bones, load_bone_suppressor
    from chess_cxr.bone_training import BonesConfig
    from chess_cxr.classifiers import load_classifier
    from chess_cxr.finetuning import FinetuneConfig, finetune
    from chess_cxr.ingest.decode import decode_film
    from chess_cxr.ingest.pipeline import IngestOptions, ingest_films
    from chess_cxr.nodule_finetuning import finetune_nodules
    from chess_cxr.nodule_models import load_nodule_generator
    from chess_cxr.nodule_training import NodulesConfig
    from chess_cxr.presets import PRESETS
    from chess_cxr.records import ChessError, UsageError
    from chess_cxr.sources.folder import read_folder
    from chess_cxr.sources.phantom import write_phantom_films
    from chess_cxr.store import open_store
    from chess_cxr.training.trackers import TrackingConfig
    from chess_cxr.weights import import_chess, load_encoder

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
    "continue_from",
    "decode_film",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "finetune_bones",
    "finetune_nodules",
    "import_chess",
    "ingest_films",
    "load_bone_suppressor",
    "load_classifier",
    "load_encoder",
    "load_nodule_generator",
    "open_store",
    "pretrain",
    "read_folder",
    "write_audit",
    "write_phantom_films",
    "write_run_page",
]

_HOMES = {
    "PRESETS": "presets",
    "AuditOptions": "audit",
    "BonesConfig": "bone_training",
    "ChessError": "records",
    "FinetuneConfig": "finetuning",
    "IngestOptions": "ingest.pipeline",
    "NodulesConfig": "nodule_training",
    "TrackingConfig": "training.trackers",
    "UsageError": "records",
    "audit_stores": "audit",
    "continue_from": "api",
    "decode_film": "ingest.decode",
    "embed": "api",
    "evaluate": "api",
    "export": "api",
    "finetune": "finetuning",
    "finetune_bones": "bone_models",
    "finetune_nodules": "nodule_finetuning",
    "import_chess": "weights",
    "ingest_films": "ingest.pipeline",
    "load_bone_suppressor": "bone_models",
    "load_classifier": "classifiers",
    "load_encoder": "weights",
    "load_nodule_generator": "nodule_models",
    "open_store": "store",
    "pretrain": "api",
    "read_folder": "sources.folder",
    "write_audit": "audit",
    "write_phantom_films": "sources.phantom",
    "write_run_page": "api",
}

share_cores()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
