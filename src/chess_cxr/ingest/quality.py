"""Judge a film: whether it shows a chest, its polarity, its view, whether it is fit for training.

Header and picture (through the classifiers of `film_classifier`) are judged together.  Films that are certainly wrong
are left out; doubtful ones are flagged, and their scores kept.
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
from chess_cxr.ingest.options import QualityOptions


def _list_terms(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Modality (0008,0060): defined terms of PS3.3 C.7.3.1.1.1 that exclude a projection radiograph of the chest
_NO_RADIOGRAPH = _list_terms(
    "AR AU BI CT DMS DOC ECG EPS ES GM HD IO IVOCT IVUS KER LEN MG MR NM OAM OCT OP OPM OPT OPV PT PX RTDOSE RTPLAN "
    "RTSTRUCT SM SR SRF US VA XAPROTOCOL XC"
)
# Body Part Examined (0018,0015): terms of PS3.16 Annex L without lung
_NO_CHEST = _list_terms(
    "ANKLE ARM CALCANEUS CALF ELBOW EXTREMITY FEMUR FIBULA FINGER FOOT FOREARM HAND HEAD HEEL HIP JAW KNEE LEG "
    "MANDIBLE NOSE ORBIT PATELLA PELVIS SINUS SKULL TEETH THIGH TIBIA TOE WRIST"
)
_CHEST = _list_terms("CHEST THORAX LUNG LUNGS RIB RIBS STERNUM")


@dataclass(frozen=True)
class FilmQuality:
    """Judgement of one film.

    flags: subset of `records.FLAGS`.  view: from the header, else "LATERAL" if the picture is certain, else "".
    reject: reason to leave the film out, "" to keep it.
    scores: named as in `records.SCORES`, each in [0, 1].  inverted, lateral, not_chest: probabilities of the
    classifiers, for equally frequent kinds of film.  contrast: distance between the 1st and the 99th percentile of the
    greys inside the borders.  border: share of the film outside its borders.
    """

    flags: frozenset[str]
    scores: Mapping[str, float]
    view: str
    reject: str


def judge_film(
    pixels_HW: Floats, header: FilmHeader, full_height: int, full_width: int, options: QualityOptions
) -> FilmQuality:
    """Judge a film by its picture and its header.

    pixels_HW: decoded film in [0, 1] of any size, MONOCHROME1 already inverted, so air is dark if the tag is right; a
    film of the store's size takes about a millisecond.  full_height, full_width: size of the file in pixels.
    The film is not changed: the caller inverts it if options.correct_polarity is set and the flags hold "inverted".
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
    """Return what contradicts a chest radiograph in the header, in words of a closed list, "" for nothing."""
    modality = header.modality.strip().upper()
    if modality in _NO_RADIOGRAPH:
        return f"modality {modality}"
    words = header.body_part.upper().replace("_", " ").replace(",", " ").replace("^", " ").split()
    parts = sorted(_NO_CHEST.intersection(words))
    return f"body part {parts[0]}" if parts and not _CHEST.intersection(words) else ""


def _find_reason(flags: frozenset[str], scores: Mapping[str, float], elsewhere: str, options: QualityOptions) -> str:
    """Return why a film is left out: only certain errors count unless the options demand more."""
    if options.quarantine_not_chest:
        # Protocols are used outside their context: 15 % of the body parts of CT and MR were wrong in Gueld et al. 2002
        # (doi:10.1117/12.467017).  So a body part counts only if the picture agrees.
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
