"""Look at films: an archive searched by a film, its map, and a selection of it."""
