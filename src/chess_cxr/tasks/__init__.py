"""The downstream tasks, and what they share."""
