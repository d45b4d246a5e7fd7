"""Where things stand in a checkout."""

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
CHECKOUT = HELPERS.parents[1]


def touch(root: Path, *names: str) -> Path:
    """Write small files below a folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root
