"""Generated chest films.  Everything here is SYNTHETIC."""
