"""Find films with similar perceptual hashes, in any pose."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from chess_cxr.ingest.hashes import HASH_BYTES, HASH_VERSION, U, V
from chess_cxr.records import OnCount, UsageError

SWAPPED = np.array([np.flatnonzero((v == U) & (u == V))[0] for u, v in zip(U, V, strict=True)])
POSES = 16
BLOCK = 512
PART = 100 * BLOCK  # films worked on at once, so that millions need little memory besides their hashes
TABLES = 24
BUCKET = 32
EXACT_BELOW = 100_000


@dataclass(frozen=True)
class NearHashes:
    """Pairs of films with similar hashes: int64 [P] rows first < second; similarity: cosines, float32 [P].

    mirrored, inverted: bool [P], of the pose in which the hashes agree.
    """

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray
    mirrored: np.ndarray
    inverted: np.ndarray


def unpack_hashes(hashes: Sequence[bytes]) -> np.ndarray:
    """Unpack perceptual hashes into unit vectors, float32 [N, D]; their dot products are similarities.

    Raises `UsageError` for a hash of another version of this program.
    """
    if any(len(text) != HASH_BYTES or text[0] != HASH_VERSION for text in hashes):
        raise UsageError("the store's hashes are of another version of this program; ingest it again")
    hash_ND = np.empty((len(hashes), HASH_BYTES - 1), np.float32)
    for start in range(0, len(hashes), PART):
        packed = b"".join(hashes[start : start + PART])
        raw = np.frombuffer(packed, np.int8).reshape(-1, HASH_BYTES)[:, 1:].astype(np.float32)
        hash_ND[start : start + PART] = raw / np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-6)
    return hash_ND


def pose_hashes(hash_ND: np.ndarray, pose: int) -> np.ndarray:
    """Return the hashes of the films in another pose, from 0 (unchanged) to `POSES` - 1.

    Bits of pose: 1 left and right swapped, 2 top and bottom swapped, 4 rows and columns swapped (first), 8 inverted.
    """
    turned = hash_ND[:, SWAPPED] if pose & 4 else hash_ND
    sign_D = np.where((pose & 1) * V % 2, -1, 1) * np.where((pose >> 1 & 1) * U % 2, -1, 1) * (-1 if pose & 8 else 1)
    return np.asarray(turned * sign_D.astype(np.float32), np.float32)


def is_mirrored(pose: np.ndarray | int) -> np.ndarray:
    """Whether a pose is a mirror image, an odd number of the three swaps."""
    pose = np.asarray(pose)
    return np.asarray((pose ^ pose >> 1 ^ pose >> 2) & 1, bool)


def find_near_hashes(
    hash_ND: np.ndarray,
    similarity: float = 0.93,
    per_film: int = 8,
    exact_below: int = EXACT_BELOW,
    on_progress: OnCount | None = None,
) -> NearHashes:
    """Find pairs of films whose hashes reach a similarity (cosine) in any of the 16 poses.

    hash_ND: from `unpack_hashes`.  per_film: number of best pairs kept for each film, which bounds the cost of many
    similar films.  Up to `exact_below` films, all pairs are compared in blocks.  Above, only films that share a bucket
    in one of `TABLES` tables of random hyperplanes (Charikar 2002) are; the cost then grows with N log N and a few
    pairs are missed.
    on_progress: called with the finished pieces and the total.
    """
    walk = _walk_blocks if len(hash_ND) <= exact_below else _walk_buckets
    best = _BestPairs(len(hash_ND), per_film)
    for first, second, score in walk(hash_ND, similarity, on_progress or (lambda _done, _total: None)):
        best.add(first, second, score)
    return _judge_poses(hash_ND, *best.finish())


class _BestPairs:
    """Best pairs of each film; thinned now and then, so that memory grows with the number of films only."""

    def __init__(self, films: int, per_film: int) -> None:
        self._films, self._per_film = films, per_film
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._limit, self._held = max(4 * per_film * films, 1_000_000), 0

    def add(self, first: np.ndarray, second: np.ndarray, score: np.ndarray) -> None:
        key = np.minimum(first, second).astype(np.int64) * self._films + np.maximum(first, second)
        self._parts.append((key, score))
        self._held += len(key)
        if self._held > self._limit:
            self._thin()

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        self._thin()
        key, _ = self._parts[0]
        return key // self._films, key % self._films

    def _thin(self) -> None:
        key = np.concatenate([np.empty(0, np.int64), *(part[0] for part in self._parts)])
        score = np.concatenate([np.empty(0, np.float32), *(part[1] for part in self._parts)])
        key, place = np.unique(key, return_index=True)
        score = score[place]
        film = np.concatenate([key // self._films, key % self._films])
        order = np.lexsort((-np.tile(score, 2), film))
        rank = np.arange(len(order)) - np.searchsorted(film[order], film[order])
        keep = np.zeros(len(key), bool)
        keep[order[rank < self._per_film] % max(len(key), 1)] = True
        self._parts, self._held = [(key[keep], score[keep])], int(keep.sum())


def _walk_blocks(
    hash_ND: np.ndarray, similarity: float, on_progress: OnCount
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Compare every film with every other.

    Four products, one a parity, give all eight flips and polarities: the maximum of |±a ±b ±c ±d| over the signs of the
    poses is max(|a+d| + |b+c|, |a-d| + |b-c|).
    """
    films = len(hash_ND)
    parity_D = 2 * (U % 2) + V % 2
    parities = [np.flatnonzero(parity_D == parity) for parity in range(4)]
    for start in range(0, films, BLOCK):
        rows = slice(start, start + BLOCK)
        row, column, score = [], [], []
        for left in range(start, films, 8 * BLOCK):
            best = np.zeros((min(BLOCK, films - start), min(8 * BLOCK, films - left)), np.float32)
            for query in (hash_ND[rows], hash_ND[rows][:, SWAPPED]):
                a, b, c, d = (query[:, at] @ hash_ND[left : left + 8 * BLOCK, at].T for at in parities)
                np.maximum(best, np.abs(a + d) + np.abs(b + c), out=best)
                np.maximum(best, np.abs(a - d) + np.abs(b - c), out=best)
            i, j = np.nonzero(best >= similarity)
            later = j + left > i + start
            row.append(i[later] + start)
            column.append(j[later] + left)
            score.append(best[i[later], j[later]])
        yield np.concatenate(row), np.concatenate(column), np.concatenate(score)
        on_progress(min(start + BLOCK, films), films)


