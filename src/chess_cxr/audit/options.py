"""The options of an audit; apart from the work, so that the command line starts without OpenCV."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """The options of an audit that are also options of the command.

    Args:
        thorough: search for any rotation, crop and scale even among more than 2,000 films, which takes long.
        duplicate_similarity: least similarity of fine detail for two films to be one exposure.
    """

    thorough: bool | None = None
    duplicate_similarity: float = 0.85


@dataclass(frozen=True)
class SearchOptions:
    """Thresholds of the search.

    hash_similarity: cosine of perceptual hashes from which pictures are compared, for at most `candidates_per_film` of
    each film.  feature_similarity: the same for the features of an encoder.  similarity: least correlation of fine
    detail.  points: least number of common points.  overlap: least part of the second film that the first covers.
    threads: 0 for one a core.
    """

    hash_similarity: float = 0.93
    feature_similarity: float = 0.5
    candidates_per_film: int = 8
    similarity: float = 0.7
    points: int = 12
    overlap: float = 0.2
    threads: int = 0


@dataclass(frozen=True)
class AuditOptions(AuditConfig, SearchOptions):
    """All options of an audit; `AuditConfig` and `SearchOptions` explain the others.

    thorough: None searches for any rotation, crop and scale among up to `thorough_up_to` films.
    duplicate_similarity: films below it may be two exposures of one patient, which is a hint and no leak.
    shown: number of pairs on the page.
    """

    thorough_up_to: int = 2000
    shown: int = 60
