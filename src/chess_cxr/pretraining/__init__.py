"""Pre-training: presets, runs, what is watched, what is exported."""