def _walk_buckets(
    hash_ND: np.ndarray, similarity: float, on_progress: OnCount
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Compare films on the same side of all hyperplanes of a table, one of them in any pose."""
    rng = np.random.default_rng(0)
    mean_D = hash_ND.mean(axis=0)
    variance, axis_DD = np.linalg.eigh(_compute_covariance(hash_ND, mean_D))
    bits = min(24, max(8, round(math.log2(len(hash_ND)))))
    # Planes through the mean of the films, along their principal directions, give buckets of even size.
    axis_DK = axis_DD[:, -bits:] / np.sqrt(np.maximum(variance[-bits:], 1e-9))
    for table in range(TABLES):
        plane_DK = axis_DK @ np.linalg.qr(rng.normal(size=(bits, bits)))[0]
        plane_DK = plane_DK.astype(np.float32)
        order = rng.permutation(len(hash_ND))
        key = np.concatenate([_compute_keys(part - mean_D, plane_DK) for _, part in _list_parts(hash_ND)])[order]
        order = order[np.argsort(key, kind="stable")]
        # bucket k holds the films order[first[k] : first[k + 1]]; a look-up is much faster than a search for every film
        first = np.concatenate([[0], np.cumsum(np.bincount(key, minlength=1 << bits))])
        for pose in range(POSES):
            for start, part in _list_parts(hash_ND):
                query = pose_hashes(part, pose)
                wanted = _compute_keys(query - mean_D, plane_DK)
                yield from _compare_buckets(hash_ND, query, start, order, first[wanted], first[wanted + 1], similarity)
        on_progress(table + 1, TABLES)


def _list_parts(hash_ND: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(hash_ND), PART):
        yield start, hash_ND[start : start + PART]


def _compute_covariance(hash_ND: np.ndarray, mean_D: np.ndarray) -> np.ndarray:
    """Return the covariance in float64; `np.cov` would copy all hashes twice in that precision."""
    parts = ((part - mean_D).astype(np.float64) for _, part in _list_parts(hash_ND))
    return np.asarray(sum(part.T @ part for part in parts) / (len(hash_ND) - 1))


def _compute_keys(hash_ND: np.ndarray, plane_DK: np.ndarray) -> np.ndarray:
    """Number the side of each plane that a film lies on, a bit a plane, int64 [N]; exact in float32 up to 24 planes."""
    power_K = (1 << np.arange(plane_DK.shape[1])).astype(np.float32)
    return np.asarray((hash_ND @ plane_DK > 0).astype(np.float32) @ power_K, np.int64)


def _compare_buckets(
    hash_ND: np.ndarray,
    query_QD: np.ndarray,
    start: int,
    order: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    similarity: float,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield similar pairs of queries and films of their buckets, at most `BUCKET` random films of each bucket."""
    for step in range(int(min(BUCKET, (high - low).max(initial=0)))):
        row = np.flatnonzero(low + step < high)
        other = order[low[row] + step]
        row, other = row[other != row + start], other[other != row + start]
        score = np.einsum("nd,nd->n", query_QD[row], hash_ND[other])
        near = score >= similarity
        yield row[near] + start, other[near], score[near]


def _judge_poses(hash_ND: np.ndarray, first: np.ndarray, second: np.ndarray) -> NearHashes:
    """Find the pose of the first film in which the hashes of each pair agree best."""
    best, chosen = np.full(len(first), -2, np.float32), np.zeros(len(first), np.int64)
    for start in range(0, len(first), PART):
        part = slice(start, start + PART)
        one, other = hash_ND[first[part]], hash_ND[second[part]]
        for pose in range(POSES):
            score = np.einsum("nd,nd->n", pose_hashes(one, pose), other)
            chosen[part][score > best[part]] = pose
            np.maximum(best[part], score, out=best[part])
    return NearHashes(first, second, best, is_mirrored(chosen), (chosen & 8) > 0)
