"""Pre-training: presets, runs, probes, run pages, plans and export."""
