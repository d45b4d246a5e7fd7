"""Fit the classifiers of chess_cxr.ingest.film_classifier on real films, and measure them on films of other patients.

usage: python fit_film_classifier.py DATA MEASURED.json [PHOTOGRAPHS]

DATA holds pool.csv, nasty/not_frontal and dicom.  Films are dealt to three parts by patient: 40 % fit the weights, 20 %
chose the constants below and the thresholds of QualityOptions, 40 % are only measured.  Near duplicates that pool.csv
lists are left out.  No disease label is read.  The weights go where the package keeps them.  PHOTOGRAPHS: a folder of
pictures that are no films, only measured.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from film_pictures import SIDE, Picture, distort, draw_made_up, read_film, read_pool, read_rare, shrink
from pydicom.data import get_testdata_file
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

from chess_cxr.ingest import film_classifier
from chess_cxr.ingest.decode import decode_film
from chess_cxr.ingest.decoded import FilmHeader
from chess_cxr.ingest.film_classifier import (
    KINDS,
    FilmClassifier,
    compute_kind_features,
    compute_kinds,
    compute_polarity_logit,
    compute_thumbnail,
    shrink_ranks,
)
from chess_cxr.ingest.quality import QualityOptions, judge_film
from chess_cxr.sources.phantom import draw_anatomy, draw_exposure, render_film

WEIGHTS = Path(film_classifier.__file__).with_suffix(".npz")
POLARITY_C, KIND_C = 1e-3, 1e-2  # inverse strength of the ridge penalty
DRAWS = 3  # distorted copies of a film that is fitted
DRAWS_RARE = 60  # ... of a lateral film, a CT slice or a limb, of which there are few
DRAWS_MADE_UP = 2
# Never fitted: slices and an ultrasound that come with pydicom, and its small pictures.
OTHER_DICOM = ("CT_small.dcm", "MR_small.dcm", "examples_rgb_color.dcm", "examples_jpeg2k.dcm")


@dataclass(frozen=True)
class Sample:
    """One distorted picture as the classifiers see it."""

    rank_YX: np.ndarray
    picture: Picture


@dataclass(frozen=True)
class Scores:
    """Log odds of bright bone, probability of a lateral film, of no chest film; [N] each."""

    polarity: np.ndarray
    lateral: np.ndarray
    not_chest: np.ndarray


def draw_samples(pictures: Iterable[Picture], draws: int, rng: np.random.Generator) -> list[Sample]:
    """Distort each picture `draws` times."""
    return [Sample(compute_thumbnail(distort(p.pixels, rng)).rank_YX, p) for p in pictures for _ in range(draws)]


def balance(names: np.ndarray) -> np.ndarray:
    """Weights with which every name counts the same, mean 1."""
    found, at, counts = np.unique(names, return_inverse=True, return_counts=True)
    weights: np.ndarray = len(names) / len(found) / counts[at]
    return weights


def fit_polarity(frontal: Sequence[Sample]) -> np.ndarray:
    """Weights [P] that tell a film from its negative, data sets counting the same."""
    rank_BP = np.stack([shrink_ranks(s.rank_YX, 32).ravel() for s in frontal])
    weight_B = balance(np.array([s.picture.source for s in frontal]))
    model = LogisticRegression(C=POLARITY_C, fit_intercept=False, max_iter=500)
    bright = np.repeat([1, 0], len(rank_BP))
    model.fit(np.concatenate([rank_BP, -rank_BP]), bright, sample_weight=np.tile(weight_B, 2))
    return model.coef_[0].astype(np.float32)


@dataclass(frozen=True)
class KindFitter:
    """Features of every sample, computed once, for fits that leave some of them out."""

    polarity_P: np.ndarray
    feature_BF: np.ndarray
    kind_B: np.ndarray
    source_B: np.ndarray
    group_B: np.ndarray

    @classmethod
    def of(cls, samples: Sequence[Sample], polarity_P: np.ndarray) -> "KindFitter":
        """Compute the features of samples."""
        feature_BF = np.stack([compute_kind_features(s.rank_YX, polarity_P) for s in samples])
        pictures = [s.picture for s in samples]
        columns = (np.array([getattr(p, name) for p in pictures]) for name in ("kind", "source", "group"))
        return cls(polarity_P, feature_BF, *columns)

    def fit(self, kept_B: np.ndarray) -> FilmClassifier:
        """Tell frontal films, lateral films and others apart; each kind, and each source in it, counts the same."""
        kind_B, source_B, feature_BF = self.kind_B[kept_B], self.source_B[kept_B], self.feature_BF[kept_B]
        weight_B = np.zeros(len(kind_B))
        for kind in range(len(KINDS)):
            of_kind = kind_B == kind
            weight_B[of_kind] = balance(source_B[of_kind]) * len(kind_B) / len(KINDS) / of_kind.sum()
        center_F, scale_F = feature_BF[kind_B == 0].mean(0), feature_BF[kind_B == 0].std(0) + 1e-6
        model = LogisticRegression(C=KIND_C, max_iter=1000)
        model.fit((feature_BF - center_F) / scale_F, kind_B, sample_weight=weight_B)
        kind_CF, kind_C = model.coef_.astype(np.float32), model.intercept_.astype(np.float32)
        return FilmClassifier(self.polarity_P, center_F, scale_F, kind_CF, kind_C)


def score(pictures: Iterable[np.ndarray], classifier: FilmClassifier) -> Scores:
    """Run both classifiers."""
    rows = []
    for pixels in pictures:
        rank_YX = compute_thumbnail(pixels).rank_YX
        rows.append((compute_polarity_logit(rank_YX, classifier.polarity_P), *compute_kinds(rank_YX, classifier)))
    polarity, _, lateral, not_chest = np.array(rows).reshape(-1, 4).T
    return Scores(polarity, lateral, not_chest)


def rate(hits: np.ndarray) -> dict[str, float]:
    """Share of hits with its 95 % Wilson interval, which holds also where there is none."""
    count, total = int(hits.sum()), len(hits)
    low, high = binomtest(count, total).proportion_ci(method="wilson")
    return {"count": count, "of": total, "rate": count / total, "low": low, "high": high}


def measure_polarity(test: Sequence[Picture], classifier: FilmClassifier, rng: np.random.Generator) -> dict:
    """Errors on films of patients that were not fitted, as they are, as negatives, and on their way mistreated."""

    def count_wrong(pictures: Sequence[np.ndarray]) -> dict:
        right, turned = score(pictures, classifier), score([1 - p for p in pictures], classifier)
        return {"as they are": rate(right.polarity < 0), "negatives": rate(turned.polarity >= 0)}

    by_source = {
        source: count_wrong([p.pixels for p in test if p.source == source])
        for source in sorted({p.source for p in test})
    }
    distorted = {
        f"cropped, marked, bordered, turned {angle} degrees": count_wrong(
            [distort(p.pixels, rng, angle + rng.uniform(-10, 10)) for p in test]
        )
        for angle in (0, 90, 180)
    }
    return {"all": count_wrong([p.pixels for p in test])} | by_source | distorted


def measure_other_sets(pool: Sequence[Picture], samples: Sequence[Sample]) -> dict:
    """Fit the polarity without one data set, measure it on all films of that set."""
    measured = {}
    for source in sorted({p.source for p in pool}):
        polarity_P = fit_polarity([s for s in samples if s.picture.source != source])
        thumbnails = [compute_thumbnail(p.pixels) for p in pool if p.source == source]
        logit = np.array([compute_polarity_logit(t.rank_YX, polarity_P) for t in thumbnails])
        negatives = [compute_thumbnail(1 - p.pixels) for p in pool if p.source == source]
        negative = np.array([compute_polarity_logit(t.rank_YX, polarity_P) for t in negatives])
        measured[f"{source} (not fitted)"] = {"as they are": rate(logit < 0), "negatives": rate(negative >= 0)}
    return measured


def measure_rare(fitter: KindFitter, rare: Sequence[Picture], options: QualityOptions) -> dict:
    """What is found of lateral films, CT slices and limbs when their patient, or all their kind, was not fitted."""
    measured: dict[str, dict] = {}
    for source in ("lateral", "ct", "limb"):
        of_source = [p for p in rare if p.source == source]
        found = [_score_left_out(fitter, p, fitter.group_B != p.group) for p in of_source]
        measured[f"{source}, patient not fitted"] = _count_found(found, source, options)
        if source != "lateral":
            found = [_score_left_out(fitter, p, fitter.source_B != source) for p in of_source]
            measured[f"{source}, kind not fitted"] = _count_found(found, source, options)
    return measured


_fits: dict[bytes, FilmClassifier] = {}


def _score_left_out(fitter: KindFitter, picture: Picture, kept_B: np.ndarray) -> Scores:
    key = np.packbits(kept_B).tobytes()
    if key not in _fits:
        _fits[key] = fitter.fit(kept_B)
    return score([picture.pixels], _fits[key])


def _count_found(found: Sequence[Scores], source: str, options: QualityOptions) -> dict:
    lateral = np.array([s.lateral[0] for s in found])
    other = np.array([s.not_chest[0] for s in found])
    counts = {"scores": [round(float(v), 3) for v in (lateral if source == "lateral" else other)]}
    if source == "lateral":
        return counts | {"called lateral": rate(lateral >= options.lateral_flag)}
    return counts | {
        "flagged not_chest": rate(other >= options.not_chest_flag),
        "left out": rate(other >= options.not_chest_reject),
    }


def measure_unseen(data: Path, photographs: Path | None, classifier: FilmClassifier, options: QualityOptions) -> dict:
    """What is found of kinds of picture that no weight has seen."""
    # pydicom's own list of files, never its download.
    dicoms = [get_testdata_file(name, download=False) for name in OTHER_DICOM]
    kinds = {
        "slices and pictures of pydicom": [read_film(Path(name)) for name in dicoms if name],
        "pieces of projected CT": [read_film(path) for path in sorted((data / "ct_nodules/proj").glob("*.png"))],
    }
    if photographs is not None:
        kinds["photographs"] = [
            shrink(grey.astype(np.float32) / 255)
            for path in sorted(photographs.iterdir())
            if (grey := cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)) is not None and min(grey.shape) >= 100
        ]
    found = {name: score(pictures, classifier).not_chest for name, pictures in kinds.items()}
    return {
        name: {
            "flagged not_chest": rate(values >= options.not_chest_flag),
            "left out": rate(values >= options.not_chest_reject),
        }
        for name, values in found.items()
    }


def measure_phantom(classifier: FilmClassifier, options: QualityOptions) -> dict:
    """False alarms on generated (SYNTHETIC) films, which are chest films but nothing that was fitted."""
    films = [render_film(draw_anatomy(seed), draw_exposure(seed), size=256).pixels / 4095 for seed in range(100)]
    pictures = [shrink(film.astype(np.float32)) for film in films]
    found, negative = score(pictures, classifier), score([1 - p for p in pictures], classifier)
    return {
        "polarity wrong": rate(found.polarity < 0),
        "polarity of negatives wrong": rate(negative.polarity >= 0),
        "called lateral": rate(found.lateral >= options.lateral_flag),
        "flagged not_chest": rate(found.not_chest >= options.not_chest_flag),
        "left out": rate(found.not_chest >= options.not_chest_reject),
    }


def measure_alarms(films: Sequence[Picture], classifier: FilmClassifier, options: QualityOptions) -> dict:
    """False alarms on frontal films: films for which the picture or its negative raises one."""
    measured = {}
    for source in ("all", *sorted({p.source for p in films})):
        pictures = [p.pixels for p in films if source in ("all", p.source)]
        found, negative = score(pictures, classifier), score([1 - p for p in pictures], classifier)
        lateral, other = (np.maximum(getattr(found, n), getattr(negative, n)) for n in ("lateral", "not_chest"))
        measured[source] = {
            "called lateral": rate(lateral >= options.lateral_flag),
            "flagged not_chest": rate(other >= options.not_chest_flag),
            "left out": rate(other >= options.not_chest_reject),
            "highest": {"lateral": float(lateral.max()), "not_chest": float(other.max())},
        }
    return measured


def measure_flags(films: Sequence[Picture], options: QualityOptions) -> dict:
    """How often each flag is raised on films as they are, and films left out; nothing says which of them should be."""
    judged = [judge_film(p.pixels, FilmHeader(), SIDE, SIDE, options) for p in films]
    measured = {}
    for source in ("all", *sorted({p.source for p in films})):
        mine = [q for q, p in zip(judged, films, strict=True) if source in ("all", p.source)]
        flags = ("inverted", "lateral", "not_chest", "low_contrast", "collimated")
        measured[source] = {flag: rate(np.array([flag in q.flags for q in mine])) for flag in flags}
        measured[source]["left out"] = rate(np.array([bool(q.reject) for q in mine]))
    return measured


def measure_marked(data: Path) -> dict:
    """Probability that single real files are inverted, as decoded by their tags."""
    names = ["dicom/siim_850819.dcm", "dicom/siim_850819_fake_MONOCHROME1.dcm", "dicom/966_fixed.dcm"]
    names += ["dicom/RG1_J2KI.dcm", "nasty/image/inverted.png"]
    names += [str(path.relative_to(data)) for path in sorted((data / "bone_pairs/source").glob("*.png"))]
    inverted = {}
    for name in names:
        pixels = decode_film(data / name).pixels
        judged = judge_film(pixels, FilmHeader(), *pixels.shape, QualityOptions())
        inverted[name] = round(judged.scores["inverted"], 3)
    return inverted


def main() -> None:
    """Fit, write the weights, measure."""
    data, written = Path(sys.argv[1]), Path(sys.argv[2])
    photographs = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    rng, options = np.random.default_rng(0), QualityOptions()
    pool, rare = read_pool(data), read_rare(data)
    part = {name: [p for p in pool if p.part == name] for name in ("fit", "tune", "test")}
    frontal = draw_samples(part["fit"], DRAWS, rng)
    others = draw_samples(rare, DRAWS_RARE, rng) + draw_samples(draw_made_up(rng, part["fit"]), DRAWS_MADE_UP, rng)
    polarity_P = fit_polarity(frontal)
    fitter = KindFitter.of([*frontal, *others], polarity_P)
    classifier = fitter.fit(np.ones(len(fitter.kind_B), dtype=bool))
    np.savez_compressed(WEIGHTS, **asdict(classifier))
    measured = {
        "films": {name: len(pictures) for name, pictures in part.items()},
        "side of the pictures": SIDE,
        "polarity": measure_polarity(part["test"], classifier, rng),
        "polarity across data sets": measure_other_sets(pool, frontal),
        "false alarms, tune": measure_alarms(part["tune"], classifier, options),
        "false alarms, test": measure_alarms(part["test"], classifier, options),
        "flags, fit and tune": measure_flags([*part["fit"], *part["tune"]], options),
        "flags, test": measure_flags(part["test"], options),
        "found": measure_rare(fitter, rare, options),
        "found, never fitted": measure_unseen(data, photographs, classifier, options),
        "phantom (SYNTHETIC)": measure_phantom(classifier, options),
        "inverted, single files": measure_marked(data),
    }
    written.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
