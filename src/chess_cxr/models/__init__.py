"""Networks only, no losses."""
