"""Decode a file of any kind into a film."""
