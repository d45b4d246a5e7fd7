"""Ingest raw files into a store: decode, judge, hash identifiers, split."""
