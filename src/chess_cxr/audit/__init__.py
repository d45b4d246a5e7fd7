"""Audit leaks: patients and pictures shared between splits, stores and published lists."""
