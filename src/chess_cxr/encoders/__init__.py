"""Encoders: loaded by name, written as folders, put to work."""
