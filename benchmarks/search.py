"""Milliseconds a query and recall of exact search, Lance's index and faiss, on SYNTHETIC vectors.

usage: OMP_NUM_THREADS=1 LANCE_CPU_THREADS=1 python benchmarks/search.py [--films 1000000] [--width 368] [--queries 50]
                                                                         [--kinds clustered random] [--store STORE]

clustered: unit vectors around 1,000 centres, with a mean cosine to the centre of 0.75.  random: without any structure,
which no index of inverted lists can use.  --store: the features of a store's first encoder instead, repeated with noise
up to so many films.  Queries are noisy copies of vectors (cosine 0.9).  CPU milliseconds are of all threads; on a busy
machine they say more than the wall clock.  faiss needs the extra `bench`.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from chess_cxr.evaluation.neighbours import make_unit
from chess_cxr.search.archive import Archive, find_largest
from chess_cxr.search.index import build_table, search_table
from chess_cxr.store import open_store
from peers import import_peer

faiss = import_peer("faiss")
AT = 10
CENTRES, SPREAD = 1000, 0.88  # noise beside a centre of length 1: a cosine of 0.75


def draw_vectors(kind: str, films: int, width: int, rng: np.random.Generator) -> np.ndarray:
    centre_CD = make_unit(rng.normal(size=(CENTRES, width))).astype(np.float32)
    unit_ND = np.empty((films, width), np.float32)
    for start in range(0, films, 50_000):
        part = rng.standard_normal((min(50_000, films - start), width), np.float32)
        if kind == "clustered":
            part = centre_CD[rng.integers(CENTRES, size=len(part))] + SPREAD / width**0.5 * part
        unit_ND[start : start + len(part)] = make_unit(part)
    return unit_ND


def repeat_features(store: Path, films: int, rng: np.random.Generator) -> np.ndarray:
    opened = open_store(store)
    feature_ND = opened.read_embedding(next(iter(opened.embeddings)))
    unit_ND = make_unit(feature_ND - feature_ND.mean(0))
    out_ND = np.empty((films, unit_ND.shape[1]), np.float32)
    for start in range(0, films, 50_000):
        part = unit_ND[rng.integers(len(unit_ND), size=min(50_000, films - start))]
        noise = rng.standard_normal(part.shape, np.float32) * (0.5 / part.shape[1] ** 0.5)
        out_ND[start : start + len(part)] = make_unit(part + noise)
    return out_ND


def time_queries(
    name: str, find: Callable[[np.ndarray], np.ndarray], query_QD: np.ndarray, exact: list[np.ndarray]
) -> None:
    find(query_QD[0])
    wall, cpu, hits = list[float](), list[float](), 0
    for query_D, right in zip(query_QD, exact, strict=True):
        begun, begun_cpu = time.perf_counter(), time.process_time()
        found = find(query_D)
        wall.append(1000 * (time.perf_counter() - begun))
        cpu.append(1000 * (time.process_time() - begun_cpu))
        hits += len(np.intersect1d(found, right))
    recall = hits / (AT * len(query_QD))
    middle = f"{np.median(cpu):.1f} CPU ms, {np.median(wall):.1f} ms by the wall clock"
    print(f"  {name:24} {middle} (medians), recall@{AT} {recall:.3f}", flush=True)


def compare(unit_ND: np.ndarray, query_QD: np.ndarray) -> None:
    films, width = unit_ND.shape
    archive = Archive(None, np.zeros(width), unit_ND)  # type: ignore[arg-type]
    exact = [find_largest(unit_ND @ query_D, AT) for query_D in query_QD]
    time_queries("exact, numpy", lambda query_D: archive.find_nearest(query_D, AT)[0], query_QD, exact)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        table = build_table(unit_ND, Path(folder) / "index")
        print(f"  Lance index built in {time.perf_counter() - begun:.0f} s", flush=True)
        time_queries(
            "Lance, as the search uses it", lambda query_D: search_table(table, folder, query_D, AT)[0], query_QD, exact
        )
    faiss.omp_set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    lists = max(1, round(films**0.5))
    for form in ("Flat", f"IVF{lists},SQ8"):
        index = faiss.index_factory(width, form, faiss.METRIC_INNER_PRODUCT)
        begun = time.perf_counter()
        index.train(unit_ND[:: max(1, films // (64 * lists))])
        index.add(unit_ND)
        print(f"  faiss {form} built in {time.perf_counter() - begun:.0f} s", flush=True)
        if form != "Flat":
            index.nprobe = 32
        time_queries(f"faiss {form}", lambda query_D, at=index: at.search(query_D[None], AT)[1][0], query_QD, exact)
        del index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=368)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--kinds", nargs="+", default=["clustered", "random"])
    parser.add_argument("--store", type=Path)
    asked = parser.parse_args()
    for kind in ["store"] if asked.store else asked.kinds:
        rng = np.random.default_rng(0)
        if asked.store:
            unit_ND = repeat_features(asked.store, asked.films, rng)
        else:
            unit_ND = draw_vectors(kind, asked.films, asked.width, rng)
        near_QD = unit_ND[rng.integers(asked.films, size=asked.queries)]
        noise_QD = make_unit(rng.normal(size=near_QD.shape))
        query_QD = make_unit(0.9 * near_QD + 0.436 * noise_QD).astype(np.float32)
        print(f"{kind}: {asked.films:,} x {unit_ND.shape[1]} (SYNTHETIC)", flush=True)
        compare(unit_ND, query_QD)


if __name__ == "__main__":
    main()
