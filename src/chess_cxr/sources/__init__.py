"""Where films come from."""
