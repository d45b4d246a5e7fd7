"""Choose the kind of content of an answer by the header Accept (RFC 9110, 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WEIGHT = re.compile(r";\s*q\s*=\s*([01](?:\.\d*)?)\s*(?:;|$)")


def choose_kind(accept: str, kinds: Sequence[str]) -> str | None:
    """Return which kind of content a client wants most, the first of equals; None if it takes none of them.

    A kind that is named goes before one that is merely within a range such as */*.
    """
    weights = dict(map(_read_range, (accept.strip() or "*/*").lower().split(",")))

    def weigh(kind: str) -> tuple[float, bool]:
        names = (kind, f"{kind.partition('/')[0]}/*", "*/*")
        return next((weights[name] for name in names if name in weights), 0.0), kind in weights

    best = max(kinds, key=weigh)
    return best if weigh(best)[0] > 0 else None


def _read_range(told: str) -> tuple[str, float]:
    weight = _WEIGHT.search(told)
    return told.partition(";")[0].strip(), float(weight[1]) if weight else 1.0
