"""Thresholds that films are judged by; apart from the judging, so that the command line starts without OpenCV."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QualityOptions:
    """Thresholds that quarantine or flag a film.

    Args:
        quarantine_not_chest: leave out certain non-chest films, by header or picture; off, keep them.
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
