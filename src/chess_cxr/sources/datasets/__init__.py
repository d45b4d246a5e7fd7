"""Read public data sets, each in its published layout."""
