"""How well the audit finds copies among real films, and what it costs: the figures of docs/proof/audit.md.

usage: OMP_NUM_THREADS=1 python runs/audit_films.py DATA OUT [PART...]      DATA: the folder that holds pool.csv

Ingests the pool (kermany3, nih_covid, covid_cxnet, jsrt), jsrt alone and bone_pairs as `chess-cxr ingest` does, then
runs the parts: hash, thorough (both on the pool), figures (bone_pairs among jsrt), threshold (bone_pairs in the pool),
buckets (hashes of the last two together), films (time a film).  About 15 minutes in all on one core; times are CPU
times.  What an audit found stays in OUT, one CSV a part, and is not searched for again.

audit_judged.csv beside this file says of pairs of files whether they show one exposure, judged by eye.
"""

import csv
import hashlib
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from is_complete import is_complete
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from chess_cxr.audit.audit import audit_stores
from chess_cxr.audit.matching import compute_detail, match_films
from chess_cxr.audit.near import find_near_hashes, unpack_hashes
from chess_cxr.audit.options import AuditOptions
from chess_cxr.ingest.hashes import compute_hashes
from chess_cxr.store import Store, open_store

DUPLICATE = AuditOptions().duplicate_similarity
HINT = AuditOptions().similarity
MISSED_SHOWN = 5
LEAST = 0.6  # everything from here on was judged by eye
SEARCHES = {
    "hash": (("pool",), False),
    "thorough": (("pool",), True),
    "figures": (("jsrt", "bone_pairs"), True),
    "threshold": (("pool", "bone_pairs"), True),
}
# Where the README of bone_pairs says that its figures come from.
ORIGINS = dict(enumerate(("JPCLN098", "JPCNN016", "JPCNN084", "JPCNN059", "JPCLN006", "JPCLN067")))


def ingest(data: Path, out: Path, name: str) -> Store:
    """Ingest one set, unless it was; bone_pairs with what the picture alone calls no chest, its suppressed films."""
    store = out / f"{name}.lance"
    if not is_complete(str(store)):
        words = {
            "pool": [data, "--table", data / "pool.csv", "--columns", "path=file", "patient=patient"],
            "jsrt": [data / "jsrt/images"],
            "bone_pairs": [data / "bone_pairs/source", data / "bone_pairs/target", "--quality.no-quarantine-not-chest"],
        }[name]
        words += ["--out", store, "--id-map", out / f"{name}.ids.csv", "--site", name, "--quiet"]
        # Public films: a published key makes the hashed ids the same for everybody.
        environment = os.environ | {"CHESS_CXR_ID_KEY": "chess-cxr audit of public films"}
        subprocess.run([sys.executable, "-m", "chess_cxr", "ingest", *map(str, words)], check=True, env=environment)
    return open_store(store)


def read_names(data: Path, out: Path, name: str) -> dict[str, str]:
    """Read the file of every hashed uid, relative to DATA."""
    with (out / f"{name}.ids.csv").open(encoding="utf-8", newline="") as file:
        return {row["uid"]: str(Path(row["path"]).relative_to(data)) for row in csv.DictReader(file)}


def search(data: Path, out: Path, part: str) -> pd.DataFrame:
    """Return all pairs with a similarity of `LEAST` or more, with the names of their files; kept in OUT."""
    kept = out / f"{part}.csv"
    names, thorough = SEARCHES[part]
    if kept.exists():
        print(f"\n{part}: found by an earlier run ({kept.name})")
        return pd.read_csv(kept)
    options = AuditOptions(similarity=LEAST, duplicate_similarity=LEAST, thorough=thorough, threads=1, shown=0)
    stores = [ingest(data, out, name) for name in names]
    started = time.process_time()
    result = audit_stores(stores, options=options)
    seconds = time.process_time() - started
    print(f"\n{part}: {sum(result.films.values()):,} films of {' and '.join(names)}, {seconds:.0f} CPU seconds")
    files = {f"{name}.lance": read_names(data, out, name) for name in names}
    pairs = result.pairs
    for end in ("first", "second"):
        uids = zip(pairs[f"{end}_store"], pairs[f"{end}_uid"], strict=True)
        pairs[end] = [files[store][uid] for store, uid in uids]
    columns = ["first", "second", "kind", "similarity", "points", "transform", "same_patient"]
    pairs[columns].to_csv(kept, index=False)
    return pairs[columns]


def read_judged() -> dict[frozenset[str], bool]:
    """Read which pairs of files were judged to be one exposure by eye."""
    table = pd.read_csv(Path(__file__).with_name("audit_judged.csv"))
    pairs = zip(table["first"], table["second"], table["one_exposure"], strict=True)
    return {frozenset((first, second)): bool(same) for first, second, same in pairs}


