"""Downstream objectives, one a file."""
