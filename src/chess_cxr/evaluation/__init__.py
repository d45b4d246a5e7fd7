"""Metrics, intervals and probes: arrays in, tables out, without torch."""