def read_listed(data: Path) -> set[frozenset[str]]:
    """Read the near duplicates that pool.csv lists."""
    pool = pd.read_csv(data / "pool.csv").dropna(subset="near_duplicate_of")
    return {frozenset(pair) for pair in zip(pool["file"], pool["near_duplicate_of"], strict=True)}


def mark(pairs: pd.DataFrame, listed: set[frozenset[str]]) -> pd.DataFrame:
    """Add what is known of each pair: listed, sets, and the judgement ("" where nobody looked)."""
    judged = read_judged()
    both = [frozenset(pair) for pair in zip(pairs["first"], pairs["second"], strict=True)]
    sets = [" and ".join(sorted(name.partition("/")[0] for name in pair)) for pair in both]
    told = [{True: "one exposure", False: "two"}.get(judged.get(pair), "") for pair in both]
    return pairs.assign(listed=[pair in listed for pair in both], sets=sets, judged=told, pair=both)


def tell(pairs: pd.DataFrame, listed: set[frozenset[str]], within: tuple[str, ...]) -> None:
    """Print how many pairs count as duplicates, which of them are known, and which known ones are missing."""
    found = pairs[pairs["similarity"] >= DUPLICATE]
    one_exposure = [pair for pair, same in read_judged().items() if same]
    known = {pair for pair in one_exposure if all(name.startswith(within) for name in pair)}
    equal = (found["kind"] == "same pixels").sum()
    print(f"  pairs reported at {DUPLICATE:g}: {len(found)}, with equal pixels {equal}")
    print(f"  judged: {dict(Counter(found['judged']))}; one exposure in all {len(known)}")
    if "covid_cxnet" in within:
        print(f"  listed in pool.csv: {found['listed'].sum()} of {len(listed)}")
        print(f"  beyond the list: {(~found['listed']).sum()}, {dict(Counter(found.loc[~found['listed'], 'sets']))}")
    for row in found[found["judged"] == "two"].itertuples():
        print(f"  FALSE: {row.first} and {row.second}, similarity {row.similarity:.3f}")
    missed = sorted(map(sorted, known - set(found["pair"])))
    print(f"  one exposure, not reported: {len(missed)}")
    for pair in missed[:MISSED_SHOWN]:
        rest = pairs.loc[pairs["pair"] == frozenset(pair), "similarity"]
        why = f"similarity {rest.iloc[0]:.3f}" if len(rest) else "never compared, or too few points in common"
        print(f"    {' and '.join(pair)} ({why})")
    hints = pairs[(pairs["similarity"] < DUPLICATE) & (pairs["similarity"] >= HINT)]
    for row in hints[~hints["same_patient"].astype(bool)].itertuples():
        print(f"  hint: {row.first} and {row.second}, similarity {row.similarity:.3f}, {row.judged or 'NOT JUDGED'}")
    for row in pairs[(pairs["judged"] == "") & (pairs["similarity"] >= LEAST)].itertuples():
        print(f"  not judged: {row.first} and {row.second}, similarity {row.similarity:.3f}")


def tell_figures(pairs: pd.DataFrame) -> None:
    """Print with what each film of bone_pairs was paired."""
    found = pairs[pairs["similarity"] >= DUPLICATE]
    partners: dict[str, list[str]] = {}
    for row in found.itertuples():
        for one, other in ((row.first, row.second), (row.second, row.first)):
            partners.setdefault(one, []).append(f"{other} ({row.transform}, {row.similarity:.2f})")
    sources = sorted({name for name in partners if name.startswith("bone_pairs/source")})
    beside = sum(any(name.replace("source", "target") in other for other in partners[name]) for name in sources)
    print(f"  targets found beside their source: {beside} of 16")
    originals = {name: [other for other in partners[name] if other.startswith("jsrt/")] for name in sources}
    right = 0
    for number, case in ORIGINS.items():
        found_as = originals.get(f"bone_pairs/source/jsrtbse_fig{number}.png", [])
        right += [other.split()[0] for other in found_as] == [f"jsrt/images/{case}.png"]
    print(f"  figures with a known origin, found with that film of jsrt and no other: {right} of {len(ORIGINS)}")
    for name in sources:
        print(f"  {name}: {'; '.join(originals[name]) or 'no film of jsrt'}")


