"""The options of an ingest; apart from the work, so that the command line starts without OpenCV and Lance."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from chess_cxr.workers.child import Limits


@dataclass(frozen=True)
class QualityOptions:
    """Thresholds that quarantine or flag a film.

    Args:
        quarantine_not_chest: leave out films that certainly are not of the chest, by header or picture;
            `--quality.no-quarantine-not-chest` stores them.
        not_chest_reject: `not_chest` score from which the picture alone is certain.
        not_chest_flag: `not_chest` score from which a film is flagged, and from which another body part in the
            header is believed.
        quarantine_lateral: leave out films flagged as lateral.
        lateral_flag: `lateral` score from which a film without a view in its header is flagged as lateral.
        quarantine_inverted: leave out films flagged as inverted.
        inverted_flag: `inverted` score from which a film is flagged as inverted (bone dark).
        correct_polarity: invert the greys of films flagged as inverted (the flag stays).
        contrast_reject: leave out films with a `contrast` below this; 0 leaves none out.
        contrast_flag: flag films with a `contrast` below this as low_contrast.
        border_flag: `border` from which a film is flagged as collimated.
        small_side: flag films with fewer pixels than this on their shorter side as small.
    """

    quarantine_not_chest: bool = True
    not_chest_reject: float = 0.994
    not_chest_flag: float = 0.88
    quarantine_lateral: bool = False
    lateral_flag: float = 0.93
    quarantine_inverted: bool = False
    inverted_flag: float = 0.5
    correct_polarity: bool = False
    contrast_reject: float = 0.02
    contrast_flag: float = 0.2
    border_flag: float = 0.15
    small_side: int = 200


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """The options of an ingest that are also options of the command.

    Args:
        longest_side: longest side of the stored films in pixels.
        val: fraction of the patients for validation, if the table has no split.
        test: fraction of the patients for testing, if the table has no split.
        seed: random seed of the split.
        stratify: give each split its share of every label; with `--no-stratify` a hash of a patient's id alone decides.
        quality: thresholds of the quality check.
        limits: limits of time and memory per film.
    """

    longest_side: int = 512
    val: float = 0.1
    test: float = 0.2
    seed: int = 0
    stratify: bool = True
    quality: QualityOptions = field(default_factory=QualityOptions)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class IngestOptions(IngestConfig):
    """All options of an ingest; `IngestConfig` explains the others.

    id_key: result of `read_id_key`.  id_map: file that will tie hashed uids to paths, the only one that does.
    dataset: `site` of every film whose table names none.  in_flight: films submitted ahead of the writer.
    films_a_commit, seconds_a_commit: a part ends at whichever comes first; a kill loses one part at most.
    """

    id_key: bytes
    id_map: Path | None = None
    dataset: str = ""
    _: KW_ONLY
    in_flight: int = 64
    films_a_commit: int = 8192
    seconds_a_commit: float = 60.0
