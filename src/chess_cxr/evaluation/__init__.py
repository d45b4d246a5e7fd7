"""Arrays in, tables out; no torch."""
