"""One loop that trains every method and task."""
