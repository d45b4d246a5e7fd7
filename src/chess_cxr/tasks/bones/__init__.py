"""Bone suppression."""
