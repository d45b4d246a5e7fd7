"""Public data sets: each one's published layout read into films."""
