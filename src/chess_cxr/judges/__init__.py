"""Networks and measures that judge generated films."""
