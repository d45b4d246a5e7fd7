"""The commands: what stands on the command line, checked and handed to the rooms that do the work."""