def tell_threshold(pairs: pd.DataFrame) -> None:
    """Print for each half of the films, copies kept together, where duplicates end and other pairs begin."""
    names = sorted({*pairs["first"], *pairs["second"]})
    place = {name: number for number, name in enumerate(names)}
    ends = [[place[name] for name in pairs[end]] for end in ("first", "second")]
    group = connected_components(coo_matrix((np.ones(len(pairs)), ends), (len(names),) * 2), directed=False)[1]
    head = {int(number): name for name, number in zip(names[::-1], group[::-1], strict=True)}
    half = {number: hashlib.sha256(name.encode()).digest()[0] % 2 for number, name in head.items()}
    parts = np.array([half[int(group[number])] for number in ends[0]])
    for part in (0, 1):
        own = pairs[parts == part]
        is_one = own["judged"] == "one exposure"
        same, other = np.sort(own.loc[is_one, "similarity"]), np.sort(own.loc[~is_one, "similarity"])
        print(f"  half {part}: {len(same)} duplicates from {same[:3].round(3)}, others up to {other[-3:].round(3)}")
        for threshold in (0.8, DUPLICATE, 0.9):
            reported = own["similarity"] >= threshold
            print(f"    at {threshold:g}: {(reported & is_one).sum()} of {len(same)} found, {reported.sum()} reported")


def tell_buckets(data: Path, out: Path, listed: set[frozenset[str]]) -> None:
    """Print which near hashes of real films the search by buckets misses."""
    hashes, names = [], []
    for name in ("pool", "bone_pairs"):
        store, files = ingest(data, out, name), read_names(data, out, name)
        hashes += store.read_hashes()["perceptual_hash"].tolist()
        names += [files[uid] for uid in store.films["uid"]]
    hash_ND = unpack_hashes(hashes)
    exact, buckets = find_near_hashes(hash_ND), find_near_hashes(hash_ND, exact_below=0)
    missed = set(zip(exact.first.tolist(), exact.second.tolist(), strict=True))
    kept = set(zip(buckets.first.tolist(), buckets.second.tolist(), strict=True))
    print(f"\nbuckets: {len(names):,} films, {len(missed):,} pairs with a cosine of 0.93 or more")
    for least in (0.95, 0.97, 0.99):
        near = exact.similarity >= least
        pairs = zip(exact.first[near].tolist(), exact.second[near].tolist(), strict=True)
        print(f"  of pairs above {least}: {sum(pair in kept for pair in pairs)} of {near.sum()} found")
    for name, pairs in (("exact", missed), ("buckets", kept)):
        print(f"  listed, {name}: {len({frozenset((names[a], names[b])) for a, b in pairs} & listed)} of {len(listed)}")


def tell_films(data: Path, out: Path) -> None:
    """Print the CPU time that a film takes, medians over every 30th film of the pool."""
    store = ingest(data, out, "pool")
    films = store.read_films(range(0, len(store), 30))
    square = [cv2.resize(film, (512, 512)).astype(np.float32) / 255 for film in films]
    details, times = [], {"hash at 512²": [], "points": [], "compare two of one picture": [], "compare two others": []}

    def clock(name: str, work, *arguments):
        started = time.process_time()
        done = work(*arguments)
        times[name].append(1000 * (time.process_time() - started))
        return done

    for film, large in zip(films, square, strict=True):
        clock("hash at 512²", compute_hashes, large)
        details.append(clock("points", compute_detail, film))
    for first, second in zip(details, details[1:], strict=False):
        clock("compare two others", match_films, first, second, False, False)
        clock("compare two of one picture", match_films, first, first, False, False)
    size = np.mean([sum(part.nbytes for part in vars(detail).values()) for detail in details])
    print(f"\nfilms: {len(films)} of the pool; detail of a film {size / 1e6:.2f} MB")
    for name, taken in times.items():
        low, middle, high = np.percentile(taken, (10, 50, 90))
        print(f"  {name}: {middle:.1f} ms (10 to 90 %: {low:.1f} to {high:.1f})")


def main(data: Path, out: Path, parts: list[str]) -> None:
    """Run the parts, or all."""
    cv2.setNumThreads(1)
    out.mkdir(parents=True, exist_ok=True)
    listed, pool = read_listed(data), ("kermany3", "nih_covid", "covid_cxnet", "jsrt")
    for part in parts or [*SEARCHES, "buckets", "films"]:
        if part == "buckets":
            tell_buckets(data, out, listed)
        elif part == "films":
            tell_films(data, out)
        else:
            pairs = mark(search(data, out, part), listed)
            within = {"figures": ("jsrt", "bone_pairs"), "threshold": (*pool, "bone_pairs")}.get(part, pool)
            tell(pairs, listed, within)
            if part == "figures":
                tell_figures(pairs)
            if part == "threshold":
                tell_threshold(pairs)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
