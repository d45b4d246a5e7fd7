"""Classification of films."""
