"""Nodule generation."""
