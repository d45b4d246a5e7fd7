"""From raw files to a store: decode, de-identify, split."""
