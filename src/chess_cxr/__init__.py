"""Chest X-ray encoders: pre-trained without labels, published, measured.

The names below load what they need when first used, so that `import chess_cxr` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from chess_cxr.workers.cores import share_cores

if TYPE_CHECKING:
    from chess_cxr.audit.audit import AuditOptions, audit_stores, write_audit
    from chess_cxr.benchmarking.evaluate import evaluate
    from chess_cxr.decode.film import decode_film
    from chess_cxr.encoders.embed import embed
    from chess_cxr.encoders.load import import_chess, load_encoder
    from chess_cxr.ingest.pipeline import IngestOptions, ingest_films
    from chess_cxr.pretraining.export import export
    from chess_cxr.pretraining.page import write_run_page
    from chess_cxr.pretraining.presets import PRESETS
    from chess_cxr.pretraining.pretrain import continue_from, pretrain
    from chess_cxr.records import ChessError, UsageError
    from chess_cxr.sources.folder import read_folder
    from chess_cxr.sources.phantom.film import write_phantom_films
    from chess_cxr.store import open_store
    from chess_cxr.tasks.bones.fit import BonesConfig
    from chess_cxr.tasks.bones.model import finetune_bones, load_bone_suppressor
    from chess_cxr.tasks.classify.model import load_classifier
    from chess_cxr.tasks.classify.train import FinetuneConfig, finetune
    from chess_cxr.tasks.nodules.fit import NodulesConfig
    from chess_cxr.tasks.nodules.model import load_nodule_generator
    from chess_cxr.tasks.nodules.train import finetune_nodules
    from chess_cxr.training.trackers import TrackingConfig

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
    "PRESETS": "pretraining.presets",
    "AuditOptions": "audit.audit",
    "BonesConfig": "tasks.bones.fit",
    "ChessError": "records",
    "FinetuneConfig": "tasks.classify.train",
    "IngestOptions": "ingest.pipeline",
    "NodulesConfig": "tasks.nodules.fit",
    "TrackingConfig": "training.trackers",
    "UsageError": "records",
    "audit_stores": "audit.audit",
    "continue_from": "pretraining.pretrain",
    "decode_film": "decode.film",
    "embed": "encoders.embed",
    "evaluate": "benchmarking.evaluate",
    "export": "pretraining.export",
    "finetune": "tasks.classify.train",
    "finetune_bones": "tasks.bones.model",
    "finetune_nodules": "tasks.nodules.train",
    "import_chess": "encoders.load",
    "ingest_films": "ingest.pipeline",
    "load_bone_suppressor": "tasks.bones.model",
    "load_classifier": "tasks.classify.model",
    "load_encoder": "encoders.load",
    "load_nodule_generator": "tasks.nodules.model",
    "open_store": "store",
    "pretrain": "pretraining.pretrain",
    "read_folder": "sources.folder",
    "write_audit": "audit.audit",
    "write_phantom_films": "sources.phantom.film",
    "write_run_page": "pretraining.page",
}

share_cores()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
