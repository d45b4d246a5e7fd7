"""Encoders × tasks × label fractions × draws, in one command: cells that are computed once and survive a kill."""
