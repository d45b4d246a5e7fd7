"""The thresholds by which films are judged, apart from the judging: the command line starts without OpenCV."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QualityOptions:
    """What leaves a film out, what only flags it, and at which score.

    Args:
        quarantine_not_chest: leave out what the header or the picture says is certainly no chest radiograph.
        not_chest_reject: `not_chest` score from which the picture alone is certain.
        not_chest_flag: `not_chest` score from which a film is flagged, and from which a body part in the header
            that is not the chest is believed.
        quarantine_lateral: leave out films that are flagged as lateral.
        lateral_flag: `lateral` score from which a film without a view in its header is called lateral.
        quarantine_inverted: leave out films that are flagged as inverted.
        inverted_flag: `inverted` score from which bone is taken to be dark.
        correct_polarity: turn the greys of films flagged as inverted (their flag stays).
        contrast_reject: leave out films whose `contrast` is below this; 0 leaves none out.
        contrast_flag: `contrast` below which a film is flagged as low_contrast.
        border_flag: `border` from which a film is flagged as collimated.
        small_side: films with fewer pixels than this on their shorter side are flagged as small.
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
