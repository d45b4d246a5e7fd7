"""Plots, pictures and self-contained HTML pages."""
