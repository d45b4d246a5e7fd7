"""Is it a chest film, which way round are its greys, from which side was it taken, is it fit to learn from.

The header is asked first, the picture by the classifiers of `film_classifier`.  What is certainly wrong leaves the
film out; the rest is flagged, with the scores beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from chess_cxr.decode.decoded import FilmHeader
from chess_cxr.ingest.film_classifier import (
    Floats,
    compute_kinds,
    compute_polarity_logit,
    compute_thumbnail,
    load_film_classifier,
)
from chess_cxr.ingest.quality_options import QualityOptions

__all__ = ["FilmQuality", "QualityOptions", "judge_film"]


def _list_terms(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Modality (0008,0060), defined terms of PS3.3 C.7.3.1.1.1: what can hold no projection radiograph of the chest.
_NO_RADIOGRAPH = _list_terms(
    "AR AU BI CT DMS DOC ECG EPS ES GM HD IO IVOCT IVUS KER LEN MG MR NM OAM OCT OP OPM OPT OPV PT PX RTDOSE RTPLAN "
    "RTSTRUCT SM SR SRF US VA XAPROTOCOL XC"
)
# Body Part Examined (0018,0015), terms of PS3.16 Annex L that show no lung.
_NO_CHEST = _list_terms(
    "ANKLE ARM CALCANEUS CALF ELBOW EXTREMITY FEMUR FIBULA FINGER FOOT FOREARM HAND HEAD HEEL HIP JAW KNEE LEG "
    "MANDIBLE NOSE ORBIT PATELLA PELVIS SINUS SKULL TEETH THIGH TIBIA TOE WRIST"
)
_CHEST = _list_terms("CHEST THORAX LUNG LUNGS RIB RIBS STERNUM")


@dataclass(frozen=True)
class FilmQuality:
    """How one film was judged.

    flags: those of `records.FLAGS` that hold.  view: the header's, else "LATERAL" where the picture is sure, else "".
    reject: why the film is left out, "" where it is kept.
    scores, each in [0, 1], named as `records.SCORES`: inverted, lateral, not_chest: probabilities as the classifiers
    have them, with kinds of film equally frequent.  contrast: distance between the 1st and the 99th percentile of the
    greys inside the borders.  border: share of the film outside of them.
    """

    flags: frozenset[str]
    scores: Mapping[str, float]
    view: str
    reject: str


def judge_film(
    pixels_HW: Floats, header: FilmHeader, full_height: int, full_width: int, options: QualityOptions
) -> FilmQuality:
    """Judge a film by its picture and its header.

    pixels_HW: in [0, 1], as decoded: MONOCHROME1 already turned, so that air is dark if the tag was right; any size,
    a film of the store's size is judged in about a millisecond.  full_height, full_width: of the file, in pixels.
    Nothing is changed here: where options.correct_polarity is set and "inverted" is among the flags, the caller stores
    1 - pixels_HW.
    """
    thumbnail, classifier = compute_thumbnail(pixels_HW), load_film_classifier()
    logit = compute_polarity_logit(thumbnail.rank_YX, classifier.polarity_P)
    inverted = float(1 / (1 + np.exp(np.clip(logit, -50, 50))))
    kinds = compute_kinds(thumbnail.rank_YX, classifier)
    scores = {
        "inverted": inverted,
        "lateral": float(kinds[1]),
        "not_chest": float(kinds[2]),
        "contrast": thumbnail.contrast,
        "border": thumbnail.border,
    }
    view = header.view or ("LATERAL" if scores["lateral"] >= options.lateral_flag else "")
    elsewhere = _find_wrong_header(header)
    holds = {
        "inverted": inverted >= options.inverted_flag,
        "lateral": view == "LATERAL",
        "not_chest": bool(elsewhere) or scores["not_chest"] >= options.not_chest_flag,
        "low_contrast": scores["contrast"] < options.contrast_flag,
        "collimated": scores["border"] >= options.border_flag,
        "burned_in": header.burned_in.strip().upper() == "YES",
        "small": min(full_height, full_width) < options.small_side,
    }
    flags = frozenset(name for name, held in holds.items() if held)
    return FilmQuality(flags, scores, view, _find_reason(flags, scores, elsewhere, options))


def _find_wrong_header(header: FilmHeader) -> str:
    """Return what the header says the film is, if that is no chest radiograph, in words of a closed list."""
    modality = header.modality.strip().upper()
    if modality in _NO_RADIOGRAPH:
        return f"modality {modality}"
    words = header.body_part.upper().replace("_", " ").replace(",", " ").replace("^", " ").split()
    parts = sorted(_NO_CHEST.intersection(words))
    return f"body part {parts[0]}" if parts and not _CHEST.intersection(words) else ""


def _find_reason(flags: frozenset[str], scores: Mapping[str, float], elsewhere: str, options: QualityOptions) -> str:
    """Return why a film is left out: only for what is certain, unless the options ask for more."""
    if options.quarantine_not_chest:
        # Protocols are used outside their context: on CT and MR, 15 % of the body parts were found to be wrong (Gueld
        # et al. 2002, doi:10.1117/12.467017).  So a body part counts only where the picture agrees.
        believed = elsewhere.startswith("modality") or scores["not_chest"] >= options.not_chest_flag
        if elsewhere and believed:
            return f"not a chest radiograph ({elsewhere})"
        if scores["not_chest"] >= options.not_chest_reject:
            return "not a chest radiograph (judged from the picture)"
    if scores["contrast"] < options.contrast_reject:
        return "almost no contrast"
    if options.quarantine_lateral and "lateral" in flags:
        return "lateral film"
    if options.quarantine_inverted and "inverted" in flags:
        return "inverted film"
    return ""
