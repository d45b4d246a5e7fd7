"""Where things stand in a checkout."""

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
CHECKOUT = HELPERS.parents[1]
