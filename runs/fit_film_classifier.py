"""Fit the classifiers of chess_cxr.ingest.film_classifier on real films, and measure them on films not seen.

usage: python runs/fit_film_classifier.py DATA MEASURED.json [PHOTOGRAPHS]

DATA holds pool_wide.csv, nasty, dicom, bone_jsrt, bone_pairs and ct_nodules.  All films fit the weights.  The same fit
is repeated without each data set, and all films of that set are judged by it; the thresholds of QualityOptions were
chosen on these scores.  It is repeated once more on 60 % of the patients, and the films of the other 40 % are measured.
Near duplicates that pool_wide.csv lists are left out.  No disease label is read.  The weights go where the package
keeps them.  PHOTOGRAPHS: a folder of pictures that are no films, only measured, such as the data of scikit-image.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from film_fits import KindFitter, PolarityFitter, Scores, draw_samples
from film_pictures import (
    EARLIER,
    SIDE,
    Picture,
    distort,
    draw_made_up,
    read_other_films,
    read_pool,
    read_rare,
    shrink,
)
from scipy.stats import binomtest
from screen_pictures import read_unseen

from chess_cxr.decode.decoded import FilmHeader
from chess_cxr.decode.film import decode_film
from chess_cxr.ingest import film_classifier
from chess_cxr.ingest.film_classifier import (
    FilmClassifier,
    compute_kinds,
    compute_polarity_logit,
    compute_thumbnail,
    load_film_classifier,
)
from chess_cxr.ingest.options import QualityOptions
from chess_cxr.ingest.quality import judge_film
from chess_cxr.sources.phantom.film import draw_anatomy, draw_exposure, render_film

WEIGHTS = Path(film_classifier.__file__).with_suffix(".npz")
DRAWS, DRAWS_SMALL = 3, 7  # copies of a film that is fitted: of a set of thousands, of a smaller set
DRAWS_RARE = 60  # ... of a lateral film, a CT slice or a limb, of which there are few
DRAWS_MADE_UP = 2
DRAWS_POLARITY = 6  # ... of a film whose polarity is fitted
SMALL_SET = 1000
REJECT_MARGIN = 0.5  # log odds between the highest score of a chest film and the threshold
NIH = ("nih_adult", "nih_covid", "rsna_normal")  # one hospital's films, in three sets


def score(pictures: Iterable[np.ndarray], classifier: FilmClassifier) -> Scores:
    """Run both classifiers."""
    rows = []
    for pixels in pictures:
        rank_YX = compute_thumbnail(pixels).rank_YX
        rows.append((compute_polarity_logit(rank_YX, classifier.polarity_P), *compute_kinds(rank_YX, classifier)))
    polarity, _, lateral, not_chest = np.array(rows).reshape(-1, 4).T
    return Scores(polarity, lateral, not_chest)


def rate(hits: np.ndarray) -> dict[str, float]:
    """Return the share of hits with its 95 % Wilson interval, which holds also where there is none."""
    count, total = int(hits.sum()), len(hits)
    low, high = binomtest(count, total).proportion_ci(method="wilson")
    return {"count": count, "of": total, "rate": count / total, "low": low, "high": high}


def measure_polarity(test: Sequence[Picture], classifier: FilmClassifier, rng: np.random.Generator) -> dict:
    """Measure errors on films of patients that were not fitted: as they are, as negatives, and distorted."""
    source_B = np.array([p.source for p in test])
    earlier_B = np.isin(source_B, EARLIER)

    def count_wrong(pictures: Sequence[np.ndarray], chosen: dict[str, np.ndarray]) -> dict:
        right, turned = score(pictures, classifier), score([1 - p for p in pictures], classifier)
        return {
            name: {"as they are": rate(right.polarity[of_B] < 0), "negatives": rate(turned.polarity[of_B] >= 0)}
            for name, of_B in chosen.items()
        }

    all_B = np.ones(len(test), dtype=bool)
    by_source = {source: source_B == source for source in sorted(set(source_B))}
    measured = count_wrong([p.pixels for p in test], {"all": all_B} | by_source)
    for angle in (0, 90, 180):
        name = f"cropped, marked, bordered, turned {angle} degrees"
        mistreated = [distort(p.pixels, rng, angle + rng.uniform(-10, 10)) for p in test]
        measured |= count_wrong(mistreated, {name: all_B, f"{name}, the four earlier sets": earlier_B})
    return measured


@dataclass(frozen=True)
class LeftOut:
    """How films of sets that were not fitted, and their negatives, are judged by the fit without these sets."""

    as_they_are: Scores
    negatives: Scores

    @property
    def not_chest(self) -> np.ndarray:
        """Return the worse of the two scores of each film."""
        return np.maximum(self.as_they_are.not_chest, self.negatives.not_chest)


def judge_sets(fitter: KindFitter, polarity: PolarityFitter, pool: Sequence[Picture], data: Path) -> dict[str, LeftOut]:
    """Judge each set by the fit without it; NIH's also without all of NIH; other films without what they resemble.

    Left out with a set are the pictures that were made of its films.
    """
    films, judged = [*pool, *read_other_films(data)], {}
    stack = KindFitter.of(draw_samples(films, 1, np.random.default_rng(0)))
    negatives = [replace(film, pixels=1 - film.pixels) for film in films]
    negative = KindFitter.of(draw_samples(negatives, 1, np.random.default_rng(0)))
    like_B = np.array([film.source if film.part in ("fit", "test") else film.part for film in films])
    for left in (*((name,) for name in sorted({p.source for p in pool})), NIH):
        polarity_P = polarity.fit(~np.isin(polarity.source_B, left))
        classifier = fitter.fit(~np.isin(fitter.source_B, left) & ~np.isin(fitter.group_B, left), polarity_P)
        for source in sorted(set(stack.source_B[np.isin(like_B, left)])):
            mine_B = stack.source_B == source
            name = source if len(left) == 1 else f"{source} (all NIH films left out)"
            judged[name] = LeftOut(stack.choose(mine_B).score(classifier), negative.choose(mine_B).score(classifier))
        print("judged", *left, file=sys.stderr, flush=True)
    return judged


def measure_sets(judged: dict[str, LeftOut], options: QualityOptions) -> dict:
    """Measure polarity errors and false alarms by set, of films as they are, of negatives, and of the worse of both."""
    return {
        name: {
            "polarity wrong": rate(films.as_they_are.polarity < 0),
            "polarity of negatives wrong": rate(films.negatives.polarity >= 0),
            "called lateral": rate(films.as_they_are.lateral >= options.lateral_flag),
            "flagged not_chest": rate(films.as_they_are.not_chest >= options.not_chest_flag),
            "left out": rate(films.as_they_are.not_chest >= options.not_chest_reject),
            "flagged not_chest, film or negative": rate(films.not_chest >= options.not_chest_flag),
            "left out, film or negative": rate(films.not_chest >= options.not_chest_reject),
            "highest not_chest": [round(float(v), 4) for v in np.sort(films.not_chest)[:-6:-1]],
        }
        for name, films in judged.items()
    }


def measure_nested(judged: dict[str, LeftOut], sources: Sequence[str]) -> dict:
    """Judge each set by thresholds that only the other sets chose: at most 0.5 % of any of them flagged, none
    of them within REJECT_MARGIN of being left out.
    """
    logit = {name: to_logit(judged[name].not_chest) for name in sources}
    nested = {}
    for name in sources:
        others = [logit[other] for other in sources if other != name]
        flag = max(float(np.sort(v)[::-1][int(0.005 * len(v))]) for v in others)
        reject = max(float(v.max()) for v in others) + REJECT_MARGIN
        nested[name] = {
            "chosen flag": round(to_share(flag), 4),
            "chosen reject": round(to_share(reject), 4),
            "flagged not_chest": rate(logit[name] > flag),
            "left out": rate(logit[name] > reject),
        }
    return nested


def to_logit(probability: np.ndarray) -> np.ndarray:
    """Return log odds of float32 probabilities, which may be 1."""
    p = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    logit: np.ndarray = np.log(p / (1 - p))
    return logit


def to_share(logit: float) -> float:
    """Return the probability of log odds."""
    return float(1 / (1 + np.exp(-logit)))


def measure_rare(fitter: KindFitter, polarity_P: np.ndarray, rare: Sequence[Picture], options: QualityOptions) -> dict:
    """Measure what is found of lateral films, CT slices and limbs if their patient, or all their kind, is not fitted.

    One patient of each kind is left out at a time.
    """
    sources = ("lateral", "ct", "limb")
    patients = {source: sorted({p.group for p in rare if p.source == source}) for source in sources}
    found: dict[str, list[tuple[float, float]]] = {source: [] for source in sources}
    for number in range(max(map(len, patients.values()))):
        left = [groups[number] for groups in patients.values() if number < len(groups)]
        classifier = fitter.fit(~np.isin(fitter.group_B, left), polarity_P)
        for picture in (p for p in rare if p.group in left):
            scores = score([picture.pixels], classifier)
            found[picture.source].append((float(scores.lateral[0]), float(scores.not_chest[0])))
    measured = {f"{source}, patient not fitted": _count_found(found[source], source, options) for source in sources}
    classifier = fitter.fit(~np.isin(fitter.source_B, ["ct", "limb"]), polarity_P)
    for source in ("ct", "limb"):
        scores = score([p.pixels for p in rare if p.source == source], classifier)
        pairs = list(zip(scores.lateral, scores.not_chest, strict=True))
        measured[f"{source}, kind not fitted"] = _count_found(pairs, source, options)
    return measured


def _count_found(found: Sequence[tuple[float, float]], source: str, options: QualityOptions) -> dict:
    lateral, other = np.array(found).T
    counts = {"scores": [round(float(v), 4) for v in (lateral if source == "lateral" else other)]}
    if source == "lateral":
        return counts | {"called lateral": rate(lateral >= options.lateral_flag)}
    return counts | {
        "flagged not_chest": rate(other >= options.not_chest_flag),
        "left out": rate(other >= options.not_chest_reject),
    }


def measure_unseen(data: Path, photographs: Path | None, classifier: FilmClassifier, options: QualityOptions) -> dict:
    """Measure what is found of kinds of picture that no weight has seen."""
    kinds: dict[str, list[np.ndarray]] = {}
    for kind, pixels in read_unseen(data, photographs):
        kinds.setdefault(kind, []).append(shrink(pixels))
    found = {name: score(pictures, classifier).not_chest for name, pictures in kinds.items()}
    return {
        name: {
            "flagged not_chest": rate(values >= options.not_chest_flag),
            "left out": rate(values >= options.not_chest_reject),
        }
        for name, values in found.items()
    }


def measure_phantom(classifier: FilmClassifier, options: QualityOptions) -> dict:
    """Measure false alarms on generated (SYNTHETIC) films: chest films, but unlike any that was fitted."""
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
    """Measure false alarms on frontal films: those for which the picture or its negative raises one."""
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
    """Measure how often each flag is raised on films as they are, and how many are left out, rightly or not."""
    judged = [judge_film(p.pixels, FilmHeader(), SIDE, SIDE, options) for p in films]
    measured = {}
    for source in ("all", *sorted({p.source for p in films})):
        mine = [q for q, p in zip(judged, films, strict=True) if source in ("all", p.source)]
        flags = ("inverted", "lateral", "not_chest", "low_contrast", "collimated")
        measured[source] = {flag: rate(np.array([flag in q.flags for q in mine])) for flag in flags}
        measured[source]["left out"] = rate(np.array([bool(q.reject) for q in mine]))
    return measured


def measure_marked(data: Path) -> dict:
    """Return the probability that single real files, decoded by their tags, are inverted."""
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
    sources = sorted({p.source for p in pool})
    part = {name: [p for p in pool if p.part == name] for name in ("fit", "test")}
    small = {source for source in sources if sum(p.source == source for p in pool) < SMALL_SET}
    frontal = draw_samples([p for p in pool if p.source not in small], DRAWS, rng)
    frontal += draw_samples([p for p in pool if p.source in small], DRAWS_SMALL, rng)
    others = draw_samples(rare, DRAWS_RARE, rng) + draw_samples(draw_made_up(rng, part["fit"]), DRAWS_MADE_UP, rng)
    fitter = KindFitter.of([*frontal, *others])
    polarity = PolarityFitter.of(pool, DRAWS_POLARITY, rng)
    polarity_P = polarity.fit(np.ones(len(polarity.part_B), dtype=bool))
    np.savez_compressed(WEIGHTS, **asdict(fitter.fit(np.ones(len(fitter.kind_B), dtype=bool), polarity_P)))
    classifier = load_film_classifier()
    print("fitted", file=sys.stderr, flush=True)
    judged = judge_sets(fitter, polarity, pool, data)
    without_test = fitter.fit(fitter.part_B != "test", polarity.fit(polarity.part_B != "test"))
    measured = {
        "films": {name: len(pictures) for name, pictures in part.items()},
        "thresholds": {name: getattr(options, name) for name in ("not_chest_flag", "not_chest_reject", "lateral_flag")},
        "sets not fitted": measure_sets(judged, options),
        "sets not fitted, thresholds from the other sets": measure_nested(judged, sources),
        "polarity": measure_polarity(part["test"], without_test, rng),
        "false alarms, test": measure_alarms(part["test"], without_test, options),
        "flags as shipped, all films fitted": measure_flags(pool, options),
        "found": measure_rare(fitter, polarity_P, rare, options),
        "found, never fitted": measure_unseen(data, photographs, classifier, options),
        "phantom (SYNTHETIC)": measure_phantom(classifier, options),
        "inverted, single files": measure_marked(data),
    }
    written.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
