"""Files and objects of a store: named, read, written whole or not at all."""
