"""Local files and stored objects: name, list and read them, write them whole or not at all."""
